"""Two runs on the same items: paired differences, McNemar's test, and what difference could have been seen.

Both runs answer the same questions, so the difference is taken item by item and its error is that of the differences,
clustered where items are (arXiv 2411.00640); this is several times sharper than comparing two scores. Two evaluations
compare only where data, task version, metric version, few-shot setting and precision are the same: the rest is left
out, by name.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import pyarrow as pa
from scipy.special import bdtr, stdtr, stdtrit

from eval.reporting.stats import (
    DIFFERENCES,
    FEWEST_ITEMS,
    adjusted_difference,
    clustered_mean,
    interval,
    quantile,
    require_score,
)
from eval.scoring.precision import precision_of
from eval.suites.suites import METRIC_VERSIONS, Metric

LEVEL = 0.05
"""False-alarm rate of every test, and of all tests against one earlier run together in its verdict."""
POWER = 0.8
GOLD_PROBABILITY = "gold_probability"


PerItem = dict[tuple[str, str, str], dict[int, tuple[float, str]]]
"""Value and cluster of every item, by suite, task and metric."""


class Verdict(StrEnum):
    REGRESSED = "regressed"
    IMPROVED = "improved"
    MIXED = "mixed"
    NOT_SEEN = "no difference seen"
    NOTHING = "nothing to compare"


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """What one evaluation left in the store, as far as a comparison needs it."""

    samples: pa.Table
    """Of `SAMPLES_SCHEMA`."""
    scores: dict[str, Any]
    """scores.json."""
    data: dict[str, str]
    """Digest of the rows of each suite."""

    def definition(self, suite: str, task: str) -> dict[str, Any]:
        """What must be equal for two scores of a task to be of the same thing."""
        return {
            "data": self.data.get(suite),
            "task version": self.scores["task_versions"].get(task),
            "few-shot examples": num_fewshot(self.scores, task),
            "precision": precision_of(self.scores),
            "metric versions": self.scores.get("metric_versions", dict.fromkeys(METRIC_VERSIONS, 1)),
        }


def num_fewshot(scores: dict[str, Any], task: str) -> int | None:
    """Solved examples before each item of a task, from scores.json: with the score, or once for all in older ones; None
    for a task that was not scored."""
    row: dict[str, Any] = next((score for score in scores.get("scores", []) if score["task"] == task), {})
    return row["num_fewshot"] if "num_fewshot" in row else scores.get("num_fewshot")


def _shown(value: object) -> str:
    return ", ".join(f"{name} {part}" for name, part in value.items()) if isinstance(value, dict) else str(value)


def gold_probability(choice_logprobs: list[float], gold: list[int]) -> float:
    """Probability of the right choices when all choices of the item share 1 as the model weighs them."""
    weights = np.exp(np.asarray(choice_logprobs) - max(choice_logprobs))
    return float(weights[gold].sum() / weights.sum())


def per_item(samples: pa.Table) -> PerItem:
    """Everything that is scored, from `samples.parquet` alone; gold probability is a metric of each task."""
    found: PerItem = {}
    for row in samples.to_pylist():
        values = {metric.value: row[metric.value] for metric in Metric}
        values[GOLD_PROBABILITY] = gold_probability(row["choice_logprobs"], row["gold"])
        for metric, value in values.items():
            if value is not None:
                require_score(row, metric, value)
                found.setdefault((row["suite"], row["task"], metric), {})[row["item"]] = value, row["cluster"]
    return found


def mcnemar(better: int, worse: int) -> float:
    """Exact two-sided p of McNemar's test: `better` and `worse` count the items whose answer changed."""
    return min(1.0, 2 * float(bdtr(min(better, worse), better + worse, 0.5)))  # the binomial distribution


def paired(differences: list[float], clusters: Sequence[Any], yes_no: bool = False) -> dict[str, Any]:
    """n, mean difference, standard_error, interval (or None, with the reason in `no_interval`), p by Student's t and
    the smallest `detectable` difference: what a two-sided 5 % test would have seen in 80 of 100 repetitions.

    Answers that are `yes_no` are tested with the mean and the error of `eval.reporting.stats.adjusted_difference`. A
    difference of theirs is itself made of changed answers, which add to the error (Connor 1987, Biometrics 43): where
    none has changed, 7.8 would have to. Raises `StatsError`.
    """
    found = clustered_mean(differences, clusters)
    limits, reason = interval(differences, clusters, DIFFERENCES)
    row: dict[str, Any] = {
        "n": len(differences),
        "difference": found.mean,
        "standard_error": found.error,
        "interval": limits,
        "no_interval": reason,
        "p": None,
        "detectable": None,
    }
    if limits is None:
        return row
    mean, error, n, degrees = found.mean, found.known_error, found.effective, found.degrees
    if found.constant:
        # of signs: all clusters are on one side
        p, degrees = 1.0 if limits[0] <= 0 <= limits[1] else 2 * 0.5**n, math.inf
    else:
        if yes_no:
            mean, error, n = adjusted_difference(differences, found)
        p = float(2 * stdtr(degrees, -abs(mean) / error))
    errors = quantile(1 - LEVEL, degrees) + float(stdtrit(degrees, POWER))
    if yes_no:
        changed, per_answer = float(np.mean(np.square(differences))), n / errors**2 + 1
        return row | {"p": p, "detectable": min(1.0, (1 + math.sqrt(1 + 4 * changed * per_answer)) / (2 * per_answer))}
    return row | {"p": p, "detectable": None if found.constant else errors * error}


def compare(ours: Evaluation, theirs: Evaluation) -> dict[str, Any]:
    """`rows`, one a suite, task and metric that both scored (ours minus theirs), and `omitted`, with reasons.

    A row whose answers are yes or no also has `better`, `worse` and `mcnemar_p`.
    """
    mine, others = per_item(ours.samples), per_item(theirs.samples)
    rows, omitted = [], {}
    for (suite, task, metric), values in mine.items():
        here, there = ours.definition(suite, task), theirs.definition(suite, task)
        changed = [
            f"{name}: {_shown(there[name])} there, {_shown(here[name])} here"
            for name in here
            if here[name] != there[name]
        ]
        old = others.get((suite, task, metric), {})
        common = sorted(values.keys() & old.keys())
        if not old:
            omitted[task] = "was not scored there"
        elif changed:
            omitted[task] = "; ".join(changed)
        elif len(common) < FEWEST_ITEMS:
            omitted[task] = f"{len(common)} items were scored in both, fewer than {FEWEST_ITEMS}"
        else:
            pairs = [(values[item][0], old[item][0]) for item in common]
            yes_no = all(value in (0.0, 1.0) for pair in pairs for value in pair)
            row = paired([new - before for new, before in pairs], [values[item][1] for item in common], yes_no)
            if yes_no:
                better = sum(new > before for new, before in pairs)
                worse = sum(new < before for new, before in pairs)
                row |= {"better": better, "worse": worse, "mcnemar_p": mcnemar(better, worse)}
            rows.append({"suite": suite, "task": task, "metric": metric} | row)
    return {"rows": rows, "omitted": omitted, "gold_bits_per_byte": compare_gold(ours, theirs)} | verdict(rows)


def compare_gold(ours: Evaluation, theirs: Evaluation) -> dict[str, Any] | None:
    """The mean difference in bits per byte of the right answers over the items that both scored by one definition, with
    its interval: finer than right and wrong, and of the models, not of what they were trained from. None: no item."""
    before = {(row["task"], row["item"]): row for row in theirs.samples.to_pylist()}
    same: dict[tuple[str, str], bool] = {}
    differences, clusters, suites = list[float](), list[str](), set[str]()
    for row in ours.samples.to_pylist():
        task = row["suite"], row["task"]
        if task not in same:
            same[task] = ours.definition(*task) == theirs.definition(*task)
        old = before.get((row["task"], row["item"]), {}).get("gold_logprob")
        if same[task] and old is not None and row["gold_logprob"] is not None:
            differences.append((old - row["gold_logprob"]) / (math.log(2) * row["gold_bytes"]))
            clusters.append(f"{row['suite']} {row['cluster']}")
            suites.add(row["suite"])
    if not differences:
        return None
    limits, reason = interval(differences, clusters, None)
    return {
        "n": len(differences),
        "suites": sorted(suites),
        "difference": float(np.mean(differences)),
        "interval": limits,
        "no_interval": reason,
    }


def verdict(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The `verdict` on one comparison, and what `regressed` and `improved`: suite and metric of significant rows.

    A row is as significant as the weaker of its tests; over all rows the p are Holm's, so that among runs that are
    equal at most 5 of 100 get a verdict at all.
    """
    tested = sorted(
        (max(row["p"], row.get("mcnemar_p", 0.0)), number) for number, row in enumerate(rows) if row["p"] is not None
    )
    found: dict[str, list[str]] = {"regressed": [], "improved": []}
    significant = []
    for place, (p, number) in enumerate(tested):
        if p * (len(tested) - place) > LEVEL:
            break
        significant.append(number)
    for row in (rows[number] for number in sorted(significant)):
        found["regressed" if row["difference"] < 0 else "improved"].append(f"{row['suite']} {row['metric']}")
    match bool(found["regressed"]), bool(found["improved"]):
        case True, True:
            result = Verdict.MIXED
        case True, False:
            result = Verdict.REGRESSED
        case False, True:
            result = Verdict.IMPROVED
        case _:
            result = Verdict.NOT_SEEN if tested else Verdict.NOTHING
    return {"verdict": result.value} | found


def regressed(against: list[dict[str, Any]]) -> list[str]:
    """What of a run is worse than yesterday's or than the best run, from the comparisons of its report; to be worse
    than the baseline is for some presets no news."""
    entries = [entry for entry in against if {"yesterday", "best"} & set(entry["roles"])]
    return sorted({name for entry in entries for name in entry.get("regressed", [])})


def detectable_alone(interval: list[float]) -> float:
    """The smallest difference from a fixed number (chance, a published score) that a score with this 95 % interval
    shows."""
    normal = quantile(1 - LEVEL)
    return (interval[1] - interval[0]) / 2 * (normal + float(stdtrit(math.inf, POWER))) / normal
