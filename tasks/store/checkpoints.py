"""Checkpoints of a training in the store while it runs: when its machine is lost, another one goes on.

    checkpoints/<key of the stage>/step_000000100/<file>
    checkpoints/<key of the stage>/step_000000100/uploaded.json     size and SHA-256 of each file; written last

The trainer knows nothing of the store: its parent (tasks/runtime/supervise.py) follows its events and reads the folders
it leaves. An upload that fails is a warning and training goes on, because the next one may work.
"""

import errno
import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from logging import Logger, LoggerAdapter
from pathlib import Path
from threading import Lock
from typing import Any

from model.errors import DailyTrainError
from tasks.store.backends import Store
from tasks.store.objects import Digest, StoreError, digest_file, name_problem, printable, saved_steps
from tasks.store.retries import is_transient

CHECKPOINTS_KEPT = 2
RUN_FILES = ("run.json", "metrics.jsonl", "samples.json")  # of the run: its resolved budget, its curve, first samples
UPLOAD_RECORD = "uploaded.json"
Log = Logger | LoggerAdapter


class CheckpointUploads:
    """Uploads what the trainer has saved, one checkpoint at a time in a thread.

    One that becomes old while it waits is dropped for the newer one, however slow the store is: at most two are held
    on the disk beside the trainer's own.
    """

    def __init__(self, key: str, run_dir: Path, store: Store, warn: Callable[[str], None]) -> None:
        self.key, self.run_dir, self.store, self.warn = key, run_dir, store, warn
        self.staging = run_dir.parent / "uploads"
        self.newest = -1
        self.waiting: Path | None = None
        self.lock = Lock()
        self.pool = ThreadPoolExecutor(1)
        shutil.rmtree(self.staging, ignore_errors=True)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            self._take(event["step"])

    def close(self, *, keep: bool) -> None:
        """Wait for what is being uploaded. With `keep` also upload the newest that the trainer has left, without drop
        what waits: the stage's outputs replace it."""
        if keep and (steps := saved_steps(self.run_dir)):
            self._take(steps[-1])
        elif not keep:
            self._replace(None)
        self.pool.shutdown()

    def _take(self, step: int) -> None:
        if step <= self.newest:
            return
        name = _name(step)
        staged = self.staging / name
        try:
            staged.mkdir(parents=True)
            for path in (self.run_dir / "checkpoints" / name).iterdir():
                os.link(path, staged / path.name)  # the trainer drops old checkpoints, a link keeps the bytes
            for beside in RUN_FILES:
                shutil.copyfile(self.run_dir / beside, staged / beside)
        except OSError as error:
            self.warn(f"checkpoint {name} is not uploaded: {error}")
            return
        self.newest = step
        self._replace(staged)
        self.pool.submit(self._upload)

    def _replace(self, staged: Path | None) -> None:
        """Let this one wait; what waited is dropped."""
        with self.lock:
            old, self.waiting = self.waiting, staged
        if old is not None:
            shutil.rmtree(old, ignore_errors=True)

    def _upload(self) -> None:
        with self.lock:
            staged, self.waiting = self.waiting, None
        if staged is None:  # an upload before this one took the newer checkpoint
            return
        store, folder = self.store, f"checkpoints/{self.key}/{staged.name}"
        try:
            store.delete(f"{folder}/{UPLOAD_RECORD}")
            known = json.loads((staged / "state.json").read_text())["files"]
            digests = {}
            for path in sorted(staged.iterdir()):
                digest = Digest(**known[path.name]) if path.name in known else digest_file(path)
                digests[path.name] = asdict(digest)
                store.put(f"{folder}/{path.name}", path, digest)
            store.publish(f"{folder}/{UPLOAD_RECORD}", json.dumps(digests).encode())
            for old in _uploaded(self.key, store)[:-CHECKPOINTS_KEPT]:
                _delete(f"checkpoints/{self.key}/{_name(old)}", store)
        except (StoreError, OSError, ValueError, KeyError) as error:
            self.warn(f"checkpoint {staged.name} is not uploaded: {error}")
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def restore_checkpoint(key: str, run_dir: Path, store: Store, cache: Path, log: Log) -> None:
    """Fetch the newest intact checkpoint of the store into `run_dir`, when it is newer than those there."""
    steps = _uploaded(key, store)
    local_steps = reversed(saved_steps(run_dir)) if steps else ()
    newest_here = next((step for step in local_steps if _is_intact(run_dir / "checkpoints" / _name(step))), -1)
    for step in reversed(steps):
        if step <= newest_here:
            return
        folder, temporary = f"checkpoints/{key}/{_name(step)}", run_dir / "checkpoints" / f".{_name(step)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _download(folder, temporary, store, cache)
            for beside in RUN_FILES:
                (temporary / beside).replace(run_dir / beside)
        except (StoreError, OSError, ValueError, TypeError, AttributeError, RecursionError) as error:
            shutil.rmtree(temporary, ignore_errors=True)
            if not _is_damage(error):  # an older checkpoint would cost the steps between them
                raise
            log.warning("checkpoint %s is passed over: %s", _name(step), printable(error))
            continue
        shutil.rmtree(run_dir / "checkpoints" / _name(step), ignore_errors=True)  # a damaged one
        temporary.replace(run_dir / "checkpoints" / _name(step))
        log.info("the checkpoint of step %d comes from the store %s", step, store.url)
        return


def _is_damage(error: BaseException) -> bool:
    """Whether a checkpoint is to blame, and not a store that is away or refuses, or this disk that is full."""
    cause = error.__cause__ if isinstance(error, StoreError) else error
    if isinstance(cause, OSError):
        return cause.errno in (errno.ENOENT, errno.ENOTDIR, errno.EISDIR, errno.EIO)
    return not is_transient(error) and (cause is None or not isinstance(error, StoreError))


def _is_intact(folder: Path) -> bool:
    """Whether the trainer could go on from a checkpoint: its files are those that it wrote."""
    try:
        record = json.loads((folder / "state.json").read_text())
        own = record.pop("sha256")
        whole = own == hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
        return whole and all(digest_file(folder / name) == Digest(**file) for name, file in record["files"].items())
    except (DailyTrainError, OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return False


def discard_damaged(run_dir: Path, log: Log) -> None:
    """Move aside what the trainer could not read beside its checkpoints; it writes that anew. A finished model goes
    with it, because it is beside that model that these files are complete: the last steps are trained again."""
    finished = (run_dir / "final").exists()
    for name, whole in (("run.json", _is_record), ("samples.json", _are_samples), ("metrics.jsonl", _are_events)):
        path = run_dir / name
        try:
            if whole(path.read_text(), finished):
                continue
        except FileNotFoundError:
            if not finished:
                continue
        except (OSError, ValueError, TypeError, AttributeError, KeyError, RecursionError) as error:
            log.warning("%s is damaged (%s) and is written anew", path, printable(error))
        if path.exists() and name != "metrics.jsonl":  # of that the trainer keeps the lines before the damage
            path.replace(path.with_name(f"{name}.damaged"))
        shutil.rmtree(run_dir / "final", ignore_errors=True)


def _is_record(text: str, _: bool) -> bool:
    record = json.loads(text)
    return isinstance(record["steps"], int) and all(isinstance(one, dict) for one in record.get("execution", [{}]))


def _are_samples(text: str, finished: bool) -> bool:
    names = ("prompt", "untrained", "trained") if finished else ("prompt", "untrained")
    return all(isinstance(token, int) for sample in json.loads(text) for name in names for token in sample[name])


def _are_events(text: str, finished: bool) -> bool:
    events = [json.loads(line)["event"] for line in text.splitlines()] if finished else []
    return "done" in events or not finished


def delete_checkpoints(key: str, store: Store) -> None:
    """Remove the checkpoints of a finished stage from the store."""
    _delete(f"checkpoints/{key}", store)


def _download(folder: str, target: Path, store: Store, cache: Path) -> None:
    for name, fields in json.loads(store.read(f"{folder}/{UPLOAD_RECORD}") or b"{}").items():
        if reason := name_problem(name) or ("it has parts" if "/" in name else None):
            raise StoreError(f"file {printable(name)!r}: {reason}")
        path = store.get(f"{folder}/{name}", cache)
        if (found := digest_file(path)) != Digest(**fields):
            raise StoreError(f"{name} is corrupted: it is {found}, expected {Digest(**fields)}")
        shutil.copyfile(path, target / name)
    shutil.rmtree(cache / folder, ignore_errors=True)


def _delete(prefix: str, store: Store) -> None:
    for key in store.list(prefix):
        if key.endswith(f"/{UPLOAD_RECORD}"):  # without that file the rest does not count
            store.delete(key)
    store.clear(prefix)


def _uploaded(key: str, store: Store) -> list[int]:
    pattern = re.compile(rf"checkpoints/{re.escape(key)}/step_(\d{{9}})/{re.escape(UPLOAD_RECORD)}")
    return sorted(int(found[1]) for name in store.list(f"checkpoints/{key}") if (found := pattern.fullmatch(name)))


def _name(step: int) -> str:
    return f"step_{step:09d}"
