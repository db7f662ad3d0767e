"""The stages of a run, one file each: a Prefect task over plain functions. Never imports torch.

Imports `eval/` and `model/`. The rooms: `store/` (where results are kept), `sources/` (where documents come from) and
`runtime/` (child processes, progress, liveness).
"""
