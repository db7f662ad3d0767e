"""A lock of this machine that is a file: whoever waits for it says who holds it."""

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def locked(path: Path, waiting: Callable[[str], None]) -> Iterator[int]:
    """Hold the lock; gives its descriptor, which a child may inherit. The kernel frees it when the last process that
    has the descriptor is gone. Before it waits it calls `waiting` with the file and who holds it."""
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("a") as file:  # never emptied: it may be a link to anything, where others write
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                waiting(f"until {path} is free, which is held by {_holder(path)}")
                fcntl.flock(file, fcntl.LOCK_EX)
            if not _is_there(path, file.fileno()):
                continue  # the cache was removed meanwhile: whoever comes now makes a new file
            yield file.fileno()
            return


def is_unlocked(path: Path) -> bool:
    """Whether nobody holds the lock now."""
    with suppress(OSError), path.open("a") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return True
    return False


def _is_there(path: Path, file: int) -> bool:
    with suppress(FileNotFoundError):
        return os.path.samestat(path.stat(), os.fstat(file))
    return False


def _holder(path: Path) -> str:
    """The process that holds the lock, where this user may know."""
    file = path.stat()
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):  # of another user, or ended meanwhile
            for descriptor in (process / "fd").iterdir():
                opened = descriptor.stat()
                same = (opened.st_dev, opened.st_ino) == (file.st_dev, file.st_ino)
                if same and "FLOCK" in (process / "fdinfo" / descriptor.name).read_text():
                    command = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                    return f"process {process.name}: {command.strip()[:200]}"
    return "another process"
