"""The digest of the trainer's code, which is part of what a training is.

It covers what decides the weights: network, optimizer, data order, training loop. Comments, docstrings and blank lines
are cut out of the bytes of each file, at positions that are the same in every version of Python (its syntax trees are
not), so that words can be corrected without training again.
"""

import ast
import hashlib
import io
import tokenize
from functools import cache
from pathlib import Path

from tasks.store.manifest import sha256_json
from tasks.store.provenance import PROJECT

NOT_TRAINING = {
    "planning/budget.py": "turns hours or dollars into tokens, which are in the key",
    "errors.py": "how an error is told",
    "planning/memory_use.py": "memory is planned, which decides a micro-batch at most: rounding",
    "machine/hardware.py": "list prices and peaks of GPUs: what a training costs and its reported MFU",
    "planning/joint_graph.py": "graphs that memory is planned on",
    "planning/allocations.py": "memory of a graph, for the plan",
    "planning/plan.py": "memory and hours before a training: a micro-batch at most",
    "training/progress_bar.py": "the line in a terminal",
    "planning/host_memory.py": "whether the memory of a machine can hold a training on the CPU",
    "planning/projection.py": "whether a machine can train a run, before there is data",
    "network/scaling.py": "rules that carry a recipe to another size; what they gave is in the key",
    "machine/termination.py": "how a process ends that is asked to",
    "machine/thread_waiting.py": "how long threads spin while they wait for each other",
}
"""Files of model/ that do not decide what a training writes, up to rounding, and why."""


def model_source_digest(*besides: str, package: Path = PROJECT / "model") -> str:
    """SHA-256 of the code of network and training: all files of model/, in folders too, but for `NOT_TRAINING`; of
    those the ones named `besides` are in it as well."""
    files = {path.relative_to(package).as_posix(): path for path in package.rglob("*.py")}
    if missing := {*NOT_TRAINING, *besides} - files.keys():
        raise ValueError(f"{package} has no files {sorted(missing)}")  # moved: what is left out or added would be wrong
    names = sorted(name for name in files if name not in NOT_TRAINING or name in besides)
    return sha256_json(
        [[name, hashlib.sha256(code_without_comments(files[name].read_bytes())).hexdigest()] for name in names]
    )


@cache
def code_without_comments(source: bytes) -> bytes:
    """The bytes of a Python file without comments, docstrings and blank lines.

    Cut out are comments, statements that are nothing but a text, and lines that are empty, or become so. Strings that
    a program can read stay as they are, whatever stands in them.
    """
    text = source.replace(b"\r\n", b"\n").decode()
    lines = text.encode().splitlines(keepends=True)
    cut = [bytearray(line) for line in lines]  # 0 where a byte is cut: no source has one
    in_text: set[int] = set()  # lines that begin inside a string
    for node in ast.walk(ast.parse(text)):
        if not isinstance(node, ast.expr | ast.stmt) or node.end_lineno is None or node.end_col_offset is None:
            continue  # what has no place in the file
        if isinstance(node, ast.Constant | ast.JoinedStr) and node.end_lineno > node.lineno:
            in_text |= set(range(node.lineno, node.end_lineno))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            for row in range(node.lineno - 1, node.end_lineno):
                begin = node.col_offset if row == node.lineno - 1 else 0
                end = node.end_col_offset if row == node.end_lineno - 1 else len(lines[row])
                cut[row][begin:end] = bytes(end - begin)
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            row, column = token.start[0] - 1, len(lines[token.start[0] - 1].decode()[: token.start[1]].encode())
            size = len(token.string.encode())
            cut[row][column : column + size] = bytes(size)
    kept = []
    for row, line in enumerate(cut):
        left = line.replace(b"\0", b"")
        if 0 in line:
            left = left.rstrip() + b"\n"
        if left.strip() or (row in in_text and 0 not in line):
            kept.append(bytes(left))
    return b"".join(kept)
