"""`daily-train up`, once for all tests of this folder."""

from collections.abc import Generator, Iterator

import pytest
from httpx import TransportError

from tests.operations.live import Up, daily_train_up


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory, s3_environment: dict[str, str], s3_url: str) -> Iterator[Up]:
    """Server, worker and deployments, with credentials in the environment and a receiver of messages."""
    with daily_train_up(tmp_path_factory.mktemp("up"), s3_environment, f"{s3_url}/operate") as running:
        yield running


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """With a failure, what `daily-train up` and the runs have printed last."""
    report = yield
    running = getattr(item, "funcargs", {}).get("up")
    if report.failed and running is not None:
        report.sections.append(("daily-train up", "\n".join(running.log.splitlines()[-60:])))
        try:
            report.sections.append(("log of the runs", "\n".join(reversed(running.lines()[:60]))))
        except TransportError as error:
            report.sections.append(("log of the runs", f"the server does not answer: {error}"))
    return report
