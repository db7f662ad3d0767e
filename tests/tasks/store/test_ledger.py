"""Reading the ledger and stages: what is none of ours is named and passed over, and nothing is made."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest

from deployments.cli.commands import main
from tasks.store.context import RunContext, open_context
from tasks.store.ledger import add_row, find_run, read_ledger, report_pages
from tasks.store.objects import StoreError
from tasks.store.stage import Stage, build_or_skip, finished_manifests
from tests.object_store import READER

NAME = "a" * 64
ROW: dict[str, Any] = {
    "run": NAME,
    "preset": "smoke",
    "finished": "2026-11-26 10:00 UTC",
    "commit": "c" * 40,
    "bits_per_byte": 2.5,
    "loss_nats_per_token": 4.0,
    "validation_data": "d" * 64,
    "parameters": 1,
    "tokens": 2,
    "flops": 3.0,
    "seconds": 4.0,
    "usd": 0.0,
    "scores": {"arc_easy/acc": 0.25},
    "regressed": [],
    "stages": dict.fromkeys(("contamination", "evaluate", "tokenizer", "train"), "e" * 64),
}
BROKEN = {
    "empty": b"",
    "no-json": b"{",
    "deep": b"[" * 100_000,
    "list": b"[]",
    "number": b"7",
    "utf-16": "{}".encode("utf-16"),
    "fields": b"{}",
    "text": json.dumps(ROW | {"bits_per_byte": "2"}).encode(),
    "nan": json.dumps(ROW | {"flops": float("nan")}).encode(),
    "huge-number": json.dumps(ROW | {"flops": 10**400}).encode(),
    "scores": json.dumps(ROW | {"scores": [1]}).encode(),
    "stages": json.dumps(ROW | {"stages": {"train": 1}}).encode(),
    "surrogate": json.dumps(ROW | {"loss_nats_per_token": "\ud800"}).encode(),
    "link": json.dumps(ROW | {"run": "link", "preset": "[x](http://evil.test)"}).encode(),
    "image": json.dumps(ROW | {"run": "image", "commit": "![x](a.png)"}).encode(),
    "escape": json.dumps(ROW | {"run": "escape", "scores": {"arc\x1b[2J/acc": 0.5}}).encode(),
    "path": json.dumps(ROW | {"run": "path", "stages": ROW["stages"] | {"x": "!()"}}).encode(),
    "long": json.dumps(ROW | {"run": "long", "finished": "2" * 201}).encode(),
    "note": json.dumps(ROW | {"run": "note", "note": "a\x1b[2Jb"}).encode(),
    "long-note": json.dumps(ROW | {"run": "long-note", "note": "x" * 501}).encode(),
    "note-of-lines": json.dumps(ROW | {"run": "note-of-lines", "note": "a\nb"}).encode(),
    "no-note": json.dumps(ROW | {"run": "no-note", "note": None}).encode(),
    "seed": json.dumps(ROW | {"run": "seed", "seed": "1"}).encode(),
    "design": json.dumps(ROW | {"run": "design", "design": "[x](y)"}).encode(),
    "copy": json.dumps(ROW).encode(),
    "large": b" " * (17 * 2**20),
}


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    """A store with one row, and beside it what people and other programs leave."""
    made = open_context(str(tmp_path / "store"), None, 1, None, None, 0.0)
    add_row(ROW, made)
    for name, content in BROKEN.items():
        made.store.publish(f"ledger/{name}.json", content)
    (tmp_path / "store" / "ledger" / "folder.json").mkdir()
    Path(os.fsdecode(os.fsencode(tmp_path / "store" / "ledger") + b"/\xff.json")).write_text("{}")
    return made


def test_what_is_no_row_is_named_and_passed_over(context: RunContext, caplog: pytest.LogCaptureFixture):
    assert read_ledger(context) == [ROW]
    for name in (*BROKEN, r"\\udcff"):
        assert f"ledger/{name}.json is no row of the ledger and passed over: " in caplog.text.replace("\\", "\\\\")
    assert find_run("aaa", context) == ROW


def test_the_leaderboard_is_printed_whatever_lies_beside_its_rows(context: RunContext, capsys: pytest.CaptureFixture):
    assert main(["leaderboard", "--store", context.store.url]) == 0
    printed = capsys.readouterr().out
    assert "aaaaaaaaaaaa" in printed and printed.count("smoke") == 1


def test_a_damaged_row_is_replaced_when_its_run_reports_again(context: RunContext):
    path = Path(context.store.url) / "ledger" / f"{NAME}.json"
    path.write_text(path.read_text().replace("smoke", "smo\0e"))
    add_row(ROW, context)
    assert json.loads(path.read_text()) == ROW
    add_row(ROW | {"usd": 7.0}, context)
    assert json.loads(path.read_text()) == ROW, "one that is whole is never replaced"


def write_model(work: Path, out: Path) -> None:
    (out / "model").write_text("x")


def test_strange_files_below_stages_are_passed_over(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    context = open_context(str(tmp_path / "store"), None, 1, None, None, 0.0)
    made = build_or_skip(
        Stage(name="train", version=1, config={}, inputs={}),
        context,
        write_model,
    )
    for name in ("report.html", "manifest.json", "x/report.html", "x/manifest.json", f"{NAME}/0a/deep/report.html"):
        for stage in ("train", "report"):
            context.store.publish(f"stages/{stage}/{name}", b"[]")
    context.store.publish(f"stages/report/{NAME}/0a/report.html", b"<html>")
    assert report_pages(context) == {NAME: f"stages/report/{NAME}/0a/report.html"}
    with caplog.at_level(logging.WARNING):
        assert list(finished_manifests("train", context)) == [made.manifest]
    assert "stages/train/x/manifest.json is passed over" in caplog.text


@pytest.mark.parametrize(
    "command",
    [["leaderboard"], ["explain", "arc_easy:1"], ["chat"], ["export", "latest", "model"]],
    ids=lambda command: command[0],
)
def test_reading_makes_no_store(
    command: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
):
    monkeypatch.chdir(tmp_path)
    assert main([*command, "--store", "typo"]) == 1
    assert f"error: {tmp_path / 'typo'}: there is no store here" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_reading_asks_for_no_right_to_write(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url = f"{s3}/{tmp_path.name}"
    add_row(ROW, open_context(url, str(tmp_path / "cache"), 1, None, None, 0.0))
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    assert read_ledger(open_context(url, None, 1, None, None, 0.0, reading=True)) == [ROW]
    with pytest.raises(StoreError, match="there is no store here"):
        read_ledger(open_context(f"{url}/typo", None, 1, None, None, 0.0, reading=True))
    assert not (tmp_path / ".daily-train").exists()
