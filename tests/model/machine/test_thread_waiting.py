"""Threads that wait spin for a shorter time while others need the processors. In a process of its own: libgomp reads
its settings once, and how long it spins is seen in the CPU time of the process, which no other load changes."""

import json
import os
import re
import subprocess
import sys

PROGRAM = """
import json, os, time
import torch
from model.machine import thread_waiting
from model.machine.thread_waiting import Waiting

torch.set_num_threads(2)
a = torch.randn(200_000)
delay = 0

def cpu_seconds():
    a.sin()
    began = time.process_time()
    for _ in range(40):
        a.sin()          # both threads; then the second one waits for the next
        time.sleep(0.01)
    return time.process_time() - began

def until(condition):
    while not condition():
        time.sleep(0.01)

def delays():  # 30 % of the time of two threads for a while
    global delay
    delay += slowing * int(0.6e9 * thread_waiting.SECONDS_BETWEEN_LOOKS)
    return {"1": delay}

thread_waiting._delays = delays
thread_waiting.SECONDS_BETWEEN_LOOKS = 0.05
os.sched_getaffinity = lambda _: {0, 1}
slowing = False
found = {}
with Waiting(torch.device("cpu")) as look:
    found["alone"] = cpu_seconds()
    threads = len(os.listdir("/proc/self/task"))
    found["warning alone"] = look.take_warning()
    slowing = True
    until(lambda: look.end_of_team is not None)
    found["warning at once"] = look.take_warning()
    found["slowed"] = cpu_seconds()
    until(lambda: look.warning)
    found["warning"], found["again"] = look.take_warning(), look.take_warning()
    slowing = False
    until(lambda: look.end_of_team is None and len(os.listdir("/proc/self/task")) == threads)
    found["alone again"] = cpu_seconds()
print(json.dumps(found))
"""


def test_threads_spin_shortly_while_others_need_the_processors_and_the_run_says_so():
    environment = {name: value for name, value in os.environ.items() if not name.startswith(("OMP_", "GOMP_"))}
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=environment, capture_output=True, text=True, check=False, timeout=120
    )
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert found["slowed"] < found["alone"] / 2, found
    assert found["slowed"] < found["alone again"] / 2, found
    assert found["warning alone"] is None and found["warning at once"] is None and found["again"] is None
    assert re.search(r"its 2 CPU threads .* had no processor for \d+% of the last", found["warning"])
