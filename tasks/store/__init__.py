"""Where results are kept: a directory or an S3 bucket (`backends.py`, `s3.py`), stages with keys and manifests
(`stage.py`, `manifest.py`, `attempts.py`), checkpoints, ledger, provenance, and the context of a run (`context.py`).

Imports `model/`, of `eval/` the rows of the ledger, and locks, logs and trackers of `runtime/`. boto is imported in
`s3.py` and `s3_errors.py` alone.
"""
