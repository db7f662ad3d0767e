"""The HTML pages: one file, nothing from outside, foreign text stays text; and the form of plain, bounded fields."""

import re

import pytest

from eval.reporting.html_page import FOLDED_ROWS, html_page
from eval.reporting.ledger import MOST_RUNS, leaderboard_in_short, leaderboard_page
from eval.reporting.markdown import code, markdown_table, passage, tables_fit, untrusted
from eval.reporting.report import configuration_table
from eval.reporting.score_table import score_notes

PNG = b"\x89PNG\r\n\x1a\nnot looked at"
HOSTILE = "</pre><script src='https://example.org/x.js'></script> `code` | cell\x1b[31m ![x](https://example.org/y.png)"


def test_a_page_holds_its_figures_and_asks_for_nothing():
    text = ["# Title & more", "## One", "![told](a.png)", passage(HOSTILE), untrusted(HOSTILE)]
    made = html_page("\n\n".join(text), {"a.png": PNG})
    assert "<title>Title &amp; more</title>" in made and '<a href="#one">One</a>' in made and '<h2 id="one">' in made
    assert re.findall(r'<img src="([^"]{22})', made) == ["data:image/png;base64,"]
    assert "<script" not in made and "\x1b" not in made
    assert not re.findall(r'(?:src|href)="(?!data:|#)', made)


def test_the_reason_why_a_suite_was_not_scored_is_foreign_text():
    told = score_notes([{"suite": "truthfulqa", "value": None, "not_scored": HOSTILE}])
    made = html_page("\n\n".join(told), {})
    assert "![x](https://example.org/y.png)" in made
    assert "<img" not in made and "<script" not in made and "\x1b" not in made


def test_a_page_with_a_missing_figure_is_refused():
    with pytest.raises(KeyError, match="gone"):
        html_page("![told](gone.png)", {"a.png": PNG})


def test_only_long_tables_are_folded():
    def folded(rows: int) -> bool:
        return f"<summary>{rows} rows</summary>" in html_page(markdown_table(["n"], [[n] for n in range(rows)]), {})

    assert not folded(FOLDED_ROWS - 1) and folded(FOLDED_ROWS + 1)


def test_settings_are_shown_as_set_takes_them_whatever_stands_in_them():
    made = html_page(
        configuration_table({"data": {"source": {"path": HOSTILE, "id": None}}, "train": {"tokens": 5}}), {}
    )
    assert "<code>data.source.path</code>" in made and "<code>train.tokens</code></td>\n<td><code>5</code>" in made
    assert "data.source.id" not in made and "<script" not in made and "<img" not in made
    assert code("a``b`") == "``` a``b` ```"


def row(run: str, bits: float, data: str = "d1", **scores: float) -> dict:
    facts = {"preset": "smoke", "finished": "2026-01-01", "commit": "c" * 40, "parameters": 1, "tokens": 2}
    facts |= {"flops": 3.0, "seconds": 4, "usd": 5}
    facts |= {"stages": {"train": run, "evaluate": run}}
    return {"run": run * 64, "bits_per_byte": bits, "validation_data": data * 32, "scores": scores, **facts}


def test_the_leaderboard_ranks_within_the_same_data_and_links_reports():
    rows = [row("a", 2.0, **{"arc_easy/acc": 0.25}), row("b", 1.5), row("e", 1.0, "d2")]
    made = leaderboard_page(rows, {"a" * 64: "stages/report/x/report.html"})
    first, second = made.split("<h2 ")[1:]
    ours, other = sorted((first, second), key=lambda part: "d2d2" in part)
    assert ours.index("b" * 12) < ours.index("a" * 12) and "e" * 12 not in ours and "e" * 12 in other
    assert f'<a href="stages/report/x/report.html">{"a" * 12}</a>' in ours
    assert re.search(r">25.00</td>", ours) and ">–</td>" in ours


def test_the_leaderboard_shows_notes_as_they_are():
    made = leaderboard_page([row("a", 2.0) | {"note": HOSTILE}, row("b", 1.5)], {})
    assert "![x](https://example.org/y.png)" in made and made.count("<li>") == 1
    assert (
        "<img" not in made
        and "<script" not in made
        and "\x1b" not in made
        and "<a href=" not in made[made.index("<li>") :]
    )


def test_the_leaderboard_of_the_ui_fits_its_column_and_shows_this_run():
    facts = {"preset": "daily-baseline", "parameters": 1_234_567_890, "tokens": 999_000_000_000, "usd": 12_345.67}
    facts |= {"seconds": 3 * 86400 + 22 * 3600, "finished": "2026-11-27 11:26:38 UTC"}
    rows = [row(letter, bits, f"d{bits % 3}") | facts for bits, letter in enumerate("0123456789abcdef" * 60)]
    worst = rows[-1] = rows[-1] | {"run": "9f" * 32}
    made = leaderboard_in_short(rows, worst["run"])
    assert tables_fit(made) and len(made) < 5000
    assert made.count("\n|") - 1 == MOST_RUNS + 1 and "| **960** | **daily-baseline 9f9f9f9f** |" in made
    assert f"The best {MOST_RUNS} of 960 runs." in made
