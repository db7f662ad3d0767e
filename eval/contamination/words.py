"""Text as words: the one definition that items and documents share.

* Every character stands for itself, whatever is beside it: its compatibility decomposition (NFKD) without marks, case
  folded. So accents, full-width letters, ligatures and mathematical alphabets change no word, and neither does the
  form in which an accent is written.
* Characters that a reader cannot see are dropped: Unicode's Default_Ignorable_Code_Point (soft hyphen, zero-width
  characters, variation selectors, byte order mark, word joiner, bidirectional marks) and other format characters.
* A letter that looks like a Latin one is that Latin letter (`_LOOKALIKES`).
* Everything else that is not a letter or digit separates. Words and not tokens, so that a change of tokenizer changes
  no verdict.

`folding_tables` is the same rule for the compiled scan (`eval/contamination/ngram_scan.py`).
"""

import sys
import unicodedata
from functools import cache

import numpy as np

_IGNORABLE = frozenset(
    map(
        chr,
        (
            *(0x115F, 0x1160, 0x2065, 0x3164, 0xFFA0),
            *range(0xFFF0, 0xFFF9),
            *range(0xE0000, 0xE1000),
        ),
    )
)
"""Default_Ignorable_Code_Point (Unicode 16, DerivedCoreProperties.txt) as far as it is neither a mark nor a format
character: fillers of Hangul, and code points that are kept free."""
_UNSEEN = frozenset(("Mn", "Mc", "Me", "Cf"))
"""Categories of marks and format characters."""
_UNASSIGNED = frozenset(("Cn", "Co", "Cs"))
_APOSTROPHES = frozenset(map(chr, (*range(0x2B9, 0x2C0), *range(0x2C6, 0x2D0), 0x2EE, 0xA78B, 0xA78C)))
"""Letters by their category that are written as apostrophes, quotes and accents: they separate, as those do."""
_LOOKALIKES = str.maketrans(
    "авекмнорстухіјѕһԁԛԝԍӏ" + "αβεηικνορτυχϲϳ" + "ıɑɡɩ" + "ᴀʙᴄᴅᴇꜰɢʜɪᴊᴋʟᴍɴᴏᴘʀꜱᴛᴜᴠᴡʏᴢ",
    "abekmhopctyxijshdqwgl" + "abenikvoptuxcj" + "iagi" + "abcdefghijklmnoprstuvwyz",
)
"""Lower-case letters of Cyrillic, Greek, phonetic notation and small capitals that look like a Latin letter, some of
them as capitals only."""


def _folded(character: str) -> str:
    """What one character contributes to the words of a text: letters and digits, with a space for what separates."""
    if unicodedata.category(character) in _UNASSIGNED and character not in _IGNORABLE:
        return " "
    parts = unicodedata.normalize("NFKD", character)
    seen = "".join(part for part in parts if unicodedata.category(part) not in _UNSEEN and part not in _IGNORABLE)
    folded = seen.casefold().translate(_LOOKALIKES)
    return "".join(part if part.isalnum() and part not in _APOSTROPHES else " " for part in folded)


class _Folding(dict[int, str]):
    """`_folded` by code point, for str.translate."""

    def __missing__(self, code: int) -> str:
        self[code] = _folded(chr(code))
        return self[code]


_FOLDING = _Folding()


def words(text: str) -> list[str]:
    """The words of a text, in order."""
    return text.translate(_FOLDING).split()


def located_words(text: str) -> list[tuple[str, int, int]]:
    """(word, start, end) for every word of `words(text)`: characters of the original text, end exclusive."""
    found = []
    letters: list[str] = []
    start = end = 0
    for position, character in enumerate(text):
        for part in _FOLDING[ord(character)]:
            if part != " ":
                start = start if letters else position
                letters.append(part)
                end = position + 1
            elif letters:
                found.append(("".join(letters), start, end))
                letters = []
    if letters:
        found.append(("".join(letters), start, end))
    return found


@cache
def folding_tables() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(fold, expansion_first, expansion): what every code point contributes to the words of a text.

    fold[c] is 0 for a separator, a code point for a letter or digit, or -1 - k for none or several characters,
    expansion[expansion_first[k] : expansion_first[k + 1]], again 0 or code points.
    """
    fold = np.zeros(sys.maxunicode + 1, np.int32)
    first, expansion = [0], []
    for code in range(sys.maxunicode + 1):
        if 0xD800 <= code <= 0xDFFF:
            continue
        folded = _folded(chr(code))
        if len(folded) == 1 or (folded and folded.isspace()):
            fold[code] = 0 if folded.isspace() else ord(folded)
        else:
            fold[code] = -len(first)
            expansion += [0 if part == " " else ord(part) for part in folded]
            first.append(len(expansion))
    return fold, np.array(first, np.int32), np.array(expansion, np.int32)
