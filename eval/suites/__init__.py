"""The five benchmark suites: what they are, their rows in one form, where rows come from, and task files for lm-eval.

It imports `eval.hub`.
"""
