"""From finished runs to compute multipliers with intervals, and the tables of `benchmarks.training.ladder`.

The multiplier of A over B: compute at which B's curve of complete trainings reaches A's final loss, over the compute of
A. Compute is counted by model.network.flops. The curve is interpolated linearly in log compute and log loss between the
two horizons around that loss, seed by seed; intervals are Student's t over the seeds' log multipliers.
"""

import json
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

from eval.reporting.markdown import markdown_table
from eval.reporting.multiplier import compute_at, half_width


@dataclass(frozen=True, kw_only=True)
class Run:
    """One complete training."""

    key: str  # digest of data, network and training
    code: str  # digest of the model's source that trained it
    phase: str
    arm: str  # daily, gpt2 or a change to daily
    size: str
    multiple: float  # horizon over that of the daily recipe at this size
    seed: int
    rate: float
    tokens: int
    flops: float  # by model.network.flops
    matrices: int  # weights of hidden matrices
    parameters: int  # all weights
    bits_per_byte: float | None  # of held-out works after the last step; None: diverged
    cpu_seconds: float  # of the process: other work on the machine hardly moves it


def read_runs(path: Path) -> list[Run]:
    """Finished runs; a line cut short by a crash is left out."""
    runs = []
    for line in path.read_text().splitlines() if path.exists() else []:
        try:
            runs.append(Run(**json.loads(line)))
        except ValueError:
            continue
    return runs


def mean_loss(runs: Sequence[Run]) -> float:
    """Mean bits per byte; infinite when a run diverged."""
    return float(np.mean([math.inf if run.bits_per_byte is None else run.bits_per_byte for run in runs]))


def best_rate(runs: Sequence[Run]) -> float:
    return min(runs, key=lambda run: mean_loss([run])).rate


def interval(logs: Sequence[float]) -> tuple[float, float, float]:
    """Geometric mean and 95 % interval of a ratio from its logarithms, one a seed."""
    mean, half = float(np.mean(logs)), half_width(logs)
    return math.exp(mean), math.exp(mean - half), math.exp(mean + half)


def multipliers(
    better: dict[int, tuple[float, float]], curves: dict[int, list[tuple[float, float]]]
) -> tuple[list[float], float]:
    """Log multiplier of each seed that has both, and the largest factor by which a curve was left."""
    logs, outside = [], 1.0
    for seed in sorted(better.keys() & curves.keys()):
        compute, loss = better[seed]
        reached, factor = compute_at(curves[seed], loss)
        logs.append(math.log(reached / compute))
        outside = max(outside, factor)
    return logs, outside


def trend(sizes: Sequence[float], logs: Sequence[Sequence[float]]) -> tuple[float, float, float]:
    """Exponent b of multiplier ~ size ** b by least squares over all seeds, with its 95 % interval."""
    x = np.concatenate([[math.log(size)] * len(part) for size, part in zip(sizes, logs)])
    (slope, _), covariance = np.polyfit(x, np.concatenate(logs), 1, cov=True)
    half = float(stats.t.ppf(0.975, len(x) - 2)) * math.sqrt(covariance[0, 0])
    return float(slope), slope - half, slope + half


def _chosen(runs: Sequence[Run], **wanted: object) -> list[Run]:
    return [run for run in runs if all(getattr(run, name) == value for name, value in wanted.items())]


def _points(runs: Sequence[Run]) -> dict[int, tuple[float, float]]:
    """Compute and loss of each seed that did not diverge."""
    return {run.seed: (run.flops, run.bits_per_byte) for run in runs if run.bits_per_byte is not None}


def _curves(runs: Sequence[Run]) -> dict[int, list[tuple[float, float]]]:
    curves = defaultdict(list)
    for run in runs:
        if run.bits_per_byte is not None:
            curves[run.seed].append((run.flops, run.bits_per_byte))
    return {seed: curve for seed, curve in curves.items() if len(curve) > 1}


def sweep_table(runs: Sequence[Run]) -> str:
    """Learning rates that were tried; the best is marked."""
    rows, swept = [], _chosen(runs, phase="sweep")
    for size, arm, multiple in sorted({(run.size, run.arm, run.multiple) for run in swept}):
        part = sorted(_chosen(swept, size=size, arm=arm, multiple=multiple), key=lambda run: run.rate)
        losses = ["diverged" if run.bits_per_byte is None else f"{run.bits_per_byte:.4f}" for run in part]
        mark = ["**" * (run.rate == best_rate(part) and len(part) > 1) for run in part]
        rows.append(
            [
                size,
                arm,
                f"{multiple:g} C",
                ", ".join(f"{bold}{run.rate:g}: {loss}{bold}" for run, loss, bold in zip(part, losses, mark)),
            ]
        )
    return markdown_table(["size", "recipe", "horizon", "learning rate: bits per byte"], rows)


def points_table(runs: Sequence[Run]) -> str:
    """Loss over compute, mean and standard deviation over seeds."""
    rows, arms = [], _chosen(runs, phase="arms")
    for size, arm, multiple in sorted({(run.size, run.arm, run.multiple) for run in arms}):
        part = _chosen(arms, size=size, arm=arm, multiple=multiple)
        losses = [run.bits_per_byte for run in part if run.bits_per_byte is not None]
        deviation = f"{np.std(losses, ddof=1):.4f}" if len(losses) > 1 else None
        rows.append(
            [
                size,
                arm,
                part[0].tokens,
                f"{part[0].flops:.3g}",
                len(losses),
                f"{mean_loss(part):.4f}",
                deviation,
                f"{np.median([run.cpu_seconds for run in part]):.0f}",
            ]
        )
    header = ["size", "recipe", "tokens", "FLOPs", "seeds", "bits per byte", "deviation", "CPU seconds"]
    return markdown_table(header, rows)


def multiplier_table(runs: Sequence[Run]) -> str:
    """The multiplier of each size and its trend."""
    rows, sizes, logs_of_sizes = [], [], []
    for size in sorted({run.size for run in _chosen(runs, phase="arms")}):
        daily = _chosen(runs, phase="arms", size=size, arm="daily")
        baseline = _chosen(runs, phase="arms", size=size, arm="gpt2")
        logs, outside = multipliers(_points(daily), _curves(baseline))
        if not logs:
            continue
        mean, low, high = interval(logs)
        # the same in processor time: Muon's own products and small operations are no counted FLOPs
        slower, faster = (float(np.median([run.cpu_seconds / run.flops for run in part])) for part in (daily, baseline))
        rows.append(
            [
                size,
                daily[0].matrices,
                f"{daily[0].flops:.3g}",
                len(logs),
                f"{mean:.2f}",
                f"{low:.2f} to {high:.2f}",
                ", ".join(f"{math.exp(log):.2f}" for log in logs),
                "no" if outside == 1 else f"by {outside:.2f} ×",
                "{:.2f} ({:.2f} to {:.2f})".format(*(x * faster / slower for x in (mean, low, high))),
            ]
        )
        sizes.append(daily[0].flops)
        logs_of_sizes.append(logs)
    header = [
        "size",
        "matrix weights",
        "FLOPs of daily",
        "seeds",
        "multiplier",
        "95 %",
        "each seed",
        "extrapolated",
        "in processor time",
    ]
    if len(logs_of_sizes) < 3:
        return markdown_table(header, rows)
    exponent = "{:.3f} ({:.3f} to {:.3f})".format(*trend(sizes, logs_of_sizes))
    return f"{markdown_table(header, rows)}\n\nTrend over sizes: multiplier ~ compute ** {exponent}."


def ablation_table(runs: Sequence[Run]) -> str:
    """Each change against the recipe itself, paired by seed. For a removed technique the multiplier is what the
    recipe with it saves; for a candidate, what the candidate saves."""
    ablations = _chosen(runs, phase="ablation")
    tables = []
    for size in sorted({run.size for run in ablations}):
        part = _chosen(ablations, size=size)
        recipe = _chosen(part, arm="daily")
        curves = _curves(recipe)
        at_c = _points(_chosen(recipe, multiple=1))
        rows: list[list[Any]] = []
        for arm in dict.fromkeys(run.arm for run in part if run.arm != "daily"):
            changed = _points(_chosen(part, arm=arm))
            logs, outside = multipliers(changed, curves)
            if not logs:
                continue
            candidate = arm.startswith("+")
            # the recipe's compute at the changed arm's loss, over the changed arm's compute
            mean, low, high = interval(logs if candidate else [-log for log in logs])
            difference = np.mean([changed[seed][1] - at_c[seed][1] for seed in changed.keys() & at_c.keys()])
            verdict = "unclear" if low <= 1 <= high else "helps" if low > 1 else "hurts"
            rows.append(
                [
                    arm,
                    len(logs),
                    f"{difference:+.4f}",
                    f"{mean:.3f}",
                    f"{low:.3f} to {high:.3f}",
                    verdict,
                    "" if outside < 1.05 else f"{outside:.1f} × outside",
                ]
            )
        rows.sort(key=lambda row: (row[0].startswith("+"), -float(row[3])))
        header = ["change", "seeds", "bits per byte", "multiplier of the technique", "95 %", "the technique", "curve"]
        tables.append(f"Size {size}:\n\n" + markdown_table(header, rows))
    return "\n\n".join(tables)


def report(runs: Sequence[Run]) -> str:
    """All tables, as Markdown."""
    parts = [
        ("Learning rates", sweep_table),
        ("Loss over compute", points_table),
        ("Compute multiplier of the daily recipe over GPT-2 with AdamW", multiplier_table),
        ("Ablation", ablation_table),
    ]
    text = "\n\n".join(f"### {title}\n\n{table(runs)}" for title, table in parts)
    codes = sorted({run.code for run in runs})
    return f"{text}\n\n{len(runs)} runs, model source {', '.join(codes)}."
