"""A stage of the daily run: its identity, its manifest, and the rule by which it is skipped or built.

The **key** of a stage is the SHA-256 of canonical JSON: name, version, literal configuration and the content
digests of its inputs. Paths, hosts, buckets, devices and worker counts are execution and never part of it. A key stands
for one result; threads, micro-batch and device change how training and scoring round, so theirs stands for a result up
to rounding.
Outputs are written first and the **manifest** last, atomically and only if absent: a manifest means done.
A finished stage is skipped after every output was verified; what is missing or corrupted is built again.
"""

import os
import secrets
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from prefect.context import FlowRunContext

from model.errors import reason_of
from tasks.runtime.lock import is_unlocked, locked
from tasks.runtime.logs import logger
from tasks.runtime.stage_events import announced, note
from tasks.store import provenance, retries
from tasks.store.attempts import (
    ATTEMPT_DIGITS,
    BUILT,
    StageResult,
    discard_unpublished,
    publish_build,
    unpublished_build,
    verified_manifest,
)
from tasks.store.attempts import fetch_outputs as fetch_outputs
from tasks.store.attempts import finished_manifests as finished_manifests
from tasks.store.attempts import load as load
from tasks.store.attempts import read_json as read_json
from tasks.store.context import RunContext
from tasks.store.manifest import Json, Manifest, Output, StageError, sha256_json
from tasks.store.objects import StoreError, digest_file
from tasks.store.run_states import record_stage


@dataclass(frozen=True, kw_only=True)
class Stage:
    """Identity of one stage. `volatile` names outputs that hold timings, which identify nothing."""

    name: str
    version: int
    config: dict[str, Json]
    inputs: dict[str, str]
    volatile: frozenset[str] = frozenset()

    @property
    def key(self) -> str:
        return sha256_json({"stage": self.name, "version": self.version, "config": self.config, "inputs": self.inputs})


@announced
def build_or_skip(
    stage: Stage, context: RunContext, build: Callable[[Path, Path], dict[str, Json] | None]
) -> StageResult:
    """Skip the stage when the store holds it whole, else build it and publish its manifest.

    `build(work, out)` leaves the outputs in `out`; `work` outlives a killed process, so that a stage can resume
    there. The facts it returns (speeds and the like) go into the manifest's provenance. A build that could not be
    stored is kept, and stored by the next call without building again.
    """
    began = time.monotonic()
    work = context.cache / "work" / stage.name / stage.key
    done = verified_manifest(stage.name, stage.key, context)
    if done is None and context.unwritable is not None:
        raise StoreError(f"{context.unwritable}; stage {stage.name} is not in the store and would have to be built")
    if done is None or (work / BUILT).exists() or (work.exists() and is_unlocked(work.with_suffix(".lock"))):
        with _work_lock(work):
            done = done or verified_manifest(
                stage.name, stage.key, context
            )  # another process built it while this one waited
            if done is None:
                manifest = publish_build(
                    unpublished_build(stage, context, work) or _build(stage, context, work, build),
                    context,
                    work / "out",
                )
                shutil.rmtree(work, ignore_errors=True)  # whoever removed the cache loses nothing
                return _finished(manifest, began, skipped=False)
            discard_unpublished(work, done, context)
    return _finished(done, began, skipped=True)


def _finished(manifest: Manifest, began: float, *, skipped: bool) -> StageResult:
    """The result of a stage, which the state of the run counts. The log of a task says what it skipped of several."""
    result = StageResult(manifest=manifest, skipped=skipped, seconds=time.monotonic() - began)
    record_stage(result)
    return result


def _build(
    stage: Stage, context: RunContext, work: Path, build: Callable[[Path, Path], dict[str, Json] | None]
) -> Manifest:
    """Build the stage, and say in the work folder that this is done."""
    out = work / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.unlink(missing_ok=True)
    out.mkdir(parents=True)
    started, clock = datetime.now(UTC), time.monotonic()
    try:
        facts = build(work, out) or {}
    except (OSError, MemoryError) as error:
        if retries.is_transient(error):
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
            Output(path=name, bytes=digest.bytes, sha256=digest.sha256, volatile=name in stage.volatile)
            for name, digest in measured
        ),
        provenance={**_provenance(context, started, seconds), **facts},
    )
    partial = work / f"{BUILT}.partial"
    partial.write_bytes(manifest.content())
    os.replace(partial, work / BUILT)
    return manifest


def _provenance(context: RunContext, started: datetime, seconds: float) -> dict[str, Json]:
    return {
        "commit": provenance.commit(),
        **_run_name(),
        "packages": provenance.packages(),
        "hardware": provenance.hardware(),
        "workers": context.workers,
        "started": started.isoformat(timespec="seconds"),
        "seconds": round(seconds, 3),
        "usd": round(seconds / 3600 * context.usd_per_hour, 6),
    }


def _run_name() -> dict[str, Json]:
    """The name of the flow run that builds, if one does."""
    context = FlowRunContext.get()
    return {"run": context.flow_run.name} if context is not None and context.flow_run is not None else {}


@contextmanager
def _work_lock(work: Path) -> Iterator[None]:
    """Hold the machine-wide lock of one stage's work folder."""

    def wait(message: str) -> None:
        note(f"waits {message}")
        logger().info("stage %s waits %s", work.parent.name, message)

    with locked(work.with_suffix(".lock"), wait):
        yield
