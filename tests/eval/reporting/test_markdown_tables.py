"""How wide the tables of an artifact are in Prefect's UI, which neither scrolls nor breaks a long word."""

import pytest

from eval.reporting.markdown import markdown_table, narrow_tables, table_widths, tables_fit


def pixels(*longest: int) -> float:
    return sum(17 + 7.4 * length for length in longest)


@pytest.mark.parametrize(
    ("markdown", "expected"),
    [
        ("no table, | but a bar", []),
        (markdown_table(["a", "bb"], [["one two", 5], ["three", 1234]]), [pixels(5, 5)]),
        ("| `code` | **bold** |\n|---|---:|\n| a\\|b | [text](http://long.example/address) |", [pixels(4, 4)]),
        ("| a |\n|---|\n\ntext\n\n| bbb |\n|---|\n", [pixels(1), pixels(3)]),
        ("```text\n| of a code block that scrolls by itself |\n```", []),
        ("| first<br>second | &amp;&amp; |\n|---|---|", [pixels(6, 2)]),
        ("| a | b |\n|---|---|\n| a row with fewer cells |", [pixels(5, 1)]),
        ("<table><tr><th>four</th><td>a <b>bb</b></td></tr><tr><td>xxxxx<td>y</table>", [pixels(5, 2)]),
    ],
)
def test_the_longest_word_of_each_column_decides(markdown: str, expected: list[float]):
    assert table_widths(markdown) == pytest.approx(expected)


def test_seven_columns_of_eight_characters_fit_and_eight_do_not():
    """As measured in Chromium at a window of 1280 pixels."""
    columns = {count: markdown_table(["12345678"] * count, []) for count in (7, 8)}
    assert tables_fit(columns[7]) and not tables_fit(columns[8])
    assert tables_fit(columns[8], width=690)
    assert not tables_fit("| " + "x" * 77 + " |\n|---|")


def test_a_table_that_is_too_wide_becomes_several_that_begin_alike():
    header, row = ["suite", *(f"column{number}" for number in range(12))], ["arc_challenge", *range(12)]
    text = narrow_tables(header, [row])
    assert tables_fit(text) and not tables_fit(markdown_table(header, [row]))
    heads = [table.splitlines()[0].strip("| ").split(" | ") for table in text.split("\n\n")]
    assert len(heads) == 2 and [head[0] for head in heads] == ["suite", "suite"]
    assert [name for head in heads for name in head[1:]] == header[1:]
    assert narrow_tables(header[:3], [row[:3]]) == markdown_table(header[:3], [row[:3]])
    assert len(narrow_tables(["a", "b"], [["x" * 90, "y" * 90]]).split("\n\n")) == 1, "there is nothing to part"
