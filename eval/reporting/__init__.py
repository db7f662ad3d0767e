"""What people read: the report and its sections, statistics, comparisons, tables of scores, figures, ledger, model
card; Markdown and HTML.

It imports `eval.scoring.precision` and `eval.suites`, and otherwise works on what other stages wrote.
"""
