"""Do the intervals cover what they say, and do the tests raise the alarms they say: `make bench-coverage`.

Simulated evaluations with a known truth, through the functions that the report uses. Items of a cluster share a
chance of being right that is drawn from a beta distribution around the truth (`correlation` within clusters). The
cluster sizes are those of the real suites: 284 twin pairs among WinoGrande's 1,267 items, 8,407 sources of HellaSwag's
10,042. Beside ours: the interval and the test that most evaluations print, which take all items for independent.
"""

import argparse
import math
from dataclasses import dataclass

import numpy as np

from eval.markup import markdown_table
from eval.paired import LEVEL, mcnemar, paired
from eval.stats import standard_error, summary

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
    Scenario(name="12 clusters of 10", sizes={10: 12}, truth=0.4, correlation=0.2),
    Scenario(name="12 clusters of 10, graded", sizes={10: 12}, truth=0.4, correlation=0.2, graded=True),
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


def coverage(scenario: Scenario, simulations: int, seed: int = 0) -> dict[str, float]:
    """Share of evaluations whose 95 % interval holds the truth, ours and the ordinary one, and the mean half-width."""
    generator = np.random.default_rng(seed)
    clusters, ours, ordinary, widths = scenario.clusters.tolist(), 0, 0, []
    for _ in range(simulations):
        values = answers(scenario, generator).tolist()
        low, high = summary(values, clusters)["interval"]
        ours += low <= scenario.truth <= high
        widths.append((high - low) / 2)
        ordinary += abs(float(np.mean(values)) - scenario.truth) <= Z95 * standard_error(values)
    return {"ours": ours / simulations, "ordinary": ordinary / simulations, "half_width": float(np.mean(widths))}


SHARED = 0.7
"""Share of items on which the two models of a pair cannot but agree."""


def alarms(scenario: Scenario, simulations: int, seed: int = 0) -> dict[str, float]:
    """Rates of p <= 0.05 for two models that are equally good (`paired`, `mcnemar`, and a test of two independent
    scores), and for one that is better by what its run said it could have seen (`power`; 0.8 is stated)."""
    generator = np.random.default_rng(seed)
    clusters = scenario.clusters.tolist()
    counts = dict.fromkeys(("paired", "mcnemar", "unpaired", "power"), 0)
    detectable = []
    for _ in range(simulations):
        one, two, same = (answers(scenario, generator) for _ in range(3))
        agree = generator.random(len(clusters)) < SHARED
        one, two = np.where(agree, same, one), np.where(agree, same, two)
        row = paired((one - two).tolist(), clusters)
        counts["paired"] += row["p"] <= LEVEL
        counts["mcnemar"] += mcnemar(int((one > two).sum()), int((one < two).sum())) <= LEVEL
        error = math.hypot(standard_error(one), standard_error(two))
        counts["unpaired"] += abs(one.mean() - two.mean()) > Z95 * error
        detectable.append(row["detectable"])
    for _ in range(simulations):
        one, two, same = (answers(scenario, generator) for _ in range(3))
        agree = generator.random(len(clusters)) < SHARED
        differences = np.where(agree, 0.0, one - two)
        # the same errors around another mean: what an equal gain on every item would be
        row = paired((differences + np.mean(detectable)).tolist(), clusters)
        counts["power"] += row["p"] <= LEVEL
    return {name: count / simulations for name, count in counts.items()} | {"detectable": float(np.mean(detectable))}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--simulations", type=int, default=500)
    simulations = parser.parse_args().simulations
    print(f"{simulations} simulated evaluations each; 95 % intervals are to cover 93 to 97 %.\n")
    rows = []
    for scenario in SCENARIOS:
        found = coverage(scenario, simulations)
        counts = [len(scenario.clusters), scenario.clusters[-1] + 1]
        rows.append([scenario.name, *map(int, counts), scenario.truth, f"{100 * found['ours']:.1f}",
                     f"{100 * found['ordinary']:.1f}", f"{100 * found['half_width']:.2f}"])
    header = ["evaluation", "items", "clusters", "truth", "ours covers, %", "ordinary interval covers, %"]
    print(markdown_table([*header, "half-width of ours, points"], rows))
    print(f"\nTwo equal models that agree on {100 * SHARED:.0f} % of items by force: how often each test sees a "
          "difference at 5 %. McNemar's exact test takes items for independent and may stay below.\n")
    rows = []
    for scenario in SCENARIOS:
        found = alarms(scenario, simulations)
        exact = None if scenario.graded else f"{100 * found['mcnemar']:.1f}"
        rows.append([scenario.name, f"{100 * found['paired']:.1f}", exact, f"{100 * found['unpaired']:.1f}",
                     f"{100 * found['detectable']:.2f}", f"{100 * found['power']:.0f}"])
    print(markdown_table(["evaluation", "paired test, %", "McNemar, %", "two independent scores, %",
                          "detectable difference, points", "seen at that difference, %"], rows))


if __name__ == "__main__":
    main()
