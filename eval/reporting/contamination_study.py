"""What planted benchmark items do to scores: the same model trained with and without copies of some items.

Gains are of each item, with planted copies minus without, averaged over seeds. Two trainings differ in everything a
little, also on items nobody planted, so the answer is a difference of differences: the gain on planted items minus
the gain on the rest of their suite.
"""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from eval.reporting.markdown import markdown_table
from eval.reporting.stats import DIFFERENCES, difference_of_means, interval
from eval.suites.suites import Metric

PLANTED, REST = "planted items", "rest of their suite"
MEASURES = {"gold_bits_per_byte": None, "accuracy": DIFFERENCES}
"""Bits per byte of the right answers, where a gain is a reduction, and the task's first metric, with their bounds."""
_FIRST_METRICS = (Metric.ACC, Metric.MC1, Metric.MC2)
"""The first metric of each task."""

Gain = tuple[float, str]
"""Gain of one item and the cluster it belongs to."""


def gains(with_copies: Sequence[pa.Table], without: Sequence[pa.Table]) -> dict[tuple[str, int], dict[str, Gain]]:
    """Gain of every item by measure, averaged over pairs of runs (one pair a seed) and over the suite's tasks."""
    sums: dict[tuple[str, int], dict[str, list[float]]] = {}
    cluster: dict[tuple[str, int], str] = {}
    for treated, control in zip(with_copies, without, strict=True):
        for after, before in zip(treated.to_pylist(), control.to_pylist(), strict=True):
            item = (after["suite"], after["item"])
            if (after["task"], *item) != (before["task"], before["suite"], before["item"]):
                raise ValueError(f"the two runs scored different items: {item} and {before['suite']}:{before['item']}")
            cluster[item] = f"{after['suite']} {after['cluster']}"
            found = sums.setdefault(item, {measure: [] for measure in MEASURES})
            nats = before["gold_logprob"] - after["gold_logprob"]
            found["gold_bits_per_byte"].append(-nats / (math.log(2) * after["gold_bytes"]))
            metric = next(name for name in _FIRST_METRICS if after[name] is not None)
            found["accuracy"].append(after[metric] - before[metric])
    return {
        item: {measure: (float(np.mean(values)), cluster[item]) for measure, values in found.items()}
        for item, found in sums.items()
    }


def effects(found: dict[tuple[str, int], dict[str, Gain]], suite: str, planted: Sequence[int]) -> dict[str, Any]:
    """Mean gain with 95 % interval of each group of items, and the planted items' gain over the rest's."""
    planted_items = {(suite, item) for item in planted}
    groups: dict[str, list[tuple[str, int]]] = {PLANTED: [], REST: []}
    for item in found:
        name = PLANTED if item in planted_items else REST if item[0] == suite else item[0]
        groups.setdefault(name, []).append(item)
    rows, answers = [], {}
    for measure, bounds in MEASURES.items():
        by_group = {name: [found[item][measure] for item in items] for name, items in groups.items()}
        for name, values in by_group.items():
            mean = float(np.mean([value for value, _ in values])) if values else None
            limits, reason = interval([v for v, _ in values], [c for _, c in values], bounds)
            rows.append({"measure": measure, "group": name, "n": len(values), "gain": mean, **_limits(limits, reason)})
        difference, limits, reason = difference_of_means(by_group[PLANTED], by_group[REST], bounds)
        answers[measure] = {"difference": difference, **_limits(limits, reason)}
    return {"groups": rows, "planted_over_rest": answers}


def _limits(interval: list[float] | None, reason: str | None) -> dict[str, Any]:
    excludes = None if interval is None else not interval[0] <= 0 <= interval[1]
    return {"interval": interval, "no_interval": reason, "excludes_zero": excludes}


def render_study(study: dict[str, Any]) -> str:
    """The study as Markdown."""
    rows = [
        [row["measure"].replace("_", " "), row["group"], row["n"], _signed(row["gain"]), _span(row)]
        for row in study["groups"]
    ]
    lines = [
        f"# What {study['copies']} copies of {len(study['planted'])} {study['suite']} items do",
        f"The same model was trained with and without them, {study['seeds']} time(s) each. A gain in bits per byte is "
        "a reduction. Two trainings differ a little on every item, so the answer compares planted items with the rest.",
    ]
    if study["copies"] == 0:
        lines.append("This is an A/A run: nothing was planted, the two trainings differ in their seed alone.")
    for measure, answer in study["planted_over_rest"].items():
        told = {True: ", which excludes zero", False: ", which includes zero", None: ""}[answer["excludes_zero"]]
        lines.append(
            f"**Planted over rest, {measure.replace('_', ' ')}: {_signed(answer['difference'])}**, "
            f"95 % interval {_span(answer)}{told}."
        )
    lines.append(markdown_table(["measure", "items", "n", "gain", "95 % interval"], rows))
    lines.append("![gains](study.png)")
    return "\n\n".join(lines) + "\n"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _span(row: dict[str, Any]) -> str:
    if row["interval"] is None:
        return f"cannot be given: {row['no_interval']}"
    return "{:+.4f} to {:+.4f}".format(*row["interval"])
