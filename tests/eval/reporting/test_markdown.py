"""Hostile text stays text in Markdown."""

from hypothesis import given
from hypothesis import strategies as st

from eval.reporting.markdown import code_block, markdown_table, untrusted


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
