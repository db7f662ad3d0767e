"""Standard errors against simulation, intervals against textbook values, scores apart by verdict."""

import math

import numpy as np
import pyarrow as pa
import pytest

from eval.stats import (
    StatsError,
    clustered_standard_error,
    normal_interval,
    scores_by_verdict,
    standard_error,
    wilson_interval,
)


def test_independent_values_have_the_ordinary_standard_error():
    values = [0.0, 1.0, 1.0, 0.0, 1.0]
    assert standard_error(values) == pytest.approx(np.std(values, ddof=1) / math.sqrt(5))
    assert standard_error([1.0]) is None


def test_clustered_error_is_the_spread_of_simulated_means():
    generator = np.random.default_rng(0)
    clusters = np.repeat(np.arange(150), 4)
    means, clustered, naive = [], [], []
    for _ in range(400):
        values = (generator.normal(size=150)[clusters] + generator.normal(size=600) > 0).astype(float)
        means.append(values.mean())
        clustered.append(clustered_standard_error(values, clusters.tolist()))
        naive.append(standard_error(values))
    truth = np.std(means)
    assert np.mean(clustered) == pytest.approx(truth, rel=0.1)
    assert np.mean(naive) < 0.85 * truth


def test_a_single_cluster_says_nothing():
    assert clustered_standard_error([0.0, 1.0], ["a", "a"]) is None
    with pytest.raises(StatsError, match="2 values, but 1 clusters"):
        clustered_standard_error([0.0, 1.0], ["a"])


def test_intervals():
    assert normal_interval(0.5, 0.1) == pytest.approx((0.304, 0.696), abs=1e-3)
    # Newcombe 1998, Statistics in Medicine 17, table I: 15 of 148
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20)[0] == 0 and wilson_interval(0, 20)[1] == pytest.approx(0.1611, abs=1e-4)
    with pytest.raises(StatsError, match="5 successes of 4"):
        wilson_interval(5, 4)


def _samples(values: list[float], clusters: list[str] | None = None) -> pa.Table:
    n = len(values)
    empty = pa.array([None] * n, pa.float64())
    return pa.table(
        {
            "suite": ["s"] * n,
            "task": ["t"] * n,
            "item": list(range(n)),
            "cluster": clusters or [str(item) for item in range(n)],
            "acc": values,
            "acc_norm": empty,
            "mc1": empty,
            "mc2": empty,
        }
    )


def _verdicts(verdicts: list[str]) -> pa.Table:
    return pa.table({"suite": ["s"] * len(verdicts), "item": range(len(verdicts)), "verdict": verdicts})


def test_scores_apart_for_clean_and_contaminated_items():
    samples = _samples([1.0] * 10 + [0.0] * 30 + [1.0])
    verdicts = _verdicts(["contaminated"] * 10 + ["clean"] * 30 + ["uncheckable"])
    rows = {row["items"]: row for row in scores_by_verdict(samples, verdicts)}
    assert [rows[name]["n"] for name in ("all", "clean", "contaminated")] == [41, 30, 10]
    assert (rows["clean"]["value"], rows["contaminated"]["value"]) == (0.0, 1.0)
    assert not rows["clean"]["too_few"] and rows["contaminated"]["too_few"]
    low, high = rows["clean"]["interval"]
    assert low == 0.0 and 0.05 < high < 0.2
    assert rows["all"]["metric"] == "acc" and len(rows) == 3


def test_clusters_widen_the_interval():
    values = [0.0, 0.0, 1.0, 1.0] * 20
    verdicts = _verdicts(["clean"] * 80)
    paired = scores_by_verdict(_samples(values, [str(item // 2) for item in range(80)]), verdicts)[0]
    alone = scores_by_verdict(_samples(values), verdicts)[0]
    assert paired["standard_error"] == pytest.approx(alone["standard_error"] * math.sqrt(2), rel=0.02)
    assert paired["interval"][1] > alone["interval"][1]


def test_no_contaminated_item_and_missing_verdict():
    rows = scores_by_verdict(_samples([1.0, 0.0]), _verdicts(["clean", "clean"]))
    assert rows[2]["n"] == 0 and rows[2]["value"] is None and rows[2]["interval"] is None
    with pytest.raises(StatsError, match="item 1 of s"):
        scores_by_verdict(_samples([1.0, 0.0]), _verdicts(["clean"]))
