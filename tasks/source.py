"""The digest of the trainer's code, which is part of what a training is."""

import hashlib

from tasks.provenance import PROJECT
from tasks.stage import sha256_json


def model_source_digest() -> str:
    """SHA-256 of the files of model/: the code on main is the experiment."""
    files = sorted((PROJECT / "model").glob("*.py"))
    return sha256_json([[path.name, hashlib.sha256(path.read_bytes()).hexdigest()] for path in files])
