"""A real S3 server (SeaweedFS) for tests, once a process of pytest, and which test runs in which process."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from xdist.scheduler import LoadScopeScheduling

from tests.object_store import BUCKET, object_store
from tests.store_proxy import Faults, StoreProxy

os.environ.setdefault("PREFECT_LOGGING_TO_API_WHEN_MISSING_FLOW", "ignore")
os.environ.setdefault("OMP_NUM_THREADS", "1")  # two test processes with two threads each would spin on two cores
os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # nor do the two threads that a test asks for

PLANNED = ("test_day.py", "test_model_memory.py")
SLOWEST = (
    "test_operate.py",
    "test_browser.py",
    *PLANNED,
    "test_flow.py",
    "test_saving.py",
    "test_model_runs.py",
    "test_gpu_script.py",
    "test_eval_harness.py",
)
"""Files that begin first, so that all processes end at about the same time."""


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
