"""The process of the check: the same results from any number of workers, after a kill and beside damaged ones."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.contamination.check import scan_files
from eval.contamination.passages import PASSAGES
from eval.contamination.words import words
from tests.eval.contamination.invented import SUITE_NAMES, command_of, row_group_results

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the row groups of the scan `whole`."""
    return tmp_path_factory.mktemp("scanned")


@pytest.fixture(scope="module")
def whole(documents, benchmarks, scanned: Path, tmp_path_factory) -> Path:
    """What one worker finds, in a scan that is never killed."""
    out = tmp_path_factory.mktemp("whole")
    assert scan_files(replace(command_of(documents, benchmarks, out, 1), resume=scanned))["documents"] == 40
    return out


def test_results_do_not_depend_on_workers(whole, documents, benchmarks, items, tmp_path):
    assert scan_files(command_of(documents, benchmarks, tmp_path / "2", 2))["documents"] == 40
    outputs = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (whole, tmp_path / "2")]
    assert outputs[0] == outputs[1]
    expected = {"verdicts.parquet", "flagged.parquet", "matches.jsonl", "coverage.json", "sweep.json"}
    assert set(outputs[0]) == expected

    verdicts = pq.read_table(whole / "verdicts.parquet").to_pylist()
    assert len(verdicts) == len(items)
    dirty = [(row["item"], row["document"], row["documents"]) for row in verdicts if row["verdict"] == "contaminated"]
    assert dirty == [(20, "doc4", 1), (30, "doc11", 2)]
    matches = [json.loads(line) for line in (whole / "matches.jsonl").read_text().splitlines()]
    assert [match["document"] for match in matches[:2]] == ["doc11", "doc33"]  # the longer item first
    for match in matches:
        assert words(match["document_text"]["match"]) == words(match["item_text"]["match"])
    flagged = pq.read_table(whole / "flagged.parquet").to_pylist()
    assert [tuple(row.values()) for row in flagged] == [
        ("doc4", "0.parquet", "arc_challenge", 20),
        ("doc11", "0.parquet", "arc_challenge", 30),
        ("doc33", "1.parquet", "arc_challenge", 30),
    ]
    coverage = json.loads((whole / "coverage.json").read_text())
    assert coverage["control"]["arc_challenge"]["verbatim"] == {"planted": 8, "found": 8}
    assert coverage["control"]["hard_negatives"] == {"documents": len(PASSAGES), "flagged": 0}
    suite = coverage["suites"]["arc_challenge"]
    assert (suite["items"], suite["checkable"], suite["uncheckable"]) == (1172, 1171, [1])
    assert (suite["clean"], suite["contaminated"]) == (1169, 2)
    assert suite["by_kind"] == {"clean": 1169, "exact": 2, "uncheckable": 1}
    assert coverage["suites"]["arc_challenge:train"]["severity"] == "train"
    sweep = json.loads((whole / "sweep.json").read_text())
    runs = {row["run"]: row["contaminated"] for row in sweep if row["suite"] == "arc_challenge" and "run" in row}
    longest = max(row["longest_run"] for row in verdicts)
    assert (runs[8], runs[longest], runs.get(longest + 1, 0)) == (2, 1, 0)


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# In the worker: every row group but the first takes seconds, so that a kill comes before the last.
SLOW = """
import sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    from eval import document_parquet
    read, groups = document_parquet.read_row_group, []

    def read_slowly(group):
        groups.append(group)
        time.sleep(2 * (len(groups) > 1))
        return read(group)

    document_parquet.read_row_group = read_slowly
"""


def test_a_killed_scan_continues(whole, documents, benchmarks, tmp_path):
    """SIGTERM twice in the middle, or kill -9, ends it and its workers. Then the same command: the same bytes as a scan
    that nobody ended."""
    config = {
        "documents": [str(path) for path in documents],
        "benchmarks": str(benchmarks),
        "suites": list(SUITE_NAMES),
        "config": {"control_items": 6},
        "seed": 1,
        "workers": 1,
        "out": str(tmp_path / "out"),
        "resume": str(tmp_path / "scanned"),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [sys.executable, "-m", "eval.contamination.check", str(tmp_path / "config.json")]
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for signals in ([signal.SIGTERM, signal.SIGTERM], [signal.SIGKILL]):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 300
        while not list((tmp_path / "scanned").glob("*/*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.002)
        workers = {int(pid) for pid in children.read_text().split()}
        assert workers
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        assert process.wait(60) == (-signal.SIGKILL if signals == [signal.SIGKILL] else 128 + signal.SIGTERM)
        while any(_runs(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker outlives its scan"
            time.sleep(0.05)
        if len(signals) == 2:
            shutil.rmtree(tmp_path / "scanned")
    results = row_group_results(tmp_path / "scanned")
    times = {path: path.stat().st_mtime_ns for path in results}
    assert 1 <= len(times) < 8  # row groups of documents; those of the planted file come after them
    for path in results[2:]:  # as if the kill had come earlier than it could be timed
        path.unlink()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert len(list((tmp_path / "scanned").glob("*/0000[01]-*.jsonl"))) == 8
    assert all(path.stat().st_mtime_ns == times[path] for path in results[:2])
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    # other documents are another scan
    config["documents"] = config["documents"][:1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert json.loads((tmp_path / "out" / "coverage.json").read_text())["documents"] == 20


def test_results_that_were_damaged_since_are_scanned_again(whole, scanned: Path, documents, benchmarks, tmp_path: Path):
    shutil.copytree(scanned, tmp_path / "scanned")
    results = row_group_results(tmp_path / "scanned")
    contents = [result.read_bytes() for result in results]
    results[1].write_bytes(b"")
    results[2].with_suffix(".sha256").unlink()
    results[3].write_bytes(contents[3].replace(b"1", b"2", 1))
    results[4].write_bytes(b"\xff")
    scan_files(replace(command_of(documents, benchmarks, tmp_path / "out", 1), resume=tmp_path / "scanned"))
    assert row_group_results(tmp_path / "scanned") == results
    assert [result.read_bytes() for result in results] == contents


def test_command_line(documents, benchmarks, tmp_path):
    config = {
        "documents": [str(path) for path in documents],
        "benchmarks": str(benchmarks),
        "suites": ["winogrande"],
        "config": {"ngram": 8},
        "seed": 1,
        "workers": 1,
        "out": str(tmp_path / "out"),
    }

    def command(**changes: object) -> subprocess.CompletedProcess:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        arguments = [sys.executable, "-m", "eval.contamination.check", str(tmp_path / "config.json")]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    good = command()
    assert (good.returncode, good.stderr) == (0, "")
    events = [json.loads(line) for line in good.stdout.splitlines()]
    assert events[-2] == {"event": "progress", "done": 40, "total": 40} and events[-1]["event"] == "done"

    bad = command(config={"ngramm": 8})
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith(f"error: {tmp_path / 'config.json'}: config has the unknown key 'ngramm'")
    pq.write_table(pa.table({"id": ["a"], "body": ["b"]}), tmp_path / "bad.parquet")
    bad = command(documents=[str(tmp_path / "bad.parquet")])
    assert bad.returncode == 1 and "bad.parquet: column 'text' is missing" in bad.stderr
