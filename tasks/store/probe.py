"""Whether a store can do what runs need of it, asked with an object that is gone afterwards."""

import contextlib
import os
import secrets
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.store.objects import ReadOnlyStoreError, StoreError, digest_file

if TYPE_CHECKING:
    from tasks.store.backends import Store


def probe_store(store: "Store") -> None:
    """Put, publish twice, read back, look up, list and delete. Raises StoreError with a sentence for the first of them
    that fails; ReadOnlyStoreError for a store that exists and refuses to be written."""
    folder = f"probe-{secrets.token_hex(8)}"
    given, once, content = f"{folder}/put", f"{folder}/once", os.urandom(64)
    try:
        with tempfile.TemporaryDirectory(prefix="probe-") as temporary:
            file = Path(temporary) / "file"
            file.write_bytes(content)
            with _required(store, "be written"):
                store.put(given, file, digest := digest_file(file))
        with _required(store, "be written only where nothing is (If-None-Match), which keeps two machines apart"):
            if not store.publish(once, b"first"):
                raise StoreError("refused although nothing was there")
            if store.publish(once, b"second"):
                raise StoreError("the second of two was not refused")
        with _required(store, "be read"):
            if store.read(given) != content or store.read(once) != b"first":
                raise StoreError("what was read is not what was written")
        with _required(store, "say what it holds"):
            if (found := store.digest(given)) != digest:
                raise StoreError(f"of an object of {digest} it said {found}")
        with _required(store, "be listed"):
            if (names := list(store.list(folder))) != [once, given]:
                raise StoreError(f"two objects were written and {len(names)} listed")
        with _required(store, "be deleted from"):
            store.delete(given)
            store.delete(once)
            if store.exists(given):
                raise StoreError("what was deleted is there still")
            store.clear(folder)
    except BaseException:
        store.shorten_patience()
        for key in (given, once):
            with contextlib.suppress(StoreError):
                store.delete(key)
        with contextlib.suppress(StoreError):
            store.clear(folder)
        raise


class _required(contextlib.AbstractContextManager):
    """Says of a failure what was asked of the store."""

    def __init__(self, store: "Store", what: str) -> None:
        self.store, self.what = store, what

    def __exit__(self, kind: type | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, StoreError):
            reason = str(error).removeprefix(self.store.url).lstrip("/:")
            reason = reason.partition(": ")[2] if reason.startswith("probe-") else reason.strip()
            error_type = StoreError
            if isinstance(error, ReadOnlyStoreError) and self.what == "be written":
                error_type = ReadOnlyStoreError
            raise error_type(f"{self.store.url}: cannot {self.what}: {reason}") from error
