"""The question of the contaminated-model papers: what do copies of benchmark items in the text do to the scores?

The same small model is trained with and without planted copies of some items. The gain is reported on those items, on
the rest of their suite and on the other suites, with intervals. Every stage is the daily run's own, kept in the store.

Run it with `daily-train study`, or start `contamination-study` from the Prefect UI.
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
    changes_of,
    compose,
    context_of,
    execution_of,
    run_name,
)
from flows.forms import NOTHING, Fields, PresetChoice, Settings, titled
from tasks.benchmarks import fetch_benchmarks
from tasks.config import StudyConfig
from tasks.download import download
from tasks.evaluate import evaluate_model
from tasks.preflight import check_run, rehearse_evaluation
from tasks.shard import build_shards
from tasks.store.run_states import ends_in_words
from tasks.store.stage import StageResult
from tasks.study import plant, planted_items, publish_study, require_planted
from tasks.tokenizer import build_tokenizer
from tasks.train import train_model

SEED_OF_THE_OTHER_ARM = 1000


FORMS = FormsOfRun(
    presets=("study", "smoke", "laptop"),
    first=("train.tokens", "train.learning_rate", "train.seed", "data.source", "execution.store"),
)
STUDY = Settings("study", StudyConfig)


@flow(name="contamination-study", flow_run_name=run_name)
@ends_in_words(lambda page: page)
def contamination_study(
    preset: Annotated[Preset, PresetChoice(), titled("Preset")] = Preset.study,
    study: Annotated[StudyConfig, STUDY, titled("The study", **NOT_GIVEN)] = StudyConfig(),
    first: Annotated[Fields, FORMS.first, titled("What people change first")] = NOTHING,
    execution: Annotated[Execution, FORMS.execution, titled("Advanced: where it runs", **NOT_GIVEN)] = Execution(),
    train: Annotated[Fields, FORMS.section("train"), titled("Advanced: training")] = NOTHING,
    model: Annotated[Fields, FORMS.section("model"), titled("Advanced: model")] = NOTHING,
    data: Annotated[Fields, FORMS.section("data"), titled("Advanced: data")] = NOTHING,
    evaluation: Annotated[Fields, FORMS.section("evaluation"), titled("Advanced: benchmarks")] = NOTHING,
    more: Annotated[str, FURTHER, titled("Further changes (JSON)")] = "",
) -> str:
    """Train the same model with and without planted copies of benchmark items, and report the gain.

    Args:
        preset: The recipe of both arms; study takes a few minutes on a CPU.
        study: Which items are planted, how often, and how many pairs of trainings. No copies make an A/A run.
        first: An empty field keeps the preset's value.
        execution: Workers, device and price. Part of no key; workers and device change results by rounding only.
        train: Learning rates and schedule. An empty field keeps the preset's value.
        model: Size and components of the network.
        data: Documents from another source: fill in one of the three.
        evaluation: Suites, and how many items of each.
        more: What no field can say, such as null: {"model.softcap": null}.
    """
    changes = changes_of(first, more, train=train, model=model, data=data, evaluation=evaluation)
    run = compose(preset, changes)
    context = context_of(execution_of(execution, first), dict(os.environ))
    planted = planted_items(study, run.evaluation)
    trainings = [(run.model, run.train)] * (2 * study.seeds)
    check_run(trainings, run.tokenizer, run.evaluation, context)

    items = fetch_benchmarks(run.evaluation.suites, context, run.evaluation.num_fewshot)
    require_planted(study, items)
    documents = download(run.data, context)
    vocabulary = build_tokenizer(run.tokenizer, documents, context)
    rehearse_evaluation(run.evaluation, trainings, vocabulary, items, context)
    with_copies = plant(study, planted, documents, items, context) if study.copies else documents
    shift = 0 if study.copies else SEED_OF_THE_OTHER_ARM

    def scores(corpus: StageResult, seed: int) -> StageResult:
        shards = build_shards(run.shard, corpus, vocabulary, context)
        recipe = dataclasses.replace(run.train, seed=run.train.seed + seed)
        checkpoint = train_model(run.model, recipe, shards, vocabulary, items, context)
        return evaluate_model(run.evaluation, checkpoint, vocabulary, items, context)

    treated = [scores(with_copies, seed + shift) for seed in range(study.seeds)]
    control = [scores(documents, seed) for seed in range(study.seeds)]
    return publish_study(study, planted, treated, control, context)
