"""A stage of the daily run: its identity, its manifest, and the rule by which it is skipped or built.

The **key** of a stage is the SHA-256 of canonical JSON: name, version, literal configuration and the content
digests of its inputs. Paths, hosts, buckets, devices and worker counts are execution and never part of it. A key stands
for one result; threads, micro-batch and device change how training and scoring round, so theirs stands for a result up
to rounding.
Outputs are written first and the **manifest** last, atomically and only if absent: a manifest means done.
A finished stage is skipped after every output was verified; what is missing or corrupted is built again.
"""

import hashlib
import json
import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.states import State

from model.errors import expanded, reason_of
from tasks.runtime.lock import is_free, locked
from tasks.runtime.logs import logger
from tasks.runtime.tracking import Tracker, check_tracker
from tasks.store import provenance, retries
from tasks.store.attempts import ATTEMPT_DIGITS, BUILT, drop_kept, holds, kept, publish, verified, withdraw
from tasks.store.backends import LocalStore, Store, open_store
from tasks.store.manifest import Json, Manifest, Output, StageError, manifest_key, parse_manifest, sha256_json
from tasks.store.objects import ReadOnlyStoreError, StoreError, digest_file, shown


@dataclass(frozen=True, kw_only=True)
class Place:
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


def open_place(
    store: str,
    cache: str | None,
    workers: int | None,
    device: str | None,
    benchmarks_dir: str | None,
    usd_per_hour: float | None,
    *,
    reading: bool = False,
    **training: Json,
) -> Place:
    """Resolve the execution settings of a run and fail early when the store or the tracker cannot be used. For
    `reading` nothing is written, made or tried: whoever reads finds out (`tasks/store/ledger.py`)."""
    check_tracker(training.get("tracker", Tracker.NONE))
    opened, unwritable = open_store(store), None
    if reading:
        opened.hurry()
        unwritable = f"{opened.url}: is opened for reading"
    else:
        try:
            opened.check()
        except ReadOnlyStoreError as error:
            unwritable = str(error)
    local = opened.url if isinstance(opened, LocalStore) and unwritable is None else ".daily-train"
    home = expanded(cache) if cache else Path(local) / "cache"
    return Place(
        store=opened,
        cache=home.absolute(),
        workers=workers or provenance.hardware()["cores"],
        device=device,
        benchmarks_dir=expanded(benchmarks_dir).absolute() if benchmarks_dir else None,
        usd_per_hour=provenance.default_usd_per_hour() if usd_per_hour is None else usd_per_hour,
        unwritable=unwritable,
        **training,
    )


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Identity of one stage. `recorded` names outputs that hold timings and must not identify anything."""

    name: str
    version: int
    config: dict[str, Json]
    inputs: dict[str, str]
    recorded: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return sha256_json({"stage": self.name, "version": self.version, "config": self.config, "inputs": self.inputs})


@dataclass(frozen=True, kw_only=True)
class Result:
    """A finished stage as later stages see it."""

    manifest: Manifest
    skipped: bool
    seconds: float
    """Wall time now: of the check when it was skipped, of the build when it was built."""

    @property
    def digest(self) -> str:
        return self.manifest.digest


def finish(stage: Stage, place: Place, build: Callable[[Path, Path], dict[str, Json] | None]) -> Result:
    """Skip the stage when the store holds it whole, else build it and publish its manifest.

    `build(work, out)` leaves the outputs in `out`; `work` outlives a killed process, so that a stage can resume
    there. The facts it returns (speeds and the like) go into the manifest's provenance. A build that could not be
    stored is kept, and stored by the next call without building again.
    """
    began = time.monotonic()
    work = place.cache / "work" / stage.name / stage.key
    done = verified(stage.name, stage.key, place)
    if done is None and place.unwritable is not None:
        raise StoreError(f"{place.unwritable}; stage {stage.name} is not in the store and would have to be built")
    if done is None or (work / BUILT).exists() or (work.exists() and is_free(work.with_suffix(".lock"))):
        with _alone(work):
            done = done or verified(stage.name, stage.key, place)  # another process built it while this one waited
            if done is None:
                manifest = publish(kept(stage, place, work) or _built(stage, place, work, build), place, work / "out")
                shutil.rmtree(work, ignore_errors=True)  # whoever removed the cache loses nothing
                return Result(manifest=manifest, skipped=False, seconds=time.monotonic() - began)
            drop_kept(work, done, place)
    return Result(manifest=done, skipped=True, seconds=time.monotonic() - began)


def load(name: str, key: str, place: Place) -> Result | None:
    """A stage that was finished before, by its key; None when the store does not hold it whole. Only reads."""
    began = time.monotonic()
    manifest = verified(name, key, replace(place, unwritable=place.unwritable or "only read"))
    return manifest and Result(manifest=manifest, skipped=True, seconds=time.monotonic() - began)


def materialise(result: Result, place: Place) -> Path:
    """A local folder with all outputs of a finished stage, each verified against the manifest.

    A local store is read in place; from a bucket each file is downloaded once into the cache, and again while its bytes
    change on the way. A file that is stored with other bytes than the manifest's is refused by name. Its manifest is
    moved aside, so that the next run builds the stage again.
    """
    manifest = result.manifest
    for output in manifest.outputs:
        key, wanted = manifest.location(output), output.content
        if holds(place.cache / key, wanted):
            continue
        path = place.store.get(key, place.cache)
        if (found := digest_file(path)) != wanted and (found := digest_file(path)) != wanted:
            if path.is_relative_to(place.cache):
                path.unlink()
            where = manifest_key(manifest.stage, manifest.key)
            aside = withdraw(where, place.store.read(where), manifest, place)
            raise StageError(
                f"{place.store.url}/{key} is corrupted: {found.bytes} bytes with sha256 {found.sha256}, expected "
                f"{wanted.bytes} bytes with {wanted.sha256}; run again to build stage {manifest.stage} anew{aside}"
            )
    first = manifest.location(manifest.outputs[0])
    root = place.cache if (place.cache / first).is_file() else Path(place.store.url)
    return root / manifest.folder


def read_json(result: Result, place: Place, path: str) -> Json:
    """One JSON output of a finished stage, verified."""
    output = result.manifest.output(path)
    content = place.store.read(result.manifest.location(output), most=output.bytes)
    if content is None or hashlib.sha256(content).hexdigest() != output.sha256:
        content = (materialise(result, place) / path).read_bytes()  # or it says what is wrong with it
    return json.loads(content)


def finished(name: str, place: Place) -> Iterator[Manifest]:
    """Manifests of all stages of a name, without a look at their outputs; what is none is named and passed over."""
    for where in place.store.list(f"stages/{name}"):
        parts = where.split("/")
        if len(parts) == 4 and parts[3] == "manifest.json":
            try:
                if content := place.store.read(where):
                    yield parse_manifest(content, name, parts[2])
            except (StageError, StoreError) as error:
                if retries.transient(error):
                    raise
                logger().warning("%s/%s is passed over: %s", place.store.url, shown(where), shown(error))


def transient(_task: object, _run: object, state: State) -> bool:
    """Whether a later attempt can mend a failure: somebody on the network did not answer. Never so for bad input."""
    error = state.result(raise_on_failure=False)
    return isinstance(error, BaseException) and retries.transient(error)


STAGE_TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": [5, 15, 30],
    "retry_condition_fn": transient,
}
"""How every stage is run as a Prefect task: kept by its own manifest, tried again when hub, store or server is away."""


def _built(stage: Stage, place: Place, work: Path, build: Callable[[Path, Path], dict[str, Json] | None]) -> Manifest:
    """Build the stage, and say in the work folder that this is done."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    out.mkdir(parents=True)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        facts = build(work, out) or {}
    except (OSError, MemoryError) as error:
        if retries.transient(error):
            raise
        where = getattr(error, "filename", None) or out
        raise StageError(f"stage {stage.name}: {where}: {reason_of(error)}") from error
    seconds = time.monotonic() - clock
    files = sorted(path for path in out.rglob("*") if path.is_file())
    if not files:
        raise StageError(f"stage {stage.name}: nothing was written to {out}")
    measured = [(path.relative_to(out).as_posix(), digest_file(path)) for path in files]
    manifest = Manifest(
        key=stage.key,
        stage=stage.name,
        version=stage.version,
        config=stage.config,
        inputs=stage.inputs,
        attempt=secrets.token_hex(ATTEMPT_DIGITS // 2),
        outputs=tuple(
            Output(path=name, bytes=digest.bytes, sha256=digest.sha256, recorded=name in stage.recorded)
            for name, digest in measured
        ),
        provenance={**_circumstances(place, started, seconds), **facts},
    )
    partial = work / f"{BUILT}.partial"
    partial.write_bytes(manifest.content())
    os.replace(partial, work / BUILT)
    return manifest


def _circumstances(place: Place, started: datetime, seconds: float) -> dict[str, Json]:
    return {
        "commit": provenance.commit(),
        "packages": provenance.packages(),
        "hardware": provenance.hardware(),
        "workers": place.workers,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "usd": round(seconds / 3600 * place.usd_per_hour, 6),
    }


@contextmanager
def _alone(work: Path) -> Iterator[None]:
    """Hold the machine-wide lock of one stage's work folder."""
    stage = f"stage {work.parent.name} {work.name[:12]}"
    with locked(work.with_suffix(".lock"), lambda message: logger().info("%s waits %s", stage, message)):
        yield
