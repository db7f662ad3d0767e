"""Checkpoints of a training in the store while it runs: when its machine is lost, another one goes on.

    checkpoints/<key of the stage>/step_000000100/<file>
    checkpoints/<key of the stage>/step_000000100/uploaded.json     size and SHA-256 of each file; written last

The trainer knows nothing of the store: this follows its events and reads the folders it leaves. An upload that
fails is logged and training goes on, because the next one may work.
"""

import json
import math
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

from tasks.stage import Place, logger
from tasks.store import Digest, StoreError, digest_file

KEPT = 2
BESIDE = ("run.json", "metrics.jsonl", "samples.json")  # of the run: its resolved budget, its curve, first samples
LAST = "uploaded.json"


class Uploads:
    """Uploads what the trainer has saved, one at a time in a thread; what has become old meanwhile is passed over.

    Leaving the context after an error uploads the newest checkpoint, which SIGTERM made the trainer save.
    """

    def __init__(self, key: str, run_dir: Path, place: Place) -> None:
        self.key, self.run_dir, self.place, self.logger = key, run_dir, place, logger()
        self.staging = run_dir.parent / "uploads"
        self.newest = -1.0
        self.pool = ThreadPoolExecutor(1)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] == "checkpoint":
            self._take(event["step"])

    def __enter__(self) -> "Uploads":
        shutil.rmtree(self.staging, ignore_errors=True)
        return self

    def __exit__(self, kind: type | None, *exception: object) -> None:
        if kind is None:
            self.newest = math.inf  # the stage's outputs replace them
        elif steps := _local_steps(self.run_dir):
            self._take(steps[-1])
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
            for beside in BESIDE:
                shutil.copyfile(self.run_dir / beside, staged / beside)
        except OSError as error:
            self.logger.warning("checkpoint %s is not uploaded: %s", name, error)
            return
        self.newest = step
        self.pool.submit(self._upload, step, staged)

    def _upload(self, step: int, staged: Path) -> None:
        store, folder = self.place.store, f"checkpoints/{self.key}/{staged.name}"
        try:
            if step < self.newest:
                return
            store.delete(f"{folder}/{LAST}")
            digests = {}
            for path in sorted(staged.iterdir()):
                digests[path.name] = asdict(digest := digest_file(path))
                store.put(f"{folder}/{path.name}", path, digest)
            store.publish(f"{folder}/{LAST}", json.dumps(digests).encode())
            for old in _uploaded(self.key, self.place)[:-KEPT]:
                _delete(f"checkpoints/{self.key}/{_name(old)}", self.place)
        except (StoreError, OSError) as error:
            self.logger.warning("checkpoint %s is not uploaded: %s", staged.name, error)
        finally:
            shutil.rmtree(staged, ignore_errors=True)


def restore(key: str, run_dir: Path, place: Place) -> None:
    """Fetch the newest intact checkpoint of the store into `run_dir`, when it is newer than those there."""
    newest_here = max(_local_steps(run_dir), default=-1)
    for step in reversed(_uploaded(key, place)):
        if step <= newest_here:
            return
        folder, temporary = f"checkpoints/{key}/{_name(step)}", run_dir / "checkpoints" / f".{_name(step)}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(parents=True)
        try:
            _download(folder, temporary, place)
        except (StoreError, OSError, ValueError, TypeError) as error:
            logger().warning("%s is passed over: %s", folder, error)
            continue
        for beside in BESIDE:
            (temporary / beside).replace(run_dir / beside)
        temporary.replace(run_dir / "checkpoints" / _name(step))
        logger().info("%s comes from the store %s", _name(step), place.store.url)
        return


def clear(key: str, place: Place) -> None:
    """Remove the checkpoints of a finished stage from the store."""
    _delete(f"checkpoints/{key}", place)


def _download(folder: str, target: Path, place: Place) -> None:
    for name, fields in json.loads(place.store.read(f"{folder}/{LAST}")).items():
        path = place.store.get(f"{folder}/{name}", place.cache)
        if (found := digest_file(path)) != Digest(**fields):
            raise StoreError(f"{name} is corrupted: it is {found}, expected {Digest(**fields)}")
        shutil.copyfile(path, target / name)
    shutil.rmtree(place.cache / folder, ignore_errors=True)


def _delete(prefix: str, place: Place) -> None:
    keys = list(place.store.list(prefix))
    for key in sorted(keys, key=lambda key: not key.endswith(LAST)):  # without that file the rest does not count
        place.store.delete(key)


def _uploaded(key: str, place: Place) -> list[int]:
    found = place.store.list(f"checkpoints/{key}")
    return sorted(int(name.split("/")[-2].removeprefix("step_")) for name in found if name.endswith(f"/{LAST}"))


def _local_steps(run_dir: Path) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in (run_dir / "checkpoints").glob("step_*"))


def _name(step: int) -> str:
    return f"step_{step:09d}"
