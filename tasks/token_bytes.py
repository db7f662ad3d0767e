"""The bytes of text that each token stands for, and the tokenizers for which these can be proven.

Bits per byte are those of the text only if tokens stand for exactly the bytes of the text, the same ones every time.
A byte-level BPE has this property (Radford et al. 2019): each character of a token's string is one byte. Every other
part of a tokenizer that could change, drop or add text is refused here by its name, and the shard stage compares the
bytes of the tokens of every document with its text.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, pre_tokenizers

from model.errors import DailyTrainError, reason_of, regular_file, shown_value
from model.network.config import MAX_VOCABULARY

# GPT-4's split rule with at most two digits a piece, as nanochat uses for vocabularies of this size.
SPLIT = r"'(?i:[sdmt]|ll|ve|re)|[^\r\n\p{L}\p{N}]?+\p{L}+|\p{N}{1,2}| ?[^\s\p{L}\p{N}]++[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
END_OF_TEXT = "<|endoftext|>"
LONGEST_TOKEN_BYTES = 2**16 - 1
CUTS_ONLY = ("Split", "Digits", "Punctuation")
PROBED = ("a", " ", "1", ".", "\n", "'", "中", "é1", "a ")
PROBED_CHARACTERS, PROBED_SECONDS = (250, 500, 1000, 4000), 0.04
"""A rule whose time grows with the text takes 2 ms for the longest; one that grows with its square takes 60."""
NEVER_IN_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}


class TokenizerError(DailyTrainError):
    """A tokenizer cannot be loaded or does not fit the project's contracts."""


@contextmanager
def tokenizer_errors(what: str) -> Iterator[None]:
    """Failures of the library `tokenizers`, bare Exceptions and panics of Rust, as a TokenizerError about `what`."""
    try:
        yield
    except DailyTrainError:
        raise
    except BaseException as error:
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":
            raise TokenizerError(f"{what}: {reason_of(error)}") from error
        raise


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json from disk."""
    with tokenizer_errors(f"{path}: not a tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(regular_file(path)))
    tokenizer.encode_special_tokens = True  # text that spells a special token stays text: documents are untrusted
    return tokenizer


def _byte_characters() -> dict[str, int]:
    """The byte that each character of a byte-level vocabulary stands for: GPT-2's `bytes_to_unicode`, inverted."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + number): byte for number, byte in enumerate(others)}


BYTE_OF = _byte_characters()


def token_bytes(tokenizer: Tokenizer) -> list[bytes]:
    """The bytes of text that each id stands for; none for special tokens. `check_tokenizer` comes first."""
    decoder = tokenizer.get_added_tokens_decoder()
    added = {number: b"" if token.special else token.content.encode() for number, token in decoder.items()}
    strings = {number: string for string, number in tokenizer.get_vocab().items() if number not in added}
    table = added | {number: bytes(BYTE_OF[character] for character in string) for number, string in strings.items()}
    return [table[number] for number in range(tokenizer.get_vocab_size())]


def check_tokenizer(tokenizer: Tokenizer, name: str) -> None:
    """Refuse, naming the property, what shards, training and bits per byte cannot work with."""
    with tokenizer_errors(f"tokenizer {name}"):
        if reason := next(_reasons(tokenizer), None):
            raise TokenizerError(f"tokenizer {name}: {reason}")


def require_ids_without_holes(tokenizer: Tokenizer, name: str) -> None:
    """Refuse holes in the ids: the library writes a tokenizer by counting to its largest id, which may be 2^32."""
    if reason := next(_holes(tokenizer), None):
        raise TokenizerError(f"tokenizer {name}: {reason}")


def _reasons(tokenizer: Tokenizer) -> Iterator[str]:
    """What breaks a contract, one sentence each; only the first is sure to make sense."""
    if (size := tokenizer.get_vocab_size()) > MAX_VOCABULARY:
        yield f"a vocabulary of {size:,} is over {MAX_VOCABULARY:,}: shards hold tokens as uint16"
    yield from _holes(tokenizer)  # first: the library writes a tokenizer by counting to its largest id
    yield from _parts_that_change_text(json.loads(tokenizer.to_str()))
    yield from _vocabulary(tokenizer)
    yield from _added_tokens(tokenizer)


def _parts_that_change_text(spec: dict[str, Any]) -> Iterator[str]:
    """`spec` is the content of tokenizer.json. A post-processor is never applied: documents get no special tokens."""
    for part in _flat(spec["normalizer"], "normalizers"):
        yield f"its normalizer {part['type']} changes text, so that bits per byte would be those of another text"
    model = spec["model"]
    if model["type"] != "BPE":
        yield f"its model is {model['type']}; only a byte-level BPE is known to lose no bytes"
    if model.get("dropout"):
        yield f"its BPE dropout of {model['dropout']} makes tokens random; set model.dropout to null in tokenizer.json"
    if model.get("byte_fallback"):
        yield "its byte fallback (tokens such as <0x0A>) counts bytes otherwise than a byte-level BPE does"
    for field in ("continuing_subword_prefix", "end_of_word_suffix"):
        if model.get(field):
            yield f"its {field} {model[field]!r} stands in tokens and not in text"
    for field, effect in (("truncation", "cut"), ("padding", "lengthen")):
        if spec[field]:
            yield f"its {field} is on and would {effect} documents; set {field} to null in tokenizer.json"
    *cuts, last = _flat(spec["pre_tokenizer"], "pretokenizers") or [{"type": "missing"}]
    if last["type"] != "ByteLevel":
        yield f"its last pre-tokenizer is {last['type']}; only ByteLevel makes every byte of a text a token"
    if last.get("add_prefix_space"):
        yield "its ByteLevel pre-tokenizer has add_prefix_space, which adds a space to documents"
    for part in cuts:
        if part["type"] not in CUTS_ONLY:
            known = ", ".join(CUTS_ONLY)
            yield f"its pre-tokenizer {part['type']} may drop or change characters; known to only cut are {known}"
        elif part.get("behavior") == "Removed":
            yield f"its pre-tokenizer {part['type']} has behavior Removed, which drops characters"
    yield from _slow_rules([part["pattern"]["Regex"] for part in cuts if "Regex" in part.get("pattern", {})])
    decoder = [part["type"] for part in _flat(spec["decoder"], "decoders")]
    if decoder != ["ByteLevel"]:
        yield f"its decoder is {' and '.join(decoder) or 'missing'}; only ByteLevel is the inverse of its pre-tokenizer"


def _slow_rules(patterns: list[str]) -> Iterator[str]:
    """Regular expressions whose time grows faster than the text. On a long unbroken document one that grows with the
    square never ends, and one that grows faster is given up by the library in the middle of the text."""
    for pattern in patterns:
        if pattern == SPLIT:
            continue
        rule = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        for size in PROBED_CHARACTERS:
            for unit, end in product(PROBED, ("", "!", "a")):
                try:
                    with tokenizer_errors(f"its rule {shown_value(pattern)} gives up on {size} times {unit!r}"):
                        taken = _seconds(rule, unit * size + end)
                        slow = taken > PROBED_SECONDS and taken > 8 * _seconds(rule, unit * (size // 4) + end)
                except TokenizerError as error:
                    yield str(error)
                    return
                if slow:
                    yield (
                        f"its rule {shown_value(pattern)} takes {taken:.2f} s to cut {size} times {unit!r}: its "
                        "time grows faster than the text, and a long document would never end"
                    )


def _seconds(rule: pre_tokenizers.PreTokenizer, text: str) -> float:
    """CPU time to cut a text: the shortest of three tries, since other work on the machine makes some longer."""
    tries: list[float] = []
    while len(tries) < 3 and min(tries, default=1.0) > PROBED_SECONDS:
        began = time.thread_time()
        rule.pre_tokenize_str(text)
        tries.append(time.thread_time() - began)
    return min(tries)


def _flat(part: dict[str, Any] | None, inner: str) -> list[dict[str, Any]]:
    """The parts of a sequence of sequences, in order."""
    if part is None:
        return []
    return [leaf for child in part[inner] for leaf in _flat(child, inner)] if part["type"] == "Sequence" else [part]


def _holes(tokenizer: Tokenizer) -> Iterator[str]:
    numbers, size = set(tokenizer.get_vocab().values()), tokenizer.get_vocab_size()
    if numbers and max(numbers) >= size and (holes := set(range(size)) - numbers):
        yield f"its ids have holes: of {size:,} tokens the largest id is {max(numbers):,}, and no token is {min(holes)}"


def _vocabulary(tokenizer: Tokenizer) -> Iterator[str]:
    vocabulary = tokenizer.get_vocab()
    strings: dict[int, str] = {}
    for string, number in sorted(vocabulary.items(), key=lambda entry: entry[1]):
        if number in strings:
            yield f"its id {number} stands for both {strings[number]!r} and {string!r}"
        strings[number] = string
    added = {token.content for token in tokenizer.get_added_tokens_decoder().values()}
    for string in tokenizer.get_vocab(with_added_tokens=False):
        if string not in added and not BYTE_OF.keys() >= set(string):
            yield f"its token {string!r} has characters that stand for no byte in a byte-level vocabulary"
    absent = {byte for character, byte in BYTE_OF.items() if character not in vocabulary} - NEVER_IN_UTF8
    if absent:
        yield f"its vocabulary lacks {len(absent)} of the bytes of UTF-8 text, such as {min(absent):#04x}"
    longest = max(vocabulary, key=len)
    if len(longest.encode()) > LONGEST_TOKEN_BYTES:
        yield f"its token {longest[:20]!r}… is longer than {LONGEST_TOKEN_BYTES:,} bytes"


def _added_tokens(tokenizer: Tokenizer) -> Iterator[str]:
    """Added tokens are found in a text as they are written; special ones are never looked for in documents."""
    added = tokenizer.get_added_tokens_decoder()
    if END_OF_TEXT not in tokenizer.get_vocab():
        yield f"there is no {END_OF_TEXT} token to start documents with"
    if END_OF_TEXT not in (token.content for token in added.values() if token.special):
        yield f"{END_OF_TEXT} is not a special token, so that a document that contains it would end there"
    for number, token in added.items():
        content, subject = token.content, f"its added token {token.content!r}"
        if token.special:
            if number in tokenizer.encode(content, add_special_tokens=False).ids:
                yield f"its special token {content!r} is also made from text that contains it"
            continue
        for side in ("lstrip", "rstrip"):
            if getattr(token, side):
                yield f"{subject} has {side}, which takes white space that it does not stand for"
        if tokenizer.decode([number], skip_special_tokens=False) != content:
            yield f"{subject} decodes to {tokenizer.decode([number], skip_special_tokens=False)!r}"
