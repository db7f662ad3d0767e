"""How a run compares with earlier ones, for people: differences with intervals, tests, and what could be seen."""

import math
from typing import Any

from eval.reporting.ledger import DESIGN, Row, is_comparable
from eval.reporting.markdown import markdown_table
from eval.reporting.paired_tests import POWER, detectable_alone
from eval.reporting.score_table import interval_text
from eval.reporting.stats import FEWEST_DEGREES, quantile


def seed_deviation(rows: list[Row]) -> dict[str, Any] | None:
    """How much bits per byte of one design differ by seed: standard `deviation`, pooled over the designs that were
    trained with several seeds, its `degrees` of freedom and how many `designs`; None where there is none."""
    by_design: dict[str, dict[int, float]] = {}
    for row in rows:
        if row.keys() >= DESIGN.keys():
            by_design.setdefault(row["design"], {})[row["seed"]] = row["bits_per_byte"]
    repeated = [list(values.values()) for values in by_design.values() if len(values) > 1]
    degrees = sum(len(values) - 1 for values in repeated)
    if not degrees:
        return None
    squares = sum((value - sum(values) / len(values)) ** 2 for values in repeated for value in values)
    return {"deviation": math.sqrt(squares / degrees), "degrees": degrees, "designs": len(repeated)}


def difference_of_runs(ours: Row, theirs: Row, rows: list[Row]) -> dict[str, Any]:
    """Bits per byte of a run minus those of another one, with the 95 % `interval` that repeated trainings in the store
    give (Student's t, two trainings differ by sqrt(2) deviations), or None and the `seeds` that are known.

    The validation text is the same, so what differs by chance is the training: a single one has no error of its own.
    """
    seeds = seed_deviation([row for row in rows if is_comparable(row, ours)])
    difference = ours["bits_per_byte"] - theirs["bits_per_byte"]
    interval = None
    if seeds and seeds["degrees"] >= FEWEST_DEGREES and seeds["deviation"] > 0:
        half = quantile(0.95, seeds["degrees"]) * math.sqrt(2) * seeds["deviation"]
        interval = [difference - half, difference + half]
    return {"difference": difference, "interval": interval, "seeds": seeds}


def comparison_section(against: list[dict[str, Any]], scores: list[dict[str, Any]]) -> list[str]:
    """The section of the report from its `against` (`tasks/report.py`) and `scores`."""
    lines = [detectable_differences(scores)]
    lines += [line for entry in against if "rows" in entry for line in _compared(entry)]
    for entry in against:
        if "reason" in entry:
            run = f" (run {entry['run'][:12]})" if "run" in entry else ""
            lines.append(f"No comparison with {_roles(entry)}{run}: {entry['reason']}.")
    return [line for line in lines if line]


def detectable_differences(scores: list[dict[str, Any]]) -> str:
    """What each score by itself can tell from a fixed number, such as chance."""
    points = [
        f"{score['suite']} {score['metric']} {100 * detectable_alone(score['interval']):.1f}"
        for score in scores
        if score["value"] is not None and score["interval"]
    ]
    if not points:
        return ""
    return f"Each score could have seen a distance from chance of so many points ({_power()}): {', '.join(points)}."


def _compared(entry: dict[str, Any]) -> list[str]:
    header = ["suite", "metric", "n", "difference, points", "95 % interval", "p", "items better / worse", "McNemar p"]
    rows = [
        [
            row["suite"] if row["suite"] == row["task"] else row["task"],
            row["metric"].replace("_", " ") if row["metric"].startswith("gold") else row["metric"],
            row["n"],
            f"{100 * row['difference']:+.2f}",
            interval_text(row, "+"),
            None if row["p"] is None else _p(row["p"]),
            f"{row['better']:,} / {row['worse']:,}" if "better" in row else None,
            _p(row["mcnemar_p"]) if "mcnemar_p" in row else None,
            "cannot be given" if row["detectable"] is None else f"{100 * row['detectable']:.2f}",
        ]
        for row in entry["rows"]
    ]
    summary = f"**Against {_roles(entry)}: {entry['verdict']}.** Run {entry['run'][:12]}, {entry['preset']}, finished "
    summary += f"{entry['finished']}, commit `{entry['commit'][:12]}`."
    for name in ("regressed", "improved"):
        if entry[name]:
            summary += f" {name.capitalize()}: {', '.join(entry[name])}."
    lines = [summary]
    if rows:
        lines.append(markdown_table([*header, "could have seen, points"], rows))
        lines.append(
            f"This run minus that one, on the items that both scored; it could have seen the last column "
            f"({_power()}). A verdict needs p ≤ 0.05 after Holm's correction over the table."
        )
    return lines + [f"{task} is not compared: {reason}." for task, reason in entry["omitted"].items()]


def _roles(entry: dict[str, Any]) -> str:
    named = {
        "last": "the last comparable run",
        "yesterday": "yesterday's run",
        "best": "the best run",
        "baseline": "the baseline",
    }
    return " and ".join(named[role] for role in entry["roles"])


def _power() -> str:
    return f"{100 * POWER:.0f} % power, two-sided 5 % test"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
