"""Stage 5: training, in a child process of its own; its metrics become log lines and a progress artifact."""

import hashlib
import json
import math
import shutil
import sys
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import get_client, task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.client.schemas.actions import ArtifactUpdate
from prefect.context import TaskRunContext
from tokenizers import Tokenizer

from eval.figures import inline, loss_figure
from eval.hellaswag import encoded_items
from eval.markup import code_block, markdown_table
from model.config import GPTConfig, TrainConfig
from model.metrics import read_lines
from model.progress import ProgressBar, seconds_left
from tasks.benchmarks import Items
from tasks.checkpoints import Uploads, clear, restore
from tasks.process import run_module
from tasks.provenance import PROJECT
from tasks.stage import STAGE_TASK, Place, Result, Stage, finish, logger, materialise, sha256_json
from tasks.tokenizer import load_tokenizer
from tasks.tracking import Tracking

VERSION = 1
SECONDS_BETWEEN_LOG_LINES = (5.0, 60.0)  # at first, and after a while
SECONDS_BETWEEN_FIGURES = 60.0
PROMPTS = ("My fellow citizens,", "The state of our Union is", "The people of the United States")


@task(name="train", **STAGE_TASK)
def train_model(
    model: GPTConfig, config: TrainConfig, shards: Result, tokenizer: Result, items: Items, place: Place
) -> Result:
    """Train from scratch or resume. Outputs: model.safetensors, config.json, run.json, samples.json, and the
    recorded metrics.jsonl."""
    result = finished_training(model, config, shards, tokenizer, items, place)
    folder = materialise(result, place)
    create_markdown_artifact(key="training", description="Training", markdown=describe(folder))
    figure = inline("loss over training", loss_figure(read_metrics(folder)))
    create_markdown_artifact(key="loss", description="Loss over training", markdown=figure)
    return result


def finished_training(
    model: GPTConfig, config: TrainConfig, shards: Result, tokenizer: Result, items: Items, place: Place
) -> Result:
    """The stage itself. While it runs its checkpoints are in the store; afterwards they are not."""
    stage = Stage(
        name="train",
        version=VERSION,
        config={"model": asdict(model), "train": asdict(config), "prompts": list(PROMPTS)},
        inputs={"shards": shards.digest, "model_source": model_source_digest()},
        recorded=frozenset({"metrics.jsonl"}),
    )
    result = finish(stage, place, lambda work, out: _train(stage, shards, tokenizer, items, place, work, out))
    clear(stage.key, place)
    return result


def model_source_digest() -> str:
    """SHA-256 of the files of model/: the code on main is the experiment."""
    files = sorted((PROJECT / "model").glob("*.py"))
    return sha256_json([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _train(
    stage: Stage, shards: Result, tokenizer: Result, items: Items, place: Place, work: Path, out: Path
) -> dict[str, Any]:
    encoder = load_tokenizer(materialise(tokenizer, place) / "tokenizer.json")
    run_dir = work / "run"  # outlives a killed process: the same command resumes from its last checkpoint
    restore(stage.key, run_dir, place)  # of a machine that was lost
    progress = _Progress(encoder.decode, run_dir)
    run = {
        "model": stage.config["model"],
        "train": stage.config["train"],
        "shards": str(materialise(shards, place)),
        "run_dir": str(run_dir),
        "sample_prompts": [encoder.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS],
        "execution": {
            "device": place.device,
            "threads": place.workers,
            "usd_per_hour": place.usd_per_hour or None,
            "sample_every_steps": place.sample_every_steps,
            "hellaswag": _hellaswag(items, encoder, place, work),
        },
    }
    tracking = Tracking(place.tracker, place.cache / "tracking", stage.key, stage.config)
    with Uploads(stage.key, run_dir, place) as uploads, tracking:

        def follow(event: dict[str, Any]) -> None:
            progress(event)
            uploads(event)
            tracking(event)

        run_module("model.train", run, work, follow, place.device_lock)
    for name in ("final/model.safetensors", "final/config.json", "run.json", "metrics.jsonl"):
        shutil.copy2(run_dir / name, out / Path(name).name)
    samples = json.loads((run_dir / "samples.json").read_text())
    texts = [{when: encoder.decode(sample[when]) for when in ("prompt", "untrained", "trained")} for sample in samples]
    (out / "samples.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False))
    return {"device": progress.device}


def _hellaswag(items: Items, encoder: Tokenizer, place: Place, work: Path) -> str | None:
    """A file with the items to score during training, if there are any."""
    if not place.hellaswag_items:
        return None
    if "hellaswag" not in items.results:
        logger().warning("hellaswag_items is %d, but the run has no HellaSwag", place.hellaswag_items)
        return None
    folder = materialise(items.results["hellaswag"], place)

    def encode(text: str) -> list[int]:
        return encoder.encode(text, add_special_tokens=False).ids

    encoded = encoded_items(folder, encode, place.hellaswag_items)
    path = work / "hellaswag.json"
    path.write_text(json.dumps(encoded))
    return str(path)


class _Progress:
    """Turns the trainer's events into log lines at a sane rate, a live progress artifact, the loss so far and, in a
    terminal, a bar."""

    def __init__(self, decode: Callable[[list[int]], str], run_dir: Path) -> None:
        self.logger, self.decode, self.run_dir = logger(), decode, run_dir
        self.bar = ProgressBar(sys.stderr) if sys.stderr.isatty() else None
        self.began, self.logged, self.drawn = time.monotonic(), -math.inf, -math.inf
        self.device = "unknown"
        self.artifact = self.figure = None
        if TaskRunContext.get() is not None:
            self.artifact = create_progress_artifact(0.0, key="training-progress", description="Training progress")

    def __call__(self, event: dict[str, Any]) -> None:
        if self.bar is not None:
            self.bar.clear()
        self._tell(event)
        if self.bar is not None and event["event"] == "step":
            self.bar.show(event)
        elif self.bar is not None:
            self.bar.redraw()

    def _tell(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            now, (shortest, longest) = time.monotonic(), SECONDS_BETWEEN_LOG_LINES
            between = min(longest, max(shortest, (now - self.began) / 100))
            if now - self.logged < between and event["step"] < event["steps"]:
                return
            self.logged = now
            left = seconds_left(event)
            self.logger.info(
                "step %d/%d loss %.4f lr %.2g norm %.2f %d tok/s %.0f s left",
                event["step"], event["steps"], event["loss"], event["lr"], event["grad_norm"] or math.nan,
                event["tokens_per_second"], left,
            )
            if self.artifact is not None:
                told = (f"step {event['step']:,} of {event['steps']:,}, loss {event['loss']:.3f}, "
                        f"{event['tokens_per_second']:,} tokens/s, {left:.0f} s left")
                percent = 100 * event["step"] / event["steps"]
                self._to_server(lambda: update_progress_artifact(self.artifact, percent, told))
        elif kind == "samples":
            for prompt, tokens in zip(PROMPTS, event["tokens_of_prompts"], strict=True):
                self.logger.info("step %d: %s%s", event["step"], prompt, self.decode(tokens))
        else:
            self.device = event.get("device", self.device)
            self.logger.info("%s %s", kind, {name: value for name, value in event.items() if name != "event"})
            rested = time.monotonic() - self.drawn > SECONDS_BETWEEN_FIGURES
            if kind == "checkpoint" and self.artifact is not None and rested:
                self.drawn = time.monotonic()
                self._to_server(self._draw)

    def _draw(self) -> None:
        """The loss so far as an artifact: one a run, drawn anew at checkpoints."""
        markdown = inline("loss so far", loss_figure(read_lines(self.run_dir / "metrics.jsonl")))
        if self.figure is None:
            told = "Loss so far, drawn at checkpoints"
            self.figure = create_markdown_artifact(key="loss-so-far", description=told, markdown=markdown)
        else:
            with get_client(sync_client=True) as client:
                client.update_artifact(self.figure, ArtifactUpdate(data=markdown))

    def _to_server(self, tell: Callable[[], object]) -> None:
        """Talk to the Prefect server; while it is away the training goes on."""
        try:
            tell()
        except Exception as error:  # connection, protocol and answers of the server share no base class
            self.logger.warning("the Prefect server does not answer, the training goes on: %s", error)


def describe(folder: Path) -> str:
    """The stage's artifact: what was trained, how it went, and what it writes before and after."""
    run = json.loads((folder / "run.json").read_text())
    done = read_metrics(folder)[-1]
    rows = [[name, value] for name, value in {**run, **done}.items() if isinstance(value, int | float | str)]
    lines = [markdown_table(["", "value"], rows)]
    for sample in json.loads((folder / "samples.json").read_text()):
        lines += ["**Untrained**", code_block(sample["prompt"] + sample["untrained"])]
        lines += ["**Trained**", code_block(sample["prompt"] + sample["trained"])]
    return "\n\n".join(lines)
