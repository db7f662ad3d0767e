"""Stage 6: the five official suites through lm-eval, in a child process of its own.

`evaluate_folder` scores any model with the same adapter: a finished model of ours, or what `transformers` opens.
"""

import dataclasses
import json
import os
import tempfile
from dataclasses import dataclass
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any

from prefect.artifacts import create_markdown_artifact, create_progress_artifact, update_progress_artifact
from prefect.context import TaskRunContext

from eval.hub import unreachable
from eval.reporting.score_table import evaluation_scores
from eval.scoring.precision import Precision, precision_of
from eval.suites.suites import METRIC_VERSIONS, SUITES, ZERO_SHOT, Shots
from model.errors import regular_file
from model.parsing import Bounds, ConfigError, check_fields
from tasks.benchmarks import Items, find_items
from tasks.runtime.child_process import ProcessError, run_module
from tasks.runtime.devices import scoring_processes, threads_per_process
from tasks.runtime.logs import logger
from tasks.runtime.progress import CountingProgress, ServerUpdates, artifact_id
from tasks.sources.document_sources import COMMIT
from tasks.store.context import RunContext
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs, read_json

VERSION = 4


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What the model is scored on."""

    suites: tuple[str, ...]
    """Which of arc_easy, arc_challenge, hellaswag, winogrande, truthfulqa."""
    items_per_suite: Annotated[int | None, Bounds(ge=1)] = None
    """Score a fixed, seeded subset of so many items of each suite. Empty: all of them."""
    seed: Annotated[int, Bounds(ge=0)]
    """Chooses the subset."""
    num_fewshot: Shots = ZERO_SHOT
    """Solved examples before each question, by suite; 0 by default. Public leaderboards: arc_challenge 25, hellaswag
    10, winogrande 5. They are drawn from the train split, which the wheel does not carry."""
    precision: Precision = Precision.FP32
    """Arithmetic of the scores: `fp32`; `tf32`: the same with products in TF32, on a GPU that has it; `bf16`: weights
    and activations in bf16. Scores of different precisions are not compared with each other."""

    def __post_init__(self) -> None:
        check_fields(self)
        for name in self.suites:
            if name not in SUITES:
                raise ConfigError(f"unknown suite {name!r}; known are {', '.join(SUITES)}")
        if not self.suites or len(set(self.suites)) < len(self.suites):
            raise ConfigError(f"suites are {list(self.suites)}: expected at least one, and each once")
        for name, count in vars(self.num_fewshot).items():
            if count and name not in self.suites:
                raise ConfigError(f"num_fewshot.{name} is {count}, but {name} is not one of the suites")
            if count > (most := SUITES[name].train_rows):
                raise ConfigError(f"num_fewshot.{name} is {count}, but its train split has {most} examples")


@stage_task("evaluate")
def evaluate_model(
    config: EvaluationConfig, model: StageResult, tokenizer: StageResult, items: Items, context: RunContext
) -> StageResult:
    """Score the checkpoint. Outputs: scores.json, samples.parquet (one row an item and lm-eval task)."""
    inputs = {
        "checkpoint": model.manifest.output("model.safetensors").sha256,
        "architecture": model.manifest.output("config.json").sha256,
        "tokenizer": tokenizer.manifest.output("tokenizer.json").sha256,
        **items.digests,
        **{name: result.digest for name, result in items.shots.items()},
    }
    literal = scoring_settings(config, items)
    stage = Stage(name="evaluate", version=VERSION, config=literal | {"versions": defining_versions()}, inputs=inputs)

    def build(work: Path, out: Path) -> dict[str, Any]:
        processes = scoring_processes(context)
        evaluation = {
            "checkpoint": str(fetch_outputs(model, context)),
            "tokenizer": str(fetch_outputs(tokenizer, context) / "tokenizer.json"),
            "benchmarks": str(items.folder(context, work / "benchmarks")),
            **literal,
            "out": str(out),
            "execution": {"device": context.device, "threads": threads_per_process(processes, context)},
        }
        with ServerUpdates() as tell:
            report, log, done = progress_reporter(tell), CountingProgress("evaluate", "requests scored"), {}

            def follow(event: dict[str, Any]) -> None:
                report(event)
                log(event)
                if event["event"] == "done":
                    done.update(event)

            run_module("eval.scoring.harness", evaluation, work, follow, context.device_lock, processes=processes)
        if note := _precision_note(config, done):
            logger().warning(note)
        return {name: done[name] for name in ("device", "computed_in")} | {"processes": processes}

    result = build_or_skip(stage, context, build)
    create_markdown_artifact(key="scores", description="Benchmark scores", markdown=describe(result, context))
    return result


def defining_versions() -> dict[str, Any]:
    """The versions that say what a score is: lm-eval writes prompts, choices and few-shot examples, and what we compute
    of them has versions of its own. Of other packages a newer version computes the same, up to rounding (torch), or a
    golden test fails (tokenizers: tokens of a text; numpy: the subset of items); transformers is used by no stage."""
    return {"lm_eval": version("lm_eval"), "metrics": METRIC_VERSIONS}


def scoring_settings(config: EvaluationConfig, items: Items) -> dict[str, Any]:
    """What is scored, as the harness knows it."""
    return {
        "items_per_suite": config.items_per_suite,
        "seed": config.seed,
        "suites": sorted(items.results),
        "num_fewshot": dataclasses.asdict(config.num_fewshot),
        "precision": config.precision.value,
    }


def _precision_note(config: EvaluationConfig, done: dict[str, Any]) -> str | None:
    """A sentence for the user when the device computed in another precision than the one that was set."""
    if done["computed_in"] == config.precision:
        return None
    return f"precision is {config.precision.value}, but {done['device']} has none: computed in {done['computed_in']}"


def evaluate_folder(
    config: EvaluationConfig, model: str, tokenizer: Path | None, trust_code: bool, out: Path, context: RunContext
) -> str:
    """Score a finished model of ours (a folder), or what `transformers` opens: a folder, a `.gguf` file, or
    `id@revision` of the hub, where without a revision what the hub gives at present is scored and its commit recorded.

    Writes scores.json and samples.parquet to `out` and returns the table with intervals. No stage: a folder's content
    has no key. Raises ProcessError with the harness's own sentence.
    """
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=out):
        pass  # a folder that cannot be written is told now, not after the scoring
    module, scored, unreachable_hub = _scoring_program(model, tokenizer, trust_code)
    processes = scoring_processes(context)
    items = find_items(config.suites, context, config.num_fewshot)
    with tempfile.TemporaryDirectory(prefix="evaluate-") as temporary:
        work = Path(temporary)
        settings = {
            "benchmarks": str(items.folder(context, work / "benchmarks")),
            "out": str(out.resolve()),
            "execution": {"device": context.device, "threads": threads_per_process(processes, context)},
        }
        done: dict[str, Any] = {}  # the last event remains
        try:
            run_module(
                module, scored | scoring_settings(config, items) | settings, work, done.update, processes=processes
            )
        except ProcessError as error:
            if unreachable_hub is None:
                raise
            raise ProcessError(f"{error}; only the cache was looked at, because {unreachable_hub}") from None
    notes = [f"{name} is not scored: {reason}" for name, reason in items.missing.items()]
    if note := _precision_note(config, done):
        notes.append(note)
    return "\n\n".join([_table(json.loads((out / "scores.json").read_text())), *notes])


def _scoring_program(model: str, tokenizer: Path | None, trust_code: bool) -> tuple[str, dict[str, Any], str | None]:
    """The module that scores a model, how its settings name the model, and why the hub cannot be asked for it, if it
    is to be. Raises ProcessError for options that do not fit the model."""
    folder = Path(model)
    for path in folder.iterdir() if folder.is_dir() else [folder]:  # whoever reads a pipe may wait without end
        if not path.is_dir():
            regular_file(path)
    if _is_ours(folder):
        if trust_code:
            raise ProcessError(f"{model}: --trust-code is for models of transformers, this one is ours")
        vocabulary = tokenizer or folder / "tokenizer.json"
        ours = {"checkpoint": str(folder.resolve()), "tokenizer": str(vocabulary.resolve())}
        return "eval.scoring.harness", ours, None
    if tokenizer is not None:
        raise ProcessError(f"{model}: --tokenizer is for models of ours, this one brings its own")
    if find_spec("transformers") is None:
        raise ProcessError(f"{model}: not a model of ours; others need pip install 'daily-train[transformers]'")
    if folder.exists():
        local = {"model": str(folder.resolve()), "revision": None, "trust_code": trust_code}
        return "eval.scoring.pretrained", local, None
    name, _, revision = model.partition("@")
    if trust_code and not COMMIT.fullmatch(revision):
        raise ProcessError(
            f"{model}: --trust-code runs code of the hub, which can change under a branch or "
            f"tag: give the commit that you have read, {name}@40-digit-commit"
        )
    reason = unreachable()
    os.environ["HF_HUB_OFFLINE"] = "1" if reason else "0"  # the child asks the hub, or its cache alone
    remote = {"model": name, "revision": revision or None, "trust_code": trust_code}
    return "eval.scoring.pretrained", remote, reason


def _is_ours(folder: Path) -> bool:
    try:
        return "model_sha256" in json.loads((folder / "config.json").read_text())
    except (OSError, ValueError, TypeError, RecursionError):
        return False


def progress_reporter(tell: ServerUpdates) -> Any:
    """A listener for the harness's events that keeps a progress artifact current."""
    if TaskRunContext.get() is None:
        return lambda event: None
    artifact = artifact_id(create_progress_artifact(0.0, key="evaluation-progress", description="Requests scored"))

    def report(event: dict[str, Any]) -> None:
        if event["event"] == "progress" and event["total"]:
            done = 100 * event["done"] / event["total"]
            tell("progress", lambda: update_progress_artifact(artifact, done))

    return report


def describe(result: StageResult, context: RunContext) -> str:
    """The stage's artifact: every score with its 95 % interval and chance level."""
    return _table(read_json(result, context, "scores.json"))


def _table(scores: dict[str, Any]) -> str:
    versions = ", ".join(f"{task} {version}" for task, version in scores["task_versions"].items())
    shots = {score["suite"]: score["num_fewshot"] for score in scores["scores"] if score["num_fewshot"]}
    model = scores.get("model")
    description = f"{model['id']} at commit {model['commit']}. " if model else ""
    description += (
        f"lm-eval {scores['lm_eval']}; versions of its tasks: {versions}. Precision: {precision_of(scores)}. "
    )
    description += "Solved examples before a question: "
    description += ", ".join(f"{suite} {count}" for suite, count in shots.items()) or "none"
    description += ". Bits per byte are those of the right answers; “cut” counts items whose context was too long."
    return f"{description}\n\n{evaluation_scores(scores['scores'])}"
