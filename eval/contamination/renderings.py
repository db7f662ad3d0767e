"""A document as its readers see it: without tags, with entities and escapes decoded, words whole at the ends of lines.

A document is searched as it stands and in every rendering of it, so what stands in an attribute or after a bare `<`
is found in the first and what tags interrupt in the second.

* HTML and XML: tags, comments, scripts and styles away; named, decimal and hexadecimal entities, also encoded twice.
* JSON and program text: `\\n`, `\\u2019`, `\\x27`. Addresses: `%20`. Markdown and wikis: the address of a link, and a
  footnote's number. LaTeX: the name of a command before its brace. Terminals: colour codes, overstrikes, other control
  characters.
* A word with a hyphen, or soft hyphen, at the end of a line.

What the decoding brings to light, such as a tag written with entities, is rendered again, and so is what tags hold.
"""

import html
import re
from array import array
from collections.abc import Iterator
from dataclasses import dataclass
from urllib.parse import unquote_to_bytes

import numba
import numpy as np

_MOST_PASSES = 3
_FEWEST_HIDDEN = 24
"""Bytes of a tag, a comment or a script from which it may hold a text that is looked for."""
_HIDDEN_MARK = re.compile(rb"[&\\%<]")
_INLINE = frozenset(
    b"a abbr acronym b bdi bdo big cite code del dfn em font i ins kbd mark nobr q s samp small span strike strong sub "
    b"sup tt u var wbr".split()
)
"""Elements that browsers show without a space or line before and after them."""
_MARK = re.compile(
    rb"""
    (?P<comment> <!-- )
  | (?P<tag> < (?: [/]?+ (?P<name> [a-zA-Z][a-zA-Z0-9:-]*+ ) | [/!?] (?= [a-zA-Z>\[] ) )
        (?: (?: [^<>"'=]++ | = \s*+ (?: "[^"]{0,4096}+" | '[^']{0,4096}+' ) | ["'=] ){0,64}+ > | [^<>]*+ > ) )
  | (?P<entity> & (?P<again> (?: amp; )*+ )
        (?P<named> \#[0-9]{1,7} | \#[xX][0-9a-fA-F]{1,6} | [a-zA-Z][a-zA-Z0-9]{0,31} )?+ (?P<closed> ;? ) )
  | (?P<command> \\ [a-zA-Z]{3,20}+ \*?+ \{ )
  | (?P<units> (?: \\{1,8}+ u[0-9a-fA-F]{4} )++ )
  | (?P<bytes> (?: \\{1,8}+ x[0-9a-fA-F]{2} )++ )
  | (?P<escape> \\{1,8}+ [abfnrtv0] )
  | (?P<percent> (?: %[0-9a-fA-F]{2} )++ )
  | (?P<link> \( [^()\s]{1,2000}+ (?: \s++ "[^"]{0,400}+" )?+ \) )
  | (?P<target> \[\[ [^\[\]|]{1,200}+ \| | \[ [0-9]{1,3} \] )
  | (?P<hyphen> (?: - | \xc2\xad | \xe2\x80[\x90\x91] ) [\ \t]*+ \r?+ \n [\ \t]*+
        (?= [a-zA-Z\x80-\xff] ) )
  | (?P<space> \xe2\x80\x8b )
  | (?P<backspace> \x08 )
  | (?P<control> \x1b\[ [0-9;:?]{0,32}+ [@-~] | [\x00-\x07\x0e-\x1a\x1c-\x1f\x7f]++ | \x1b )
    """,
    re.VERBOSE | re.DOTALL,
)
MARKS = "<&\\%([-\xad\u200b\u2010\u2011\x7f" + "".join(map(chr, (*range(9), *range(14, 32))))
_CLOSING = {name: re.compile(b"</" + name + rb"\b", re.IGNORECASE) for name in (b"script", b"style")}


@dataclass(frozen=True)
class Rendering:
    """A rendered text, and where its bytes come from."""

    data: np.ndarray
    """uint8."""
    first: np.ndarray
    """Where each segment begins, in `data`."""
    source_first: np.ndarray
    """The same in the text that was rendered."""
    source_end: np.ndarray
    """Where a segment that replaces something ends there; -1 for one that was copied."""
    parent: "Rendering | None"
    """The rendering that was rendered again; None for the document."""

    def span(self, start: int, end: int) -> tuple[int, int]:
        """Bytes of the document that became bytes `start` to `end`."""
        head, tail = np.searchsorted(self.first, [start, end - 1], "right") - 1
        if self.source_end[head] < 0:
            start += int(self.source_first[head] - self.first[head])
        else:
            start = int(self.source_first[head])
        if self.source_end[tail] < 0:
            end += int(self.source_first[tail] - self.first[tail])
        else:
            end = int(self.source_end[tail])
        return self.parent.span(start, end) if self.parent else (start, end)


def renderings(data: np.ndarray) -> Iterator[Rendering]:
    """Every rendering of a document, UTF-8 as uint8, that differs from it."""
    texts: list[tuple[np.ndarray, Rendering | None]] = [(data, None)]
    for _ in range(_MOST_PASSES):
        rendered = [rendering for text, parent in texts for rendering in _render(text.tobytes(), parent)]
        yield from rendered
        texts = [(rendering.data, rendering) for rendering in rendered]


def text_and_renderings(text: str) -> list[str]:
    """The text as it stands, and all its renderings."""
    data = np.frombuffer(text.encode("utf-8", "replace"), np.uint8)
    return [text, *(rendering.data.tobytes().decode("utf-8", "replace") for rendering in renderings(data))]


def _render(text: bytes, parent: Rendering | None) -> Iterator[Rendering]:
    """The text without its marks, and again if some stand inside of what may be one word, where they separate at first
    and then join; and what tags, comments, scripts and styles hold, if there are marks in it."""
    cuts, hidden = array("q"), array("q")  # first byte and end of each
    replacements: list[bytes] = []
    joining = array("q")
    """Numbers of the replacements that may join."""
    copied, joints = 0, False
    closed: dict[bytes, bool] = {}
    for place in _mark_positions(np.frombuffer(text, np.uint8)).tolist():
        found = _MARK.match(text, place) if place >= copied else None
        if found is None:
            continue
        (start, end), name = found.span(), found.lastgroup
        replacement = _replacement(found, name)
        element = b""
        if name == "tag":
            element = (found["name"] or b"").lower()
            if element in _CLOSING and text[start + 1] != 0x2F:
                close = _CLOSING[element].search(text, end) if closed.get(element, True) else None
                closed[element] = close is not None
                end = close.start() if close else end
        elif name == "comment":
            last = text.find(b"-->", end) if closed.get(b"--", True) else -1
            closed[b"--"] = last >= 0
            end, replacement = (last + 3, b" ") if last >= 0 else (end, None)
        elif name == "backspace":
            start = max(copied, start - 1)
        if replacement is None:
            continue
        joins = element in _INLINE or name in ("comment", "space")
        joints = joints or (joins and _is_joint(text, start, end))
        if replacement == b" " and end - start >= _FEWEST_HIDDEN and _HIDDEN_MARK.search(text, start + 1, end):
            hidden.extend((start + 1, end - 1))
        joined = bool(joining) and joining[-1] == len(replacements) - 1
        repeats = start == copied and replacements and replacements[-1] == replacement and joins == joined
        if repeats and replacement in (b" ", b""):
            cuts[-1] = end
        else:
            if joins:
                joining.append(len(replacements))
            cuts.extend((start, end))
            replacements.append(replacement)
        copied = end
    if not copied:
        return
    yield _replace_cuts(text, parent, cuts, replacements)
    if joints:
        for number in joining:
            replacements[number] = b""
        yield _replace_cuts(text, parent, cuts, replacements)
    if hidden:
        gaps = array("q", (0, *hidden, len(text)))
        yield _replace_cuts(text, parent, gaps, [b" "] * (len(gaps) // 2))


def _replace_cuts(text: bytes, parent: Rendering | None, cuts: array, replacements: list[bytes]) -> Rendering:
    """The text with every cut replaced."""
    starts, ends = np.array(cuts, np.int64).reshape(-1, 2).T
    copies = np.append(0, ends)  # where the copied segments begin
    source = np.empty((2, 2 * len(starts) + 1), np.int64)
    source[0, ::2], source[0, 1::2] = copies, starts
    source[1, ::2], source[1, 1::2] = -1, ends
    sizes = np.empty(source.shape[1], np.int64)
    sizes[::2] = np.append(starts, len(text)) - copies
    sizes[1::2] = np.fromiter(map(len, replacements), np.int64, len(replacements))
    parts = [b""] * len(sizes)
    bounds = zip(copies.tolist(), [*starts.tolist(), len(text)], strict=True)
    parts[::2] = [text[first:last] for first, last in bounds]
    parts[1::2] = replacements
    first = np.cumsum(sizes) - sizes
    return Rendering(np.frombuffer(b"".join(parts), np.uint8), first, source[0], source[1], parent)


def _replacement(found: re.Match[bytes], name: str | None) -> bytes | None:
    """What a reader sees in place of a mark; None where it is no mark."""
    if name == "tag":  # most are
        return b" "
    mark = found.group()
    match name:
        case "entity":
            written = b"&" + (found["named"] or b"")
            seen = html.unescape(f"{written.decode()};")
            if seen != f"{written.decode()};":
                return seen.encode("utf-8", "replace")
            return written + found["closed"] if found["again"] else None
        case "units":
            units = b"".join(bytes.fromhex(unit.decode()) for unit in re.findall(rb"u(....)", mark))
            return units.decode("utf-16-be", "replace").encode()
        case "bytes":
            content = bytes.fromhex(mark.replace(b"\\", b"").replace(b"x", b"").decode())
            return content if _is_utf8(content) else content.decode("latin-1").encode()
        case "percent":
            return unquote_to_bytes(mark)
        case "escape" | "space" | "comment":
            return b" "
        case _:
            return b""


def _is_utf8(content: bytes) -> bool:
    try:
        content.decode()
    except UnicodeDecodeError:
        return False
    return True


def _is_joint(text: bytes, start: int, end: int) -> bool:
    """Whether a letter stands before the mark, and a letter or another mark after it."""
    before, after = text[start - 1 : start], text[end : end + 1]
    return (before.isalnum() or before >= b"\x80") and (after.isalnum() or after >= b"\x80" or after in b"<&")


@numba.njit(inline="always")
def _is_letter(byte: int) -> bool:
    return 97 <= byte | 32 <= 122


@numba.njit(inline="always")
def may_begin_mark(text: np.ndarray, i: int, first: int, end: int) -> bool:
    """Whether a mark may begin at byte i of the document text[first:end]; it begins with one of `MARKS`."""
    byte = text[i]
    before = text[i - 1] if i > first else 32
    after = text[i + 1] if i + 1 < end else 32
    later = text[i + 2] if i + 2 < end else 32
    letter, breaks = _is_letter(after), after == 10 or after == 13
    if byte == 60:  # <
        return letter or after == 33 or after == 47 or after == 63  # or !, / or ?
    if byte == 38:  # &
        return letter or after == 35  # or #
    if byte == 92:  # backslash
        return letter or after == 92 or after == 48  # or another, or 0
    if byte == 37:  # %
        return letter or 48 <= after <= 57
    if byte == 40:  # (
        return before == 93  # ]
    if byte == 91:  # [
        return after == 91 or 48 <= after <= 57  # or another, or a digit
    if byte == 45:  # -
        return breaks and (_is_letter(before) or before >= 128)
    if byte == 0xC2:
        return after == 0xAD and (later == 10 or later == 13)
    if byte == 0xE2:
        return after == 0x80 and (later == 0x8B or later == 0x90 or later == 0x91)
    return byte < 9 or 13 < byte < 32 or byte == 127


@numba.njit(cache=True)
def _mark_positions(text: np.ndarray) -> np.ndarray:
    """Where marks may begin."""
    found = np.empty(1024, np.int64)
    count = 0
    for i in range(len(text)):
        if may_begin_mark(text, i, 0, len(text)):
            if count == len(found):
                found = np.concatenate((found, np.empty(count, np.int64)))
            found[count] = i
            count += 1
    return found[:count]
