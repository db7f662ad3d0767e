"""The GPU benchmark: its scheduler times stages alone and keeps its deadline; its stages run where there is no GPU."""

import json
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu.__main__ import completed, main
from benchmarks.gpu.measure import by_kind
from benchmarks.gpu.page import page
from benchmarks.gpu.scheduler import Stage, run_stages
from benchmarks.gpu.stages import zipf_shards
from model.data.shards import ShardSet
from tests.benchmarks.gpu.timed_stages import dying, endless, failing, ticking, timed, timed_beside_ticking

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(autouse=True)
def nothing_queued(monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no GPU whose queued kernels the scheduler has to wait for."""
    monkeypatch.setattr("benchmarks.gpu.scheduler.SECONDS_TO_IDLE", 0.05)


def test_a_stage_that_is_timed_is_alone(tmp_path: Path):
    findings: list[dict] = []
    run_stages(
        [
            Stage("ticking", ticking, 1, 1),
            Stage("one", timed_beside_ticking, 1, 1),
            Stage("two", timed_beside_ticking, 1, 1),
        ],
        tmp_path,
        300,
        gigabytes=4,
        together=3,
        on_finding=findings.append,
    )
    spans = [(line["began"], line["ended"]) for line in findings if line["finding"] == "span"]
    ticks = [line["at"] for line in findings if line["finding"] == "tick"]
    assert len(spans) == 6
    assert not [at for at in ticks for began, ended in spans if began < at < ended]
    assert min(ticks) < max(spans)[0] and max(ticks) > min(spans)[1], "they ran side by side"


class Clock:
    """The scheduler's clock, which a test can put forward."""

    ahead = 0.0
    sleep = staticmethod(time.sleep)

    def time(self) -> float:
        return time.time() + self.ahead


def test_timings_never_overlap_and_no_stage_stops_another(monkeypatch: pytest.MonkeyPatch):
    clock = Clock()
    monkeypatch.setattr("benchmarks.gpu.scheduler.time", clock)
    stages = [
        Stage("one", timed, 1, 1),
        Stage("dying", dying, 1, 1),
        Stage("two", timed, 1, 1),
        Stage("failing", failing, 1, 1),
        Stage("endless", endless, 1, 1),
        Stage("late", timed, 1, 600),
    ]
    findings, ended = [], []

    def keep(finding: dict) -> None:
        findings.append(finding)
        if finding["finding"] in ("completed", "failed"):
            ended.append(finding["stage"])
        if len(ended) == 4:
            clock.ahead = 600  # the time is up

    run_stages(stages, None, 300, gigabytes=4, together=4, on_finding=keep)
    spans = sorted((line["began"], line["ended"]) for line in findings if line["finding"] == "span")
    assert len(spans) == 6 and all(before[1] <= after[0] for before, after in pairwise(spans))
    ends = {
        line["stage"]: line["finding"]
        for line in findings
        if line["finding"] in ("completed", "failed", "stopped", "skipped")
    }
    assert ends == {
        "one": "completed",
        "two": "completed",
        "dying": "failed",
        "failing": "failed",
        "endless": "stopped",
        "late": "skipped",
    }
    assert [line["finding"] for line in findings if line["stage"] == "failing"] == ["before", "error", "failed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it measures: make bench-gpu")
def test_every_stage_runs_at_a_tiny_size(tmp_path: Path):
    results = tmp_path / "results.jsonl"
    shards = tmp_path / "shards"
    shards.mkdir()
    zipf_shards(shards, 512, 50_000)
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--minutes",
        "30",
        "--results",
        str(results),
        "--shards",
        str(shards),
        "--commit",
        "abc",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    findings = [json.loads(line) for line in results.read_text().splitlines()]
    assert [json.loads(line)["finding"] for line in done.stdout.splitlines() if line.startswith("{")] == [
        line["finding"] for line in findings
    ]
    assert not [line for line in findings if line["finding"] in ("error", "failed", "stopped", "skipped")]
    steps = {(line["stage"], line["precision"]) for line in findings if line["finding"] == "step"}
    assert steps >= {("daily-bf16", "bf16")}
    again = next(line for line in findings if line["finding"] == "repeated after resuming")
    assert again["same_bytes"]
    assert {line["device"] for line in findings} == {"CPU"} and {line["commit"] for line in findings} == {"abc"}
    assert main(command[3:]) == 0
    assert len(results.read_text().splitlines()) == len(findings) + 1, "what is there is not measured again"
    written = page([line | {"device": "NVIDIA H100"} for line in findings])
    assert "## NVIDIA H100" in written and "| daily | 2 | bf16 | 2 |" in written
    assert "| bytes-deterministic | yes |" in written
    assert "goal MFU of daily in bf16: not measured (target ≥ 0.55) short" in written
    assert "Not measured: no results of a GPU." in page(findings)
    assert completed(results, "abc") and not completed(results, "def") and not completed(results, None)


def test_findings_survive_a_kill(tmp_path: Path):
    results = tmp_path / "results.jsonl"
    command = [sys.executable, "-m", "benchmarks.gpu", "--results", str(results), "--only", "ceilings", "attention"]
    process = subprocess.Popen(command, cwd=ROOT, stdout=subprocess.DEVNULL, start_new_session=True)
    deadline = time.time() + 300
    while time.time() < deadline and not (results.exists() and "product" in results.read_text()):
        time.sleep(0.1)
    process.kill()
    process.wait()
    assert any(json.loads(line)["finding"] == "product" for line in results.read_text().splitlines())


def test_kernels_are_sorted_by_kind():
    rows = [
        ("triton_red_fused_attention_mm", 1.0, 2),
        ("cudnn_generated_fort_native_sdpa_sm90_flash_bprop", 2.0, 1),
        ("nvjet_sm90_tst_256x128", 4.0, 1),
        ("Memcpy DtoD", 0.5, 1),
        ("elementwise_kernel", 0.25, 3),
    ]
    assert by_kind(rows) == {
        "fused elementwise": 1.0,
        "attention": 2.0,
        "matrix products": 4.0,
        "copies": 0.5,
        "other": 0.25,
    }


def test_the_entropy_of_the_drawn_tokens_is_the_one_that_is_returned(tmp_path: Path):
    entropy = zipf_shards(tmp_path, 512, 300_000)
    drawn = np.bincount(ShardSet(tmp_path, "train").slice(0, 300_000), minlength=512) / 300_000
    seen = drawn[drawn > 0]
    assert -(seen * np.log(seen)).sum() == pytest.approx(entropy, abs=0.01) and len(drawn) == 512
