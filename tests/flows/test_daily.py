"""The whole line: skipped, changed, killed and resumed, twice the same bytes. On a server: operations/."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pyarrow.parquet as pq
import pytest
from prefect import flow
from prefect.server.api.server import SubprocessASGIServer
from prefect.settings import PREFECT_API_URL, PREFECT_HOME, temporary_settings

from deployments.cli.commands import main
from eval.reporting.figures import inline
from eval.reporting.markdown import table_widths, tables_fit
from eval.reporting.report import cost_table, one_screen
from eval.reporting.score_table import report_scores
from model.parsing import ConfigError
from tasks.report import LARGEST_ARTIFACT
from tasks.store.run_states import ends_in_words, stage_task

ROOT = Path(__file__).resolve().parents[2]
FAST = ["evaluation.items_per_suite=4", 'evaluation.suites=["arc_easy","winogrande"]', "train.tokens=40960"]
STAGES = ["download", "tokenizer", "shard", "contamination", "train", "evaluate"]
NOTE = "A first run, in a sentence"
SECONDS = 300


def daily_train(
    *arguments: str, home: Path, server: str | None = None, changes: tuple[str, ...] = ()
) -> subprocess.Popen:
    """`daily-train run` on the smoke preset as a person starts it, with a Prefect home of its own; without the address
    of a server it starts one for itself, which takes seconds."""
    command = [
        sys.executable,
        "-m",
        "deployments.cli.commands",
        "run",
        "--preset",
        "smoke",
        "--workers",
        "1",
        *arguments,
    ]
    for change in {change.partition("=")[0]: change for change in [*FAST, *changes]}.values():
        command += ["--set", change]
    given = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_API_URL": server or ""}
    if server is None:
        del given["PREFECT_API_URL"]
    return subprocess.Popen(
        command,
        cwd=ROOT,
        env=given,
        text=True,
        start_new_session=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )


def finished(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, output
    require_sentences(output)
    return output


def failed(process: subprocess.Popen) -> str:
    output, _ = process.communicate(timeout=SECONDS)
    assert process.returncode == 1, output
    require_sentences(output)
    return output


def require_sentences(output: str) -> None:
    """No line of the log holds what only a programmer reads: a dict, a list, None, an exception, a hash for a name."""
    lines = re.findall(r"^\d\d:\d\d:\d\d (.*)", output, re.MULTILINE)
    assert len(lines) > 5, output
    for_programs = r"""[{\[]['"\d]|\{\}|\[\]|\w\(|\bNone\b|\w+Error\b|<\w+ |'\w+-[0-9a-f]{3}'|\b[0-9a-f]{9,}\b"""
    for line in lines:
        words = " ".join(word for word in line.split() if "/" not in word)  # a path says where something is
        assert re.search(for_programs, words) is None, line


@dataclass
class Store:
    """The manifests of a local store."""

    root: Path

    def manifests(self, stage: str) -> list[dict]:
        return [json.loads(path.read_text()) for path in sorted(self.root.glob(f"stages/{stage}/*/manifest.json"))]

    def keys(self) -> dict[str, list[str]]:
        return {stage: [manifest["key"] for manifest in self.manifests(stage)] for stage in [*STAGES, "report"]}

    def times(self) -> dict[Path, int]:
        """When each file of each stage was written."""
        return {path: path.stat().st_mtime_ns for path in self.root.glob("stages/**/*") if path.is_file()}

    def digests(self, stage: str) -> dict[str, str]:
        outputs = self.manifests(stage)[0]["outputs"]
        return {output["path"]: output["sha256"] for output in outputs if not output["recorded"]}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("prefect")


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, home: Path) -> Store:
    """An uninterrupted run into an empty local store."""
    root = tmp_path_factory.mktemp("first")
    output = finished(daily_train("--store", str(root), "--note", NOTE, home=home))
    assert re.search(r"^arc_easy +acc_norm +\d+\.\d\d ", output, re.MULTILINE) and "bits per byte" in output
    assert "report: " in output
    return Store(root)


@pytest.fixture(scope="module")
def server(first: Store, home: Path) -> Iterator[str]:
    """Address of a Prefect server for all runs but the first, which has made its database."""
    with temporary_settings({PREFECT_HOME: home}):
        running = SubprocessASGIServer()
        running.start(SECONDS)
        yield running.api_url
        running.stop()


def asked(server: str, what: str, run: str | None = None) -> list[dict]:
    """Everything of a kind that the server knows, or what of it belongs to one run."""
    chosen = {"flow_runs": {"id": {"any_": [run]}}} if run else {}
    return httpx.post(f"{server}/{what}/filter", json=chosen, timeout=SECONDS).raise_for_status().json()


def test_the_report_says_what_a_reader_needs(first: Store):
    folder = next(first.root.glob("stages/report/*/*/report.md")).parent
    report = json.loads((folder / "report.json").read_text())
    by_metric = {(row["suite"], row["metric"]): row for row in report["scores"]}
    assert set(by_metric) == {("arc_easy", "acc"), ("arc_easy", "acc_norm"), ("winogrande", "acc")}
    row = by_metric["arc_easy", "acc"]
    assert (row["n"], row["n_total"], row["subset"]) == (4, 2376, True)
    assert row["clean_items"] + row["contaminated_items"] + row["uncheckable_items"] == 2376
    assert 0.2 < row["chance"] < 0.3 and row["gold_bits_per_byte"] > 0
    assert report["validation"]["loss"] < report["text"]["unigram_entropy_nats"]
    assert report["training"]["tokens"] == 40960 and report["training"]["flops"] > 0
    assert report["cost"]["seconds"] > 0 and report["cost"]["usd"] > 0
    assert set(STAGES) <= set(report["stages"])
    text = (folder / "report.md").read_text()
    for told in (report["commit"], *(stage["key"][:12] for stage in report["stages"].values()), "bits per byte"):
        assert told in text
    for figure in ("loss.png", "scores.png"):
        assert (folder / figure).read_bytes().startswith(b"\x89PNG")
    assert "No comparison with yesterday's run: no earlier run of preset smoke." in text
    assert "**Against the last comparable run**: there is no earlier run on the same validation data" in text
    assert report["differs_from_preset"]["train.tokens"] == [81920, 40960] and report["note"] == NOTE
    screen = one_screen(report, inline("loss", (folder / "loss.png").read_bytes()), "")
    assert len(screen.encode()) < LARGEST_ARTIFACT and tables_fit(screen), table_widths(screen)
    for artifact in (report_scores(report["scores"]), cost_table(report)):
        assert tables_fit(artifact), table_widths(artifact)
    assert not (folder / "sweep.png").exists() and "sweep.png" not in text, "no item is contaminated at any threshold"
    for score in report["scores"]:
        low, high = score["interval"]
        assert low <= score["value"] <= high and 0 < score["gold_probability"] < 1
    assert report["regressed"] == [] and report["evaluation"]["num_fewshot"] == {"arc_easy": 0, "winogrande": 0}
    [row] = [json.loads(path.read_text()) for path in first.root.glob("ledger/*.json")]
    assert row["stages"]["evaluate"] == report["stages"]["evaluate"]["key"]
    assert row["bits_per_byte"] == report["validation"]["bits_per_byte"]
    assert (row["note"], row["seed"]) == (NOTE, 1900)
    assert f"</code>: {NOTE}</li>" in (first.root / "leaderboard.html").read_text()


def test_the_same_command_skips_everything_and_execution_changes_no_key(first: Store, home: Path, server: str):
    before, written = first.keys(), first.times()
    output = finished(daily_train("--store", str(first.root), "--workers", "2", home=home, server=server))
    assert "9 of 9 were skipped" in output
    assert first.keys() == before and first.times() == written

    [built] = {manifest["provenance"]["run"] for stage in STAGES for manifest in first.manifests(stage)}
    assert re.fullmatch(r"\d{4}-\d\d-\d\d \d\d:\d\d smoke \w+", built)
    words = f"skipped, built on {built[:10]} by {built}"
    assert all(f"{stage} {words}" in output for stage in (*STAGES, "benchmarks", "report"))
    run = max(asked(server, "flow_runs"), key=lambda run: run["start_time"])
    assert run["state"]["message"].startswith("all 9 stages skipped, nothing was left to do; report at ")
    tasks = {task["name"].partition(":")[0]: task for task in asked(server, "task_runs", run["id"])}
    assert set(tasks) == {*STAGES, "plan", "benchmarks", "rehearsal", "report"}
    for name, task in tasks.items():
        skipped = name not in ("plan", "rehearsal")
        assert (task["state"]["type"], task["state"]["name"]) == ("COMPLETED", "Skipped" if skipped else "Completed")
        assert task["state"]["message"].startswith(words if skipped else "done in ")
        assert task["name"] == (f"{name}: {words}" if skipped else name)
    assert not list(home.glob("storage/*")), "no result of a task or a flow is kept on the disk"


def test_who_calls_a_stage_gets_its_result_however_it_is_called(server: str, home: Path):
    calls = []

    @stage_task("one")
    def one(number: int) -> list[int]:
        calls.append(number)
        if number == 3 and calls.count(3) == 1:
            raise ConnectionError("the hub is away")
        if number < 0:
            raise ConfigError(f"number is {number}")
        return [number]

    @flow(name="calls")
    @ends_in_words(lambda _: None)
    def call(bad: bool) -> list[int]:
        assert one(1) == [1] and one.submit(2).result() == [2]
        assert [future.result() for future in one.map([4, 5])] == [[4], [5]]
        if bad:
            one(-1)
        assert stated(6, return_state=True).result() == [6]
        return one(3)

    stated: Any = one  # whose signature is that of its function
    one.retry_delay_seconds = [0]
    with temporary_settings({PREFECT_API_URL: server, PREFECT_HOME: home}):
        assert call(bad=False) == [3] and calls.count(3) == 2
        with pytest.raises(ConfigError, match="number is -1"):
            call(bad=True)
    runs = [run for run in asked(server, "flow_runs") if "smoke" not in run["name"]]
    states = {run["state"]["name"]: run["state"]["message"] for run in runs}
    assert states["Failed"] == "one 5 failed: number is -1" and states["Completed"].startswith("done in ")
    assert one.fn(7) == [7], "no state outside a run"


def test_every_artifact_fits_its_column_and_the_loss_ends_with_the_run(first: Store, server: str):
    artifacts = asked(server, "artifacts")
    tables = [artifact for artifact in artifacts if artifact["type"] == "markdown"]
    keys = {artifact["key"] for artifact in tables}
    assert keys > {"documents", "benchmarks", "contamination", "tokenizer", "shards", "training", "samples", "scores"}
    wide = {artifact["key"] for artifact in tables if not tables_fit(artifact["data"])}
    assert wide <= {"report", "leaderboard"}
    losses = [artifact["data"] for artifact in tables if artifact["key"] == "loss-so-far"]
    assert losses and all(loss.startswith("Step 20 of 20.") and "data:image/png" in loss for loss in losses)


def test_another_learning_rate_runs_training_and_what_follows_and_nothing_before(first: Store, home: Path, server: str):
    before = first.keys()
    finished(daily_train("--store", str(first.root), home=home, server=server, changes=("train.learning_rate=0.015",)))
    added = {stage: len(keys) - len(before[stage]) for stage, keys in first.keys().items()}
    assert added == {**dict.fromkeys(STAGES, 0), "train": 1, "evaluate": 1, "report": 1}
    [new] = set(first.keys()["report"]) - set(before["report"])
    [path] = first.root.glob(f"stages/report/{new}/*/report.json")
    report = json.loads(path.read_text())
    earlier, missing = report["against"]
    assert (earlier["roles"], earlier["run"]) == (["last", "yesterday", "best"], before["report"][0])
    assert report["last"]["settings"] == {"train.learning_rate": [0.02, 0.015]}
    [theirs] = [json.loads(p.read_text()) for p in first.root.glob("ledger/*.json") if p.stem == earlier["run"]]
    assert report["last"]["difference"] == report["validation"]["bits_per_byte"] - theirs["bits_per_byte"]
    reused = report["cost"]["reused"]
    assert reused["stages"] == len(report["stages"]) - 2 and 0 < reused["seconds"] < report["cost"]["seconds"]
    assert earlier["evaluate"] == before["evaluate"][0] and earlier["verdict"] == "nothing to compare"
    assert earlier["omitted"]["winogrande"] == "4 items were scored in both, fewer than 30"
    assert missing == {"roles": ["baseline"], "reason": "no earlier run of preset gpt2-124m"}


def test_a_finished_run_is_exported_by_its_name(first: Store, tmp_path: Path):
    run = first.keys()["report"][0]
    assert main(["export", run[:12], str(tmp_path / "out"), "--store", str(first.root)]) == 0
    card = (tmp_path / "out" / "README.md").read_text()
    [download] = first.manifests("download")
    [lock] = [output["sha256"] for output in download["outputs"] if output["path"] == "lock.json"]
    report = json.loads(next(first.root.glob(f"stages/report/{run}/*/report.json")).read_text())
    for told in (
        lock,
        run,
        report["commit"],
        "40,960 tokens",
        "| winogrande | acc | 0 | 4 of 1,267 |",
        "planted items",
        "as it was trained",
    ):
        assert told in card
    assert "Not recorded" not in card
    assert json.loads((tmp_path / "out" / "config.json").read_text())["model_type"] == "daily_train"


def test_killed_in_mid_training_it_resumes_to_the_same_bytes_in_another_store(
    first: Store, home: Path, server: str, tmp_path: Path
):
    second = Store(tmp_path / "second")
    process = daily_train("--store", str(second.root), home=home, server=server)
    deadline = time.monotonic() + SECONDS
    metrics: list[Path] = []
    while not (metrics and '"checkpoint"' in metrics[0].read_text()):
        assert process.poll() is None and time.monotonic() < deadline
        metrics = list((second.root / "cache").glob("work/train/*/run/metrics.jsonl"))
        time.sleep(0.05)
    trainers = subprocess.run(["pgrep", "-f", f"model.train {second.root}"], capture_output=True, text=True, check=True)
    for trainer in trainers.stdout.split():
        os.kill(int(trainer), signal.SIGKILL)
    output = failed(process)
    assert "run failed: train failed: model.train was ended by SIGKILL; run again to resume" in output
    assert second.manifests("train") == []

    assert "resumed at step " in finished(daily_train("--store", str(second.root), home=home, server=server))
    for stage in ("download", "tokenizer", "shard"):
        assert second.digests(stage) == first.digests(stage)
    mine = second.manifests("train")[0]
    [same] = [manifest for manifest in first.manifests("train") if manifest["key"] == mine["key"]]
    assert {o["path"]: o["sha256"] for o in mine["outputs"] if not o["recorded"]} == {
        o["path"]: o["sha256"] for o in same["outputs"] if not o["recorded"]
    }
    assert second.keys()["report"][0] in first.keys()["report"]


@pytest.fixture(scope="module")
def leaky(first: Store, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, ...]:
    """A corpus in which documents 3 and 17 hold an ARC item each, as `--set` of its source."""
    items = pq.read_table(next(first.root.glob("stages/benchmarks/*/*/arc_easy.parquet"))).to_pylist()
    prose = "We hold the public interest to be the first interest. " * 40
    texts = [f"Speech {number}. {prose}" for number in range(60)]
    for document, item in ((3, 10), (17, 20)):
        row = items[item]
        answer = row["choices"]["text"][row["choices"]["label"].index(row["answerKey"])]
        texts[document] += f"{row['question']} {answer} {texts[document]}"
    path = tmp_path_factory.mktemp("leaky") / "leaky.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    source = json.dumps({"kind": "files", "path": str(path)})
    return (
        f"data.source={source}",
        'evaluation.suites=["arc_easy"]',
        "tokenizer.vocab_size=300",
        "data.validation_fraction=0.1",
    )


@pytest.fixture(scope="module")
def leaked(tmp_path_factory: pytest.TempPathFactory) -> Store:
    """Of the runs on that corpus: what the first has found out about it, the second need not."""
    return Store(tmp_path_factory.mktemp("leaked"))


def test_refuse_ends_before_training_and_shows_the_table(
    leaky: tuple[str, ...], leaked: Store, home: Path, server: str
):
    store, changes = leaked, (*leaky, 'contamination.mode="refuse"')
    process = daily_train("--store", str(store.root), home=home, server=server, changes=changes)
    output = failed(process)
    assert "contamination failed: the training text contains benchmark items (arc_easy 2)" in output
    assert store.manifests("contamination") and not store.manifests("tokenizer") and not store.manifests("train")


def test_filter_drops_the_documents_and_the_second_check_finds_nothing(
    leaky: tuple[str, ...], leaked: Store, home: Path, server: str, capsys: pytest.CaptureFixture
):
    store = leaked
    changes = (*leaky, 'contamination.mode="filter"', "train.tokens=4096", "train.validation_tokens=512")
    output = finished(daily_train("--store", str(store.root), home=home, server=server, changes=changes))
    [report] = store.root.glob("stages/report/*/*/report.md")
    assert "**Contamination**: 0 of 2,376 benchmark items" in report.read_text()
    assert "2 documents that contaminate benchmark items were dropped" in output
    [filtered], [raw] = store.manifests("filter"), store.manifests("download")
    assert {o["path"]: o["sha256"] for o in filtered["outputs"] if o["path"].startswith("train")} != {
        o["path"]: o["sha256"] for o in raw["outputs"] if o["path"].startswith("train")
    }
    counts = [
        json.loads(path.read_text())["suites"]["arc_easy"]["contaminated"]
        for path in store.root.glob("stages/contamination/*/*/coverage.json")
    ]
    assert sorted(counts) == [0, 2]
    assert main(["explain", "arc_easy:10", "--store", str(store.root)]) == 0
    assert capsys.readouterr().out.startswith("arc_easy:10  clean")
