"""`daily-train up` and a browser, once for all tests of this folder."""

import re
from collections.abc import Generator, Iterator

import pytest
from httpx import TransportError
from playwright.sync_api import Browser, Playwright, StorageState, expect, sync_playwright

from tests.operations.live import CHROMIUM, QUIET, Up, daily_train_up

expect.set_options(timeout=60_000)


@pytest.fixture(scope="package")
def up(tmp_path_factory: pytest.TempPathFactory, s3_environment: dict[str, str], s3_url: str) -> Iterator[Up]:
    """Server, worker and deployments, with credentials in the environment and a receiver of messages."""
    with daily_train_up(tmp_path_factory.mktemp("up"), s3_environment, f"{s3_url}/operate") as running:
        yield running


@pytest.fixture(scope="package")
def playwright() -> Iterator[Playwright]:
    with sync_playwright() as started:
        yield started


@pytest.fixture(scope="package")
def browser(playwright: Playwright) -> Iterator[Browser]:
    chromium = playwright.chromium.launch(executable_path=CHROMIUM, args=QUIET)
    yield chromium
    chromium.close()


@pytest.fixture(scope="package")
def logged_in(up: Up, browser: Browser) -> StorageState:
    """What a browser keeps after a click on the address that `up` has printed."""
    page = browser.new_page()
    page.goto(re.findall(r"http://\S+/enter#\S+", up.log)[0])
    page.wait_for_url(lambda url: "/enter" not in url, wait_until="commit")
    kept = page.context.storage_state()
    page.close()
    return kept


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
