"""Which documents are in the training split and which in the validation split."""

from pathlib import Path

import pyarrow.parquet as pq
import pytest

from eval.document_parquet import document_files
from tasks.config import DataConfig
from tasks.download import is_validation, write_documents
from tasks.sources.config import FilesSource
from tasks.sources.document_folder import SourceError
from tests.tasks.small_corpus import TEXTS, parquet


def test_the_split_is_decided_by_the_text_alone(tmp_path: Path):
    both = {}
    for name, texts in (("one", TEXTS), ("two", [*TEXTS[30:], "a new text", *TEXTS[:30]])):
        (tmp_path / name).mkdir()
        path = parquet(tmp_path / f"{name}.parquet", texts=texts)
        config = DataConfig(source=FilesSource(path=str(path)), validation_fraction=0.2)
        write_documents(config, tmp_path, tmp_path / name)
        both[name] = set(pq.read_table(document_files(tmp_path / name, "val")[0])["text"].to_pylist())
    assert both["one"] == both["two"] - {"a new text"}
    assert both["one"] == {text for text in TEXTS if is_validation(text, 0.2)}


def test_an_empty_split_is_refused(tmp_path: Path):
    path = parquet(tmp_path / "a.parquet", texts=TEXTS[:1])
    with pytest.raises(SourceError, match="split is empty"):
        write_documents(DataConfig(source=FilesSource(path=str(path)), validation_fraction=0.2), tmp_path, tmp_path)
