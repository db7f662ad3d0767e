"""Bits per byte: a tokenizer stands for every byte of every document, or is refused by the property that it breaks."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from eval.document_parquet import SCHEMA
from model.data.shards import ShardSet, read_dataset
from tasks import shard, tokenizer
from tasks.config import ShardConfig, TokenizerConfig, TokenizerKind
from tasks.shard import write_shards
from tasks.store.backends import LocalStore
from tasks.store.context import RunContext
from tasks.store.manifest import StageError
from tasks.token_bytes import TokenizerError, check_tokenizer
from tasks.tokenizer import build_tokenizer, load_tokenizer, train_bpe

TEXTS = [f"Fellow citizens, speech {number}: the Union — naïve 日本 🚂.\n\n" for number in range(20)]
HOSTILE = [
    "  <x> world   \n\n<x>x</x>\r\n\t ",
    "<|endoftext|>",
    "a<|endoftext|>b <pad>",
    "e\u0301 é ﬁ Å 日本",
    "A" * 3000,
    "\0\x01\x7f\u3000\u200b\ufeff\u2028 x",
    "\U0010ffff🚂🇩🇪\u0301",
    "'s 123 456,78!!! Ġ Ġthe <0x0A> ▁the ##s",
]
BYTE_LEVEL = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True}
Edit = Callable[[dict[str, Any]], object]


def field(name: str, value: object) -> Edit:
    return lambda spec: spec.update({name: value})


def model(name: str, value: object) -> Edit:
    return lambda spec: spec["model"].update({name: value})


def cuts(*parts: dict[str, Any]) -> Edit:
    return field("pre_tokenizer", {"type": "Sequence", "pretokenizers": [*parts, BYTE_LEVEL]})


def split(behavior: str) -> dict[str, Any]:
    return {"type": "Split", "pattern": {"Regex": r"\s+"}, "behavior": behavior, "invert": False}


def added(content: str, number: int = 280, **properties: bool) -> Edit:
    token = {"single_word": False, "lstrip": False, "rstrip": False, "normalized": False, "special": False}
    return lambda spec: spec["added_tokens"].append({"id": number, "content": content, **token, **properties})


def end_of_text(**properties: bool) -> Edit:
    return lambda spec: spec["added_tokens"][0].update(properties)


def vocabulary(change: Callable[[dict[str, int]], object]) -> Edit:
    return lambda spec: change(spec["model"]["vocab"])


def move_last(number: int) -> Edit:
    return vocabulary(lambda entries: entries.update({max(entries, key=entries.__getitem__): number}))


TRUNCATION = {"direction": "Right", "max_length": 3, "strategy": "LongestFirst", "stride": 0}
PADDING = {
    "strategy": {"Fixed": 10},
    "direction": "Right",
    "pad_to_multiple_of": None,
    "pad_id": 0,
    "pad_type_id": 0,
    "pad_token": "[PAD]",
}
BOS = {
    "type": "TemplateProcessing",
    "single": [{"SpecialToken": {"id": "<|endoftext|>", "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}],
    "pair": [{"Sequence": {"id": "A", "type_id": 0}}, {"Sequence": {"id": "B", "type_id": 1}}],
    "special_tokens": {"<|endoftext|>": {"id": "<|endoftext|>", "ids": [0], "tokens": ["<|endoftext|>"]}},
}
ACCEPTED: dict[str, list[Edit]] = {
    "a trained one": [],
    "ignore_merges, as Llama 3": [model("ignore_merges", True)],
    "an unknown token that never occurs": [model("unk_token", "<|endoftext|>")],
    "a dropout of 0": [model("dropout", 0.0)],
    "cuts that keep every character": [cuts(split("MergedWithNext"), {"type": "Digits", "individual_digits": True})],
    "a post-processor that adds special tokens": [field("post_processor", BOS)],
    "added tokens, one not in ASCII": [added("日本"), added("<x>", 281, normalized=True), added("   ", 282)],
    "an added token that is in the vocabulary": [added("w", 86)],
    "a special token in a document": [added("<pad>", special=True, lstrip=True), end_of_text(lstrip=True)],
}
REFUSED: dict[str, tuple[list[Edit], str]] = {
    "NFC": ([field("normalizer", {"type": "NFC"})], "its normalizer NFC changes text"),
    "a normalizer in a sequence": (
        [field("normalizer", {"type": "Sequence", "normalizers": [{"type": "Lowercase"}]})],
        "normalizer Lowercase",
    ),
    "prepend": ([field("normalizer", {"type": "Prepend", "prepend": "▁"})], "normalizer Prepend"),
    "dropout": ([model("dropout", 0.1)], "BPE dropout of 0.1 makes tokens random"),
    "byte fallback": ([model("byte_fallback", True)], "byte fallback"),
    "suffix": ([model("end_of_word_suffix", "</w>")], "end_of_word_suffix '</w>'"),
    "another model": (
        [field("model", {"type": "Unigram", "unk_id": 0, "vocab": [["<|endoftext|>", 0.0], ["a", -1.0]]})],
        "its model is Unigram",
    ),
    "holes": ([move_last(329)], "ids have holes: of 280 tokens the largest id is 329, and no token is 279"),
    "ids over uint16": ([move_last(70_000)], "ids have holes: of 280 tokens the largest id is 70,000"),
    "an id twice": ([move_last(5)], "id 5 stands for both"),
    "truncation": ([field("truncation", TRUNCATION)], "truncation is on and would cut documents"),
    "padding": ([field("padding", PADDING)], "padding is on and would lengthen documents"),
    "prefix space": ([field("pre_tokenizer", BYTE_LEVEL | {"add_prefix_space": True})], "add_prefix_space"),
    "metaspace": (
        [cuts({"type": "Metaspace", "replacement": "▁", "prepend_scheme": "always", "split": True})],
        "Metaspace may",
    ),
    "white space": ([cuts({"type": "WhitespaceSplit"})], "WhitespaceSplit may drop or change characters"),
    "removed": ([cuts(split("Removed"))], "Split has behavior Removed"),
    "no bytes": ([field("pre_tokenizer", split("Isolated"))], "last pre-tokenizer is Split; only ByteLevel"),
    "no decoder": ([field("decoder", None)], "decoder is missing"),
    "a decoder that strips": (
        [
            field(
                "decoder",
                {
                    "type": "Sequence",
                    "decoders": [BYTE_LEVEL, {"type": "Strip", "content": " ", "start": 1, "stop": 0}],
                },
            )
        ],
        "decoder is ByteLevel and Strip",
    ),
    "lstrip": ([added("<x>", lstrip=True)], "added token '<x>' has lstrip"),
    "rstrip": ([added("<x>", rstrip=True)], "added token '<x>' has rstrip"),
    "ambiguous": ([added("Ġ", 221)], "added token 'Ġ' decodes to ' '"),
    "longer than uint16": ([added("x" * 65_536)], "token 'xxxxxxxxxxxxxxxxxxxx'… is longer than 65,535 bytes"),
    "special from text": ([added("a", 65, special=True)], "special token 'a' is also made from text"),
    "end of text from text": (
        [model("ignore_merges", True), field("pre_tokenizer", BYTE_LEVEL | {"use_regex": False})],
        r"special token '<\|endoftext\|>' is also made from text",
    ),
    "a byte lacks": (
        [vocabulary(lambda v: v.update({"!!!!": v.pop("!")}))],
        "lacks 1 of the bytes of UTF-8 text, such as 0x21",
    ),
    "no byte": ([vocabulary(lambda v: v.update({"▁the": 280}))], "token '▁the' has characters that stand for no byte"),
    "end of text is plain": ([end_of_text(special=False)], r"<\|endoftext\|> is not a special token"),
    "no end of text": (
        [field("added_tokens", []), vocabulary(lambda v: v.update({"eot": v.pop("<|endoftext|>")}))],
        r"there is no <\|endoftext\|> token",
    ),
}


@pytest.fixture(scope="module")
def trained() -> str:
    return train_bpe(iter(TEXTS), 280, 1).to_str()


def edited(trained: str, edits: list[Edit], folder: Path) -> Path:
    spec = json.loads(trained)
    for edit in edits:
        edit(spec)
    path = folder / "tokenizer.json"
    path.write_text(json.dumps(spec))
    return path


def encode(tokenizer: Path, texts: list[str], folder: Path) -> Path:
    """Shards of the texts, which are both splits."""
    out = folder / "shards"
    out.mkdir()
    rows = {"id": [str(number) for number in range(len(texts))], "text": texts, "source": ["x"] * len(texts)}
    for name in ("train", "val"):
        pq.write_table(pa.table(rows, schema=SCHEMA), folder / f"{name}_000000.parquet")
    write_shards(ShardConfig(tokens_per_shard=1024), folder, tokenizer, 1, out)
    return out


@pytest.mark.parametrize("edits", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_bytes_of_tokens_are_the_bytes_of_the_text(trained: str, edits: list[Edit], tmp_path: Path):
    out = encode(edited(trained, edits, tmp_path), [*TEXTS, *HOSTILE], tmp_path)
    dataset, expected = read_dataset(out), sum(len(text.encode()) for text in [*TEXTS, *HOSTILE])
    for name in ("train", "val"):
        tokens = ShardSet(out, name, dataset)
        stream = tokens.slice(0, tokens.tokens)
        assert dataset.token_bytes is not None
        assert int(dataset.token_bytes[stream].sum()) == dataset.splits[name].bytes == expected
        assert np.count_nonzero(stream == dataset.eot_token) == len(TEXTS) + len(HOSTILE)


@pytest.mark.parametrize(("edits", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_what_cannot_be_proven_is_refused_by_its_property(
    trained: str, edits: list[Edit], message: str, tmp_path: Path
):
    made = load_tokenizer(edited(trained, edits, tmp_path))
    with pytest.raises(TokenizerError, match=message) as caught:
        check_tokenizer(made, "it")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("normalizer", "last"), [("NFC", "e\u0301"), ("Lowercase", "UNION")])
def test_every_document_is_compared_with_its_tokens(
    trained: str, normalizer: str, last: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The last of many documents, and tokens of as many bytes as the text has."""
    tokenizer = edited(trained, [field("normalizer", {"type": normalizer})], tmp_path)
    texts = [*(text.lower() for text in TEXTS * 20), last]
    with pytest.raises(TokenizerError, match=rf"tokenizer\.json: its normalizer {normalizer}"):
        encode(tokenizer, texts, tmp_path)
    (tmp_path / "shards").rmdir()
    monkeypatch.setattr(shard, "check_tokenizer", lambda made, name: None)
    with pytest.raises(StageError, match=r"document 400: its \d tokens stand for"):
        encode(tokenizer, texts, tmp_path)


def test_a_finished_stage_of_an_earlier_release_is_checked_too(
    trained: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(tokenizer, "create_markdown_artifact", lambda **_: None)
    path = edited(trained, [model("dropout", 0.5)], tmp_path)
    config = TokenizerConfig(kind=TokenizerKind.FILE, path=str(path))
    context = RunContext(store=LocalStore(str(tmp_path / "store")), cache=tmp_path / "cache", workers=1)
    no_corpus: Any = None  # a tokenizer in a file is made of none
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: its BPE dropout of 0\.5"):
        build_tokenizer.fn(config, no_corpus, context)
    assert not list(tmp_path.glob("store/stages/*/*/manifest.json"))
    with monkeypatch.context() as earlier:
        earlier.setattr(tokenizer, "check_tokenizer", lambda made, name: None)
        build_tokenizer.fn(config, no_corpus, context)
    assert list(tmp_path.glob("store/stages/*/*/manifest.json"))
    with pytest.raises(TokenizerError, match=r"tokenizer\.json: its BPE dropout of 0\.5"):
        build_tokenizer.fn(config, no_corpus, context)
