"""`daily-train up`, once for all tests of this folder."""

from collections.abc import Iterator

import pytest

from tests.operations.live import Up, daily_train_up


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory, s3_environment: dict[str, str], s3_url: str) -> Iterator[Up]:
    """Server, worker and deployments, with credentials in the environment and a receiver of messages."""
    with daily_train_up(tmp_path_factory.mktemp("up"), s3_environment, f"{s3_url}/operate") as running:
        yield running
