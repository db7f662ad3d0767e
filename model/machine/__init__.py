"""The machine that trains: devices and their peaks, processes that work together, threads, compiled code that is kept.

It imports `model.errors`, `model.parsing` and the configuration in `model.training`.
"""
