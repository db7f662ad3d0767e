"""Identity of a stage and the manifest that says it is done.

The **key** of a stage is the SHA-256 of canonical JSON. A manifest names every output with its size and SHA-256, and
holds its own SHA-256; one that does not agree with it, or whose names would leave their folder, is damaged.
"""

import hashlib
import json
import math
import re
from dataclasses import asdict, dataclass, field
from typing import Any

from model.errors import DailyTrainError
from tasks.store.objects import Digest, name_problem, printable

Json = Any


class StageError(DailyTrainError):
    """A stage cannot be identified, verified or built; the message names the stage, the file and the value."""


@dataclass(frozen=True, kw_only=True)
class Output:
    """One file a stage produced, relative to the stage's attempt."""

    path: str
    bytes: int
    sha256: str
    volatile: bool = False
    """Holds timings or the like: verified as any other, but no part of what later stages are identified by."""

    @property
    def content(self) -> Digest:
        """What the file must hold."""
        return Digest(self.bytes, self.sha256)


@dataclass(frozen=True, kw_only=True)
class Manifest:
    """What a finished stage consumed, produced and how."""

    key: str
    stage: str
    version: int
    config: Json
    inputs: dict[str, str]
    attempt: str
    outputs: tuple[Output, ...]
    provenance: dict[str, Json] = field(default_factory=dict)

    @property
    def digest(self) -> str:
        """SHA-256 over the paths and digests of all outputs that are not volatile."""
        return sha256_json([[output.path, output.sha256] for output in self.outputs if not output.volatile])

    def output(self, path: str) -> Output:
        """The output of that name."""
        for output in self.outputs:
            if output.path == path:
                return output
        raise StageError(f"stage {self.stage} {self.key[:12]} has no output {path!r}")

    @property
    def folder(self) -> str:
        """Where in the store the outputs lie."""
        return f"stages/{self.stage}/{self.key}/{self.attempt}"

    def location(self, output: Output) -> str:
        """The output's key in the store."""
        return f"{self.folder}/{output.path}"

    def content(self) -> bytes:
        """The manifest as it is stored."""
        fields = asdict(self)
        for output in fields["outputs"]:
            output["recorded"] = output.pop("volatile")  # its name in a manifest
        text = json.dumps({**fields, "manifest_sha256": sha256_json(fields)}, indent=1, sort_keys=True)
        return text.encode()


def manifest_key(name: str, key: str) -> str:
    """Where in the store the manifest of a stage lies."""
    return f"stages/{name}/{key}/manifest.json"


def parse_manifest(content: bytes, name: str, key: str) -> Manifest:
    """The manifest of the stage `name` with that key. Raises StageError for one that is damaged or another's."""
    try:
        fields = json.loads(content)
        own = fields.pop("manifest_sha256")
        if own != sha256_json(fields):
            raise StageError("the manifest itself is corrupted")
        outputs = tuple(_output(**output) for output in fields.pop("outputs"))
        manifest = Manifest(**fields, outputs=outputs)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise StageError(f"the manifest itself is corrupted ({printable(error)})") from error
    if manifest.key != key or manifest.stage != name:
        raise StageError(f"its key is {printable(manifest.key)} of stage {printable(manifest.stage)}")
    _check(manifest)
    return manifest


def _output(*, recorded: bool = False, **fields: Json) -> Output:
    """Of its JSON in a manifest."""
    return Output(**fields, volatile=recorded)


def _check(manifest: Manifest) -> None:
    """Refuse types that nothing here writes, and names that would lead out of the folder of the attempt."""
    reason = name_problem(manifest.attempt) or ("it has parts" if "/" in manifest.attempt else None)
    if reason:
        raise StageError(f"the manifest itself is corrupted: attempt {printable(manifest.attempt)!r}: {reason}")
    names = [output.path for output in manifest.outputs]
    for output in manifest.outputs:
        if reason := name_problem(output.path):
            raise StageError(f"the manifest itself is corrupted: output {printable(output.path)!r}: {reason}")
        size, digest = output.bytes, output.sha256
        known = isinstance(digest, str) and re.fullmatch("[0-9a-f]{64}", digest)
        if type(size) is not int or size < 0 or not known or type(output.volatile) is not bool:
            raise StageError(f"the manifest itself is corrupted: output {output.path!r}: {printable(output)}")
    if not names or len(set(names)) < len(names):
        raise StageError("the manifest itself is corrupted: it names no output, or one twice")
    mappings = (manifest.config, manifest.inputs, manifest.provenance)
    if type(manifest.version) is not int or not all(isinstance(mapping, dict) for mapping in mappings):
        raise StageError("the manifest itself is corrupted: version, config, inputs or provenance has another type")


def canonical_json(value: Json) -> str:
    """The one JSON text of a value: sorted keys, no spaces. Refuses what has no deterministic form."""
    _refuse_unstable(value, "$")
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def _refuse_unstable(value: Json, where: str) -> None:
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise StageError(f"{where}: a key must be a string to be part of an identity, got {name!r}")
            _refuse_unstable(item, f"{where}.{name}")
    elif isinstance(value, list | tuple):
        for position, item in enumerate(value):
            _refuse_unstable(item, f"{where}[{position}]")
    elif isinstance(value, float):
        if not math.isfinite(value):
            raise StageError(f"{where}: {value} cannot be part of an identity")
    elif value is not None and not isinstance(value, str | int):
        raise StageError(f"{where}: a {type(value).__name__} cannot be part of an identity: {value!r}")


def sha256_json(value: Json) -> str:
    """SHA-256 (hex) of the canonical JSON of a value."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()
