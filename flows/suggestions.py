"""The nearest of the names that a configuration knows, in its errors.

The code of `model/parsing.py` is part of what identifies a training: a word more in its sentences would have every
model trained again. So they are completed here, on their way to whoever has written the name.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager

from model.errors import did_you_mean
from model.parsing import ConfigError

_UNKNOWN_KEY = re.compile(r"(?P<before>.* has the unknown key '(?P<name>[^']*)')(?P<after>.*; known are (?P<known>.*))")
_NO_CHOICE = re.compile(r"(?P<before>.*? must be one of (?P<known>.*), but it is '(?P<name>[^']*)')(?P<after>.*)")


@contextmanager
def nearest_name_in_errors() -> Iterator[None]:
    """Have a ConfigError about a key or a choice that is not known suggest the nearest of those that it lists."""
    try:
        yield
    except ConfigError as error:
        for sentence in (_UNKNOWN_KEY, _NO_CHOICE):
            if found := sentence.fullmatch(str(error)):
                hint = did_you_mean(found["name"], found["known"].split(", "))
                raise ConfigError(f"{found['before']}{hint}{found['after']}") from None
        raise
