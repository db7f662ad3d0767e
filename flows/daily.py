"""The daily run: from nothing to a contamination-checked report of a model it trained itself.

    download ─► contamination ─► tokenizer ─► shard ─► train ─► evaluate ──┐
                    ▲                                             ▲        ├─► report ─► ledger
    benchmarks ─────┴─────────────────────────────────────────────┴────────┘

A run that this machine cannot train is refused first (`tasks/feasibility.py`). Then each line of the flow is one stage.
A stage's result lives in the store under a key made of its configuration and the content of its inputs
(`tasks/store/stage.py`): what is there and intact is skipped, here and on any other machine that shares the store. Read
the stages in `tasks/`, the network in `model/`, scoring and statistics in `eval/`.

Run it with `daily-train run`, or start one from the Prefect UI after `daily-train up`.
"""

import os

from prefect import flow

from flows.config import (
    ContaminationChanges,
    DataChanges,
    EvaluationChanges,
    Execution,
    ExecutionForm,
    ModelChanges,
    Preset,
    ShardChanges,
    TokenizerChanges,
    TrainChanges,
    as_json,
    changes_of,
    compose,
    context_of,
    differs_from_preset,
    run_name,
)
from flows.prepare import prepare
from tasks.evaluate import evaluate_model
from tasks.preflight import check_run, rehearse_evaluation
from tasks.report import Published, publish_report
from tasks.store.run_states import ends_in_words
from tasks.train import train_model


@flow(name="daily-train", flow_run_name=run_name)
@ends_in_words(lambda published: published.report_path)
def daily_train(
    preset: Preset = Preset.laptop,
    train: TrainChanges = TrainChanges(),
    model: ModelChanges = ModelChanges(),
    data: DataChanges = DataChanges(),
    tokenizer: TokenizerChanges = TokenizerChanges(),
    shard: ShardChanges = ShardChanges(),
    contamination: ContaminationChanges = ContaminationChanges(),
    evaluation: EvaluationChanges = EvaluationChanges(),
    execution: ExecutionForm = Execution(),
) -> Published:
    """Train one text model from scratch, score it on five benchmarks, and prove what it has seen of them.

    Args:
        preset: The recipe to start from. `laptop` takes minutes on a CPU; `daily` is sized for 24 h on one H100/H200.
            In every section below an empty field keeps the preset's value.
        train: Budget, learning rates, schedule and seed.
        model: Size and components of the network.
        data: Where the documents come from.
        tokenizer: The vocabulary.
        shard: How tokens are cut into files.
        contamination: When a benchmark item counts as contaminated, and whether that is reported, ends the run, or
            drops the documents.
        evaluation: Suites, and how many items of each.
        execution: Store, workers, device and price. Part of no key; workers and device change results by rounding only.
    """
    changes = changes_of(
        train=train,
        model=model,
        data=data,
        tokenizer=tokenizer,
        shard=shard,
        contamination=contamination,
        evaluation=evaluation,
    )
    run = compose(preset, changes)
    context = context_of(execution, dict(os.environ))

    trainings = [(run.model, run.train)]
    check_run(trainings, run.tokenizer, run.evaluation, context)  # the machine, before anything is downloaded
    ready = prepare(run, context)  # download, benchmarks, contamination, tokenizer, shard
    rehearse_evaluation(run.evaluation, trainings, ready.vocabulary, ready.items, context)
    checkpoint = train_model(run.model, run.train, ready.shards, ready.vocabulary, ready.items, context)
    scores = evaluate_model(run.evaluation, checkpoint, ready.vocabulary, ready.items, context)
    stages = [ready.raw, ready.documents, ready.verdicts, ready.vocabulary, ready.shards, checkpoint, scores]
    return publish_report(preset.value, as_json(run), stages, ready.items, context, differs_from_preset(preset, run))
