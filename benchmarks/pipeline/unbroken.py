"""What a document without a break costs the tokenizer: `python -m benchmarks.pipeline.unbroken` (one core, CPU time).

Training: beside 200 ordinary documents one of 40,000 and one of 160,000 bytes that no rule cuts. Encoding: 1 and 10 MB.
"""

import base64
import os
import random
import time
from collections.abc import Callable
from functools import partial

from benchmarks.goals import print_goal
from eval.reporting.markdown import markdown_table
from tasks.tokenizer import train_bpe

ORDINARY = [
    f"The quick brown fox {number} jumps over the lazy dog, says speech {number * number}. " * 20
    for number in range(200)
]
VOCABULARY = 1024
SHORT, LONG = 40_000, 160_000
MEGABYTE = 10**6


def kinds() -> dict[str, Callable[[int], str]]:
    """Texts of about so many bytes by kind."""
    chance = random.Random(0)
    return {
        "letters at random": lambda size: "".join(chance.choices("abcdefghijklmnopqrstuvwxyz", k=size)),
        "one letter": lambda size: "a" * size,
        "base64": lambda size: base64.b64encode(chance.randbytes(size * 3 // 4)).decode(),
        "Chinese without marks": lambda size: "".join(chr(0x4E00 + chance.randrange(3000)) for _ in range(size // 3)),
        "Thai": lambda size: "".join(chr(0x0E01 + chance.randrange(46)) for _ in range(size // 3)),
        "dashes": lambda size: "-" * size,
        "new lines": lambda size: "\n" * size,
        "digits": lambda size: "".join(chance.choices("0123456789", k=size)),
    }


def seconds(work: Callable[[], object]) -> float:
    began = time.process_time()
    work()
    return time.process_time() - began


def main() -> None:
    os.environ["RAYON_NUM_THREADS"] = "1"
    plain = seconds(lambda: train_bpe(iter(ORDINARY), VOCABULARY, 1))
    own = train_bpe(iter(ORDINARY), VOCABULARY, 1)
    text = "".join(ORDINARY * 4)[:MEGABYTE]
    ordinary = seconds(lambda: own.encode_batch_fast([text], add_special_tokens=False))
    rows, trained, growth = [], [], []
    for name, make in kinds().items():
        cost = {
            size: seconds(partial(train_bpe, iter([*ORDINARY, make(size)]), VOCABULARY, 1)) - plain
            for size in (SHORT, LONG)
        }
        longest = max(len(token) for token in train_bpe(iter([*ORDINARY, make(LONG)]), VOCABULARY, 1).get_vocab())
        each = {
            size: seconds(partial(own.encode_batch_fast, [make(size)], add_special_tokens=False))
            for size in (MEGABYTE, 10 * MEGABYTE)
        }
        trained.append(cost[LONG])
        growth.append(each[10 * MEGABYTE] / each[MEGABYTE])
        rows.append(
            [
                name,
                f"{cost[SHORT]:.2f}",
                f"{cost[LONG]:.2f}",
                str(longest),
                f"{each[MEGABYTE]:.2f}",
                f"{each[10 * MEGABYTE]:.2f}",
            ]
        )
    print(f"Training on the ordinary documents alone: {plain:.2f} s; encoding 1 MB of them: {ordinary:.2f} s.\n")
    print(
        markdown_table(
            [
                "document",
                "training: 40 kB more, s",
                "160 kB more, s",
                "longest token, bytes",
                "encoding 1 MB, s",
                "10 MB, s",
            ],
            rows,
        )
        + "\n"
    )
    print_goal("seconds of training that 160 kB without a break cost, at most", max(trained), 0.5, at_most=True)
    print_goal("encoding 10 MB without a break over 1 MB (10: linear)", max(growth), 15, at_most=True)


if __name__ == "__main__":
    main()
