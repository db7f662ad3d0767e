"""Standard errors against simulation, intervals against textbook values, scores apart by verdict."""

import math

import numpy as np
import pyarrow as pa
import pytest
from scipy.stats import binom

from eval.reporting.stats import (
    DIFFERENCES,
    SCORES,
    StatsError,
    adjusted_difference,
    clustered_mean,
    clustered_standard_error,
    constant_interval,
    difference_of_means,
    interval,
    mid_p_interval,
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


def test_errors_and_degrees_of_unequal_clusters_are_those_of_the_jackknife():
    sizes = [1, 2, 3, 5, 30]
    clusters = np.repeat(range(5), sizes)
    values = np.random.default_rng(0).random(len(clusters))
    without = np.array([values[clusters != cluster].mean() for cluster in range(5)])
    jackknife = math.sqrt(4 / 5 * float(((without - values.mean()) ** 2).sum()))
    found = clustered_mean(values.tolist(), clusters.tolist())
    assert found.error == pytest.approx(jackknife, rel=1e-12)
    # of a quadratic form e' A e of independent items: 2 E^2 / variance = trace(AB)^2 / trace((AB)^2)
    share = np.array(sizes) / sum(sizes)
    product = (np.diag(sizes) - np.outer(sizes, share)) / (1 - share) ** 2
    assert found.degrees == pytest.approx(np.trace(product) ** 2 / np.trace(product @ product))
    assert clustered_mean([0.0, 1.0] * 6, list("aabbccddeeff")).degrees == pytest.approx(5)


def test_intervals_have_their_published_limits():
    # Newcombe 1998, Statistics in Medicine 17, p. 857, table I: methods 3, 5 (at no success) and 6
    assert wilson_interval(15, 148) == pytest.approx((0.0624, 0.1605), abs=1e-4)
    assert wilson_interval(0, 20) == pytest.approx((0, 0.1611), abs=1e-4)
    assert constant_interval(0.0, 20, SCORES) == pytest.approx((0, 0.1684), abs=1e-4)
    assert mid_p_interval(81, 263) == pytest.approx((0.2544, 0.3658), abs=1e-4)
    assert mid_p_interval(15, 148) == pytest.approx((0.0601, 0.1581), abs=1e-4)
    assert mid_p_interval(1, 29) == pytest.approx((0.0017, 0.1585), abs=1e-4)
    for function in (wilson_interval, mid_p_interval):
        with pytest.raises(StatsError, match="5 successes of 4"):
            function(5, 4)
    # the same volume, p. 873, table II: 56 of 70 less 48 of 80, method 10, which takes Wilson's limits alone
    parts = [[(float(item < right), item) for item in range(n)] for right, n in ((56, 70), (48, 80))]
    assert difference_of_means(*parts, SCORES)[1] == pytest.approx([0.0524, 0.3339], abs=5e-3)
    # adjusted Wald interval of 20 and 6 changes among 150: (20 - 6) / 152 and sqrt((28 - 14^2 / 152) / 152^2)
    values = [1.0] * 20 + [-1.0] * 6 + [0.0] * 124
    mean, error, _ = adjusted_difference(values, clustered_mean(values, range(150)))
    assert (mean, error) == pytest.approx((14 / 152, math.sqrt(28 - 14**2 / 152) / 152), rel=1e-9)
    # in 10 clusters Student's quantile of 9 degrees of freedom around them
    clusters = np.random.default_rng(0).permutation(150) % 10
    low, high = interval(values, clusters.tolist(), DIFFERENCES)[0]
    mean, error, _ = adjusted_difference(values, clustered_mean(values, clusters.tolist()))
    assert (low, high) == pytest.approx((mean - 2.2622 * error, mean + 2.2622 * error), rel=1e-4)


@pytest.mark.parametrize("n", [30, 150])
def test_yes_no_intervals_cover_at_every_share(n):
    limits = np.array([interval([1.0] * right + [0.0] * (n - right), range(n), SCORES)[0] for right in range(n + 1)])
    shares = np.linspace(0.0002, 0.5, 400)
    inside = (limits[:, :1] <= shares) & (shares <= limits[:, 1:])
    covered = (binom.pmf(np.arange(n + 1)[:, None], n, shares) * inside).sum(axis=0)
    assert covered.min() > 0.93 and covered[shares * n > 10].max() < 0.975


def few(values: list[float], names: list | None = None, bounds: tuple | None = SCORES) -> tuple:
    return interval(values, names or range(len(values)), bounds)


def test_no_interval_is_empty_or_leaves_out_why_there_is_none():
    assert few([]) == (None, "there are no items") and few([1.0]) == (None, "there is one item")
    assert few([1.0, 0.0], ["a", "a"]) == (None, "the 2 items are one cluster")
    assert few([2.0, 2.0], bounds=None) == (None, "the values do not vary")
    answers = [0.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 1.0]
    large = few(answers * 50, [0] * 200 + [1 + item // 5 for item in range(200)])
    assert large == (None, "41 clusters, the largest with 50 % of the items, are too few")
    assert few(answers * 15, [item // 30 for item in range(120)])[1].startswith("4 clusters")
    assert few([0.01] * 99 + [0.9]) == (None, "a few of the 100 items decide the mean")
    assert few([0.0] * 99 + [0.4], bounds=DIFFERENCES)[0] is None
    # equal values: at most 3.7 in as many others, anywhere within the bounds
    for value, bounds in [(0.0, SCORES), (1.0, SCORES), (0.5, SCORES), (0.0, DIFFERENCES), (1.0, DIFFERENCES)]:
        (low, high), _ = few([value] * 400, bounds=bounds)
        assert bounds[0] <= low <= value <= high <= bounds[1]
        assert high - low == pytest.approx((bounds[1] - bounds[0]) * 3.69 / 400, rel=0.01)
    tiny = np.random.default_rng(0).random(400) * 1e-3
    for noise in (1e-6 * tiny, tiny):  # equal but for rounding, and not
        low, high = few((0.3 + noise).tolist())[0]
        assert (high - low > 5e-3) == (noise is not tiny) and low < 0.3 + noise.mean() < high
    twins, _ = few([0.0, 1.0] * 50, [item // 2 for item in range(100)])  # always one of two: no spread to go by
    assert twins == pytest.approx([0.5 - 3.69 / 100, 0.5 + 3.69 / 100], abs=2e-3)


@pytest.mark.parametrize("value", [math.nan, math.inf, 1.5, -0.5])
def test_a_value_that_is_no_score_is_refused(value):
    with pytest.raises(StatsError, match=r"expected (a finite number|0\.0 to 1\.0)"):
        few([0.0, value, 1.0])


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
    with pytest.raises(StatsError, match="t: acc of item 1 is nan, expected 0 to 1"):
        scores_by_verdict(_samples([1.0, math.nan]), _verdicts(["clean", "clean"]))
    with pytest.raises(StatsError, match="item 1 of s"):
        scores_by_verdict(_samples([1.0, 0.0]), _verdicts(["clean"]))
