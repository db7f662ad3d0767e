"""Stage 5: training, in a child process of its own; its metrics become log lines and a progress artifact."""

import hashlib
import json
import shutil
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect import task
from prefect.artifacts import (
    create_markdown_artifact,
    create_progress_artifact,
    update_progress_artifact,
)
from prefect.cache_policies import NO_CACHE
from prefect.context import TaskRunContext

from eval.figures import inline, loss_figure
from eval.markup import markdown_table, passage, untrusted
from model.config import GPTConfig, TrainConfig
from tasks.process import run_module
from tasks.provenance import PROJECT
from tasks.stage import Place, Result, Stage, finish, logger, materialise, sha256_json
from tasks.tokenizer import load_tokenizer

VERSION = 1
SECONDS_BETWEEN_LOG_LINES = 5.0
PROMPTS = ("My fellow citizens,", "The state of our Union is", "The people of the United States")


@task(name="train", cache_policy=NO_CACHE)
def train_model(model: GPTConfig, config: TrainConfig, shards: Result, tokenizer: Result, place: Place) -> Result:
    """Train from scratch or resume. Outputs: model.safetensors, config.json, run.json, samples.json, and the
    recorded metrics.jsonl."""
    stage = Stage(
        name="train",
        version=VERSION,
        config={"model": asdict(model), "train": asdict(config), "prompts": list(PROMPTS)},
        inputs={"shards": shards.digest, "model_source": model_source_digest()},
        recorded=frozenset({"metrics.jsonl"}),
    )
    result = finish(stage, place, lambda work, out: _train(stage.config, shards, tokenizer, place, work, out))
    folder = materialise(result, place)
    create_markdown_artifact(key="training", description="Training", markdown=describe(folder))
    create_markdown_artifact(key="samples", description="Text before and after training", markdown=samples(folder))
    figure = inline("loss over training", loss_figure(read_metrics(folder)))
    create_markdown_artifact(key="loss", description="Loss over training", markdown=figure)
    return result


def model_source_digest() -> str:
    """SHA-256 of the files of model/: the code on main is the experiment."""
    files = sorted((PROJECT / "model").glob("*.py"))
    return sha256_json([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _train(
    config: dict[str, Any], shards: Result, tokenizer: Result, place: Place, work: Path, out: Path
) -> dict[str, Any]:
    encoder = load_tokenizer(materialise(tokenizer, place) / "tokenizer.json")
    run_dir = work / "run"  # outlives a killed process: the same command resumes from its last checkpoint
    progress = _Progress()
    run_module(
        "model.train",
        {
            "model": config["model"],
            "train": config["train"],
            "shards": str(materialise(shards, place)),
            "run_dir": str(run_dir),
            "sample_prompts": [encoder.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS],
            "execution": {
                "device": place.device,
                "threads": place.workers,
                "usd_per_hour": place.usd_per_hour or None,
            },
        },
        work,
        progress,
    )
    for name in ("final/model.safetensors", "final/config.json", "run.json", "metrics.jsonl"):
        shutil.copy2(run_dir / name, out / Path(name).name)
    samples = json.loads((run_dir / "samples.json").read_text())
    texts = [{when: encoder.decode(sample[when]) for when in ("prompt", "untrained", "trained")} for sample in samples]
    (out / "samples.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False))
    return {"device": progress.device}


class _Progress:
    """Turns the trainer's events into log lines at a sane rate and a live progress artifact."""

    def __init__(self) -> None:
        self.logger = logger()
        self.last = 0.0
        self.device = "unknown"
        self.artifact = None
        if TaskRunContext.get() is not None:
            self.artifact = create_progress_artifact(0.0, key="training-progress", description="Training progress")

    def __call__(self, event: dict[str, Any]) -> None:
        kind = event["event"]
        if kind == "step":
            if time.monotonic() - self.last < SECONDS_BETWEEN_LOG_LINES and event["step"] < event["steps"]:
                return
            self.last = time.monotonic()
            left = (event["steps"] - event["step"]) * event["tokens"] / event["step"] / event["tokens_per_second"]
            self.logger.info(
                "step %d/%d loss %.4f lr %.2g norm %.2f %d tok/s %.0f s left",
                event["step"], event["steps"], event["loss"], event["lr"], event["grad_norm"],
                event["tokens_per_second"], left,
            )
            if self.artifact is not None:
                told = f"step {event['step']:,} of {event['steps']:,}, loss {event['loss']:.3f}, {left:.0f} s left"
                update_progress_artifact(self.artifact, 100 * event["step"] / event["steps"], told)
        else:
            self.device = event.get("device", self.device)
            self.logger.info("%s %s", kind, {name: value for name, value in event.items() if name != "event"})


def describe(folder: Path) -> str:
    """The stage's artifact: what was trained and how it went."""
    run = json.loads((folder / "run.json").read_text())
    done = read_metrics(folder)[-1]
    rows = [[name, value] for name, value in {**run, **done}.items() if isinstance(value, int | float | str)]
    return markdown_table(["", "value"], rows)


def samples(folder: Path) -> str:
    """What the model makes of the same prompts before and after training."""
    lines = []
    for sample in json.loads((folder / "samples.json").read_text()):
        lines += [f"### {untrusted(sample['prompt'])} …"]
        lines += ["**Untrained**", passage(sample["prompt"] + sample["untrained"])]
        lines += ["**Trained**", passage(sample["prompt"] + sample["trained"])]
    return "\n\n".join(lines)
