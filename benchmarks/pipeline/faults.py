"""Faults between a run and its store: `make bench-faults`.

A proxy in front of a real S3 server (SeaweedFS) harms a fifth of the requests: tests/store_proxy.py. For each mix of
faults whole `smoke` runs and stages of their own must end with the digests that they have without faults, with no stage
built twice and no object in the bucket that no manifest names. Outages that last must end in one sentence.
"""

import argparse
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from socket import socket
from typing import Any
from unittest.mock import patch

from benchmarks.goals import print_goal
from tasks.store import s3
from tasks.store.backends import Store, open_store
from tasks.store.context import open_context
from tasks.store.manifest import Manifest, StageError, parse_manifest
from tasks.store.objects import StoreError
from tasks.store.s3 import S3Store
from tasks.store.stage import Stage, build_or_skip, fetch_outputs, read_json
from tests.object_store import BUCKET, object_store
from tests.store_proxy import MIXES, Faults, StoreProxy

STAGE = Stage(name="shard", version=1, config={"a": 1}, inputs={}, volatile=frozenset({"times.json"}))
OUTPUTS = {"data.bin": bytes(range(256)) * 800, "counts.json": b'{"tokens": 204800}', "times.json": b'{"seconds": 1}'}
COMMAND = """
import os, sys
from deployments.cli.commands import main  # first: it sets Prefect's environment
import tasks.store.stage
built = tasks.store.stage._build

def counted(stage, *rest):
    with open(os.environ["BUILDS"], "a") as file:
        file.write(f"{stage.name} {stage.key}\\n")
    return built(stage, *rest)

tasks.store.stage._build = counted
sys.exit(main())
"""
"""`daily-train` that notes every build of a stage."""


@dataclass
class Tally:
    """What came of the runs of one mix."""

    runs: int = 0
    same: int = 0
    built_twice: int = 0
    orphans: int = 0
    seconds: float = 0.0
    faults: Counter = field(default_factory=Counter)
    failures: list[str] = field(default_factory=list)

    def row(self, name: str) -> str:
        """One line of the table."""
        harmed = sum(count for kind, count in self.faults.items() if kind != "requests")
        return (
            f"| {name} | {self.runs} | {self.faults['requests']:,} | {harmed:,} | {self.same} | "
            f"{self.built_twice} | {self.orphans} | {self.seconds / max(self.runs, 1):.1f} |"
        )


HEADER = (
    "| faults | runs | requests | harmed | same digests | stages built twice | orphans | seconds a run |\n"
    "|---|---|---|---|---|---|---|---|"
)


def manifests(store: Store) -> list[Manifest]:
    """All manifests in a store."""
    names = [key.split("/") for key in store.list("stages") if key.endswith("/manifest.json")]
    return [parse_manifest(store.read("/".join(parts)) or b"", parts[1], parts[2]) for parts in names]


def orphans(store: S3Store) -> list[str]:
    """Objects that belong to no finished stage and to no row of the ledger, and uploads in parts that were left."""
    kept = {"leaderboard.html"} | {key for key in store.list("ledger")}
    for manifest in manifests(store):
        kept |= {manifest.location(output) for output in manifest.outputs}
        kept.add(f"stages/{manifest.stage}/{manifest.key}/manifest.json")
    left = sorted(set(store.list("")) - kept)
    uploads = store.client.list_multipart_uploads(Bucket=store.bucket, Prefix=store.prefix).get("Uploads", [])
    return left + [upload["Key"] for upload in uploads]


def write_outputs(out: Path) -> None:
    """What building the stage writes."""
    for name, content in OUTPUTS.items():
        (out / name).write_bytes(content)


def one_stage(tally: Tally, proxy: StoreProxy, direct: str, folder: Path, number: int, wanted: str) -> None:
    """Build and store a stage through the proxy, and read it on a second machine."""
    url, builds = f"s3://{BUCKET}/stage-{folder.name}-{number}", []

    def build(work: Path, out: Path) -> None:
        builds.append(1)
        write_outputs(out)

    tally.runs += 1
    began = time.monotonic()
    try:
        with patch.dict(os.environ, AWS_ENDPOINT_URL_S3=proxy.url):
            built = build_or_skip(STAGE, open_context(url, str(folder / f"{number}a"), 1, None, None, 0.0), build)
            other = open_context(url, str(folder / f"{number}b"), 1, None, None, 0.0)
            again = build_or_skip(STAGE, other, build)
            whole = {name: (fetch_outputs(again, other) / name).read_bytes() for name in OUTPUTS} == OUTPUTS
            counts = read_json(again, other, "counts.json") == {"tokens": 204800}
        tally.same += built.digest == again.digest == wanted and whole and counts and again.skipped
    except (StageError, StoreError) as error:
        tally.failures.append(str(error))
    tally.seconds += time.monotonic() - began
    tally.built_twice += len(builds) - 1
    with patch.dict(os.environ, AWS_ENDPOINT_URL_S3=direct):
        tally.orphans += len(orphans(S3Store(url)))


def smoke(endpoint: str, url: str, folder: Path, wheels: Path | None) -> subprocess.Popen:
    """Starts `daily-train run --preset smoke` as a process, which writes to `folder / "log"`."""
    cache = folder / "cache"
    if wheels is not None and not cache.exists():
        shutil.copytree(wheels, cache / "wheels")
    environment = os.environ | {
        "AWS_ENDPOINT_URL_S3": endpoint,
        "PREFECT_HOME": str(folder.parents[1] / "prefect"),
        "BUILDS": str(folder / "builds"),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
        "PREFECT_LOGGING_TO_API_ENABLED": "false",
        "PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS": "600",
    }
    command = [
        sys.executable,
        "-c",
        COMMAND,
        "run",
        "--preset",
        "smoke",
        "--store",
        url,
        "--cache",
        str(cache),
        "--workers",
        "1",
        "--device",
        "cpu",
        "--set",
        'evaluation.suites=["arc_easy"]',
    ]
    with (folder / "log").open("w") as log:
        return subprocess.Popen(command, env=environment, cwd=folder, stdout=log, stderr=log)


def one_run(
    tally: Tally, proxy: StoreProxy, direct: str, folder: Path, wheels: Path | None, wanted: dict[str, str]
) -> dict[str, str]:
    """A whole run through the proxy; the digest of every stage but the report, which holds times."""
    folder.mkdir(parents=True, exist_ok=True)
    url = f"s3://{BUCKET}/run-{folder.parent.name}-{folder.name}"
    tally.runs += 1
    began = time.monotonic()
    code = smoke(proxy.url, url, folder, wheels).wait()
    tally.seconds += time.monotonic() - began
    if code:
        tally.failures.append(f"{folder}: {(folder / 'log').read_text()[-600:]}")
    with patch.dict(os.environ, AWS_ENDPOINT_URL_S3=direct):
        store = S3Store(url)
        found = {f"{m.stage} {m.key}": m.digest for m in manifests(store) if m.stage != "report"}
        tally.orphans += len(left := orphans(store))
    builds = folder / "builds"
    built = Counter(builds.read_text().splitlines() if builds.exists() else [])
    tally.built_twice += sum(count - 1 for count in built.values())
    tally.same += bool(found) and (not wanted or found == wanted)
    tally.failures += [f"orphan {key}" for key in left]
    return found


def outage(name: str, proxy: StoreProxy, folder: Path, seconds: float) -> tuple[float, float, str]:
    """Seconds until a person who starts is told, until a stage that is being stored gives up, and its sentence."""
    context = open_context(f"s3://{BUCKET}/outage-{name.replace(' ', '-')}", str(folder / name), 1, None, None, 0.0)
    endpoint = proxy.url
    proxy.faults = Faults(("stall",) if name == "stalls" else ("503",), share=1.0, stall_seconds=seconds)
    if name == "connection refused":
        with closing(socket()) as free:
            free.bind(("127.0.0.1", 0))
            endpoint = f"http://127.0.0.1:{free.getsockname()[1]}"
    times, sentence = [], ""
    with patch.dict(os.environ, AWS_ENDPOINT_URL_S3=endpoint):
        store = open_store(context.store.url)
        for ask in (store.check, lambda: store.publish("x", b"y")):
            began = time.monotonic()
            try:
                ask()
            except StoreError as error:
                sentence = str(error)
            times.append(time.monotonic() - began)
    proxy.faults = Faults()
    return times[0], times[1], sentence


def outage_in_run(
    proxy: StoreProxy, direct: str, folder: Path, wheels: Path, wanted: dict[str, str]
) -> tuple[float, str, Tally]:
    """A whole run whose store answers 503 for ever once the shards are in it, and the same command once it answers
    again: seconds from the outage to the end of the first, what that said, and what the second ended with."""
    folder.mkdir(parents=True)
    url = f"s3://{BUCKET}/run-{folder.parent.name}-{folder.name}"
    proxy.faults = Faults()
    with patch.dict(os.environ, AWS_ENDPOINT_URL_S3=direct):
        store = open_store(url)
    run = smoke(proxy.url, url, folder, wheels)
    while run.poll() is None and not any(key.endswith("/manifest.json") for key in store.list("stages/shard")):
        time.sleep(0.2)
    proxy.faults, began = Faults(("503",), share=1.0), time.monotonic()
    run.wait()
    seconds = time.monotonic() - began
    lines = (folder / "log").read_text().splitlines()
    error_lines = "; ".join(line for line in lines if line.startswith("daily-train: error"))
    again = Tally()
    proxy.faults = Faults(done=again.faults)
    (folder / "log").rename(folder / "log of the first")
    one_run(again, proxy, direct, folder, wheels, wanted)
    return seconds, error_lines, again


def main() -> None:
    """Print the tables and the goals."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=3, help="whole runs of each mix (default: %(default)s)")
    parser.add_argument("--stages", type=int, default=100, help="stages of each mix (default: %(default)s)")
    parser.add_argument("--mixes", nargs="*", default=list(MIXES), choices=list(MIXES))
    parser.add_argument("--outages", type=int, default=1, help="0: leave the outages out")
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the server is ended
    with tempfile.TemporaryDirectory(prefix="faults-") as temporary:
        folder = Path(temporary)
        (folder / "server").mkdir()
        with object_store(folder / "server") as environment, patch.dict(os.environ, environment):
            direct = environment["AWS_ENDPOINT_URL_S3"]
            with StoreProxy(direct, Faults()) as proxy:
                measure(arguments, proxy, direct, folder)


def measure(arguments: argparse.Namespace, proxy: StoreProxy, direct: str, folder: Path) -> None:
    """All tables, with the proxy running."""
    tallies: dict[str, list[Tally]] = {"stage": [], "run": []}
    in_run = None
    if arguments.stages:
        print(f"\nStages, a fifth of the requests harmed; timeouts of the mix `stalls`: 0.5 and 2 s\n\n{HEADER}")
        tallies["stage"] = stages(arguments, proxy, direct, folder)
    if arguments.runs:
        print(f"\nWhole runs of the preset smoke, a fifth of the requests harmed\n\n{HEADER}")
        tallies["run"], in_run = runs(arguments, proxy, direct, folder)
    worst: dict[str, Any] = {}
    if arguments.outages:
        print("\n| outage | told at the start after, s | while storing after, s | sentence |\n|---|---|---|---|")
        for name in ("connection refused", "always 503", "stalls"):
            start, storing, sentence = outage(name, proxy, folder, 400)
            print(f"| {name} | {start:.1f} | {storing:.1f} | {sentence} |", flush=True)
            worst[name] = (start, storing, sentence)
    print()
    for kind, found in tallies.items():
        if found:
            total = sum(tally.runs for tally in found)
            print_goal(f"{kind}s that end with the same digests", sum(tally.same for tally in found), total)
            print_goal(f"{kind}s: builds beside the first", sum(t.built_twice for t in found), 0, at_most=True)
            print_goal(f"{kind}s: objects left", sum(t.orphans for t in found), 0, at_most=True)
            for tally in found:
                for failure in tally.failures:
                    print(f"failure: {failure}")
    if in_run is not None:
        print_goal("a whole run in an outage, seconds to its end", in_run, 600, at_most=True)
    if worst:
        limit = s3.PATIENCE + s3.READ_SECONDS[1] + 2 * s3.CONNECT_SECONDS
        while_storing = [seconds for _, seconds, _ in worst.values()]
        print_goal("nothing listens at the start, seconds", worst["connection refused"][0], 15, at_most=True)
        print_goal("an outage while storing, longest seconds", max(while_storing), limit, at_most=True)
        print_goal("an outage while storing, shortest seconds", min(while_storing), 60)


def stages(arguments: argparse.Namespace, proxy: StoreProxy, direct: str, folder: Path) -> list[Tally]:
    """A tally of each mix, for stages of their own."""
    tallies = []
    reference = open_context(str(folder / "local"), None, 1, None, None, 0.0)
    wanted = build_or_skip(STAGE, reference, lambda _, out: write_outputs(out))
    for mix in arguments.mixes:
        tally = Tally()
        with patch.object(s3, "READ_SECONDS", (0.5, 2.0) if mix == "stalls" else s3.READ_SECONDS):
            for number in range(arguments.stages):
                proxy.faults = Faults(MIXES[mix], seed=arguments.seed + number, stall_seconds=5.0, done=tally.faults)
                one_stage(tally, proxy, direct, folder / mix, number, wanted.digest)
        proxy.faults = Faults()
        print(tally.row(mix), flush=True)
        tallies.append(tally)
    return tallies


def runs(
    arguments: argparse.Namespace, proxy: StoreProxy, direct: str, folder: Path
) -> tuple[list[Tally], float | None]:
    """A tally of each mix, for whole runs; the first, without faults, says what the digests are. And the seconds after
    which a run ends when the store fails in the middle of it and stays so."""
    proxy.faults = Faults()
    clean = Tally(faults=proxy.faults.done)
    wanted = one_run(clean, proxy, direct, folder / "clean" / "0", None, {})
    print(clean.row("none"), flush=True)
    tallies, in_run = [clean], None
    wheels = folder / "clean" / "0" / "cache" / "wheels"
    for mix in arguments.mixes:
        tally = Tally()
        for number in range(arguments.runs):
            proxy.faults = Faults(MIXES[mix], seed=1000 + arguments.seed + number, done=tally.faults)
            one_run(tally, proxy, direct, folder / mix / str(number), wheels, wanted)
        print(tally.row(mix), flush=True)
        for failure in tally.failures:
            print(f"failure: {failure!r}", flush=True)
        tallies.append(tally)
    if arguments.outages:
        in_run, error_lines, again = outage_in_run(proxy, direct, folder / "outage" / "0", wheels, wanted)
        print(again.row("none, after an outage"))
        print(f"\n503 for ever from the first shards on: the run ended after {in_run:.0f} s: {error_lines}", flush=True)
        tallies.append(again)
    return tallies, in_run


if __name__ == "__main__":
    main()
