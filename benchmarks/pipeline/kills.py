"""Is anything lost or left behind when a run is ended? `python -m benchmarks.pipeline.kills [--store s3] [--only
TEXT]`.

Runs of the preset `smoke` are ended again and again, each time at another moment, and started again; the moment is what
a stage is doing, never the clock. Each start goes on from what the last one left.

* Moments around the store come from a hook in the process: before and after it writes an object of a stage, it waits.
  The other moments are looked for from outside: a file in the work folder, a process.
* SIGKILL goes to the command, to its own child in which the run is, to the process group of both, or to a child of the
  run. SIGTERM goes to the command.
* After each, no process of the run may be left (they are known by their environment) and no lock may be held; the
  seconds until then are in the table. At the end every stage has the digest of a run that nobody ended, and neither
  store nor cache hold anything that a manifest does not name.
* At one moment of each stage the run has a temporary Prefect server of its own; at the others they share one, which
  saves half of the time.
"""

import argparse
import fcntl
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path

from benchmarks.goals import print_goal
from deployments.temporary_server import TemporaryServer
from eval.reporting.markdown import markdown_table
from tasks.store.backends import Store, open_store
from tests.object_store import BUCKET, object_store

ROOT = Path(__file__).resolve().parents[2]
FAST = ("evaluation.items_per_suite=4", 'evaluation.suites=["arc_easy","winogrande"]', "train.tokens=163840")
STAGES = ("benchmarks", "download", "contamination", "tokenizer", "shard", "train", "evaluate", "report")
LIMIT = 15.0
"""Seconds in which everything has ended."""
LONGEST = 600.0
"""Seconds after which a moment that has not come counts as missed."""

HOOK = """
import os, re, sys
if "deployments.cli.commands" in sys.orig_argv or "tasks.runtime.supervise" in sys.orig_argv:
    import time
    from tasks.store import backends
    pattern, reached = os.environ["KILLS_AT"], os.environ["KILLS_REACHED"]

    def wait(moment):
        if pattern and re.match(pattern, moment):
            open(reached, "w").close()
            if pattern.endswith("(?#holds the GIL)"):
                import itertools
                sum(itertools.repeat(1, 10**11))
            time.sleep(1000)

    def around(name, method):
        def waiting(self, key, *rest):
            wait(f"before {name} {key}")
            result = method(self, key, *rest)
            wait(f"after {name} {key}")
            return result
        return waiting

    for kind in (backends.LocalStore, backends.S3Store):
        for name in ("put", "publish"):
            setattr(kind, name, around(name, getattr(kind, name)))
"""
"""sitecustomize.py of every process: the run, and the supervisor of its trainer, wait at the moment KILLS_AT."""


@dataclass(frozen=True)
class Moment:
    """When a run is ended, and what of it."""

    stage: str
    what: str
    target: str
    """`command`, `process` of the run, `group` of both, or the word in a child's command line."""
    at: str = ""
    """Pattern of what the hook waits at."""
    seen: Callable[["Run"], object] | None = None
    """Or how the moment is seen from outside."""


class Run:
    """One start of the command."""

    def __init__(self, folder: Path, store: str, environment: dict[str, str], at: str = "", api: str = ""):
        """With the address of a Prefect server, or with a server of its own."""
        self.folder, self.reached = folder, folder / "reached"
        self.reached.unlink(missing_ok=True)
        self.name = f"kills-{os.getpid()}-{time.monotonic_ns()}"
        site = folder / "site"
        site.mkdir(exist_ok=True)
        (site / "sitecustomize.py").write_text(HOOK)
        given = {
            **os.environ,
            **environment,
            "PREFECT_HOME": str(folder.parent / "home"),
            "KILLS_AT": at,
            "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",  # on a busy machine
            "KILLS_RUN": self.name,
            "KILLS_REACHED": str(self.reached),
            "OMP_NUM_THREADS": "1",
            "PYTHONPATH": f"{site}{os.pathsep}{ROOT}",
        }
        given |= {"PREFECT_API_URL": api} if api else {}
        self.log = (folder / "log").open("w+")
        command = [
            sys.executable,
            "-m",
            "deployments.cli.commands",
            "run",
            "--preset",
            "smoke",
            "--store",
            store,
            "--cache",
            str(folder / "cache"),
            "--workers",
            "1",
            "--device",
            "cpu",
        ]
        command += [word for change in FAST for word in ("--set", change)]
        self.command = subprocess.Popen(
            command,
            cwd=ROOT,
            env=given,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            start_new_session=True,
        )

    def processes(self, word: str = "") -> list[int]:
        """What is left of the run, with a word in its command line."""
        marker, found = f"KILLS_RUN={self.name}\0".encode(), []
        for folder in Path("/proc").glob("[0-9]*"):
            with suppress(OSError):
                if marker in (folder / "environ").read_bytes() and word.encode() in (folder / "cmdline").read_bytes():
                    found.append(int(folder.name))
        return sorted(found)

    def work(self, stage: str, pattern: str) -> list[Path]:
        """Files of the stage's work folder."""
        return list((self.folder / "cache" / "work" / stage).glob(pattern))

    def wait_for(self, moment: Moment) -> bool:
        """Until the moment has come; False when the run has ended before."""
        deadline = time.monotonic() + LONGEST
        while time.monotonic() < deadline and self.command.poll() is None:
            if moment.seen(self) if moment.seen else self.reached.exists():
                return True
            time.sleep(0.003)
        return False

    def kill(self, target: str, number: signal.Signals) -> None:
        if target == "command":
            self.command.send_signal(number)
        elif target == "group":
            os.killpg(self.command.pid, number)
        else:
            found = [
                process
                for process in self.processes("" if target == "process" else target)
                if process != self.command.pid and (target != "process" or parent(process) == self.command.pid)
            ]
            for process in found[:1]:
                os.kill(process, number)

    def seconds_to_end(self) -> float:
        """Until the command and all its processes have ended; after a minute they are ended, which counts as that."""
        began = time.monotonic()
        while self.command.poll() is None or self.processes():
            if time.monotonic() - began > 120:
                print("left behind:", [(p, Path(f"/proc/{p}/cmdline").read_bytes()[-300:]) for p in self.processes()])
                for process in self.processes():
                    with suppress(ProcessLookupError):
                        os.kill(process, signal.SIGKILL)
                self.command.wait()
                break
            time.sleep(0.02)
        return time.monotonic() - began

    def log_text(self) -> str:
        self.log.seek(0)
        return self.log.read()


def parent(process: int) -> int:
    with suppress(OSError):
        return int(Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[1])
    return 0


def writes_checkpoint(run: Run) -> list[Path]:
    return run.work("train", "*/run/checkpoints/.step_*")


def moments() -> Iterator[Moment]:
    """Five or more a stage, in the order in which a run comes by."""
    own: dict[str, list[tuple[str, str, Callable[[Run], object] | str]]] = {
        "download": [
            ("pip downloads", "pip", lambda run: run.processes("pip")),
            ("its first file is written", "group", lambda run: run.work("download", "*/out/*")),
        ],
        "benchmarks": [("pip downloads", "process", lambda run: run.processes("pip"))],
        "contamination": [
            ("the scan starts", "eval.contamination.check", lambda run: run.processes("eval.contamination.check")),
            ("a result is written", "command", lambda run: run.work("contamination", "*/scanned/*")),
        ],
        "tokenizer": [("it trains", "process", lambda run: run.work("tokenizer", "*/out"))],
        "shard": [("its first file is written", "group", lambda run: run.work("shard", "*/out/*"))],
        "train": [
            ("a network is built", "model.train", lambda run: run.work("train", "*/run/run.json")),
            ("a checkpoint is written", "model.train", writes_checkpoint),
            ("a checkpoint is uploaded", "tasks.runtime.supervise", "before publish checkpoints/"),
            ("a checkpoint is written", "command", writes_checkpoint),
            ("the model is written", "group", lambda run: run.work("train", "*/run/final")),
        ],
        "evaluate": [
            ("scoring starts", "eval.scoring.harness", lambda run: run.processes("eval.scoring.harness")),
            ("the samples are written", "process", lambda run: run.work("evaluate", "*/out/*")),
        ],
        "report": [("its first file is written", "command", lambda run: run.work("report", "*/out/*"))],
    }
    around = (
        ("nothing is stored yet", "before put"),
        ("one file is stored", "after put"),
        ("all but the manifest is stored", "before publish"),
        ("the manifest is stored", "after publish"),
    )
    targets = ("command", "process", "group")
    for number, stage in enumerate(STAGES):
        for what, target, moment in own[stage]:
            if isinstance(moment, str):
                yield Moment(stage, what, target, at=moment)
            else:
                yield Moment(stage, what, target, seen=moment)
        for place, (what, at) in enumerate(around):
            yield Moment(stage, what, targets[(number + place) % 3], at=f"{at} stages/{stage}/")


def digests(store: Store) -> dict[str, object]:
    """Of the outputs of every stage, and the row of the ledger."""
    found: dict[str, object] = {}
    for key in store.list("stages"):
        if key.endswith("/manifest.json"):
            outputs = json.loads(store.read(key) or "")["outputs"]
            found[key] = {output["path"]: output["sha256"] for output in outputs if not output["recorded"]}
    return found | dict.fromkeys(store.list("ledger"))


def left_behind(store: Store, folder: Path) -> list[str]:
    """Objects that no manifest names, files that are half written, and locks that are held."""
    named = set()
    for key in store.list("stages"):
        if key.endswith("/manifest.json"):
            manifest = json.loads(store.read(key) or "")
            named |= {key} | {
                f"{key.rpartition('/')[0]}/{manifest['attempt']}/{output['path']}" for output in manifest["outputs"]
            }
    found = [key for key in store.list("stages") if key not in named] + list(store.list("checkpoints"))
    below = [folder / "cache", *([Path(store.url)] if Path(store.url).is_dir() else [])]
    for path in (path for root in below for path in root.rglob("*")):
        if path.name.startswith(".") or path.suffix in (".partial", ".tmp"):
            found.append(str(path))
    found += [str(path) for path in (folder / "cache" / "work").glob("*/*") if path.suffix != ".lock"]
    return found + held(folder)


def held(folder: Path) -> list[str]:
    """Locks of the cache that somebody holds."""
    found: list[str] = []
    for _ in range(20):  # a process that ends has no environment any more, but still its files
        found = []
        for path in (folder / "cache").rglob("*.lock"):
            with path.open("w") as lock:
                try:
                    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    found.append(f"{path} is held")
        if not found:
            break
        time.sleep(0.1)
    return found


def killed(
    name: str, url: str, environment: dict[str, str], folder: Path, only: str, api: str
) -> tuple[int, int, list[list]]:
    """Runs that are ended at every moment, to the end: how many, how many of them left something, and the table."""
    rows, bad = [], 0
    chosen = [moment for moment in moments() if only in f"{moment.stage} {moment.what}"]
    for moment, before in zip(chosen, [None, *chosen]):
        own = before is None or before.stage != moment.stage
        run = Run(folder, url, environment, moment.at, "" if own else api)
        if not run.wait_for(moment):
            rows.append([name, moment.stage, moment.what, moment.target, "not reached", run.log_text()[-300:]])
            print(*rows[-1], sep=" | ", flush=True)
            run.kill("command", signal.SIGTERM)
            run.seconds_to_end()
            bad += 1
            continue
        run.kill(moment.target, signal.SIGKILL)
        seconds = run.seconds_to_end()
        locks = held(folder)
        bad += seconds > 2 * LIMIT or bool(locks)
        rows.append([name, moment.stage, moment.what, moment.target, f"{seconds:.1f}", ", ".join(locks) or "nothing"])
        print(*rows[-1], sep=" | ", flush=True)
    return len(chosen), bad, rows


def stopped(folder: Path, only: str) -> tuple[list[float], list[list], int]:
    """SIGTERM at moments of every stage and of other commands: the seconds, the table, and how many ended otherwise."""
    url, rows, times, bad = str(folder / "store"), [], [], 0
    wanted = {stage: 0 for stage in STAGES}
    chosen = [
        Moment("start", "modules are imported", "command", seen=lambda run: len(run.processes()) > 1),
        Moment(
            "start",
            "the temporary server starts",
            "command",
            seen=lambda run: run.processes("temporary_server"),
        ),
    ]
    for moment in moments():
        if wanted[moment.stage] < 2:
            chosen.append(moment)
            wanted[moment.stage] += 1
    after = max(place for place, moment in enumerate(chosen) if moment.stage == "tokenizer") + 1
    chosen.insert(
        after,
        Moment(
            "tokenizer", "C code holds the interpreter", "command", at="before put stages/tokenizer/(?#holds the GIL)"
        ),
    )
    for moment in chosen:
        if only not in f"{moment.stage} {moment.what}":
            continue
        run = Run(folder, url, {}, moment.at)
        reached = run.wait_for(moment)
        run.kill("command", signal.SIGTERM)
        seconds, code = run.seconds_to_end(), run.command.returncode
        sentence = run.log_text().count("daily-train: stopped; ")
        right = reached and code == 143 and sentence == 1 and not held(folder)
        bad += not right
        times.append(seconds)
        rows.append(
            [moment.stage, moment.what, f"{seconds:.1f}", code, "yes" if right else f"no: {run.log_text()[-300:]}"]
        )
        print(*rows[-1], sep=" | ", flush=True)
    return times, rows, bad


def finished(folder: Path, url: str, environment: dict[str, str], api: str) -> dict[str, object]:
    """The digests after a run to its end."""
    run = Run(folder, url, environment, api=api)
    if run.command.wait() != 0:
        raise SystemExit(run.log_text()[-3000:])
    run.seconds_to_end()
    return digests(open_store(url))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", choices=("directory", "s3", "both"), default="both", help="where results go")
    parser.add_argument("--signal", choices=("SIGTERM", "SIGKILL", "both"), default="both", help="how they are ended")
    parser.add_argument("--only", default="", help="moments whose stage and words hold this text: 'train '")
    parser.add_argument("--folder", type=Path, help="for stores, caches and logs; default: a temporary one")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        base = arguments.folder or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        folders = {name: base / name for name in ("straight", "stopped", "directory", "s3", "server")}
        for folder in folders.values():
            folder.mkdir(parents=True, exist_ok=True)
        os.environ.pop("PREFECT_API_URL", None)
        # a home of its own: SQLite takes one writer at a time
        os.environ |= {"PREFECT_HOME": str(base / "shared"), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
        server = TemporaryServer()
        stack.callback(server.stop)
        server.wait_until_ready()
        os.environ["PREFECT_API_AUTH_STRING"] = server.string
        api = server.api_url
        expected = finished(folders["straight"], str(folders["straight"] / "store"), {}, api)
        if arguments.signal != "SIGKILL":
            url = str(folders["stopped"] / "store")
            times, stops, wrong = stopped(folders["stopped"], arguments.only)
            same = finished(folders["stopped"], url, {}, api) == expected
            left = left_behind(open_store(url), folders["stopped"])
            print(markdown_table(["stage", "SIGTERM while", "seconds to end", "exit code", "right"], stops))
            print_goal("SIGTERM: longest time to end, seconds", max(times, default=None), LIMIT, at_most=True)
            print_goal("SIGTERM: runs that ended otherwise", wrong, 0, at_most=True)
            print_goal("SIGTERM: runs with other digests afterwards", int(not same), 0, at_most=True)
            print_goal("SIGTERM: objects left behind", len(left), 0, at_most=True)
            print(*left, sep="\n")
        for name in ("directory", "s3"):
            if arguments.store not in (name, "both") or arguments.signal == "SIGTERM":
                continue
            with ExitStack() as stack_of_store:
                environment: dict[str, str] = {}
                if name == "s3":
                    environment = stack_of_store.enter_context(object_store(folders["server"]))
                os.environ.update(environment)
                url = str(folders[name] / "store") if name == "directory" else f"s3://{BUCKET}/kills"
                count, bad, rows = killed(name, url, environment, folders[name], arguments.only, api)
                same = finished(folders[name], url, environment, api) == expected
                left = left_behind(open_store(url), folders[name])
            print(markdown_table(["store", "stage", "while", "SIGKILL to", "seconds to end", "held"], rows))
            print_goal(f"{name}: kills", count, 40)
            print_goal(f"{name}: kills that left a process or a lock", bad, 0, at_most=True)
            print_goal(f"{name}: runs with other digests afterwards", int(not same), 0, at_most=True)
            print_goal(f"{name}: objects left behind", len(left), 0, at_most=True)
            print(*left, sep="\n")


if __name__ == "__main__":
    main()
