"""Paired comparisons against scipy, what may be compared at all, verdicts, and the stated rates by simulation."""

import math
from dataclasses import replace
from typing import Any

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
    compare_gold,
    gold_probability,
    mcnemar,
    paired,
    per_item,
    regressed,
    verdict,
)
from eval.reporting.run_comparison import comparison_section, difference_of_runs
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


def ledger_row(run: str, preset: str, finished: str, bits: float, data: str = "d", **more: Any) -> dict[str, Any]:
    stages = {"train": run, "evaluate": run}
    facts = {"preset": preset, "finished": finished, "bits_per_byte": bits, "validation_data": data, "stages": stages}
    return {"run": run, **facts} | more


def test_whom_a_run_is_compared_with():
    rows = [
        ledger_row("a", "daily", "1", 0.9),
        ledger_row("b", "daily", "2", 1.0),
        ledger_row("c", "gpt2-124m", "3", 1.2),
        ledger_row("d", "mini-d2", "4", 0.5, "other"),
        ledger_row("e", "mini-d2", "5", 0.4, validation_tokens=7),
        ledger_row("f", "daily", "6", 0.1, stages={"train": "me", "evaluate": "me"}),
        ledger_row("me", "daily", "9", 0.1),
    ]
    ours = rows[-1] | {"validation_tokens": 8}
    found = earlier_runs(rows, ours)
    assert {role: row["run"] for role, row in found.items()} == {
        "last": "c",
        "yesterday": "b",  # not its own earlier report
        "best": "a",  # not one that was validated on fewer tokens
        "baseline": "c",
    }
    same_data = "no earlier run on the same validation data"
    assert earlier_runs(rows[-1:], ours) == {
        "last": same_data,
        "yesterday": "no earlier run of preset daily",
        "best": same_data,
        "baseline": "no earlier run of preset gpt2-124m",
    }


def repeated(spread: float, designs: int, seeds: int) -> list[dict[str, Any]]:
    """Rows of designs of any level, each trained with several seeds, with this standard deviation."""
    generator = np.random.default_rng(2)
    facts = {"validation_tokens": 8}
    return [
        ledger_row(f"{design} {seed}", "daily", "1", bits, design=str(design), seed=seed, **facts)
        for design in range(designs)
        for seed, bits in enumerate(generator.normal(2 + design, spread, seeds))
    ]


def test_the_interval_between_two_runs_comes_from_trainings_that_were_repeated():
    """It covers zero in 95 of 100 pairs that differ by chance alone, however few trainings it is made of."""
    generator = np.random.default_rng(3)
    covered = []
    for _ in range(1500):
        store = repeated(0.0, designs=3, seeds=3)
        store = [row | {"bits_per_byte": generator.normal(1, 0.01)} for row in store]
        ours, theirs = (ledger_row(name, "daily", "2", generator.normal(1, 0.01)) for name in "xy")
        low, high = difference_of_runs(ours, theirs, store)["interval"]
        covered.append(low <= 0 <= high)
    assert 0.93 < np.mean(covered) < 0.97


def test_no_interval_is_made_up():
    ours, theirs = ledger_row("x", "daily", "2", 1.0), ledger_row("y", "daily", "1", 1.5)
    assert difference_of_runs(ours, theirs, [ours, theirs]) == {"difference": -0.5, "interval": None, "seeds": None}
    few = difference_of_runs(ours, theirs, [*repeated(0.1, designs=5, seeds=2), *repeated(0.1, 1, 1)])
    assert few["interval"] is None and few["seeds"]["degrees"] == 5 and few["seeds"]["designs"] == 5
    other = [row | {"validation_tokens": 9} for row in repeated(0.1, designs=4, seeds=4)]
    of_other_tokens = difference_of_runs(ours | {"validation_tokens": 8}, theirs, other)
    assert of_other_tokens["seeds"] is None
    same_seed = [row | {"seed": 1} for row in repeated(0.1, designs=4, seeds=4)]
    assert difference_of_runs(ours, theirs, same_seed)["seeds"] is None


def test_bits_per_byte_of_the_right_answers_are_paired_by_item():
    generator = np.random.default_rng(4)
    bits = generator.normal(3, 1, 200)
    gain = generator.normal(0.2, 0.1, 200)

    def of(values: np.ndarray) -> Evaluation:
        one = evaluation([0.0] * len(values))
        names = one.samples.column_names
        for name, column in (("gold_logprob", -values * math.log(2) * 10), ("gold_bytes", [10] * len(values))):
            place = names.index(name)
            column = pa.array(column).cast(one.samples.schema.field(place).type)
            one = replace(one, samples=one.samples.set_column(place, name, column))
        return one

    found = compare_gold(of(bits - gain), of(bits))
    assert found is not None and found["n"] == 200
    assert found["difference"] == pytest.approx(-gain.mean()) and found["interval"][1] < -0.15
    assert compare_gold(replace(of(bits), data={"winogrande": "other"}), of(bits)) is None


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
