"""The live page of a training and the served report, in headless Chromium, on a store in a bucket."""

import re
from collections.abc import Iterator

import httpx
import pytest
from playwright.sync_api import Browser, Page, StorageState, expect

from deployments.pages import REPORT_POLICY
from tests.operations.live import CHROMIUM, SECONDS, Up, wait_for

chromium = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium`")
SHORT = {"tokens": 163_840, "seed": 17}
"""80 steps: long enough to be watched."""


@pytest.fixture
def page(browser: Browser, logged_in: StorageState) -> Iterator[Page]:
    """A page that fails its test when its own policy stops something or it asks another machine."""
    opened = browser.new_page(viewport={"width": 1280, "height": 1000}, storage_state=logged_in)
    opened.set_default_timeout(SECONDS * 1000 / 5)
    outside: list[str] = []
    errors: list[str] = []
    opened.on("request", lambda request: outside.append(request.url))
    ours = re.compile("/live/|/pages/")  # the policy of Prefect's pages stops their request to an analytics host

    def hear(words: str) -> None:
        if ours.search(opened.url):
            errors.append(words)

    opened.on("pageerror", lambda error: hear(str(error)))
    opened.on("console", lambda message: hear(message.text) if "Refused" in message.text else None)
    yield opened
    opened.close()
    assert not [url for url in outside if not url.startswith(("http://127.0.0.1", "data:", "blob:"))]
    assert not errors


def points(page: Page) -> int:
    """How many points the curve has."""
    return int(page.locator("#loss").get_attribute("data-points") or 0)


@chromium
def test_a_training_is_watched_from_before_its_start_to_its_report(up: Up, page: Page):
    run = up.start(**SHORT)
    page.goto(f"{up.url}/live/{run}")
    expect(page.locator("#said")).to_contain_text("The training has not begun.")
    expect(page.locator("#said")).to_contain_text("Training.", timeout=SECONDS * 1000)
    seen = wait_for(lambda: points(page))
    wait_for(lambda: points(page) > seen)
    for words in ("step of 80", "tokens per second", "left", "cost of the training so far", "bits per byte"):
        expect(page.locator("#tiles")).to_contain_text(words)
    expect(page.locator("#tiles")).to_contain_text(re.compile("CPU use|GPU use"))
    expect(page.locator("#report")).to_be_hidden()
    link = next(artifact for artifact in [up.artifact(run, "live")] if artifact)
    assert f"{up.url}/live/{run}" in link["data"]

    expect(page.locator("#said")).to_contain_text("Training finished.", timeout=SECONDS * 1000)
    expect(page.locator("#tiles")).to_contain_text("100 %")
    assert up.ended(run)["type"] == "COMPLETED", up.lines(run)
    expect(page.locator("#said")).to_contain_text("completed")
    for width in (390, 1280):
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0

    page.get_by_role("link", name="Report").click()  # the store is a bucket: it is served from here
    page.wait_for_url(f"{up.url}/pages/{run}/report")
    expect(page.get_by_role("heading", name="Scores", exact=True)).to_be_visible()
    assert page.evaluate("[...document.images].filter(image => !image.naturalWidth).length") == 0
    page.go_back()
    page.get_by_role("link", name="The run in Prefect").click()
    page.wait_for_url(f"{up.url}/v2/runs/flow-run/{run}**")
    page.goto(f"{up.url}/live")
    page.locator(f"a[href='/live/{run}']").click()
    expect(page.locator("#said")).to_contain_text("Training finished.")


@chromium
def test_an_unknown_run_and_foreign_texts(up: Up, page: Page):
    run = "0af51c6e-1111-4222-8333-000000000001"
    page.goto(f"{up.url}/live/{run}")
    expect(page.locator("#said")).to_contain_text("Unknown run.")

    words = "<script>document.title = 'it ran'</script><p onclick=''>read</p><img src=/api/health>"
    httpx.put(f"{up.url}/pages/{run}/report", content=f"<title>a report</title>{words}", headers=up.headers, timeout=60)
    shown = page.goto(f"{up.url}/pages/{run}/report")
    assert shown is not None and shown.headers["content-security-policy"] == REPORT_POLICY
    expect(page.get_by_text("read")).to_be_visible()
    assert page.title() == "a report"
    page.goto("about:blank")
