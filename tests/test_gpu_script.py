"""The GPU benchmark starts where there is no GPU, runs through and says what it could not measure."""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from benchmarks.gpu import main, zipf_shards
from model.shards import ShardSet


@pytest.mark.skipif(torch.cuda.is_available(), reason="with a GPU it measures: make bench-gpu")
def test_it_runs_through_at_a_tiny_size(tmp_path: Path, capsys: pytest.CaptureFixture):
    tiny = ["--depths", "2", "--minutes", "0.01", "--out"]
    [_, nanochat] = main([*tiny, str(tmp_path / "other"), "--nanochat", str(tmp_path / "absent")])
    [ours, unknown] = main([*tiny, str(tmp_path), "--precisions", "fp32", "int4"])
    assert ours.steps > 3 and ours.tokens_per_second > 0 and ours.estimated_bytes > 0
    assert ours.loss < math.log(512) + 0.1 and ours.mfu is ours.peak_bytes is None
    assert unknown.tokens_per_second is None and "trains in fp32" in unknown.why_not
    assert nanochat.tokens_per_second is None and "nanochat" in nanochat.why_not
    told = capsys.readouterr().out
    assert "| ours | 2 | fp32 |" in told and "not measured: ours, depth 2, int4" in told
    assert "not measured: MFU, peak memory and the goals; torch finds no CUDA device" in told and "goal at" not in told
    rows = list(csv.DictReader((tmp_path / "curve.csv").open()))
    assert [int(row["step"]) for row in rows] == list(range(1, ours.steps + 1))
    assert json.loads((tmp_path / "results.json").read_text())[0]["loss"] == ours.loss


def test_the_entropy_of_the_drawn_tokens_is_the_one_told(tmp_path: Path):
    entropy = zipf_shards(tmp_path, 512, 300_000)
    drawn = np.bincount(ShardSet(tmp_path, "train").slice(0, 300_000), minlength=512) / 300_000
    seen = drawn[drawn > 0]
    assert -(seen * np.log(seen)).sum() == pytest.approx(entropy, abs=0.01) and len(drawn) == 512
