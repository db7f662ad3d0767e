"""A real S3 server (SeaweedFS) for tests, once a process of pytest, and which test runs in which process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.object_store import BUCKET, object_store
from tests.store_proxy import Faults, StoreProxy

TESTS = Path(__file__).parent

os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes with two threads each would spin on two cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # nor do the two threads that a test asks for

TOGETHER = (
    # share a server; PostgreSQL's tests have servers of their own, and no browser in their process
    tuple(f"operations/test_{name}" for name in ("browser", "doors", "live", "operate")),
    ("benchmarks/gpu/test_day.py", "model/planning/test_memory_use.py"),  # plan `daily`, whose traces take long
    ("eval/scoring/test_harness.py", "eval/scoring/test_trained_model.py"),  # score the same small model
)
"""Files, by the beginnings of their paths below tests/, that one process runs, which keeps what they share."""
SLOWEST = (
    *TOGETHER[0],
    "operations/test_postgres.py",
    *TOGETHER[1],
    "model/training/test_runs.py",
    "flows/test_daily.py",
    "model/training/test_same_bytes.py",
    "tasks/runtime/test_grace_period.py",
    "model/test_train.py",
    *TOGETHER[2],
    "benchmarks/gpu/test_scheduler.py",
)
"""Files that begin first, so that all processes end at about the same time."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The slowest files first; a stable sort keeps the order inside a file."""

    def rank(item: pytest.Item) -> int:
        path = item.path.relative_to(TESTS).as_posix()
        return next((rank for rank, slow in enumerate(SLOWEST) if path.startswith(slow)), len(SLOWEST))

    items.sort(key=rank)


class ByFile(LoadScopeScheduling):
    """A file runs in one process, and so do the files that run together."""

    def _split_scope(self, nodeid: str) -> str:
        path = nodeid.partition("::")[0].removeprefix("tests/")
        return next((files[0] for files in TOGETHER if path.startswith(files)), path)


def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> ByFile:
    return ByFile(config, log)


@pytest.fixture(scope="session")
def s3_environment(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, str]]:
    """Environment of a client of a real S3 server with one empty bucket."""
    with object_store(tmp_path_factory.mktemp("s3")) as environment:
        yield environment


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


@pytest.fixture
def proxy(s3: str, s3_environment: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> Iterator[StoreProxy]:
    """A proxy in front of the test's S3 server that does no harm yet, with the environment set so that it is used."""
    with StoreProxy(s3_environment["AWS_ENDPOINT_URL_S3"], Faults()) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", running.url)
        yield running
