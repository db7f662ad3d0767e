"""Weight updates: Muon, PSGD, AdamW, and the schedule of learning rate and momentum.

It imports `model.machine.parallel`, `model.network.config` and `model.training.config`.
"""
