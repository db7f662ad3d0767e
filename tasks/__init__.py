"""The stages of a run, one file each: a Prefect task over plain functions. Never imports torch.

Imports `eval/` and `model/`. The rooms: `store/` (where results are kept), `sources/` (where documents come from) and
`runtime/` (child processes, progress, liveness).

Beside the stages: `feasibility.py` and `preflight.py` (what is checked before training), `budget.py` (hours or dollars
as tokens), `token_bytes.py` (tokenizers that lose no byte), `explain.py` (why an item counts as contaminated).
"""
