"""The study's answer on samples with a known effect, and what contaminated items do to scores."""

import math

import numpy as np
import pyarrow as pa
import pytest

from eval.reporting.contamination_study import PLANTED, REST, effects, gains, render_study
from eval.reporting.stats import leak_effects

N = 200


def samples(accuracy: np.ndarray, bits: np.ndarray, suite: str = "arc_easy") -> pa.Table:
    count = len(accuracy)
    return pa.table(
        {
            "suite": [suite] * count,
            "task": [suite] * count,
            "item": range(count),
            "acc": accuracy,
            **dict.fromkeys(("acc_norm", "mc1", "mc2"), pa.nulls(count, pa.float64())),
            "gold_logprob": -bits * math.log(2) * 20,
            "gold_bytes": [20] * count,
            "cluster": map(str, range(count)),
        }
    )


def two_runs(generator: np.random.Generator, effect: float, drift: float) -> tuple[pa.Table, pa.Table]:
    """Samples with and without copies: every item drifts, the first half of them gains `effect` on top."""
    bits = generator.normal(2.5, 0.5, N)
    change = drift + generator.normal(0, 0.2, N) + np.where(np.arange(N) < N // 2, effect, 0.0)
    accuracy = (generator.random(N) < 0.25).astype(float)
    return samples(accuracy, bits - change), samples(accuracy, bits)


def test_a_planted_effect_is_found_and_a_common_drift_is_not_taken_for_one():
    treated, control = two_runs(np.random.default_rng(0), effect=0.5, drift=0.3)
    found = effects(gains([treated], [control]), "arc_easy", range(N // 2))
    answer = found["planted_over_rest"]["gold_bits_per_byte"]
    assert answer["difference"] == pytest.approx(0.5, abs=0.1) and answer["excludes_zero"]
    by_group = {row["group"]: row for row in found["groups"] if row["measure"] == "gold_bits_per_byte"}
    assert by_group[PLANTED]["gain"] == pytest.approx(0.8, abs=0.1)
    assert by_group[REST]["gain"] == pytest.approx(0.3, abs=0.1)


def test_without_an_effect_the_interval_covers_zero_as_often_as_it_says():
    generator, covered = np.random.default_rng(1), 0
    for _ in range(300):
        treated, control = two_runs(generator, effect=0.0, drift=0.3)
        found = effects(gains([treated], [control]), "arc_easy", range(N // 2))
        covered += not found["planted_over_rest"]["gold_bits_per_byte"]["excludes_zero"]
    assert 0.92 <= covered / 300 <= 0.98


def test_runs_that_scored_different_items_are_refused():
    treated, control = two_runs(np.random.default_rng(2), 0.5, 0.0)
    with pytest.raises(ValueError, match="different items"):
        gains([treated], [pa.concat_tables([control.slice(1), control.slice(0, 1)])])


def test_the_page_says_what_an_a_a_run_is():
    treated, control = two_runs(np.random.default_rng(3), 0.0, 0.0)
    found = effects(gains([treated], [control]), "arc_easy", range(N // 2))
    page = render_study({"suite": "arc_easy", "copies": 0, "seeds": 1, "planted": list(range(N // 2)), **found})
    assert "A/A run" in page and "includes zero" in page


def verdicts(contaminated: int) -> pa.Table:
    words = ["contaminated"] * contaminated + ["clean"] * (N - contaminated)
    return pa.table({"suite": ["arc_easy"] * N, "item": list(range(N)), "verdict": words})


def test_the_effect_of_contaminated_items_has_an_interval_and_a_random_control():
    generator = np.random.default_rng(4)
    accuracy = np.concatenate([generator.random(80) < 0.7, generator.random(N - 80) < 0.3]).astype(float)
    [row] = leak_effects(samples(accuracy, np.ones(N)), verdicts(80))
    assert row["metric"] == "acc" and not row["too_few"]
    assert row["difference"] == pytest.approx(accuracy[:80].mean() - accuracy[80:].mean())
    assert row["gain"] == pytest.approx(accuracy.mean() - accuracy[80:].mean())
    low, high = row["difference_interval"]
    assert 0 < low < row["difference"] < high
    assert row["random"][0] < 0 < row["random"][1] < row["difference"]  # far outside what chance makes


def test_few_contaminated_items_say_nothing_and_none_give_no_row():
    table = samples(np.ones(N), np.ones(N))
    assert leak_effects(table, verdicts(29))[0]["too_few"]
    assert leak_effects(table, verdicts(0)) == []
