"""The Hugging Face hub: files and datasets at a commit, from the library's cache alone when the hub does not answer.

The hub is asked once whether it answers, which takes at most 10 s; the library itself would try for minutes. A hub
that does not answer is not asked again, and the error says so without a cause, so that no stage waits for it. Errors of
a hub that does answer keep their cause, from which `tasks/store/stage.py` decides whether a retry may succeed.
"""

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, DownloadMode, IterableDataset, data_files
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import constants, get_session, hf_hub_download, try_to_load_from_cache
from huggingface_hub.errors import HFValidationError

from model.errors import DailyTrainError, reason_of

ANSWER_SECONDS = 5
LOOK_UP_SECONDS = 10
"""A look-up of the hub's name has no time limit of its own."""


class HubError(DailyTrainError):
    """The hub does not have what was asked for, or does not answer and the cache does not hold it."""


def unreachable() -> str | None:
    """Why the hub cannot be read, in words; None: it answers. Asked once a minute."""
    if constants.HF_HUB_OFFLINE or datasets.config.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    return _asked(constants.ENDPOINT, int(time.monotonic() // 60))


@cache
def _asked(endpoint: str, minute: int) -> str | None:
    met: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=ANSWER_SECONDS)  # any answer will do
            met.append(None)
        except Exception as error:  # of the HTTP library that the installed version of the client is built on
            met.append(str(error) or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LOOK_UP_SECONDS)
    reason = met[0] if met else f"no answer within {LOOK_UP_SECONDS} s"
    return reason and f"the hub ({endpoint}) does not answer: {reason}"


def load_file(repository: str, name: str, commit: str, *, again: bool = False) -> Path:
    """A file of a model's repository at a commit. `again` replaces the copy in the cache. Raises HubError."""
    try:
        cached = try_to_load_from_cache(repository, name, revision=commit)
    except HFValidationError as error:
        raise HubError(f"{repository}@{commit}: {reason_of(cause_of(error))}") from error
    if isinstance(cached, str) and not again:
        return Path(cached)
    if reason := unreachable():
        raise HubError(f"{repository}@{commit}: {reason}, and the cache holds no {name} of it")
    try:
        return Path(hf_hub_download(repository, name, revision=commit, force_download=again))
    except Exception as error:  # the hub client and the network stack share no base class
        raise HubError(f"{repository}@{commit}: {name} cannot be loaded: {reason_of(cause_of(error))}") from error


def load_dataset(
    repository: str, configuration: str | None, split: str, commit: str | None, *, streaming: bool = False
) -> Dataset | IterableDataset:
    """A split of a dataset at a commit, or of a local folder in the hub's layout, whose commit is None.

    Raises HubError; for one that is neither on the hub nor in the cache within seconds.
    """
    local = Path(repository).exists()
    source = repository if local else f"{repository}@{commit}"
    reason = None if local else unreachable()
    error: Exception | None = None
    with _cache_alone() if reason else nullcontext(), _own_files_alone(Path(repository) if local else None):
        try:
            builder = datasets.load_dataset_builder(repository, configuration, revision=commit)
            if not local and builder.hash != commit:  # the library would take whatever commit was cached last
                raise HubError(f"the cache holds commit {builder.hash} of it")
            if streaming:
                return builder.as_streaming_dataset(split=split)
            _prepare(builder)
            return builder.as_dataset(split=split)
        except Exception as met:  # the hub client, the network stack and the builders share no base class
            error = met
    if reason:
        held = f", only {error}" if isinstance(error, HubError) else ""
        raise HubError(f"{source}: {reason}, and the cache does not hold it{held}")
    raise HubError(f"{source}: {reason_of(cause_of(error))}") from error


@contextmanager
def _own_files_alone(folder: Path | None) -> Iterator[None]:
    """The header of a dataset's README says which files are read, and may name any file of this machine and any host:
    what lies outside the dataset is in no digest of it. Refused before it is looked for. `folder`: None for the hub."""
    resolve = data_files.resolve_pattern

    def resolved(pattern: str, base_path: str, *others: Any, **named: Any) -> list[str]:
        path, base = PurePosixPath(pattern), PurePosixPath(os.path.normpath(base_path))
        inside = base.is_relative_to(folder.resolve()) if folder else base_path.startswith("hf://")
        if (
            not inside
            or path.is_absolute()
            or ".." in (*path.parts, *PurePosixPath(base_path).parts)
            or ("://" in pattern or "::" in pattern)
        ):
            raise HubError(f"its README names files that are not in it: {pattern!r} in {base_path!r}")
        return resolve(pattern, base_path, *others, **named)

    data_files.resolve_pattern = resolved
    try:
        yield
    finally:
        data_files.resolve_pattern = resolve


def _prepare(builder: DatasetBuilder) -> None:
    """Download and convert; what cannot be read is downloaded again before it is judged."""
    try:
        builder.download_and_prepare()
    except DatasetGenerationError:
        builder.download_and_prepare(download_mode=DownloadMode.FORCE_REDOWNLOAD)


def cause_of(error: BaseException) -> BaseException:
    """Of an error of the library that only says that there was one, what it was raised from."""
    while isinstance(error, DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return error


@contextmanager
def _cache_alone() -> Iterator[None]:
    kept = constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE
    constants.HF_HUB_OFFLINE = datasets.config.HF_HUB_OFFLINE = True
    try:
        yield
    finally:
        constants.HF_HUB_OFFLINE, datasets.config.HF_HUB_OFFLINE = kept
