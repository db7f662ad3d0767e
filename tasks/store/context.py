"""Where and how a run is executed: its store, its cache and what it may use of this machine."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from eval.reporting.markdown import what_is_wrong_with_note
from model.errors import expand_home
from model.parsing import Bounds, ConfigError, check_fields
from tasks.runtime.tracking import Tracker, check_tracker
from tasks.store import provenance
from tasks.store.backends import LocalStore, Store, open_store
from tasks.store.objects import ReadOnlyStoreError


@dataclass(frozen=True, kw_only=True)
class MachineUse:
    """How a run uses this machine: what `Execution` asks for and `RunContext` holds alike."""

    device: Literal["cpu", "cuda"] | None = None
    """`cpu` or `cuda`. Empty: a GPU if any."""
    processes: Annotated[int | None, Bounds(ge=1)] = None
    """How many processes train and score together, each on a GPU of its own; they share the workers. Empty: one for
    each GPU, as far as they can share the sequences of a step equally; one on a CPU."""
    parallelism: Literal["ddp", "fsdp"] = "ddp"
    """What several processes of a training share. `ddp`: each holds the whole network, and gradients are averaged.
    `fsdp`: each holds a part of weights, gradients and optimizer state, for a network that one GPU cannot hold; more
    traffic between them."""
    deterministic: bool = False
    """Train on a GPU with slower algorithms that give the same bytes every time. A CPU always does."""
    checkpoint_every_minutes: Annotated[float, Bounds(gt=0)] = 10.0
    """Longest time between checkpoints of a training, beside those by step."""
    max_hours: Annotated[float, Bounds(gt=0)] = 48.0
    """A run whose training is projected to take more hours on this machine is refused at its start."""
    hellaswag_items: Annotated[int, Bounds(ge=0)] = 0
    """HellaSwag items to score at each validation while training."""
    sample_every_steps: Annotated[int | None, Bounds(ge=1)] = None
    """Steps between samples in training. Empty: none."""
    tracker: Tracker = Tracker.NONE
    """Also tell the metrics of the training to this tool."""


@dataclass(frozen=True, kw_only=True)
class Execution(MachineUse):
    """Where and how the run is executed; part of no stage's key. Workers, device and processes change results by
    rounding only."""

    store: str = ".daily-train"
    """Where results are kept: a directory, or `s3://bucket/prefix`."""
    cache: str | None = None
    """Local folder for work and copies. Empty: `cache` in a local store."""
    workers: Annotated[int | None, Bounds(ge=1)] = None
    """Processes and threads. Empty: one for each core. A resumed training keeps its number."""
    benchmarks_dir: str | None = None
    """Folder with benchmark items as parquet, looked at first. Empty: `DAILY_TRAIN_BENCHMARKS`."""
    usd_per_hour: Annotated[float | None, Bounds(ge=0)] = None
    """Price of this machine. Empty: list price of its kind."""
    note: str | None = None
    """What this run tries, in a sentence, for its report and the leaderboard; at most 500 characters."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (note := one_line(self.note)) and (reason := what_is_wrong_with_note(note)):
            raise ConfigError(f"note {reason}")


@dataclass(frozen=True, kw_only=True)
class RunContext(MachineUse):
    """An execution whose store is open and whose empty settings are resolved: never part of any key."""

    store: Store
    cache: Path
    """Local folder for work in progress, downloads and copies of remote outputs."""
    workers: int
    """Threads, and processes on a CPU, that a stage may use; a resumed training keeps the number it began with."""
    benchmarks_dir: Path | None = None
    """Folder with the benchmark items as parquet, looked at before any other source."""
    usd_per_hour: float = 0.0
    """What an hour on this machine costs."""
    note: str | None = None
    """What the run tries, in one line."""
    unwritable: str | None = None
    """Why nothing can be written to the store: a run in which everything is done needs no more than to read it."""

    @property
    def device_lock(self) -> Path:
        """Held by whoever trains or scores on this machine: one run at a time has the GPU."""
        return self.cache / "device.lock"


def one_line(note: str | None) -> str | None:
    """A note without ends of lines, tabs and spaces that say nothing; None for an empty one."""
    return re.sub(r"[ \t\r\n]+", " ", note or "").strip() or None


def open_context(
    store: str,
    cache: str | None,
    workers: int | None,
    device: Literal["cpu", "cuda"] | None,
    benchmarks_dir: str | None,
    usd_per_hour: float | None,
    *,
    reading: bool = False,
    **training: Any,
) -> RunContext:
    """Resolve the execution settings of a run and fail early when the store or the tracker cannot be used. For
    `reading` nothing is written, made or tried: whoever reads finds out (`tasks/store/ledger.py`)."""
    check_tracker(training.get("tracker", Tracker.NONE))
    opened, unwritable = open_store(store), None
    if reading:
        opened.shorten_patience()
        unwritable = f"{opened.url}: is opened for reading"
    else:
        try:
            opened.check()
        except ReadOnlyStoreError as error:
            unwritable = str(error)
    local = opened.url if isinstance(opened, LocalStore) and unwritable is None else ".daily-train"
    home = expand_home(cache) if cache else Path(local) / "cache"
    return RunContext(
        store=opened,
        cache=home.absolute(),
        workers=workers or provenance.hardware()["cores"],
        device=device,
        benchmarks_dir=expand_home(benchmarks_dir).absolute() if benchmarks_dir else None,
        usd_per_hour=provenance.default_usd_per_hour() if usd_per_hour is None else usd_per_hour,
        unwritable=unwritable,
        **training | {"note": one_line(training.get("note"))},
    )
