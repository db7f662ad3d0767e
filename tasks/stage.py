"""A stage of the daily run: its identity, its manifest, and the rule by which it is skipped or built.

The **key** of a stage is the SHA-256 of canonical JSON: name, version, literal configuration and the content
digests of its inputs. Paths, hosts, buckets, devices and worker counts are execution and never part of it. A key stands
for one result; threads, micro-batch and device change how training and scoring round, so theirs stands for a result up
to rounding.
Outputs are written first and the **manifest** last, atomically and only if absent: a manifest means done.
A finished stage is skipped after every output was verified; what is missing or corrupted is built again.

    stages/<name>/<key>/manifest.json
    stages/<name>/<key>/<attempt>/<output>        one folder an attempt: two machines never mix their files
"""

import hashlib
import json
import logging
import math
import secrets
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from prefect.cache_policies import NO_CACHE
from prefect.exceptions import MissingContextError
from prefect.logging import get_run_logger
from prefect.states import State

from model.errors import DailyTrainError, expanded, reason_of
from tasks import provenance
from tasks.lock import locked
from tasks.store import Digest, LocalStore, Store, digest_file, open_store
from tasks.tracking import Tracker, check_tracker

Json = Any


class StageError(DailyTrainError):
    """A stage cannot be identified, verified or built; the message names the stage, the file and the value."""


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
    **training: Json,
) -> Place:
    """Resolve the execution settings of a run and fail early when the store or the tracker cannot be used."""
    check_tracker(training.get("tracker", Tracker.NONE))
    opened = open_store(store)
    opened.check()
    local = opened.url if isinstance(opened, LocalStore) else ".daily-train"
    home = expanded(cache) if cache else Path(local) / "cache"
    return Place(
        store=opened,
        cache=home.absolute(),
        workers=workers or provenance.hardware()["cores"],
        device=device,
        benchmarks_dir=expanded(benchmarks_dir).absolute() if benchmarks_dir else None,
        usd_per_hour=provenance.default_usd_per_hour() if usd_per_hour is None else usd_per_hour,
        **training,
    )


@dataclass(frozen=True, kw_only=True)
class Output:
    """One file a stage produced, relative to the stage's attempt."""

    path: str
    bytes: int
    sha256: str
    recorded: bool = False
    """Holds timings or the like: verified as any other, but no part of what later stages are identified by."""


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage consumed, produced and how."""

    key: str
    stage: str
    version: int
    config: Json
    inputs: dict[str, str]
    attempt: str
    outputs: tuple[Output, ...]
    provenance: dict[str, Json] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the paths and digests of all outputs that are not merely recorded."""
        return sha256_json([[output.path, output.sha256] for output in self.outputs if not output.recorded])

    def output(self, path: str) -> Output:
        """The output of that name."""
        for output in self.outputs:
            if output.path == path:
                return output
        raise StageError(f"stage {self.stage} {self.key[:12]} has no output {path!r}")

    def location(self, output: Output) -> str:
        """The output's key in the store."""
        return f"stages/{self.stage}/{self.key}/{self.attempt}/{output.path}"


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
        return sha256_json(
            {"stage": self.name, "version": self.version, "config": self.config, "inputs": self.inputs}
        )


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


def canonical_json(value: Json) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Refuses what has no deterministic form."""
    _refuse_unstable(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_unstable(value: Json, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise StageError(f"{where}: a key must be a string to be part of an identity, got {name!r}")
            _refuse_unstable(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _refuse_unstable(item, f"{where}[{position}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise StageError(f"{where}: {value} cannot be part of an identity")
    elif value is not None and not isinstance(value, str | int):
        raise StageError(f"{where}: a {type(value).__name__} cannot be part of an identity: {value!r}")


def sha256_json(value: Json) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def finish(stage: Stage, place: Place, build: Callable[[Path, Path], dict[str, Json] | None]) -> Result:
    """Skip the stage when the store holds it whole, else build it and publish its manifest.

    `build(work, out)` leaves the outputs in `out`; `work` outlives a killed process, so that a stage can resume
    there. The facts it returns (speeds and the like) go into the manifest's provenance.
    """
    began = time.monotonic()
    if done := _verified(stage.name, stage.key, place):
        return Result(manifest=done, skipped=True, seconds=time.monotonic() - began)
    work = place.cache / "work" / stage.name / stage.key
    out = work / "out"
    with _alone(work):
        if done := _verified(stage.name, stage.key, place):  # another process built it while this one waited
            return Result(manifest=done, skipped=True, seconds=time.monotonic() - began)
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir(parents=True)
        started, clock = datetime.now(UTC), time.monotonic()
        try:
            facts = build(work, out) or {}
        except (OSError, MemoryError) as error:
            where = getattr(error, "filename", None) or out
            raise StageError(f"stage {stage.name}: {where}: {reason_of(error)}") from error
        seconds = time.monotonic() - clock
        manifest = _publish(stage, place, out, {**_circumstances(place, started, seconds), **facts})
        shutil.rmtree(work)
    return Result(manifest=manifest, skipped=False, seconds=time.monotonic() - began)


def load(name: str, key: str, place: Place) -> Result | None:
    """A stage that was finished before, by its key; None when the store does not hold it whole."""
    began = time.monotonic()
    manifest = _verified(name, key, place)
    return manifest and Result(manifest=manifest, skipped=True, seconds=time.monotonic() - began)


def materialise(result: Result, place: Place) -> Path:
    """A local folder with all outputs of a finished stage, each verified against the manifest.

    A local store is read in place; from a bucket each file is downloaded once into the cache. A file whose bytes
    are not the manifest's is refused by name and its manifest withdrawn, so that the next run builds it again.
    """
    manifest = result.manifest
    for output in manifest.outputs:
        key, wanted = manifest.location(output), Digest(output.bytes, output.sha256)
        cached = place.cache / key
        if cached.is_file() and digest_file(cached) == wanted:
            continue
        path = place.store.get(key, place.cache)
        if (found := digest_file(path)) != wanted:
            place.store.delete(_manifest_key(manifest.stage, manifest.key))
            raise StageError(
                f"{place.store.url}/{key} is corrupted: {found.bytes} bytes with sha256 {found.sha256}, expected "
                f"{wanted.bytes} bytes with {wanted.sha256}; run again to build stage {manifest.stage} anew"
            )
    first = manifest.location(manifest.outputs[0])
    root = place.cache if (place.cache / first).is_file() else Path(place.store.url)
    return root / f"stages/{manifest.stage}/{manifest.key}/{manifest.attempt}"


def read_json(result: Result, place: Place, path: str) -> Json:
    """One JSON output of a finished stage, verified."""
    output = result.manifest.output(path)
    content = place.store.read(result.manifest.location(output))
    if content is None or hashlib.sha256(content).hexdigest() != output.sha256:
        materialise(result, place)  # says what is wrong with it
    return json.loads(content or b"null")


def transient(_task: object, _run: object, state: State) -> bool:
    """Whether a later attempt can mend a failure: somebody on the network did not answer. Never so for bad input."""
    error = state.result(raise_on_failure=False)
    while isinstance(error, BaseException):
        if isinstance(error, ConnectionError | TimeoutError | socket.gaierror):
            return True
        error = error.__cause__ if error.__suppress_context__ else error.__context__
    return False


STAGE_TASK: dict[str, Any] = {
    "cache_policy": NO_CACHE,
    "retries": 3,
    "retry_delay_seconds": [5, 15, 30],
    "retry_condition_fn": transient,
}
"""How every stage is run as a Prefect task: kept by its own manifest, tried again when hub, store or server is away."""


def logger() -> logging.Logger | logging.LoggerAdapter:
    """The run's logger inside a flow or task, a plain one elsewhere."""
    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("daily_train")


def _manifest_key(name: str, key: str) -> str:
    return f"stages/{name}/{key}/manifest.json"


def _verified(name: str, key: str, place: Place) -> Manifest | None:
    """The stage's manifest when it is valid and every output is as it says; a bad one is withdrawn."""
    where = _manifest_key(name, key)
    content = place.store.read(where)
    if content is None:
        return None
    try:
        manifest = _parse(content)
        if manifest.key != key:
            raise StageError(f"its key is {manifest.key}")
        for output in manifest.outputs:
            found, wanted = place.store.digest(manifest.location(output)), Digest(output.bytes, output.sha256)
            if found is None:
                raise StageError(f"{output.path} is missing")
            if found != wanted:
                raise StageError(f"{output.path} is corrupted: it is {found}, expected {wanted}")
    except StageError as error:
        logger().warning("%s/%s is not valid: %s; stage %s is built again", place.store.url, where, error, name)
        place.store.delete(where)
        return None
    return manifest


def _parse(content: bytes) -> Manifest:
    try:
        fields = json.loads(content)
        own = fields.pop("manifest_sha256")
        if own != sha256_json(fields):
            raise StageError("the manifest itself is corrupted")
        outputs = tuple(Output(**output) for output in fields.pop("outputs"))
        return Manifest(**fields, outputs=outputs)
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise StageError(f"the manifest itself is corrupted ({error})") from error


def _publish(stage: Stage, place: Place, out: Path, circumstances: dict[str, Json]) -> Manifest:
    files = sorted(path for path in out.rglob("*") if path.is_file())
    if not files:
        raise StageError(f"stage {stage.name}: nothing was written to {out}")
    measured = [(path, path.relative_to(out).as_posix(), digest_file(path)) for path in files]
    manifest = Manifest(
        key=stage.key,
        stage=stage.name,
        version=stage.version,
        config=stage.config,
        inputs=stage.inputs,
        attempt=secrets.token_hex(4),
        outputs=tuple(
            Output(path=name, bytes=digest.bytes, sha256=digest.sha256, recorded=name in stage.recorded)
            for _, name, digest in measured
        ),
        provenance=circumstances,
    )
    for (path, _, digest), output in zip(measured, manifest.outputs, strict=True):
        place.store.put(manifest.location(output), path, digest)
    fields = asdict(manifest)
    content = json.dumps({**fields, "manifest_sha256": sha256_json(fields)}, indent=1, sort_keys=True)
    if place.store.publish(_manifest_key(stage.name, stage.key), content.encode()):
        return manifest
    if winner := _verified(stage.name, stage.key, place):  # another machine was faster: its result is the result
        return winner
    raise StageError(f"stage {stage.name} {stage.key}: {place.store.url} refused its manifest and holds no valid one")


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
