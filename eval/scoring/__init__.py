"""Scores of a model: through lm-eval, for our models and those of `transformers`; rows, log-likelihoods, samples.

The processes are `harness.py` (our models), `pretrained.py` (models of `transformers`) and `rehearsal.py` (no model
yet). It imports `eval.suites`, `eval.command`, `eval.reporting.stats` and `model/`; `lm_eval` is imported in
`harness.py` alone.
"""
