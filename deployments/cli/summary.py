"""What `daily-train run` and `study` print when the run has ended: for people, or as one JSON object."""

import json
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from deployments.cli.run_state import RunState, State
from eval.reporting.score_table import report_scores, score_notes
from eval.reporting.words import dollars, duration
from tasks.report import Published


def run_summary(published: Published, state: RunState) -> str:
    """Headline, scores, cost and where the report is."""
    report = published.report
    stages = published.stages.values()
    skipped = sum(stage.skipped for stage in stages)
    in_stages = sum(stage.seconds for stage in stages)
    seconds = state.clock() - state.began
    text, cost = report["text"], report["cost"]
    return "\n".join(
        [
            "",
            headline(report),
            "",
            report_scores(report["scores"]),
            *(f"\n{note}" for note in score_notes(report["scores"])),
            "",
            f"cost: {dollars(cost['usd'])} for {duration(cost['seconds'])} of work, in this run or in earlier ones",
            f"this command: {duration(seconds)}, {duration(in_stages)} in stages, {duration(seconds - in_stages)} of "
            f"Prefect's own; {skipped} of {len(stages)} stages were skipped; shards were encoded at "
            f"{text['megabytes_per_second'] / text['workers']:.2f} MB/s per core",
            f"report: {published.report_path}",
        ]
    )


def headline(report: dict[str, Any]) -> str:
    """Bits per byte, and what changed since earlier runs as far as the report says so."""
    validation, text = report["validation"], report["text"]
    return (
        f"{validation['bits_per_byte']:.4f} bits per byte (validation loss {validation['loss']:.4f} nats per token; "
        f"unigram entropy of the text {text['unigram_entropy_nats']:.4f})"
    )


def run_json(published: Published, state: RunState) -> dict[str, Any]:
    """The same for programs."""
    report = published.report
    return {
        "run": report["run"],
        "preset": report["preset"],
        "report": published.report_path,
        "bits_per_byte": report["validation"]["bits_per_byte"],
        "validation_loss": report["validation"]["loss"],
        "regressed": report["regressed"],
        "scores": [
            {name: row.get(name) for name in ("suite", "metric", "value", "standard_error", "interval", "n", "n_total")}
            for row in report["scores"]
        ],
        "cost": report["cost"],
        "seconds": round(state.clock() - state.began, 3),
        "stages": {
            name: {"skipped": result.skipped, "seconds": round(result.seconds, 3)}
            for name, result in published.stages.items()
        },
    }


def study_summary(page: str, state: RunState) -> str:
    """The page of a study, where it is a file of this machine, and where it is."""
    text = "" if "://" in page else f"\n{Path(page).read_text()}\n"
    return f"{text}study: {page}\nthis command: {duration(state.clock() - state.began)}"


def study_json(page: str, state: RunState) -> dict[str, Any]:
    """Where the page of a study is, and what its stages took."""
    return {
        "report": page,
        "seconds": round(state.clock() - state.began, 3),
        "stages": {
            row.label: {"skipped": row.state is State.SKIPPED, "seconds": round(row.seconds(state.clock()), 3)}
            for row in state.rows
        },
    }


@contextmanager
def printed(as_json: bool) -> Iterator[list[tuple[Published | str, RunState]]]:
    """Print what a flow has returned, which is appended to the list with the state of its stages, at the end.

    As JSON standard output is kept for it: what this process and its children print meanwhile goes to standard error.
    """
    results: list[tuple[Published | str, RunState]] = []
    sys.stdout.flush()
    output = os.dup(1)
    if as_json:
        os.dup2(2, 1)
    try:
        yield results
    finally:
        sys.stdout.flush()
        os.dup2(output, 1)
        os.close(output)
    for returned, state in results:
        match returned:
            case Published():
                print(json.dumps(run_json(returned, state)) if as_json else run_summary(returned, state))
            case page:
                print(json.dumps(study_json(page, state)) if as_json else study_summary(page, state))
