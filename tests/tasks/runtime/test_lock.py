"""Locks between processes: who holds one, and what becomes of its file."""

import shutil
import signal
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from tasks.runtime.lock import locked

ROOT = Path(__file__).resolve().parents[3]


def test_who_waits_for_a_lock_says_who_holds_it_and_can_be_interrupted(tmp_path: Path):
    class Interrupted(Exception):
        pass

    def interrupt(*_: object) -> None:
        raise Interrupted

    path, messages = tmp_path / "stage.lock", list[str]()
    program = (
        "import sys; from pathlib import Path; from tasks.runtime.lock import locked\n"
        "with locked(Path(sys.argv[1]), print): print(flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", program, str(path)], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    holder.stdout.readline()
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with pytest.raises(Interrupted):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with locked(path, messages.append):
                pass
    finally:
        signal.signal(signal.SIGALRM, before)
        holder.communicate()
    [message] = messages
    assert f"until {path} is free" in message and f"process {holder.pid}: {sys.executable} -c" in message
    with locked(path, messages.append):
        assert len(messages) == 1


def test_a_lock_in_place_of_which_somebody_left_a_link_empties_nothing(tmp_path: Path):
    (tmp_path / "precious").write_text("precious")
    (tmp_path / "lock").symlink_to(tmp_path / "precious")
    with locked(tmp_path / "lock", print):
        assert (tmp_path / "precious").read_text() == "precious"


def test_a_lock_whose_file_was_removed_is_taken_anew(tmp_path: Path):
    path, entered = tmp_path / "cache" / "x.lock", []

    def remove_lock(message: str) -> None:
        shutil.rmtree(path.parent)
        waits.set()

    def second() -> None:
        with locked(path, remove_lock):
            entered.append(path.exists())

    waits, other = threading.Event(), threading.Thread(target=second)
    with locked(path, print):
        other.start()
        assert waits.wait(30)
    other.join(30)
    assert entered == [True]
