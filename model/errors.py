"""What a person reads of an error: one sentence that names the file or the setting and the value.

Errors that a person can mend are `DailyTrainError`s, raised where file and value are known. `sentence_of` is the last
net, at the top of every command: it knows errors of the operating system too, and takes everything else for a mistake
of the program, whose traceback goes to a file. `DAILY_TRAIN_DEBUG=1` shows the traceback of any error.
"""

import difflib
import errno
import os
import sys
import tempfile
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

LONGEST_SENTENCE = 2000
LONGEST_VALUE = 200
DEBUG = "DAILY_TRAIN_DEBUG"


class DailyTrainError(Exception):
    """Something that a person can mend; the message is one sentence that names file or setting, and value."""

    def __str__(self) -> str:
        return in_one_line(super().__str__())


def debugging() -> bool:
    """Whether tracebacks are asked for."""
    return os.environ.get(DEBUG, "0") not in ("", "0")


def shown_value(value: object) -> str:
    """A value as a message shows it: shortened, also where Python refuses to write it (a number of 5,000 digits)."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):
        return f"a {type(value).__name__} that is too large to be shown"
    return text if len(text) <= LONGEST_VALUE else f"{text[: LONGEST_VALUE // 2]} … {text[-LONGEST_VALUE // 4 :]}"


def nearest_name(name: object, known: Iterable[str], least: float = 0.6) -> str | None:
    """The one of the known names that is nearest to another, without regard to case; None where none shares the part
    `least` of its letters."""
    by_letters = {one.casefold(): str(one) for one in known}
    nearest = difflib.get_close_matches(str(name)[:LONGEST_VALUE].casefold(), by_letters, 1, least)
    return by_letters[nearest[0]] if nearest else None


def did_you_mean(name: object, known: Iterable[str], least: float = 0.6) -> str:
    """` (did you mean 'NAME'?)` with the nearest of the known names, for one that is refused; empty without one."""
    nearest = nearest_name(name, known, least)
    return f" (did you mean {nearest!r}?)" if nearest else ""


def in_one_line(text: str) -> str:
    """The text in one line, shortened in its middle where no one would read it, and with what a terminal would act on
    (names and answers from elsewhere) spelled out."""
    line, half = " ".join(text.split()), LONGEST_SENTENCE // 2 - 2
    if not line.isprintable():
        line = "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in line)
    return line if len(line) <= LONGEST_SENTENCE else f"{line[:half]} … {line[-half:]}"


@contextmanager
def name_file_in_errors(path: Path) -> Iterator[None]:
    """Have an OSError that knows no file, such as a full disk while something is written, name this one."""
    try:
        yield
    except OSError as error:
        if error.filename is None:
            error.filename = str(path)
        raise


def open_without_waiting(path: str, flags: int) -> int:
    """For `open(opener=…)`: a pipe that nobody reads is an OSError instead of a wait without end."""
    file = os.open(path, flags | os.O_NONBLOCK, 0o666)
    os.set_blocking(file, True)
    return file


def expand_home(path: str) -> Path:
    """The path with `~` resolved; OSError for the home of a user that there is not."""
    try:
        return Path(path).expanduser()
    except RuntimeError as error:
        raise OSError(errno.ENOENT, str(error).rstrip("."), path) from error


def regular_file(path: Path) -> Path:
    """The path, if it is that of a file; else OSError: reading a device or a pipe may never end."""
    if path.exists() and not path.is_file():
        raise OSError(errno.EINVAL, "is not a file", str(path))
    return path


def reason_of(error: BaseException) -> str:
    """Why the system or a library refused, without the file's name; never empty."""
    if isinstance(error, MemoryError):
        return "not enough memory" + (f": {error}" if str(error) else "")
    if isinstance(error, RecursionError):
        return "it is nested too deeply"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    return in_one_line(str(error)) or type(error).__name__


def sentence_if_expected(error: BaseException | None) -> str | None:
    """The sentence of an error that a person can mend; None: a mistake of the program."""
    if isinstance(error, DailyTrainError):
        return str(error)
    if isinstance(error, OSError):
        files = " to ".join(str(name) for name in (error.filename, error.filename2) if name is not None)
        return in_one_line(f"{files}: {reason_of(error)}" if files else reason_of(error))
    return in_one_line(reason_of(error)) if isinstance(error, MemoryError) else None


def sentence_of(error: BaseException) -> str:
    """One sentence for any error. The traceback of a mistake of the program is written to a file that it names."""
    if (sentence := sentence_if_expected(error)) is not None:
        return sentence
    sentence = f"unexpected {type(error).__name__}: {reason_of(error)}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="daily-train-", suffix=".log", delete=False) as file:
            file.write("".join(traceback.format_exception(error)))
        return f"{sentence}; the traceback is in {file.name}"
    except OSError:
        return f"{sentence}; {DEBUG}=1 shows the traceback"


def print_error(error: BaseException, program: str = "") -> int:
    """Print `PROGRAM: error: SENTENCE` on stderr, before it the traceback if it is asked for; the exit code, 1."""
    if debugging():
        traceback.print_exception(error)
    print(f"{program}: error: {sentence_of(error)}".removeprefix(": "), file=sys.stderr, flush=True)
    return 1
