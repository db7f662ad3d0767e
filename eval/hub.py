"""The Hugging Face hub: whether it answers, and files at a commit, from the library's cache alone when it does not.

Datasets are in `eval/hub_datasets.py`.

The hub is asked once whether it answers, which takes at most 10 s; the library itself would try for minutes. A hub
that does not answer is not asked again, and the error says so without a cause, so that no stage waits for it. Errors of
a hub that does answer keep their cause, from which `tasks/store/stage.py` decides whether a retry may succeed.
"""

import os
import re
import sys
import threading
import time
from functools import cache
from pathlib import Path

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
    if constants.HF_HUB_OFFLINE or os.environ.get("HF_DATASETS_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return "HF_HUB_OFFLINE is set"
    return _ask_hub(constants.ENDPOINT, int(time.monotonic() // 60))


@cache
def _ask_hub(endpoint: str, minute: int) -> str | None:
    answers: list[str | None] = []

    def ask() -> None:
        try:
            get_session().head(endpoint, timeout=ANSWER_SECONDS)  # any answer will do
            answers.append(None)
        except Exception as error:  # of the HTTP library that the installed version of the client is built on
            answers.append(str(error) or type(error).__name__)

    asking = threading.Thread(target=ask, daemon=True)
    asking.start()
    asking.join(LOOK_UP_SECONDS)
    reason = answers[0] if answers else f"no answer within {LOOK_UP_SECONDS} s"
    return reason and f"the hub ({endpoint}) does not answer: {reason}"


def may_be_cached(dataset: str) -> bool:
    """Whether a cache holds anything of the name of a dataset. Less than half a second of importing the library tells,
    which knows whether it is whole."""
    if "datasets" in sys.modules:
        return True
    folders = (os.environ.get("HF_DATASETS_CACHE", Path(constants.HF_HOME) / "datasets"), constants.HF_HUB_CACHE)
    names = {_letters(name) for folder in folders if os.path.isdir(folder) for name in os.listdir(folder)}
    return not names.isdisjoint((_letters(dataset), f"datasets{_letters(dataset)}"))


def _letters(name: str) -> str:
    """Of a folder's name: the library writes `Owner/SomeSet` as `Owner___some_set`, its client as `Owner--SomeSet`."""
    return re.sub("[^a-z0-9]", "", name.casefold())


def load_file(repository: str, name: str, commit: str, *, again: bool = False) -> Path:
    """A file of a model's repository at a commit. `again` replaces the copy in the cache. Raises HubError."""
    try:
        cached = try_to_load_from_cache(repository, name, revision=commit)
    except HFValidationError as error:
        raise HubError(f"{repository}@{commit}: {reason_of(error)}") from error
    if isinstance(cached, str) and not again:
        return Path(cached)
    if reason := unreachable():
        raise HubError(f"{repository}@{commit}: {reason}, and the cache holds no {name} of it")
    try:
        return Path(hf_hub_download(repository, name, revision=commit, force_download=again))
    except Exception as error:  # the hub client and the network stack share no base class
        raise HubError(f"{repository}@{commit}: {name} cannot be loaded: {reason_of(error)}") from error
