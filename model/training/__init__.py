"""A training: its configuration, the run and its steps, optimizers, schedule, checkpoints, validation, metrics.

It imports all other rooms of `model/`.
"""
