"""A small corpus, as texts and as a Parquet file."""

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

TEXTS = [f"Fellow citizens, speech {number}: the Union — “strong” — naïve 日本 🚂.\n\n" * 3 for number in range(60)]


def parquet(path: Path, column: str = "text", texts: list[str] = TEXTS) -> Path:
    pq.write_table(pa.table({column: texts, "number": list(range(len(texts)))}), path)
    return path
