"""Everything before training: documents, benchmark items, contamination check, tokenizer, shards.

It is the first part of `flows/daily.py`, and on its own the deployment `prepare-data`: what is prepared there, a later
run with the same settings finds done.
"""

import os
from dataclasses import dataclass, replace
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
from flows.forms import NOTHING, Fields, PresetChoice, titled
from tasks.benchmarks import Items, fetch_benchmarks
from tasks.config import Mode
from tasks.contamination import check_contamination, drop_contaminated
from tasks.download import download
from tasks.shard import build_shards
from tasks.store.context import RunContext
from tasks.store.run_states import ends_in_words
from tasks.store.stage import StageResult
from tasks.tokenizer import build_tokenizer


@dataclass(frozen=True)
class Prepared:
    """What a training needs, and what the report tells of it."""

    raw: StageResult
    documents: StageResult
    items: Items
    verdicts: StageResult
    vocabulary: StageResult
    shards: StageResult


def prepare(run: RunConfig, context: RunContext) -> Prepared:
    """The stages before training, in order."""
    items = fetch_benchmarks(run.evaluation.suites, context, run.evaluation.num_fewshot)  # small: first
    documents = raw = download(run.data, context)
    verdicts = check_contamination(run.contamination, documents, items, context)
    if run.contamination.mode is Mode.FILTER:
        documents = drop_contaminated(documents, verdicts, context)
        verdicts = check_contamination(replace(run.contamination, mode=Mode.REFUSE), documents, items, context)
    vocabulary = build_tokenizer(run.tokenizer, documents, context)
    shards = build_shards(run.shard, documents, vocabulary, context)
    return Prepared(raw, documents, items, verdicts, vocabulary, shards)


FORMS = FormsOfRun(presets=("smoke", "laptop", "daily"), first=("data.source", "evaluation.suites", "execution.store"))


@flow(name="prepare-data", flow_run_name=run_name)
@ends_in_words(lambda _: None)
def prepare_data(
    preset: Annotated[Preset, PresetChoice(), titled("Preset")] = Preset.laptop,
    first: Annotated[Fields, FORMS.first, titled("What people change first")] = NOTHING,
    execution: Annotated[Execution, FORMS.execution, titled("Advanced: where it runs", **NOT_GIVEN)] = Execution(),
    data: Annotated[Fields, FORMS.section("data"), titled("Advanced: data")] = NOTHING,
    tokenizer: Annotated[Fields, FORMS.section("tokenizer"), titled("Advanced: tokenizer")] = NOTHING,
    shard: Annotated[Fields, FORMS.section("shard"), titled("Advanced: shards")] = NOTHING,
    contamination: Annotated[Fields, FORMS.section("contamination"), titled("Advanced: contamination")] = NOTHING,
    evaluation: Annotated[Fields, FORMS.section("evaluation"), titled("Advanced: benchmarks")] = NOTHING,
    more: Annotated[str, FURTHER, titled("Further changes (JSON)")] = "",
) -> None:
    """Download, check for contamination, train the tokenizer and write the shards; nothing is trained.

    Args:
        preset: The recipe whose data is prepared.
        first: An empty field keeps the preset's value.
        execution: Workers and folders. They change no result.
        data: Documents from another source: fill in one of the three.
        tokenizer: The vocabulary.
        shard: How tokens are cut into files.
        contamination: When a benchmark item counts as contaminated, and what follows.
        evaluation: The suites whose items are looked for.
        more: What no field can say, such as null: {"tokenizer.vocab_size": null}.
    """
    changes = changes_of(
        first, more, data=data, tokenizer=tokenizer, shard=shard, contamination=contamination, evaluation=evaluation
    )
    prepare(compose(preset, changes), context_of(execution_of(execution, first), dict(os.environ)))
