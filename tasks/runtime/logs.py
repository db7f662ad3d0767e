"""Where tasks log."""

import logging
import sys


def logger() -> logging.Logger | logging.LoggerAdapter:
    """The run's logger inside a flow or task, a plain one elsewhere."""
    if "prefect" not in sys.modules:  # then there is no run, and a command that only reads starts without it
        return logging.getLogger("daily_train")
    from prefect.exceptions import MissingContextError  # noqa: PLC0415 (see above)
    from prefect.logging import get_run_logger  # noqa: PLC0415 (see above)

    try:
        return get_run_logger()
    except MissingContextError:
        return logging.getLogger("daily_train")
