"""Stage 5: training, in a child process of its own; its metrics become log lines and a progress artifact."""

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

from prefect.artifacts import create_markdown_artifact
from tokenizers import Tokenizer

from eval.reporting.figures import inline, kept, loss_figure
from eval.reporting.markdown import markdown_table, passage, untrusted
from eval.sample_prompts import PROMPTS
from eval.suites.hellaswag import encoded_items
from eval.words import count, duration
from model.network.config import GPTConfig
from model.training.config import TrainConfig
from tasks.benchmarks import Items
from tasks.budget import budget_in_tokens
from tasks.feasibility import require_feasible, require_space
from tasks.runtime.child_process import run_module
from tasks.runtime.devices import threads_per_process, training_processes
from tasks.runtime.logs import logger
from tasks.runtime.pages import LivePage, live_page_address, show_finished
from tasks.runtime.progress import ServerUpdates, TrainingProgress
from tasks.runtime.tracking import Tracking
from tasks.store.checkpoints import delete_checkpoints, discard_damaged, restore_checkpoint
from tasks.store.context import RunContext
from tasks.store.run_states import add_to_state, stage_task
from tasks.store.source_digest import model_source_digest
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs
from tasks.tokenizer import load_tokenizer

VERSION = 2


@stage_task("train")
def train_model(
    model: GPTConfig,
    config: TrainConfig,
    shards: StageResult,
    tokenizer: StageResult,
    items: Items | None,
    context: RunContext,
) -> StageResult:
    """Train from scratch or resume. Outputs: model.safetensors, config.json, run.json, samples.json, and the
    volatile metrics.jsonl."""
    if address := live_page_address():
        logger().info("watch it train: %s", address)
        create_markdown_artifact(
            key="live", description="Watch it train", markdown=f"[Watch it train: {address}]({address})"
        )
    result = training_stage(model, config, shards, tokenizer, items, context)
    folder = fetch_outputs(result, context)
    if result.skipped:
        show_finished(folder / "metrics.jsonl", result.manifest.key, context.usd_per_hour)
    done = read_metrics(folder)[-1]
    add_to_state(f"{count(done['tokens'])} tokens, {done['bits_per_byte']:.4f} bits per byte")
    create_markdown_artifact(key="training", description="Training", markdown=describe(folder))
    create_markdown_artifact(
        key="samples", description="Text before and after training", markdown=describe_samples(folder)
    )
    figure = inline("loss over training", kept(context.cache / "figures", loss_figure, read_metrics(folder)))
    create_markdown_artifact(key="loss", description="Loss over training", markdown=figure)
    return result


def training_stage(
    model: GPTConfig,
    config: TrainConfig,
    shards: StageResult,
    tokenizer: StageResult,
    items: Items | None,
    context: RunContext,
) -> StageResult:
    """The stage itself. While it runs its checkpoints are in the store; afterwards they are not."""
    processes = training_processes(model, config, context)
    execution = _execution(processes, context)
    config = budget_in_tokens(model, config, shards, execution, processes, context)
    stage = Stage(
        name="train",
        version=VERSION,
        config={"model": asdict(model), "train": asdict(config), "prompts": list(PROMPTS)},
        inputs={"shards": shards.digest, "model_source": model_source_digest()},
        volatile=frozenset({"metrics.jsonl"}),
    )

    def build(work: Path, out: Path) -> dict[str, Any]:
        encoder = load_tokenizer(fetch_outputs(tokenizer, context) / "tokenizer.json")
        require_feasible([(model, config)], encoder.get_vocab_size(), context)
        return _train(stage, shards, encoder, items, processes, context, work, out)

    result = build_or_skip(stage, context, build)
    delete_checkpoints(stage.key, context.store)
    return result


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """The events of metrics.jsonl, in order."""
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def _train(
    stage: Stage,
    shards: StageResult,
    encoder: Tokenizer,
    items: Items | None,
    processes: int,
    context: RunContext,
    work: Path,
    out: Path,
) -> dict[str, Any]:
    run_dir = work / "run"  # outlives a killed process: the same command resumes from its last checkpoint
    run = {
        "model": stage.config["model"],
        "train": stage.config["train"],
        "shards": str(fetch_outputs(shards, context)),
        "run_dir": str(run_dir),
        "sample_prompts": [encoder.encode(prompt, add_special_tokens=False).ids for prompt in PROMPTS],
        "execution": _execution(processes, context) | {"hellaswag": _hellaswag(items, encoder, context, work)},
    }
    config = work / "train.json"
    config.write_text(json.dumps(run, indent=1))
    supervised = {
        "config": str(config),
        "processes": processes,
        "key": stage.key,
        "run_dir": str(run_dir),
        "store": context.store.url,
    }
    tracking = Tracking(context.tracker, context.cache / "tracking", stage.key, stage.config)
    live = LivePage(run_dir / "metrics.jsonl", stage.key, context.usd_per_hour)
    with ServerUpdates() as tell, tracking, live, TrainingProgress(run_dir, encoder.decode, tell) as progress:

        def follow(event: dict[str, Any]) -> None:
            if event["event"] == "start":
                require_space(run_dir, event["checkpoint_bytes"])  # before the first step
            progress(event)
            live(event)
            tracking(event)

        def prepare() -> None:  # not before: the process of an earlier run may still save there
            restore_checkpoint(stage.key, run_dir, context.store, context.cache, logger())
            discard_damaged(run_dir, logger())

        run_module("tasks.runtime.supervise", supervised, work, follow, context.device_lock, prepare)
    for name in ("final/model.safetensors", "final/config.json", "run.json", "metrics.jsonl"):
        shutil.copy2(run_dir / name, out / Path(name).name)
    samples = json.loads((run_dir / "samples.json").read_text())
    texts = [{when: encoder.decode(sample[when]) for when in ("prompt", "untrained", "trained")} for sample in samples]
    (out / "samples.json").write_text(json.dumps(texts, indent=1, ensure_ascii=False))
    return {"device": progress.device, "execution": json.loads((run_dir / "run.json").read_text())["execution"]}


def _execution(processes: int, context: RunContext) -> dict[str, Any]:
    """The settings of this machine as the trainer knows them."""
    return {
        "device": context.device,
        "threads": threads_per_process(processes, context),
        "parallelism": context.parallelism,
        "compile_cache": str(context.cache.resolve() / "compiled"),
        "checkpoint_every_minutes": context.checkpoint_every_minutes,
        "deterministic": context.deterministic,
        "usd_per_hour": context.usd_per_hour or None,
        "sample_every_steps": context.sample_every_steps,
    }


def _hellaswag(items: Items | None, encoder: Tokenizer, context: RunContext, work: Path) -> str | None:
    """A file with the items to score during training, if there are any."""
    if not context.hellaswag_items:
        return None
    if items is None or "hellaswag" not in items.results:
        logger().warning("hellaswag_items is %d, but the run has no HellaSwag", context.hellaswag_items)
        return None
    folder = fetch_outputs(items.results["hellaswag"], context)

    def encode(text: str) -> list[int]:
        return encoder.encode(text, add_special_tokens=False).ids

    encoded = encoded_items(folder, encode, context.hellaswag_items)
    path = work / "hellaswag.json"
    path.write_text(json.dumps(encoded))
    return str(path)


def describe(folder: Path) -> str:
    """The stage's artifact: what was trained and how it went."""
    run = json.loads((folder / "run.json").read_text())
    done = read_metrics(folder)[-1]
    executed = run.get("execution", [{}])[-1]  # absent in what earlier versions trained
    seconds = done.get("seconds")
    rows: list[list[object]] = [
        ["loss", f"{done['loss']:.4f} nats per token"],
        ["bits per byte", f"{done['bits_per_byte']:.4f}"],
        ["parameters", count(run["parameters"]["total"])],
        ["tokens", f"{run['tokens']:,}"],
        ["steps", f"{run['steps']:,} of {run['tokens_per_step']:,} tokens"],
        ["FLOPs", f"{run['flops']:.3g}, {run['flops_per_token']:.3g} a token"],
        ["time", seconds and duration(seconds)],
        ["speed", f"{run['tokens'] / seconds:,.0f} tokens a second" if seconds else None],
    ]
    rows += [[name.replace("_", " "), value] for name, value in executed.items() if _is_shown(name, value)]
    return markdown_table(["", "value"], rows)


def _is_shown(name: str, value: object) -> bool:
    """Whether a line on how a training was executed says something to a reader."""
    return name != "from_step" and isinstance(value, int | float | str) and value != ""


def describe_samples(folder: Path) -> str:
    """What the model makes of the same prompts before and after training."""
    lines = []
    for sample in json.loads((folder / "samples.json").read_text()):
        lines += [f"### {untrusted(sample['prompt'])} …"]
        lines += ["**Untrained**", passage(sample["prompt"] + sample["untrained"])]
        lines += ["**Trained**", passage(sample["prompt"] + sample["trained"])]
    return "\n\n".join(lines)
