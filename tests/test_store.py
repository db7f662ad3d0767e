"""Both stores behave alike, the S3 one against a real server."""

import threading
from pathlib import Path

import boto3
import pytest

from tasks.s3 import MULTIPART_BYTES, S3Store
from tasks.store import Digest, Store, StoreError, digest_file, open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    if request.param == "local":
        opened = open_store(str(tmp_path / "store"))
    else:
        opened = open_store(f"{request.getfixturevalue('s3')}/{tmp_path.name}")
    opened.check()
    return opened


def file_of(tmp_path: Path, content: bytes) -> tuple[Path, Digest]:
    path = tmp_path / "given"
    path.write_bytes(content)
    return path, digest_file(path)


def test_a_file_comes_back_with_its_bytes_and_digest(store: Store, tmp_path: Path):
    path, digest = file_of(tmp_path, b"speech" * 1000)
    store.put("stages/a/x.bin", path, digest)
    assert store.digest("stages/a/x.bin") == digest
    assert store.get("stages/a/x.bin", tmp_path / "cache").read_bytes() == b"speech" * 1000
    assert store.read("stages/a/x.bin") == b"speech" * 1000


def test_a_large_file_goes_through_multipart_and_comes_back(store: Store, tmp_path: Path):
    content = bytes(range(256)) * (MULTIPART_BYTES // 256 * 2 + 3)
    path, digest = file_of(tmp_path, content)
    store.put("large.bin", path, digest)
    assert store.digest("large.bin") == digest
    assert digest_file(store.get("large.bin", tmp_path / "cache")) == digest


def test_what_is_absent_is_absent(store: Store, tmp_path: Path):
    assert store.read("nothing") is None
    assert store.digest("nothing") is None
    assert not store.exists("nothing")
    store.delete("nothing")
    with pytest.raises(StoreError, match="nothing"):
        store.get("nothing", tmp_path / "cache")


def test_publishing_never_replaces(store: Store):
    assert store.publish("manifest.json", b"first")
    assert not store.publish("manifest.json", b"second")
    assert store.read("manifest.json") == b"first"


def test_a_half_written_file_is_not_listed(tmp_path: Path):
    store = open_store(str(tmp_path / "store"))
    store.publish("ledger/a.json", b"{}")
    (store.root / "ledger" / ".b.json.partial").write_bytes(b"{")  # as a killed process leaves it
    assert list(store.list("ledger")) == ["ledger/a.json"]


def test_of_sixteen_racing_publishers_exactly_one_wins(store: Store):
    won, barrier = [], threading.Barrier(16)

    def race(number: int) -> None:
        barrier.wait()
        if store.publish("race.json", str(number).encode()):
            won.append(number)

    threads = [threading.Thread(target=race, args=(number,)) for number in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read("race.json") == str(won[0]).encode()


def test_listing_is_sorted_and_keeps_to_the_prefix(store: Store):
    for name in ("ledger/b.json", "ledger/a.json", "ledgers/c.json"):
        store.publish(name, b"{}")
    assert list(store.list("ledger")) == ["ledger/a.json", "ledger/b.json"]


def test_delete_removes(store: Store):
    store.publish("gone", b"x")
    store.delete("gone")
    assert not store.exists("gone")


def test_an_object_overwritten_behind_our_back_has_another_digest(s3: str, tmp_path: Path):
    store = open_store(f"{s3}/{tmp_path.name}")
    path, digest = file_of(tmp_path, b"true")
    store.put("x", path, digest)
    client = boto3.client("s3")
    client.put_object(Bucket=store.bucket, Key=f"{tmp_path.name}/x", Body=b"fake")
    assert store.digest("x") != digest


def test_ranges_can_be_read_from_what_was_stored(s3: str, tmp_path: Path):
    store = open_store(f"{s3}/{tmp_path.name}")
    path, digest = file_of(tmp_path, bytes(range(256)) * 8)
    store.put("x", path, digest)
    answer = boto3.client("s3").get_object(Bucket=store.bucket, Key=f"{tmp_path.name}/x", Range="bytes=10-19")
    assert answer["Body"].read() == bytes(range(10, 20))


def test_a_bucket_that_is_not_there_is_named(s3: str):
    with pytest.raises(StoreError, match=r"s3://no-such-bucket/x: there is no bucket 'no-such-bucket'"):
        open_store("s3://no-such-bucket/x").check()


def test_a_wrong_secret_is_refused(s3: str, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "wrong")
    with pytest.raises(StoreError, match="secret key does not belong"):
        open_store(s3).check()


def test_an_unreachable_server_ends_in_one_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "b")
    with pytest.raises(StoreError) as caught:
        S3Store("s3://bucket/prefix").check()
    assert "s3://bucket/prefix" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_store_of_an_unknown_kind_is_named():
    with pytest.raises(StoreError, match="gs://bucket"):
        open_store("gs://bucket")


def test_a_store_that_cannot_be_a_folder_is_named(tmp_path: Path):
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="file"):
        open_store(str(tmp_path / "file")).check()
