#!/bin/sh
# Reads objects with the AWS CLI, a new process each time, and nothing but the default credential chain.
#
#   reader.sh AWS SECONDS ALLOWED [REFUSED]     reads ALLOWED again and again for SECONDS, then REFUSED once
#
# Prints one JSON object: how many reads went well, and what the CLI said of the refusal.
set -eu
aws=$1 seconds=$2 allowed=$3 refused=${4:-}
end=$(($(date +%s) + seconds))
reads=0
while :; do
  "$aws" s3api get-object --bucket "${allowed%%/*}" --key "${allowed#*/}" /dev/null >/dev/null
  reads=$((reads + 1))
  [ "$(date +%s)" -ge "$end" ] && break
  sleep 0.2
done
code=null
if [ -n "$refused" ]; then
  # `s3 cp` asks by HEAD first: RGW's refusals of a GET have no message, and this CLI cannot print that.
  said=$("$aws" s3 cp "s3://$refused" - 2>&1 >/dev/null) || case $said in
  *"(403)"*) code=403 ;;
  *) echo "$said" >&2 ;;
  esac
fi
echo "{\"reads\": $reads, \"keys\": null, \"refused\": $code}"
