"""The question of the contaminated-model papers: what do copies of benchmark items in the text do to the scores?

The same small model is trained with and without planted copies of some items. The gain is reported on those items, on
the rest of their suite and on the other suites, with intervals. Every stage is the daily run's own, kept in the store.

Run it with `daily-train study`, or start `contamination-study` from the Prefect UI.
"""

import dataclasses
import os

from prefect import flow

from flows.config import (
    DataChanges,
    EvaluationChanges,
    Execution,
    ExecutionForm,
    ModelChanges,
    Preset,
    StudyForm,
    TrainChanges,
    changes_of,
    compose,
    context_of,
    run_name,
)
from tasks.benchmarks import fetch_benchmarks
from tasks.download import download
from tasks.evaluate import evaluate_model
from tasks.preflight import check_run, rehearse_evaluation
from tasks.shard import build_shards
from tasks.store.run_states import ends_in_words
from tasks.store.stage import StageResult
from tasks.study import StudyConfig, plant, planted_items, publish_study, require_planted
from tasks.tokenizer import build_tokenizer
from tasks.train import train_model

SEED_OF_THE_OTHER_ARM = 1000


@flow(name="contamination-study", flow_run_name=run_name)
@ends_in_words(lambda page: page)
def contamination_study(
    preset: Preset = Preset.study,
    study: StudyForm = StudyConfig(),
    train: TrainChanges = TrainChanges(),
    model: ModelChanges = ModelChanges(),
    data: DataChanges = DataChanges(),
    evaluation: EvaluationChanges = EvaluationChanges(),
    execution: ExecutionForm = Execution(),
) -> str:
    """Train the same model with and without planted copies of benchmark items, and report the gain.

    Args:
        preset: The recipe of both arms; `study` takes a few minutes on a CPU.
        study: Which items are planted, how often, and how many pairs of trainings. No copies make an A/A run.
        train: Budget, learning rates, schedule and seed. An empty field keeps the preset's value.
        model: Size and components of the network. An empty field keeps the preset's value.
        data: Where the documents come from. An empty field keeps the preset's value.
        evaluation: Suites, and how many items of each. An empty field keeps the preset's value.
        execution: Store, workers, device and price. Part of no key; workers and device change results by rounding only.
    """
    run = compose(preset, changes_of(train=train, model=model, data=data, evaluation=evaluation))
    context = context_of(execution, dict(os.environ))
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
