"""The first process of a container ends when what its command left behind has saved."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.processes import output_of

ROOT = Path(__file__).resolve().parents[2]


# A command that leaves behind, in a session of its own, a process that needs a while to save.
LEFT = """
import signal, sys, time
from pathlib import Path

def save(*_):
    time.sleep(1)
    Path(sys.argv[1]).write_text("saved")
    sys.exit()

signal.signal(signal.SIGTERM, save)
print("ready", flush=True)
signal.pause()
"""
COMMAND = """
import subprocess, sys, time
subprocess.Popen([sys.executable, "-c", sys.argv[1], sys.argv[2]], start_new_session=True)
time.sleep(60)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="containers are")
@pytest.mark.parametrize("how", ["stopped", "ended by itself"])
def test_a_container_ends_when_what_its_command_left_behind_has_saved(tmp_path: Path, how: str):
    command = COMMAND if how == "stopped" else COMMAND.replace("time.sleep(60)", "time.sleep(1); sys.exit(3)")
    arguments = [sys.executable, "-m", "deployments.init", sys.executable, "-c", command, LEFT, str(tmp_path / "end")]
    first = subprocess.Popen(arguments, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    assert output_of(first).readline() == "ready\n"
    if how == "stopped":
        first.terminate()
    code = first.wait(30)
    assert (tmp_path / "end").read_text() == "saved"
    assert code == (143 if how == "stopped" else 3)
    output_of(first).close()
