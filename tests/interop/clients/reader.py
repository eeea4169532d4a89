"""Reads objects with boto3 and nothing but the default credential chain.

    reader.py SECONDS ALLOWED [REFUSED]     reads ALLOWED again and again for SECONDS with one client, then REFUSED once

Prints one JSON object: how many reads went well, the access keys that were used, the code of the refusal.
"""

import json
import sys
import time

import boto3
from botocore.exceptions import ClientError


def main(seconds, allowed, refused=None):
    session = boto3.session.Session()
    s3 = session.client("s3")
    keys, reads, code = [], 0, None
    end = time.monotonic() + float(seconds)
    while True:
        bucket, key = allowed.split("/", 1)
        s3.get_object(Bucket=bucket, Key=key)["Body"].read()
        reads += 1
        used = session.get_credentials().get_frozen_credentials().access_key
        if used not in keys:
            keys.append(used)
        if time.monotonic() > end:
            break
        time.sleep(0.2)
    if refused:
        bucket, key = refused.split("/", 1)
        try:
            s3.get_object(Bucket=bucket, Key=key)
        except ClientError as error:
            code = error.response["ResponseMetadata"]["HTTPStatusCode"]
    print(json.dumps({"reads": reads, "keys": keys, "refused": code}))


main(*sys.argv[1:])
