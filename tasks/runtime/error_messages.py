"""What Prefect's log shows of a failed task or flow: one sentence, as the command line does (model/errors.py)."""

import logging

from model.errors import debugging, sentence_of


def shorten_errors() -> None:
    """Leave the traceback out of what Prefect logs for a failed task or flow, unless it is asked for."""
    for name in ("prefect.task_runs", "prefect.flow_runs"):
        log = logging.getLogger(name)
        if _shorten not in log.filters:
            log.addFilter(_shorten)


def _shorten(record: logging.LogRecord) -> bool:
    error = record.exc_info[1] if record.exc_info else None
    if isinstance(error, Exception) and not debugging():
        record.msg, record.args, record.exc_info = sentence_of(error), (), None
    return True
