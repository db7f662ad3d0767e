"""A budget in hours or dollars becomes tokens by a timing on this machine, before the training's key is made.

The timing is a stage of its own, and train's key holds the tokens that it found. So one key of train is one training:
another machine that shares the store trains as many tokens, and a machine with a store of its own, where the timing
gives another number, has another key.
"""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from eval.words import count
from model.network.config import GPTConfig
from model.training.config import BUDGETS, TrainConfig
from tasks.runtime.child_process import run_module
from tasks.runtime.logs import logger
from tasks.store.context import RunContext
from tasks.store.source_digest import model_source_digest
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs

VERSION = 2
TIMED = {"gpu_hours": "GPU hours", "usd": "US dollars"}
"""Budgets that a timing turns into tokens, with their units in words."""


def budget_in_tokens(
    model: GPTConfig,
    config: TrainConfig,
    shards: StageResult,
    execution: dict[str, Any],
    processes: int,
    context: RunContext,
) -> TrainConfig:
    """`config` with a budget in tokens instead of hours or dollars; one in tokens or FLOPs as it is.

    `execution`: the trainer's settings (`TrainerExecution` of model/training/run.py), for so many `processes`. The
    stage's outputs: budget.json, the tokens, and the volatile timing.json.
    """
    if config.budget_unit not in TIMED:
        return config
    priced = ["machine/hardware.py"] if config.budget_unit == "usd" else []  # its list prices
    stage = Stage(
        name="budget",
        version=VERSION,
        config={"model": asdict(model), "train": asdict(config)},
        inputs={"shards": shards.digest, "model_source": model_source_digest("planning/budget.py", *priced)},
        volatile=frozenset({"timing.json"}),
    )

    def build(work: Path, out: Path) -> dict[str, Any]:
        run = {
            "model": asdict(model),
            "train": asdict(config),
            "shards": str(fetch_outputs(shards, context)),
            "run_dir": str(work / "unused"),
            "sample_prompts": [],
            "execution": execution,
        }
        events: list[dict[str, Any]] = []
        run_module("model.planning.budget", run, work, events.append, context.device_lock, processes=processes)
        [timing] = [event for event in events if event["event"] == "budget"]
        (out / "budget.json").write_text(json.dumps({"tokens": timing["tokens"]}))
        (out / "timing.json").write_text(json.dumps(timing))
        logger().info(
            "the budget of %g %s is %s steps, %s tokens: %.4g s a step on %s",
            getattr(config, config.budget_unit),
            TIMED[config.budget_unit],
            f"{timing['steps']:,}",
            count(timing["tokens"]),
            timing["seconds_per_step"],
            timing["device"],
        )
        return {"device": timing["device"]}

    folder = fetch_outputs(build_or_skip(stage, context, build), context)
    budget: dict[str, Any] = dict.fromkeys(BUDGETS)
    budget["tokens"] = json.loads((folder / "budget.json").read_text())["tokens"]
    return replace(config, **budget)
