"""Two designs on the same data: what their trainings say of each other."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

from prefect.artifacts import create_markdown_artifact

from eval.reporting.multiplier import Training, compare, render_comparison
from model.parsing import Bounds, ConfigError, check_fields
from tasks.store.context import RunContext
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageError, StageResult, build_or_skip, fetch_outputs
from tasks.train import read_metrics

VERSION = 1


@dataclass(frozen=True, kw_only=True)
class CompareConfig:
    """How often, and at which budgets, the designs are trained."""

    seeds: Annotated[int, Bounds(ge=1, le=20)] = 3
    """Seeds of each training; from two on there are intervals."""
    budgets: tuple[Annotated[float, Bounds(gt=0)], ...] = (0.5, 1.0, 2.0)
    """Shares of its own budget that the baseline is trained for; 1 must be one of them."""

    def __post_init__(self) -> None:
        check_fields(self)
        if 1 not in self.budgets or len(set(self.budgets)) != len(self.budgets):
            raise ConfigError(f"budgets {self.budgets} must be positive, different, and 1 must be one of them")


@stage_task("comparison")
def publish_comparison(
    names: tuple[str, str],
    baseline: dict[tuple[int, float], StageResult],
    candidate: dict[tuple[int, float], StageResult],
    context: RunContext,
) -> str:
    """Compare two arms of finished trainings by seed and budget. Outputs: comparison.json, comparison.md.
    Returns where the page is."""
    arms = {"baseline": baseline, "candidate": candidate}
    if len({result.manifest.inputs["shards"] for arm in arms.values() for result in arm.values()}) != 1:
        raise StageError(f"{names[0]} and {names[1]} were not trained on the same shards")
    inputs = {
        f"{arm} {seed} {budget}": result.digest
        for arm, results in arms.items()
        for (seed, budget), result in results.items()
    }
    stage = Stage(name="comparison", version=VERSION, config={"names": list(names)}, inputs=inputs)

    def build(_: Path, out: Path) -> None:
        trained = {
            arm: [_training(seed, budget, result, context) for (seed, budget), result in results.items()]
            for arm, results in arms.items()
        }
        comparison = {"names": list(names), **compare(**trained)}
        (out / "comparison.json").write_text(json.dumps(comparison, indent=1))
        (out / "comparison.md").write_text(render_comparison(comparison))

    result = build_or_skip(stage, context, build)
    page = (fetch_outputs(result, context) / "comparison.md").read_text()
    create_markdown_artifact(key="comparison", description="Candidate against baseline", markdown=page)
    return f"{context.store.url}/{result.manifest.location(result.manifest.output('comparison.md'))}"


def _training(seed: int, budget: float, result: StageResult, context: RunContext) -> Training:
    done = read_metrics(fetch_outputs(result, context))[-1]
    return Training(seed=seed, budget=budget, flops=done["flops"], bits_per_byte=done["bits_per_byte"])
