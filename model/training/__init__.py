"""A training: its configuration, the run and its steps, optimizers, schedule, checkpoints, validation, metrics.

It imports all other folders of `model/`; of `planning` the choice of a micro-batch alone.
"""
