"""What Prefect's log says of a task or flow that has ended: a sentence, as the command line does (model/errors.py)."""

import ast
import logging
import re

from model.errors import debugging, sentence_of

_FINISHED = re.compile(r"Finished in state (?P<name>\w+)\((?P<message>.*?)(?:, type=\w+)?\)", re.DOTALL)
"""How Prefect says in which state a run has ended: name, message as a Python literal, and type where it differs."""
_AGAIN = re.compile(r"Task run failed with .* - Retry %s/%s will start %s")
_LAST = re.compile(r"Task run failed with state: .*", re.DOTALL)


def shorten_errors() -> None:
    """Have Prefect log how tasks and flows ended in sentences, and errors without traceback unless it is asked for."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        log = logging.getLogger(name)
        if _in_words not in log.filters:
            log.addFilter(_in_words)


def _in_words(record: logging.LogRecord) -> bool:
    """Whether the line is logged; its text becomes a sentence."""
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(record.msg, str) and (found := _FINISHED.fullmatch(record.msg)):
        who = getattr(record, "task_run_name", "run")  # the server shows the lines of all tasks in one list
        record.msg, record.args = f"{who} {ended_in_words(found['name'], found['message'])}", ()
        if found["name"] in ("Failed", "Crashed"):
            record.levelno, record.levelname = logging.ERROR, "ERROR"
    elif debugging():
        return True
    elif isinstance(error, Exception):
        record.msg, record.args, record.exc_info = sentence_of(error), (), None
    elif isinstance(record.msg, str) and _AGAIN.fullmatch(record.msg) and isinstance(record.args, tuple):
        _, failure, number, most, when = record.args
        sentence = sentence_of(failure) if isinstance(failure, BaseException) else str(failure)
        record.msg, record.args = f"{sentence}; retry {number} of {most} starts {when}".replace("second(s)", "s"), ()
    elif isinstance(record.msg, str) and _LAST.fullmatch(record.msg):
        return False  # the line of the state follows
    return True


def ended_in_words(name: str, message: str) -> str:
    """A state by its name and its message, a Python literal, as the words that follow what is in that state."""
    try:
        words = str(ast.literal_eval(message)) if message else ""
    except (ValueError, SyntaxError):
        words = message
    name = name.lower()
    return words if words.startswith(name) else f"{name}: {words}" if words else name
