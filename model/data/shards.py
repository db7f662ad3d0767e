"""Token shards: how they are written, checked and read as one stream.

`NAME_NNNNNN.bin` has the layout of llm.c: 256 little-endian int32 (magic 20240520, version 1, token
count, zeros), then the tokens as little-endian uint16. `NAME_NNNNNN.idx` lists the documents that
begin in the shard: 256 little-endian int32 (magic 20241120, version 1, n, zeros), n uint64 start
positions, n + 1 uint64 offsets into the blob of ids, the blob of UTF-8 ids. Every document starts
with the end-of-text token, and may run on into the next shard. `shards.json` and `token_bytes.bin`
say what the whole directory holds.

A shard that is damaged, foreign or missing raises a ShardError that names the file and the value:
data read through a wrong header trains silently on noise.
"""

import json
import os
import re
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from model.errors import DailyTrainError, reason_of, regular_file, shown_value
from model.network.config import MAX_VOCABULARY

HEADER_INTS, HEADER_BYTES = 256, 1024
TOKENS_MAGIC, INDEX_MAGIC, VERSION = 20240520, 20241120, 1
FOREIGN_MAGICS = {20240801: "uint32 tokens of llm.c's Llama-3 format", 20240522: "llm.c's HellaSwag file"}
TOKEN = np.dtype("<u2")
CHECKED_TOKENS = 2**24
OFFSET = np.dtype("<u8")


class ShardError(DailyTrainError, ValueError):
    """A file of token shards is missing, damaged or of another format; the message names it."""


@dataclass(frozen=True, kw_only=True)
class Split:
    """What `shards.json` says about one split."""

    documents: int | None
    """Documents that begin in the split; null: not counted."""
    tokens: int
    """Tokens over all its shards."""
    bytes: int | None
    """UTF-8 bytes of its documents; null: not known."""
    shards: int
    """Number of its shards."""


@dataclass(frozen=True)
class Dataset:
    """A directory of shards: one tokenizer, several splits."""

    vocab_size: int
    """Token ids are below this."""
    eot_token: int
    """Every document starts with it."""
    tokenizer_sha256: str | None
    """Digest of the tokenizer that made the shards; null: not known."""
    splits: dict[str, Split]
    """By name; train and val."""
    token_bytes: np.ndarray | None
    """UTF-8 bytes that each token id stands for (uint16); 0 for special tokens; null: not known."""


@dataclass(frozen=True)
class ShardIndex:
    """The documents that begin in one shard."""

    starts: np.ndarray
    """Token position of each document in its shard (uint64, increasing)."""
    id_offsets: np.ndarray
    """Where each id begins in the blob, and where the last one ends (uint64)."""
    blob: bytes
    """All ids, UTF-8, without separators."""

    def __len__(self) -> int:
        return len(self.starts)

    def document_id(self, document: int) -> str:
        begin, end = int(self.id_offsets[document]), int(self.id_offsets[document + 1])
        return self.blob[begin:end].decode()


def _header(magic: int, count: int) -> bytes:
    values = np.zeros(HEADER_INTS, dtype="<i4")
    values[:3] = magic, VERSION, count
    return values.tobytes()


def _publish(path: Path, *parts: bytes | memoryview) -> None:
    """Write beside and rename, so that a reader never meets half a file."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        with open(temporary, "wb") as file:
            for part in parts:
                file.write(part)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_shard(
    directory: Path, name: str, number: int, tokens: np.ndarray, starts: np.ndarray, ids: list[str]
) -> Path:
    """Write NAME_NNNNNN.bin and .idx; `starts` are positions in `tokens` where documents begin."""
    path = Path(directory) / f"{name}_{number:06d}.bin"
    starts = np.asarray(starts, dtype=OFFSET)
    if tokens.dtype != np.uint16 or tokens.ndim != 1 or len(tokens) >= 2**31:
        raise ShardError(
            f"{path.name}: tokens must be one row of less than 2^31 uint16, "
            f"they are {tokens.dtype} of shape {tokens.shape}"
        )
    if len(starts) != len(ids):
        raise ShardError(f"{path.name}: {len(starts)} document starts, but {len(ids)} ids")
    _check_starts(path, starts, len(tokens))
    if len(first_tokens := np.unique(tokens[starts])) > 1:
        raise ShardError(f"{path.name}: documents start with different tokens: {first_tokens[:5].tolist()}")
    encoded = [document_id.encode() for document_id in ids]
    id_offsets = np.cumsum([0, *map(len, encoded)], dtype=OFFSET)
    path.parent.mkdir(parents=True, exist_ok=True)
    _publish(
        path.with_suffix(".idx"),
        _header(INDEX_MAGIC, len(ids)),
        starts.tobytes(),
        id_offsets.tobytes(),
        b"".join(encoded),
    )
    _publish(path, _header(TOKENS_MAGIC, len(tokens)), np.ascontiguousarray(tokens, dtype=TOKEN).data)
    return path


def _read_header(path: Path, magic: int) -> int:
    """Check magic and version, and return the count."""
    try:
        with open(regular_file(path), "rb") as file:
            data = file.read(HEADER_BYTES)
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) < HEADER_BYTES:
        raise ShardError(f"{path}: has {len(data)} bytes, a header alone has {HEADER_BYTES}")
    found_magic, version, count = np.frombuffer(data, dtype="<i4", count=3).tolist()
    if found_magic != magic:
        format_name = f" ({FOREIGN_MAGICS[found_magic]})" if found_magic in FOREIGN_MAGICS else ""
        raise ShardError(f"{path}: magic number is {found_magic}{format_name}, expected {magic}")
    if version != VERSION:
        raise ShardError(f"{path}: version is {version}, expected {VERSION}")
    if count < 0:
        raise ShardError(f"{path}: header counts {count}, expected at least 0")
    return count


def _check_starts(path: Path, starts: np.ndarray, tokens: int) -> None:
    if len(starts) and (np.any(starts[1:] <= starts[:-1]) or starts[-1] >= tokens):
        raise ShardError(f"{path}: document starts must increase and end below {tokens}, the last is {starts[-1]}")


def _check_size(path: Path, expected: int, reason: str) -> None:
    try:
        size = regular_file(path).stat().st_size
    except OSError as error:
        raise ShardError(f"{path}: cannot be read: {error.strerror}") from None
    if size != expected:
        raise ShardError(f"{path}: has {size} bytes, expected {expected} for {reason}")


def read_tokens(path: Path) -> np.memmap:
    """The tokens of one .bin file, memory-mapped after its header and size were checked."""
    path = Path(path)
    count = _read_header(path, TOKENS_MAGIC)
    _check_size(path, HEADER_BYTES + TOKEN.itemsize * count, f"{count} tokens")
    if count == 0:
        raise ShardError(f"{path}: has 0 tokens, expected at least 1")
    return np.memmap(path, dtype=TOKEN, mode="r", offset=HEADER_BYTES, shape=(count,))


def read_index(path: Path) -> ShardIndex:
    """The documents of one .idx file, checked against the .bin beside it."""
    path = Path(path)
    count = _read_header(path, INDEX_MAGIC)
    data = path.read_bytes()[HEADER_BYTES:]
    fixed = OFFSET.itemsize * (2 * count + 1)
    if len(data) < fixed:
        raise ShardError(
            f"{path}: has {HEADER_BYTES + len(data)} bytes, expected at least "
            f"{HEADER_BYTES + fixed} for {count} documents"
        )
    starts, id_offsets = np.split(np.frombuffer(data, dtype=OFFSET, count=2 * count + 1), [count])
    if id_offsets[0] != 0 or np.any(id_offsets[1:] < id_offsets[:-1]):
        raise ShardError(f"{path}: the offsets of the ids must start at 0 and not fall")
    _check_size(path, HEADER_BYTES + fixed + int(id_offsets[-1]), f"{count} documents and their ids")
    _check_starts(path, starts, _read_header(path.with_suffix(".bin"), TOKENS_MAGIC))
    return ShardIndex(starts, id_offsets, data[fixed:])


def write_dataset(directory: Path, dataset: Dataset) -> None:
    """Write token_bytes.bin and shards.json, which make the shards of a directory readable."""
    record = {
        "vocab_size": dataset.vocab_size,
        "eot_token": dataset.eot_token,
        "tokenizer_sha256": dataset.tokenizer_sha256,
        "splits": {name: asdict(split) for name, split in dataset.splits.items()},
    }
    if dataset.token_bytes is None:
        raise ShardError(f"{directory}: the bytes of its tokens are not known (expected in token_bytes.bin)")
    _publish(Path(directory) / "token_bytes.bin", dataset.token_bytes.astype(TOKEN).tobytes())
    _publish(Path(directory) / "shards.json", (json.dumps(record, indent=2) + "\n").encode())


def read_dataset(directory: Path, vocab_size: int | None = None, eot_token: int | None = None) -> Dataset:
    """What the directory holds; checks everything but the shards themselves.

    A directory of llm.c's or modded-nanogpt's has no shards.json: there, vocabulary and end-of-text token must be
    given. token_bytes.bin is read if it is there.
    """
    path = Path(directory) / "shards.json"
    if vocab_size is not None and eot_token is not None and path.parent.is_dir() and not path.exists():
        return _undescribed_dataset(path.parent, vocab_size, eot_token)
    try:
        record = json.loads(regular_file(path).read_text())
        dataset = {key: record[key] for key in ("vocab_size", "eot_token", "tokenizer_sha256")}
        splits = {name: Split(**values) for name, values in record["splits"].items()}
        _require_counts(dataset, splits)
    except OSError as error:
        raise ShardError(
            f"{path}: cannot be read: {error.strerror}; for shards of llm.c, which have none, give "
            f"model.vocab_size and model.eot_token (GPT-2: 50257 and 50256)"
        ) from None
    except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
        reason = f"{type(error).__name__}: {reason_of(error)}"
        raise ShardError(f"{path}: is not a description of shards: {reason}") from None
    vocab_size, eot_token = dataset["vocab_size"], dataset["eot_token"]
    if vocab_size > MAX_VOCABULARY:
        raise ShardError(f"{path}: vocab_size is {vocab_size}, at most {MAX_VOCABULARY} tokens fit uint16")
    if not 0 <= eot_token < vocab_size:
        raise ShardError(f"{path}: eot_token is {eot_token}, expected below vocab_size {vocab_size}")
    return Dataset(**dataset, splits=splits, token_bytes=_read_token_bytes(path.parent, vocab_size))


def _require_counts(dataset: dict, splits: dict[str, Split]) -> None:
    """Raise ValueError for a number that is none."""
    counts = {name: dataset[name] for name in ("vocab_size", "eot_token")}
    for name, split in splits.items():
        counts |= {
            f"{name}.{field}": value
            for field, value in asdict(split).items()
            if value is not None or field in ("tokens", "shards")
        }
    for name, value in counts.items():
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value < 2**63:
            raise ValueError(f"{name} is {shown_value(value)}, expected a whole number of at least 0")


def _read_token_bytes(directory: Path, vocab_size: int) -> np.ndarray:
    path = directory / "token_bytes.bin"
    _check_size(path, TOKEN.itemsize * vocab_size, f"a vocabulary of {vocab_size}")
    return np.fromfile(path, dtype=TOKEN)


def _undescribed_dataset(directory: Path, vocab_size: int, eot_token: int) -> Dataset:
    """The same from the shards alone, which know no more than how many tokens they have."""
    splits = {}
    for split in ("train", "val"):
        paths = _shard_files(directory, split)
        tokens = sum(len(read_tokens(path)) for path in paths)
        splits[split] = Split(documents=None, tokens=tokens, bytes=None, shards=len(paths))
    known = (directory / "token_bytes.bin").exists()
    return Dataset(vocab_size, eot_token, None, splits, _read_token_bytes(directory, vocab_size) if known else None)


def _shard_files(directory: Path, split: str) -> list[Path]:
    """The split's files in order; their names may carry a prefix, as in fineweb_train_000001."""
    pattern = re.compile(rf"((?:.+_)?{re.escape(split)})_(\d{{6}})\.bin")
    shards = {
        (match[1], int(match[2])): path
        for path in sorted(directory.iterdir())
        if (match := pattern.fullmatch(path.name))
    }
    if not shards:
        raise ShardError(f"{directory}: has no shard of split {split!r}")
    if len(names := sorted({name for name, _ in shards})) > 1:
        raise ShardError(f"{directory}: split {split!r} has shards of several names: {names}")
    first = min(number for _, number in shards)
    for number in range(first, first + len(shards)):
        if (names[0], number) not in shards:
            raise ShardError(f"{directory / f'{names[0]}_{number:06d}.bin'}: is missing, later shards are there")
    return list(shards.values())


class ShardSet:
    """All shards of one split as one stream of tokens."""

    def __init__(self, directory: Path, split: str, dataset: Dataset | None = None) -> None:
        """`dataset`: what the directory holds; null reads its shards.json."""
        directory = Path(directory)
        dataset = dataset or read_dataset(directory)
        if split not in dataset.splits:
            raise ShardError(
                f"{directory / 'shards.json'}: has no split {split!r}, only {', '.join(sorted(dataset.splits))}"
            )
        expected = dataset.splits[split]
        self.directory, self.split = directory, split
        self.vocab_size, self.eot_token = dataset.vocab_size, dataset.eot_token
        self.paths = _shard_files(directory, split)
        if len(self.paths) != expected.shards:
            raise ShardError(
                f"{directory}: has {len(self.paths)} shards of split {split!r}, shards.json says {expected.shards}"
            )
        self.bytes = expected.bytes
        self._shards = [read_tokens(path) for path in self.paths]
        self._ends = np.cumsum([len(shard) for shard in self._shards])
        self.tokens = int(self._ends[-1])
        if self.tokens != expected.tokens:
            raise ShardError(
                f"{directory}: split {split!r} has {self.tokens} tokens, shards.json says {expected.tokens}"
            )

    def document_starts(self) -> np.ndarray:
        """Where documents begin in the stream (int64): from the .idx files, or, where a shard has none, from its
        end-of-text tokens."""
        starts = []
        for path, shard, end in zip(self.paths, self._shards, self._ends.tolist()):
            index = path.with_suffix(".idx")
            in_shard = read_index(index).starts if index.exists() else np.flatnonzero(shard == self.eot_token)
            starts.append(in_shard.astype(np.int64) + end - len(shard))
        return np.concatenate(starts)

    def check_bytes(self, token_bytes: np.ndarray) -> None:
        """Refuse bytes of tokens that do not add up to the bytes of the split's text: bits per byte would be wrong.

        Shards of llm.c do not say how many bytes their text has, and are not checked.
        """
        if self.bytes is None:
            return
        parts = range(0, self.tokens, CHECKED_TOKENS)
        total = sum(
            int(token_bytes[self.slice(start, min(start + CHECKED_TOKENS, self.tokens))].sum(dtype=np.int64))
            for start in parts
        )
        if total != self.bytes:
            raise ShardError(
                f"{self.directory}: by token_bytes.bin the tokens of split {self.split!r} stand for "
                f"{total} bytes, by shards.json its text has {self.bytes}: bits per byte would be wrong"
            )

    def slice(self, start: int, stop: int) -> np.ndarray:
        """Tokens [start, stop) of the stream, copied (uint16), across the edges of shards."""
        if not 0 <= start <= stop <= self.tokens:
            raise ShardError(
                f"{self.directory}: split {self.split!r} has {self.tokens} tokens, [{start}, {stop}) is outside"
            )
        result = np.empty(stop - start, dtype=np.uint16)
        shard = int(np.searchsorted(self._ends, start, side="right"))
        filled = 0
        while filled < len(result):
            tokens, path = self._shards[shard], self.paths[shard]
            # touching a mapped page beyond the end of a file kills the process: look first
            _check_size(path, HEADER_BYTES + TOKEN.itemsize * len(tokens), f"{len(tokens)} tokens")
            begin = start + filled - int(self._ends[shard] - len(tokens))
            part = tokens[begin : begin + len(result) - filled]
            if len(part) and int(part.max()) >= self.vocab_size:
                raise ShardError(
                    f"{path}: has token {part.max()} after position {begin}, expected tokens "
                    f"below vocab_size {self.vocab_size}"
                )
            result[filled : filled + len(part)] = part
            filled, shard = filled + len(part), shard + 1
        return result
