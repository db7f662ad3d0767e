"""Malformed inputs of every kind, made by changing what the project itself writes."""

import hashlib
import json
import os
import random
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq

from deployments.cli import commands
from deployments.cli.export import FinishedModel, write_export
from eval.document_parquet import SCHEMA
from eval.reporting.ledger import leaderboard, leaderboard_page
from eval.suites.items import normalise, read_parquet
from eval.suites.suites import SUITES
from flows.config import SECTIONS
from flows.daily import daily_train
from model.data.shards import ShardSet, read_dataset
from model.errors import DailyTrainError
from model.files import file_sha256
from model.parsing import field_types
from model.training import checkpoint
from tasks.config import DataConfig, ShardConfig
from tasks.download import write_documents
from tasks.shard import write_shards
from tasks.sources.config import FilesSource
from tasks.store.context import Execution, RunContext, open_context
from tasks.store.ledger import read_ledger
from tasks.store.stage import fetch_outputs, load
from tasks.token_bytes import check_tokenizer, token_bytes
from tasks.tokenizer import load_tokenizer
from tests.malformed.changes import AS_TEXT, NASTY, as_json, changed, damaged
from tests.malformed.originals import TEXTS, Originals


@dataclass(frozen=True)
class Input:
    """One malformed input."""

    act: Callable[[], object]
    """Gives it to the project."""
    names: tuple[str, ...]
    """One of them must stand in the message."""
    size: int
    """Its bytes."""


Area = Callable[[Path, random.Random], Input]


def configuration(folder: Path, chance: random.Random) -> Input:
    """Settings on the command line, up to where the first stage would begin."""
    arguments, names = ["run", "--preset", chance.choice(("smoke", "daily", "laptop", "gpt2-124m"))], []
    for _ in range(chance.choice((1, 1, 2, 3))):
        section = chance.choice([*SECTIONS, "execution"])
        fields = Execution if section == "execution" else SECTIONS[section]
        name = chance.choice([*field_types(fields), *["width", "depth", "sequence_length", "tokens"] * 2])
        value = chance.choice(NASTY)
        text = value if isinstance(value, str) and value not in AS_TEXT else as_json(value).decode()
        text = chance.choice((text, text, "[" * 1000 + text + "]" * 1000, '{"kind":' * 3 + text, text * 3))
        match chance.randrange(6):
            case 0:
                arguments += [f"--{name.replace('_', '-')}={text}"] if section == "execution" else ["--set", text]
            case 1:
                arguments += ["--set", f"{section}.{name}.{'a.' * chance.choice((1, 2000))}b={text}"]
            case 2:
                pairs = ",".join(f'"{number}":1' for number in range(chance.choice((2, 20_000))))
                arguments += ["--set", f"{section}.{name}={{{pairs}}}"]
            case _:
                arguments += ["--set", f"{section}.{name}={text}"]
        names += [section, name, f"{section}.{name}", "--set", "budget", "processes"]
    arguments += ["--store", str(folder / "store"), "--device", "cpu"]

    def act() -> None:
        words = StringSink()
        with (
            patch("sys.stderr", words),
            patch("flows.daily.daily_train", _NotRun()),
            patch.object(commands, "_server_of_run", lambda: nullcontext(lambda: None)),
            patch("tasks.feasibility._projected", side_effect=SystemExit(0)),
            patch.dict(os.environ, {"DAILY_TRAIN_BENCHMARKS": ""}),
        ):
            try:
                code: str | int | None = commands.main([argument.replace("\x00", "") for argument in arguments])
            except SystemExit as error:
                code = error.code
        text = words.text
        if code == 1:
            if "error: unexpected" in text or not text.startswith("daily-train: error: "):
                raise RuntimeError(text[-300:])
            raise DailyTrainError(text.removeprefix("daily-train: error: ").rstrip("\n"))

    return Input(act, (*names, "argument"), sum(map(len, arguments)))


class StringSink:
    """What is printed."""

    def __init__(self) -> None:
        self.text = ""

    def write(self, text: str) -> None:
        self.text += text

    def flush(self) -> None:
        pass


class _NotRun:
    """The flow, with its parameters, which is not run."""

    parameters, name = daily_train.parameters, daily_train.name

    def __call__(self, **_: object) -> None:
        raise SystemExit(0)


def tokenizers(originals: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """tokenizer.json: loaded, checked, and used on a document."""
        path = folder / "tokenizer.json"
        if chance.random() < 0.3:
            content = damaged(as_json(originals.tokenizer), chance)
        else:
            spec = json.loads(json.dumps(originals.tokenizer))
            part = chance.choice(("normalizer", "pre_tokenizer", "decoder", "added_tokens", "model", None))
            if part == "normalizer":
                spec[part] = changed({"type": "Replace", "pattern": {"Regex": "a"}, "content": "b"}, chance)
            elif part == "pre_tokenizer" and chance.random() < 0.5:
                pattern = chance.choice(
                    (
                        r"(a+)+$",
                        r"\w*\d",
                        r"\p{L}+(?=\p{L}*\d)",
                        r"(?:a{1000}){1000}",
                        r"(\s*)*!",
                        "[",
                        "",
                        r"(?=x)",
                        r"\s*[\r\n]",
                        "(" * 3000,
                        r"(?:\w|\w\w)*\d",
                        r".*.*.*x",
                    )
                )
                spec[part]["pretokenizers"][0]["pattern"]["Regex"] = pattern
            else:
                target = spec if part is None else spec[part]
                new = changed(target, chance)
                spec = new if part is None else {**spec, part: new}
            content = as_json(spec)
        path.write_bytes(content)

        def act() -> None:
            tokenizer = load_tokenizer(path)
            check_tokenizer(tokenizer, str(path))
            token_bytes(tokenizer)
            if originals.result:  # every check passed: documents of every kind pass, too
                documents = folder / "documents"
                documents.mkdir()
                texts = ["a" * 3000 + "!", " " * 3000 + "x", "1" * 2000, "." * 2000, "\n" * 2000]
                for split in ("train", "val"):
                    columns = {"id": list("01234"), "text": texts, "source": [""] * 5}
                    pq.write_table(pa.table(columns, schema=SCHEMA), documents / f"{split}_000000.parquet")
                (folder / "out").mkdir()
                write_shards(ShardConfig(tokens_per_shard=1024), documents, path, 1, folder / "out")

        return Input(act, ("tokenizer.json", "document", "tokenizer"), len(content))

    return area


def documents(folder: Path, chance: random.Random) -> Input:
    """A folder of files, read and split."""
    source: dict[str, Any] = {"kind": "files", "path": str(folder / "texts")}
    (folder / "texts").mkdir()
    rows = [{"id": f"{number}", "text": text, "other": number} for number, text in enumerate(TEXTS[:12])]
    kind = chance.choice(("jsonl", "parquet", "txt", "drift.jsonl", "drift.parquet", "odd"))
    path = folder / "texts" / f"file.{kind.rpartition('.')[2]}"
    if chance.random() < 0.5:
        source["id_column"] = "id"
    if kind == "jsonl":
        path.write_bytes(b"\n".join(as_json(row) for row in rows[:-1]) + b"\n" + as_json(changed(rows[-1], chance)))
        if chance.random() < 0.5:
            path.write_bytes(damaged(path.read_bytes(), chance))
    elif kind == "parquet":
        pq.write_table(pa.Table.from_pylist(rows), path, compression=chance.choice(("zstd", "snappy", "none", "gzip")))
        path.write_bytes(damaged(path.read_bytes(), chance))
    elif kind == "txt":
        path.write_bytes(damaged("".join(TEXTS).encode(), chance))
    elif kind == "drift.jsonl":
        lines = [as_json({**row, "other": chance.choice(NASTY)}) for row in rows]
        path.write_bytes(b"\n".join(lines))
    elif kind == "drift.parquet":
        for number in range(3):
            other = chance.choice(([1] * 4, ["a"] * 4, [None] * 4, [[1]] * 4, [{"a": 1}] * 4, [1.5] * 4))
            part: dict[str, Any] = {
                "text": TEXTS[number * 4 :][:4],
                "other": other,
                "id": [f"{number}.{n}" for n in range(4)],
            }
            if chance.random() < 0.3:
                wrong = chance.choice(([1, 2, 3, 4], [b"\xff"] * 4, [None] * 4, [["a"]] * 4))
                part[chance.choice(("text", "id"))] = wrong
            pq.write_table(pa.table(part), path.with_name(f"{number}.parquet"))
    else:
        path = folder / "texts" / chance.choice(("a.jsonl", "a.txt", "a.parquet"))
        match chance.randrange(5):
            case 0:
                os.mkfifo(path)
            case 1:
                path.symlink_to("/dev/zero")
            case 2:
                path.mkdir()
            case 3:
                path.write_bytes(b"")
            case 4:
                path.symlink_to(path)
        if chance.random() < 0.5:
            source["path"] = str(path)
    size = sum(file.stat().st_size for file in (folder / "texts").iterdir() if file.is_file())

    def act() -> None:
        files = FilesSource(**source)
        (folder / "out").mkdir()
        write_documents(DataConfig(source=files, validation_fraction=0.3), folder, folder / "out")

    return Input(act, ("texts", "file.", ".parquet", "split is empty", "a.jsonl", "a.txt"), size)


def shards(originals: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """A directory of shards, read as the trainer does."""
        for path in (originals.folder / "shards").iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        path = folder / chance.choice(("train_000000.bin", "train_000000.idx", "shards.json", "token_bytes.bin"))
        content = path.read_bytes()
        if path.suffix == ".json" and chance.random() < 0.7:
            path.write_bytes(as_json(changed(json.loads(content), chance)))
        elif chance.random() < 0.1:
            path.unlink()
            chance.choice((os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir))(path)
        else:
            path.write_bytes(damaged(content, chance))

        def act() -> None:
            dataset = read_dataset(folder)
            for split in ("train", "val"):
                tokens = ShardSet(folder, split, dataset)
                tokens.document_starts()
                tokens.slice(0, tokens.tokens)
                if dataset.token_bytes is not None:
                    tokens.check_bytes(dataset.token_bytes)

        return Input(act, (folder.name,), len(content))

    return area


def manifests(originals: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """manifest.json of a finished stage."""
        context = replace_store(folder)
        manifest = originals.result.manifest
        key = f"stages/shard/{manifest.key}/manifest.json"
        fields = json.loads((originals.folder / "store" / key).read_text())
        content = as_json(signed(changed(fields, chance)))
        if chance.random() < 0.3:
            content = damaged(as_json(fields), chance)
        put(folder / "store" / key, content)
        put(folder / "store" / manifest.location(manifest.outputs[0]), b"{}")

        def act() -> None:
            if (found := load("shard", manifest.key, context)) is not None:
                fetch_outputs(found, context)

        return Input(act, ("store", "stage"), len(content))

    return area


def signed(fields: Any) -> Any:
    """A changed manifest with the digest that fits it, so that its fields are looked at."""
    if not isinstance(fields, dict):
        return fields
    try:
        rest = {name: value for name, value in fields.items() if name != "manifest_sha256"}
        text = as_json_sorted(rest)
        return fields | {"manifest_sha256": hashlib.sha256(text).hexdigest()}
    except (ValueError, TypeError):
        return fields


def as_json_sorted(value: Any) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode("utf-8", "surrogatepass")


def replace_store(folder: Path) -> RunContext:
    return open_context(str(folder / "store"), None, 1, "cpu", None, 0.0)


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def ledger(originals: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """Rows under ledger/, one of them changed."""
        context = replace_store(folder)
        content = as_json(changed(originals.row, chance))
        if chance.random() < 0.3:
            content = damaged(content, chance)
        put(folder / "store/ledger" / f"{'a' * 64}.json", as_json(originals.row))
        put(folder / "store/ledger" / chance.choice((f"{'f' * 64}.json", "stray.txt", "a/b.json")), content)

        def act() -> None:
            rows = read_ledger(context)
            leaderboard(rows)
            leaderboard_page(rows, {})

        return Input(act, ("ledger",), len(content))

    return area


def checkpoints(originals: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """A checkpoint or a finished model with one file changed, loaded or exported."""
        final, exported = chance.random() < 0.7, chance.random() < 0.4
        source = originals.folder / ("final" if final else "checkpoints/step_000000001")
        target = folder / source.name
        target.mkdir()
        for path in source.iterdir():
            (target / path.name).write_bytes(path.read_bytes())
        path = target / chance.choice(sorted(part.name for part in target.iterdir()))
        content = path.read_bytes()
        if path.suffix == ".json" and chance.random() < 0.8:
            fields = json.loads(content)
            if final and chance.random() < 0.5:
                fields["model"] = changed(fields["model"], chance)
            else:
                fields = changed(fields, chance)
            path.write_bytes(as_json(fields))
        elif chance.random() < 0.1:
            path.unlink()
            chance.choice((os.mkfifo, lambda file: file.symlink_to("/dev/zero"), Path.mkdir))(path)
        else:
            path.write_bytes(damaged(content, chance))
            if final and path.suffix == ".safetensors" and chance.random() < 0.7:  # so that its header is looked at
                fields = json.loads((target / "config.json").read_text())
                fields["model_sha256"] = file_sha256(path)
                (target / "config.json").write_text(json.dumps(fields))

        def act() -> None:
            if final and exported:
                write_export(
                    FinishedModel(model=target, tokenizer=originals.folder / "tokenizer.json", facts={}),
                    folder / "exported",
                )
            elif final:
                checkpoint.load_final(target)
            else:
                checkpoint.load(target)

        return Input(act, (target.name, "model", "tokenizer.json"), len(content))

    return area


def _rows() -> dict[str, list[dict]]:
    targets = {"choices": ["yes", "no", "maybe"], "labels": [1, 0, 0]}
    return {
        "arc_easy": [
            {
                "id": f"M{n}",
                "question": f"Why {n}?",
                "answerKey": "AB1"[n % 2],
                "choices": {"text": ["a", "b", "c"], "label": ["A", "B", "C"]},
            }
            for n in range(3)
        ],
        "hellaswag": [
            {
                "ind": n,
                "activity_label": "Swim",
                "ctx_a": f"A man {n}.",
                "ctx_b": "he",
                "ctx": f"A man {n}. he",
                "endings": ["a", "b", "c", "d"],
                "source_id": f"v{n}",
                "split": "val",
                "split_type": "in",
                "label": "1",
            }
            for n in range(3)
        ],
        "winogrande": [
            {"sentence": f"Ann met Bob {n} as _ was", "option1": "Ann", "option2": "Bob", "answer": "1"}
            for n in range(3)
        ],
        "truthfulqa": [{"question": f"Is {n}?", "mc1_targets": targets, "mc2_targets": targets} for n in range(3)],
    }


def benchmark_rows(folder: Path, chance: random.Random) -> Input:
    """A Parquet file of benchmark rows."""
    name, rows = chance.choice(sorted(_rows().items()))
    suite = replace(SUITES[name], rows=3)
    path = folder / suite.file_name
    if name == "arc_easy" and chance.random() < 0.3:
        count = chance.choice((0, 1, 2, 26, 27, 30))
        labels = [chr(ord("A") + n) for n in range(count)]
        rows[1]["choices"] = {"text": [f"c{n}" for n in range(count)], "label": labels}
        rows[1]["answerKey"] = chance.choice([*labels, "A", "["])
    table = None
    while table is None:
        try:
            row = changed(rows[2], chance)
            table = pa.Table.from_pylist([*rows[:2], row] if isinstance(row, dict) else rows)
            pq.write_table(table, path)
        except (pa.ArrowException, OverflowError, UnicodeEncodeError, TypeError, AttributeError, ValueError):
            table = None  # Arrow cannot hold such a row
    if chance.random() < 0.3:
        path.write_bytes(damaged(path.read_bytes(), chance))

    def act() -> None:
        normalise(read_parquet(path), suite, str(path))

    return Input(act, (path.name,), path.stat().st_size)


def areas(folder: Path) -> dict[str, Area]:
    """Every kind of input by name. Raises nothing: the originals are what the project itself writes."""
    originals = Originals(folder)
    return {
        "configuration": configuration,
        "tokenizers": tokenizers(originals),
        "documents": documents,
        "shards": shards(originals),
        "manifests": manifests(originals),
        "ledger": ledger(originals),
        "checkpoints": checkpoints(originals),
        "benchmark rows": benchmark_rows,
    }
