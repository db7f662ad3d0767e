"""Stage 6: the five official suites through lm-eval, in a child process of its own."""

from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext
from pydantic import BaseModel, ConfigDict, Field

from eval.markup import markdown_table
from eval.suites import SUITES
from tasks.benchmarks import Items
from tasks.process import run_module
from tasks.stage import STAGE_TASK, Place, Result, Stage, finish, materialise, read_json

VERSION = 2
BATCH_TOKENS = 8192


class EvaluationConfig(BaseModel):
    """What the model is scored on."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    suites: tuple[str, ...] = Field(description="Which of " + ", ".join(SUITES) + ".")
    items_per_suite: int | None = Field(
        None, ge=1, description="Score a fixed, seeded subset of so many items of each suite. Empty: all of them."
    )
    seed: int = Field(ge=0, description="Chooses the subset.")

    def model_post_init(self, _: Any) -> None:
        for name in self.suites:
            if name not in SUITES:
                raise ValueError(f"unknown suite {name!r}; known are {', '.join(SUITES)}")


@task(name="evaluate", **STAGE_TASK)
def evaluate_model(config: EvaluationConfig, model: Result, tokenizer: Result, items: Items, place: Place) -> Result:
    """Score the checkpoint. Outputs: scores.json, samples.parquet (one row an item and lm-eval task)."""
    inputs = {
        "checkpoint": model.manifest.output("model.safetensors").sha256,
        "architecture": model.manifest.output("config.json").sha256,
        "tokenizer": tokenizer.manifest.output("tokenizer.json").sha256,
        **items.digests,
    }
    literal = {"items_per_suite": config.items_per_suite, "seed": config.seed, "suites": sorted(items.results)}
    stage = Stage(name="evaluate", version=VERSION, config=literal, inputs=inputs)

    def build(work: Path, out: Path) -> None:
        run_module(
            "eval.harness",
            {
                "checkpoint": str(materialise(model, place)),
                "tokenizer": str(materialise(tokenizer, place) / "tokenizer.json"),
                "benchmarks": str(items.folder(place, work / "benchmarks")),
                **literal,
                "out": str(out),
                "execution": {"device": place.device, "threads": place.workers, "batch_tokens": BATCH_TOKENS},
            },
            work,
            progress_reporter(),
            place.device_lock,
        )

    result = finish(stage, place, build)
    create_markdown_artifact(key="scores", description="Benchmark scores", markdown=describe(result, place))
    return result


def progress_reporter() -> Any:
    """A listener for the harness's events that keeps a progress artifact current."""
    if TaskRunContext.get() is None:
        return lambda event: None
    artifact = create_progress_artifact(0.0, key="evaluation-progress", description="Requests scored")

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["total"]:
            update_progress_artifact(artifact, 100 * event["done"] / event["total"])

    return report


def describe(result: Result, place: Place) -> str:
    """The stage's artifact: every score with its standard error and chance level."""
    found = read_json(result, place, "scores.json")
    header = ["suite", "task", "metric", "n", "score", "standard error", "chance", "gold bits per byte"]
    fields = ["suite", "task", "metric", "n", "value", "standard_error", "chance", "gold_bits_per_byte"]
    rows = [[score[field] for field in fields] for score in found["scores"]]
    how = f"lm-eval {found['lm_eval']}, {found['num_fewshot']}-shot, task versions {found['task_versions']}."
    return "\n\n".join([how, markdown_table(header, rows)])
