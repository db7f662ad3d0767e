"""Is a design a compute multiplier? Paired over seeds: bits per byte at equal budgets, and compute at equal loss.

The compute multiplier is how many times more FLOPs the baseline needs to reach the candidate's final validation loss.
It is read off the baseline's own finished trainings at several budgets, each with its whole schedule, by interpolation
between log FLOPs and log loss, seed by seed; `compare` extrapolates nothing beyond them. Intervals are Student's t over
seeds. `benchmarks.training.ladder` asks the same of several sizes, with a tuned baseline.
"""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from eval.reporting.distributions import student_quantile
from eval.reporting.markdown import markdown_table


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
    log_multipliers: list[float] = []
    outside = 0
    for run in candidate:
        curve = sorted((b.flops, b.bits_per_byte) for b in baseline if b.seed == run.seed)
        found = _reached(run.bits_per_byte, curve)
        if found is None:
            outside += 1
        else:
            log_multipliers.append(math.log(found / run.flops))
    return {
        "baseline": [asdict(run) for run in baseline],
        "candidate": [asdict(run) for run in candidate],
        "difference": _mean([run.bits_per_byte - at_one[run.seed] for run in candidate]),
        "multiplier": None
        if outside
        else {
            name: value if value is None else np.exp(value).tolist() for name, value in _mean(log_multipliers).items()
        },
        "outside": outside,
    }


def compute_at(curve: Sequence[tuple[float, float]], loss: float) -> tuple[float, float]:
    """Compute at which a curve of (compute, loss) points reaches a loss, and by what factor that lies outside
    the points (1: interpolated). Log-log, between the two points around the loss, else along the nearest two."""
    if len(curve) < 2:
        raise ValueError(f"{len(curve)} points are no curve: at least 2 horizons are needed")
    points = sorted(curve)
    compute, losses = np.log(points).T
    # the last stretch that begins above the loss; losses of one seed may not fall everywhere
    above = [i for i in range(len(points) - 1) if losses[i] > math.log(loss)]
    i = max(above, default=0)
    slope = (losses[i + 1] - losses[i]) / (compute[i + 1] - compute[i])
    if slope >= 0:
        raise ValueError(f"loss does not fall from compute {points[i][0]:.3g} to {points[i + 1][0]:.3g}")
    found = math.exp(compute[i] + (math.log(loss) - losses[i]) / slope)
    return found, max(1.0, found / points[-1][0], points[0][0] / found)


def half_width(values: Sequence[float]) -> float:
    """Of the 95 % interval around a mean; infinite for one value."""
    if len(values) < 2:
        return math.inf
    return float(student_quantile(len(values) - 1, 0.975) * np.std(values, ddof=1) / math.sqrt(len(values)))


def _reached(loss: float, curve: list[tuple[float, float]]) -> float | None:
    """compute_at, or None where the curve was never."""
    try:
        compute, outside = compute_at(curve, loss)
    except ValueError:
        return None
    return compute if outside < 1 + 1e-9 else None


def _mean(values: list[float]) -> dict[str, Any]:
    """Mean with its 95 % interval, which takes two values."""
    mean = float(np.mean(values))
    if len(values) < 2:
        return {"mean": mean, "interval": None}
    half = half_width(values)
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
        lines.append(
            f"**Compute multiplier: cannot be given.** {found['outside']} of the candidate's losses lie "
            "outside what the baseline reached; give it smaller or larger budgets."
        )
    else:
        lines.append(
            f"**Compute multiplier: {multiplier['mean']:.2f}**{_interval(multiplier, '.2f')}: the "
            "baseline needs so many times the FLOPs for the same loss."
        )
    lines.append("One size and these seeds alone: a claim needs at least two sizes and a tuned baseline.")
    rows = [
        [arm, run["seed"], run["budget"], f"{run['flops']:.3e}", f"{run['bits_per_byte']:.4f}"]
        for arm in ("baseline", "candidate")
        for run in found[arm]
    ]
    lines.append(markdown_table(["arm", "seed", "share of its budget", "FLOPs", "bits per byte"], rows))
    return "\n\n".join(lines) + "\n"


def _interval(value: dict[str, Any], form: str) -> str:
    if value["interval"] is None:
        return " (one seed gives no interval)"
    low, high = value["interval"]
    return f", 95 % interval {low:{form}} to {high:{form}}"
