"""Stages for the tests of benchmarks.gpu.scheduler, in a module that a child imports quickly."""

import os
import time

from benchmarks.gpu.scheduler import Bench


def timed(bench: Bench) -> None:
    for _ in range(3):
        with bench.alone():
            began = time.time()
            time.sleep(0.05)
            bench.say("span", began=began, ended=time.time())


def failing(bench: Bench) -> None:
    bench.say("before")
    raise ValueError("no such kernel")


def dying(bench: Bench) -> None:
    with bench.alone():
        os._exit(3)


def endless(bench: Bench) -> None:
    time.sleep(100)


def ticking(bench: Bench) -> None:
    """Works without asking for the machine, until stages `one` and `two` have ended."""
    bench.say("tick", at=time.time())
    (bench.options / bench.name).touch()
    while not all((bench.options / name).exists() for name in ("one", "two")):
        bench.say("tick", at=time.time())
        time.sleep(0.005)
    bench.say("tick", at=time.time())


def timed_beside_ticking(bench: Bench) -> None:
    while not (bench.options / "ticking").exists():
        time.sleep(0.005)
    timed(bench)
    (bench.options / bench.name).touch()
