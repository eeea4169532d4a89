"""Ceph RGW as the STS that verifies JWT-SVIDs and the S3 that enforces session policies."""

import json
import uuid

import boto3
from botocore import UNSIGNED
from botocore.config import Config
from botocore.exceptions import ClientError

from .harness import Daemon, free_port, http_call, run, wait_until

ROLE_ARN = "arn:aws:iam:::role/app"
BUCKET = "ledger"
AUDIENCE = "sts.test"
OBJECTS = {f"{customer}/report.txt": f"the ledger of {customer}\n".encode() for customer in ("c-42", "c-43")}


class Rgw:
    """One monitor, one OSD in memory, one gateway."""

    def __init__(self, folder):
        self.folder = folder / "rgw"
        for name in ("", "mon", "osd", "run", "log"):
            (self.folder / name).mkdir(mode=0o700)
        self.mon_port, self.port = free_port(), free_port()
        self.endpoint = f"http://127.0.0.1:{self.port}"
        self.config = self.folder / "ceph.conf"
        self.env = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "CEPH_CONF": str(self.config)}
        self.running = []

    def _run(self, *argv):
        return run(argv, env=self.env, deadline=60).ok()

    def _start(self, name, *argv):
        daemon = Daemon(name, [*argv, "-f"], self.folder / f"{name}.out", env=self.env).start()
        self.running.append(daemon)

    def start(self):
        cluster = str(uuid.uuid4())
        self.config.write_text(CONFIG.format(fsid=cluster, folder=self.folder, mon_port=self.mon_port, port=self.port))
        monmap = self.folder / "monmap"
        self._run("monmaptool", "--create", "--clobber", "--fsid", cluster, "--addv", "a", f"v1:127.0.0.1:{self.mon_port}", monmap)
        self._run("ceph-mon", "--mkfs", "-i", "a", "--monmap", monmap)
        self._start("ceph-mon", "ceph-mon", "-i", "a")
        wait_until("the monitor", lambda: run(["ceph", "--connect-timeout", "5", "osd", "stat"], env=self.env).code == 0, 30)
        self._run("ceph", "osd", "create")
        self._run("ceph", "osd", "crush", "add", "osd.0", "1", "root=default", "host=h")
        self._run("ceph-osd", "-i", "0", "--mkfs")
        self._start("ceph-osd", "ceph-osd", "-i", "0")
        wait_until("the OSD", lambda: " 1 up" in self._run("ceph", "osd", "stat").out, 30)
        self._start("radosgw", "radosgw", "-n", "client.rgw")
        wait_until("the gateway", lambda: http_call("GET", self.endpoint, "/").status == 200, 60)
        self._run(
            *("radosgw-admin", "-n", "client.rgw", "user", "create", "--uid=adm", "--display-name=adm"),
            *("--access-key=ADMINAK", "--secret-key=ADMINSK", "--caps=roles=*;oidc-provider=*;user-policy=*"),
        )
        return self

    def stop(self):
        for daemon in reversed(self.running):
            daemon.stop()

    def daemons(self):
        return self.running

    def client(self, service, **credentials):
        credentials = credentials or {"aws_access_key_id": "ADMINAK", "aws_secret_access_key": "ADMINSK"}
        retry_once = Config(retries={"total_max_attempts": 1}, connect_timeout=5, read_timeout=15, proxies={})
        return boto3.session.Session().client(
            service, endpoint_url=self.endpoint, region_name="us-east-1", config=retry_once, **credentials
        )

    def seed(self, issuer, subjects):
        """The provider, the role with a trust condition on audience and subject, and one object for each customer."""
        iam, s3 = self.client("iam"), self.client("s3")
        host = issuer.removeprefix("http://")
        # RGW wants a thumbprint and never looks at it.
        iam.create_open_id_connect_provider(Url=issuer, ClientIDList=[AUDIENCE], ThumbprintList=["0" * 40])
        trust = {
            "Effect": "Allow",
            "Principal": {"Federated": [f"arn:aws:iam:::oidc-provider/{host}"]},
            "Action": ["sts:AssumeRoleWithWebIdentity"],
            "Condition": {"StringEquals": {f"{host}:sub": subjects}},
        }
        role = {"Effect": "Allow", "Action": ["s3:*"], "Resource": [f"arn:aws:s3:::{BUCKET}", f"arn:aws:s3:::{BUCKET}/*"]}
        iam.create_role(RoleName="app", Path="/", AssumeRolePolicyDocument=document(trust))
        iam.put_role_policy(RoleName="app", PolicyName="base", PolicyDocument=document(role))
        s3.create_bucket(Bucket=BUCKET)
        for key, body in OBJECTS.items():
            s3.put_object(Bucket=BUCKET, Key=key, Body=body)

    def assume(self, token, session, policy):
        """`AssumeRoleWithWebIdentity` without Sidemint: what the STS itself says of a token."""
        sts = boto3.session.Session().client(
            "sts", endpoint_url=self.endpoint, region_name="us-east-1", config=Config(signature_version=UNSIGNED, proxies={})
        )
        answer = sts.assume_role_with_web_identity(
            RoleArn=ROLE_ARN, RoleSessionName=session, WebIdentityToken=token, DurationSeconds=900, Policy=document(policy)
        )
        return answer["Credentials"]

    def read(self, credentials, key):
        """Reads `key` with credentials of the container dialect or of STS. Returns 200, or the refusal's status."""
        token = credentials.get("Token") or credentials["SessionToken"]
        s3 = self.client(
            "s3",
            aws_access_key_id=credentials["AccessKeyId"],
            aws_secret_access_key=credentials["SecretAccessKey"],
            aws_session_token=token,
        )
        try:
            body = s3.get_object(Bucket=BUCKET, Key=key)["Body"].read()
        except ClientError as refused:
            return refused.response["ResponseMetadata"]["HTTPStatusCode"]
        assert body == OBJECTS[key], body
        return 200


def document(statement):
    """A policy of one statement, compact: RGW refuses blanks."""
    return json.dumps({"Version": "2012-10-17", "Statement": [statement]}, separators=(",", ":"))


CONFIG = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
ms bind msgr2 = false
auth_cluster_required = none
auth_service_required = none
auth_client_required = none
osd_objectstore = memstore
memstore_device_bytes = 1073741824
osd_pool_default_size = 1
osd_pool_default_min_size = 1
mon_allow_pool_size_one = true
osd_crush_chooseleaf_type = 0
osd_pool_default_pg_num = 4
osd_pool_default_pgp_num = 4
osd_pool_default_pg_autoscale_mode = off
mon_max_pg_per_osd = 2000
paxos_propose_interval = 0.02
paxos_min_wait = 0.01
osd_crush_update_on_start = false
osd_class_update_on_start = false
public_addr = 127.0.0.1
cluster_addr = 127.0.0.1
mon data = {folder}/mon
osd data = {folder}/osd
run dir = {folder}/run
admin socket = {folder}/run/$name.$pid.asok
pid file = {folder}/run/$name.pid
log file = {folder}/log/$name.log
[client.rgw]
rgw_frontends = beast endpoint=127.0.0.1:{port}
rgw_s3_auth_use_sts = true
rgw_sts_key = abcdefghijklmnop
rgw_run_sync_thread = false
"""
