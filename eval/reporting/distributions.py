"""Distributions of scipy, which takes a fifth of a second to import: at the first use, since not every report needs
them and the command line imports whoever may."""

from collections.abc import Callable


def student_quantile(degrees: float, probability: float) -> float:
    """Student's t that is not exceeded with this probability."""
    from scipy.special import stdtrit  # noqa: PLC0415 (see above)

    return float(stdtrit(degrees, probability))


def student_probability(degrees: float, t: float) -> float:
    """That Student's t does not exceed this one."""
    from scipy.special import stdtr  # noqa: PLC0415 (see above)

    return float(stdtr(degrees, t))


def binomial_probability(most: int, n: int, share: float) -> float:
    """Of at most so many successes in `n`."""
    from scipy.special import bdtr  # noqa: PLC0415 (see above)

    return float(bdtr(most, n, share))


def beta_probability(a: float, b: float, share: float) -> float:
    """That a beta variable does not exceed this share."""
    from scipy.special import betainc  # noqa: PLC0415 (see above)

    return float(betainc(a, b, share))


def root(function: Callable[[float], float]) -> float:
    """Where a function changes its sign between 0 and 1."""
    from scipy.optimize import brentq  # noqa: PLC0415 (see above)

    return float(brentq(function, 0.0, 1.0, xtol=1e-12))
