"""One training run: its configuration file, and what that resolves to before step 0.

`resolve` turns budget, network and data into the record written as run.json. It holds everything that decides the
result up to rounding, so a directory is only resumed by the run that it belongs to. Rounding depends on how the run is
executed; that is in the record as well, under `execution` (`continued`), and may change on the way.
"""

import dataclasses
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from model.data.loader import validation_windows
from model.data.shards import Dataset, ShardSet
from model.errors import reason_of
from model.machine.parallel import Parallelism
from model.network import flops
from model.network.config import ConfigError, GPTConfig
from model.parsing import Bounds, check_fields, read_json, require
from model.training.config import TrainConfig
from model.training.steps import resolve_steps, sequences_per_step


@dataclass(frozen=True, kw_only=True)
class TrainerExecution:
    """How the run is executed. It is no part of what the run is; threads and device change results by rounding."""

    device: Literal["cpu", "cuda"] | None = None
    """cpu or cuda; null takes cuda when there is one."""
    threads: Annotated[int | None, Bounds(ge=1)] = None
    """CPU threads; null leaves torch's choice. A resumed run keeps the number it began with."""
    deterministic: bool = False
    """On a GPU, take the algorithms that give the same bytes in every run and after every resume; slower. A resumed run
    keeps the setting. A CPU always does."""
    compile: bool | None = None
    """Compile network and optimizer with torch.compile; null: on a GPU."""
    compile_cache: str | None = None
    """Folder in which compiled code is kept for later processes (model/machine/compile_cache.py); null: where torch
    keeps it."""
    parallelism: Parallelism = Parallelism.DDP
    """What several processes share: ddp, gradients; fsdp, also weights and optimizer state, for models that
    one GPU cannot hold."""
    hellaswag: str | None = None
    """JSON file of encoded items (model/training/multiple_choice.py) that are scored with every validation; null:
    none."""
    checkpoint_every_minutes: Annotated[float, Bounds(gt=0)] = 10.0
    """A checkpoint is also begun when the last one was begun so long ago, beside train.checkpoint_every_steps."""
    sample_every_steps: Annotated[int | None, Bounds(ge=1)] = None
    """Steps between samples during training, written to the metrics; null: only before and after it."""
    peak_flops: Annotated[float | None, Bounds(gt=0)] = None
    """Peak FLOP/s of one device that MFU divides by; null looks it up in model/machine/hardware.py."""
    usd_per_hour: Annotated[float | None, Bounds(gt=0)] = None
    """Price of this machine, all processes together; null: list price of its GPUs."""
    usd_limit: Annotated[float | None, Bounds(gt=0)] = None
    """A new run that is projected to cost more is refused; null: no limit."""

    def __post_init__(self) -> None:
        check_fields(self)


@dataclass(frozen=True, kw_only=True)
class TrainerConfig:
    """The configuration file of `python -m model.train`."""

    model: GPTConfig
    """The network."""
    train: TrainConfig
    """How it is trained."""
    shards: str
    """Directory of token shards with shards.json; without one, model.vocab_size and model.eot_token are given."""
    run_dir: str
    """Directory that receives everything the run writes; an unfinished run there is resumed."""
    sample_prompts: list[Annotated[list[int], Bounds(min_length=1)]]
    """Token ids that the untrained and the trained model continue."""
    execution: TrainerExecution = TrainerExecution()
    """Device, threads and the like."""

    def __post_init__(self) -> None:
        check_fields(self)


def read_config(path: Path) -> TrainerConfig:
    """The configuration in a JSON file."""
    return read_json(Path(path), TrainerConfig)


def literals(config: TrainerConfig, vocab_size: int, eot_token: int) -> dict:
    """The part of run.json that is known without reading the shards."""
    return {
        "model": dataclasses.asdict(config.model.with_vocabulary(vocab_size, eot_token)),
        "train": dataclasses.asdict(config.train),
        "sample_prompts": config.sample_prompts,
    }


def resolve(
    config: TrainerConfig,
    dataset: Dataset,
    validation: ShardSet,
    *,
    steps: int | None = None,
    processes: int = 1,
    seconds_per_step: float | None = None,
    fixed_seconds: float = 0.0,
    usd_per_hour: float | None = None,
) -> dict:
    """run.json: the whole run with its budget resolved into steps, if they are not known already."""
    train, model = config.train, config.model.with_vocabulary(dataset.vocab_size, dataset.eot_token)
    for prompt in config.sample_prompts:
        require(
            all(0 <= token < dataset.vocab_size for token in prompt),
            "sample_prompts",
            prompt,
            f"token ids below {dataset.vocab_size}",
        )
    if steps is None:
        steps = resolve_steps(
            train,
            model,
            processes=processes,
            seconds_per_step=seconds_per_step,
            fixed_seconds=fixed_seconds,
            usd_per_hour=usd_per_hour,
        )
    tokens = steps * train.tokens_per_step
    flops_per_token = flops.flops_per_token(model, model.sequence_length)
    unit = train.budget_unit
    windows = validation_windows(validation, train.validation_tokens, model.sequence_length)
    return literals(config, dataset.vocab_size, dataset.eot_token) | {
        "data": {
            "vocab_size": dataset.vocab_size,
            "eot_token": dataset.eot_token,
            "tokenizer_sha256": dataset.tokenizer_sha256,
            "splits": {name: dataclasses.asdict(split) for name, split in dataset.splits.items()},
        },
        "budget": {"unit": unit, "value": getattr(train, unit)},
        "steps": steps,
        "tokens": tokens,
        "tokens_per_step": train.tokens_per_step,
        "sequences_per_step": sequences_per_step(train, model),
        "validation_tokens": windows * model.sequence_length,
        "parameters": flops.parameters(model),
        "flops_per_token": flops_per_token,
        "flops": flops_per_token * tokens,
    }


def continued(execution: list[dict], step: int, settings: dict) -> list[dict]:
    """`execution` of run.json for a run that goes on from `step` with `settings`: one entry for each stretch of steps
    with the same settings. What was recorded of later steps is dropped: they are done again."""
    before = [stretch for stretch in execution if stretch["from_step"] < step]
    stretch = {"from_step": step} | settings
    return before if before and before[-1] | {"from_step": step} == stretch else [*before, stretch]


def recorded_run(path: Path) -> dict:
    """The run.json of an earlier start; empty when there is none."""
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"{path}: is not JSON: {reason_of(error)}") from None


def check_same_run(path: Path, run: dict) -> None:
    """Refuse to continue a run.json that is another run; only the keys of `run` are compared."""
    stored = recorded_run(path)
    if not stored:
        return
    if difference := _first_difference(stored, json.loads(json.dumps(run)), ""):
        raise ConfigError(f"{path.parent} holds another run: {difference}; choose a new run_dir")


def _first_difference(stored: object, wanted: object, where: str) -> str | None:
    if isinstance(stored, dict) and isinstance(wanted, dict):
        return next(
            (
                found
                for key, value in wanted.items()
                if (found := _first_difference(stored.get(key), value, f"{where}.{key}".strip(".")))
            ),
            None,
        )
    return None if stored == wanted else f"{where} was {stored!r} and is now {wanted!r}"
