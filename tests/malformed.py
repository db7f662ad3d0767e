"""Malformed inputs: real files with bytes or fields changed, and what each is given to.

An input passes when it is taken, or refused by one `DailyTrainError` whose message is a sentence that names the file or
the setting; in bounded CPU time and memory. `python -m tests.malformed N` gives N inputs in all and prints a table.
"""

import faulthandler
import hashlib
import json
import os
import random
import resource
import signal
import struct
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from deployments.cli import commands
from deployments.cli.export import FinishedModel, write_export
from eval.reporting.ledger import leaderboard, leaderboard_page
from eval.suites.suites import SUITES, normalise, read_parquet
from flows.config import FORMS, Execution
from flows.daily import daily_train
from model.data.shards import ShardSet, read_dataset
from model.errors import LONGEST_SENTENCE, DailyTrainError
from model.files import file_sha256
from model.network.config import GPTConfig
from model.network.gpt import GPT
from model.parsing import field_types
from model.training import checkpoint
from tasks.download import SCHEMA, DataConfig, write_documents
from tasks.shard import ShardConfig, write_shards
from tasks.sources.document_sources import FilesSource
from tasks.store.context import RunContext, open_context
from tasks.store.ledger import read_ledger
from tasks.store.stage import Stage, build_or_skip, fetch_outputs, load
from tasks.token_bytes import check_tokenizer, token_bytes
from tasks.tokenizer import load_tokenizer, train_bpe

SECONDS = 5.0
"""CPU time of one input; the slowest that is taken needs 0.2 s."""
FREE_BYTES, BYTES_A_BYTE = 96 * 2**20, 200
"""Memory that any input may take, and more for each of its bytes."""
LAST_RESORT = 120
"""Seconds after which what even a signal does not end ends the process, with a traceback of where it hangs."""

DEEP, LONG_NUMBER, OUT_OF_RANGE = "\x00deep\x00", "\x00number\x00", "\x00infinite\x00"
AS_TEXT = {DEEP: "[" * 3000 + "]" * 3000, LONG_NUMBER: "9" * 5000, OUT_OF_RANGE: "1e400"}
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    27,
    2**15,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    10**18,
    -(2**70),
    0.5,
    -0.0,
    1e18,
    1e300,
    float("nan"),
    float("inf"),
    OUT_OF_RANGE,
    LONG_NUMBER,
    DEEP,
    "",
    " ",
    "a",
    "1",
    "\ud800",
    "\x00",
    "e\u0301",
    "日本",
    "x" * 70_000,
    "../../x",
    "/dev/zero",
    "a.b.c",
    [],
    [None],
    [1, "a"],
    [[1]],
    {},
    {"": 1},
    {"a": {"b": 1}},
    "null",
    list(range(30)),
    [""] * 27,
    "<|endoftext|>",
    "2026-01-01",
    "NaN",
    "(a+)+$",
    "ByteLevel",
    "Sequence",
)


def as_json(value: Any) -> bytes:
    """JSON, also of what Python cannot write: 3,000 levels, a number of 5,000 digits, infinity as a number."""
    text = json.dumps(value)
    for name, written in AS_TEXT.items():
        text = text.replace(json.dumps(name), written)
    return text.encode()


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value something stands."""
    if here:
        yield here
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*here, key))


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to three of its parts replaced, dropped, nested, repeated or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        known = list(places(value))
        if not known or chance.random() < 0.03:
            return chance.choice(NASTY)
        *above, last = chance.choice(known)
        inside = value
        for key in above:
            inside = inside[key]
        match chance.randrange(8):
            case 0:
                del inside[last]
            case 1:
                inside[last] = [inside[last]]
            case 2:
                inside[last] = {str(last): inside[last]}
            case 3 if isinstance(inside, dict):
                inside[chance.choice((f"{last}x", "", "\ud800", "constructor"))] = inside.pop(last)
            case 4 if isinstance(inside, list):
                inside += [inside[last]] * chance.choice((1, 30))
            case _:
                inside[last] = chance.choice(NASTY)
    return value


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes of a file, flipped, cut, repeated, overwritten or with a number at the beginning that is far too large."""
    made = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(made)) if made else 0
        match chance.randrange(8):
            case 0:
                del made[at:]
            case 1:
                del made[at : at + chance.randrange(1, 64)]
            case 2:
                made[at:at] = chance.randbytes(chance.randrange(1, 64))
            case 3:
                made[at : at + 8] = struct.pack("<Q", chance.choice((0, 1, 2**31 - 1, 2**32, 2**40, 2**63, 2**64 - 1)))
            case 4:
                at = 4 * chance.randrange(min(8, len(made) // 4 + 1))
                made[at : at + 4] = struct.pack("<i", chance.choice((-1, 0, 1, 2, 2**20, 2**31 - 1, -(2**31))))
            case 5:
                made[at : at + 16] = chance.choice((bytes(16), b"\xff" * 16, b"[" * 3000, b"\xed\xa0\x80", b"\xfe\xff"))
            case _:
                if made:
                    made[at] ^= 1 << chance.randrange(8)
    return bytes(made)


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
        section = chance.choice([*FORMS, "execution"])
        fields = Execution if section == "execution" else FORMS[section].changed
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
            patch.object(commands, "daily_train", _NotRun()),
            patch("tasks.feasibility._projected", side_effect=SystemExit(0)),
            patch.dict(os.environ, {"DAILY_TRAIN_BENCHMARKS": ""}),
        ):
            try:
                code = commands.main([argument.replace("\x00", "") for argument in arguments])
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


_TEXTS = [f"Speech {number}: the “Union” is {number * number} years old, naïve 日本 🚂.\n" * 3 for number in range(40)]


class Originals:
    """Real files of each kind, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        train_bpe(iter(_TEXTS), 300, 1).save(str(folder / "tokenizer.json"))
        self.tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "documents").mkdir()
        for split, texts in (("train", _TEXTS), ("val", _TEXTS[:7])):
            columns = {"id": [f"{n}" for n in range(len(texts))], "text": texts, "source": [""] * len(texts)}
            pq.write_table(pa.table(columns, schema=SCHEMA), folder / "documents" / f"{split}_000000.parquet")
        (folder / "shards").mkdir()
        write_shards(
            ShardConfig(tokens_per_shard=1024), folder / "documents", folder / "tokenizer.json", 1, folder / "shards"
        )
        self.network = GPTConfig(depth=1, width=16, heads=2, sequence_length=16, vocab_size=300, eot_token=0)
        model = GPT(self.network)
        digest = file_sha256(folder / "tokenizer.json")
        checkpoint.publish_final(folder / "final", model, 0, digest, {"loss": 1.0})
        weights = {name: value.detach() for name, value in model.state_dict().items()}
        checkpoint.save(folder / "checkpoints", 1, weights, {"a": weights["blocks.0.mlp.expand.weight"]}, {"x": 1})
        context = open_context(str(folder / "store"), None, 1, "cpu", None, 0.0)

        def build(_: Path, out: Path) -> None:
            (out / "a.json").write_text("{}")

        self.result = build_or_skip(
            Stage(name="shard", version=1, config={"a": 1}, inputs={"b": "0" * 64}), context, build
        )
        self.row = {
            "run": "a" * 64,
            "preset": "smoke",
            "finished": "2026-01-01 00:00 UTC",
            "commit": "b" * 40,
            "bits_per_byte": 1.5,
            "loss_nats_per_token": 4.5,
            "validation_data": "c" * 64,
            "parameters": 1000,
            "tokens": 1000,
            "flops": 1e9,
            "seconds": 10.0,
            "usd": 0.1,
            "scores": {"arc_easy/acc": 0.25},
            "regressed": [],
            "stages": {"train": "d" * 64, "evaluate": "e" * 64},
        }


def tokenizers(made: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """tokenizer.json: loaded, checked, and used on a document."""
        path = folder / "tokenizer.json"
        if chance.random() < 0.3:
            content = damaged(as_json(made.tokenizer), chance)
        else:
            spec = json.loads(json.dumps(made.tokenizer))
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
            if made.result:  # every check passed: documents of every kind pass, too
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
    rows = [{"id": f"{number}", "text": text, "other": number} for number, text in enumerate(_TEXTS[:12])]
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
        path.write_bytes(damaged("".join(_TEXTS).encode(), chance))
    elif kind == "drift.jsonl":
        lines = [as_json({**row, "other": chance.choice(NASTY)}) for row in rows]
        path.write_bytes(b"\n".join(lines))
    elif kind == "drift.parquet":
        for number in range(3):
            other = chance.choice(([1] * 4, ["a"] * 4, [None] * 4, [[1]] * 4, [{"a": 1}] * 4, [1.5] * 4))
            part = {"text": _TEXTS[number * 4 :][:4], "other": other, "id": [f"{number}.{n}" for n in range(4)]}
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
        made = FilesSource(**source)
        (folder / "out").mkdir()
        write_documents(DataConfig(source=made, validation_fraction=0.3), folder, folder / "out")

    return Input(act, ("texts", "file.", ".parquet", "split is empty", "a.jsonl", "a.txt"), size)


def shards(made: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """A directory of shards, read as the trainer does."""
        for path in (made.folder / "shards").iterdir():
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
                found = ShardSet(folder, split, dataset)
                found.document_starts()
                found.slice(0, found.tokens)
                found.check_bytes(dataset.token_bytes)

        return Input(act, (folder.name,), len(content))

    return area


def manifests(made: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """manifest.json of a finished stage."""
        context = replace_store(folder)
        manifest = made.result.manifest
        key = f"stages/shard/{manifest.key}/manifest.json"
        fields = json.loads((made.folder / "store" / key).read_text())
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


def ledger(made: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """Rows under ledger/, one of them changed."""
        context = replace_store(folder)
        content = as_json(changed(made.row, chance))
        if chance.random() < 0.3:
            content = damaged(content, chance)
        put(folder / "store/ledger" / f"{'a' * 64}.json", as_json(made.row))
        put(folder / "store/ledger" / chance.choice((f"{'f' * 64}.json", "stray.txt", "a/b.json")), content)

        def act() -> None:
            rows = read_ledger(context)
            leaderboard(rows)
            leaderboard_page(rows, {})

        return Input(act, ("ledger",), len(content))

    return area


def checkpoints(made: Originals) -> Area:
    def area(folder: Path, chance: random.Random) -> Input:
        """A checkpoint or a finished model with one file changed, loaded or exported."""
        final, exported = chance.random() < 0.7, chance.random() < 0.4
        source = made.folder / ("final" if final else "checkpoints/step_000000001")
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
                    FinishedModel(model=target, tokenizer=made.folder / "tokenizer.json", facts={}), folder / "exported"
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
    made = Originals(folder)
    return {
        "configuration": configuration,
        "tokenizers": tokenizers(made),
        "documents": documents,
        "shards": shards(made),
        "manifests": manifests(made),
        "ledger": ledger(made),
        "checkpoints": checkpoints(made),
        "benchmark rows": benchmark_rows,
    }


class TooLong(BaseException):
    """An input took more CPU time than it may."""


@contextmanager
def limited(seconds: float) -> Iterator[None]:
    """Ends Python code after so many seconds of CPU time, or four times as long of waiting, and the process where even
    that is not heard."""

    def too_long(*_: object) -> None:
        raise TooLong

    before = {number: signal.signal(number, too_long) for number in (signal.SIGVTALRM, signal.SIGALRM)}
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    signal.setitimer(signal.ITIMER_REAL, 4 * seconds)
    faulthandler.dump_traceback_later(LAST_RESORT, exit=True)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.setitimer(signal.ITIMER_REAL, 0)
        faulthandler.cancel_dump_traceback_later()
        for number, handler in before.items():
            signal.signal(number, handler)


def peak_bytes() -> int:
    [line] = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM")]
    return int(line.split()[1]) * 1024


def failure(given: Input) -> str | None:
    """What is wrong with how an input was answered; None: nothing."""
    Path("/proc/self/clear_refs").write_text("5")  # the peak is from here on
    before, began = peak_bytes(), time.process_time()
    try:
        with limited(SECONDS):
            given.act()
    except DailyTrainError as error:
        text = str(error)
        if "\n" in text or len(text) > LONGEST_SENTENCE:
            return f"not one sentence: {type(error).__name__}: {text[:150]!r} ({len(text)} characters)"
        if not any(name in text for name in given.names):
            return f"names neither file nor setting: {type(error).__name__}: {text[:200]}"
    except TooLong:
        return "hang"
    except BaseException as error:
        if isinstance(error, KeyboardInterrupt):
            raise
        return f"raw {type(error).__name__}: {str(error)[-160:]}"
    if time.process_time() - began > SECONDS:
        return "hang"
    if (taken := peak_bytes() - before) > FREE_BYTES + BYTES_A_BYTE * given.size:
        return f"takes {taken / 2**20:.0f} MiB for an input of {given.size} bytes"
    return None


def failures(area: Area, count: int) -> list[tuple[int, str]]:
    """Those of `count` inputs that are answered wrongly, with the seed that makes each again."""
    found: dict[int, str | None] = {}

    @settings(
        max_examples=count,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(st.integers(0, 2**48))
    def every(seed: int) -> None:
        with tempfile.TemporaryDirectory(prefix="malformed-") as folder:
            found[seed] = failure(area(Path(folder), random.Random(seed)))

    every()
    return [(seed, wrong) for seed, wrong in found.items() if wrong]


def main(arguments: list[str]) -> int:
    """Print how many inputs of each kind are answered wrongly, and how."""
    count = int(arguments[0]) if arguments else 2000
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        known = areas(Path(folder))
        chosen = arguments[1:] or list(known)
        print("| inputs | given | answered wrongly | CPU-seconds |\n|---|---:|---:|---:|")
        for name in chosen:
            began = time.process_time()
            found = failures(known[name], count // len(chosen))
            wrong += len(found)
            seconds = time.process_time() - began
            print(f"| {name} | {count // len(chosen)} | {len(found)} | {seconds:.0f} |", flush=True)
            for kind, times in Counter(text[:110] for _, text in found).most_common(40):
                seed, text = next(each for each in found if each[1][:110] == kind)
                print(f"    {times} times: {text} (seed {seed})", flush=True)
    print(f"goal malformed-inputs: {wrong} wrong of {count} (target 0) {'short' if wrong else 'met'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
