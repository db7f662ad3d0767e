"""How sure a score is: standard errors, intervals, and scores apart for clean and contaminated items.

Items that share a source are not independent, so their errors are summed within the group before they are squared
(clustered standard error, arXiv 2411.00640). No bootstrap: closed forms serve at these sizes, results do not depend
on a seed, and `benchmarks/coverage.py` measures that the intervals cover what they say (docs/evaluation.md).
"""

import math
from collections.abc import Sequence
from enum import StrEnum
from statistics import NormalDist

import numpy as np
import pyarrow as pa
from scipy.special import stdtrit

FEWEST_ITEMS = 30
"""Under this many items a score is marked as too few to say anything."""
_RANDOM_SUBSETS = 1000
_METRICS = ("acc", "acc_norm", "mc1", "mc2")


class StatsError(Exception):
    """Samples and verdicts that do not belong together."""


class ItemSet(StrEnum):
    ALL = "all"
    CLEAN = "clean"
    CONTAMINATED = "contaminated"


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    return clustered_standard_error(values, range(len(values)))


def clustered_standard_error(values: Sequence[float], clusters: Sequence) -> float | None:
    """Standard error of the mean of `values` when values of one cluster are dependent; None for one cluster.

    sqrt(G / (G - 1) * sum over G clusters of (sum of deviations)^2) / n, which for clusters of one is the ordinary
    s / sqrt(n).
    """
    if len(values) != len(clusters):
        raise StatsError(f"{len(values)} values, but {len(clusters)} clusters")
    x = np.asarray(values, dtype=np.float64)
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    groups = len(names)
    if groups < 2:
        return None
    sums = np.bincount([names[name] for name in clusters], weights=x - x.mean(), minlength=groups)
    return float(math.sqrt(groups / (groups - 1) * float(sums @ sums)) / len(x))


def normal_interval(value: float, error: float, level: float = 0.95) -> tuple[float, float]:
    """`value` plus and minus the normal quantile times its standard error."""
    half = _quantile(level) * error
    return value - half, value + half


def wilson_interval(successes: float, n: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of `n` independent yes/no items; never leaves [0, 1], and is not empty at 0 or n."""
    if not (n > 0 and 0 <= successes <= n):
        raise StatsError(f"{successes} successes of {n} items")
    z = _quantile(level)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at the ends the formula is 0 or 1 only up to rounding
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def _quantile(level: float) -> float:
    return NormalDist().inv_cdf(0.5 + level / 2)


def t_interval(value: float, error: float, clusters: int, level: float = 0.95) -> tuple[float, float]:
    """`value` plus and minus Student's quantile, with one degree of freedom less than clusters, times its error."""
    half = float(stdtrit(clusters - 1, 0.5 + level / 2)) * error
    return value - half, value + half


def share_interval(share: float, error: float, clusters: int, level: float = 0.95) -> tuple[float, float]:
    """Interval of a share of yes/no items in so many `clusters` of dependent ones, with its clustered error.

    Wilson's for as many independent items as would have that error, fewer still by (z / t)^2 because the error itself
    is estimated from few clusters (Korn and Graubard 1998, who put this into the exact interval). Where all answers
    are equal there is no error to go by, and a cluster counts as one item.
    """
    effective = share * (1 - share) / error**2 if error > 0 else float(clusters)
    correction = (_quantile(level) / float(stdtrit(clusters - 1, 0.5 + level / 2))) ** 2
    return wilson_interval(share * effective * correction, effective * correction, level)


def summary(values: Sequence[float], clusters: Sequence) -> dict:
    """n, value, standard_error, interval [low, high] or None, and whether there are too few items to say.

    The interval is Wilson's where items are independent yes/no answers, `share_interval` where such items come in
    clusters, else `t_interval`.
    """
    n, groups = len(values), len(set(clusters))
    row = {"n": n, "value": None, "standard_error": None, "interval": None, "too_few": n < FEWEST_ITEMS}
    if n == 0:
        return row
    value, error = float(np.mean(values)), clustered_standard_error(values, clusters)
    row |= {"value": value, "standard_error": error}
    binary = set(values) <= {0.0, 1.0}
    if groups == n and binary:
        row["interval"] = list(wilson_interval(sum(values), n))
    elif error is not None and binary:
        row["interval"] = list(share_interval(value, error, groups))
    elif error is not None:
        row["interval"] = list(t_interval(value, error, groups))
    return row


Scored = tuple[float, str, str]
"""Value, cluster and verdict of one item."""


def _joined(samples: pa.Table, verdicts: pa.Table) -> dict[tuple[str, str, str], list[Scored]]:
    """Scores and verdicts by suite, task and metric; raises `StatsError` for an item without a verdict."""
    verdict_of = {
        (row["suite"], row["item"]): row["verdict"]
        for row in verdicts.select(["suite", "item", "verdict"]).to_pylist()
    }
    scored: dict[tuple[str, str, str], list[tuple[float, str, str]]] = {}
    for row in samples.select(["suite", "task", "item", "cluster", *_METRICS]).to_pylist():
        key = (row["suite"], row["item"])
        if key not in verdict_of:
            raise StatsError(f"item {row['item']} of {row['suite']} was scored but has no contamination verdict")
        for metric in _METRICS:
            if row[metric] is not None:
                scores = scored.setdefault((row["suite"], row["task"], metric), [])
                scores.append((row[metric], row["cluster"], verdict_of[key]))
    return scored


def scores_by_verdict(samples: pa.Table, verdicts: pa.Table) -> list[dict]:
    """For every suite, task and metric the `summary` over all, clean and contaminated items.

    `samples` as `eval/samples.py` writes them, `verdicts` as `eval/contamination.py` does, joined on suite and item.
    Items that could not be checked count in `all` only, so the two parts need not add up. Raises `StatsError` for
    an item without a verdict.
    """
    rows = []
    for (suite, task, metric), scores in _joined(samples, verdicts).items():
        for item_set in ItemSet:
            chosen = [score for score in scores if item_set is ItemSet.ALL or score[2] == item_set]
            found = summary([score[0] for score in chosen], [score[1] for score in chosen])
            rows.append({"suite": suite, "task": task, "metric": metric, "items": item_set.value} | found)
    return rows


def leak_effects(samples: pa.Table, verdicts: pa.Table, seed: int = 0) -> list[dict]:
    """What contaminated items do to each score, for every suite, task and metric that has any.

    * `difference`: contaminated minus clean, with a normal interval from the clustered errors of both.
    * `gain`: checkable minus clean, the estimated performance gain of arXiv 2411.03923, with its interval.
    * `random`: the 2.5th and 97.5th percentile of `difference` over 1,000 random subsets of the same size: what the
      difference looks like where there is nothing to find.
    * `too_few`: under 30 items on either side, so that none of these says anything.
    """
    generator = np.random.default_rng(seed)
    rows = []
    for (suite, task, metric), scores in _joined(samples, verdicts).items():
        clean = [score for score in scores if score[2] == ItemSet.CLEAN]
        leaked = [score for score in scores if score[2] == ItemSet.CONTAMINATED]
        if not clean or not leaked:
            continue
        difference, error = mean_difference(leaked, clean)
        share = len(leaked) / (len(leaked) + len(clean))
        values = np.array([score[0] for score in [*leaked, *clean]])
        draws = [generator.permutation(values) for _ in range(_RANDOM_SUBSETS)]
        random = [float(draw[: len(leaked)].mean() - draw[len(leaked) :].mean()) for draw in draws]
        rows.append(
            {
                "suite": suite,
                "task": task,
                "metric": metric,
                "n_clean": len(clean),
                "n_contaminated": len(leaked),
                "difference": difference,
                "difference_interval": None if error is None else list(normal_interval(difference, error)),
                "gain": share * difference,
                "gain_interval": None if error is None else list(normal_interval(share * difference, share * error)),
                "random": np.percentile(random, [2.5, 97.5]).tolist(),
                "too_few": min(len(clean), len(leaked)) < FEWEST_ITEMS,
            }
        )
    return rows


def mean_difference(these: Sequence[tuple], others: Sequence[tuple]) -> tuple[float, float | None]:
    """Mean of `these` minus mean of `others` with its standard error; each entry begins with value and cluster."""
    means, errors = [], []
    for part in (these, others):
        values = [entry[0] for entry in part]
        means.append(float(np.mean(values)))
        errors.append(clustered_standard_error(values, [entry[1] for entry in part]))
    return means[0] - means[1], None if None in errors else math.hypot(*errors)
