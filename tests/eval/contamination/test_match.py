"""Planted items are found word for word wherever and however they stand, and nothing else is."""

import json
from dataclasses import replace

import numpy as np
import pytest

from eval.contamination.check import check
from eval.contamination.references import Reference, Text
from eval.contamination.verdicts import Kind, Verdict
from eval.contamination.words import words
from tests.eval.contamination.invented import CONFIG, check_texts, first_verdict, item_of, prose, random_words


def test_clean_prose_has_no_hit(items):
    findings = check([(str(seed), prose(seed)) for seed in range(100, 130)], items, CONFIG)
    assert findings.matches == findings.flagged == [] and findings.documents == 30
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
    numbers = (0, 5, 1250, 2600)  # the first has four words, which only match as a whole
    planted = {number: form(items[number].forms[0].text) for number in numbers}
    texts = {str(number): f"{prose(7)}\n\n{planted[number]}\n\n{prose(8)}" for number in numbers}
    findings = check([("clean", prose(9)), *texts.items()], items, CONFIG)
    assert sorted(findings.flagged) == sorted((str(number), "", number) for number in numbers)
    dirty = [found for found in findings.verdicts if found.verdict is Verdict.CONTAMINATED]
    assert [found.reference for found in dirty] == [items[number] for number in numbers]
    for number, found in zip(numbers, dirty, strict=True):
        best, text = found.best, texts[str(number)]
        assert found.kind is Kind.EXACT
        assert (best.document, found.documents, found.coverage) == (str(number), 1, 1.0)
        assert best.overlap.run == found.longest_run == found.item_words == len(words(planted[number]))
        assert words(text[best.start : best.end]) == words(planted[number])
        assert text.encode()[best.overlap.start : best.overlap.end].decode() == text[best.start : best.end]
        assert words(best.snippet[1]) == words(planted[number])


def test_a_phrase_the_item_repeats_counts_once():
    quote = "Only the dead have seen the end of war"
    text = f'Who said, "{quote}"? Plato wrote "{quote}".'
    item = Reference("s", 0, text, (), (), (Text(text, 0, None),))
    famous = check([("d", f"As they say: {quote}! So be it.")], [item], CONFIG).verdicts[0]
    assert (famous.verdict, famous.longest_run, famous.coverage) == (Verdict.CLEAN, 9, 9 / 22)
    assert check([("d", text)], [item], CONFIG).verdicts[0].coverage == 1.0


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
    item = item_of("Which gas do green plants take from the air?", "Carbon dioxide")
    assert len(words(item.forms[0].text)) == 11
    verdict = first_verdict([item], f"He asked and asked. {edited}. She did not answer.").verdict
    unseen = "\u200b\u2060\u00ad".join(edited)
    assert first_verdict([item], f"He asked and asked. {unseen}. She did not answer.").verdict is verdict
    assert verdict is (Verdict.CONTAMINATED if found else Verdict.CLEAN)


def test_forms_and_renderings_add_up():
    """One form has the longer run and another, or the text without its tags, has more of the item."""
    first = "one two three four five six seven eight nine ten eleven twelve plus more of it to be read here"
    second = "red orange yellow green blue indigo violet black white pink"
    item = Reference("s", 0, first, (), (), (Text(f"{first} {random_words(np.random.default_rng(1), 12)}", 0, None),))
    item = replace(item, forms=(*item.forms, Text(second, 0, None)))
    text = " ".join([*first.split()[:11], "and", *second.split()[:5], "<b>indigo violet black"])
    found = first_verdict([item], text)
    assert (found.longest_run, found.coverage, found.verdict) == (11, 0.8, Verdict.CONTAMINATED)
    match = found.best
    assert text[match.start : match.end].split() == first.split()[:11]
    # what only the document as it stands has, and what only a rendering has
    other = item_of("Why do eleven grey geese fly over the frozen lake at night", "To be warm", number=1)
    both = f'<img alt="{second}"> Why do eleven grey <p>geese fly over the <p>frozen lake at night'
    assert [found.verdict for found in check_texts([item, other], both).verdicts] == [Verdict.CONTAMINATED] * 2


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
    findings = check(documents, items, CONFIG)
    found = findings.verdicts[20]
    assert found.verdict is Verdict.CONTAMINATED and found.documents == 6
    dirty = {"html", "markdown", "control", "surrogates", "line", "marks"}
    assert {match.document for match in findings.matches} == dirty
    texts = dict(documents)
    for match in findings.matches:
        json.dumps(match.snippet, ensure_ascii=False).encode()
        assert words(texts[match.document][match.start : match.end]) == words(text)
