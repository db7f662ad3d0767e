"""The daily run: from nothing to a contamination-checked report of a model it trained itself.

    download ─► contamination ─► tokenizer ─► shard ─► train ─► evaluate ──┐
                    ▲                                             ▲        ├─► report ─► ledger
    benchmarks ─────┴─────────────────────────────────────────────┴────────┘

Each line of the flow is one stage. A stage's result lives in the store under a key made of its configuration and
the content of its inputs (`tasks/stage.py`): what is there and intact is skipped, here and on any other machine
that shares the store. Read the stages in `tasks/`, the network in `model/`, scoring and statistics in `eval/`.

Run it with `daily-train run`, or start one from the Prefect UI after `daily-train up`.
"""

import os
from dataclasses import replace

from prefect import flow
from prefect.runtime import flow_run

from flows.config import (
    ContaminationChanges,
    DataChanges,
    EvaluationChanges,
    Execution,
    ModelChanges,
    Preset,
    ShardChanges,
    TokenizerChanges,
    TrainChanges,
    as_json,
    changes_of,
    compose,
    place_of,
)
from tasks import provenance
from tasks.benchmarks import fetch_benchmarks
from tasks.contamination import Mode, check_contamination, drop_contaminated
from tasks.download import download
from tasks.evaluate import evaluate_model
from tasks.report import Published, publish_report
from tasks.shard import build_shards
from tasks.tokenizer import build_tokenizer
from tasks.train import train_model


def run_name() -> str:
    """Date, preset and commit, so that a list of runs can be read."""
    started = flow_run.get_scheduled_start_time()
    return f"{started:%Y-%m-%d %H:%M} {flow_run.get_parameters()['preset']} {provenance.commit()[:8]}"


@flow(name="daily-train", flow_run_name=run_name)
def daily_train(
    preset: Preset = Preset.laptop,
    train: TrainChanges = TrainChanges(),
    model: ModelChanges = ModelChanges(),
    data: DataChanges = DataChanges(),
    tokenizer: TokenizerChanges = TokenizerChanges(),
    shard: ShardChanges = ShardChanges(),
    contamination: ContaminationChanges = ContaminationChanges(),
    evaluation: EvaluationChanges = EvaluationChanges(),
    execution: Execution = Execution(),
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
        execution: Store, workers, device and price: where the run happens, never what it is.
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
    place = place_of(execution, dict(os.environ))

    documents = raw = download(run.data, place)
    items = fetch_benchmarks(run.evaluation.suites, place, run.evaluation.num_fewshot)
    verdicts = check_contamination(run.contamination, documents, items, place)
    if run.contamination.mode is Mode.FILTER:
        documents = drop_contaminated(documents, verdicts, place)
        verdicts = check_contamination(replace(run.contamination, mode=Mode.REFUSE), documents, items, place)
    vocabulary = build_tokenizer(run.tokenizer, documents, place)
    shards = build_shards(run.shard, documents, vocabulary, place)
    checkpoint = train_model(run.model, run.train, shards, vocabulary, place)
    scores = evaluate_model(run.evaluation, checkpoint, vocabulary, items, place)
    stages = [raw, documents, verdicts, vocabulary, shards, checkpoint, scores]
    return publish_report(preset.value, as_json(run), stages, items, place)
