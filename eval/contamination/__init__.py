"""Which benchmark items occur in training documents: words, index, scan, matches, verdicts, and the positive control.

The process is `check.py`. Texts become `words.py`, items `references.py` and an `index.py`; `ngram_scan.py` and
`renderings.py` find the index's n-grams in documents, `match.py` says what a document has of an item, and
`verdicts.py` adds it up and writes the files. The positive control is in `positive_control.py`, `planted_items.py`,
`probes.py`, `passages.py` and `canaries.py`; `audit.py` and `recount.py` check what came back. It imports
`eval.suites`, `eval.command` and `eval.document_parquet`; `recount.py` also reads the tables of `eval.reporting`.
"""
