"""A goal of a benchmark beside what was measured, as one line."""


def goal_line(name: str, value: float | None, target: float, at_most: bool = False) -> str:
    """`goal NAME: VALUE (target ≥ TARGET) met`, or `short`; a `value` of None was not measured."""
    if value is None:
        return f"goal {name}: not measured (target ≥ {target}) short"
    met = value <= target if at_most else value >= target
    return f"goal {name}: {value:.4g} (target {'≤' if at_most else '≥'} {target}) {'met' if met else 'short'}"


def print_goal(name: str, value: float | None, target: float, at_most: bool = False) -> None:
    """Print `goal_line`."""
    print(goal_line(name, value, target, at_most))
