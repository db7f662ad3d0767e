"""The line at the end of a command that was stopped is true of what is saved."""

import os
from pathlib import Path

import pytest

from deployments.terminal.run_state import RunState
from deployments.terminal.stop_line import kept_and_how_to_go_on
from tasks.runtime.stage_events import Moment, StageEvent

COMMAND = ["/nowhere/daily-train", "run", "--set", "a.b=c d"]
AGAIN = "/nowhere/daily-train run --set 'a.b=c d'"


def event(stage: str, moment: Moment, work: Path, done: int = 0, total: int = 0) -> StageEvent:
    manifest = type("Manifest", (), {"provenance": {}})()
    return StageEvent(stage=stage, key=stage, work=work, moment=moment, done=done, total=total, manifest=manifest)


def stopped(work: Path, *moments: tuple) -> str:
    state = RunState([("download", "download"), ("train", "train"), ("report", "report")])
    for stage, moment, *progress in moments:
        state(event(stage, moment, work, *progress))
    return kept_and_how_to_go_on(COMMAND)


DOWNLOADED = [("download", Moment.BEGUN), ("download", Moment.BUILT), ("train", Moment.BEGUN)]


@pytest.mark.parametrize(
    ("moments", "kept"),
    [
        ([], "no stage is finished yet; the same command begins again"),
        ([("download", Moment.BEGUN)], "no stage is finished yet; the same command begins again"),
        (DOWNLOADED, "1 of 3 stages are finished and kept; the same command goes on from there"),
        (
            [*DOWNLOADED, ("train", Moment.PROGRESS, 0, 1280)],
            "1 of 3 stages are finished and kept, the training had no step to save; the same command goes on from "
            "there",
        ),
        (
            [*DOWNLOADED, ("train", Moment.PROGRESS, 1200, 1280)],
            "1 of 3 stages are finished and kept, the training could not be saved; the same command goes on from there",
        ),
        (
            [*DOWNLOADED, ("train", Moment.BUILT), ("report", Moment.BEGUN), ("report", Moment.SKIPPED)],
            "all 3 stages are finished and kept; the same command shows the report",
        ),
    ],
)
def test_stages_that_are_finished_are_kept(tmp_path: Path, moments: list, kept: str):
    assert stopped(tmp_path, *moments) == f"{kept}: {AGAIN}"


def test_a_training_is_saved_where_its_checkpoints_are(tmp_path: Path):
    for name in ("step_000000900", "step_000001200", ".step_000001210.tmp"):
        (tmp_path / "run" / "checkpoints" / name).mkdir(parents=True)
    moments = [*DOWNLOADED, ("train", Moment.PROGRESS, 1210, 1280), ("train", Moment.NOTE), ("train", Moment.STOPPED)]
    saved = "the training is saved at step 1,200 of 1,280; the same command goes on from there"
    assert stopped(tmp_path, *moments) == f"{saved}: {AGAIN}"
    assert "all 3 stages" not in stopped(tmp_path, *moments, ("train", Moment.BUILT)), (
        "once it is finished, its stage is"
    )
    assert "2 of 3 stages" in stopped(tmp_path, *moments, ("train", Moment.BUILT))


def test_another_process_keeps_what_a_killed_one_has_done(tmp_path: Path):
    stopped(tmp_path)
    child = os.fork()
    if not child:
        stopped(tmp_path, *DOWNLOADED)
        os._exit(0)
    os.waitpid(child, 0)
    assert kept_and_how_to_go_on(COMMAND).startswith("1 of 3 stages are finished and kept; ")


@pytest.mark.parametrize(
    ("command", "kept"),
    [
        ("evaluate", "no scores were written; the same command begins again"),
        ("leaderboard", "the command only reads, nothing in the store was changed"),
        ("up", "what it had started is stopped; a training that ran saves its last step"),
    ],
)
def test_every_command_says_what_it_leaves(command: str, kept: str):
    said = kept_and_how_to_go_on(["/nowhere/daily-train", command])
    assert said.startswith(kept) and said.endswith(f": /nowhere/daily-train {command}")


def test_a_command_that_no_line_can_show_is_not_shown():
    for strange in ("a\nb", "\x1b[2J", "x" * 1000):
        assert kept_and_how_to_go_on(["/nowhere/daily-train", "explain", strange]).endswith("; again")
