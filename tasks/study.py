"""The contamination study: planted copies of benchmark items, and what they did to the scores."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact

from eval.contamination.references import references
from eval.document_parquet import SCHEMA
from eval.reporting.contamination_study import effects, gains, render_study
from eval.reporting.figures import inline, study_figure
from eval.suites.suites import SUITES, chosen_items
from model.parsing import Bounds, ConfigError, check_fields
from tasks.benchmarks import Items
from tasks.evaluate import EvaluationConfig
from tasks.store.context import RunContext
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageError, StageResult, build_or_skip, fetch_outputs

VERSION = 1
STUDY_VERSION = 2


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Which items are planted, and how often."""

    suite: str = "arc_easy"
    """The suite whose items are planted."""
    items: Annotated[int, Bounds(ge=2)] = 100
    """How many of its scored items are planted."""
    copies: Annotated[int, Bounds(ge=0)] = 8
    """Copies of each. 0 is an A/A run: nothing planted, another seed."""
    seeds: Annotated[int, Bounds(ge=1)] = 1
    """Pairs of trainings."""

    def __post_init__(self) -> None:
        check_fields(self)
        if self.suite not in SUITES:
            raise ConfigError(f"unknown suite {self.suite!r}; known are {', '.join(SUITES)}")


def planted_items(config: StudyConfig, evaluation: EvaluationConfig) -> list[int]:
    """The items that are planted: a seeded half at most of those that are scored, ascending."""
    scored = chosen_items(SUITES[config.suite], evaluation.items_per_suite, evaluation.seed)
    if config.suite not in evaluation.suites or 2 * config.items > len(scored):
        raise StageError(
            f"{config.items} items of {config.suite} cannot be planted: {len(scored)} of them are scored in suites "
            f"{', '.join(evaluation.suites)}, and at least as many must stay to compare with"
        )
    return sorted(np.random.default_rng(evaluation.seed).choice(scored, config.items, replace=False).tolist())


def require_planted(config: StudyConfig, items: Items) -> None:
    """Raise StageError when the suite that is planted cannot be had."""
    if config.suite not in items.results:
        raise StageError(f"{config.suite} is to be planted, but {items.missing[config.suite]}")


@stage_task("plant")
def plant(
    config: StudyConfig, planted: list[int], documents: StageResult, items: Items, context: RunContext
) -> StageResult:
    """The corpus with copies of the items, one short document each. Outputs as of `download`."""
    literal = {"suite": config.suite, "items": planted, "copies": config.copies}
    inputs = {"documents": documents.digest, "items": items.results[config.suite].digest}
    stage = Stage(name="plant", version=VERSION, config=literal, inputs=inputs)

    def build(work: Path, out: Path) -> None:
        for path in fetch_outputs(documents, context).iterdir():
            (out / path.name).write_bytes(path.read_bytes())
        rows = references(items.folder(context, work / "benchmarks"), [config.suite])
        texts = {row.item: row.forms[0].text for row in rows if row.suite == config.suite}
        names = [(copy, item) for copy in range(config.copies) for item in planted]
        columns = {
            "id": [f"planted/{config.suite}:{item}#{copy}" for copy, item in names],
            "text": [texts[item] for _, item in names],
            "source": ["planted"] * len(names),
        }
        pq.write_table(pa.table(columns, schema=SCHEMA), out / "train_planted.parquet", compression="zstd")

    return build_or_skip(stage, context, build)


@stage_task("study")
def publish_study(
    config: StudyConfig,
    planted: list[int],
    with_copies: list[StageResult],
    without: list[StageResult],
    context: RunContext,
) -> str:
    """Compare the two arms. Outputs: study.json, study.md, study.png. Returns where the page is."""
    arms = {"with": with_copies, "without": without}
    inputs = {f"{arm} {seed}": result.digest for arm, results in arms.items() for seed, result in enumerate(results)}
    literal = {**asdict(config), "planted": planted}
    stage = Stage(name="study", version=STUDY_VERSION, config=literal, inputs=inputs)

    def build(_: Path, out: Path) -> None:
        tables = {arm: [_samples(result, context) for result in results] for arm, results in arms.items()}
        measured = effects(gains(tables["with"], tables["without"]), config.suite, planted)
        study: dict[str, Any] = {**literal, **measured}
        (out / "study.json").write_text(json.dumps(study, indent=1))
        (out / "study.md").write_text(render_study(study))
        (out / "study.png").write_bytes(study_figure(study["groups"]))

    result = build_or_skip(stage, context, build)
    folder = fetch_outputs(result, context)
    figure = inline("gains", (folder / "study.png").read_bytes())
    page = (folder / "study.md").read_text().replace("![gains](study.png)", figure)
    create_markdown_artifact(key="contamination-study", description="Gain from planted items", markdown=page)
    return f"{context.store.url}/{result.manifest.location(result.manifest.output('study.md'))}"


def _samples(result: StageResult, context: RunContext) -> pa.Table:
    return pq.read_table(fetch_outputs(result, context) / "samples.parquet")
