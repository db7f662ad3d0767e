"""Paired comparisons against scipy, what may be compared at all, verdicts, and the stated rates by simulation."""

import math
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pytest
from scipy.optimize import brentq
from scipy.stats import binomtest, poisson, ttest_rel

from benchmarks.scores.coverage import CHANGES, SCENARIOS, alarms, coverage, difference_coverage
from eval.reporting.ledger import earlier_runs
from eval.reporting.paired_tests import (
    POWER,
    Evaluation,
    compare,
    gold_probability,
    mcnemar,
    paired,
    per_item,
    regressed,
    verdict,
)
from eval.reporting.run_comparison import comparison_section
from eval.reporting.stats import StatsError
from eval.scoring.samples import SAMPLES_SCHEMA

SIMULATED = {scenario.name: scenario for scenario in SCENARIOS}


@pytest.mark.parametrize(
    "name",
    [
        "WinoGrande, twins of opposite answers",
        "near 1, clusters",
        "12 clusters of 10",
        "3 clusters of 40 beside 60 of 4",
        "the same, graded",
        "graded, near 0",
    ],
)
def test_intervals_cover_what_they_say(name):
    found = coverage(SIMULATED[name], 400)
    assert 0.93 <= found["ours"] <= 0.975 and found["refused"] < 0.1


def test_intervals_of_few_changed_answers_cover_what_they_say():
    named = {changes.name: changes for changes in CHANGES}
    for name in ("one in 100, 400 items", "3 in 100, all better"):
        assert difference_coverage(named[name], 300)["ours"] >= 0.93
    assert difference_coverage(named["the same model twice"], 1)["half_width"] == pytest.approx(3.69 / 400, rel=0.01)


def test_items_taken_for_independent_would_not_be_covered():
    assert coverage(SIMULATED["12 clusters of 10"], 100)["ordinary"] < 0.85


@pytest.mark.parametrize("name", ["12 clusters of 10", "near 0, independent", "12 clusters of 10, graded"])
def test_equal_models_alarm_and_detectable_differences_are_seen_as_stated(name):
    found = alarms(SIMULATED[name], 300)
    assert 0.002 <= found["paired"] <= 0.08
    assert found["mcnemar"] <= 0.07 or "clusters" in name
    assert 0.72 <= found["power"] <= 0.92


def test_mcnemar_and_the_paired_test_equal_scipys():
    for better, worse in [(0, 0), (1, 0), (7, 7), (3, 14), (121, 59), (700, 810), (5000, 4800)]:
        expected = binomtest(better, better + worse).pvalue if better + worse else 1.0
        assert mcnemar(better, worse) == pytest.approx(expected, rel=1e-9)
    generator = np.random.default_rng(0)
    one, two = generator.random(80), generator.random(80) - 0.1
    expected = ttest_rel(one, two)
    row = paired((one - two).tolist(), [str(item) for item in range(80)])
    assert row["p"] == pytest.approx(expected.pvalue)
    assert row["interval"] == pytest.approx(list(expected.confidence_interval(0.95)))


def test_differences_that_do_not_vary():
    names = [str(item) for item in range(40)]
    same, better = paired([0.0] * 40, names, True), paired([1.0] * 40, names, True)
    assert same["p"] == 1.0 and better["p"] < 1e-9
    assert same["interval"] == pytest.approx([-0.088, 0.088], abs=1e-3)
    assert better["interval"] == pytest.approx([0.823, 1.0], abs=1e-3)
    # McNemar's test needs 6 changes of one kind, and more so that there are 6 in 80 of 100 repetitions
    six = brentq(lambda mean: poisson.sf(5, mean) - POWER, 1, 30)
    assert paired([0.0] * 400, range(400), True)["detectable"] == pytest.approx(six / 400, rel=0.03)
    for equal in (0.0, 0.1, 0.01):
        graded = paired([equal] * 40, names)
        assert graded["detectable"] is None and (graded["p"] < 1e-9) == (equal == 0.1)
    few = paired([1.0] * 3 + [0.0] * 397, range(400), True)
    assert few["p"] > 0.05 and few["interval"][0] < 0 and few["detectable"] > six / 400
    alone = paired([1.0, 1.0], ["a", "a"])
    assert (alone["p"], alone["interval"], alone["no_interval"]) == (None, None, "the 2 items are one cluster")


def evaluation(right: list[float], items: range | None = None, **scores: object) -> Evaluation:
    items = items or range(len(right))
    rows = [
        dict.fromkeys(SAMPLES_SCHEMA.names)
        | {
            "suite": "winogrande",
            "task": "winogrande",
            "item": item,
            "acc": value,
            "gold": [0],
            "cluster": str(item),
            "choice_logprobs": [math.log(0.3 + 0.4 * value), math.log(0.7 - 0.4 * value)],
        }
        for item, value in zip(items, right)
    ]
    told = {"task_versions": {"winogrande": 1.0}, "num_fewshot": 0, "metric_versions": {"acc": 1}} | scores
    return Evaluation(samples=pa.Table.from_pylist(rows, SAMPLES_SCHEMA), scores=told, data={"winogrande": "d1"})


def test_a_worse_run_regresses_on_the_items_that_both_scored():
    generator = np.random.default_rng(1)
    before = (generator.random(400) < 0.8).astype(float)
    after = np.where(generator.random(400) < 0.15, 0.0, before)
    found = compare(evaluation(after.tolist()), evaluation(before[100:].tolist(), range(100, 400)))
    accuracy, gold = found["rows"]
    assert (accuracy["metric"], accuracy["n"], gold["metric"]) == ("acc", 300, "gold_probability")
    assert accuracy["difference"] == pytest.approx((after - before)[100:].mean())
    assert (accuracy["better"], accuracy["worse"]) == (0, int((after < before)[100:].sum()))
    assert gold["difference"] == pytest.approx(0.4 * accuracy["difference"])
    assert (found["verdict"], found["regressed"]) == ("regressed", ["winogrande acc", "winogrande gold_probability"])
    better = compare(evaluation(before.tolist()), evaluation(after.tolist()))
    assert better["verdict"] == "improved" and not better["regressed"]
    assert compare(evaluation(before.tolist()), evaluation(before.tolist()))["verdict"] == "no difference seen"


def test_only_the_same_thing_is_compared():
    one = evaluation([0.0, 1.0] * 50)
    for change, told in [
        ({"num_fewshot": 5}, "few-shot examples: 5 there, 0 here"),
        ({"scores": [{"task": "winogrande", "num_fewshot": 3}]}, "few-shot examples: 3 there, 0 here"),
        ({"task_versions": {"winogrande": 2.0}}, "task version: 2.0 there, 1.0 here"),
        ({"metric_versions": {"acc": 2}}, "metric versions: acc 2 there, acc 1 here"),
    ]:
        found = compare(one, evaluation([0.0, 1.0] * 50, **change))
        assert found["rows"] == [] and found["omitted"] == {"winogrande": told}
    found = compare(one, replace(one, data={"winogrande": "d2"}))
    assert found["omitted"] == {"winogrande": "data: d2 there, d1 here"}
    others = {"task_versions": {"arc_easy": 1.0}, "scores": [{"task": "arc_easy", "num_fewshot": 0}]}
    other = evaluation([], range(0), **others)  # an earlier run that scored fewer suites
    del other.scores["num_fewshot"]
    assert compare(one, other)["omitted"] == {"winogrande": "was not scored there"}
    few = compare(one, evaluation([1.0] * 29))
    assert few["omitted"] == {"winogrande": "29 items were scored in both, fewer than 30"}


def test_a_verdict_holds_over_all_rows_together():
    def row(p: float, mcnemar_p: float, difference: float) -> dict:
        return {"suite": "s", "metric": f"m{p}", "p": p, "mcnemar_p": mcnemar_p, "difference": difference}

    assert verdict([row(0.02, 0.02, -1), row(0.5, 0.5, 1), row(0.6, 0.6, 1)])["verdict"] == "no difference seen"
    assert verdict([row(0.01, 0.01, -1), row(0.5, 0.5, 1), row(0.6, 0.6, 1)])["regressed"] == ["s m0.01"]
    assert verdict([row(0.01, 0.3, -1)])["verdict"] == "no difference seen"
    assert verdict([row(0.01, 0.01, -1), row(0.02, 0.02, 1)])["verdict"] == "mixed"
    worse = verdict([row(0.01, 0.01, -1)])
    assert regressed([worse | {"roles": ["best"]}, worse | {"roles": ["yesterday"]}]) == ["s m0.01"]
    assert regressed([worse | {"roles": ["baseline"]}, {"roles": ["best"], "reason": "none"}]) == []


def test_scores_follow_from_the_samples_alone():
    assert gold_probability([math.log(0.2), math.log(0.6)], [0]) == pytest.approx(0.25)
    assert gold_probability([-1000.0, -1001.0, -1000.0], [0, 2]) == pytest.approx(2 / (2 + math.exp(-1)))
    with pytest.raises(StatsError, match="winogrande: acc of item 1 is nan, expected 0 to 1"):
        per_item(evaluation([1.0, math.nan]).samples)
    values = per_item(evaluation([1.0, 0.0]).samples)
    assert values["winogrande", "winogrande", "acc"] == {0: (1.0, "0"), 1: (0.0, "1")}
    gold = values["winogrande", "winogrande", "gold_probability"]
    assert [value for value, _ in gold.values()] == pytest.approx([0.7, 0.3])


def test_whom_a_run_is_compared_with():
    def row(run: str, preset: str, finished: str, bits: float, data: str = "d") -> dict:
        return {"run": run, "preset": preset, "finished": finished, "bits_per_byte": bits, "validation_data": data}

    rows = [
        row("a", "daily", "1", 0.9),
        row("b", "daily", "2", 1.0),
        row("c", "gpt2-124m", "3", 1.2),
        row("d", "mini-d2", "4", 0.5, "other"),
        row("me", "daily", "9", 0.1),
    ]
    found = earlier_runs(rows, "me", "daily", "d")
    assert [found[role]["run"] for role in ("yesterday", "best", "baseline")] == ["b", "a", "c"]
    assert earlier_runs(rows[-1:], "me", "daily", "d") == {
        "yesterday": "no earlier run of preset daily",
        "best": "no earlier run on the same validation data",
        "baseline": "no earlier run of preset gpt2-124m",
    }


def test_the_section_tells_what_was_compared_and_what_not():
    generator = np.random.default_rng(1)
    before = (generator.random(400) < 0.9).astype(float)
    found = compare(evaluation([0.0] * 200 + before[200:].tolist()), evaluation(before.tolist()))
    entry = {"roles": ["yesterday", "best"], "run": "r" * 64, "preset": "daily", "finished": "now", "commit": "c"}
    text = "\n".join(comparison_section([entry | found, {"roles": ["baseline"], "reason": "nobody"}], []))
    assert "**Against yesterday's run and the best run: regressed.**" in text
    assert "Regressed: winogrande acc, winogrande gold_probability." in text
    assert "| < 0.001 |" in text and "No comparison with the baseline: nobody." in text


def test_the_section_says_where_there_is_no_interval_and_why():
    right = [0.0, 1.0] * 30
    one = evaluation(right)
    alone = replace(one, samples=one.samples.set_column(12, "cluster", pa.array(["one"] * 60)))
    entry = {"roles": ["best"], "run": "r" * 64, "preset": "daily", "finished": "now", "commit": "c"}
    scores = [
        {"suite": "s", "metric": "a", "value": 0.5, "interval": [0.4, 0.6]},
        {"suite": "s", "metric": "b", "value": 0.0, "interval": None},
    ]
    text = "\n".join(comparison_section([entry | compare(alone, alone)], scores))
    # (1.960 + 0.842) / 1.960 of half the interval
    assert "a distance from chance of so many points (80 % power, two-sided 5 % test): s a 14.3." in text
    assert text.count("| cannot be given: the 60 items are one cluster | – |") == 2
    assert text.count("| cannot be given |\n") == 2 and "nothing to compare" in text
