"""The ledger: one immutable row a run. The leaderboard is the list of rows."""

import json
import math
import re
from typing import Any

from eval.reporting.html_page import html_page
from eval.reporting.markdown import markdown_table, untrusted, what_is_wrong_with_note
from eval.words import count, dollars, duration, flops, loss

Row = dict[str, Any]
BASELINE_PRESET = "gpt2-124m"
MOST_RUNS = 12
"""Runs in the leaderboard of a run's page in the UI."""


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
        **{name: report["design"][name] for name in DESIGN},
        **({"note": report["note"]} if report["note"] else {}),
    }


TEXTS = ("run", "preset", "finished", "commit", "validation_data")
NUMBERS = ("bits_per_byte", "parameters", "tokens", "flops", "seconds", "usd")
DESIGN = {"design": str, "seed": int, "validation_tokens": int}
"""What tells trainings that differ in nothing but their seed: rows of earlier versions do not have it."""
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
    for name, kind in DESIGN.items():
        value = row.get(name)
        if name in row and not (_is_plain(value) if kind is str else _is_number(value)):
            raise ValueError(f"{name} is {_short(value)}, expected a {'text' if kind is str else 'number'}")
    if "note" in row and (reason := what_is_wrong_with_note(row["note"])):
        raise ValueError(f"note {reason}")
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


def earlier_runs(rows: list[Row], ours: Row) -> dict[str, Row | str]:
    """Whom a run is compared with: a row, or why there is none.

    `last`: the newest other run on the same validation data. `yesterday`: the newest other run of the same preset.
    `best`: the lowest bits per byte on the same validation data, of any preset. `baseline`: the newest run of the
    preset gpt2-124m. `ours` has the fields of a row that are known before there is a report; a row with the same
    model and the same scores is the same run, reported by another version.
    """
    same = [row["run"] for row in rows if all(row["stages"][name] == ours["stages"][name] for name in _MADE)]
    others = sorted(
        (row for row in rows if row["run"] != ours["run"] and row["run"] not in same),
        key=lambda row: (row["finished"], row["run"]),
    )
    same_preset = [row for row in others if row["preset"] == ours["preset"]]
    same_data = [
        row for row in others if row["stages"]["train"] != ours["stages"]["train"] and is_comparable(row, ours)
    ]
    baselines = [row for row in others if row["preset"] == BASELINE_PRESET]
    best = min(same_data, key=lambda row: row["bits_per_byte"], default=None)
    return {
        "last": same_data[-1] if same_data else NO_COMPARABLE,
        "yesterday": same_preset[-1] if same_preset else f"no earlier run of preset {ours['preset']}",
        "best": best or NO_COMPARABLE,
        "baseline": baselines[-1] if baselines else f"no earlier run of preset {BASELINE_PRESET}",
    }


_MADE = ("train", "evaluate")
NO_COMPARABLE = "no earlier run on the same validation data"


def is_comparable(one: Row, other: Row) -> bool:
    """Whether two runs were validated on the same tokens, so that bits per byte compare. How many tokens is taken for
    equal where a row does not say."""
    tokens = {row["validation_tokens"] for row in (one, other) if "validation_tokens" in row}
    return one["validation_data"] == other["validation_data"] and len(tokens) <= 1


def leaderboard(rows: list[Row], reports: dict[str, str] | None = None) -> str:
    """All rows as a Markdown table, best bits per byte first; only rows on the same data compare.

    `reports` are addresses of reports by the run's name; a run that has one is a link. Notes are not in it."""
    header = ["run", "preset", "bits per byte", "parameters", "tokens", "FLOPs", "time", "cost"]
    header += ["finished", "commit", "data"]
    return markdown_table(
        header,
        [
            [
                f"[{row['run'][:12]}]({link})" if (link := (reports or {}).get(row["run"])) else row["run"][:12],
                row["preset"],
                loss(row["bits_per_byte"]),
                count(row["parameters"]),
                count(row["tokens"]),
                flops(row["flops"]),
                duration(row["seconds"]),
                dollars(row["usd"]),
                row["finished"][:16],
                row["commit"][:12],
                row["validation_data"][:8],
            ]
            for row in _ranked(rows)
        ],
    )


def leaderboard_in_short(rows: list[Row], run: str) -> str:
    """The best runs and `run` itself, in bold, as narrow as the UI's page of an artifact."""
    ranked = list(enumerate(_ranked(rows), 1))
    shown = [(place, row) for place, row in ranked if place <= MOST_RUNS or row["run"] == run]
    cells = [
        [
            str(place),
            f"{row['preset']} {row['run'][:8]}",
            loss(row["bits_per_byte"]),
            f"{count(row['parameters'])}, {count(row['tokens'])}",
            f"{duration(row['seconds'])}, {dollars(row['usd'])}",
            row["finished"][:16],
            row["validation_data"][:4],
        ]
        for place, row in shown
    ]
    bold = [
        [f"**{cell}**" for cell in line] if row["run"] == run else line
        for line, (_, row) in zip(cells, shown, strict=True)
    ]
    header = ["", "run", "bits per byte", "weights, tokens", "time, cost", "finished", "data"]
    lines = [markdown_table(header, bold)]
    lines.append("Bits per byte compare between rows with the same data. In bold: this run.")
    if len(shown) < len(ranked):
        lines.append(f"The best {MOST_RUNS} of {len(ranked):,} runs.")
    return "\n\n".join(lines)


def _ranked(rows: list[Row]) -> list[Row]:
    return sorted(rows, key=lambda row: (row["bits_per_byte"], row["run"]))


def leaderboard_page(rows: list[Row], reports: dict[str, str]) -> str:
    """The leaderboard as one HTML file: the runs on each set of validation data, their benchmark scores, and notes."""
    sections = [
        "# The Daily Train: leaderboard",
        f"{len(rows)} {'run' if len(rows) == 1 else 'runs'}. Bits per byte compare between runs on the same "
        "validation data, whatever the tokenizer; accuracies of small models are mostly noise.",
    ]
    newest = {row["validation_data"]: row["finished"] for row in sorted(rows, key=lambda row: row["finished"])}
    for data in sorted(newest, key=newest.__getitem__, reverse=True):
        part = [row for row in rows if row["validation_data"] == data]
        sections += [f"## Data {data[:8]}", leaderboard(part, reports), scores_by_run(part)]
        sections += [f"* `{row['run'][:12]}`: {untrusted(row['note'])}" for row in _ranked(part) if row.get("note")]
    return html_page("\n\n".join(sections), {})


def scores_by_run(rows: list[Row]) -> str:
    """Scores in per cent of every run, one column a suite and metric; a score that a run has not is a dash."""
    names = list(dict.fromkeys(name for row in rows for name in row["scores"]))
    cells = [
        [
            row["run"][:12],
            row["preset"],
            *(f"{100 * row['scores'][name]:.2f}" if name in row["scores"] else None for name in names),
        ]
        for row in _ranked(rows)
    ]
    return markdown_table(["run", "preset", *(f"{name.replace('/', ' ')}, %" for name in names)], cells)
