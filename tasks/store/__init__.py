"""Where results are kept: a directory or an S3 bucket, stages with keys and manifests, checkpoints, ledger,
provenance."""
