"""Do the intervals cover what they say, and do the tests raise the alarms they say: `make bench-coverage`.

Simulated evaluations with a known truth, through the functions that the report uses. Items of a cluster share a
chance of being right that is drawn from a beta distribution around the truth (`correlation` within clusters). The
cluster sizes are those of the real suites: 284 twin pairs among WinoGrande's 1,267 items, 8,407 sources of HellaSwag's
10,042. Beside ours: the interval and the test that most evaluations print, which take all items for independent.
"""

import argparse
import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from benchmarks.goals import print_goal
from eval.reporting.markdown import markdown_table
from eval.reporting.paired_tests import LEVEL, mcnemar, paired
from eval.reporting.stats import SCORES, interval, spread

HELLASWAG = {1: 7505, 2: 484, 3: 236, 4: 99, 5: 56, 6: 17, 7: 3, 8: 2, 9: 4, 10: 1}
WINOGRANDE = {1: 699, 2: 284}
Z95 = 1.96


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """One kind of evaluation."""

    name: str
    sizes: dict[int, int]
    """Number of clusters by items in each."""
    truth: float
    """Chance of a right answer."""
    correlation: float = 0.0
    """Of the answers within a cluster."""
    graded: bool = False
    """Values between 0 and 1, as mc2 and gold probability, instead of 0 or 1."""

    @property
    def clusters(self) -> np.ndarray:
        """The cluster of every item."""
        sizes = [size for size, count in self.sizes.items() for _ in range(count)]
        return np.repeat(np.arange(len(sizes)), sizes)


SCENARIOS = (
    Scenario(name="ARC-Easy", sizes={1: 2376}, truth=0.37),
    Scenario(name="WinoGrande, twins", sizes=WINOGRANDE, truth=0.5, correlation=0.5),
    Scenario(name="WinoGrande, twins of opposite answers", sizes=WINOGRANDE, truth=0.5, correlation=-0.5),
    Scenario(name="HellaSwag, sources", sizes=HELLASWAG, truth=0.29, correlation=0.3),
    Scenario(name="TruthfulQA mc2", sizes={1: 817}, truth=0.4, graded=True),
    Scenario(name="100 items of HellaSwag", sizes={1: 90, 2: 5}, truth=0.29, correlation=0.3),
    Scenario(name="near 0, independent", sizes={1: 400}, truth=0.02),
    Scenario(name="near 1, independent", sizes={1: 400}, truth=0.985),
    Scenario(name="near 0, clusters", sizes={2: 250}, truth=0.02, correlation=0.3),
    Scenario(name="near 1, clusters", sizes={2: 250}, truth=0.98, correlation=0.3),
    Scenario(name="mostly identical answers", sizes={1: 30}, truth=0.96),
    Scenario(name="mostly identical answers, many", sizes={1: 2376}, truth=0.0005),
    Scenario(name="12 clusters of 10", sizes={10: 12}, truth=0.4, correlation=0.2),
    Scenario(name="12 clusters of 10, graded", sizes={10: 12}, truth=0.4, correlation=0.2, graded=True),
    Scenario(name="8 clusters of 20", sizes={20: 8}, truth=0.4, correlation=0.2),
    Scenario(name="4 clusters of 30", sizes={30: 4}, truth=0.4, correlation=0.2),
    Scenario(name="one cluster of 200 beside 40 of 5", sizes={200: 1, 5: 40}, truth=0.4, correlation=0.2),
    Scenario(name="one cluster of 100 beside 100 of 5", sizes={100: 1, 5: 100}, truth=0.4, correlation=0.1),
    Scenario(name="3 clusters of 40 beside 60 of 4", sizes={40: 3, 4: 60}, truth=0.4, correlation=0.2),
    Scenario(name="10 clusters of 50 beside 10 of 5", sizes={50: 10, 5: 10}, truth=0.4, correlation=0.2),
    Scenario(name="the same, graded", sizes={50: 10, 5: 10}, truth=0.4, correlation=0.2, graded=True),
    Scenario(name="graded, near 0", sizes={1: 817}, truth=0.02, graded=True),
    Scenario(name="graded, near 1", sizes={1: 817}, truth=0.98, graded=True),
    Scenario(name="graded, near 0, twins", sizes=WINOGRANDE, truth=0.03, correlation=0.3, graded=True),
    Scenario(name="graded, near 0, 100 items", sizes={1: 100}, truth=0.02, graded=True),
    Scenario(name="graded, near 1, 100 items", sizes={1: 100}, truth=0.98, graded=True),
)


def answers(scenario: Scenario, generator: np.random.Generator) -> np.ndarray:
    """One simulated evaluation: a value for every item."""
    clusters, truth, correlation = scenario.clusters, scenario.truth, scenario.correlation
    if correlation < 0:  # of twins the second often has the other answer; at a truth of one half only
        first = generator.random(clusters[-1] + 1) < truth
        twin = np.concatenate([[False], clusters[1:] == clusters[:-1]])
        other = twin & (generator.random(len(clusters)) < -correlation)
        fresh = generator.random(len(clusters)) < truth
        return np.where(other, ~first[clusters], np.where(twin, fresh, first[clusters])).astype(float)
    chance = np.full(len(clusters), truth)
    if correlation > 0:
        spread = (1 - correlation) / correlation
        chance = generator.beta(truth * spread, (1 - truth) * spread, clusters[-1] + 1)[clusters]
    if scenario.graded:
        return generator.beta(2 * chance + 1e-9, 2 * (1 - chance) + 1e-9)
    return (generator.random(len(clusters)) < chance).astype(float)


Limits = list[float] | None


def covered(
    draw: Callable[[], np.ndarray], limits_of: Callable[[list[float]], Limits], truth: float, simulations: int
) -> dict[str, float]:
    """Share of evaluations whose interval cannot be given (`refused`), share of the others' 95 % intervals that hold
    the truth (`ours`), the same of the ordinary interval over all evaluations, and the mean half-width of ours."""
    holding, ordinary, widths = 0, 0, []
    for _ in range(simulations):
        values = draw()
        limits = limits_of(values.tolist())
        if limits is not None:
            holding += limits[0] <= truth <= limits[1]
            widths.append((limits[1] - limits[0]) / 2)
        ordinary += abs(values.mean() - truth) <= Z95 * values.std(ddof=1) / math.sqrt(len(values))
    return {
        "refused": 1 - len(widths) / simulations,
        "ours": holding / max(1, len(widths)),
        "ordinary": ordinary / simulations,
        "half_width": float(np.mean(widths)) if widths else math.nan,
    }


def coverage(scenario: Scenario, simulations: int, seed: int = 0) -> dict[str, float]:
    """`covered`, of the mean of one evaluation."""
    generator, clusters = np.random.default_rng(seed), scenario.clusters.tolist()
    return covered(
        lambda: answers(scenario, generator),
        lambda values: interval(values, clusters, SCORES)[0],
        scenario.truth,
        simulations,
    )


SHARED = 0.7
"""Share of items on which the two models of a pair cannot but agree."""


def alarms(scenario: Scenario, simulations: int, seed: int = 0) -> dict[str, float]:
    """Rates of p <= 0.05 for two models that are equally good (`paired`, `mcnemar`, and a test of two independent
    scores) among pairs that have one, of pairs that have none (`refused`), of one model that is better by what its run
    said it could have seen (`power`; 0.8 is stated), and that mean `detectable` difference."""
    generator = np.random.default_rng(seed)
    clusters, yes_no = scenario.clusters.tolist(), not scenario.graded
    counts = dict.fromkeys(("refused", "paired", "mcnemar", "unpaired"), 0)
    detectable = []
    for _ in range(simulations):
        one, two = _pair(scenario, generator)
        row = paired((one - two).tolist(), clusters, yes_no)
        if row["p"] is None:
            counts["refused"] += 1
            continue
        counts["paired"] += row["p"] <= LEVEL
        counts["mcnemar"] += mcnemar(int((one > two).sum()), int((one < two).sum())) <= LEVEL
        error = math.hypot(*(spread(values.tolist(), range(len(values))).known_error for values in (one, two)))
        counts["unpaired"] += abs(one.mean() - two.mean()) > Z95 * error
        detectable.append(row["detectable"])
    given = len(detectable)
    gain = float(np.mean(detectable)) if given else math.nan
    rates = {name: count / max(1, given) for name, count in counts.items()}
    better = [
        paired(_gained(*_pair(scenario, generator), gain, generator, yes_no).tolist(), clusters, yes_no)["p"]
        for _ in range(given)
    ]
    seen = [p <= LEVEL for p in better if p is not None]
    return rates | {
        "refused": counts["refused"] / simulations,
        "detectable": gain,
        "power": float(np.mean(seen)) if seen else math.nan,
    }


def _pair(scenario: Scenario, generator: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    one, two, same = (answers(scenario, generator) for _ in range(3))
    agree = generator.random(len(one)) < SHARED
    return np.where(agree, same, one), np.where(agree, same, two)


def _gained(one: np.ndarray, two: np.ndarray, gain: float, generator: np.random.Generator, yes_no: bool) -> np.ndarray:
    """Differences of two models, of which the first is better by `gain`: so many of its wrong answers turn right, or,
    where fewer are wrong, so many of the second one's right ones turn wrong; each graded answer gains as much."""
    if not yes_no:
        return np.clip(one - two + gain, -1, 1)
    better, worse = (one, two) if one.mean() < 0.5 else (1 - two, 1 - one)
    wrong = better == 0
    return np.where(wrong & (generator.random(len(one)) < gain / wrong.mean()), 1.0, better) - worse


@dataclass(frozen=True, kw_only=True)
class Changes:
    """A comparison of two models that differ on few items: shares of the items that are better and worse by a drawn
    amount, 1 for yes/no answers."""

    name: str
    items: int
    better: float
    worse: float
    graded: bool = False

    @property
    def truth(self) -> float:
        return (self.better - self.worse) * (0.5 if self.graded else 1.0)


CHANGES = (
    Changes(name="the same model twice", items=400, better=0.0, worse=0.0),
    Changes(name="one answer in 1,000 changes", items=400, better=0.0005, worse=0.0005),
    Changes(name="one in 100, 400 items", items=400, better=0.007, worse=0.003),
    Changes(name="one in 100, 2,376 items", items=2376, better=0.007, worse=0.003),
    Changes(name="3 in 100, all better", items=400, better=0.03, worse=0.0),
    Changes(name="one in five, 100 items", items=100, better=0.12, worse=0.08),
    Changes(name="graded, one in 100 changes", items=817, better=0.006, worse=0.004, graded=True),
    Changes(name="graded, one in 10 changes", items=817, better=0.06, worse=0.04, graded=True),
)


def difference_coverage(changes: Changes, simulations: int, seed: int = 0) -> dict[str, float]:
    """`covered`, of the paired difference; `ordinary` is Student's t."""
    generator, names = np.random.default_rng(seed), range(changes.items)
    shares = [changes.better, changes.worse, 1 - changes.better - changes.worse]

    def draw() -> np.ndarray:
        values = generator.choice([1.0, -1.0, 0.0], changes.items, p=shares)
        return values * generator.random(changes.items) if changes.graded else values

    return covered(
        draw, lambda values: paired(values, names, not changes.graded)["interval"], changes.truth, simulations
    )


def _cells(found: dict[str, float]) -> list[str | None]:
    """Refused, coverage of ours where most are given, of the ordinary interval, half-width."""
    given = found["refused"] < 0.5
    return [
        f"{100 * found['refused']:.1f}",
        f"{100 * found['ours']:.1f}" if given else None,
        f"{100 * found['ordinary']:.1f}",
        f"{100 * found['half_width']:.2f}" if given else None,
    ]


COLUMNS = ["cannot be given, %", "ours covers, %", "ordinary interval covers, %", "half-width of ours, points"]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=2000)
    simulations = parser.parse_args().simulations
    error = 100 * math.sqrt(0.95 * 0.05 / simulations)
    print(
        f"{simulations} simulated evaluations each (a coverage is known to ± {error:.1f} points); 95 % intervals are "
        "to cover 93 to 97 %, or not to be given.\n"
    )
    rows, shares = [], []
    for scenario in SCENARIOS:
        found = coverage(scenario, simulations)
        shares += [found["ours"]] if found["refused"] < 0.5 else []
        rows.append(
            [scenario.name, len(scenario.clusters), int(scenario.clusters[-1]) + 1, scenario.truth, *_cells(found)]
        )
    print(markdown_table(["evaluation", "items", "clusters", "truth", *COLUMNS], rows))
    print("\nDifferences of two models on the same items. Where hardly any answer changes, 0 is in every interval.\n")
    rows, near = [], []
    for changes in CHANGES:
        found = difference_coverage(changes, simulations)
        near += [found["ours"]] if found["refused"] < 0.5 else []
        rows.append([changes.name, changes.items, f"{100 * changes.truth:.2f}", *_cells(found)])
    print(markdown_table(["comparison", "items", "true difference, points", *COLUMNS], rows))
    print(
        f"\nTwo equal models that agree on {100 * SHARED:.0f} % of items by force: how often each test sees a "
        "difference at 5 %. McNemar's exact test takes items for independent and may stay below.\n"
    )
    rows, powers = [], []
    for scenario in SCENARIOS:
        found = alarms(scenario, simulations // 4)
        if found["refused"] > 0.5:
            rows.append([scenario.name, f"{100 * found['refused']:.1f}", *[None] * 5])
            continue
        powers.append(found["power"])
        exact = None if scenario.graded else f"{100 * found['mcnemar']:.1f}"
        rows.append(
            [
                scenario.name,
                f"{100 * found['refused']:.1f}",
                f"{100 * found['paired']:.1f}",
                exact,
                f"{100 * found['unpaired']:.1f}",
                f"{100 * found['detectable']:.2f}",
                f"{100 * found['power']:.0f}",
            ]
        )
    print(
        markdown_table(
            [
                "evaluation",
                "cannot be given, %",
                "paired test, %",
                "McNemar, %",
                "two independent scores, %",
                "detectable difference, points",
                "seen at that difference, %",
            ],
            rows,
        )
    )
    print()
    print_goal("lowest coverage of scores, %", 100 * min(shares), 93)
    print_goal("highest coverage of scores, %", 100 * max(shares), 97, at_most=True)
    print_goal("lowest coverage of differences, %", 100 * min(near), 93)
    print_goal("lowest power at the detectable difference, %", 100 * min(powers), 75)


if __name__ == "__main__":
    main()
