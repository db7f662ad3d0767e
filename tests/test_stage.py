"""Identity, skipping, verification and rebuilding of stages."""

import dataclasses
import json
import math
import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tasks.manifest import canonical_json, sha256_json
from tasks.stage import Place, Result, Stage, StageError, finish, materialise, open_place

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("abé🚂"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return open_place(str(tmp_path / "store"), None, 1, None, None, 0.0)


class Build:
    """A stage's build that counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, work: Path, out: Path) -> dict[str, int]:
        self.runs += 1
        (out / "data.bin").write_bytes(b"0123456789" * 100)
        (out / "times.json").write_text(json.dumps({"run": self.runs}))
        return {"run": self.runs}


STAGE = Stage(name="shard", version=1, config={"a": 1}, inputs={"x": "0" * 64}, recorded=frozenset({"times.json"}))


def stored(place: Place, result: Result, name: str) -> Path:
    return Path(place.store.url) / result.manifest.location(result.manifest.output(name))


def manifest_of(place: Place) -> Path:
    return Path(place.store.url) / f"stages/shard/{STAGE.key}/manifest.json"


def test_golden_key():
    """A change of this key makes every store forget what it holds: bump a stage's version instead."""
    config = {"tokens_per_shard": 2000, "é": [1.5, None, True]}
    stage = Stage(name="shard", version=1, config=config, inputs={"d": "ab"})
    assert stage.key == "0c507f21a736eaefc9d9b096233446bae29e94959c3fdc2e45db9424c7097857"


def test_key_depends_on_every_part_of_the_identity():
    parts = {"name": "shard", "version": 1, "config": {"a": 1}, "inputs": {"x": "0"}}
    others = [{"name": "train"}, {"version": 2}, {"config": {"a": 2}}, {"inputs": {"x": "1"}}, {"inputs": {"y": "0"}}]
    keys = {Stage(**{**parts, **other}).key for other in [{}, *others]}
    assert len(keys) == 6


@given(JSON)
def test_canonical_json_is_a_round_trip_and_ignores_the_order_of_keys(value):
    text = canonical_json(value)
    assert json.loads(text) == value
    if isinstance(value, dict):
        assert canonical_json(dict(reversed(value.items()))) == text


@pytest.mark.parametrize("value", [{"a": {1}}, {"a": math.nan}, {"a": Path("x")}, {1: "a"}, [b"x"], {"a": object()}])
def test_what_has_no_deterministic_form_is_refused(value):
    with pytest.raises(StageError, match=r"\$"):
        sha256_json(value)


def test_a_finished_stage_is_skipped(place: Place):
    build = Build()
    first, second = finish(STAGE, place, build), finish(STAGE, place, build)
    assert (first.skipped, second.skipped, build.runs) == (False, True, 1)
    assert first.manifest == second.manifest


def test_execution_is_no_part_of_the_key_or_the_digest(place: Place, tmp_path: Path):
    elsewhere = open_place(str(tmp_path / "other"), str(tmp_path / "cache"), 7, "cpu", None, 3.0)
    here, there = finish(STAGE, place, Build()), finish(STAGE, elsewhere, Build())
    assert here.manifest.key == there.manifest.key
    assert here.digest == there.digest


def test_recorded_outputs_do_not_identify(place: Place, tmp_path: Path):
    other = Build()
    other.runs = 41  # its times.json differs
    elsewhere = open_place(str(tmp_path / "other"), None, 1, None, None, 0.0)
    assert finish(STAGE, place, Build()).digest == finish(STAGE, elsewhere, other).digest


@pytest.mark.parametrize("name", ["data.bin", "times.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_output_is_found_and_built_again(place: Place, name: str, harm: str):
    build = Build()
    path = stored(place, finish(STAGE, place, build), name)
    content = bytearray(path.read_bytes())
    match harm:
        case "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(content[:-1])
        case "delete":
            path.unlink()
    again = finish(STAGE, place, build)
    assert (again.skipped, build.runs) == (False, 2)
    assert finish(STAGE, place, build).skipped


@settings(deadline=None)  # what a disk takes to sync
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_manifest_is_never_trusted(tmp_path_factory, position: int, bit: int):
    place = open_place(str(tmp_path_factory.mktemp("store")), None, 1, None, None, 0.0)
    build = Build()
    finish(STAGE, place, build)
    path = manifest_of(place)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)
    again = finish(STAGE, place, build)
    # whitespace may change into other whitespace without any change of meaning
    assert build.runs == 2 or again.manifest.provenance["run"] == 1
    assert stored(place, again, "data.bin").read_bytes() == b"0123456789" * 100


@pytest.mark.parametrize("change", [{"provenance": {"run": 7}}, {"attempt": "elsewhere"}, {"version": 2}])
def test_a_manifest_that_does_not_match_its_own_hash_is_not_trusted(place: Place, change: dict):
    """What it says of itself alone, and what no output's hash would show."""
    build = Build()
    first = finish(STAGE, place, build).manifest
    folder = manifest_of(place).parent
    shutil.copytree(folder / first.attempt, folder / "elsewhere")
    written = json.loads(manifest_of(place).read_text())
    manifest_of(place).write_text(json.dumps(written | change))
    again = finish(STAGE, place, build)
    assert (again.skipped, build.runs, again.manifest.provenance["run"]) == (False, 2, 2)


def test_the_manifest_of_another_stage_is_not_taken_for_this_one(place: Place):
    build = Build()
    finish(STAGE, place, build)
    other = dataclasses.replace(STAGE, config={"a": 2})
    shutil.copytree(manifest_of(place).parent, manifest_of(place).parents[1] / other.key)
    again = finish(other, place, build)
    assert (again.skipped, again.manifest.key, build.runs) == (False, other.key, 2)


def test_damage_between_check_and_use_is_refused_by_name_and_mended_by_the_next_run(place: Place):
    build = Build()
    result = finish(STAGE, place, build)
    stored(place, result, "data.bin").write_bytes(b"x" * 1000)
    with pytest.raises(StageError, match=r"data\.bin is corrupted"):
        materialise(result, place)
    assert not finish(STAGE, place, build).skipped


def test_a_build_that_fails_leaves_no_manifest_and_its_work_for_the_next_attempt(place: Place):
    def fail(work: Path, out: Path) -> None:
        (work / "checkpoint").write_text("half way")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        finish(STAGE, place, fail)
    assert not manifest_of(place).exists()

    def resume(work: Path, out: Path) -> None:
        (out / "data").write_text((work / "checkpoint").read_text() + ", then done")

    result = finish(STAGE, place, resume)
    assert stored(place, result, "data").read_text() == "half way, then done"


def test_a_second_machine_with_the_same_bucket_skips_and_reads(s3: str, tmp_path: Path):
    build = Build()
    url = f"{s3}/{tmp_path.name}"
    finish(STAGE, open_place(url, str(tmp_path / "first"), 1, None, None, 0.0), build)
    second = open_place(url, str(tmp_path / "second"), 2, None, None, 0.0)
    result = finish(STAGE, second, build)
    assert (result.skipped, build.runs) == (True, 1)
    assert (materialise(result, second) / "data.bin").read_bytes() == b"0123456789" * 100


def test_a_flipped_byte_in_the_cache_is_fetched_again(s3: str, tmp_path: Path):
    place = open_place(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0)
    result = finish(STAGE, place, Build())
    cached = materialise(result, place) / "data.bin"
    cached.write_bytes(b"9" * 1000)
    assert (materialise(result, place) / "data.bin").read_bytes() == b"0123456789" * 100


def test_an_object_changed_in_the_bucket_is_built_again(s3: str, tmp_path: Path):
    build = Build()
    place = open_place(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0)
    result = finish(STAGE, place, build)
    key = f"{tmp_path.name}/{result.manifest.location(result.manifest.output('data.bin'))}"
    place.store.client.put_object(Bucket=place.store.bucket, Key=key, Body=b"0123456789" * 99 + b"0123456780")
    assert not finish(STAGE, place, build).skipped
    assert build.runs == 2
