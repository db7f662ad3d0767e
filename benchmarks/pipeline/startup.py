"""How long the command line takes before it does anything: CPU and wall seconds of short commands and of a run that
finds everything done.

    python -m benchmarks.pipeline.startup --before ../other-checkout

CPU seconds are those of every process of the command. Of `--repetitions` the fastest counts: whatever else the machine
does only adds to it. With `--before` the same commands of another checkout are measured as well, in turns.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from benchmarks.goals import print_goal
from eval.reporting.markdown import markdown_table

ROOT = Path(__file__).resolve().parents[2]
RUN = ("run", "--preset", "smoke", "--workers", "1", "--set", "evaluation.items_per_suite=4")
SHORT = {
    "`--help`": ("--help",),
    "`run --help`": ("run", "--help"),
    "no command": (),
    "an unknown option": ("run", "--workrs", "2"),
    "an unknown setting": ("run", "--set", "train.lerning_rate=1"),
    "an unknown suite": ("evaluate", "model", "--suites", "arc_esay"),
    "`explain` of an unknown run": ("explain", "arc_easy:1", "--run", "zzz"),
    "`export` of an unknown run": ("export", "zzz", "model"),
    "`notify` without an address": ("notify",),
    "`leaderboard`": ("leaderboard",),
}
"""Commands that start nothing."""
SKIPPED = "`run`, everything done"
NEED_A_STORE = ("`explain` of an unknown run", "`export` of an unknown run", "`leaderboard`", SKIPPED)
LIMIT, RUN_CPU, RUN_WALL = 1.0, 8.0, 5.0


def measured(arguments: tuple[str, ...], checkout: Path, home: Path) -> tuple[float, float]:
    """CPU and wall seconds of one call of the command; ends this program where a run fails."""
    environment = {**os.environ, "PYTHONPATH": str(checkout), "PREFECT_HOME": str(home), "OMP_NUM_THREADS": "1"}
    for name in ("PREFECT_API_URL", "DAILY_TRAIN_NOTIFY"):
        environment.pop(name, None)
    command = [sys.executable, "-m", "deployments.cli.commands", *arguments]
    began = time.monotonic()
    with tempfile.TemporaryFile() as output:
        process = subprocess.Popen(command, cwd=checkout, env=environment, stdout=output, stderr=subprocess.STDOUT)
        _, status, used = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        wall = time.monotonic() - began
        if process.returncode not in (0, 1, 2) or (arguments[:3] == RUN[:3] and process.returncode):
            output.seek(0)
            sys.exit(f"{' '.join(command)} ended with {process.returncode}:\n{output.read().decode()[-3000:]}")
    return used.ru_utime + used.ru_stime, wall


def fastest(
    arguments: tuple[str, ...], checkouts: list[Path], homes: list[Path], repetitions: int
) -> Iterator[tuple[float, float]]:
    """CPU and wall seconds of the fastest of some calls, by checkout."""
    times = [[measured(arguments, *where) for where in zip(checkouts, homes, strict=True)] for _ in range(repetitions)]
    for of_checkout in zip(*times, strict=True):
        yield min(cpu for cpu, _ in of_checkout), min(wall for _, wall in of_checkout)


def main() -> None:
    """Measure every command and print the table and the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--before", type=Path, metavar="CHECKOUT", help="another checkout to compare with")
    parser.add_argument("--repetitions", type=int, default=3, help="of each command; the fastest counts (%(default)s)")
    arguments = parser.parse_args()
    checkouts = [arguments.before.resolve(), ROOT] if arguments.before else [ROOT]
    with tempfile.TemporaryDirectory() as folder:
        homes = [Path(folder, f"home-{number}") for number in range(len(checkouts))]
        store = ("--store", str(Path(folder, "store")))
        for checkout, home in zip(checkouts, homes, strict=True):  # everything is built, and each home has its database
            measured((*RUN, *store), checkout, home)
        rows, cpu = [], {}
        for name, command in {**SHORT, SKIPPED: RUN}.items():
            given = (*command, *store) if name in NEED_A_STORE else command
            times = list(fastest(given, checkouts, homes, arguments.repetitions))
            cpu[name], wall = times[-1]
            rows.append([name, *(f"{seconds:.2f}" for pair in zip(*times, strict=True) for seconds in pair)])
    when = ["before", "now"] if arguments.before else ["now"]
    print(markdown_table(["command", *(f"{kind}, {one}" for kind in ("CPU s", "wall s") for one in when)], rows))
    print()
    print_goal("CPU seconds of what starts nothing, the most", max(cpu[name] for name in SHORT), LIMIT, at_most=True)
    print_goal("CPU seconds of a run that finds everything done", cpu[SKIPPED], RUN_CPU, at_most=True)
    print_goal("wall seconds of a run that finds everything done", wall, RUN_WALL, at_most=True)


if __name__ == "__main__":
    main()
