"""Does the contamination check fail when it is broken? Every mutation of `benchmarks/contamination/mutations.toml`
is tried.

    python -m benchmarks.contamination.control [--documents FILE.parquet] [--benchmarks DIR] [--only TEXT]

* Each mutation is made in a copy of `eval/`, and the whole command runs there on a small corpus with leaks in it: the
  same one for all, of four files with several row groups, documents over a megabyte, accents and boilerplate.
* It counts as caught when the command ends with an error.
* A mutation must make something wrong: without the control the scan must end well, and its verdicts, counts or tables
  must differ from those of the unbroken scan. One that does not is named. To see that in the same run, the control's
  first error is raised at the end and not at once.
* Without --documents and --benchmarks, two wheels from the package index are used, as by
  `benchmarks.contamination.speed`.
"""

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import unicodedata
from collections.abc import Sequence
from itertools import islice, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.contamination.corpora import default_benchmarks, speeches
from benchmarks.contamination.mutations import MUTATIONS, Mutation
from eval.contamination.planted_items import FORMS, can_plant, full_text, plant
from eval.contamination.references import Reference, references
from eval.contamination.words import words
from eval.document_parquet import read_documents
from eval.reporting.markdown import markdown_table
from eval.suites.items import write_rows
from eval.suites.sources import from_folder
from eval.suites.suites import SUITES

ROOT = Path(__file__).resolve().parents[2]
SUITE_NAMES = ("arc_challenge", "winogrande")
SEED = 20_270_415
_DELAYED = (
    (r"(\n    )(check_items\(.*\))\n", r"\1_noted(lambda: \2)\n"),
    (r"(\n    )(check_index\(.*\))\n", r"\1_noted(lambda: \2)\n"),
    (r"(\n            )(audit\.add\(.*\))\n", r"\1_noted(lambda: \2)\n"),
    (r"(\n        )(audit\.check_results\(.*\))\n", r"\1_noted(lambda: \2)\n"),
    (r"(audit\.check_planted\(folder / \"planted\"\))", r"_noted(lambda: \1)"),
    (r"(\n            )(audit\.check_real\(.*\))\n", r"\1_noted(lambda: \2)\n"),
    (r"(\n    real = tallies\[False\])\n", r"\1\n    if _errors:\n        raise _errors[0]\n"),
)
"""Every call of the control in `eval/contamination/check.py`, and what it is replaced by: the first error is raised at
the end, so that one run shows the error and what would have been written without it."""
_NOTED = """

_errors: list[Exception] = []


def _noted(call):
    try:
        return call()
    except Exception as error:
        _errors.append(error)
        return {}
"""
_PAGE = """
import json, sys
from eval.reporting.contamination_report import verdict_table
print(verdict_table(json.load(open(sys.argv[1]))))
"""


def corpus(pieces: Sequence[str], items: list[Reference], folder: Path, leaky: bool) -> dict[str, int]:
    """Writes four files of documents, with leaks if wanted; returns what they hold."""
    generator = np.random.default_rng(SEED)
    texts = [piece[:1500] for piece in pieces[:420]]
    leaks = _leaks(items, [text for text in texts if len(text) > 500], generator) if leaky else {}
    filler = " ".join(pieces[:300])
    spaced = f"{filler[:300]}{' ' * 2**15}e\u0301\n" * 40
    long = [full_text(item) for item in items if len(full_text(item).split()) > 30][:4] if leaky else [""] * 4
    texts[40] = f"{filler[:1_200_000]}\n\n{long[0]}\n\n{filler[:200_000]} {long[1]}"
    texts[41] = f"{long[3]} {texts[41]}"  # begins behind a long document
    before = spaced[: 2**20 - 100]
    texts[150] = f"{before[: before.rindex(' ')]}{' ' * 60}{long[2]} {spaced}"
    edges = (0, 63, 64, 127, 128, 191, 192, 255, 256, len(texts) - 1)
    rows = [*edges, *(row for row in generator.permutation(len(texts)).tolist() if row not in (*edges, 40, 41, 150))]
    for row, leak in zip(rows, leaks):
        texts[row] = leak
    assert len(leaks) < len(texts) - 20
    for number, first in enumerate((0, 128, 256, 384)):
        part = slice(first, first + 128)
        names = [f"document {row}" for row in range(len(texts))][part]
        table = pa.table({"id": names, "text": texts[part]})
        pq.write_table(table, folder / f"train_{number:06d}.parquet", row_group_size=64 if number < 2 else 50)
    return {"documents": len(texts), "bytes": sum(len(text.encode()) for text in texts)}


def _leaks(items: list[Reference], hosts: list[str], generator: np.random.Generator) -> list[str]:
    """Documents that hold items, in every form, at both sides of the thresholds, and often enough to be boilerplate."""
    texts = []
    for suite in dict.fromkeys(item.suite for item in items):
        own = [item for item in items if item.suite == suite]
        for form in FORMS:
            fit = [item for item in own if can_plant(item, form, 8)]
            for place in generator.permutation(len(fit))[:3].tolist():
                texts.append(plant(fit[place], form, hosts, generator))
        accents = "Ça, là-bas: naïve_Ärger 東京😀, "
        for place in generator.permutation(len(own))[:2].tolist():
            text = full_text(own[place])
            texts.append(f"{hosts[0]} {accents} {text.replace(' ', '_')} {accents} {hosts[1]}")
            texts.append(unicodedata.normalize("NFD", f"{accents * 3} {hosts[2]} {text} {hosts[3]}"))
    long = [item for item in items if len(item.question.split()) > 40][:40]
    for number, item in enumerate(long):
        first, count = int(generator.integers(5)), (13, 12, 13, 20)[number % 4]
        piece = " ".join(item.question.split()[first : first + count])
        for _ in range({0: 1, 1: 1, 2: 5, 3: 12}[number % 4] if number < 8 else 1):
            texts.append(f"{hosts[int(generator.integers(len(hosts)))]} {piece}. Zorp.")
        if number % 9 == 0:
            texts.append(f"{piece} Zorp. {full_text(item)}")
    even = [item for item in items if item.suite == "arc_challenge" and len(words(item.question)) in (16, 18, 20, 22)]
    for item in even[:12]:  # half of a question exactly
        split = words(item.question)
        texts.append(f"{hosts[0]} Zorp {' '.join(split[: len(split) // 2])} zorp.")
    for item in even[:3]:
        texts.append("".join(chr(ord(each) + 0xFEE0) if "a" <= each <= "z" else each for each in full_text(item)))
    texts += [full_text(item).upper() for item in items if "Straße" in item.question]
    texts += [f"<p>{hosts[4]}</p> {full_text(item)}" for item in items if "\\times" in item.question]
    options = [item for item in items if item.suite == "winogrande"]
    for one, other in pairwise(options[:300]):  # what twins have in common
        shared = words(one.question)[:13]
        if shared == words(other.question)[:13] and "_" not in one.question[: len(" ".join(shared))]:
            texts.append(f"{hosts[2]} Zorp {' '.join(shared)} zorp.")
    for item in [*items[:2], *items[-2:]]:  # readable only when what was rendered is rendered again
        split = full_text(item).split()
        marked = " &lt;b&gt; ".join(" ".join(split[first : first + 3]) for first in range(0, len(split), 3))
        texts.append(f"<p>{hosts[3]}</p> {marked}")
    short = [split for item in items for form in item.forms if 8 <= len(split := words(form.text)) <= 15]
    for split in short[:12]:  # a word left out, and one added
        texts.append(f"{hosts[1]} {' '.join(split[:2] + split[3:])} Zorp.")
        texts.append(f"{hosts[1]} {' '.join(split[:2])} zorp {' '.join(split[2:])} Zorp.")
    several = generator.permutation(len(items))[:3].tolist()
    texts.append("\n\n".join(full_text(items[place]) for place in several))
    return texts


def _environment(tree: Path) -> dict[str, str]:
    """`eval` is imported from the copy, `model` from the project."""
    return os.environ | {"PYTHONPATH": os.pathsep.join(map(str, (tree, ROOT))), "OMP_NUM_THREADS": "1"}


def run(tree: Path, config: dict) -> tuple[int, str]:
    """(exit status, last line of its errors) of the command with the code in `tree`."""
    (tree / "config.json").write_text(json.dumps(config))
    command = [sys.executable, "-m", "eval.contamination.check", str(tree / "config.json")]
    done = subprocess.run(command, cwd=tree, env=_environment(tree), capture_output=True, text=True, check=False)
    return done.returncode, (done.stderr.strip().splitlines() or [""])[-1].removeprefix("error: ")


def broken_tree(folder: Path, mutation: Mutation | None) -> Path:
    """A copy of `eval/` with the mutation, in which the control raises its first error at the end."""
    tree = folder / "tree"
    shutil.rmtree(tree, ignore_errors=True)
    shutil.copytree(ROOT / "eval", tree / "eval")  # with compiled code: an unchanged file is not compiled again
    if mutation:
        path = tree / mutation.file
        path.write_text(path.read_text().replace(mutation.old, mutation.new))
    path = tree / "eval" / "contamination" / "check.py"
    text = path.read_text()
    for pattern, instead in _DELAYED:
        text, count = re.subn(pattern, instead, text)
        if count != 1:
            raise SystemExit(f"the control cannot be delayed: {pattern} matches {count} times")
    path.write_text(text.replace("\n_HOSTS = ", f"{_NOTED}\n_HOSTS = "))
    return tree


def outputs(tree: Path) -> dict[str, Any]:
    """What a scan says: its files, without what they say of the control, and its table."""
    out = tree / "out"
    coverage = json.loads((out / "coverage.json").read_text())
    coverage.pop("control")
    page = subprocess.run(
        [sys.executable, "-c", _PAGE, str(out / "coverage.json")],
        cwd=tree,
        env=_environment(tree),
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    return {
        "verdicts": pq.read_table(out / "verdicts.parquet").to_pylist(),
        "documents to drop": pq.read_table(out / "flagged.parquet").to_pylist(),
        "matches": (out / "matches.jsonl").read_text(),
        "counts": coverage,
        "sweep": json.loads((out / "sweep.json").read_text()),
        "table": page,
    }


def differences(found: dict[str, Any], healthy: dict[str, Any]) -> str:
    """What a broken scan says otherwise, in words; empty where nothing differs."""
    parts = []
    ours, theirs = found["verdicts"], healthy["verdicts"]
    wrong = sum(mine != other for mine, other in zip(ours, theirs)) + abs(len(ours) - len(theirs))
    if wrong:
        parts.append(f"{wrong} verdicts")
    parts += [name for name in healthy if name != "verdicts" and found[name] != healthy[name]]
    return ", ".join(parts)


def try_mutation(mutation: Mutation, folder: Path, config: dict, healthy: dict[str, Any]) -> tuple[bool, str, str]:
    """(caught, what it makes wrong, the message)."""
    tree, resume = broken_tree(folder, mutation), folder / "resume"
    shutil.rmtree(resume, ignore_errors=True)
    config = config | {"resume": str(resume)}
    if mutation.earlier:
        others = [path.replace("/corpus/", "/other/") for path in config["documents"]]
        run(tree, config | {"documents": others, "counted": None, "out": str(tree / "first")})
    status, message = run(tree, config | {"out": str(tree / "out")})
    if not (tree / "out").exists():
        return status != 0, "", f"the scan itself ends with: {message}"
    return status != 0, differences(outputs(tree), healthy), message


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--documents", type=Path)
    parser.add_argument("--benchmarks", type=Path)
    parser.add_argument("--only", default="", help="a pattern of area and name: only these")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="bench-control-") as temporary:
        folder = Path(temporary)
        for name in ("benchmarks", "corpus", "other"):
            (folder / name).mkdir()
        if arguments.benchmarks:
            for name in (*SUITE_NAMES, "arc_easy"):
                write_rows(from_folder(arguments.benchmarks, SUITES[name]), folder / "benchmarks" / f"{name}.parquet")
        else:
            default_benchmarks(folder / "benchmarks")
        # English suites have no letter of which the lower case is not the folded one
        path = folder / "benchmarks" / "arc_challenge.parquet"
        changed = pq.read_table(path).to_pylist()
        changed[7]["question"] = "Which great Fluß runs beside the weiße Straße of the town, says the große Maßstab?"
        # nor one whose words are a mark
        changed[8]["question"] = "A field is 30 \\times 40 meters large. Which of these is its area in square meters?"
        pq.write_table(pa.Table.from_pylist(changed, schema=SUITES["arc_challenge"].schema), path)
        rows = pq.read_table(folder / "benchmarks" / "arc_easy.parquet").slice(100, 60)
        pq.write_table(rows, folder / "benchmarks" / "arc_challenge-train.parquet")
        if arguments.documents:
            pieces = [text for _, text in islice(read_documents([arguments.documents]), 500)]
        else:
            pieces = speeches(folder)
        report(folder, pieces, arguments.only)


def report(folder: Path, pieces: list[str], only: str) -> None:
    """Run all mutations, print the table and the goal."""
    items = references(folder / "benchmarks", SUITE_NAMES)
    counted = corpus(pieces, items, folder / "corpus", leaky=True)
    corpus(pieces, items, folder / "other", leaky=False)
    config = {
        "documents": [str(path) for path in sorted((folder / "corpus").iterdir())],
        "benchmarks": str(folder / "benchmarks"),
        "suites": list(SUITE_NAMES),
        "config": {"control_items": 8},
        "seed": 0,
        "workers": 1,
        "counted": counted,
    }
    tree = broken_tree(folder, None)
    status, message = run(tree, config | {"out": str(tree / "out")})
    if status:
        raise SystemExit(f"the unbroken scan does not pass: {message}")
    healthy = outputs(tree)
    print(f"Unbroken: {sum(row['verdict'] == 'contaminated' for row in healthy['verdicts'])} items contaminated.\n")
    rows, caught, idle = [], 0, []
    chosen = [each for each in MUTATIONS if re.search(only, f"{each.area} {each.name}")]
    for mutation in chosen:
        noticed, wrong, message = try_mutation(mutation, folder, config, healthy)
        if not wrong:
            idle.append(f"{mutation.name} ({message})")
        caught += noticed and bool(wrong)
        error = message.removeprefix("positive control: ")
        rows.append([mutation.area, mutation.name, wrong or "nothing", "caught" if noticed else "MISSED", error[:150]])
        print(rows[-1], file=sys.stderr, flush=True)
    print(markdown_table(["area", "what is broken", "wrong without the control", "", "what the control says"], rows))
    for each in idle:
        print(f"\nNo mutation, since it makes nothing wrong: {each}")
    met = caught == len(chosen) and not idle
    print(f"\ngoal mutations caught: {caught} of {len(chosen)} (target all) {'met' if met else 'short'}")


if __name__ == "__main__":
    main()
