"""A real S3 server (SeaweedFS) on loopback with one empty bucket, for tests and benchmarks."""

import json
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
from botocore.exceptions import BotoCoreError, ClientError

from tests.operations.live import free_port

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret123"}
READER = {"AWS_ACCESS_KEY_ID": "reader", "AWS_SECRET_ACCESS_KEY": "readersecret123"}
"""Credentials that may read and list, and not write."""
BUCKET = "daily-train-test"


def free_port_pair() -> int:
    """A free port whose number plus 10,000 is free as well: SeaweedFS takes it for gRPC."""
    while True:
        port = free_port()
        if port > 50_000:
            port -= 20_000
        with socket.socket() as first, socket.socket() as second:
            try:
                first.bind(("127.0.0.1", port))
                second.bind(("127.0.0.1", port + 10_000))
            except OSError:
                continue
            return port


TRIES = 3
"""Another process may take a port between the moment that it was found free and the start of the server."""


@contextmanager
def object_store(folder: Path) -> Iterator[dict[str, str]]:
    """Environment of a client of the server, which keeps its data in `folder`."""
    identities = [
        {
            "name": name,
            "credentials": [dict(zip(("accessKey", "secretKey"), keys.values(), strict=True))],
            "actions": actions,
        }
        for name, keys, actions in (
            ("t", CREDENTIALS, ["Admin", "Read", "Write", "List", "Tagging"]),
            ("reader", READER, ["Read", "List"]),
        )
    ]
    (folder / "s3.json").write_text(json.dumps({"identities": identities}))
    for tries in range(1, TRIES + 1):
        server, environment = _start(folder)
        try:
            _wait_for_bucket(server, environment)
        except (BotoCoreError, ClientError):
            server.kill()
            server.wait()
            if tries == TRIES:
                raise
        else:
            break
    try:
        yield environment
    finally:
        server.kill()  # its data is thrown away; an orderly stop takes 15 s
        server.wait()


def _start(folder: Path) -> tuple[subprocess.Popen, dict[str, str]]:
    """The server on free ports, and the environment of its clients."""
    master, volume, filer, s3 = (free_port_pair() for _ in range(4))
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    with (folder / "log").open("a") as log:
        server = subprocess.Popen(
            [
                weed,
                "-logtostderr=true",
                "server",
                f"-dir={folder}",
                "-ip=127.0.0.1",
                "-ip.bind=127.0.0.1",
                f"-master.port={master}",
                f"-volume.port={volume}",
                "-filer",
                f"-filer.port={filer}",
                "-s3",
                f"-s3.port={s3}",
                f"-s3.config={folder / 's3.json'}",
                "-s3.allowDeleteBucketNotEmpty=false",
                "-s3.port.iceberg=0",
                "-s3.port.lance=0",
                "-s3.iam=false",
                "-master.volumeSizeLimitMB=64",
                "-volume.max=0",
                "-volume.preStopSeconds=1",
                "-master.telemetry=false",
            ],
            stdout=log,
            stderr=log,
        )
    return server, {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3}", "AWS_REGION": "us-east-1"}


def _wait_for_bucket(server: subprocess.Popen, environment: dict[str, str]) -> None:
    """Make the bucket as soon as the server answers. Raises what the client last said once the server has ended."""
    client = boto3.client(
        "s3",
        endpoint_url=environment["AWS_ENDPOINT_URL_S3"],
        region_name=environment["AWS_REGION"],
        aws_access_key_id=environment["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=environment["AWS_SECRET_ACCESS_KEY"],
    )
    deadline = time.monotonic() + 300
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
            return
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.3)
