"""Both stores behave alike, the S3 one against a real server."""

import errno
import http.client
import io
import os
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path

import boto3
import pytest

from tasks.store.backends import LocalStore, Store, open_store
from tasks.store.objects import Digest, ReadOnlyStoreError, StoreError, digest_file
from tasks.store.retries import is_transient
from tasks.store.s3 import MULTIPART_BYTES, S3Store
from tasks.store.s3_bodies import read_body
from tests.object_store import READER
from tests.store_proxy import Faults, StoreProxy


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
    store = LocalStore(str(tmp_path / "store"))
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
    store = S3Store(f"{s3}/{tmp_path.name}")
    path, digest = file_of(tmp_path, b"true")
    store.put("x", path, digest)
    client = boto3.client("s3")
    client.put_object(Bucket=store.bucket, Key=f"{tmp_path.name}/x", Body=b"fake")
    assert store.digest("x") != digest


def test_ranges_can_be_read_from_what_was_stored(s3: str, tmp_path: Path):
    store = S3Store(f"{s3}/{tmp_path.name}")
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
    monkeypatch.setattr("tasks.store.s3.SECONDS_TO_OPEN", 1.0)
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


def test_a_store_that_was_opened_holds_nothing(store: Store):
    assert list(store.list("")) == []
    if isinstance(store, LocalStore):
        assert list(store.root.iterdir()) == []


@pytest.mark.parametrize(
    ("method", "broken", "sentence"),
    [
        ("put", lambda *_: (_ for _ in ()).throw(StoreError("no")), "cannot be written: no"),
        ("publish", lambda *_: True, "If-None-Match.*: the second of two was not refused"),
        ("publish", lambda *_: False, "If-None-Match.*: refused although nothing was there"),
        ("read", lambda *_: b"other", "cannot be read: what was read is not what was written"),
        ("digest", lambda *_: Digest(64, ""), "cannot say what it holds"),
        ("list", lambda *_: iter(()), "cannot be listed: two objects were written and 0 listed"),
        ("delete", lambda *_: None, "cannot be deleted from: what was deleted is there still"),
    ],
)
def test_what_a_store_cannot_do_is_said_when_it_is_opened(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, method: str, broken: object, sentence: str
):
    monkeypatch.setattr(LocalStore, method, broken)
    with pytest.raises(StoreError, match=sentence):
        open_store(str(tmp_path / "store")).check()
    assert list((tmp_path / "store").iterdir()) == []


def test_credentials_that_may_only_read_are_known_as_such(s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    for name, value in READER.items():
        monkeypatch.setenv(name, value)
    store = open_store(f"{s3}/{tmp_path.name}")
    with pytest.raises(ReadOnlyStoreError, match="cannot be written: access denied"):
        store.check()
    assert list(store.list("")) == []


@pytest.mark.parametrize(
    ("kind", "only", "sentence"),
    [
        ("no condition", "/once", "cannot be written only where nothing is .If-None-Match.*NotImplemented"),
        ("denied", "DELETE", "cannot be deleted from: access denied: the credentials do not allow DeleteObject"),
        ("expired", "", "the credentials have expired: renew them"),
        ("skewed", "", "the clock of this machine is wrong: it says .* GMT, the server's"),
        ("unknown key", "", "the server does not know this access key"),
    ],
)
def test_what_a_server_refuses_is_said_in_its_own_sentence(
    proxy: StoreProxy, s3: str, tmp_path: Path, kind: str, only: str, sentence: str
):
    proxy.faults = Faults((kind,), share=1.0, only=only)
    with pytest.raises(StoreError, match=sentence) as refused:
        open_store(f"{s3}/{tmp_path.name}").check()
    assert not is_transient(refused.value) and "\n" not in str(refused.value)
    proxy.faults = Faults()
    assert kind == "denied" or list(open_store(f"{s3}/{tmp_path.name}").list("")) == []


def test_a_server_without_the_newer_checksums_gets_none_and_finds_a_flipped_byte_still(
    proxy: StoreProxy, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    store, sent = S3Store(f"{s3}/{tmp_path.name}"), list[str]()
    store.client.meta.events.register("before-send.s3", lambda request, **_: sent.extend(request.headers))
    path, digest = file_of(tmp_path, b"speech" * 100)
    proxy.faults = Faults(("flipped request",), share=1.0, most=1, only="PUT")
    store.put("x", path, digest)
    assert store.read("x") == b"speech" * 100 and proxy.faults.done["flipped request"] == 1
    store.publish("y", b"{}")
    assert not [name for name in sent if name.lower().startswith(("x-amz-checksum", "x-amz-sdk-checksum"))]


def test_a_publication_whose_answer_was_lost_is_ours(proxy: StoreProxy, s3: str, tmp_path: Path):
    store = open_store(f"{s3}/{tmp_path.name}")
    for kind in ("reset after", "500 after"):
        proxy.faults = Faults((kind,), share=1.0, most=1)
        assert store.publish(kind, b"ours")
        assert not store.publish(kind, b"theirs")


@pytest.mark.parametrize("large", [False, True])
def test_bytes_that_change_or_are_cut_on_the_way_are_fetched_again(
    proxy: StoreProxy, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, large: bool
):
    if large:
        monkeypatch.setattr("tasks.store.s3.MULTIPART_BYTES", 5 * 2**20)
    store = S3Store(f"{s3}/{tmp_path.name}")
    content = bytes(range(256)) * (22_000 if large else 64)  # 5.6 MB: two parts
    path, digest = file_of(tmp_path, content)
    for kind in ("flipped request", "truncated request", "500 after"):
        proxy.faults = Faults((kind,), share=1.0, most=2)
        store.put("x", path, digest)
    for kind in ("flipped answer", "truncated answer"):
        proxy.faults = Faults((kind,), share=1.0, most=2, only="GET")
        assert store.get("x", tmp_path / "cache").read_bytes() == content
        assert proxy.faults.done[kind] == 2
    uploads = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=f"{tmp_path.name}/x")
    assert "Uploads" not in uploads


def test_a_server_that_stands_still_ends_in_one_sentence(
    proxy: StoreProxy, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.store.s3.READ_SECONDS", (0.2, 0.4))
    monkeypatch.setattr("tasks.store.s3.PATIENCE", 1.0)
    store = S3Store(f"{s3}/{tmp_path.name}", patience=1.0)
    proxy.faults = Faults(("stall",), share=1.0)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"x: the store did not answer as it should \(\d tries in \d s\): ") as stalled:
        store.read("x")
    assert time.monotonic() - began < 5 and is_transient(stalled.value)


def test_a_store_that_answers_when_a_run_begins_is_given_time(
    proxy: StoreProxy, s3: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("tasks.store.s3.SECONDS_TO_OPEN", 0.0)
    proxy.faults = Faults(("503",), share=1.0, most=4, only="PUT")
    open_store(f"{s3}/{tmp_path.name}").check()
    assert proxy.faults.done["503"] == 4
    proxy.faults = Faults(("503",), share=1.0, only="HEAD")
    with pytest.raises(StoreError, match=r"\(3 tries in 0 s\)"):
        open_store(f"{s3}/{tmp_path.name}").check()


def test_a_404_of_a_proxy_is_not_the_absence_of_an_object(proxy: StoreProxy, s3: str, tmp_path: Path):
    store = S3Store(f"{s3}/{tmp_path.name}", patience=0.0)
    store.publish("here", b"content")
    proxy.faults = Faults(("no backend",), share=1.0, most=3)  # the HEAD and the GET that is to explain it
    digest = store.digest("here")
    assert (
        digest is not None and digest.bytes == 7 and store.read("here") == b"content" and store.digest("absent") is None
    )
    proxy.faults = Faults(("no backend",), share=1.0)
    for ask in (store.read, store.digest, store.exists):
        with pytest.raises(StoreError, match="did not answer as it should") as caught:
            ask("here")
        assert is_transient(caught.value)


@pytest.mark.parametrize("fault, sentence", [("elsewhere", "sends requests elsewhere"), ("quota", "QuotaExceeded")])
def test_redirects_and_quotas_are_told_as_what_they_are(proxy: StoreProxy, s3: str, fault: str, sentence: str):
    proxy.faults = Faults((fault,), share=1.0, only="PUT" if fault == "quota" else "")
    with pytest.raises(StoreError, match=sentence) as caught:
        open_store(f"{s3}/x").check()
    assert type(caught.value) is StoreError


def test_a_server_that_sends_a_byte_now_and_then_is_given_up(s3: str, monkeypatch: pytest.MonkeyPatch):
    stop = threading.Event()
    monkeypatch.setattr("tasks.store.s3.CONNECT_SECONDS", 0.1)

    def drip(server: socket.socket) -> None:
        connections: list[socket.socket] = []
        server.settimeout(0.1)
        while not stop.is_set():
            with suppress(OSError):
                connections.append(server.accept()[0])
            for connection in connections:
                with suppress(OSError):
                    connection.send(b"H")

    with socket.create_server(("127.0.0.1", 0)) as server:
        dripping = threading.Thread(target=drip, args=(server,))
        dripping.start()
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", f"http://127.0.0.1:{server.getsockname()[1]}")
        store = S3Store("s3://bucket/x", patience=0.0)
        monkeypatch.setattr(store, "read_seconds", (0.2, 0.2))
        began = time.monotonic()
        with pytest.raises(StoreError, match="no whole answer within"):
            store.digest("x")
        assert time.monotonic() - began < 20
        stop.set()
        dripping.join()


@pytest.mark.parametrize("given", ["bytes 0-99/100", "bytes 10-19/100", ""])
def test_a_part_that_was_not_asked_for_is_refused(given: str):
    answer = {"ContentLength": 10, "Body": io.BytesIO(bytes(10)), "ContentRange": given}
    with pytest.raises(StoreError, match="another part, or all"):
        read_body(answer, 1.0, "bytes=0-9")
    with pytest.raises(http.client.HTTPException, match="without Content-Length"):
        read_body({"Body": io.BytesIO(b"")}, 1.0)


def test_a_listing_that_repeats_itself_ends_and_names_of_elsewhere_are_left_out(s3: str, monkeypatch):
    store = open_store(f"{s3}/x")
    monkeypatch.setattr(store, "_page", lambda *_: (["x/a/b"], True))
    with pytest.raises(StoreError, match="does not get beyond 'x/a/b'"):
        list(store.list("a"))
    monkeypatch.setattr(store, "_page", lambda *_: (["x/a/b", "x/other/c"], False))
    assert list(store.list("a")) == ["a/b"]


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("AWS_ENDPOINT_URL_S3", "localhost:8333", "Invalid endpoint"),
        ("AWS_ENDPOINT_URL_S3", "http://[::1", "cannot be used"),
        ("AWS_REGION", "us east/1", "cannot be used"),
        ("AWS_ACCESS_KEY_ID", "key\n", "AWS_ACCESS_KEY_ID holds white space"),
        ("AWS_SESSION_TOKEN", "secret\ntoken", "AWS_SESSION_TOKEN holds white space"),
    ],
)
def test_settings_that_cannot_be_used_are_named_at_once(s3: str, monkeypatch, name: str, value: str, sentence: str):
    monkeypatch.setenv(name, value)
    with pytest.raises(StoreError, match=sentence) as caught:
        open_store(f"{s3}/x")
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("url", ["s3:/bucket/x", "", " ", "s3://bucket/../x"])
def test_an_address_with_a_slip_is_no_folder_here(url: str):
    with pytest.raises(StoreError):
        open_store(url)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_an_empty_one(tmp_path: Path, monkeypatch):
    store, listed = open_store(str(tmp_path / "store")), os.scandir
    store.publish("checkpoints/k/a.json", b"{}")

    def scandir(folder: str) -> object:
        if str(folder).endswith("/k"):  # modes do not stop root
            raise PermissionError(errno.EACCES, "Permission denied", str(folder))
        return listed(folder)

    monkeypatch.setattr(os, "scandir", scandir)
    with pytest.raises(StoreError, match="checkpoints: Permission denied"):
        list(store.list("checkpoints"))
    assert list(store.list("ledger")) == []


def test_what_follows_a_hash_belongs_to_the_prefix(s3: str):
    assert S3Store("s3://bucket/runs#1?x").prefix == "runs#1?x"
