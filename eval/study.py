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

from eval.markup import markdown_table
from eval.stats import clustered_standard_error, mean_difference, normal_interval

PLANTED, REST = "planted items", "rest of their suite"
MEASURES = ("gold_bits_per_byte", "accuracy")
"""Bits per byte of the right answers, where a gain is a reduction, and the task's first metric."""
_METRICS = ("acc", "mc1", "mc2")

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
            metric = next(name for name in _METRICS if after[name] is not None)
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
    for measure in MEASURES:
        by_group = {name: [found[item][measure] for item in items] for name, items in groups.items()}
        for name, values in by_group.items():
            mean = float(np.mean([value for value, _ in values])) if values else None
            error = clustered_standard_error([v for v, _ in values], [c for _, c in values]) if values else None
            rows.append({"measure": measure, "group": name, "n": len(values), "gain": mean, **_interval(mean, error)})
        difference, error = mean_difference(by_group[PLANTED], by_group[REST])
        answers[measure] = {"difference": difference, **_interval(difference, error)}
    return {"groups": rows, "planted_over_rest": answers}


def _interval(value: float | None, error: float | None) -> dict[str, Any]:
    if value is None or error is None:
        return {"interval": None, "excludes_zero": None}
    low, high = normal_interval(value, error)
    return {"interval": [low, high], "excludes_zero": not low <= 0 <= high}


def render_study(study: dict[str, Any]) -> str:
    """The study as Markdown."""
    rows = [
        [row["measure"].replace("_", " "), row["group"], row["n"], _signed(row["gain"]), _span(row["interval"])]
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
        told = {True: "excludes zero", False: "includes zero", None: "cannot be given"}[answer["excludes_zero"]]
        lines.append(
            f"**Planted over rest, {measure.replace('_', ' ')}: {_signed(answer['difference'])}**, "
            f"95 % interval {_span(answer['interval'])}, which {told}."
        )
    lines.append(markdown_table(["measure", "items", "n", "gain", "95 % interval"], rows))
    lines.append("![gains](study.png)")
    return "\n\n".join(lines) + "\n"


def _signed(value: float | None) -> str:
    return "–" if value is None else f"{value:+.4f}"


def _span(interval: Sequence[float] | None) -> str:
    return "–" if interval is None else f"{interval[0]:+.4f} to {interval[1]:+.4f}"
