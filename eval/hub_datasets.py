"""Datasets of the Hugging Face hub at a commit, from the library's cache alone when the hub does not answer.

The library takes half a second of CPU to import: whoever may need no dataset imports this file where it reads one.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path, PurePosixPath
from typing import Any

import datasets
from datasets import Dataset, DatasetBuilder, DownloadMode, IterableDataset, data_files
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import constants

from eval.hub import HubError, unreachable
from model.errors import reason_of


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
        except Exception as caught:  # the hub client, the network stack and the builders share no base class
            error = caught
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
