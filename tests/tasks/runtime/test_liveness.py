"""A run whose parent is gone goes on, whoever reads what it logs."""

import subprocess
import sys
from pathlib import Path

from tests.processes import output_of

ORPHAN = """
import logging, sys
from pathlib import Path
from prefect.logging.configuration import setup_logging
from tasks.runtime.liveness import LivenessWatch
setup_logging()
LivenessWatch()
print("ready", flush=True)
sys.stdin.readline()
for number in range(3):
    logging.getLogger("daily_train").warning("line %d", number)
Path(sys.argv[1]).write_text("went on")
"""


def test_a_log_line_that_nobody_reads_ends_nothing(tmp_path: Path):
    command = [sys.executable, "-c", ORPHAN, str(tmp_path / "end")]
    pipe = subprocess.PIPE
    run = subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.STDOUT, text=True)
    while output_of(run).readline() != "ready\n":
        assert run.poll() is None
    output_of(run).close()
    assert run.stdin is not None
    run.stdin.write("\n")
    run.stdin.close()
    assert run.wait() == 0 and (tmp_path / "end").read_text() == "went on"
