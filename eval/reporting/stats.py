"""How sure a score is: standard errors, intervals, and scores apart for clean and contaminated items.

Items that share a source are not independent, so their errors are summed within the group before they are squared
(clustered standard error, arXiv 2411.00640). No bootstrap: closed forms serve at these sizes, results do not depend on
a seed, and `benchmarks/scores/coverage.py` measures that the intervals cover what they say (docs/evaluation.md). Where
no form holds, there is no interval but the reason.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from statistics import NormalDist
from typing import Any

import numpy as np
import pyarrow as pa

from eval.reporting.distributions import beta_probability, root, student_quantile
from eval.suites.suites import Metric
from model.errors import DailyTrainError

FEWEST_ITEMS = 30
"""Under this many items a score is marked as too few to say anything."""
FEWEST_DEGREES = 6.0
"""Degrees of freedom of an error under which it gives no interval; seven clusters of one size have 6."""
FEWEST_CARRIERS = 10
"""Clusters, and `ClusteredMean.carriers`, under which graded values give no interval."""
SCORES = (0.0, 1.0)
"""Bounds of scores."""
DIFFERENCES = (-1.0, 1.0)
"""Bounds of differences of scores."""
_RANDOM_SUBSETS = 1000
_MANY = 1000
_METRICS = tuple(metric.value for metric in Metric)


class StatsError(DailyTrainError):
    """Samples and verdicts that do not belong together, or values that are no scores."""


class ItemSet(StrEnum):
    ALL = "all"
    CLEAN = "clean"
    CONTAMINATED = "contaminated"


@dataclass(frozen=True, kw_only=True)
class ClusteredMean:
    """A mean of items in clusters, and what is known of its error."""

    mean: float
    items: int
    clusters: int
    error: float | None
    """Standard error; null for a single cluster."""
    degrees: float
    """Degrees of freedom of the error: for clusters of one size, one less than there are."""
    effective: float
    """Clusters of one size that are worth as much (Kish): n^2 / sum of squared sizes."""
    largest: float
    """Share of the items in the largest cluster."""
    carriers: float
    """Clusters / squared skewness of their sums: where few are right, about as many as have a right answer."""

    @property
    def constant(self) -> bool:
        """Whether all clusters have one mean, so that their spread is not known."""
        return self.error is not None and self.error < 1e-9

    @property
    def known_error(self) -> float:
        """The standard error; raises `StatsError` for a single cluster."""
        if self.error is None:
            raise StatsError(f"the {self.items:,} items are one cluster: their mean has no standard error")
        return self.error


def clustered_mean(values: Sequence[float], clusters: Sequence) -> ClusteredMean:
    """Mean and error of one or more `values`, of which those of one cluster are dependent. Raises `StatsError`.

    The variance is the jackknife's over clusters (CV3): with e the sum of a cluster's deviations and h its share of
    the n items, (G - 1) / G * sum over G clusters of (e / (1 - h))^2, over n^2. For clusters of one size that is the
    usual G / (G - 1) * sum of e^2, for clusters of one s^2 / n. A large cluster draws the mean to itself, which
    the usual form takes for a small deviation. Degrees of freedom by Satterthwaite for items of equal variance
    (Bell and McCaffrey 2002; MacKinnon, Nielsen and Webb 2023, Journal of Econometrics 232).
    """
    if len(values) != len(clusters):
        raise StatsError(f"{len(values)} values, but {len(clusters)} clusters")
    x = np.asarray(values, dtype=np.float64)
    if not np.isfinite(x).all():
        place = int(np.flatnonzero(~np.isfinite(x))[0])
        raise StatsError(f"value {place} of {len(x)} is {x[place]}, expected a finite number")
    names = {name: number for number, name in enumerate(dict.fromkeys(clusters))}
    number, groups, n = [names[name] for name in clusters], len(names), len(x)
    sizes = np.bincount(number, minlength=groups)
    share = sizes / n
    error, degrees, carriers = None, 0.0, 0.0
    if groups > 1:
        sums = np.bincount(number, weights=x - x.mean(), minlength=groups) / (1 - share)
        squares, cubes = float(sums @ sums), float((sums**3).sum())
        weights = sizes / (1 - share) ** 2
        # of independent items: the expectation of `squares`, and half its variance
        expected = float(weights @ (1 - share))
        variance = float(weights**2 @ (1 - 2 * share) + (weights @ share) ** 2)
        error = math.sqrt((groups - 1) / groups * squares) / n
        degrees = expected**2 / variance
        carriers = squares**3 / cubes**2 if cubes else math.inf
    return ClusteredMean(
        mean=float(x.mean()),
        items=n,
        clusters=groups,
        error=error,
        degrees=degrees,
        effective=float(1 / (share @ share)),
        largest=float(share.max()),
        carriers=carriers,
    )


def standard_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of independent values; None for fewer than two."""
    return clustered_standard_error(values, range(len(values)))


def clustered_standard_error(values: Sequence[float], clusters: Sequence) -> float | None:
    """Standard error of the mean of `values` when values of one cluster are dependent; None for one cluster."""
    return clustered_mean(values, clusters).error


def wilson_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a share of `n` independent yes/no items; never leaves [0, 1], is not empty at 0 or n."""
    _check_counts(successes, n)
    z = quantile(level)
    share = successes / n
    centre = (share + z * z / (2 * n)) / (1 + z * z / n)
    half = z / (1 + z * z / n) * math.sqrt(share * (1 - share) / n + z * z / (4 * n * n))
    # at the ends the formula is 0 or 1 only up to rounding
    return (0.0 if successes == 0 else centre - half), (1.0 if successes == n else centre + half)


def mid_p_interval(successes: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Clopper and Pearson's exact interval with the mid-p correction (Newcombe 1998, method 6): shares at which the
    chance of more successes than these plus half the chance of these is between 2.5 and 97.5 %."""
    _check_counts(successes, n)

    def more(share: float) -> float:
        at_least = beta_probability(successes, n - successes + 1, share) if successes else 1.0
        above = beta_probability(successes + 1, n - successes, share) if successes < n else 0.0
        return (at_least + above) / 2

    def limit(chance: float) -> float:
        return root(lambda share: more(share) - chance)

    return (limit(0.5 - level / 2) if successes else 0.0), (limit(0.5 + level / 2) if successes < n else 1.0)


def _check_counts(successes: float, n: float) -> None:
    if not (n > 0 and 0 <= successes <= n):
        raise StatsError(f"{successes} successes of {n} items")


def share_interval(successes: float, n: float) -> tuple[float, float]:
    """The wider of Wilson's and the mid-p limit on each side.

    Wilson's alone covers 84 % where 0.17 successes are expected, the mid-p's 92 % where 3 are; this one covers 93.3 %
    at the least, and is Wilson's where right and wrong answers are many.
    """
    if min(successes, n - successes) > _MANY:
        return wilson_interval(successes, n)
    ends = wilson_interval(successes, n), mid_p_interval(successes, n)
    return min(low for low, _ in ends), max(high for _, high in ends)


def quantile(level: float, degrees: float = math.inf) -> float:
    """Student's two-sided quantile, the normal one without `degrees` of freedom."""
    return NormalDist().inv_cdf(0.5 + level / 2) if math.isinf(degrees) else student_quantile(degrees, 0.5 + level / 2)


def constant_interval(mean: float, effective: float, bounds: tuple[float, float]) -> tuple[float, float]:
    """Interval of the mean of values that were the same in all of so many clusters.

    At 95 % confidence other values have a share of at most 1 - 0.025^(1 / clusters), 3.7 in as many (Clopper and
    Pearson at no success; one-sided it is the rule of three), and lie within the bounds.
    """
    others = 1 - 0.025 ** (1 / effective)
    return tuple(mean + others * (bound - mean) for bound in bounds)


def interval(
    values: Sequence[float], clusters: Sequence, bounds: tuple[float, float] | None
) -> tuple[list[float] | None, str | None]:
    """95 % interval of the mean of `values` within `bounds`, or None and why it cannot be given.

    Yes/no answers: `share_interval`, where they come in clusters for as many independent answers as would have their
    error, fewer still by (normal / Student's quantile)^2 because that error is an estimate (Korn and Graubard 1998).
    Graded scores the same, since their sum is skewed the same way near the bounds; graded differences Student's t.
    Differences of yes/no answers: `adjusted_difference`. Values that do not vary: `constant_interval`.
    """
    if len(values) == 0:
        return None, "there are no items"
    found = clustered_mean(values, clusters)
    if bounds and not (bounds[0] - 1e-9 <= min(values) and max(values) <= bounds[1] + 1e-9):
        raise StatsError(f"values from {min(values)} to {max(values)}, expected {bounds[0]} to {bounds[1]}")
    alone = found.clusters == found.items
    if reason := _unknown(found, bounds):
        return None, reason
    if bounds and found.constant:
        return list(constant_interval(found.mean, found.effective, bounds)), None
    if _whole(values) and bounds == DIFFERENCES:
        mean, error, _ = adjusted_difference(values, found)
        half = quantile(0.95, found.degrees) * error
        return [max(bounds[0], mean - half), min(bounds[1], mean + half)], None
    if _whole(values) and bounds == SCORES and alone:
        return list(share_interval(sum(values), len(values))), None
    if not (_whole(values) and bounds) and min(found.clusters, found.carriers) < FEWEST_CARRIERS:
        return None, f"a few of the {found.clusters:,} {'items' if alone else 'clusters'} decide the mean"
    if bounds == SCORES:
        n = found.mean * (1 - found.mean) / found.known_error**2 * (quantile(0.95) / quantile(0.95, found.degrees)) ** 2
        return list(share_interval(min(found.mean * n, n), n)), None
    half = quantile(0.95, found.degrees) * found.known_error
    return [found.mean - half, found.mean + half], None


def _unknown(found: ClusteredMean, bounds: tuple[float, float] | None) -> str | None:
    """Why a spread gives no interval at all."""
    if found.items == 1:
        return "there is one item"
    if found.clusters == 1:
        return f"the {found.items:,} items are one cluster"
    if found.constant:
        return None if bounds else "the values do not vary"
    if found.degrees < FEWEST_DEGREES - 1e-9 and found.clusters < found.items:
        return f"{found.clusters:,} clusters, the largest with {100 * found.largest:.0f} % of the items, are too few"
    return None


def _whole(values: Sequence[float]) -> bool:
    return set(values) <= {-1.0, 0.0, 1.0}


def adjusted_difference(values: Sequence[float], found: ClusteredMean) -> tuple[float, float, float]:
    """Mean and standard error of differences of yes/no answers, with one answer more that turned right and one that
    turned wrong (Bonett and Price 2012, Statistical Methods in Medical Research 21): of as many independent answers
    as would have the error of `found`, which is the third value. Of few changes Student's t alone knows too little."""
    square = float(np.mean(np.square(values)))
    n = (square - found.mean**2) / found.known_error**2 * found.clusters / (found.clusters - 1)
    n = min(n, found.items)
    mean = found.mean * n / (n + 2)
    return mean, math.sqrt(((square * n + 2) / (n + 2) - mean**2) / (n + 2)), n


def score_summary(values: Sequence[float], clusters: Sequence) -> dict[str, Any]:
    """n, value, standard_error, interval [low, high] or None with the reason in `no_interval`, and whether there are
    too few items to say."""
    n = len(values)
    row: dict[str, Any] = {"n": n, "value": None, "standard_error": None, "too_few": n < FEWEST_ITEMS}
    row["interval"], row["no_interval"] = interval(values, clusters, SCORES)
    if n:
        found = clustered_mean(values, clusters)
        row |= {"value": found.mean, "standard_error": found.error}
    return row


Scored = tuple[float, str, str]
"""Value, cluster and verdict of one item."""


def _joined(samples: pa.Table, verdicts: pa.Table) -> dict[tuple[str, str, str], list[Scored]]:
    """Scores and verdicts by suite, task and metric; raises `StatsError` for an item without a verdict."""
    verdict_of = {
        (row["suite"], row["item"]): row["verdict"] for row in verdicts.select(["suite", "item", "verdict"]).to_pylist()
    }
    scored: dict[tuple[str, str, str], list[tuple[float, str, str]]] = {}
    for row in samples.select(["suite", "task", "item", "cluster", *_METRICS]).to_pylist():
        key = (row["suite"], row["item"])
        if key not in verdict_of:
            raise StatsError(f"item {row['item']} of {row['suite']} was scored but has no contamination verdict")
        for metric in _METRICS:
            if row[metric] is not None:
                require_score(row, metric, row[metric])
                scores = scored.setdefault((row["suite"], row["task"], metric), [])
                scores.append((row[metric], row["cluster"], verdict_of[key]))
    return scored


def require_score(row: dict[str, Any], metric: str, value: float) -> None:
    """Raises `StatsError` naming the item of a row of samples whose value is not between 0 and 1."""
    if not -1e-9 <= value <= 1 + 1e-9:
        raise StatsError(f"{row['task']}: {metric} of item {row['item']} is {value}, expected 0 to 1")


def scores_by_verdict(samples: pa.Table, verdicts: pa.Table) -> list[dict]:
    """For every suite, task and metric the `score_summary` over all, clean and contaminated items.

    `samples` as `eval/scoring/samples.py` writes them, `verdicts` as `eval/contamination/check.py` does, joined on
    suite and item. Items that could not be checked count in `all` only, so the two parts need not add up. Raises
    `StatsError` for an item without a verdict.
    """
    rows = []
    for (suite, task, metric), scores in _joined(samples, verdicts).items():
        for item_set in ItemSet:
            chosen = [score for score in scores if item_set is ItemSet.ALL or score[2] == item_set]
            found = score_summary([score[0] for score in chosen], [score[1] for score in chosen])
            rows.append({"suite": suite, "task": task, "metric": metric, "items": item_set.value} | found)
    return rows


def leak_effects(samples: pa.Table, verdicts: pa.Table, seed: int = 0) -> list[dict]:
    """What contaminated items do to each score, for every suite, task and metric that has any.

    * `difference`: contaminated minus clean, with its interval, or the reason in `no_interval`.
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
        difference, limits, reason = difference_of_means(leaked, clean, SCORES)
        if difference is None:
            continue
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
                "difference_interval": limits,
                "gain": share * difference,
                "gain_interval": limits and [share * limit for limit in limits],
                "no_interval": reason,
                "random": np.percentile(random, [2.5, 97.5]).tolist(),
                "too_few": min(len(clean), len(leaked)) < FEWEST_ITEMS,
            }
        )
    return rows


def difference_of_means(
    these: Sequence[tuple], others: Sequence[tuple], bounds: tuple[float, float] | None
) -> tuple[float | None, list[float] | None, str | None]:
    """Mean of `these` minus mean of `others`, other items, with its 95 % interval, or None and the reason; each entry
    begins with value and cluster.

    The distances of the two means from the ends of their own intervals are added as errors are (MOVER: Newcombe 1998,
    Statistics in Medicine 17, p. 873, method 10; Zou and Donner 2008).
    """
    if not these or not others:
        return None, None, "there are no items"
    means, limits, reasons = [], [], []
    for part in (these, others):
        values = [entry[0] for entry in part]
        means.append(float(np.mean(values)))
        found, reason = interval(values, [entry[1] for entry in part], bounds)
        limits += [] if found is None else [found]
        reasons += [] if reason is None else [reason]
    difference = means[0] - means[1]
    if reasons:
        return difference, None, "; ".join(dict.fromkeys(reasons))
    (low, high), (other_low, other_high) = limits
    below = math.hypot(means[0] - low, other_high - means[1])
    above = math.hypot(high - means[0], means[1] - other_low)
    return difference, [difference - below, difference + above], None
