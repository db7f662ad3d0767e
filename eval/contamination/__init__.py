"""Which benchmark items occur in training documents: words, index, scan, matches, verdicts, and the positive control.

The process is `check.py`. It imports `eval.suites`; `recount.py` also reads the pages of `eval.reporting`.
"""
