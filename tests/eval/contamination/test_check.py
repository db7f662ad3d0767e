"""The check finds what was planted, stays silent on clean prose, and does not break on hostile text."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from benchmarks.contamination.mutations import MUTATIONS
from eval.contamination.audit import check_index, check_items
from eval.contamination.canaries import draw_canaries
from eval.contamination.check import Counts, ScanConfig, check, scan_files
from eval.contamination.index import build_index
from eval.contamination.passages import PASSAGES
from eval.contamination.planted_items import FORMS, LEAST_RECALL
from eval.contamination.probes import probes
from eval.contamination.references import Reference, Severity, Text, references
from eval.contamination.verdicts import (
    ContaminationConfig,
    ContaminationError,
    ContaminationResult,
    ItemVerdict,
    Kind,
    Tally,
    Verdict,
    item_lengths,
)
from eval.contamination.words import words
from eval.suites.suites import SUITES, normalise, write_rows
from model.parsing import ConfigError
from tasks.store.objects import digest_file

ROOT = Path(__file__).resolve().parents[3]
CONFIG = ContaminationConfig(control_items=6)
RESULT = Tally.result
SUITE_NAMES = ("arc_challenge", "winogrande", "truthfulqa")


def _words(generator: np.random.Generator, count: int) -> str:
    letters = generator.integers(ord("a"), ord("k"), (count, 6), dtype=np.uint8)
    return " ".join(word.tobytes().decode() for word in letters)


def _prose(seed: int, paragraphs: int = 12) -> str:
    generator = np.random.default_rng(seed)
    return "\n\n".join(_words(generator, 60).capitalize() + "." for _ in range(paragraphs))


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """Normalised rows of three suites, invented, with some items too short to have an 8-gram."""
    directory = tmp_path_factory.mktemp("benchmarks")
    generator = np.random.default_rng(1)
    arc, winogrande, truthfulqa = [], [], []
    for item in range(SUITES["arc_challenge"].rows):
        question = {0: "Is ice wet?", 1: "Wet?"}.get(item) or f"What is {_words(generator, 6 + item % 20)}?"
        choices = (
            [["no", "Water ice"][item == 0], _words(generator, 3)]
            if item < 2
            else [_words(generator, 3) for _ in range(4)]
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
        sentence = f"{_words(generator, 9)} _ {_words(generator, 5)}."
        winogrande.append({"sentence": sentence, "option1": "Ann", "option2": "Beth", "answer": "2"})
    for _ in range(SUITES["truthfulqa"].rows):
        choices = [_words(generator, 9) + "." for _ in range(4)]
        targets = {"choices": choices, "labels": [1, 0, 0, 0]}
        many = {"choices": choices, "labels": [1, 1, 0, 0]}
        truthfulqa.append({"question": f"Who {_words(generator, 8)}?", "mc1_targets": targets, "mc2_targets": many})
    for name, rows in (("arc_challenge", arc), ("winogrande", winogrande), ("truthfulqa", truthfulqa)):
        table = pa.Table.from_pylist(rows, schema=SUITES[name].schema)
        write_rows(normalise(table, SUITES[name], name), directory / f"{name}.parquet")
    train = [row | {"question": f"Why {_words(generator, 12)}?"} for row in arc[2:40]]
    table = pa.Table.from_pylist(train, schema=SUITES["arc_challenge"].schema)
    pq.write_table(table, directory / "arc_challenge-train.parquet")
    return directory


@pytest.fixture(scope="module")
def items(benchmarks) -> list[Reference]:
    return references(benchmarks, SUITE_NAMES)


def _item(question: str, answer: str, others: tuple[str, ...] = (), number: int = 0) -> Reference:
    first, count = len(words(question)), len(words(f"{question} {answer}"))
    form = Text(f"{question} {answer}", first, (first, count))
    return Reference("s", number, question, (answer,), others, (form,))


def _check(items: list[Reference], *texts: str) -> ContaminationResult:
    return check([(str(number), text) for number, text in enumerate(texts)], items, CONFIG)


def _first(items: list[Reference], *texts: str) -> ItemVerdict:
    return _check(items, *texts).verdicts[0]


def test_clean_prose_has_no_hit(items):
    result = check([(str(seed), _prose(seed)) for seed in range(100, 130)], items, CONFIG)
    assert result.matches == result.flagged == [] and result.documents == 30
    assert {found.verdict for found in result.verdicts} == {Verdict.CLEAN, Verdict.UNCHECKABLE}
    uncheckable = [found for found in result.verdicts if found.verdict is Verdict.UNCHECKABLE]
    assert [(found.reference.suite, found.reference.item) for found in uncheckable] == [("arc_challenge", 1)]


@pytest.mark.parametrize(
    "form",
    [
        lambda text: text,
        lambda text: text.upper().replace("?", "").replace(".", ""),
        lambda text: "“" + text.replace(" ", "\u00a0— ") + "”",
        lambda text: "\n".join(text.split()),
        lambda text: "".join(chr(ord(c) + 0xFEE0) if "a" <= c <= "z" else c for c in text),  # full width
    ],
)
def test_planted_items_are_found_where_they_stand(items, form):
    numbers = (0, 5, 1250, 2600)  # the first has four words, which only match as a whole
    planted = {number: form(items[number].forms[0].text) for number in numbers}
    texts = {str(number): f"{_prose(7)}\n\n{planted[number]}\n\n{_prose(8)}" for number in numbers}
    result = check([("clean", _prose(9)), *texts.items()], items, CONFIG)
    assert sorted(result.flagged) == sorted((str(number), "", number) for number in numbers)
    dirty = [found for found in result.verdicts if found.verdict is Verdict.CONTAMINATED]
    assert [found.reference for found in dirty] == [items[number] for number in numbers]
    for number, found in zip(numbers, dirty, strict=True):
        best, text = found.best, texts[str(number)]
        assert found.kind is Kind.EXACT
        assert (best.document, found.documents, found.coverage) == (str(number), 1, 1.0)
        assert best.overlap.run == found.longest_run == found.item_words == len(words(planted[number]))
        assert words(text[best.start : best.end]) == words(planted[number])
        assert text.encode()[best.overlap.start : best.overlap.end].decode() == text[best.start : best.end]
        assert words(best.snippet[1]) == words(planted[number])


def test_thresholds():
    form = _words(np.random.default_rng(2), 40)
    item = Reference("s", 0, form, (), (), (Text(form, 0, None),))
    split = form.split()

    def verdict(*stretches: slice) -> tuple[Verdict, int, float]:
        text = " and then ".join(" ".join(split[stretch]) for stretch in stretches)
        found = check([("d", f"Well, {text}, or so.")], [item], CONFIG).verdicts[0]
        return found.verdict, found.longest_run, found.coverage

    assert verdict(slice(0, 7)) == (Verdict.CLEAN, 0, 0.0)
    assert verdict(slice(3, 15)) == (Verdict.CLEAN, 12, 12 / 40)
    assert verdict(slice(3, 16)) == (Verdict.CONTAMINATED, 13, 13 / 40)
    assert verdict(slice(0, 10), slice(20, 29)) == (Verdict.CLEAN, 10, 19 / 40)
    assert verdict(slice(0, 10), slice(20, 30)) == (Verdict.CONTAMINATED, 10, 20 / 40)


def test_a_phrase_the_item_repeats_counts_once():
    quote = "Only the dead have seen the end of war"
    text = f'Who said, "{quote}"? Plato wrote "{quote}".'
    item = Reference("s", 0, text, (), (), (Text(text, 0, None),))
    famous = check([("d", f"As they say: {quote}! So be it.")], [item], CONFIG).verdicts[0]
    assert (famous.verdict, famous.longest_run, famous.coverage) == (Verdict.CLEAN, 9, 9 / 22)
    assert check([("d", text)], [item], CONFIG).verdicts[0].coverage == 1.0


def test_best_match_and_counts_over_documents(items):
    text = items[35].forms[0].text
    half = " ".join(text.split()[:14])
    documents = [("a", half), ("b", _prose(1) + text), ("c", text), ("d", _prose(2))]
    found = check(documents, items, CONFIG).verdicts[35]
    assert (found.documents, found.best.document, found.coverage) == (3, "b", 1.0)


def test_classes():
    question = "Which of these seven metals is the best conductor of heat at room temperature in dry air?"
    item = _item(question, "Silver, by a small margin", ("Lead, of all things", "Tin, which nobody expected"))

    def kind(text: str) -> Kind:
        return _first([item], f"Well then. {text} So be it.").kind

    assert kind(f"{question} It is silver by a small margin.") is Kind.EXACT
    assert kind(f"{question} A. Lead, of all things. B. Silver, by a small margin. C. Tin.") is Kind.EXACT
    assert kind(f"{question} Nobody knows.") is Kind.QUESTION
    assert kind("Of heat at room temperature in dry air? Silver, by a small margin.") is Kind.ANSWER_AND_CONTEXT
    assert kind("Silver, by a small margin, wins.") is Kind.CLEAN


def test_hellaswag_without_its_ending_is_a_source():
    context = "The man in the yellow coat picks up a wooden paddle, turns around and walks back to the boat."
    item = _item(context, "He rows out on the lake and waves to the people on the shore.")
    item = Reference("hellaswag", 0, item.question, item.answers, item.others, item.forms)
    assert _first([item], f"{context} Then he goes home.").kind is Kind.SOURCE
    assert _first([item], item.forms[0].text).kind is Kind.EXACT


@pytest.mark.parametrize(
    ("edited", "found"),
    [
        ("Which gas do green plants take from the air? Carbon dioxide", True),
        ("Which gas do many plants take from the air? Carbon dioxide", True),
        ("Which gas do plants take from the air? Carbon dioxide", True),
        ("Which gas do all green plants take from the air? Carbon dioxide", True),
        ("What gas do green plants take from the air? Carbon dioxide", True),
        ("Which gas do green plants take from the sea? Carbon dioxide", True),
        ("Which gas do many plants steal from the air? Carbon dioxide", False),
    ],
)
def test_one_edit_in_a_short_text(edited, found):
    item = _item("Which gas do green plants take from the air?", "Carbon dioxide")
    assert len(words(item.forms[0].text)) == 11
    verdict = _first([item], f"He asked and asked. {edited}. She did not answer.").verdict
    unseen = "\u200b\u2060\u00ad".join(edited)
    assert _first([item], f"He asked and asked. {unseen}. She did not answer.").verdict is verdict
    assert verdict is (Verdict.CONTAMINATED if found else Verdict.CLEAN)


def test_a_short_question_needs_its_answer():
    item = _item("Is the moon a star?", "No", ("Yes", "Perhaps"))
    assert _first([item], "Is the moon a star? I wonder what they taught you.").verdict is Verdict.CLEAN
    assert _first([item], "Is the moon a star? (a) perhaps (b) yes (c) no").kind is Kind.EXACT
    assert _first([item], "Question: is the moon a star? Answer: no").kind is Kind.EXACT


@pytest.mark.parametrize(
    "written",
    [
        lambda question, answer: f"{question} {answer}",
        lambda question, answer: question,
        lambda question, answer: " ".join(question.split()[:10]),  # half of it
        lambda question, answer: " ".join(
            f"{word}x" if number % 12 == 9 else word for number, word in enumerate(question.split())
        ),
    ],
)
def test_copies_make_no_leak_clean(written):
    question = "By opening this package you agree to all terms of the licence that is printed on its lid?"
    item = _item(question, "Only in some countries of the world")
    texts = [f"Notice {number}. {written(question, item.answers[0])}" for number in range(40)]
    once, many = _check([item], texts[0]).verdicts[0], _check([item], *texts, _prose(1))
    assert once.verdict is Verdict.CONTAMINATED
    assert (many.verdicts[0].verdict, many.verdicts[0].kind) == (once.verdict, once.kind)
    assert many.verdicts[0].documents == len(texts)
    assert sorted(many.flagged) == sorted((str(number), "", 0) for number in range(40))


def test_filtering_drops_every_copy_of_every_question_of_a_page(items):
    asked = [number for number in range(20, 25)]
    page = "\n\n".join(f"{number}. {items[number].question}" for number in asked)
    texts = [page, _prose(50), *[f"{_prose(seed, 1)} {page}" for seed in range(51, 63)], f"{items[20].question} Yes."]
    leaked = [name for name in range(len(texts)) if name != 1]
    result = _check(items, *texts)
    assert sorted({int(document) for document, _, _ in result.flagged}) == leaked
    assert {number for _, _, number in result.flagged} == set(asked)
    assert len(result.flagged) == 13 * len(asked) + 1
    assert _check(items, texts[1]).flagged == []


def test_forms_and_renderings_add_up():
    """One form has the longer run and another, or the text without its tags, has more of the item."""
    first = "one two three four five six seven eight nine ten eleven twelve plus more of it to be read here"
    second = "red orange yellow green blue indigo violet black white pink"
    item = Reference("s", 0, first, (), (), (Text(f"{first} {_words(np.random.default_rng(1), 12)}", 0, None),))
    item = replace(item, forms=(*item.forms, Text(second, 0, None)))
    text = " ".join([*first.split()[:11], "and", *second.split()[:5], "<b>indigo violet black"])
    found = _first([item], text)
    assert (found.longest_run, found.coverage, found.verdict) == (11, 0.8, Verdict.CONTAMINATED)
    match = found.best
    assert text[match.start : match.end].split() == first.split()[:11]
    # what only the document as it stands has, and what only a rendering has
    other = _item("Why do eleven grey geese fly over the frozen lake at night", "To be warm", number=1)
    both = f'<img alt="{second}"> Why do eleven grey <p>geese fly over the <p>frozen lake at night'
    assert [found.verdict for found in _check([item, other], both).verdicts] == [Verdict.CONTAMINATED] * 2


def test_wording_that_many_items_share_tells_none_of_them():
    subjects = ["a solid", "a liquid", "a gas", "a fuel", "a tool"]
    items = [
        _item(f"Which of the following things is an example of {subject}?", f"thing {number}", number=number)
        for number, subject in enumerate(subjects)
    ]
    template = _check(items, "Which of the following things is an example of good manners? Say why.")
    assert {found.kind for found in template.verdicts} == {Kind.BOILERPLATE} and template.flagged == []
    leak = _check(items, "Which of the following things is an example of a fuel? Thing 3, of course.")
    assert [found.kind for found in leak.verdicts].count(Kind.EXACT) == 1
    assert leak.flagged == [("0", "", 3)]
    # a question that is whole, or a long run, is no template
    same = [_item(items[0].question, f"thing {number}", number=number) for number in range(5)]
    assert {found.kind for found in _check(same, f"{same[0].question} I ask you.").verdicts} == {Kind.QUESTION}
    assert _check(same, "Which of the following things is an example of rain?").flagged == []
    story = " ".join(f"word{number}" for number in range(13))
    long = [_item(f"{story} and {_words(np.random.default_rng(number), 30)}?", "no") for number in range(5)]
    assert {found.kind for found in _check(long, f"{story} and so on").verdicts} == {Kind.QUESTION}
    assert {found.kind for found in _check(long, " ".join(story.split()[:12])).verdicts} == {Kind.CLEAN}


def test_train_items_are_apart(items):
    train = next(number for number, item in enumerate(items) if item.severity is Severity.TRAIN)
    assert items[train].suite == "arc_challenge:train"
    found = _check(items, f"{_prose(3)} {items[train].forms[0].text} {_prose(4)}")
    dirty = [number for number, verdict in enumerate(found.verdicts) if verdict.verdict is Verdict.CONTAMINATED]
    assert dirty == [train] and found.flagged == []


def test_hostile_text(items):
    text = items[20].forms[0].text
    documents = [
        ("html", f"<html><body onload='x()'><p>{text}</p></body></html>"),
        ("markdown", f"| a | [{text}](javascript:x) |\n```"),
        ("control", "\x1b[31m\x00" + text.replace(" ", "\x00\x07 ") + "\x7f\u202e"),
        ("surrogates", "\ud800 \udfff" + text + "\udc80"),
        ("line", "lorem " * 2_000_000 + text + " ipsum" * 2_000_000),
        ("marks", "e\u0301 lorem " * 200_000 + text + " e\u0301" * 200_000),
        ("one word", "x" * 5_000_000),
        ("empty", ""),
        ("combining", "e" + "\u0301\u0327" * 500_000),
    ]
    result = check(documents, items, CONFIG)
    found = result.verdicts[20]
    assert found.verdict is Verdict.CONTAMINATED and found.documents == 6
    dirty = {"html", "markdown", "control", "surrogates", "line", "marks"}
    assert {match.document for match in result.matches} == dirty
    texts = dict(documents)
    for match in result.matches:
        json.dumps(match.snippet, ensure_ascii=False).encode()
        assert words(texts[match.document][match.start : match.end]) == words(text)


@pytest.fixture(scope="module")
def documents(items, tmp_path_factory) -> list[Path]:
    """Two files of several row groups; items 20 and 30 are in them, the second twice."""
    directory = tmp_path_factory.mktemp("documents")
    texts = [_prose(seed, 3) for seed in range(300, 340)]
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


def _command(documents, benchmarks, out: Path, workers: int) -> ScanConfig:
    return ScanConfig(
        documents=tuple(documents),
        benchmarks=benchmarks,
        suites=SUITE_NAMES,
        config=CONFIG,
        seed=1,
        workers=workers,
        out=out,
    )


@pytest.fixture(scope="module")
def whole(documents, benchmarks, tmp_path_factory) -> Path:
    """What one worker finds, in a scan that is never killed."""
    out = tmp_path_factory.mktemp("whole")
    assert scan_files(_command(documents, benchmarks, out, 1))["documents"] == 40
    return out


def test_results_do_not_depend_on_workers(whole, documents, benchmarks, items, tmp_path):
    assert scan_files(_command(documents, benchmarks, tmp_path / "2", 2))["documents"] == 40
    outputs = [{path.name: path.read_bytes() for path in folder.iterdir()} for folder in (whole, tmp_path / "2")]
    assert outputs[0] == outputs[1]
    expected = {"verdicts.parquet", "flagged.parquet", "matches.jsonl", "coverage.json", "sweep.json"}
    assert set(outputs[0]) == expected

    verdicts = pq.read_table(whole / "verdicts.parquet").to_pylist()
    assert len(verdicts) == len(items)
    dirty = [(row["item"], row["document"], row["documents"]) for row in verdicts if row["verdict"] == "contaminated"]
    assert dirty == [(20, "doc4", 1), (30, "doc11", 2)]
    matches = [json.loads(line) for line in (whole / "matches.jsonl").read_text().splitlines()]
    assert [match["document"] for match in matches[:2]] == ["doc11", "doc33"]  # the longer item first
    for match in matches:
        assert words(match["document_text"]["match"]) == words(match["item_text"]["match"])
    flagged = pq.read_table(whole / "flagged.parquet").to_pylist()
    assert [tuple(row.values()) for row in flagged] == [
        ("doc4", "0.parquet", "arc_challenge", 20),
        ("doc11", "0.parquet", "arc_challenge", 30),
        ("doc33", "1.parquet", "arc_challenge", 30),
    ]
    coverage = json.loads((whole / "coverage.json").read_text())
    assert coverage["control"]["arc_challenge"]["verbatim"] == {"planted": 8, "found": 8}
    assert coverage["control"]["hard_negatives"] == {"documents": len(PASSAGES), "flagged": 0}
    suite = coverage["suites"]["arc_challenge"]
    assert (suite["items"], suite["checkable"], suite["uncheckable"]) == (1172, 1171, [1])
    assert (suite["clean"], suite["contaminated"]) == (1169, 2)
    assert suite["by_kind"] == {"clean": 1169, "exact": 2, "uncheckable": 1}
    assert coverage["suites"]["arc_challenge:train"]["severity"] == "train"
    sweep = json.loads((whole / "sweep.json").read_text())
    runs = {row["run"]: row["contaminated"] for row in sweep if row["suite"] == "arc_challenge" and "run" in row}
    longest = max(row["longest_run"] for row in verdicts)
    assert (runs[8], runs[longest], runs.get(longest + 1, 0)) == (2, 1, 0)


def _runs(process: int) -> bool:
    """Whether a process is there and no zombie."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


# In the worker: every row group but the first takes seconds, so that a kill comes before the last.
SLOW = """
import sys, time
if "spawn_main" in " ".join(sys.orig_argv):
    from eval import document_parquet
    read, groups = document_parquet.read_row_group, []

    def read_slowly(group):
        groups.append(group)
        time.sleep(2 * (len(groups) > 1))
        return read(group)

    document_parquet.read_row_group = read_slowly
"""


def test_a_killed_scan_continues(whole, documents, benchmarks, tmp_path):
    """SIGTERM twice in the middle, or kill -9, ends it and its workers. Then the same command: the same bytes as a scan
    that nobody ended."""
    config = {
        "documents": [str(path) for path in documents],
        "benchmarks": str(benchmarks),
        "suites": list(SUITE_NAMES),
        "config": {"control_items": 6},
        "seed": 1,
        "workers": 1,
        "out": str(tmp_path / "out"),
        "resume": str(tmp_path / "scanned"),
    }
    (tmp_path / "config.json").write_text(json.dumps(config))
    arguments = [sys.executable, "-m", "eval.contamination.check", str(tmp_path / "config.json")]
    (tmp_path / "sitecustomize.py").write_text(SLOW)
    environment = os.environ | {"PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    for signals in ([signal.SIGTERM, signal.SIGTERM], [signal.SIGKILL]):
        process = subprocess.Popen(arguments, stdout=subprocess.DEVNULL, env=environment)
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
        deadline = time.monotonic() + 300
        while not list((tmp_path / "scanned").glob("*/*.jsonl")) and time.monotonic() < deadline:
            time.sleep(0.002)
        workers = {int(pid) for pid in children.read_text().split()}
        assert workers
        for number in signals:
            process.send_signal(number)
            time.sleep(0.1)
        assert process.wait(60) == (-signal.SIGKILL if signals == [signal.SIGKILL] else 128 + signal.SIGTERM)
        while any(_runs(worker) for worker in workers):
            assert time.monotonic() < deadline, "a worker outlives its scan"
            time.sleep(0.05)
        if len(signals) == 2:
            shutil.rmtree(tmp_path / "scanned")
    results = sorted((tmp_path / "scanned").glob("*/*.jsonl"))
    times = {path: path.stat().st_mtime_ns for path in results}
    assert 1 <= len(times) < 8  # row groups of documents; those of the planted file come after them
    for path in results[2:]:  # as if the kill had come earlier than it could be timed
        path.unlink()
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert len(list((tmp_path / "scanned").glob("*/0000[01]-*.jsonl"))) == 8
    assert all(path.stat().st_mtime_ns == times[path] for path in results[:2])
    for path in whole.iterdir():
        assert path.read_bytes() == (tmp_path / "out" / path.name).read_bytes(), path.name
    # other documents are another scan
    config["documents"] = config["documents"][:1]
    (tmp_path / "config.json").write_text(json.dumps(config))
    subprocess.run(arguments, check=True, stdout=subprocess.DEVNULL)
    assert json.loads((tmp_path / "out" / "coverage.json").read_text())["documents"] == 20


def test_command_line(documents, benchmarks, tmp_path):
    config = {
        "documents": [str(path) for path in documents],
        "benchmarks": str(benchmarks),
        "suites": ["winogrande"],
        "config": {"ngram": 8},
        "seed": 1,
        "workers": 1,
        "out": str(tmp_path / "out"),
    }

    def command(**changes: object) -> subprocess.CompletedProcess:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        arguments = [sys.executable, "-m", "eval.contamination.check", str(tmp_path / "config.json")]
        return subprocess.run(arguments, capture_output=True, text=True, check=False)

    good = command()
    assert (good.returncode, good.stderr) == (0, "")
    events = [json.loads(line) for line in good.stdout.splitlines()]
    assert events[-2] == {"event": "progress", "done": 40, "total": 40} and events[-1]["event"] == "done"

    bad = command(config={"ngramm": 8})
    assert bad.returncode == 1 and bad.stderr.count("\n") == 1
    assert bad.stderr.startswith("error: config.json.config has the unknown key 'ngramm'")
    pq.write_table(pa.table({"id": ["a"], "body": ["b"]}), tmp_path / "bad.parquet")
    bad = command(documents=[str(tmp_path / "bad.parquet")])
    assert bad.returncode == 1 and "bad.parquet: column 'text' is missing" in bad.stderr


@pytest.fixture(scope="module")
def kept(documents, benchmarks, tmp_path_factory) -> ScanConfig:
    """A scan that passed, with the results of its row groups: the same command only adds them up again."""
    folder = tmp_path_factory.mktemp("kept")
    size = sum(len(text.encode()) for path in documents for text in pq.read_table(path)["text"].to_pylist())
    command = replace(
        _command(documents, benchmarks, folder / "out", 1),
        suites=("winogrande",),
        config=replace(CONFIG, control_items=5),
        resume=folder / "scanned",
        counted=Counts(documents=40, bytes=size),
    )
    scan_files(command)
    return command


def _results(command: ScanConfig) -> list[Path]:
    """Results of the row groups of documents, then those of the planted file."""
    return sorted(command.resume.glob("*/*.jsonl"))


def _change(path: Path, change: Callable[[list[dict]], None]) -> None:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_suffix(".sha256").write_text(digest_file(path).sha256)  # as if the scan had written this


def test_results_that_were_damaged_since_are_scanned_again(kept: ScanConfig, tmp_path: Path):
    shutil.copytree(kept.resume, tmp_path / "scanned")
    command = replace(kept, resume=tmp_path / "scanned", out=tmp_path / "out")
    whole = [result.read_bytes() for result in _results(command)]
    _results(command)[1].write_bytes(b"")
    _results(command)[2].with_suffix(".sha256").unlink()
    _results(command)[3].write_bytes(whole[3].replace(b"1", b"2", 1))
    _results(command)[4].write_bytes(b"\xff")
    scan_files(command)
    assert [result.read_bytes() for result in _results(command)] == whole


def _drop_matches(lines: list[dict]) -> None:
    del lines[1:]
    lines[0]["matches"] = 0


def _move(lines: list[dict]) -> None:
    for match in lines[1:]:
        match["overlap"]["start"] += 1


def _swap_items(lines: list[dict]) -> None:
    for match in lines[1:]:
        match["overlap"]["reference"] ^= 1


@pytest.mark.parametrize(
    ("result", "change", "message"),
    [
        (7, _drop_matches, r"the words “.*” stand in 1.parquet, row \d of row group 3, .*, but they were found no"),
        (
            3,
            lambda lines: lines.pop(),
            r"row group 3 of 0.parquet has 2 documents, but 2 were scanned, and \d+ of \d+",
        ),
        (3, lambda lines: lines[0].update(bytes=1), "40 documents with .* bytes of text, but 40 documents with"),
        (3, lambda lines: lines[0].update(index="0"), "is the result of another scan"),
        (9, _drop_matches, "(was planted in|items of winogrande were planted as)"),
        (9, _move, "was planted without them, but .* words of .* were found"),
        (9, _swap_items, "was planted without them, but .* words of .* were found"),
    ],
)
def test_a_scan_with_a_wrong_result_is_refused(
    kept: ScanConfig, result: int, change: Callable, message: str, tmp_path: Path
):
    shutil.copytree(kept.resume, tmp_path / "scanned")
    command = replace(kept, resume=tmp_path / "scanned", out=tmp_path / "out")
    _change(_results(command)[result], change)
    with pytest.raises(ContaminationError, match=f"^positive control: .*{message}.*; no verdict of this scan was kept"):
        scan_files(command)
    assert not (tmp_path / "out").exists() and not _results(command)


@pytest.mark.parametrize(
    ("target", "name", "wrong", "message"),
    [
        (ContaminationConfig, "contaminates", lambda config, found: found.run > config.run, "back as “clean, clean, 1"),
        (ContaminationConfig, "is_template", lambda config, found: True, "back as “clean, boilerplate"),
        (Tally, "findings", lambda tally: replace(RESULT(tally), flagged=[]), "items of winogrande were planted as"),
    ],
)
def test_a_tally_that_is_wrong_is_refused(
    kept: ScanConfig,
    target: type,
    name: str,
    wrong: Callable,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(kept.resume, tmp_path / "scanned")
    monkeypatch.setattr(target, name, wrong)
    with pytest.raises(ContaminationError, match=message):
        scan_files(replace(kept, resume=tmp_path / "scanned", out=tmp_path / "out"))


def test_every_item_of_every_suite_is_looked_for(items, benchmarks):
    check_items(items, benchmarks, SUITE_NAMES)
    with pytest.raises(ContaminationError, match="1267 items of winogrande were to be looked for, but 0 are"):
        check_items([item for item in items if item.suite != "winogrande"], benchmarks, SUITE_NAMES)
    with pytest.raises(ContaminationError, match="arc_challenge:1 asks"):
        check_items([items[0], replace(items[2], item=1), *items[2:]], benchmarks, SUITE_NAMES)
    few, lengths = items[:50], item_lengths(items[:50])
    check_index(build_index(few, 8), few, lengths)
    with pytest.raises(ContaminationError, match="every text of arc_challenge:49 was to be looked for"):
        check_index(build_index(few[:49], 8), few, lengths)
    index = build_index(few, 8)
    half = len(index.place_first) // 2
    first = np.minimum(index.place_first, index.place_first[half])
    lost = replace(index, place_first=first, places=index.places[: first[-1]])
    with pytest.raises(ContaminationError, match="the index lacks words of"):
        check_index(lost, few, lengths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"run": 10**18}, "run must be from 5 to 200, but it is 1000000000000000000"),
        ({"coverage": 1e-9}, r"coverage must be from 0\.01 to 1, but it is 1e-09"),
        ({"ngram": 9, "run": 8}, "ngram must be at most run, 8, but it is 9"),
    ],
)
def test_thresholds_for_which_the_control_would_invent_words_without_end_are_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=message):
        ContaminationConfig(**settings)


@pytest.mark.parametrize("settings", [{}, {"ngram": 5, "run": 7, "coverage": 0.9}])
def test_probes_have_the_verdicts_that_are_known(settings: dict):
    config = ContaminationConfig(**settings)
    planted = probes(config)
    texts = [
        (f"{number}-{which}", text)
        for number, probe in enumerate(planted)
        for which, text in enumerate(probe.documents)
    ]
    found = iter(check(texts, [item for probe in planted for _, item, _ in probe.items], config).verdicts)
    for number, probe in enumerate(planted):
        for name, _, expected in probe.items:
            came = next(found)
            figures = (came.verdict, came.kind, came.longest_run, came.coverage, came.documents)
            assert figures == astuple(expected)[:5], name
            if expected.place:
                place = (came.best.document, came.best.start, came.best.end)
                assert place == (f"{number}-{expected.place[0]}", *expected.place[1:]), name


def test_canaries_are_drawn_from_both_ends_of_every_file_and_beyond_a_megabyte(tmp_path):
    texts = [f"Début {_prose(seed, 2)} fin." for seed in range(400, 424)]
    texts[9] = f"Début {_prose(9, 2600)} fin."
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, part in zip(paths, (texts[:12], texts[12:])):
        names = [f"{path.stem}{row}" for row in range(12)]
        pq.write_table(pa.table({"id": names, "text": part}), path, row_group_size=5)
    drawn = draw_canaries(paths, 3, 8)
    assert drawn == draw_canaries(paths, 3, 8) != draw_canaries(paths, 4, 8)
    rows = {(canary.path, canary.group, canary.row) for canary in drawn}
    assert rows >= {(path, group, row) for path in paths for group, row in ((0, 0), (0, 4), (2, 0), (2, 1))}
    for canary in drawn:
        text = texts[12 * paths.index(canary.path) + 5 * canary.group + canary.row].encode()
        assert text[canary.start :].startswith(canary.text.encode()) and len(words(canary.text)) == 8
    assert any(canary.start > 2**20 for canary in drawn) and any(canary.start == 0 for canary in drawn)
    assert any(canary.text.endswith("fin") for canary in drawn)


def test_every_mutation_can_be_made():
    assert len({mutation.name for mutation in MUTATIONS}) == len(MUTATIONS) >= 25
    for mutation in MUTATIONS:
        text = (ROOT / mutation.file).read_text()
        assert text.count(mutation.old) == 1, mutation.name
        compile(text.replace(mutation.old, mutation.new), mutation.file, "exec")
    assert LEAST_RECALL.keys() == FORMS.keys()
