"""Benchmarks, contamination and reports, without Prefect. Imports `model/` and nothing else of ours.

`hub.py` reads the Hugging Face hub, `document_parquet.py` the documents of a run, `command.py` is the contract of
modules that run as a process of their own. The rooms: `suites/`, `scoring/`, `contamination/` and `reporting/`.
"""
