"""Is an idea a compute multiplier? The same data, two designs, several seeds, and an interval.

The candidate is another preset, or the baseline's with changes. Documents, vocabulary and shards are the baseline's for
both, so that losses compare. The baseline is trained at several budgets, each with its whole schedule: the compute
multiplier is read off those. Every training is a stage of the store: what one comparison trained, the next finds done.
"""

import dataclasses
import os

from prefect import flow

from flows.config import (
    CompareForm,
    DataChanges,
    Execution,
    ExecutionForm,
    ModelChanges,
    Preset,
    RunConfig,
    TrainChanges,
    changes_of,
    compose,
    context_of,
    run_name,
)
from model.network.config import ConfigError
from model.training.config import TrainConfig
from tasks.comparison import CompareConfig, publish_comparison
from tasks.download import download
from tasks.preflight import check_run
from tasks.shard import build_shards
from tasks.store.run_states import ends_in_words
from tasks.store.stage import StageResult
from tasks.tokenizer import build_tokenizer
from tasks.train import train_model

Recipes = dict[tuple[int, float], TrainConfig]
"""By seed and share of the budget."""


@flow(name="compare", flow_run_name=run_name)
@ends_in_words(lambda page: page)
def compare_designs(
    preset: Preset = Preset.mini_d2,
    candidate: Preset | None = None,
    train: TrainChanges = TrainChanges(),
    model: ModelChanges = ModelChanges(),
    data: DataChanges = DataChanges(),
    compare: CompareForm = CompareConfig(),
    execution: ExecutionForm = Execution(),
) -> str:
    """Train a baseline and a candidate on the same data and report the paired difference and the compute multiplier.

    Args:
        preset: The baseline. Data, vocabulary and shards are its own for both.
        candidate: The candidate's preset. Empty: the baseline's.
        train: Changes to the candidate's budget, learning rates and schedule.
        model: Changes to the candidate's network.
        data: Where the documents of both come from. An empty field keeps the baseline's value.
        compare: Seeds, and the budgets that the baseline is trained for.
        execution: Store, workers, device and price. Part of no key; workers and device change results by rounding only.
    """
    if changes_of(train=train)["train"].get("seed") is not None:
        raise ConfigError("train.seed has no effect: both designs have the baseline's seeds, compare.seeds of them")
    baseline = compose(preset, changes_of(data=data))
    other = compose(candidate or preset, changes_of(train=train, model=model))
    context = context_of(execution, dict(os.environ))

    def recipe(run: RunConfig, seed: int, budget: float) -> TrainConfig:
        unit = run.train.budget_unit
        amount = type(getattr(run.train, unit))(getattr(run.train, unit) * budget)
        return dataclasses.replace(run.train, seed=baseline.train.seed + seed, **{unit: amount})

    seeds = range(compare.seeds)
    candidate_recipes = {(seed, 1.0): recipe(other, seed, 1.0) for seed in seeds}
    baseline_recipes = {
        (seed, budget): recipe(baseline, seed, budget) for seed in seeds for budget in sorted(compare.budgets)
    }
    trainings = [
        *((other.model, train) for train in candidate_recipes.values()),
        *((baseline.model, train) for train in baseline_recipes.values()),
    ]
    check_run(trainings, baseline.tokenizer, None, context)

    documents = download(baseline.data, context)
    vocabulary = build_tokenizer(baseline.tokenizer, documents, context)
    shards = build_shards(baseline.shard, documents, vocabulary, context)

    def trained(run: RunConfig, recipes: Recipes) -> dict[tuple[int, float], StageResult]:
        return {
            which: train_model(run.model, train, shards, vocabulary, None, context) for which, train in recipes.items()
        }

    candidates, baselines = trained(other, candidate_recipes), trained(baseline, baseline_recipes)
    names = (preset.value, f"{(candidate or preset).value} {as_changes(train, model)}".strip())
    return publish_comparison(names, baselines, candidates, context)


def as_changes(train: TrainChanges, model: ModelChanges) -> str:
    """The candidate's changes in words."""
    changes = changes_of(train=train, model=model)
    return ", ".join(
        f"{name}.{field}={'null' if value is None else value}"
        for name, fields in changes.items()
        for field, value in fields.items()
    )
