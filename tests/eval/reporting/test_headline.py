"""What a stranger learns of a run within half a minute, and that foreign words in it do nothing."""

from typing import Any

import pytest

from eval.reporting.headline import headline, headline_section, sentence_on_bits_per_byte, short_commit
from eval.reporting.html_page import html_page
from eval.reporting.markdown import markdown_table
from eval.settings import differing_settings

HOSTILE = "<script>x</script> [x](https://evil.test) `a` | \x1b[31m\u202e ![y](https://evil.test/y.png)"


def report(**more: Any) -> dict[str, Any]:
    """Of a run without anybody to compare with; `more` takes the place of its parts."""
    part = {"items": 200, "checkable": 190, "contaminated": 0, "severity": "test"}
    control = {"arc_easy": {"inline": {"found": 20, "planted": 20}, "listing": {"found": 19, "planted": 20}}}
    return {
        "preset": "smoke",
        "run": "a" * 64,
        "commit": "c" * 40,
        "note": None,
        "validation": {"bits_per_byte": 2.2345678, "loss": 4.6},
        "training": {"parameters": 124_439_808, "tokens": 10_000_000_000, "seconds": 352.0, "device": "H100"},
        "last": {"reason": "no earlier run on the same validation data"},
        "against": [],
        "differs_from_preset": {},
        "contamination": {"coverage": {"suites": {"arc_easy": part}, "control": control}},
        "scores": [score(0.4, [0.3, 0.5])],
        "stages": {"train": {}, "evaluate": {}},
        "cost": {"seconds": 400.0, "usd": 0.5, "reused": {"stages": 0, "seconds": 0, "usd": 0}},
    } | more


def score(value: float | None, interval: list[float] | None, suite: str = "arc_easy") -> dict[str, Any]:
    return {"suite": suite, "metric": "acc", "value": value, "interval": interval, "chance": 0.25}


def last(**more: Any) -> dict[str, Any]:
    facts = {"run": "b" * 64, "preset": "smoke", "finished": "2026-11-26", "commit": "c" * 40, "bits_per_byte": 2.3}
    facts |= {"difference": -0.0654, "interval": None, "seeds": None, "settings": {"train.seed": [1, 2]}}
    return facts | more


def said(**more: Any) -> dict[str, str]:
    return dict(headline(report(**more)))


def test_a_first_run_says_that_there_is_nobody_to_compare_with():
    found = said()
    assert found["Result"] == (
        "2.2346 bits per byte of validation text (loss 4.6000 nats per token), 124 M parameters trained on 10 B tokens"
    )
    assert found["Against the last comparable run"] == "there is no earlier run on the same validation data"
    assert "Changed since that run" not in found and found["Differs from the preset smoke"] == "in nothing"
    assert found["Cost"] == "6 min 40 s and $0.50, of which 5 min 52 s training on H100"
    assert found["Scores"] == "1 of 1 are above guessing: arc_easy acc 40.00 % (guessing 25.00 %)"
    assert sentence_on_bits_per_byte(report()) == "2.2346 bits per byte"


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, ["0.0654 lower (better) than the 2.3000 of run bbbbbbbbbbbb", "No interval is known", "0.001 to 0.012"]),
        ({"difference": 0.0654}, ["0.0654 higher (worse) than"]),
        ({"difference": -0.00001}, ["the same bits per byte as"]),
        (
            {"seeds": {"deviation": 0.01, "degrees": 2, "designs": 1}},
            ["Two seeds differ by about 0.0141, by 3 trainings here (7 would give an interval)"],
        ),
        (
            {"interval": [-0.1, -0.03], "seeds": {"deviation": 0.01, "degrees": 6, "designs": 2}},
            ["95 % interval −0.1000 to −0.0300, which excludes zero, where two seeds differ as those of 8 trainings"],
        ),
        ({"interval": [-0.1, 0.03], "seeds": {"deviation": 0.01, "degrees": 6, "designs": 2}}, ["includes zero"]),
    ],
)
def test_whether_it_is_better_and_what_is_known_of_chance(facts: dict[str, Any], expected: list[str]):
    found = said(last=last(**facts))["Against the last comparable run"]
    assert all(words in found for words in expected), found


@pytest.mark.parametrize(
    ("facts", "expected"),
    [
        ({}, "train.seed 2 (was 1): nothing else, so the difference is what two seeds do"),
        ({"commit": "d" * 40 + "-dirty"}, f"train.seed 2 (was 1); the code (commit {'c' * 12}, was {'d' * 12}-dirty)"),
        ({"settings": {}}, "nothing"),
        ({"settings": None}, "its settings are not known: its report is gone or damaged"),
        ({"settings": {"data.path": [None, "x" * 90]}}, f"data.path {'x' * 60}… (was none)"),
        ({"settings": {f"a.{n}": [n, True] for n in range(10)}}, ", a.7 true (was 7), and 2 more"),
    ],
)
def test_what_changed_since(facts: dict[str, Any], expected: str):
    assert said(last=last(**facts))["Changed since that run"].endswith(expected)


def test_the_benchmarks_against_the_last_comparable_run():
    row = {"suite": "arc_easy", "metric": "acc", "difference": -0.02, "interval": [-0.03, -0.01]}
    gold = {"n": 40, "difference": 0.01234, "interval": None, "no_interval": "there is one item"}
    entry = {"roles": ["last", "best"], "rows": [row], "verdict": "regressed", "regressed": ["arc_easy acc"]}
    entry |= {"improved": [], "gold_bits_per_byte": gold}
    found = said(last=last(), against=[{"roles": ["baseline"], "reason": "x"}, entry])["Benchmarks against that run"]
    assert found == (
        "regressed in 1 paired tests; regressed: arc_easy acc -2.00 points (95 % -3.00 to -1.00); bits per byte of the "
        "right answers to 40 items +0.0123 (no interval: there is one item)"
    )
    gone = said(last=last(), against=[{"roles": ["last"], "reason": "its samples are gone"}])
    assert gone["Benchmarks against that run"] == "not compared: its samples are gone"


def test_what_was_leaked():
    assert said()["Contamination"] == (
        "0 of 200 benchmark items are in the training text (0.00 %); 10 are too short to be looked for; positive "
        "control passed, 39 of 40 planted items found (97.50 %)"
    )
    leaked = report()
    leaked["contamination"]["coverage"]["suites"] |= {
        "arc_easy": {"items": 200, "checkable": 200, "contaminated": 3, "severity": "test"},
        "arc_easy_train": {"items": 900, "checkable": 900, "contaminated": 500, "severity": "train"},
    }
    leaked["scores"].append(score(None, None, "truthfulqa"))
    found = dict(headline(leaked))["Contamination"]
    assert found.startswith("3 of 200 benchmark items are in the training text (1.50 %, arc_easy 3); positive control")
    assert found.endswith("; not checked, as its items could not be had: truthfulqa")


def test_a_run_that_reused_stages_says_what_it_spent_itself():
    cost = {"seconds": 400.0, "usd": 0.5, "reused": {"stages": 1, "seconds": 390.0, "usd": 0.4}}
    assert said(cost=cost)["Cost"].endswith("; 1 of 2 stages were built before: this run spent 10 s and $0.10")


def test_scores_that_guessing_would_give():
    assert said(scores=[score(0.3, [0.2, 0.4]), score(0.2, None)])["Scores"] == "none of 2 can be told from guessing"
    assert said(scores=[score(None, None)])["Scores"] == "nothing was scored"


def test_foreign_words_are_shown_and_do_nothing():
    foreign = report(
        note=HOSTILE,
        differs_from_preset={"data.path": [None, HOSTILE]},
        last=last(settings={"data.path": [HOSTILE, 1]}),
    )
    made = html_page(headline_section(foreign), {})
    assert "<script" not in made and "<img" not in made and "<a " not in made and not {"\x1b", "\u202e"} & set(made)
    assert made.count("<li>") == len(headline(foreign)) and "![y](https://evil.test/y.png)" in made
    assert not {"\x1b", "\u202e"} & set("".join(text for _, text in headline(foreign)))


def test_settings_that_differ():
    before = {"data": {"source": {"path": "a", "id": None}}, "train": {"tokens": 5, "gone": 1}}
    now = {"data": {"source": {"path": "b", "id": "x"}}, "train": {"tokens": 5, "gone": None}}
    expected = {"data.source.path": ["a", "b"], "data.source.id": [None, "x"], "train.gone": [1, None]}
    assert differing_settings(before, now) == expected and differing_settings(now, now) == {}


def test_numbers_in_words_stand_right_like_numbers():
    made = markdown_table(["a", "b", "c", "d"], [["1.31 M", "$0.12", "5 min", "−1"], ["7", "$1,000", "7", None]])
    assert made.split("\n")[1] == "|---:|---:|---|---:|"
    assert short_commit("unknown") == "unknown"
