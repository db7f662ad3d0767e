"""What a training sends to its page: the server's own part behind a real port, with Prefect's answers left out."""

import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn
from prefect.settings import PREFECT_API_AUTH_STRING, PREFECT_API_URL, PREFECT_UI_URL, temporary_settings
from starlette.responses import PlainTextResponse

from deployments.access import basic_credentials
from deployments.server import guarded_app
from tasks.runtime import pages
from tasks.runtime.machine_load import MachineLoad, gpu_values
from tasks.runtime.pages import PAGES, LivePage, live_page_address, publish_page, show_finished
from tests.operations.live import free_port, wait_for

RUN, KEY, STRING = "0af51c6e-1111-4222-8333-000000000001", "a" * 64, "only-of-this-test"


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[httpx.Client]:
    """Our server in a thread; this process is a run that knows it."""
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with temporary_settings(
        {
            PREFECT_API_URL: f"{url}/api",
            PREFECT_API_AUTH_STRING: STRING,
            PREFECT_UI_URL: "https://train.example.org",
        }
    ):
        app = guarded_app(PlainTextResponse("no such run", 404), port, STRING, tmp_path / "pages")
        served = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error", lifespan="off"))
        thread = threading.Thread(target=served.run)
        thread.start()
        monkeypatch.setenv(PAGES, url)
        monkeypatch.setenv("PREFECT__FLOW_RUN_ID", RUN)
        monkeypatch.setattr(pages, "SECONDS_BETWEEN", 0.05)
        wait_for(lambda: served.started)
        yield httpx.Client(base_url=url, headers={"Authorization": f"Basic {basic_credentials(STRING)}"})
        served.should_exit = True
        thread.join()


def curve(server: httpx.Client) -> dict:
    return server.get(f"/live/{RUN}/data").json()["curve"] or {"step": [], "phase": ""}


def steps(numbers: range) -> str:
    return "".join(json.dumps(step(number)) + "\n" for number in numbers)


def step(number: int) -> dict:
    return {"event": "step", "step": number, "loss": 9.5, "tokens_per_second": 10, "steps": 99, "flops": 10**24}


def test_a_curve_is_sent_while_it_grows_and_anew_after_a_resume(server: httpx.Client, tmp_path: Path):
    file = tmp_path / "metrics.jsonl"

    def numbers(expected: range) -> Callable[[], bool]:
        return lambda: [point[0] for point in curve(server)["step"]] == list(expected)

    with LivePage(file, KEY, 2.5) as live:
        wait_for(lambda: curve(server)["phase"] == "starting")
        assert curve(server)["usage"][0][0] == 0 and curve(server)["facts"]["usd_per_hour"] == 2.5
        file.write_text(steps(range(1, 4)) + '{"event": "step", "st')
        live({"event": "step"})
        wait_for(numbers(range(1, 4)))
        with file.open("a") as opened:
            opened.write('ep": 4, "loss": 9.5}\n' + '{"event": "samples", "step": 4}\n{"event": "done", "step": 4}\n')
        wait_for(numbers(range(1, 5)))
        assert curve(server)["phase"] == "training"

        replaced = file.with_suffix(".new")  # as model/training/metrics.py does
        replaced.write_text(steps(range(1, 3)))
        replaced.replace(file)
        wait_for(numbers(range(1, 3)))
        with file.open("a") as opened:
            opened.write(steps(range(3, 7)))
        live({"event": "ending"})
    assert numbers(range(1, 7))() and curve(server)["phase"] == "finished"

    with pytest.raises(KeyboardInterrupt), LivePage(file, KEY, 2.5):
        raise KeyboardInterrupt
    assert curve(server)["phase"] == "cancelled" and numbers(range(1, 7))()


def test_a_long_finished_training_of_an_earlier_run_is_shown_whole(server: httpx.Client, tmp_path: Path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(steps(range(1, 5001)))
    show_finished(file, KEY, 1.0)
    shown = curve(server)
    assert shown["facts"]["earlier"] and shown["phase"] == "finished" and not shown["usage"]
    assert shown["step"][0][0] == 1 and shown["step"][-1][0] == 5000


def test_a_report_is_served_without_its_scripts(server: httpx.Client):
    assert live_page_address() == f"https://train.example.org/live/{RUN}"
    assert publish_page("report", b"<h1>A report</h1>") == f"https://train.example.org/pages/{RUN}/report"
    shown = server.get(f"/pages/{RUN}/report")
    assert shown.text == "<h1>A report</h1>" and "text/html" in shown.headers["content-type"]
    assert "sandbox;" in shown.headers["content-security-policy"]
    assert "default-src 'none'" in shown.headers["content-security-policy"]


@pytest.mark.usefixtures("server")
def test_a_report_that_is_too_large_is_no_link(caplog: pytest.LogCaptureFixture):
    assert publish_page("report", b"x" * 20_000_001) is None
    assert "the server does not show the report" in caplog.text


@pytest.mark.usefixtures("server")
def test_the_string_goes_to_no_other_server(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    monkeypatch.setenv(PAGES, "http://127.0.0.1:1")
    assert live_page_address() is None and publish_page("report", b"") is None
    with LivePage(tmp_path / "none", KEY, 1.0) as live:
        assert live.client is None
    monkeypatch.delenv(PAGES)
    assert live_page_address() is None


@pytest.mark.usefixtures("server")
def test_a_server_that_hangs_holds_no_training_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    def hang(*_: object, **__: object) -> None:
        time.sleep(60)

    monkeypatch.setattr(httpx.Client, "post", hang)
    monkeypatch.setattr(pages, "SECONDS_TO_ANSWER", 0.3)
    began = time.monotonic()
    with LivePage(tmp_path / "metrics.jsonl", KEY, 1.0) as live:
        for number in range(10_000):
            live(step(number))
    assert time.monotonic() - began < 10


def test_the_load_of_the_machine():
    assert gpu_values("90, 1024, 81559\n100, 1024, 81559\n") == {
        "gpu_percent": 95.0,
        "gpu_bytes": 2 * 2**30,
        "gpu_bytes_total": 2 * 81559 * 2**20,
    }
    assert gpu_values("[N/A], 512, 1024\n") == {"gpu_bytes": 2**29, "gpu_bytes_total": 2**30}
    assert gpu_values("") == {}
    load = MachineLoad()
    first = load.measure()
    assert load.measure() == {}, "too early"
    if os.path.exists("/proc/self/stat"):
        assert first["bytes"] >= 0
