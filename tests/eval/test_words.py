"""Numbers as people read them, at the edges of their units."""

import math
from collections.abc import Callable

import pytest

from eval import words


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (1e-9, "under 1 ms"),
        (0.04, "40 ms"),
        (0.0996, "0.1 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.96, "1 min"),
        (0.09777 * 3600, "5 min 52 s"),
        (3599.4, "59 min 59 s"),
        (3599.9, "1 h"),
        (7170, "2 h"),
        (83_040, "23 h 4 min"),
        (86_399, "1 d"),
        (266_400, "3 d 2 h"),
        (400 * 86_400, "400 d"),
        (1e9, "11,574 d"),
        (1e300, "1.16 × 10²⁹⁵ d"),
        (-351.97, "−5 min 52 s"),
        (math.nan, "unknown"),
        (math.inf, "unknown"),
    ],
)
def test_durations(seconds: float, expected: str):
    assert words.duration(seconds) == expected


@pytest.mark.parametrize(
    ("usd", "expected"),
    [
        (0, "$0"),
        (1e-9, "$0.0000"),
        (0.00073, "$0.00073"),
        (0.0999, "$0.10"),
        (0.999, "$1.00"),
        (12.3, "$12.30"),
        (999.996, "$1,000"),
        (1_234_567, "$1,234,567"),
        (2.5e9, "$2.5 B"),
        (-5, "−$5.00"),
        (math.nan, "unknown"),
    ],
)
def test_dollars(usd: float, expected: str):
    assert words.dollars(usd) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"),
        (812, "812"),
        (40_960, "40,960"),
        (999_999, "999,999"),
        (999_999.6, "1 M"),
        (124_439_808, "124 M"),
        (999_600_000, "1 B"),
        (7.8e9, "7.8 B"),
        (1e15, "1.00 × 10¹⁵"),
        (-5e6, "−5 M"),
        (-math.inf, "unknown"),
    ],
)
def test_counts(number: float, expected: str):
    assert words.count(number) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [(0, "0 bytes"), (999.4, "999 bytes"), (999.6, "1 kB"), (1.2e9, "1.2 GB"), (999.6e6, "1 GB"), (3e18, "3,000 PB")],
)
def test_data_sizes(number: float, expected: str):
    assert words.data_size(number) == expected


@pytest.mark.parametrize(
    ("in_words", "number", "expected"),
    [
        (words.percent, 0.232794, "23.28 %"),
        (words.percent, math.nan, "unknown"),
        (words.loss, 4.60159, "4.6016"),
        (words.loss, math.inf, "unknown"),
        (words.loss_difference, -0.01234, "−0.0123"),
        (words.loss_difference, 0.0, "+0.0000"),
        (words.flops, 1.1274e17, "1.13 × 10¹⁷"),
        (words.flops, 12, "12"),
    ],
)
def test_other_numbers(in_words: Callable[[float], str], number: float, expected: str):
    assert in_words(number) == expected
