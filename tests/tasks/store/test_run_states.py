"""What states say of stages that were skipped: when they were built and by which run, also of foreign manifests."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tasks.store.context import RunContext, open_context
from tasks.store.manifest import Manifest
from tasks.store.run_states import LONGEST_NAME, built_by, skipped_words
from tasks.store.stage import Stage, StageResult, build_or_skip

RUN = {"started": "2026-11-26T03:00:07+00:00", "run": "2026-11-26 03:00 daily 0d8af78f", "commit": "c" * 40}


def manifest(**provenance: Any) -> Manifest:
    parts = {"key": "k", "stage": "train", "version": 1, "config": {}, "inputs": {}, "attempt": "a", "outputs": ()}
    return Manifest(**parts, provenance=provenance)


@pytest.mark.parametrize(
    ("provenance", "told"),
    [
        (RUN, "on 2026-11-26 by 2026-11-26 03:00 daily 0d8af78f"),
        (RUN | {"run": None}, "on 2026-11-26 at commit cccccccccccc"),
        ({"started": RUN["started"], "commit": "0d8af78f1234"}, "on 2026-11-26 at commit 0d8af78f1234"),
        ({"started": RUN["started"]}, "on 2026-11-26"),
        ({"started": 7, "run": {"name": "x"}, "commit": ["c"]}, "earlier"),
        ({}, "earlier"),
        (RUN | {"run": "a\x1b[31mb\nc"}, "on 2026-11-26 by a\\x1b[31mb\\nc"),
    ],
)
def test_who_built_a_stage_is_told_as_far_as_its_manifest_says(provenance: dict[str, Any], told: str):
    assert built_by(manifest(**provenance)) == told


def test_a_name_without_end_is_cut():
    assert len(built_by(manifest(**RUN | {"run": "x" * 10_000}))) < LONGEST_NAME + 30


def test_stages_that_several_runs_built_name_the_runs():
    def results(*runs: str) -> list[StageResult]:
        return [StageResult(manifest=manifest(**RUN | {"run": run}), skipped=True, seconds=0.0) for run in runs]

    assert skipped_words(results("A", "A")) == "skipped, built on 2026-11-26 by A"
    assert (
        skipped_words(results("A", "B", "A"))
        == "skipped, built on 2026-11-26 by A (2 of 3), on 2026-11-26 by B (1 of 3)"
    )
    assert skipped_words(results(*"ABCDE")).endswith("by C (1 of 5) and by others")


def test_the_run_that_built_a_stage_identifies_nothing(tmp_path: Path):
    context: RunContext = open_context(str(tmp_path), None, 1, None, None, 0.0)
    stage = Stage(name="shard", version=1, config={}, inputs={})

    def build(_: Path, out: Path) -> None:
        (out / "data").write_bytes(b"data")

    built = build_or_skip(stage, context, build).manifest
    assert "run" not in built.provenance, "no flow run has built it"
    other = replace(built, provenance=built.provenance | {"run": "another"})
    assert other.digest == built.digest and other.key == built.key == stage.key
