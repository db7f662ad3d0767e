"""One public contamination check on our documents: `python benchmarks/contamination/peers.py TOOL JOB.json`.

Runs in the environment of the tool and imports nothing of ours. The job holds `items` (suite, question, answer),
`documents` (a JSON lines file of texts, to be timed) and `plants` (texts, each to be flagged or not). Prints one JSON
line: version, bytes and CPU seconds of the timed documents, and for every plant whether it was flagged.
"""

import contextlib
import importlib.metadata
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any


def datatrove(items: list[dict]) -> tuple[str, Callable[[str], bool]]:
    """NGramsDecontFilter with its defaults: 12-grams of the answer, and of question and answer across their border."""
    import numpy as np  # noqa: PLC0415  here and below: each tool has an environment of its own
    from datatrove.data import Document  # noqa: PLC0415
    from datatrove.pipeline.decont import n_grams  # noqa: PLC0415

    # the index is written here: the tool's own writer needs lighteval and the hub
    n_grams.NGramsDecontIndexer._requires_dependencies = []
    folder = tempfile.mkdtemp()
    indexer = n_grams.NGramsDecontIndexer(folder)
    hashes = defaultdict(set)
    for item in items:
        hashes[item["suite"]].update(indexer.compute_hashes(item["answer"], item["question"]))
    for suite, found in hashes.items():
        np.array(list(found), dtype=indexer.config.hash_config.np_descr).tofile(f"{folder}/{suite}.index.hashes")
    block = n_grams.NGramsDecontFilter(folder)
    return importlib.metadata.version("datatrove"), lambda text: block.filter(Document(text=text, id="")) is not True


def janitor(items: list[dict]) -> tuple[str, Callable[[str], bool]]:
    """lm-eval's Janitor, 13-grams, given question and answer (as configured it gets less, and finds less)."""
    from lm_eval.decontamination.janitor import Janitor  # noqa: PLC0415

    cleaner = Janitor()
    for item in items:
        cleaner.register_contaminant_python(f"{item['question']} {item['answer']}")
    return importlib.metadata.version("lm_eval"), lambda text: cleaner.clean_python(text) != _untouched(cleaner, text)


def _untouched(cleaner: Any, text: str) -> list[str]:
    return cleaner._split_chunks(text, [])


TOOLS = {"datatrove": datatrove, "janitor": janitor}


def main(tool: str, job_path: str) -> dict:
    job = json.loads(Path(job_path).read_text())
    version, is_flagged = TOOLS[tool](job["items"])
    texts = [json.loads(line) for line in Path(job["documents"]).read_text().splitlines()]
    is_flagged(texts[0])  # models are loaded at the first document
    started = time.process_time()
    for text in texts:
        is_flagged(text)
    seconds = time.process_time() - started
    size = sum(len(text.encode()) for text in texts)
    found = [is_flagged(text) for text in job["plants"]]
    return {"version": version, "bytes": size, "seconds": seconds, "found": found}


if __name__ == "__main__":
    with contextlib.redirect_stdout(sys.stderr):
        result = main(*sys.argv[1:])
    print(json.dumps(result))
