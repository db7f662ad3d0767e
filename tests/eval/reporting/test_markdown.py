"""Hostile text stays text in Markdown."""

import html
import re
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from eval.reporting.html_page import html_page
from eval.reporting.markdown import code_block, markdown_table, sentence, untrusted, what_is_wrong_with_note


@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_a_code_block_cannot_be_left(text: str):
    lines = code_block(text).split("\n")
    fence = lines[0].removesuffix("text")
    assert set(fence) == {"`"} and lines[-1] == fence
    assert all(fence not in line for line in lines[1:-1])


@given(st.lists(st.text(st.characters(exclude_categories=["Cs"])), min_size=2, max_size=2))
def test_every_text_stays_in_its_cell(texts: list[str]):
    rows = markdown_table(["a", "b"], [[untrusted(text) for text in texts]]).split("\n")
    assert len(rows) == 3


@pytest.mark.parametrize("shown", [untrusted, sentence])
def test_an_address_is_no_link_where_the_reader_makes_links_by_itself(shown: Callable[[str], str]):
    """Prefect's UI, like GitHub, makes links of addresses in plain text after it has taken escapes away."""
    text = "see https://evil.test, HTTP://evil.test, www.evil.test, WWW.evil.test and mail a.b+c@evil.test"
    address = re.compile(r"https?://|www\.[-\w]|[-.\w+]+@[-\w]+\.", re.IGNORECASE)
    plain = html.unescape(re.sub(r"\\(.)", r"\1", shown(text)))
    assert len(address.findall(text)) == 5 and not address.search(plain)
    assert html_page(shown(text), {}).count("https://evil.test") == 1, "a page makes none and shows the text itself"


@pytest.mark.parametrize(
    ("note", "reason"),
    [
        ("half the rate, 半分 🚂 <b>", None),
        ("x" * 500, None),
        ("x" * 501, "has 501 characters, expected at most 500"),
        ("", "expected a text"),
        (5, "is 5, expected a text"),
        ("a\x1b[2Jb", r"is 'a\x1b[2Jb', expected one line without control characters"),
        ("a\u202eb", "control characters"),
        ("a\nb", "one line"),
        ("a\ud800b", "control characters"),
    ],
)
def test_what_can_be_a_note(note: object, reason: str | None):
    found = what_is_wrong_with_note(note)
    assert found is None if reason is None else reason in str(found)
