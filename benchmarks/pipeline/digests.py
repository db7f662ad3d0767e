"""Do all versions of Python cut the same code out of model/? `python -m benchmarks.pipeline.digests [PYTHON ...]`

PYTHON: other interpreters, such as python3.12 and python3.13; each needs nothing but itself. Prints the digest of the
training's code under each, with the seconds it took, and the goal that all are equal.
"""

import hashlib
import inspect
import json
import subprocess
import sys

from benchmarks.goals import print_goal
from eval.reporting.markdown import markdown_table
from tasks.store.manifest import sha256_json
from tasks.store.provenance import PROJECT
from tasks.store.source_digest import NOT_TRAINING, code_without_comments, model_source_digest

PROGRAM = f"""
import ast, hashlib, io, json, platform, sys, time, tokenize
from functools import cache
from pathlib import Path

{inspect.getsource(code_without_comments)}

began, package = time.process_time(), Path(sys.argv[1])
names = sorted(path.relative_to(package).as_posix() for path in package.rglob("*.py"))
digests = [[name, hashlib.sha256(code_without_comments((package / name).read_bytes())).hexdigest()] for name in names]
print(json.dumps([platform.python_version(), digests, time.process_time() - began]))
"""


def main(pythons: list[str]) -> None:
    """Print the table and the goal."""
    rows = []
    for python in [sys.executable, *pythons]:
        command = [python, "-c", PROGRAM, str(PROJECT / "model")]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        version, digests, seconds = json.loads(done.stdout)
        training = sha256_json([pair for pair in digests if pair[0] not in NOT_TRAINING])
        everything = hashlib.sha256(json.dumps(digests).encode()).hexdigest()
        rows.append([version, training[:16], everything[:16], f"{seconds:.2f}"])
    print(markdown_table(["Python", "network and training", "all of model/", "CPU seconds"], rows))
    print()
    expected = [model_source_digest()[:16], rows[0][2]]
    print_goal("share of Pythons with equal digests", sum(row[1:3] == expected for row in rows) / len(rows), 1.0)


if __name__ == "__main__":
    main(sys.argv[1:])
