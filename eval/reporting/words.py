"""Numbers as people read them: durations, money and counts."""


def duration(seconds: float) -> str:
    """Two units at most: `0.4 s`, `52 s`, `5 min 52 s`, `23 h 4 min`, `3 d 2 h`."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for large, small, size in (("d", "h", 86400), ("h", "min", 3600), ("min", "s", 60)):
        if whole >= size:
            part = {"d": 3600, "h": 60, "min": 1}[large]
            return f"{whole // size} {large} {whole % size // part} {small}"
    return f"{whole} s"


def dollars(usd: float) -> str:
    """US dollars: cents where they say something, else the first two digits that do."""
    return f"${usd:,.2f}" if usd == 0 or usd >= 0.1 else f"${usd:.2g}"


def count(number: float) -> str:
    """A large number in short: `812`, `40,960`, `1.31 B`."""
    for size, letter in ((1e12, "T"), (1e9, "B"), (1e6, "M")):
        if abs(number) >= size:
            return f"{number / size:.3g} {letter}"
    return f"{number:,.0f}"
