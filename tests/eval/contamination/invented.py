"""Invented benchmark items and documents, with no word of a real benchmark, and scans of them."""

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from eval.contamination.check import ScanConfig, check
from eval.contamination.config import ContaminationConfig
from eval.contamination.references import Reference, Text
from eval.contamination.verdicts import ContaminationResult, ItemVerdict
from eval.contamination.words import words
from eval.suites.items import normalise, write_rows
from eval.suites.suites import SUITES

CONFIG = ContaminationConfig(control_items=6)
SUITE_NAMES = ("arc_challenge", "winogrande", "truthfulqa")
WORDS = ["the", "a", "Cat", "dog", "runs", "sees", "small", "old", "House", "tree", "river", "stone"]


def random_words(generator: np.random.Generator, count: int) -> str:
    letters = generator.integers(ord("a"), ord("k"), (count, 6), dtype=np.uint8)
    return " ".join(word.tobytes().decode() for word in letters)


def prose(seed: int, paragraphs: int = 12) -> str:
    generator = np.random.default_rng(seed)
    return "\n\n".join(random_words(generator, 60).capitalize() + "." for _ in range(paragraphs))


def suite_rows(name: str, generator: np.random.Generator) -> list[dict]:
    """As many invented rows as a suite has, with what HellaSwag marks up."""

    def text(count: int) -> str:
        return " ".join(WORDS[number] for number in generator.integers(len(WORDS), size=count).tolist())

    rows: list[dict] = []
    for item in range(SUITES[name].rows):
        texts = [f"{text(1 + int(generator.integers(5)))} {number}" for number in range(4)]
        if name.startswith("arc"):
            choices = {"text": texts, "label": list("ABCD")}
            rows.append({"id": str(item), "question": text(9), "choices": choices, "answerKey": "ABCD"[item % 4]})
        elif name == "hellaswag":
            first, second = f"[header] {text(4)} [title] {text(5)}.", text(3)
            texts = [f"{ending} [substeps] {text(2)}" for ending in texts]
            rows.append(
                {"ind": item, "activity_label": "Rowing", "ctx_a": first, "ctx_b": second, "ctx": f"{first} {second}"}
                | {"endings": texts, "source_id": str(item), "split": "val", "split_type": "x", "label": str(item % 4)}
            )
        elif name == "winogrande":
            sentence = f"{text(6)} _ {text(4)}."
            rows.append({"sentence": sentence, "option1": "Ann", "option2": "Beth", "answer": str(1 + item % 2)})
        else:
            one = {"choices": texts[:3], "labels": [1, 0, 0]}
            many = {"choices": texts, "labels": [1, 0, 0, item % 2]}
            rows.append({"question": text(7) + "?", "mc1_targets": one, "mc2_targets": many})
    return rows


def write_benchmarks(directory: Path) -> None:
    """Normalised rows of three suites, with some items too short to have an 8-gram, and train items of the first."""
    generator = np.random.default_rng(1)
    arc: list[dict] = []
    winogrande: list[dict] = []
    truthfulqa: list[dict] = []
    for item in range(SUITES["arc_challenge"].rows):
        question = {0: "Is ice wet?", 1: "Wet?"}.get(item) or f"What is {random_words(generator, 6 + item % 20)}?"
        choices = (
            [["no", "Water ice"][item == 0], random_words(generator, 3)]
            if item < 2
            else [random_words(generator, 3) for _ in range(4)]
        )
        labels = list("ABCD"[: len(choices)])
        arc.append(
            {
                "id": str(item),
                "question": question,
                "choices": {"text": choices, "label": labels},
                "answerKey": "A",
            }
        )
    for _ in range(SUITES["winogrande"].rows):
        sentence = f"{random_words(generator, 9)} _ {random_words(generator, 5)}."
        winogrande.append({"sentence": sentence, "option1": "Ann", "option2": "Beth", "answer": "2"})
    for _ in range(SUITES["truthfulqa"].rows):
        choices = [random_words(generator, 9) + "." for _ in range(4)]
        targets = {"choices": choices, "labels": [1, 0, 0, 0]}
        many = {"choices": choices, "labels": [1, 1, 0, 0]}
        truthfulqa.append(
            {"question": f"Who {random_words(generator, 8)}?", "mc1_targets": targets, "mc2_targets": many}
        )
    for name, rows in (("arc_challenge", arc), ("winogrande", winogrande), ("truthfulqa", truthfulqa)):
        table = pa.Table.from_pylist(rows, schema=SUITES[name].schema)
        write_rows(normalise(table, SUITES[name], name), directory / f"{name}.parquet")
    train = [row | {"question": f"Why {random_words(generator, 12)}?"} for row in arc[2:40]]
    table = pa.Table.from_pylist(train, schema=SUITES["arc_challenge"].schema)
    pq.write_table(table, directory / "arc_challenge-train.parquet")


def write_documents(directory: Path, items: list[Reference]) -> list[Path]:
    """Two files of several row groups; items 20 and 30 are in them, the second twice."""
    texts = [prose(seed, 3) for seed in range(300, 340)]
    texts[4] += "\n\n" + items[20].forms[0].text
    texts[11] = items[30].forms[0].text + "\n\n" + texts[11]
    texts[33] = items[30].forms[0].text
    paths = []
    for number in range(2):
        part = slice(number * 20, number * 20 + 20)
        ids = [f"doc{row}" for row in range(40)][part]
        paths.append(directory / f"{number}.parquet")
        pq.write_table(pa.table({"id": ids, "text": texts[part]}), paths[-1], row_group_size=6)
    return paths


def item_of(question: str, answer: str, others: tuple[str, ...] = (), number: int = 0) -> Reference:
    first, count = len(words(question)), len(words(f"{question} {answer}"))
    form = Text(f"{question} {answer}", first, (first, count))
    return Reference("s", number, question, (answer,), others, (form,))


def check_texts(items: list[Reference], *texts: str) -> ContaminationResult:
    return check([(str(number), text) for number, text in enumerate(texts)], items, CONFIG)


def first_verdict(items: list[Reference], *texts: str) -> ItemVerdict:
    return check_texts(items, *texts).verdicts[0]


def command_of(documents: list[Path], benchmarks: Path, out: Path, workers: int) -> ScanConfig:
    """A scan of documents for the items of the three suites."""
    return ScanConfig(
        documents=tuple(documents),
        benchmarks=benchmarks,
        suites=SUITE_NAMES,
        config=CONFIG,
        seed=1,
        workers=workers,
        out=out,
    )


def row_group_results(folder: Path) -> list[Path]:
    """What a scan keeps below its folder `resume`: results of the row groups of documents, then of the planted file."""
    return sorted(folder.glob("*/*.jsonl"))
