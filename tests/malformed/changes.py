"""Changes of JSON values and of bytes that a person, a program or a disk might make."""

import json
import random
import struct
from collections.abc import Iterator
from typing import Any

DEEP, LONG_NUMBER, OUT_OF_RANGE = "\x00deep\x00", "\x00number\x00", "\x00infinite\x00"
AS_TEXT = {DEEP: "[" * 3000 + "]" * 3000, LONG_NUMBER: "9" * 5000, OUT_OF_RANGE: "1e400"}
NASTY: tuple[Any, ...] = (
    None,
    True,
    False,
    -1,
    0,
    1,
    2,
    27,
    2**15,
    2**31 - 1,
    2**31,
    2**63,
    2**64,
    10**18,
    -(2**70),
    0.5,
    -0.0,
    1e18,
    1e300,
    float("nan"),
    float("inf"),
    OUT_OF_RANGE,
    LONG_NUMBER,
    DEEP,
    "",
    " ",
    "a",
    "1",
    "\ud800",
    "\x00",
    "e\u0301",
    "日本",
    "x" * 70_000,
    "../../x",
    "/dev/zero",
    "a.b.c",
    [],
    [None],
    [1, "a"],
    [[1]],
    {},
    {"": 1},
    {"a": {"b": 1}},
    "null",
    list(range(30)),
    [""] * 27,
    "<|endoftext|>",
    "2026-01-01",
    "NaN",
    "(a+)+$",
    "ByteLevel",
    "Sequence",
)


def as_json(value: Any) -> bytes:
    """JSON, also of what Python cannot write: 3,000 levels, a number of 5,000 digits, infinity as a number."""
    text = json.dumps(value)
    for name, written in AS_TEXT.items():
        text = text.replace(json.dumps(name), written)
    return text.encode()


def places(value: Any, here: tuple = ()) -> Iterator[tuple]:
    """Where in a JSON value something stands."""
    if here:
        yield here
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*here, key))


def changed(value: Any, chance: random.Random) -> Any:
    """A JSON value with one to three of its parts replaced, dropped, nested, repeated or renamed."""
    value = json.loads(json.dumps(value))
    for _ in range(chance.choice((1, 1, 1, 2, 3))):
        known = list(places(value))
        if not known or chance.random() < 0.03:
            return chance.choice(NASTY)
        *above, last = chance.choice(known)
        inside = value
        for key in above:
            inside = inside[key]
        match chance.randrange(8):
            case 0:
                del inside[last]
            case 1:
                inside[last] = [inside[last]]
            case 2:
                inside[last] = {str(last): inside[last]}
            case 3 if isinstance(inside, dict):
                inside[chance.choice((f"{last}x", "", "\ud800", "constructor"))] = inside.pop(last)
            case 4 if isinstance(inside, list):
                inside += [inside[last]] * chance.choice((1, 30))
            case _:
                inside[last] = chance.choice(NASTY)
    return value


def damaged(content: bytes, chance: random.Random) -> bytes:
    """Bytes of a file, flipped, cut, repeated, overwritten or with a number at the beginning that is far too large."""
    result = bytearray(content)
    for _ in range(chance.choice((1, 1, 2, 8))):
        at = chance.randrange(len(result)) if result else 0
        match chance.randrange(8):
            case 0:
                del result[at:]
            case 1:
                del result[at : at + chance.randrange(1, 64)]
            case 2:
                result[at:at] = chance.randbytes(chance.randrange(1, 64))
            case 3:
                result[at : at + 8] = struct.pack(
                    "<Q", chance.choice((0, 1, 2**31 - 1, 2**32, 2**40, 2**63, 2**64 - 1))
                )
            case 4:
                at = 4 * chance.randrange(min(8, len(result) // 4 + 1))
                result[at : at + 4] = struct.pack("<i", chance.choice((-1, 0, 1, 2, 2**20, 2**31 - 1, -(2**31))))
            case 5:
                result[at : at + 16] = chance.choice(
                    (bytes(16), b"\xff" * 16, b"[" * 3000, b"\xed\xa0\x80", b"\xfe\xff")
                )
            case _:
                if result:
                    result[at] ^= 1 << chance.randrange(8)
    return bytes(result)
