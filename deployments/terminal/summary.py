"""What `daily-train run` and `study` print when the run has ended: for people, or as one JSON object."""

import json
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markdown import Markdown
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from deployments.terminal.run_state import RunState, State
from eval.reporting.headline import headline
from eval.reporting.score_table import interval_text
from eval.words import duration
from model.errors import in_one_line
from tasks.report import Published

COLUMNS_OF_FILE = 120
"""Width of what is printed where no terminal says how wide it is."""
FEWEST_COLUMNS = 4
"""Of the table of scores, in the narrowest terminal."""
OF_LAST = ("run", "preset", "finished", "bits_per_byte", "difference", "interval", "reason")
"""What programs learn of the last comparable run: `difference` of bits per byte to it, or the `reason` why none is."""
_WIDE = Console(width=1000)


def print_run(published: Published, state: RunState, console: Console) -> None:
    """Headline, scores, cost and where the report is."""
    report = published.report
    text = report["text"]
    console.print()
    for topic, words in headline(report):
        console.print(Text.assemble((topic, "bold"), ": ", words))
    console.print()
    console.print(score_table(report["scores"], console.width))
    for row in report["scores"]:
        if row["value"] is None:
            console.print(Text(f"{row['suite']} is not scored: {in_one_line(row['not_scored'])}"))
    console.print()
    stages = published.stages.values()
    in_stages, seconds = sum(stage.seconds for stage in stages), state.clock() - state.began
    console.print(
        f"stages: {duration(in_stages)}, of which {sum(stage.skipped for stage in stages)} of {len(stages)} were "
        f"skipped; Prefect's own: {duration(max(0.0, seconds - in_stages))}; together {duration(seconds)}"
    )
    console.print(
        f"text: unigram entropy {text['unigram_entropy_nats']:.4f} nats per token, encoded at "
        f"{text['megabytes_per_second'] / text['workers']:.2f} MB/s per core"
    )
    console.print(Text.assemble("report: ", (published.report_path, "bold")), soft_wrap=True)


def score_table(scores: list[dict[str, Any]], width: int) -> Table:
    """Scores in per cent, with as many columns as the width has room for."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "suite": lambda row: row["suite"],
        "metric": lambda row: row["metric"],
        "score, %": lambda row: f"{100 * row['value']:.2f}",
        "chance": lambda row: f"{100 * row['chance']:.2f}",
        "95 % interval": lambda row: interval_text(row) if row["interval"] else "–",
        "items": lambda row: f"{row['n']:,}" + f" of {row['n_total']:,}" * row["subset"],
        "leaked": lambda row: f"{row['contaminated_items']:,}",
    }
    scored = [row for row in scores if row["value"] is not None]
    while columns:
        table = Table(box=None, padding=(0, 2, 0, 0), header_style="dim", pad_edge=False)
        for name in columns:
            table.add_column(name, no_wrap=True, justify="left" if name in ("suite", "metric") else "right")
        for row in scored:
            table.add_row(*(cell(row) for cell in columns.values()))
        if len(columns) <= FEWEST_COLUMNS or Measurement.get(_WIDE, _WIDE.options, table).maximum <= width:
            break
        columns.popitem()
    return table


def run_json(published: Published, state: RunState) -> dict[str, Any]:
    """The same for programs."""
    report = published.report
    return {
        "run": report["run"],
        "preset": report["preset"],
        "report": published.report_path,
        "bits_per_byte": report["validation"]["bits_per_byte"],
        "validation_loss": report["validation"]["loss"],
        "headline": dict(headline(report)),
        "last": {name: value for name, value in report["last"].items() if name in OF_LAST},
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


def print_study(page: str, state: RunState, console: Console) -> None:
    """The page of a study, where it is a file of this machine, and where it is."""
    if "://" not in page:
        text = Path(page).read_text()
        console.print("", Markdown(text, hyperlinks=False) if console.is_terminal else Text(text), sep="\n")
    console.print(f"together {duration(state.clock() - state.began)}")
    console.print(Text.assemble("study: ", (page, "bold")), soft_wrap=True)


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
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = COLUMNS_OF_FILE
    for returned, state in results:
        if isinstance(returned, str):
            if as_json:
                print(json.dumps(study_json(returned, state)))
            else:
                print_study(returned, state, console)
        elif as_json:
            print(json.dumps(run_json(returned, state)))
        else:
            print_run(returned, state, console)
