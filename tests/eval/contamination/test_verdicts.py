"""From what documents have of an item to its verdict and kind, and to the documents that filtering drops."""

import numpy as np
import pytest

from eval.contamination.check import check
from eval.contamination.references import Reference, Severity, Text
from eval.contamination.verdicts import Kind, Verdict
from tests.eval.contamination.invented import CONFIG, check_texts, first_verdict, item_of, prose, random_words


def test_thresholds():
    form = random_words(np.random.default_rng(2), 40)
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


def test_best_match_and_counts_over_documents(items):
    text = items[35].forms[0].text
    half = " ".join(text.split()[:14])
    documents = [("a", half), ("b", prose(1) + text), ("c", text), ("d", prose(2))]
    found = check(documents, items, CONFIG).verdicts[35]
    assert (found.documents, found.best.document, found.coverage) == (3, "b", 1.0)


def test_classes():
    question = "Which of these seven metals is the best conductor of heat at room temperature in dry air?"
    item = item_of(question, "Silver, by a small margin", ("Lead, of all things", "Tin, which nobody expected"))

    def kind(text: str) -> Kind:
        return first_verdict([item], f"Well then. {text} So be it.").kind

    assert kind(f"{question} It is silver by a small margin.") is Kind.EXACT
    assert kind(f"{question} A. Lead, of all things. B. Silver, by a small margin. C. Tin.") is Kind.EXACT
    assert kind(f"{question} Nobody knows.") is Kind.QUESTION
    assert kind("Of heat at room temperature in dry air? Silver, by a small margin.") is Kind.ANSWER_AND_CONTEXT
    assert kind("Silver, by a small margin, wins.") is Kind.CLEAN


def test_hellaswag_without_its_ending_is_a_source():
    context = "The man in the yellow coat picks up a wooden paddle, turns around and walks back to the boat."
    item = item_of(context, "He rows out on the lake and waves to the people on the shore.")
    item = Reference("hellaswag", 0, item.question, item.answers, item.others, item.forms)
    assert first_verdict([item], f"{context} Then he goes home.").kind is Kind.SOURCE
    assert first_verdict([item], item.forms[0].text).kind is Kind.EXACT


def test_a_short_question_needs_its_answer():
    item = item_of("Is the moon a star?", "No", ("Yes", "Perhaps"))
    assert first_verdict([item], "Is the moon a star? I wonder what they taught you.").verdict is Verdict.CLEAN
    assert first_verdict([item], "Is the moon a star? (a) perhaps (b) yes (c) no").kind is Kind.EXACT
    assert first_verdict([item], "Question: is the moon a star? Answer: no").kind is Kind.EXACT


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
    item = item_of(question, "Only in some countries of the world")
    texts = [f"Notice {number}. {written(question, item.answers[0])}" for number in range(40)]
    once, many = check_texts([item], texts[0]).verdicts[0], check_texts([item], *texts, prose(1))
    assert once.verdict is Verdict.CONTAMINATED
    assert (many.verdicts[0].verdict, many.verdicts[0].kind) == (once.verdict, once.kind)
    assert many.verdicts[0].documents == len(texts)
    assert sorted(many.flagged) == sorted((str(number), "", 0) for number in range(40))


def test_filtering_drops_every_copy_of_every_question_of_a_page(items):
    asked = [number for number in range(20, 25)]
    page = "\n\n".join(f"{number}. {items[number].question}" for number in asked)
    texts = [page, prose(50), *[f"{prose(seed, 1)} {page}" for seed in range(51, 63)], f"{items[20].question} Yes."]
    leaked = [name for name in range(len(texts)) if name != 1]
    findings = check_texts(items, *texts)
    assert sorted({int(document) for document, _, _ in findings.flagged}) == leaked
    assert {number for _, _, number in findings.flagged} == set(asked)
    assert len(findings.flagged) == 13 * len(asked) + 1
    assert check_texts(items, texts[1]).flagged == []


def test_wording_that_many_items_share_tells_none_of_them():
    subjects = ["a solid", "a liquid", "a gas", "a fuel", "a tool"]
    items = [
        item_of(f"Which of the following things is an example of {subject}?", f"thing {number}", number=number)
        for number, subject in enumerate(subjects)
    ]
    template = check_texts(items, "Which of the following things is an example of good manners? Say why.")
    assert {found.kind for found in template.verdicts} == {Kind.BOILERPLATE} and template.flagged == []
    leak = check_texts(items, "Which of the following things is an example of a fuel? Thing 3, of course.")
    assert [found.kind for found in leak.verdicts].count(Kind.EXACT) == 1
    assert leak.flagged == [("0", "", 3)]
    # a question that is whole, or a long run, is no template
    same = [item_of(items[0].question, f"thing {number}", number=number) for number in range(5)]
    assert {found.kind for found in check_texts(same, f"{same[0].question} I ask you.").verdicts} == {Kind.QUESTION}
    assert check_texts(same, "Which of the following things is an example of rain?").flagged == []
    story = " ".join(f"word{number}" for number in range(13))
    long = [item_of(f"{story} and {random_words(np.random.default_rng(number), 30)}?", "no") for number in range(5)]
    assert {found.kind for found in check_texts(long, f"{story} and so on").verdicts} == {Kind.QUESTION}
    assert {found.kind for found in check_texts(long, " ".join(story.split()[:12])).verdicts} == {Kind.CLEAN}


def test_train_items_are_apart(items):
    train = next(number for number, item in enumerate(items) if item.severity is Severity.TRAIN)
    assert items[train].suite == "arc_challenge:train"
    found = check_texts(items, f"{prose(3)} {items[train].forms[0].text} {prose(4)}")
    dirty = [number for number, verdict in enumerate(found.verdicts) if verdict.verdict is Verdict.CONTAMINATED]
    assert dirty == [train] and found.flagged == []
