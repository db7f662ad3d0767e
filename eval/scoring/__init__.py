"""Scores of a model: through lm-eval, for our models and those of `transformers`; rows, log-likelihoods, samples.

It imports `eval.suites`, `eval.reporting.stats` and `model/`; `lm_eval` is imported in `harness.py` alone.
"""
