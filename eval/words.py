"""Numbers as people read them: durations, money, counts, sizes, shares and losses. What is no finite number is
`unknown`, below zero there is a minus sign."""

import math
from collections.abc import Callable

UNKNOWN = "unknown"
MINUS = "−"
_SUPERSCRIPT = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")


def _signed(words: Callable[[float], str]) -> Callable[[float], str]:
    """The same words for numbers of either sign, and for what is no number."""

    def of_any(number: float) -> str:
        if not math.isfinite(number):
            return UNKNOWN
        return words(number) if number >= 0 else f"{MINUS}{words(-number)}"

    of_any.__doc__ = words.__doc__
    return of_any


@_signed
def duration(seconds: float) -> str:
    """Two units at most: `40 ms`, `0.4 s`, `52 s`, `5 min 52 s`, `23 h 4 min`, `3 d 2 h`, `400 d`."""
    if seconds < 0.0995:
        if seconds == 0:
            return "0 s"
        return f"{1000 * seconds:.0f} ms" if seconds >= 0.0005 else "under 1 ms"
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    for size, unit, smaller, small in ((60, "min", 1, "s"), (3600, "h", 60, "min"), (86400, "d", 3600, "h")):
        large, rest = divmod(math.floor(seconds / smaller + 0.5), size // smaller)
        if large < {"min": 60, "h": 24, "d": 100}[unit]:
            return f"{large} {unit} {rest} {small}" if rest else f"{large} {unit}"
    return f"{count(seconds / 86400)} d"


@_signed
def dollars(usd: float) -> str:
    """US dollars: cents where they say something, else the first two digits that do: `$1,234`, `$12.30`, `$0.0013`."""
    if usd < 0.00005:
        return "$0.0000" if usd else "$0"
    if usd >= 999_999_999.5:
        return f"${count(usd)}"
    if usd >= 999.995:
        return f"${usd:,.0f}"
    if usd >= 0.0995:
        return f"${usd:,.2f}"
    return f"${usd:.{1 - math.floor(math.log10(usd))}f}"


@_signed
def count(number: float) -> str:
    """A whole number, in short from a million on: `812`, `40,960`, `1.31 M`, `10 B`."""
    if number < 999_999.5:
        return f"{number:,.0f}"
    if number >= 999.5e12:
        return flops(number)
    return _three_digits(number, ("M", "B", "T"), 1e6, 1e3)


@_signed
def data_size(number: float) -> str:
    """Bytes: `812 bytes`, `40.9 kB`, `1.2 GB`."""
    if number < 999.5:
        return f"{number:.0f} bytes"
    return _three_digits(number, ("kB", "MB", "GB", "TB", "PB"), 1e3, 1e3)


def _three_digits(number: float, units: tuple[str, ...], size: float, step: float) -> str:
    """Three digits that say something, and the unit; a number that rounds up to the next unit is given in that."""
    for unit in units:
        scaled = number / size
        if float(f"{scaled:.3g}") < step:
            return f"{scaled:.3g} {unit}"
        size *= step
    return f"{count(scaled)} {unit}"


def percent(share: float) -> str:
    """A share between 0 and 1: `23.28 %`."""
    return f"{100 * share:.2f} %" if math.isfinite(share) else UNKNOWN


def loss(value: float) -> str:
    """Nats per token or bits per byte, four digits after the point."""
    return f"{value:.4f}" if math.isfinite(value) else UNKNOWN


def loss_difference(value: float) -> str:
    """The same of a difference, with its sign: `+0.0123`, `−0.0123`."""
    return f"{value:+.4f}".replace("-", MINUS) if math.isfinite(value) else UNKNOWN


@_signed
def flops(number: float) -> str:
    """Floating-point operations, or another number without an end: `1.13 × 10¹⁷`."""
    if number < 999.5:
        return f"{number:.0f}"
    digits, _, exponent = f"{number:.2e}".partition("e")
    return f"{digits} × 10{str(int(exponent)).translate(_SUPERSCRIPT)}"
