"""The ledger: one immutable row a run. The leaderboard is the list of rows."""

import json
import math
import re
from typing import Any

from eval.reporting.html_page import html_page
from eval.reporting.markdown import markdown_table

Row = dict[str, Any]
BASELINE_PRESET = "gpt2-124m"


def ledger_row(report: dict[str, Any]) -> Row:
    """The row of a finished run, from its report."""
    return {
        "run": report["run"],
        "preset": report["preset"],
        "finished": report["finished"],
        "commit": report["commit"],
        "bits_per_byte": report["validation"]["bits_per_byte"],
        "loss_nats_per_token": report["validation"]["loss"],
        "validation_data": report["stages"]["shard"]["digest"],
        "parameters": report["training"]["parameters"],
        "tokens": report["training"]["tokens"],
        "flops": report["training"]["flops"],
        "seconds": report["cost"]["seconds"],
        "usd": report["cost"]["usd"],
        "scores": {f"{s['suite']}/{s['metric']}": s["value"] for s in report["scores"] if s["value"] is not None},
        "regressed": report["regressed"],
        "stages": {name: stage["key"] for name, stage in report["stages"].items()},  # `evaluate` holds the samples
    }


TEXTS = ("run", "preset", "finished", "commit", "validation_data")
NUMBERS = ("bits_per_byte", "parameters", "tokens", "flops", "seconds", "usd")
PLAIN = re.compile(r"[\w .:/+-]{1,200}", re.ASCII)
"""What our rows hold: nothing that Markdown, HTML, a terminal or a path would act on."""


def parse_row(content: bytes) -> Row:
    """A row of the ledger. Raises ValueError, with what is wrong, for content that is none."""
    try:
        row = json.loads(content)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError(f"it is a {type(row).__name__}, expected an object")
    for name in TEXTS:
        if not _is_plain(row.get(name)):
            raise ValueError(f"{name} is {_short(row.get(name))}, expected a text")
    for name in NUMBERS:
        if not _is_number(row.get(name)):
            raise ValueError(f"{name} is {_short(row.get(name))}, expected a number")
    scores, stages = row.get("scores"), row.get("stages")
    if not isinstance(scores, dict) or not all(map(_is_number, scores.values())) or not all(map(_is_plain, scores)):
        raise ValueError(f"scores is {_short(scores)}, expected numbers by suite and metric")
    if not isinstance(stages, dict) or not all(map(_is_plain, [*stages, *stages.values()])):
        raise ValueError(f"stages is {_short(stages)}, expected keys by name")
    if missing := {"contamination", "evaluate", "tokenizer", "train"} - set(stages):
        raise ValueError(f"stages has no {', '.join(sorted(missing))}")
    json.dumps(row, ensure_ascii=False).encode()  # a lone surrogate is a ValueError as well
    return row


def _is_plain(value: object) -> bool:
    return isinstance(value, str) and PLAIN.fullmatch(value) is not None


def _is_number(value: object) -> bool:
    try:
        return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(float(value))
    except OverflowError:
        return False


def _short(value: object) -> str:
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"


def earlier_runs(rows: list[Row], run: str, preset: str, data: str) -> dict[str, Row | str]:
    """Whom a run is compared with: a row, or why there is none.

    `yesterday`: the newest other run of the same preset. `best`: the lowest bits per byte on the same validation
    `data`, of any preset. `baseline`: the newest run of the preset gpt2-124m.
    """
    others = sorted((row for row in rows if row["run"] != run), key=lambda row: (row["finished"], row["run"]))
    same_preset = [row for row in others if row["preset"] == preset]
    same_data = [row for row in others if row["validation_data"] == data]
    baselines = [row for row in others if row["preset"] == BASELINE_PRESET]
    best = min(same_data, key=lambda row: row["bits_per_byte"], default=None)
    return {
        "yesterday": same_preset[-1] if same_preset else f"no earlier run of preset {preset}",
        "best": best or "no earlier run on the same validation data",
        "baseline": baselines[-1] if baselines else f"no earlier run of preset {BASELINE_PRESET}",
    }


def leaderboard(rows: list[Row], reports: dict[str, str] | None = None) -> str:
    """All rows as a Markdown table, best bits per byte first; only rows on the same data compare.

    `reports` are addresses of reports by the run's name; a run that has one is a link."""
    header = ["run", "preset", "bits per byte", "parameters", "tokens", "hours", "USD"]
    header += ["finished", "commit", "data", "FLOPs"]
    ranked = sorted(rows, key=lambda row: (row["bits_per_byte"], row["run"]))
    return markdown_table(
        header,
        [
            [
                f"[{row['run'][:12]}]({link})" if (link := (reports or {}).get(row["run"])) else row["run"][:12],
                row["preset"],
                row["bits_per_byte"],
                row["parameters"],
                row["tokens"],
                row["seconds"] / 3600,
                row["usd"],
                row["finished"],
                row["commit"][:12],
                row["validation_data"][:8],
                f"{row['flops']:.2e}",
            ]
            for row in ranked
        ],
    )


def leaderboard_page(rows: list[Row], reports: dict[str, str]) -> str:
    """The leaderboard as one HTML file: the runs on each set of validation data, and their benchmark scores."""
    sections = [
        "# The Daily Train: leaderboard",
        f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}. Bits per byte compare between runs on the same "
        "validation data, whatever the tokenizer; accuracies of small models are mostly noise.",
    ]
    newest = {row["validation_data"]: row["finished"] for row in sorted(rows, key=lambda row: row["finished"])}
    for data in sorted(newest, key=newest.__getitem__, reverse=True):
        part = [row for row in rows if row["validation_data"] == data]
        sections += [f"## Data {data[:8]}", leaderboard(part, reports), scores_by_run(part)]
    return html_page("\n\n".join(sections), {})


def scores_by_run(rows: list[Row]) -> str:
    """Scores in per cent of every run, one column a suite and metric; a score that a run has not is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    ranked = sorted(rows, key=lambda row: (row["bits_per_byte"], row["run"]))
    percent = [[100 * row["scores"][name] if name in row["scores"] else None for name in names] for row in ranked]
    cells = [[row["run"][:12], row["preset"], *scores] for row, scores in zip(ranked, percent, strict=True)]
    return markdown_table(["run", "preset", *(f"{name.replace('/', ' ')}, %" for name in names)], cells)
