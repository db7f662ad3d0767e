"""The hub: from the cache when it does not answer, at once refused without it, again after a fault."""

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from huggingface_hub import constants

from eval import hub as hub_module
from eval.hub import HubError, load_file
from eval.hub_datasets import load_dataset
from tasks.sources.config import HubSource
from tasks.sources.document_folder import SourceError
from tasks.sources.document_sources import read_source
from tests.hub import Hub, causes, serving, silent

COMMIT = "1" * 40


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with 40 rows in a parquet file, empty caches, and no memory of an earlier answer."""
    folder = tmp_path / "hub"
    folder.mkdir()
    pq.write_table(pa.table({"text": [f"row {n} " * 50 for n in range(40)]}), folder / "train.parquet")
    info = {"config_name": "default", "splits": [{"name": "train", "num_examples": 40, "num_bytes": 1}]}
    card = {"configs": [{"config_name": "default", "data_files": "train.parquet"}], "dataset_info": [info]}
    (folder / "README.md").write_text(f"---\n{json.dumps(card)}\n---\n")
    (folder / "tokenizer.json").write_text("{}")
    for name in ("HF_DATASETS_CACHE", "HF_DATASETS_DOWNLOADED_DATASETS_PATH"):
        monkeypatch.setattr(datasets.config, name, str(tmp_path / "cache"), raising=False)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache" / "hub"))
    for owner in (constants, datasets.config):
        monkeypatch.setattr(owner, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(hub_module, "ANSWER_SECONDS", 0.3)
    with serving(folder) as server:
        point_to(server.url, monkeypatch)
        yield server


def point_to(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    hub_module._ask_hub.cache_clear()
    for owner, name in ((constants, "ENDPOINT"), (datasets.config, "HF_ENDPOINT")):
        monkeypatch.setattr(owner, name, address)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", address + "/{repo_id}/resolve/{revision}/{filename}")


@pytest.mark.parametrize(
    "header",
    [
        {"data_files": "../secret.parquet"},
        {"data_files": "{home}/secret.parquet"},
        {"data_files": "file://{home}/*"},
        {"data_files": "{url}/secret.parquet"},
        {"data_files": [{"split": "train", "path": "zip://x::{url}/y.zip"}]},
        {"data_dir": ".."},
        {"data_dir": "{home}"},
    ],
    ids=str,
)
@pytest.mark.parametrize("local", [True, False])
def test_a_dataset_names_no_file_outside_itself(header: dict, local: bool, hub: Hub, tmp_path: Path):
    pq.write_table(pa.table({"text": ["secret"]}), tmp_path / "secret.parquet")
    with serving(tmp_path) as elsewhere:
        written = json.dumps({"configs": [{"config_name": "default", **header}]})
        written = written.replace("{home}", str(tmp_path)).replace("{url}", elsewhere.url)
        (tmp_path / "hub" / "README.md").write_text(f"---\n{written}\n---\n")
        where = (str(tmp_path / "hub"), None, "train", None) if local else ("owner/data", None, "train", COMMIT)
        with pytest.raises(HubError, match="its README names files that are not in it"):
            load_dataset(*where, streaming=True)
        assert not elsewhere.requests


def test_a_dataset_is_read_from_the_cache_at_its_commit_when_the_hub_says_nothing(
    hub: Hub, monkeypatch: pytest.MonkeyPatch
):
    assert load_dataset("some/set", None, "train", COMMIT).num_rows == 40
    assert load_file("some/model", "tokenizer.json", COMMIT).read_text() == "{}"
    with silent() as address:
        point_to(address, monkeypatch)
        assert load_dataset("some/set", None, "train", COMMIT).num_rows == 40
        assert load_file("some/model", "tokenizer.json", COMMIT).read_text() == "{}"
        with pytest.raises(HubError, match=f"timed out, .*, only the cache holds commit {COMMIT}") as no:
            load_dataset("some/set", None, "train", "2" * 40)
        assert causes(no.value) == [], "not tried again"
        with pytest.raises(SourceError, match=r"hub dataset other/set@.*: the hub .* does not answer: .*, and the"):
            list(read_source(HubSource(id="other/set", revision=COMMIT), Path()))
        with pytest.raises(HubError, match=r"does not answer: .*, and the cache holds no tokenizer.json of it"):
            load_file("other/model", "tokenizer.json", COMMIT)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert load_dataset("some/set", None, "train", COMMIT).num_rows == 40
    with pytest.raises(HubError, match="HF_HUB_OFFLINE is set, and the cache does not hold it"):
        load_dataset("other/set", None, "train", COMMIT)
    assert constants.HF_HUB_OFFLINE and not datasets.config.HF_HUB_OFFLINE, "as they were"


def test_a_stream_that_ends_early_is_no_shorter_corpus(hub: Hub):
    source = HubSource(id="some/set", revision=COMMIT)
    assert len(list(read_source(source, Path()))) == 40
    pq.write_table(pa.table({"text": ["row"] * 39}), hub.folder / "train.parquet")
    with pytest.raises(SourceError, match="39 rows arrived, and its card says that train has 40"):
        list(read_source(replace(source, revision="3" * 40), Path()))
