"""A training: its configuration, the run and its steps, checkpoints, validation, metrics, and what stops it.

It imports all other folders of `model/`; of `planning` the choice of a micro-batch alone.
"""
