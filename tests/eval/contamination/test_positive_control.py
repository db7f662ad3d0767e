"""What the positive control plants, and that a scan which does not return all of it is refused."""

import json
import shutil
from collections.abc import Callable
from dataclasses import astuple, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.contamination.audit import check_index, check_items
from eval.contamination.canaries import draw_canaries
from eval.contamination.check import Counts, ScanConfig, check, scan_files
from eval.contamination.config import ContaminationConfig
from eval.contamination.index import build_index
from eval.contamination.probes import probes
from eval.contamination.verdicts import ContaminationError, Tally, item_lengths
from eval.contamination.words import words
from model.parsing import ConfigError
from tasks.store.objects import digest_file
from tests.eval.contamination.invented import CONFIG, SUITE_NAMES, command_of, prose, row_group_results

result = Tally.result


@pytest.fixture(scope="module")
def scanned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The results of the row groups of the scan `kept`."""
    return tmp_path_factory.mktemp("kept") / "scanned"


@pytest.fixture(scope="module")
def kept(documents, benchmarks, scanned: Path) -> ScanConfig:
    """A scan that passed, with the results of its row groups: the same command only adds them up again."""
    size = sum(len(text.encode()) for path in documents for text in pq.read_table(path)["text"].to_pylist())
    command = replace(
        command_of(documents, benchmarks, scanned.with_name("out"), 1),
        suites=("winogrande",),
        config=replace(CONFIG, control_items=5),
        resume=scanned,
        counted=Counts(documents=40, bytes=size),
    )
    scan_files(command)
    return command


def _change(path: Path, change: Callable[[list[dict]], None]) -> None:
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    change(lines)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    path.with_suffix(".sha256").write_text(digest_file(path).sha256)  # as if the scan had written this


def _drop_matches(lines: list[dict]) -> None:
    del lines[1:]
    lines[0]["matches"] = 0


def _move(lines: list[dict]) -> None:
    for match in lines[1:]:
        match["overlap"]["start"] += 1


def _swap_items(lines: list[dict]) -> None:
    for match in lines[1:]:
        match["overlap"]["reference"] ^= 1


@pytest.mark.parametrize(
    ("result", "change", "message"),
    [
        (7, _drop_matches, r"the words “.*” stand in 1.parquet, row \d of row group 3, .*, but they were found no"),
        (
            3,
            lambda lines: lines.pop(),
            r"row group 3 of 0.parquet has 2 documents, but 2 were scanned, and \d+ of \d+",
        ),
        (3, lambda lines: lines[0].update(bytes=1), "40 documents with .* bytes of text, but 40 documents with"),
        (3, lambda lines: lines[0].update(index="0"), "is the result of another scan"),
        (9, _drop_matches, "(was planted in|items of winogrande were planted as)"),
        (9, _move, "was planted without them, but .* words of .* were found"),
        (9, _swap_items, "was planted without them, but .* words of .* were found"),
    ],
)
def test_a_scan_with_a_wrong_result_is_refused(
    kept: ScanConfig, scanned: Path, result: int, change: Callable, message: str, tmp_path: Path
):
    shutil.copytree(scanned, tmp_path / "scanned")
    command = replace(kept, resume=tmp_path / "scanned", out=tmp_path / "out")
    _change(row_group_results(tmp_path / "scanned")[result], change)
    with pytest.raises(ContaminationError, match=f"^positive control: .*{message}.*; no verdict of this scan was kept"):
        scan_files(command)
    assert not (tmp_path / "out").exists() and not row_group_results(tmp_path / "scanned")


@pytest.mark.parametrize(
    ("target", "name", "wrong", "message"),
    [
        (ContaminationConfig, "contaminates", lambda config, found: found.run > config.run, "back as “clean, clean, 1"),
        (ContaminationConfig, "is_template", lambda config, found: True, "back as “clean, boilerplate"),
        (Tally, "result", lambda tally: replace(result(tally), flagged=[]), "items of winogrande were planted as"),
    ],
)
def test_a_tally_that_is_wrong_is_refused(
    kept: ScanConfig,
    scanned: Path,
    target: type,
    name: str,
    wrong: Callable,
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
):
    shutil.copytree(scanned, tmp_path / "scanned")
    monkeypatch.setattr(target, name, wrong)
    with pytest.raises(ContaminationError, match=message):
        scan_files(replace(kept, resume=tmp_path / "scanned", out=tmp_path / "out"))


def test_every_item_of_every_suite_is_looked_for(items, benchmarks):
    check_items(items, benchmarks, SUITE_NAMES)
    with pytest.raises(ContaminationError, match="1267 items of winogrande were to be looked for, but 0 are"):
        check_items([item for item in items if item.suite != "winogrande"], benchmarks, SUITE_NAMES)
    with pytest.raises(ContaminationError, match="arc_challenge:1 asks"):
        check_items([items[0], replace(items[2], item=1), *items[2:]], benchmarks, SUITE_NAMES)
    few, lengths = items[:50], item_lengths(items[:50])
    check_index(build_index(few, 8), few, lengths)
    with pytest.raises(ContaminationError, match="every text of arc_challenge:49 was to be looked for"):
        check_index(build_index(few[:49], 8), few, lengths)
    index = build_index(few, 8)
    half = len(index.place_first) // 2
    first = np.minimum(index.place_first, index.place_first[half])
    lost = replace(index, place_first=first, places=index.places[: first[-1]])
    with pytest.raises(ContaminationError, match="the index lacks words of"):
        check_index(lost, few, lengths)


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"run": 10**18}, "run must be from 5 to 200"), ({"coverage": 1e-9}, r"coverage must be from 0\.01 to 1")],
)
def test_thresholds_for_which_the_control_would_invent_words_without_end_are_refused(settings: dict, message: str):
    with pytest.raises(ConfigError, match=f"{message}, but it is"):
        ContaminationConfig(**settings)


@pytest.mark.parametrize("settings", [{}, {"ngram": 5, "run": 7, "coverage": 0.9}])
def test_probes_have_the_verdicts_that_are_known(settings: dict):
    config = ContaminationConfig(**settings)
    planted = probes(config)
    texts = [
        (f"{number}-{which}", text)
        for number, probe in enumerate(planted)
        for which, text in enumerate(probe.documents)
    ]
    found = iter(check(texts, [item for probe in planted for _, item, _ in probe.items], config).verdicts)
    for number, probe in enumerate(planted):
        for name, _, expected in probe.items:
            came = next(found)
            figures = (came.verdict, came.kind, came.longest_run, came.coverage, came.documents)
            assert figures == astuple(expected)[:5], name
            if expected.place:
                assert came.best is not None
                place = (came.best.document, came.best.start, came.best.end)
                assert place == (f"{number}-{expected.place[0]}", *expected.place[1:]), name


def test_canaries_are_drawn_from_both_ends_of_every_file_and_beyond_a_megabyte(tmp_path):
    texts = [f"Début {prose(seed, 2)} fin." for seed in range(400, 424)]
    texts[9] = f"Début {prose(9, 2600)} fin."
    paths = [tmp_path / "a.parquet", tmp_path / "b.parquet"]
    for path, part in zip(paths, (texts[:12], texts[12:])):
        names = [f"{path.stem}{row}" for row in range(12)]
        pq.write_table(pa.table({"id": names, "text": part}), path, row_group_size=5)
    drawn = draw_canaries(paths, 3, 8)
    assert drawn == draw_canaries(paths, 3, 8) != draw_canaries(paths, 4, 8)
    rows = {(canary.path, canary.group, canary.row) for canary in drawn}
    assert rows >= {(path, group, row) for path in paths for group, row in ((0, 0), (0, 4), (2, 0), (2, 1))}
    for canary in drawn:
        text = texts[12 * paths.index(canary.path) + 5 * canary.group + canary.row].encode()
        assert text[canary.start :].startswith(canary.text.encode()) and len(words(canary.text)) == 8
    assert any(canary.start > 2**20 for canary in drawn) and any(canary.start == 0 for canary in drawn)
    assert any(canary.text.endswith("fin") for canary in drawn)
