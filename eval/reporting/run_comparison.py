"""How a run compares with earlier ones, for people: differences with intervals, tests, and what could be seen."""

from typing import Any

from eval.reporting.markdown import markdown_table
from eval.reporting.paired_tests import POWER, detectable_alone
from eval.reporting.score_table import interval_text


def comparison_section(against: list[dict[str, Any]], scores: list[dict[str, Any]]) -> list[str]:
    """The section of the report from its `against` (`tasks/report.py`) and `scores`."""
    lines = [alone(scores)]
    lines += [line for entry in against if "rows" in entry for line in _compared(entry)]
    for entry in against:
        if "reason" in entry:
            told = f" (run {entry['run'][:12]})" if "run" in entry else ""
            lines.append(f"No comparison with {_roles(entry)}{told}: {entry['reason']}.")
    return [line for line in lines if line]


def alone(scores: list[dict[str, Any]]) -> str:
    """What each score by itself can tell from a fixed number, such as chance."""
    told = [
        f"{score['suite']} {score['metric']} {100 * detectable_alone(score['interval']):.1f}"
        for score in scores
        if score["value"] is not None and score["interval"]
    ]
    if not told:
        return ""
    return f"Each score could have seen a distance from chance of so many points ({_power()}): {', '.join(told)}."


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
    told = f"**Against {_roles(entry)}: {entry['verdict']}.** Run {entry['run'][:12]}, {entry['preset']}, finished "
    told += f"{entry['finished']}, commit `{entry['commit'][:12]}`."
    for name in ("regressed", "improved"):
        if entry[name]:
            told += f" {name.capitalize()}: {', '.join(entry[name])}."
    lines = [told]
    if rows:
        lines.append(markdown_table([*header, "could have seen, points"], rows))
        lines.append(
            f"This run minus that one, on the items that both scored; it could have seen the last column "
            f"({_power()}). A verdict needs p ≤ 0.05 after Holm's correction over the table."
        )
    return lines + [f"{task} is not compared: {reason}." for task, reason in entry["omitted"].items()]


def _roles(entry: dict[str, Any]) -> str:
    named = {"yesterday": "yesterday's run", "best": "the best run", "baseline": "the baseline"}
    return " and ".join(named[role] for role in entry["roles"])


def _power() -> str:
    return f"{100 * POWER:.0f} % power, two-sided 5 % test"


def _p(p: float) -> str:
    return "< 0.001" if p < 0.001 else f"{p:.3f}"
