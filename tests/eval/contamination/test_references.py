"""What is looked for is what lm-eval's own tasks show and score, item by item."""

import re
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from eval.contamination.references import Reference, references, without_marks
from eval.contamination.words import words
from eval.scoring.harness import load_tasks, templates_compiled_once
from eval.suites.items import write_rows
from eval.suites.suites import SUITES, BenchmarkTask, Metric
from eval.suites.task_files import write_tasks
from tests.eval.contamination.invented import suite_rows


def same_as_lm_eval(task: BenchmarkTask, scored: Any, item: Reference, doc: dict) -> None:
    """Asserts that lm-eval's prompt, choices and gold for a document are the reference's."""
    prompt, choices, gold = scored.doc_to_text(doc), scored.doc_to_choice(doc), scored.doc_to_target(doc)
    if item.suite == "winogrande":
        # partial evaluation: the choices are the beginnings, the right one is named by its number
        before, after = item.question.split("_", 1)
        assert choices[prompt] == before + item.answers[0] and choices[1 - prompt] == before + item.others[0]
        assert words(choices[prompt] + " " + gold) == words(item.forms[0].text) and gold.strip() == after.strip()
        return
    if item.suite == "hellaswag":
        label = words(doc["activity_label"])
        assert words(prompt) == label + words(without_marks(item.question))
        assert words(choices[gold]) == words(without_marks(item.answers[0]))
        assert {tuple(words(choice)) for choice in choices} == {
            tuple(words(without_marks(choice))) for choice in item.answers + item.others
        }
        return
    asked = r"(?s).*Q: (.*)\nA:" if item.suite == "truthfulqa" else r"(?s)Question: (.*)\nAnswer:"
    question = re.fullmatch(asked, prompt)
    assert question is not None and question[1] == item.question
    assert item.forms[0].text == f"{item.question} {item.answers[0]}"
    if Metric.MC2 in task.metrics:
        right = {choice for choice, label in zip(choices, doc["mc2_targets"]["labels"]) if label}
        assert set(item.answers) == right | {item.answers[0]} and set(item.others) == set(choices) - set(item.answers)
    else:
        assert choices[gold] == item.answers[0] and set(choices) <= {*item.answers, *item.others}


def check_all(benchmarks: Path, directory: Path) -> int:
    """Compares every item of every suite; returns how many comparisons were made."""
    write_tasks(list(SUITES.values()), benchmarks, directory)
    tasks, count = load_tasks(list(SUITES.values()), directory)["tasks"], 0
    for suite in SUITES.values():
        items = [item for item in references(benchmarks, [suite.name]) if item.suite == suite.name]
        for task in suite.tasks:
            docs = list(tasks[task.name].eval_docs)
            assert len(docs) == len(items)
            for item, doc in zip(items, docs):
                same_as_lm_eval(task, tasks[task.name], item, doc)
                count += 1
    return count


@pytest.fixture(scope="module")
def benchmarks(tmp_path_factory) -> Path:
    """A folder with invented rows of all suites."""
    directory = tmp_path_factory.mktemp("benchmarks")
    generator = np.random.default_rng(0)
    for name, suite in SUITES.items():
        table = pa.Table.from_pylist(suite_rows(name, generator), schema=suite.schema)
        write_rows(table, directory / f"{name}.parquet")
    return directory


def test_every_item_is_the_one_that_lm_eval_scores(benchmarks, tmp_path):
    with templates_compiled_once():
        assert check_all(benchmarks, tmp_path) == sum(suite.rows * len(suite.tasks) for suite in SUITES.values())


def test_items_are_questions_with_right_answers(benchmarks):
    winogrande = references(benchmarks, ["winogrande"])[1]  # the second option is right
    gold, other, gap = (form.text for form in winogrande.forms)
    assert " Beth " in gold and " Ann " in other and words(gap) == words(winogrande.question)
    assert words(gold)[slice(*winogrande.forms[0].answer)] == ["beth"]
    truthful = references(benchmarks, ["truthfulqa"])[1]
    assert len(truthful.forms) == len(truthful.answers) == len(truthful.others) == 2
    for answer, form in zip(truthful.answers, truthful.forms):
        assert words(form.text)[slice(*form.answer)] == words(answer)
        assert words(form.text)[: form.question_words] == words(truthful.question)


def test_hellaswag_is_looked_for_with_and_without_its_marks(benchmarks):
    item = references(benchmarks, ["hellaswag"])[0]
    plain, marked = item.forms
    assert "[" not in plain.text and words(marked.text)[0] == "header"
    assert words(plain.text)[slice(*plain.answer)] == words(without_marks(item.answers[0]))
