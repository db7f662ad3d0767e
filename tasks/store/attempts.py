"""What is stored of a stage: outputs of an attempt, and the manifest that makes one of them the result.

    stages/<name>/<key>/manifest.json
    stages/<name>/<key>/<attempt>/<output>        one folder an attempt: two machines never mix their files
    stages/<name>/<key>/withdrawn-<attempt>.json  a manifest that was moved aside, because an output is damaged

In the work folder `built.json` is the manifest of a build that is complete. Until it is published the build stays, and
its attempt keeps its name: whoever comes back stores what is left, and nothing is built twice. Whoever publishes
removes the files of all other attempts.
"""

import hashlib
import re
import shutil
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from tasks.runtime.logs import logger
from tasks.store.manifest import Manifest, Output, StageError, manifest_key, parse_manifest
from tasks.store.objects import Digest, digest_file

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
