"""Weight updates: Muon, PSGD, AdamW, and the schedule of learning rate and momentum.

It imports `model.machine.parallel` and the configuration of a training.
"""
