"""A goal of a benchmark beside what was measured, as one line."""


def print_goal(name: str, value: float | None, target: float, at_most: bool = False) -> None:
    """`goal NAME: VALUE (target ≥ TARGET) met`, or `short`; a `value` of None was not measured."""
    if value is None:
        print(f"goal {name}: not measured (target ≥ {target}) short")
        return
    met = value <= target if at_most else value >= target
    print(f"goal {name}: {value:.4g} (target {'≤' if at_most else '≥'} {target}) {'met' if met else 'short'}")
