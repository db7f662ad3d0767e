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
from typing import Annotated

from prefect import flow

from flows.config import (
    FURTHER,
    NOT_GIVEN,
    Execution,
    FormsOfRun,
    Preset,
    as_json,
    changes_of,
    compose,
    context_of,
    differs_from_preset,
    execution_of,
    run_name,
)
from flows.forms import NOTHING, Fields, PresetChoice, titled
from flows.prepare import prepare
from tasks.evaluate import evaluate_model
from tasks.preflight import check_run, rehearse_evaluation
from tasks.report import Published, publish_report
from tasks.store.run_states import ends_in_words
from tasks.train import train_model

FORMS = FormsOfRun(
    presets=("smoke", "laptop", "daily"),
    first=(
        "execution.note",
        "train.tokens",
        "train.gpu_hours",
        "train.learning_rate",
        "train.optimizer",
        "train.seed",
        "data.source",
        "execution.store",
    ),
)


@flow(name="daily-train", flow_run_name=run_name)
@ends_in_words(lambda published: published.report_path)
def daily_train(
    preset: Annotated[Preset, PresetChoice(), titled("Preset")] = Preset.laptop,
    first: Annotated[Fields, FORMS.first, titled("What people change first")] = NOTHING,
    execution: Annotated[Execution, FORMS.execution, titled("Advanced: where it runs", **NOT_GIVEN)] = Execution(),
    train: Annotated[Fields, FORMS.section("train"), titled("Advanced: training")] = NOTHING,
    model: Annotated[Fields, FORMS.section("model"), titled("Advanced: model")] = NOTHING,
    data: Annotated[Fields, FORMS.section("data"), titled("Advanced: data")] = NOTHING,
    tokenizer: Annotated[Fields, FORMS.section("tokenizer"), titled("Advanced: tokenizer")] = NOTHING,
    shard: Annotated[Fields, FORMS.section("shard"), titled("Advanced: shards")] = NOTHING,
    contamination: Annotated[Fields, FORMS.section("contamination"), titled("Advanced: contamination")] = NOTHING,
    evaluation: Annotated[Fields, FORMS.section("evaluation"), titled("Advanced: benchmarks")] = NOTHING,
    more: Annotated[str, FURTHER, titled("Further changes (JSON)")] = "",
) -> Published:
    """Train one text model from scratch, score it on five benchmarks, and prove what it has seen of them.

    Args:
        preset: The recipe to start from. smoke takes a minute on a CPU, laptop a few; daily is sized for 24 h on one
            H100/H200.
        first: An empty field keeps the preset's value.
        execution: Workers, device and price. Part of no key; workers and device change results by rounding only.
        train: Budget, learning rates and schedule. An empty field keeps the preset's value.
        model: Size and components of the network.
        data: Documents from another source: fill in one of the three.
        tokenizer: The vocabulary.
        shard: How tokens are cut into files.
        contamination: When a benchmark item counts as contaminated, and what follows.
        evaluation: Suites, and how many items of each.
        more: What no field can say, such as null: {"model.softcap": null}.
    """
    changes = changes_of(
        first,
        more,
        train=train,
        model=model,
        data=data,
        tokenizer=tokenizer,
        shard=shard,
        contamination=contamination,
        evaluation=evaluation,
    )
    run = compose(preset, changes)
    context = context_of(execution_of(execution, first), dict(os.environ))

    trainings = [(run.model, run.train)]
    check_run(trainings, run.tokenizer, run.evaluation, context)  # the machine, before anything is downloaded
    ready = prepare(run, context)  # download, benchmarks, contamination, tokenizer, shard
    rehearse_evaluation(run.evaluation, trainings, ready.vocabulary, ready.items, context)
    checkpoint = train_model(run.model, run.train, ready.shards, ready.vocabulary, ready.items, context)
    scores = evaluate_model(run.evaluation, checkpoint, ready.vocabulary, ready.items, context)
    stages = [ready.raw, ready.documents, ready.verdicts, ready.vocabulary, ready.shards, checkpoint, scores]
    return publish_report(preset.value, as_json(run), stages, ready.items, context, differs_from_preset(preset, run))
