"""Identity, skipping, verification and rebuilding of stages."""

import dataclasses
import json
import math
import os
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.pipeline.faults import OUTPUTS, Tally, one_stage
from tasks.runtime.lock import locked
from tasks.store.attempts import publish_build
from tasks.store.backends import LocalStore
from tasks.store.context import RunContext, open_context
from tasks.store.manifest import StageError, canonical_json, parse_manifest, sha256_json
from tasks.store.objects import Digest, StoreError
from tasks.store.s3 import S3Store
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs, read_json
from tests.object_store import READER
from tests.store_proxy import MIXES, Faults

JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("abé🚂"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
)


@pytest.fixture
def context(tmp_path: Path) -> RunContext:
    return open_context(str(tmp_path / "store"), None, 1, None, None, 0.0)


class Build:
    """A stage's build that counts how often it ran."""

    def __init__(self) -> None:
        self.runs = 0

    def __call__(self, work: Path, out: Path) -> dict[str, int]:
        self.runs += 1
        (out / "data.bin").write_bytes(b"0123456789" * 100)
        (out / "times.json").write_text(json.dumps({"run": self.runs}))
        return {"run": self.runs}


STAGE = Stage(name="shard", version=1, config={"a": 1}, inputs={"x": "0" * 64}, volatile=frozenset({"times.json"}))


def stored(context: RunContext, result: StageResult, name: str) -> Path:
    return Path(context.store.url) / result.manifest.location(result.manifest.output(name))


def manifest_of(context: RunContext) -> Path:
    return Path(context.store.url) / f"stages/shard/{STAGE.key}/manifest.json"


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


def test_a_finished_stage_is_skipped(context: RunContext):
    build = Build()
    first, second = build_or_skip(STAGE, context, build), build_or_skip(STAGE, context, build)
    assert (first.skipped, second.skipped, build.runs) == (False, True, 1)
    assert first.manifest == second.manifest


def test_execution_is_no_part_of_the_key_or_the_digest(context: RunContext, tmp_path: Path):
    elsewhere = open_context(str(tmp_path / "other"), str(tmp_path / "cache"), 7, "cpu", None, 3.0)
    here, there = build_or_skip(STAGE, context, Build()), build_or_skip(STAGE, elsewhere, Build())
    assert here.manifest.key == there.manifest.key
    assert here.digest == there.digest


def test_recorded_outputs_do_not_identify(context: RunContext, tmp_path: Path):
    other = Build()
    other.runs = 41  # its times.json differs
    elsewhere = open_context(str(tmp_path / "other"), None, 1, None, None, 0.0)
    assert build_or_skip(STAGE, context, Build()).digest == build_or_skip(STAGE, elsewhere, other).digest


@pytest.mark.parametrize("name", ["data.bin", "times.json"])
@pytest.mark.parametrize("harm", ["flip", "truncate", "delete"])
def test_a_damaged_output_is_found_and_built_again(context: RunContext, name: str, harm: str):
    build = Build()
    path = stored(context, build_or_skip(STAGE, context, build), name)
    content = bytearray(path.read_bytes())
    match harm:
        case "flip":
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
        case "truncate":
            path.write_bytes(content[:-1])
        case "delete":
            path.unlink()
    again = build_or_skip(STAGE, context, build)
    assert (again.skipped, build.runs) == (False, 2)
    assert build_or_skip(STAGE, context, build).skipped


@settings(deadline=None)  # what a disk takes to sync
@given(position=st.integers(0, 10**6), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_manifest_is_never_trusted(tmp_path_factory, position: int, bit: int):
    context = open_context(str(tmp_path_factory.mktemp("store")), None, 1, None, None, 0.0)
    build = Build()
    build_or_skip(STAGE, context, build)
    path = manifest_of(context)
    content = bytearray(path.read_bytes())
    content[position % len(content)] ^= 1 << bit
    path.write_bytes(content)
    again = build_or_skip(STAGE, context, build)
    # whitespace may change into other whitespace without any change of meaning
    assert build.runs == 2 or again.manifest.provenance["run"] == 1
    assert stored(context, again, "data.bin").read_bytes() == b"0123456789" * 100


@pytest.mark.parametrize("change", [{"provenance": {"run": 7}}, {"attempt": "elsewhere"}, {"version": 2}])
def test_a_manifest_that_does_not_match_its_own_hash_is_not_trusted(context: RunContext, change: dict):
    """What it says of itself alone, and what no output's hash would show."""
    build = Build()
    first = build_or_skip(STAGE, context, build).manifest
    folder = manifest_of(context).parent
    shutil.copytree(folder / first.attempt, folder / "elsewhere")
    written = json.loads(manifest_of(context).read_text())
    manifest_of(context).write_text(json.dumps(written | change))
    again = build_or_skip(STAGE, context, build)
    assert (again.skipped, build.runs, again.manifest.provenance["run"]) == (False, 2, 2)


def test_the_manifest_of_another_stage_is_not_taken_for_this_one(context: RunContext):
    build = Build()
    build_or_skip(STAGE, context, build)
    other = dataclasses.replace(STAGE, config={"a": 2})
    shutil.copytree(manifest_of(context).parent, manifest_of(context).parents[1] / other.key)
    again = build_or_skip(other, context, build)
    assert (again.skipped, again.manifest.key, build.runs) == (False, other.key, 2)


def test_damage_between_check_and_use_is_refused_by_name_and_mended_by_the_next_run(context: RunContext):
    build = Build()
    result = build_or_skip(STAGE, context, build)
    stored(context, result, "data.bin").write_bytes(b"x" * 1000)
    with pytest.raises(StageError, match=r"data\.bin is corrupted"):
        fetch_outputs(result, context)
    assert not build_or_skip(STAGE, context, build).skipped


def test_a_build_that_fails_leaves_no_manifest_and_its_work_for_the_next_attempt(context: RunContext):
    def fail(work: Path, out: Path) -> None:
        (work / "checkpoint").write_text("half way")
        raise RuntimeError("killed")

    with pytest.raises(RuntimeError):
        build_or_skip(STAGE, context, fail)
    assert not manifest_of(context).exists()

    def resume(work: Path, out: Path) -> None:
        (out / "data").write_text((work / "checkpoint").read_text() + ", then done")

    result = build_or_skip(STAGE, context, resume)
    assert stored(context, result, "data").read_text() == "half way, then done"


def test_a_second_machine_with_the_same_bucket_skips_and_reads(s3: str, tmp_path: Path):
    build = Build()
    url = f"{s3}/{tmp_path.name}"
    build_or_skip(STAGE, open_context(url, str(tmp_path / "first"), 1, None, None, 0.0), build)
    second = open_context(url, str(tmp_path / "second"), 2, None, None, 0.0)
    result = build_or_skip(STAGE, second, build)
    assert (result.skipped, build.runs) == (True, 1)
    assert (fetch_outputs(result, second) / "data.bin").read_bytes() == b"0123456789" * 100


def test_a_flipped_byte_in_the_cache_is_fetched_again(s3: str, tmp_path: Path):
    context = open_context(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0)
    result = build_or_skip(STAGE, context, Build())
    cached = fetch_outputs(result, context) / "data.bin"
    cached.write_bytes(b"9" * 1000)
    assert (fetch_outputs(result, context) / "data.bin").read_bytes() == b"0123456789" * 100


def overwrite(context: RunContext, key: str, content: bytes, **settings: Any) -> None:
    """Write an object of the store as another program would."""
    store = context.store
    assert isinstance(store, S3Store)
    store.client.put_object(Bucket=store.bucket, Key=f"{store.prefix}/{key}", Body=content, **settings)


def test_an_object_changed_in_the_bucket_is_built_again(s3: str, tmp_path: Path):
    build = Build()
    context = open_context(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0)
    result = build_or_skip(STAGE, context, build)
    key = result.manifest.location(result.manifest.output("data.bin"))
    overwrite(context, key, b"0123456789" * 99 + b"0123456780")
    assert not build_or_skip(STAGE, context, build).skipped
    assert build.runs == 2


def test_a_build_that_could_not_be_stored_is_stored_by_the_next_call(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
):
    build, put = Build(), LocalStore.put

    def refuse(store: LocalStore, key: str, path: Path, digest: Digest) -> None:
        if key.endswith("times.json"):
            raise StoreError("the store is away")
        put(store, key, path, digest)

    monkeypatch.setattr(LocalStore, "put", refuse)
    with pytest.raises(StoreError, match="away"):
        build_or_skip(STAGE, context, build)
    [left] = attempts(context)
    monkeypatch.undo()
    result = build_or_skip(STAGE, context, build)
    assert (build.runs, result.skipped, attempts(context)) == (1, False, [left])
    assert not (context.cache / "work/shard" / STAGE.key).exists()
    assert build_or_skip(STAGE, context, build).skipped


@pytest.mark.parametrize("harm", ["data.bin", "built.json"])
def test_a_kept_build_that_is_not_whole_is_built_again(context: RunContext, monkeypatch: pytest.MonkeyPatch, harm: str):
    build = Build()
    monkeypatch.setattr(LocalStore, "put", lambda *_: (_ for _ in ()).throw(StoreError("the store is away")))
    with pytest.raises(StoreError, match="away"):
        build_or_skip(STAGE, context, build)
    [path] = (context.cache / "work").rglob(harm)
    path.write_bytes(path.read_bytes().replace(b"3", b"4"))
    monkeypatch.undo()
    result = build_or_skip(STAGE, context, build)
    assert build.runs == 2
    assert stored(context, result, "data.bin").read_bytes() == b"0123456789" * 100


def attempts(context: RunContext) -> list[str]:
    """Folders of attempts at the stage in the store."""
    keys = [key.split("/") for key in context.store.list(f"stages/shard/{STAGE.key}")]
    return sorted({parts[3] for parts in keys if len(parts) > 4})


@pytest.mark.parametrize("kind", ["local", "s3"])
def test_whoever_publishes_removes_what_other_attempts_left(kind: str, request, tmp_path: Path):
    url = str(tmp_path / "store") if kind == "local" else f"{request.getfixturevalue('s3')}/{tmp_path.name}"
    context = open_context(url, str(tmp_path / "cache"), 1, None, None, 0.0)
    for name in ("0123abcd/data.bin", "notes/of-a-person.txt"):
        context.store.publish(f"stages/shard/{STAGE.key}/{name}", b"half")
    result = build_or_skip(STAGE, context, Build())
    assert attempts(context) == sorted([result.manifest.attempt, "notes"])


def test_a_machine_that_was_slower_takes_the_result_and_leaves_nothing(context: RunContext, tmp_path: Path):
    slow, fast = replace(context, cache=tmp_path / "slow"), replace(context, cache=tmp_path / "fast")

    def overtaken(work: Path, out: Path) -> dict[str, int]:
        build_or_skip(STAGE, fast, Build())
        return Build()(work, out)

    result = build_or_skip(STAGE, slow, overtaken)
    assert attempts(context) == [result.manifest.attempt]
    assert result.manifest == build_or_skip(STAGE, fast, Build()).manifest
    assert not list((tmp_path / "slow" / "work" / "shard").glob("*/"))


def test_killed_when_its_manifest_was_published_it_leaves_no_work(context: RunContext, monkeypatch: pytest.MonkeyPatch):
    def publish_and_be_killed(*arguments: Any) -> None:
        assert publish_build(*arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr("tasks.store.stage.publish_build", publish_and_be_killed)
        with pytest.raises(KeyboardInterrupt):
            build_or_skip(STAGE, context, Build())
    assert (context.cache / "work/shard" / STAGE.key / "built.json").exists()
    assert build_or_skip(STAGE, context, Build()).skipped
    assert not (context.cache / "work/shard" / STAGE.key).exists()


def test_a_manifest_that_is_moved_aside_is_kept_with_its_files(context: RunContext):
    first = build_or_skip(STAGE, context, Build()).manifest
    path = Path(context.store.url) / first.location(first.output("times.json"))
    path.write_bytes(b"damaged")
    second = build_or_skip(STAGE, context, Build()).manifest
    aside = manifest_of(context).with_name(f"withdrawn-{first.attempt}.json")
    assert parse_manifest(aside.read_bytes(), "shard", STAGE.key) == first
    assert attempts(context) == sorted([first.attempt, second.attempt])


@pytest.mark.parametrize(
    "change",
    [
        *({"outputs": name} for name in ("../../../../x", "/tmp/x", "", "a\\b", "a\0b", "a//b", "./a", "a/..", 7)),
        *({"attempt": name} for name in ("..", "../../../x", "a/b", "", "a\\b")),
        {"stage": "../.."},
        {"inputs": []},
    ],
)
def test_names_in_a_manifest_that_lead_elsewhere_are_refused(tmp_path: Path, change: dict):
    """Each manifest has a right hash of itself, as whoever writes to a bucket can make it."""
    context = open_context(str(tmp_path / "store"), None, 1, None, None, 0.0)
    made = build_or_skip(STAGE, context, Build()).manifest
    if "outputs" in change:
        change = {"outputs": (dataclasses.replace(made.outputs[0], path=change["outputs"]),)}
    forged = dataclasses.replace(made, **change)
    with pytest.raises(StageError):
        parse_manifest(forged.content(), "shard", STAGE.key)


def test_a_forged_manifest_writes_nothing_outside_the_cache(s3: str, tmp_path: Path):
    context = open_context(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0)
    made = build_or_skip(STAGE, context, Build()).manifest
    output = dataclasses.replace(made.outputs[0], path="sub/data.bin")
    forged = StageResult(manifest=dataclasses.replace(made, outputs=(output,)), skipped=True, seconds=0.0)
    (tmp_path / "given").write_bytes(b"0123456789" * 100)
    context.store.put(made.location(output), tmp_path / "given", output.content)
    (context.cache / made.folder).mkdir(parents=True)
    (tmp_path / "outside").mkdir()
    (context.cache / made.folder / "sub").symlink_to(tmp_path / "outside")
    with pytest.raises(StoreError, match="a link leads from there"):
        fetch_outputs(forged, context)
    with pytest.raises(StoreError, match="leaves its folder"):
        context.store.get("stages/../../escaped", context.cache)
    assert list((tmp_path / "outside").iterdir()) == []


def test_a_bucket_that_another_program_copied_is_as_good_and_damage_in_it_is_found(s3: str, tmp_path: Path):
    context, build = open_context(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0), Build()
    result = build_or_skip(STAGE, context, build)

    def replaced(name: str, change: bytes) -> None:
        key = result.manifest.location(result.manifest.output(name))
        content = context.store.read(key)
        assert content is not None
        overwrite(context, key, content[len(change) :] + change)

    replaced("data.bin", b"")
    replaced("times.json", b"")
    assert build_or_skip(STAGE, context, build).skipped
    shutil.rmtree(context.cache)
    replaced("data.bin", b"x")
    assert not build_or_skip(STAGE, context, build).skipped and build.runs == 2


@pytest.mark.parametrize("kind", ["folder", "link", "pipe"])
def test_what_is_no_file_in_place_of_a_manifest_is_named_before_a_build(context: RunContext, kind: str):
    manifest, build = manifest_of(context), Build()
    manifest.parent.mkdir(parents=True)
    made = {"folder": manifest.mkdir, "pipe": lambda: os.mkfifo(manifest), "link": lambda: manifest.symlink_to("/none")}
    made[kind]()
    with pytest.raises(StoreError, match=r"manifest\.json: is a folder"):
        build_or_skip(STAGE, context, build)
    assert build.runs == 0


@pytest.mark.parametrize("where", ["", "/built.json/x", "/out"])
def test_strange_things_in_the_work_folder_are_removed(context: RunContext, where: str):
    work = context.cache / "work" / STAGE.name / f"{STAGE.key}{where}"
    work.parent.mkdir(parents=True)
    work.write_text("stray")
    assert not build_or_skip(STAGE, context, Build()).skipped


def test_what_a_killed_build_left_goes_when_another_machine_was_faster_and_stays_while_it_goes_on(context: RunContext):
    build_or_skip(STAGE, context, Build())
    work = context.cache / "work" / STAGE.name / STAGE.key
    (work / "run").mkdir(parents=True)
    with locked(work.with_suffix(".lock"), print):  # as of a process that builds there
        assert build_or_skip(STAGE, context, Build()).skipped and work.exists()
    assert build_or_skip(STAGE, context, Build()).skipped and not work.exists()


def test_a_cache_that_is_removed_when_a_stage_is_stored_costs_nothing(
    context: RunContext, monkeypatch: pytest.MonkeyPatch
):
    publish_build = LocalStore.publish

    def publish_and_remove_cache(*arguments: Any) -> bool:
        published = publish_build(*arguments)
        shutil.rmtree(context.cache, ignore_errors=True)
        return published

    monkeypatch.setattr(LocalStore, "publish", publish_and_remove_cache)
    assert not build_or_skip(STAGE, context, Build()).skipped
    assert build_or_skip(STAGE, context, Build()).skipped


def test_flipped_bytes_on_the_way_cost_no_build_and_damage_in_the_bucket_does(proxy, s3: str, tmp_path: Path):
    context, build = open_context(f"{s3}/{tmp_path.name}", str(tmp_path / "cache"), 1, None, None, 0.0), Build()
    result = build_or_skip(STAGE, context, build)
    proxy.faults = Faults(("flipped answer",), share=1.0, most=4, only="GET")
    assert (fetch_outputs(result, context) / "data.bin").read_bytes() == b"0123456789" * 100
    assert read_json(result, context, "times.json") == {"run": 1}
    assert proxy.faults.done["flipped answer"] == 4
    shutil.rmtree(context.cache)
    output = result.manifest.output("data.bin")
    overwrite(context, result.manifest.location(output), b"9" * 1000, Metadata={"sha256": output.sha256})
    with pytest.raises(StageError, match=r"data\.bin is corrupted.*its manifest is kept as .*withdrawn-"):
        fetch_outputs(result, context)
    assert not build_or_skip(STAGE, context, build).skipped and build.runs == 2


def write_outputs(_: Path, out: Path) -> None:
    for name, content in OUTPUTS.items():
        (out / name).write_bytes(content)


def test_a_store_with_faults_ends_with_the_same_digest_and_no_orphan(proxy, s3: str, s3_environment, tmp_path: Path):
    """As `make bench-faults` does a hundred times with each mix of faults."""
    wanted = build_or_skip(STAGE, open_context(str(tmp_path / "local"), None, 1, None, None, 0.0), write_outputs)
    tally = Tally()
    proxy.faults = Faults(MIXES["everything"], share=0.3, done=tally.faults)
    one_stage(tally, proxy, s3_environment["AWS_ENDPOINT_URL_S3"], tmp_path / "mix", 0, wanted.digest)
    assert sum(tally.faults.values()) > tally.faults["requests"] + 10
    assert (tally.same, tally.built_twice, tally.orphans, tally.failures) == (1, 0, 0, [])


def test_a_store_that_may_only_be_read_serves_what_is_done(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    url, build = f"{s3}/{tmp_path.name}", Build()
    build_or_skip(STAGE, open_context(url, str(tmp_path / "first"), 1, None, None, 0.0), build)
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    context = open_context(url, str(tmp_path / "second"), 1, None, None, 0.0)
    result = build_or_skip(STAGE, context, build)
    assert result.skipped and (fetch_outputs(result, context) / "times.json").exists()
    with pytest.raises(StoreError, match=r"access denied.*; stage shard is not in the store"):
        build_or_skip(dataclasses.replace(STAGE, config={"a": 2}), context, build)
    assert build.runs == 1
