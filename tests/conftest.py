"""A real S3 server (SeaweedFS) for tests, once a process of pytest, and which test runs in which process."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import BotoCoreError, ClientError
from xdist.scheduler import LoadScopeScheduling

from tests.operations.live import free_port

os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes with two threads each would spin on two cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # nor do the two threads that a test asks for

PLANNED = ("test_day.py", "test_model_memory.py")
SLOWEST = ("test_operate.py", "test_browser.py", *PLANNED, "test_flow.py", "test_saving.py", "test_model_runs.py",
           "test_gpu_script.py", "test_eval_harness.py")  # fmt: skip
"""Files that begin first, so that all processes end at about the same time."""

CREDENTIALS = {"AWS_ACCESS_KEY_ID": "testkey", "AWS_SECRET_ACCESS_KEY": "testsecret123"}
BUCKET = "daily-train-test"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; a stable sort keeps the order inside a file."""
    items.sort(key=lambda item: SLOWEST.index(item.path.name) if item.path.name in SLOWEST else len(SLOWEST))


class ByFile(LoadScopeScheduling):
    """A file runs in one process; so do the files of operations/, which share a server, and those that plan `daily`,
    whose traces take long and are kept."""

    def _split_scope(self, nodeid: str) -> str:
        file = Path(nodeid.partition("::")[0])
        if file.name in PLANNED:
            return PLANNED[0]
        return file.parent.name if file.parent.name == "operations" else file.name


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


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


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of a real S3 server with one empty bucket."""
    with s3_server(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


@contextmanager
def s3_server(folder: Path) -> Iterator[dict[str, str]]:
    """A real S3 server with one empty bucket, whose data lies in `folder`; the environment of its clients."""
    key, secret = CREDENTIALS.values()
    identity = {
        "name": "t",
        "credentials": [{"accessKey": key, "secretKey": secret}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    master, volume, filer, s3 = (free_port_pair() for _ in range(4))
    weed = shutil.which("weed", path=str(Path(sys.executable).parent)) or "weed"
    with (folder / "log").open("w") as log:
        server = subprocess.Popen(
            [
                weed, "-logtostderr=true", "server", f"-dir={folder}", "-ip=127.0.0.1", "-ip.bind=127.0.0.1",
                f"-master.port={master}", f"-volume.port={volume}", "-filer", f"-filer.port={filer}",
                "-s3", f"-s3.port={s3}", f"-s3.config={folder / 's3.json'}", "-s3.allowDeleteBucketNotEmpty=false",
                "-s3.port.iceberg=0", "-s3.port.lance=0", "-s3.iam=false", "-master.volumeSizeLimitMB=64",
                "-volume.max=0", "-volume.preStopSeconds=1", "-master.telemetry=false",
            ],
            stdout=log, stderr=log,
        )  # fmt: skip
    environment = {**CREDENTIALS, "AWS_ENDPOINT_URL_S3": f"http://127.0.0.1:{s3}", "AWS_REGION": "us-east-1"}
    client = boto3.client(
        "s3", endpoint_url=environment["AWS_ENDPOINT_URL_S3"], region_name="us-east-1",
        aws_access_key_id=key, aws_secret_access_key=secret,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while True:
        try:
            client.create_bucket(Bucket=BUCKET)
            client.put_object(Bucket=BUCKET, Key="ready", Body=b"x")
            break
        except (BotoCoreError, ClientError):
            if time.monotonic() > deadline or server.poll() is not None:
                raise
            time.sleep(0.3)
    yield environment
    server.kill()  # its data is thrown away; an orderly stop takes 15 s
    server.wait()


@pytest.fixture(scope="session")
def s3_url() -> str:
    """URL of the bucket on the test's S3 server."""
    return f"s3://{BUCKET}"


@pytest.fixture
def s3(s3_environment: dict[str, str], s3_url: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The bucket's URL, with the environment set so that a client in this process finds the server."""
    for name, value in s3_environment.items():
        monkeypatch.setenv(name, value)
    return s3_url
