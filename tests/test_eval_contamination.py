"""The check finds what was planted, stays silent on clean prose, and does not break on hostile text."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.contamination import CommandConfig, check, positive_control, read_documents, scan_files
from eval.findings import ContaminationConfig, ContaminationError, Verdict
from eval.ngrams import build_index, find, located_words, words
from eval.references import Reference, references
from eval.suites import SUITES, normalise, write_rows

CONFIG = ContaminationConfig(control_items=20)


def _words(generator: np.random.Generator, count: int) -> str:
    return " ".join("".join(generator.choice(list("abcdefghij"), 6)) for _ in range(count))


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
        choices = [["no", "Water ice"][item == 0], _words(generator, 3)] if item < 2 else [
            _words(generator, 3) for _ in range(4)
        ]
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
        truthfulqa.append(
            {"question": f"Who {_words(generator, 8)}?", "mc1_targets": targets, "mc2_targets": many}
        )
    for name, rows in (("arc_challenge", arc), ("winogrande", winogrande), ("truthfulqa", truthfulqa)):
        table = pa.Table.from_pylist(rows, schema=SUITES[name].schema)
        write_rows(normalise(table, SUITES[name], name), directory / f"{name}.parquet")
    return directory


@pytest.fixture(scope="module")
def items(benchmarks) -> list[Reference]:
    return references(benchmarks, ["arc_challenge", "winogrande", "truthfulqa"])


def test_items_are_questions_with_right_answers(items):
    winogrande = next(item for item in items if item.suite == "winogrande")
    assert " Beth " in winogrande.forms[0] and "_" not in winogrande.forms[0]
    truthful = next(item for item in items if item.suite == "truthfulqa")
    assert len(truthful.forms) == len(truthful.answers) == len(truthful.others) == 2
    assert all(answer in form for answer, form in zip(truthful.answers, truthful.forms))


def test_hellaswag_is_looked_for_with_and_without_its_marks(tmp_path):
    row = {name: "x" for name in SUITES["hellaswag"].schema.names} | {
        "ind": 1,
        "ctx": "[header] How to swim [title] Find some water.",
        "endings": ["[substeps] A lake will do.", "b", "c", "d"],
        "label": "0",
    }
    rows = [row] * SUITES["hellaswag"].rows
    write_rows(pa.Table.from_pylist(rows, schema=SUITES["hellaswag"].schema), tmp_path / "hellaswag.parquet")
    found = references(tmp_path, ["hellaswag"])[0]
    assert words(found.forms[0]) == ["how", "to", "swim", "find", "some", "water", "a", "lake", "will", "do"]
    assert words(found.forms[1])[:2] == ["header", "how"]


def test_clean_prose_has_no_hit(items):
    findings = check([(str(seed), _prose(seed)) for seed in range(100, 130)], items, CONFIG)
    assert findings.matches == [] and findings.documents == 30
    assert {found.verdict for found in findings.verdicts} == {Verdict.CLEAN, Verdict.UNCHECKABLE}
    uncheckable = [found for found in findings.verdicts if found.verdict is Verdict.UNCHECKABLE]
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
    for number in (0, 5, 1200, 2500):  # the first has four words, which only match as a whole
        planted = form(items[number].forms[0])
        text = f"{_prose(7)}\n\n{planted}\n\n{_prose(8)}"
        findings = check([("clean", _prose(9)), ("dirty", text)], items, CONFIG)
        dirty = [found for found in findings.verdicts if found.verdict is Verdict.CONTAMINATED]
        assert [found.reference for found in dirty] == [items[number]]
        best = dirty[0].best
        assert (best.document, dirty[0].documents, dirty[0].coverage) == ("dirty", 1, 1.0)
        assert best.run == dirty[0].longest_run == dirty[0].item_words == len(words(planted))
        assert words(text[best.start : best.end]) == words(planted)
        assert words(best.snippet[1]) == words(planted)


def test_thresholds():
    form = _words(np.random.default_rng(2), 40)
    item = Reference("s", 0, form, (), (), (form,))
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
    item = Reference("s", 0, text, (), (), (text,))
    famous = check([("d", f"As they say: {quote}! So be it.")], [item], CONFIG).verdicts[0]
    assert (famous.verdict, famous.longest_run, famous.coverage) == (Verdict.CLEAN, 9, 9 / 22)
    assert check([("d", text)], [item], CONFIG).verdicts[0].coverage == 1.0


def test_best_match_and_counts_over_documents(items):
    text = items[35].forms[0]
    half = " ".join(text.split()[:14])
    documents = [("a", half), ("b", _prose(1) + text), ("c", text), ("d", _prose(2))]
    found = check(documents, items, CONFIG).verdicts[35]
    assert (found.documents, found.best.document, found.coverage) == (3, "b", 1.0)


@given(st.text(alphabet=st.characters(codec=None, categories=None), max_size=60))
def test_located_words_are_the_words(text):
    located = located_words(text)
    assert [word for word, _, _ in located] == words(text)
    assert all(0 <= start < end <= len(text) for _, start, end in located)


def test_hostile_text(items):
    text = items[20].forms[0]
    documents = [
        ("html", f"<html><body onload='x()'><p>{text}</p></body></html>"),
        ("control", "\x00\x1b[31m" + text.replace(" ", "\x00\x07 ") + "\x7f\u202e"),
        ("surrogates", "\ud800 \udfff" + text + "\udc80"),
        ("line", "lorem " * 400_000 + text + " ipsum" * 400_000),
        ("one word", "x" * 5_000_000),
        ("empty", ""),
        ("combining", "e" + "\u0301" * 10_000),
    ]
    findings = check(documents, items, CONFIG)
    found = findings.verdicts[20]
    assert found.verdict is Verdict.CONTAMINATED and found.documents == 4
    assert {match.document for match in findings.matches} == {"html", "control", "surrogates", "line"}
    for match in findings.matches:
        json.dumps(match.snippet, ensure_ascii=False).encode()


def test_every_ngram_of_a_long_text_is_found():
    generator = np.random.default_rng(4)
    texts = [(_words(generator, int(n)),) for n in generator.integers(8, 60, 200)]
    index = build_index(texts, 8)
    for number, (text,) in enumerate(texts):
        split = text.split()
        start = int(generator.integers(len(split) - 7))
        _, overlaps = find("one " + " ".join(split[start : start + 8]) + " two", index)
        assert [(o.reference, o.run, o.form_word) for o in overlaps] == [(number, 8, start)]


def test_positive_control(items):
    hosts = [_prose(seed, 2) for seed in range(3)]
    recall = positive_control(items, CONFIG, seed=5, hosts=hosts)
    assert recall == {name: {"planted": 20, "found": 20} for name in ("arc_challenge", "winogrande", "truthfulqa")}
    with pytest.raises(ContaminationError, match="no document with text"):
        positive_control(items, CONFIG, seed=5, hosts=["  "])


def test_a_check_that_misses_plants_fails(items, monkeypatch):
    monkeypatch.setattr("eval.contamination.find", lambda text, index: (0, []))
    with pytest.raises(ContaminationError, match="60 planted items were not found"):
        positive_control(items, CONFIG, seed=5, hosts=[_prose(1)])


@pytest.fixture(scope="module")
def documents(items, tmp_path_factory) -> list[Path]:
    """Two files of several row groups; items 20 and 30 are in them, the second twice."""
    directory = tmp_path_factory.mktemp("documents")
    texts = [_prose(seed, 3) for seed in range(300, 340)]
    texts[4] += "\n\n" + items[20].forms[0]
    texts[11] = items[30].forms[0] + "\n\n" + texts[11]
    texts[33] = items[30].forms[0]
    paths = []
    for number in range(2):
        part = slice(number * 20, number * 20 + 20)
        ids = [f"doc{row}" for row in range(40)][part]
        paths.append(directory / f"{number}.parquet")
        pq.write_table(pa.table({"id": ids, "text": texts[part]}), paths[-1], row_group_size=6)
    return paths


def _command(documents, benchmarks, out: Path, workers: int) -> CommandConfig:
    return CommandConfig(
        documents=tuple(documents),
        benchmarks=benchmarks,
        suites=("arc_challenge", "winogrande", "truthfulqa"),
        config=CONFIG,
        seed=1,
        workers=workers,
        out=out,
    )


def test_results_do_not_depend_on_workers(documents, benchmarks, items, tmp_path):
    outputs = []
    for workers in (1, 2):
        done = scan_files(_command(documents, benchmarks, tmp_path / str(workers), workers))
        assert done["documents"] == 40
        outputs.append({path.name: path.read_bytes() for path in (tmp_path / str(workers)).iterdir()})
    assert outputs[0] == outputs[1]
    assert set(outputs[0]) == {"verdicts.parquet", "matches.jsonl", "coverage.json"}

    verdicts = pq.read_table(tmp_path / "1" / "verdicts.parquet").to_pylist()
    assert len(verdicts) == len(items)
    dirty = [(row["item"], row["document"], row["documents"]) for row in verdicts if row["verdict"] == "contaminated"]
    assert dirty == [(20, "doc4", 1), (30, "doc11", 2)]
    matches = [json.loads(line) for line in (tmp_path / "1" / "matches.jsonl").read_text().splitlines()]
    assert [match["document"] for match in matches[:2]] == ["doc11", "doc33"]  # the longer item first
    for match in matches:
        assert words(match["document_text"]["match"]) == words(match["item_text"]["match"])
    coverage = json.loads((tmp_path / "1" / "coverage.json").read_text())["suites"]["arc_challenge"]
    assert coverage["control"] == {"planted": 20, "found": 20}
    assert (coverage["items"], coverage["checkable"], coverage["uncheckable"]) == (1172, 1171, [1])
    assert (coverage["clean"], coverage["contaminated"]) == (1169, 2)


def test_command_line(documents, benchmarks, tmp_path):
    config = {
        "documents": [str(path) for path in documents],
        "benchmarks": str(benchmarks),
        "suites": ["winogrande"],
        "config": {"ngram": 8},
        "seed": 1,
        "workers": 2,
        "out": str(tmp_path / "out"),
    }

    def command(**changes: object) -> subprocess.CompletedProcess:
        (tmp_path / "config.json").write_text(json.dumps(config | changes))
        arguments = [sys.executable, "-m", "eval.contamination", str(tmp_path / "config.json")]
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


def test_bytes_that_are_not_utf8_are_read(tmp_path):
    raw = pa.array([b"caf\xff \xed\xa0\x80 ok", None], pa.binary())
    text = pa.Array.from_buffers(pa.string(), 2, raw.buffers())
    pq.write_table(pa.table({"id": ["a", "b"], "text": text}), tmp_path / "d.parquet")
    assert [text for _, text in read_documents(tmp_path / "d.parquet", 0)] == ["caf\ufffd \ufffd\ufffd\ufffd ok", ""]
