"""Stage 4: documents as uint16 token shards in llm.c's layout, with a document index beside each.

Every document starts with the end-of-text token; documents run across shard edges. The bytes depend on the
documents and the tokenizer alone, not on how many workers encoded them.
"""

import json
import os
import time
from dataclasses import asdict
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from prefect.artifacts import create_markdown_artifact
from tokenizers import Tokenizer

from eval.document_parquet import document_files, read_documents
from eval.reporting.markdown import markdown_table
from model.data.shards import write_shard
from tasks.config import ShardConfig
from tasks.download import SPLITS
from tasks.runtime.stage_events import progress
from tasks.store.context import RunContext
from tasks.store.objects import digest_file
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageError, StageResult, build_or_skip, fetch_outputs, read_json
from tasks.token_bytes import END_OF_TEXT, check_tokenizer, token_bytes, tokenizer_errors
from tasks.tokenizer import load_tokenizer

VERSION = 1
DOCUMENTS_PER_BATCH = 256
MOST_FILES_SHOWN = 40


@stage_task("shard")
def build_shards(
    config: ShardConfig, documents: StageResult, tokenizer: StageResult, context: RunContext
) -> StageResult:
    """Encode both splits. Outputs: train_*.bin/.idx, val_*.bin/.idx, shards.json,
    token_bytes.bin, unigram_entropy_nats.json."""
    inputs = {"documents": documents.digest, "tokenizer": tokenizer.manifest.output("tokenizer.json").sha256}
    stage = Stage(name="shard", version=VERSION, config=asdict(config), inputs=inputs)

    def build(_: Path, out: Path) -> dict[str, Any]:
        tokenizer_file = fetch_outputs(tokenizer, context) / "tokenizer.json"
        return write_shards(config, fetch_outputs(documents, context), tokenizer_file, context.workers, out)

    result = build_or_skip(stage, context, build)
    create_markdown_artifact(key="shards", description="Token shards", markdown=describe(result, context))
    return result


def write_shards(config: ShardConfig, documents: Path, tokenizer_file: Path, workers: int, out: Path) -> dict[str, Any]:
    """Encode every split into shards and describe them in shards.json. Returns the speed as facts."""
    os.environ.setdefault("RAYON_NUM_THREADS", str(workers))  # read once, when the library's pool starts
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    tokenizer = load_tokenizer(tokenizer_file)
    check_tokenizer(tokenizer, str(tokenizer_file))
    table = token_bytes(tokenizer)
    began = time.monotonic()
    writers = {split: _write_split(config, documents, split, tokenizer, table, out) for split in SPLITS}
    seconds = time.monotonic() - began
    np.array([len(text) for text in table], dtype="<u2").tofile(out / "token_bytes.bin")
    description = {
        "vocab_size": tokenizer.get_vocab_size(),
        "eot_token": tokenizer.token_to_id(END_OF_TEXT),
        "tokenizer_sha256": digest_file(tokenizer_file).sha256,
        "splits": {split: writer.counts() for split, writer in writers.items()},
    }
    (out / "shards.json").write_text(json.dumps(description, indent=1, sort_keys=True))
    entropies = {split: writer.unigram_entropy_nats() for split, writer in writers.items()}
    (out / "unigram_entropy_nats.json").write_text(json.dumps(entropies, indent=1, sort_keys=True))
    megabytes = sum(writer.bytes for writer in writers.values()) / 1e6
    return {"megabytes_per_second": round(megabytes / seconds, 3), "encode_seconds": round(seconds, 3)}


def _write_split(
    config: ShardConfig, documents: Path, split: str, tokenizer: Tokenizer, table: list[bytes], out: Path
) -> "_Writer":
    writer = _Writer(out, split, config.tokens_per_shard, tokenizer)
    files = document_files(documents, split)
    total = sum(pq.read_metadata(file).num_rows for file in files)
    rows = read_documents(files)
    while batch := list(islice(rows, DOCUMENTS_PER_BATCH)):
        texts = [text for _, text in batch]
        with tokenizer_errors(f"documents {batch[0][0]} to {batch[-1][0]} cannot be encoded"):
            encodings = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
        for (name, text), encoding in zip(batch, encodings, strict=True):
            ids, content = encoding.ids, text.encode()
            require_same_bytes(name, ids, table, content)
            writer.add(name, np.array(ids, dtype=np.uint16), len(content))
        progress(writer.documents, total, f"{writer.documents:,} of {total:,} documents", f"{split} split")
    writer.close()
    return writer


def require_same_bytes(name: str, ids: list[int], table: list[bytes], content: bytes) -> None:
    """Refuse a document whose tokens do not stand for exactly its bytes; `table` holds the bytes of every id.

    Equal content means equal length, so the bytes of all tokens of a split are the bytes of its text.
    """
    decoded = b"".join(map(table.__getitem__, ids))
    if decoded != content:
        at = next((at for at, (one, two) in enumerate(zip(decoded, content, strict=False)) if one != two), len(decoded))
        raise StageError(
            f"document {name}: its {len(ids):,} tokens stand for {len(decoded):,} bytes, its text has "
            f"{len(content):,}; from byte {at:,} they say {decoded[at : at + 20]!r} instead of "
            f"{content[at : at + 20]!r}: "
            "the tokenizer does not keep every byte"
        )


class _Writer:
    """Fills the shards of one split in document order."""

    def __init__(self, out: Path, split: str, tokens_per_shard: int, tokenizer: Tokenizer) -> None:
        self.out, self.split, self.size = out, split, tokens_per_shard
        self.eot = np.array([tokenizer.token_to_id(END_OF_TEXT)], dtype=np.uint16)
        self.histogram = np.zeros(tokenizer.get_vocab_size(), dtype=np.int64)
        self.shards = self.documents = self.bytes = 0
        self._begin()

    def _begin(self) -> None:
        self.pieces: list[np.ndarray] = []
        self.filled = 0
        self.starts: list[int] = []
        self.ids: list[str] = []

    def add(self, name: str, tokens: np.ndarray, text_bytes: int) -> None:
        self.starts.append(self.filled)
        self.ids.append(name)
        self.documents += 1
        self.bytes += text_bytes
        rest = np.concatenate([self.eot, tokens])
        self.histogram += np.bincount(rest, minlength=len(self.histogram))
        while len(rest):
            piece, rest = rest[: self.size - self.filled], rest[self.size - self.filled :]
            self.pieces.append(piece)
            self.filled += len(piece)
            if self.filled == self.size:
                self._end()

    def close(self) -> None:
        if self.filled:
            self._end()

    def counts(self) -> dict[str, int]:
        return {
            "documents": self.documents,
            "tokens": int(self.histogram.sum()),
            "bytes": self.bytes,
            "shards": self.shards,
        }

    def unigram_entropy_nats(self) -> float:
        """Loss per token of a model that knows how often each token is used and nothing else."""
        shares = self.histogram[self.histogram > 0] / self.histogram.sum()
        return round(float(-(shares * np.log(shares)).sum()), 6)

    def _end(self) -> None:
        write_shard(self.out, self.split, self.shards, np.concatenate(self.pieces), np.array(self.starts), self.ids)
        self.shards += 1
        self._begin()


def describe(result: StageResult, context: RunContext) -> str:
    """The stage's artifact: the table of splits and of files."""
    shards = read_json(result, context, "shards.json")
    entropies = read_json(result, context, "unigram_entropy_nats.json")
    header = ["split", "documents", "tokens", "bytes", "bytes a token", "unigram entropy (nats)"]
    rows = [
        [name, split["documents"], split["tokens"], split["bytes"], split["bytes"] / split["tokens"], entropies[name]]
        for name, split in shards["splits"].items()
    ]
    outputs = result.manifest.outputs
    files = [[output.path, output.bytes, output.sha256[:16]] for output in outputs[:MOST_FILES_SHOWN]]
    more = [f"… and {len(outputs) - MOST_FILES_SHOWN:,} more files"] if len(outputs) > MOST_FILES_SHOWN else []
    facts = result.manifest.provenance
    cores = f"{facts['workers']} core{'s' if facts['workers'] > 1 else ''}"
    speed = f"encoded at {facts['megabytes_per_second']:.1f} MB/s on {cores}"
    return "\n\n".join(
        [
            f"Vocabulary of {shards['vocab_size']:,}; {speed}.",
            markdown_table(header, rows),
            markdown_table(["file", "bytes", "SHA-256 begins"], files),
            *more,
        ]
    )
