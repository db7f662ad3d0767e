"""Scoring beside lm-eval, scores of a public model, and how often intervals and tests are right."""
