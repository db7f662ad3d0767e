"""What is stored of a stage: outputs of an attempt, and the manifest that makes one of them the result; reading both.

    stages/<name>/<key>/manifest.json
    stages/<name>/<key>/<attempt>/<output>        one folder an attempt: two machines never mix their files
    stages/<name>/<key>/withdrawn-<attempt>.json  a manifest that was moved aside, because an output is damaged

In the work folder `built.json` is the manifest of a build that is complete. Until it is published the build stays, and
its attempt keeps its name: whoever comes back stores what is left, and nothing is built twice. Whoever publishes
removes the files of all other attempts.
"""

import hashlib
import json
import re
import shutil
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.runtime.logs import logger
from tasks.store import retries
from tasks.store.manifest import Json, Manifest, Output, StageError, manifest_key, parse_manifest
from tasks.store.objects import Digest, StoreError, digest_file, printable

if TYPE_CHECKING:
    from tasks.store.context import RunContext
    from tasks.store.stage import Stage

BUILT = "built.json"
"""In a work folder: the manifest of a build that is complete."""
ATTEMPT_DIGITS = 8
SECONDS_BEFORE_JUDGING = 0.5
WITHDRAWN = "withdrawn-"
UNKNOWN = "unknown-"
"""Instead of the attempt, of a manifest that cannot be read."""


@dataclass(frozen=True, kw_only=True)
class StageResult:
    """A finished stage as later stages see it."""

    manifest: Manifest
    skipped: bool
    seconds: float
    """Wall time now: of the check when it was skipped, of the build when it was built."""

    @property
    def digest(self) -> str:
        return self.manifest.digest


def verified_manifest(name: str, key: str, context: "RunContext") -> Manifest | None:
    """The stage's manifest when it is valid and every output is as it says; else None, and a bad one is moved aside."""
    where, manifest = manifest_key(name, key), None
    content = context.store.read(where)
    if content is None:
        return None
    try:
        manifest = parse_manifest(content, name, key)
        for output in manifest.outputs:
            _require_output(context, manifest.location(output), output)
    except StageError as error:
        logger().warning(
            "%s/%s is not valid: %s; stage %s is built again%s",
            context.store.url,
            where,
            error,
            name,
            withdraw_manifest(where, content, manifest, context),
        )
        return None
    return manifest


def _require_output(context: "RunContext", where: str, output: Output) -> None:
    """Raise StageError when the store does not hold the output; asked twice, since what follows costs a build. What
    another program brought there has no record of its SHA-256: then its bytes are read."""
    for again in (True, False):
        stored = context.store.digest(where)
        if stored == Digest(output.bytes, ""):
            copy = context.cache / where
            stored = digest_file(
                copy if matches_digest(copy, output.content) else context.store.get(where, context.cache)
            )
        if stored == output.content:
            return
        if again:
            time.sleep(SECONDS_BEFORE_JUDGING)
    if stored is None:
        raise StageError(f"{output.path} is missing")
    raise StageError(f"{output.path} is corrupted: it is {stored}, expected {output.content}")


def withdraw_manifest(where: str, content: bytes | None, manifest: Manifest | None, context: "RunContext") -> str:
    """Move a manifest aside, unless another has taken its place or the store is only read. How to say so."""
    if context.unwritable is not None or content is None or context.store.read(where) != content:
        return ""
    name = manifest.attempt if manifest else f"{UNKNOWN}{hashlib.sha256(content).hexdigest()[:8]}"
    aside = f"{where.removesuffix('manifest.json')}{WITHDRAWN}{name}.json"
    context.store.publish(aside, content)
    context.store.delete(where)
    return f" (its manifest is kept as {aside})"


def unpublished_build(stage: "Stage", context: "RunContext", work: Path) -> Manifest | None:
    """The manifest of a build that an earlier call completed and could not store, when each of its files is whole,
    here or in the store."""
    manifest = None
    try:
        manifest = parse_manifest((work / BUILT).read_bytes(), stage.name, stage.key)
        for output in manifest.outputs:
            if not matches_digest(work / "out" / output.path, output.content):
                _require_output(context, manifest.location(output), output)
    except FileNotFoundError:
        return None
    except (StageError, OSError) as error:
        logger().warning("stage %s: what was built in %s is not whole: %s; it is built again", stage.name, work, error)
        remove_path(work / BUILT if work.is_dir() else work)
        if manifest:
            context.store.clear(manifest.folder)
        return None
    logger().info("stage %s is built already: it is stored now", stage.name)
    return manifest


def remove_path(path: Path) -> None:
    """Remove what is there, whatever it is."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def discard_unpublished(work: Path, done: Manifest, context: "RunContext") -> None:
    """Another machine was faster, also than a process that was killed here while it built, or one was killed when its
    manifest had been published: leave nothing."""
    with suppress(StageError, OSError):
        kept = parse_manifest((work / BUILT).read_bytes(), done.stage, done.key)
        if kept.attempt != done.attempt:
            context.store.clear(kept.folder)
    shutil.rmtree(work, ignore_errors=True)


def publish_build(manifest: Manifest, context: "RunContext", out: Path) -> Manifest:
    """Store the outputs and then the manifest; gives that of another machine when it was faster."""
    where = manifest_key(manifest.stage, manifest.key)
    for _ in range(3):
        for output in manifest.outputs:
            if context.store.digest(manifest.location(output)) != output.content:
                context.store.put(manifest.location(output), out / output.path, output.content)
        ours = context.store.publish(where, manifest.content())
        winner = verified_manifest(manifest.stage, manifest.key, context)
        if winner is not None and winner.attempt == manifest.attempt:
            _remove_other_attempts(winner, context)
            return winner
        if winner is not None:
            context.store.clear(manifest.folder)
            return winner
    refused = "lost" if ours else "refused"
    raise StageError(
        f"stage {manifest.stage} {manifest.key}: {context.store.url} {refused} its manifest and holds no valid one"
    )


def _remove_other_attempts(done: Manifest, context: "RunContext") -> None:
    """Remove what other attempts left at a stage that is done, in this process or by a machine that was lost: whoever
    still writes there will be refused. What a manifest that was moved aside names stays."""
    folder = f"stages/{done.stage}/{done.key}/"
    names = {key.removeprefix(folder).split("/")[0] for key in context.store.list(folder)}
    aside = {name.removeprefix(WITHDRAWN).removesuffix(".json") for name in names if name.startswith(WITHDRAWN)}
    others = {name for name in names if re.fullmatch(f"[0-9a-f]{{{ATTEMPT_DIGITS}}}", name)} - aside - {done.attempt}
    if not others or any(name.startswith(UNKNOWN) for name in aside):
        return
    if context.store.read(manifest_key(done.stage, done.key)) == done.content():
        for name in sorted(others):
            context.store.clear(folder + name)


def matches_digest(path: Path, wanted: Digest) -> bool:
    """Whether a local file is there with the wanted content."""
    try:
        return path.is_file() and digest_file(path) == wanted
    except OSError:
        return False


def load(name: str, key: str, context: "RunContext") -> StageResult | None:
    """A stage that was finished before, by its key; None when the store does not hold it whole. Only reads."""
    began = time.monotonic()
    manifest = verified_manifest(name, key, replace(context, unwritable=context.unwritable or "only read"))
    if manifest is None:
        return None
    return StageResult(manifest=manifest, skipped=True, seconds=time.monotonic() - began)


def fetch_outputs(result: StageResult, context: "RunContext") -> Path:
    """A local folder with all outputs of a finished stage, each verified against the manifest.

    A local store is read in place; from a bucket each file is downloaded once into the cache, and again while its bytes
    change on the way. A file that is stored with other bytes than the manifest's is refused by name. Its manifest is
    moved aside, so that the next run builds the stage again.
    """
    manifest = result.manifest
    for output in manifest.outputs:
        key, wanted = manifest.location(output), output.content
        if matches_digest(context.cache / key, wanted):
            continue
        path = context.store.get(key, context.cache)
        if (found := digest_file(path)) != wanted and (found := digest_file(path)) != wanted:
            if path.is_relative_to(context.cache):
                path.unlink()
            where = manifest_key(manifest.stage, manifest.key)
            aside = withdraw_manifest(where, context.store.read(where), manifest, context)
            raise StageError(
                f"{context.store.url}/{key} is corrupted: {found.bytes} bytes with sha256 {found.sha256}, expected "
                f"{wanted.bytes} bytes with {wanted.sha256}; run again to build stage {manifest.stage} anew{aside}"
            )
    first = manifest.location(manifest.outputs[0])
    root = context.cache if (context.cache / first).is_file() else Path(context.store.url)
    return root / manifest.folder


def read_json(result: StageResult, context: "RunContext", path: str) -> Json:
    """One JSON output of a finished stage, verified."""
    output = result.manifest.output(path)
    content = context.store.read(result.manifest.location(output), most=output.bytes)
    if content is None or hashlib.sha256(content).hexdigest() != output.sha256:
        content = (fetch_outputs(result, context) / path).read_bytes()  # or it says what is wrong with it
    return json.loads(content)


def finished_manifests(name: str, context: "RunContext") -> Iterator[Manifest]:
    """Manifests of all stages of a name, without a look at their outputs; what is none is named and passed over."""
    for where in context.store.list(f"stages/{name}"):
        parts = where.split("/")
        if len(parts) == 4 and parts[3] == "manifest.json":
            try:
                if content := context.store.read(where):
                    yield parse_manifest(content, name, parts[2])
            except (StageError, StoreError) as error:
                if retries.is_transient(error):
                    raise
                logger().warning("%s/%s is passed over: %s", context.store.url, printable(where), printable(error))
