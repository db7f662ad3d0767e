"""Pages about leaks: hostile text stays text, filtered corpora lose what was flagged and nothing else."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.document_parquet import SCHEMA, document_files
from eval.reporting.contamination_report import explain, match_lines
from tasks.contamination import write_filtered
from tasks.store.manifest import StageError

HOSTILE = [
    "<script>alert(1)</script>",
    "![x](http://example.com/track.png) [click](javascript:alert(1))",
    "a | b |\n|---|---|\n# heading",
    "```\n</code></pre>\n````\nescape",
    "\x1b[31mred\x1b]0;title\x07 \x00 \u202egnp.exe \u2028 end",
    "**bold** _under_ `code` ~~gone~~ &lt; &amp;",
]


def match(text: str) -> dict:
    parts = {"before": text, "match": text, "after": text}
    return {
        "suite": "arc_easy",
        "item": 1,
        "run": 9,
        "coverage": 0.5,
        "contaminates": True,
        "document": text,
        "start": 0,
        "end": 9,
        "item_text": parts,
        "document_text": parts,
        "verdict": "contaminated",
        "kind": "exact",
    }


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_does_nothing_to_a_terminal(text: str):
    told = explain(match(text), "file")
    assert not set("\x00\x07\x1b\u202e\u2028") & set(told)


def test_filtering_drops_the_flagged_documents_and_nothing_else(tmp_path: Path):
    documents, out = tmp_path / "documents", tmp_path / "out"
    documents.mkdir()
    out.mkdir()
    for number in range(2):
        rows = [{"id": f"d{row}", "text": f"text {number} {row}", "source": "s"} for row in range(5)]
        pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), documents / f"train_{number:06d}.parquet")
    pq.write_table(pa.Table.from_pylist(rows, schema=SCHEMA), documents / "val_000000.parquet")
    train = {"documents": 10, "bytes": 80, "files": 2}
    (documents / "lock.json").write_text(json.dumps({"splits": {"train": train}}))
    flagged = pa.table({"file": ["train_000001.parquet", "train_000001.parquet"], "document": ["d1", "d3"]})
    write_filtered(documents, flagged, out)
    kept = [pq.read_table(path)["text"].to_pylist() for path in document_files(out, "train")]
    assert kept == [[f"text 0 {row}" for row in range(5)], ["text 1 0", "text 1 2", "text 1 4"]]
    assert (out / "val_000000.parquet").read_bytes() == (documents / "val_000000.parquet").read_bytes()
    assert json.loads((out / "dropped.json").read_text()) == ["d1", "d3"]
    assert json.loads((out / "lock.json").read_text())["splits"]["train"] == train | {"documents": 8, "bytes": 64}
    with pytest.raises(StageError, match="3 documents were to be dropped, and 2 have their ids"):
        gone = pa.table({"file": ["train_000001.parquet"], "document": ["d9"]})
        write_filtered(documents, pa.concat_tables([flagged, gone]), out)


@pytest.mark.parametrize("text", HOSTILE)
def test_hostile_text_opens_no_markup_in_a_page(text: str):
    page = "\n\n".join(match_lines(match(text)))
    assert "<script" not in page and "](" not in page.replace("\\]\\(", "") and "\n# " not in page
    assert not set("\x00\x07\x1b\u202e\u2028") & set(page)
    quoted = match_lines(match(text))[1].split("\n")
    assert [line[:6] for line in quoted] == ["> item", ">", "> trai"]  # nothing broke out of its quotation
