"""Where and how a run is executed: its store, its cache and what it may use of this machine."""

from dataclasses import dataclass
from pathlib import Path

from model.errors import expanded
from tasks.runtime.tracking import Tracker, check_tracker
from tasks.store import provenance
from tasks.store.backends import LocalStore, Store, open_store
from tasks.store.manifest import Json
from tasks.store.objects import ReadOnlyStoreError


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """Where and how a run is executed: never part of any key. Workers, device and processes change rounding in
    training and scoring."""

    store: Store
    cache: Path
    """Local folder for work in progress, downloads and copies of remote outputs."""
    workers: int
    """Threads, and processes on a CPU, that a stage may use; a resumed training keeps the number it began with."""
    device: str | None = None
    """`cpu`, `cuda`, or None for the best there is."""
    processes: int | None = None
    """Processes that train and score; None: one for each GPU, or one on a CPU."""
    parallelism: str = "ddp"
    """What several processes of a training share: `ddp`, gradients; `fsdp`, also weights and optimizer state."""
    deterministic: bool = False
    """Train on a GPU with algorithms that give the same bytes every time."""
    benchmarks_dir: Path | None = None
    """Folder with the benchmark items as parquet, looked at before any other source."""
    usd_per_hour: float = 0.0
    """What an hour on this machine costs."""
    checkpoint_every_minutes: float = 10.0
    """Minutes after which a training begins another checkpoint, beside those by step."""
    max_hours: float = 48.0
    """Hours that the trainings of a run may be projected to take together."""
    hellaswag_items: int = 0
    """HellaSwag items that are scored with every validation of a training."""
    sample_every_steps: int | None = None
    """Steps between samples during a training; None: only before and after it."""
    tracker: Tracker = Tracker.NONE
    """Who is told the metrics of a training beside the metrics file."""
    unwritable: str | None = None
    """Why nothing can be written to the store: a run in which everything is done needs no more than to read it."""

    @property
    def device_lock(self) -> Path:
        """Held by whoever trains or scores on this machine: one run at a time has the GPU."""
        return self.cache / "device.lock"


def open_context(
    store: str,
    cache: str | None,
    workers: int | None,
    device: str | None,
    benchmarks_dir: str | None,
    usd_per_hour: float | None,
    *,
    reading: bool = False,
    **training: Json,
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
    home = expanded(cache) if cache else Path(local) / "cache"
    return RunContext(
        store=opened,
        cache=home.absolute(),
        workers=workers or provenance.hardware()["cores"],
        device=device,
        benchmarks_dir=expanded(benchmarks_dir).absolute() if benchmarks_dir else None,
        usd_per_hour=provenance.default_usd_per_hour() if usd_per_hour is None else usd_per_hour,
        unwritable=unwritable,
        **training,
    )
