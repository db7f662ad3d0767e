"""Is a design a compute multiplier? Paired over seeds: bits per byte at equal budgets, and compute at equal loss.

The compute multiplier is how many times more FLOPs the baseline needs to reach the candidate's final validation loss.
It is read off the baseline's own finished trainings at several budgets, each with its whole schedule, by interpolation
between log FLOPs and bits per byte; beyond them nothing is extrapolated. Intervals are Student's t over seeds.
"""

import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import numpy as np
from scipy import stats

from eval.markup import markdown_table


@dataclass(frozen=True)
class Training:
    """One finished training."""

    seed: int
    budget: float
    """Share of the preset's budget."""
    flops: float
    bits_per_byte: float


def compare(baseline: list[Training], candidate: list[Training]) -> dict[str, Any]:
    """The paired difference at the preset's budget (negative: the candidate is better) and the compute multiplier."""
    at_one = {run.seed: run.bits_per_byte for run in baseline if run.budget == 1}
    multipliers, outside = [], []
    for run in candidate:
        curve = sorted((b.flops, b.bits_per_byte) for b in baseline if b.seed == run.seed)
        found = flops_to_reach(run.bits_per_byte, curve)
        (outside if found is None else multipliers).append(None if found is None else math.log(found / run.flops))
    return {
        "baseline": [asdict(run) for run in baseline],
        "candidate": [asdict(run) for run in candidate],
        "difference": _mean([run.bits_per_byte - at_one[run.seed] for run in candidate]),
        "multiplier": None if outside else {name: value if value is None else np.exp(value).tolist()
                                            for name, value in _mean(multipliers).items()},
        "outside": len(outside),
    }


def flops_to_reach(bits_per_byte: float, curve: list[tuple[float, float]]) -> float | None:
    """FLOPs at which a curve of (FLOPs, bits per byte), ascending in FLOPs, first reaches a loss; None outside it."""
    for (flops, high), (more, low) in pairwise(curve):
        if low <= bits_per_byte <= high and low < high:
            share = (high - bits_per_byte) / (high - low)
            return math.exp((1 - share) * math.log(flops) + share * math.log(more))
    return None


def _mean(values: list[float]) -> dict[str, Any]:
    """Mean with its 95 % interval, which takes two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "interval": None}
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return {"mean": mean, "interval": [mean - half, mean + half]}


def render_comparison(found: dict[str, Any]) -> str:
    """The comparison as Markdown."""
    difference, multiplier = found["difference"], found["multiplier"]
    lines = [
        f"# {found['names'][1]} against {found['names'][0]}",
        f"**Difference in bits per byte at each one's own budget: {difference['mean']:+.4f}**"
        f"{_interval(difference, '+.4f')}, paired over {len(found['candidate'])} seed(s); negative is better.",
    ]
    if multiplier is None:
        lines.append(f"**Compute multiplier: cannot be given.** {found['outside']} of the candidate's losses lie "
                     "outside what the baseline reached; give it smaller or larger budgets.")
    else:
        lines.append(f"**Compute multiplier: {multiplier['mean']:.2f}**{_interval(multiplier, '.2f')}: the "
                     "baseline needs so many times the FLOPs for the same loss.")
    lines.append("One size and these seeds alone: a claim needs at least two sizes and a tuned baseline.")
    rows = [[arm, run["seed"], run["budget"], f"{run['flops']:.3e}", f"{run['bits_per_byte']:.4f}"]
            for arm in ("baseline", "candidate") for run in found[arm]]  # fmt: skip
    lines.append(markdown_table(["arm", "seed", "share of its budget", "FLOPs", "bits per byte"], rows))
    return "\n\n".join(lines) + "\n"


def _interval(value: dict[str, Any], form: str) -> str:
    if value["interval"] is None:
        return " (one seed gives no interval)"
    low, high = value["interval"]
    return f", 95 % interval {low:{form}} to {high:{form}}"
