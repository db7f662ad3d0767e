"""`python -m tests.malformed N KIND ...` gives N inputs of these kinds, or of all, and prints a table of failures."""

import resource
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

from tests.malformed.failures import failures
from tests.malformed.inputs import areas


def main(arguments: list[str]) -> int:
    """Print how many inputs of each kind are answered wrongly, and how."""
    count = int(arguments[0]) if arguments else 2000
    resource.setrlimit(resource.RLIMIT_AS, (16 * 2**30, resource.getrlimit(resource.RLIMIT_AS)[1]))
    wrong = 0
    with tempfile.TemporaryDirectory() as folder:
        known = areas(Path(folder))
        chosen = arguments[1:] or list(known)
        print("| inputs | given | answered wrongly | CPU-seconds |\n|---|---:|---:|---:|")
        for name in chosen:
            began = time.process_time()
            found = failures(known[name], count // len(chosen))
            wrong += len(found)
            seconds = time.process_time() - began
            print(f"| {name} | {count // len(chosen)} | {len(found)} | {seconds:.0f} |", flush=True)
            for kind, times in Counter(text[:110] for _, text in found).most_common(40):
                seed, text = next(each for each in found if each[1][:110] == kind)
                print(f"    {times} times: {text} (seed {seed})", flush=True)
    print(f"goal malformed-inputs: {wrong} wrong of {count} (target 0) {'short' if wrong else 'met'}")
    return int(wrong > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
