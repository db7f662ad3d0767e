"""Compiled code that later processes use again: a resumed run, or the next night's, does not compile.

torch.compile keeps what it makes in a folder. The keys there hold the traced graph, the versions of torch and Triton,
the GPU and torch's settings, but the code of our operators (model/kernels/cudnn_attention.py) by its name alone, and up
to torch 2.11 not the precision of autocast. So each state of the sources and each precision has a folder of its own.

torch executes what it finds there and does not look at it first; a file that was cut short would end every later run.
Hence files.json, the SHA-256 of each file: a process that has the folder for itself removes what is not in it, and
everything if one file differs. What is kept is code: the folder is for its owner alone.
"""

import fcntl
import json
import os
import shutil
from contextlib import suppress
from hashlib import sha256
from pathlib import Path

from model.files import file_sha256, write_json

KEPT_FOLDERS = 4
"""Folders; those whose use began the longest ago are deleted."""
_FILES, _LOCK = "files.json", "in-use.lock"
_CHOSEN = "TORCHINDUCTOR_CACHE_DIR" in os.environ  # torch sets it as well, when it imports the compiler
_AUTOCAST = ("torch.amp.autocast_mode._enter_autocast", "torch.amp.autocast_mode._exit_autocast")


class CompiledCode:
    """The folder of compiled code that this process uses, from here to its end."""

    def __init__(self, folder: Path, precision: str) -> None:
        """Use a folder in `folder`, unless TORCHINDUCTOR_CACHE_DIR names another one; before anything is compiled.
        Raises OSError where it cannot be written."""
        self.folder: Path | None = None
        if not _CHOSEN:
            self.folder = folder.resolve() / f"{precision}-{_sources_sha256()[:16]}"
            self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            os.utime(self.folder)
            self._lock = (self.folder / _LOCK).open("w")  # the kernel frees it, however this process ends
            with suppress(BlockingIOError):  # else others use it: they have looked
                fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove_damaged(self.folder)
            fcntl.flock(self._lock, fcntl.LOCK_SH)
            _remove_old(folder)
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(self.folder)
        import torch._functorch.config  # noqa: PLC0415 (takes a second)
        import torch._inductor.config  # noqa: PLC0415

        # torch would keep no graph with these, which are in ours: what they do is in its key, with their arguments
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
        torch._inductor.config.unsafe_marked_cacheable_functions |= dict.fromkeys(_AUTOCAST, torch.__version__)

    def record(self) -> None:
        """What is there now is as it should be: call it when nothing is being compiled."""
        if self.folder is not None:
            with suppress(OSError):  # then it is compiled again
                digests = {name: file_sha256(self.folder / name) for name in _names(self.folder)}
                write_json(self.folder / _FILES, digests)


def _names(folder: Path) -> list[str]:
    """Of the files in a folder and the folders in it, without locks and what is being written."""
    return sorted(
        str(path.relative_to(folder))
        for path in folder.rglob("*")
        if path.is_file() and path.name != _FILES and path.suffix not in (".lock", ".tmp")
    )


def _remove_damaged(folder: Path) -> None:
    """Leave the files that were recorded; none, if one of them is not as it was."""
    try:
        recorded = json.loads((folder / _FILES).read_text())
        if any(file_sha256(folder / name) != digest for name, digest in recorded.items()):
            recorded = {}
    except (OSError, ValueError, AttributeError):
        recorded = {}
    for name in set(_names(folder)) - set(recorded):
        (folder / name).unlink()


def _remove_old(folder: Path) -> None:
    """All but the newest folders, unless a process uses them."""
    with suppress(OSError):  # several processes may do this
        for old in sorted(folder.iterdir(), key=lambda path: path.stat().st_mtime)[:-KEPT_FOLDERS]:
            with (old / _LOCK).open("w") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(old)


def _sources_sha256() -> str:
    """Of the files of this package."""
    paths = sorted(Path(__file__).parents[1].rglob("*.py"))
    return sha256("".join(path.name + file_sha256(path) for path in paths).encode()).hexdigest()
