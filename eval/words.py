"""Text as words: the one definition that items and documents share.

* NFKC and case folding; everything that is not a letter or digit separates. Words and not tokens, so that a change
  of tokenizer changes no verdict.
* `folding_tables` is the same rule character by character, for the compiled scan (`eval/textscan.py`). Characters
  that act on their neighbours, such as combining accents, are marked there and left to `words`.
"""

import re
import sys
import unicodedata
from functools import cache

import numpy as np

_WORD = re.compile(r"[^\W_]+")
_PIECE = re.compile(r"\S+")
_ASCII = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}
_MOST_MARKS = 30
"""Combining characters kept in a row, the limit of Unicode's stream-safe text (UAX 15). Sorting an unlimited row of
them takes quadratic time, so one hostile document could stop a scan."""
JOINS = -1
"""In `folding_tables`: the character may act on the one before it."""


def normalised(text: str) -> str:
    if len(text) > _MOST_MARKS and not text.isascii() and _has_too_many_marks(text):
        text = _too_many_marks().sub(r"\1", text)
    return unicodedata.normalize("NFKC", text).casefold()


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    if text.isascii():
        return text.translate(_ASCII).split()
    return _WORD.findall(normalised(text))


def located_words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) for every word of `words(text)`: characters of the original text, end exclusive.

    Normalising may change the length of a text, but never across white space, so each piece between white space is
    normalised alone. Where a piece does not normalise character by character its words get the whole piece.
    """
    found = []
    for piece in _PIECE.finditer(text):
        origins, parts = [], []
        for position, character in enumerate(piece.group(), piece.start()):
            part = normalised(character)
            parts.append(part)
            origins += [position] * len(part)
        whole = normalised(piece.group())
        exact = "".join(parts) == whole
        for word in _WORD.finditer(whole):
            if exact:
                found.append((word.group(), origins[word.start()], origins[word.end() - 1] + 1))
            else:
                found.append((word.group(), piece.start(), piece.end()))
    return found


@cache
def _joining() -> frozenset[str]:
    """Characters that normalisation may reorder or join with what stands before them."""
    seconds = {chr(code) for code in (*range(0x1161, 0x1176), *range(0x11A8, 0x11C3))}  # Hangul vowels and finals
    decomposed: dict[str, str] = {}
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        parts = unicodedata.decomposition(character)
        if parts:
            decomposed[character] = unicodedata.normalize("NFKD", character)[0]
            if not parts.startswith("<") and " " in parts:
                seconds.add(chr(int(parts.split()[1], 16)))
        elif unicodedata.combining(character):
            seconds.add(character)
    first_joins = {
        character for character, first in decomposed.items() if first in seconds or unicodedata.combining(first)
    }
    return frozenset(seconds | first_joins)


def _has_too_many_marks(text: str) -> bool:
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), np.uint32)
    others = np.flatnonzero(folding_tables()[0][codes] != JOINS)
    return bool(np.any(np.diff(others, prepend=-1, append=len(codes)) > _MOST_MARKS + 1))


@cache
def _too_many_marks() -> re.Pattern[str]:
    marks = "".join(map(re.escape, sorted(_joining())))
    return re.compile(f"([{marks}]{{{_MOST_MARKS}}})[{marks}]+")


@cache
def folding_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(fold, expansion_first, expansion): what every code point contributes to the words of a text.

    fold[c] is 0 for a separator, a code point for a letter or digit, `JOINS`, or -2 - k for several characters,
    expansion[expansion_first[k] : expansion_first[k + 1]], again 0 or code points.
    """
    fold = np.zeros(sys.maxunicode + 1, np.int32)
    first, expansion = [0], []
    for code in range(sys.maxunicode + 1):
        character = chr(code)
        if 0xD800 <= code <= 0xDFFF:
            continue
        part = unicodedata.normalize("NFKC", character).casefold()
        if part == character:
            fold[code] = code if character.isalnum() else 0
            continue
        codes = [ord(each) if each.isalnum() else 0 for each in part]
        if len(codes) == 1 or not any(codes):
            fold[code] = codes[0]
        else:
            fold[code] = -2 - (len(first) - 1)
            expansion += codes
            first.append(len(expansion))
    fold[[ord(character) for character in _joining()]] = JOINS
    return fold, np.array(first, np.int32), np.array(expansion, np.int32)
