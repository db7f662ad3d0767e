"""Is an idea a compute multiplier? The same data, two designs, several seeds, and an interval.

The candidate is another preset, or the baseline's with changes. Documents, vocabulary and shards are the baseline's for
both, so that losses compare. The baseline is trained at several budgets, each with its whole schedule: the compute
multiplier is read off those. Every training is a stage of the store: what one comparison trained, the next finds done.
"""

import dataclasses
import os
from typing import Annotated

from prefect import flow

from flows.config import (
    FURTHER,
    NOT_GIVEN,
    Execution,
    FormsOfRun,
    Preset,
    RunConfig,
    changes_of,
    compose,
    context_of,
    execution_of,
    run_name,
)
from flows.forms import NOTHING, Fields, OptionalPresetChoice, PresetChoice, Settings, titled
from model.network.config import ConfigError
from model.training.config import TrainConfig
from tasks.comparison import publish_comparison
from tasks.config import CompareConfig
from tasks.download import download
from tasks.preflight import check_run
from tasks.shard import build_shards
from tasks.store.run_states import ends_in_words
from tasks.store.stage import StageResult
from tasks.tokenizer import build_tokenizer
from tasks.train import train_model

Recipes = dict[tuple[int, float], TrainConfig]
"""By seed and share of the budget."""


FORMS = FormsOfRun(
    presets=("mini-d2", "mini-d4", "smoke", "daily"),
    first=("train.tokens", "train.learning_rate", "train.optimizer", "data.source", "execution.store"),
    hidden=("train.seed",),
)
COMPARE = Settings("compare", CompareConfig)


@flow(name="compare", flow_run_name=run_name)
@ends_in_words(lambda page: page)
def compare_designs(
    preset: Annotated[Preset, PresetChoice(), titled("Baseline")] = Preset.mini_d2,
    candidate: Annotated[Preset | None, OptionalPresetChoice(), titled("Candidate")] = None,
    compare: Annotated[CompareConfig, COMPARE, titled("The comparison", **NOT_GIVEN)] = CompareConfig(),
    first: Annotated[Fields, FORMS.first, titled("What people change first")] = NOTHING,
    execution: Annotated[Execution, FORMS.execution, titled("Advanced: where it runs", **NOT_GIVEN)] = Execution(),
    train: Annotated[Fields, FORMS.section("train"), titled("Advanced: the candidate's training")] = NOTHING,
    model: Annotated[Fields, FORMS.section("model"), titled("Advanced: the candidate's model")] = NOTHING,
    data: Annotated[Fields, FORMS.section("data"), titled("Advanced: data of both")] = NOTHING,
    more: Annotated[str, FURTHER, titled("Further changes (JSON)")] = "",
) -> str:
    """Train a baseline and a candidate on the same data and report the paired difference and the compute multiplier.

    Args:
        preset: The baseline. Data, vocabulary and shards are its own for both.
        candidate: The candidate's preset. Empty: the baseline's.
        compare: Seeds, and the budgets that the baseline is trained for.
        first: Budget, rate and optimizer of the candidate; data and store of both. Empty: as the preset.
        execution: Workers, device and price. Part of no key; workers and device change results by rounding only.
        train: Changes to the candidate's learning rates and schedule.
        model: Changes to the candidate's network.
        data: Documents from another source: fill in one of the three.
        more: What no field can say, such as null: {"model.softcap": null}.
    """
    changes = changes_of(first, more, train=train, model=model, data=data)
    of_both, of_candidate = {"data": changes.pop("data")}, changes
    if of_candidate["train"].get("seed") is not None:
        raise ConfigError("train.seed has no effect: both designs have the baseline's seeds, compare.seeds of them")
    baseline = compose(preset, of_both)
    other = compose(candidate or preset, of_candidate)
    context = context_of(execution_of(execution, first), dict(os.environ))

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
    names = (preset.value, f"{(candidate or preset).value} {as_changes(of_candidate)}".strip())
    return publish_comparison(names, baselines, candidates, context)


def as_changes(changes: dict[str, Fields]) -> str:
    """The candidate's changes in words."""
    return ", ".join(
        f"{name}.{field}={'null' if value is None else value}"
        for name, fields in changes.items()
        for field, value in fields.items()
    )
