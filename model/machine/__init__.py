"""The machine that trains: devices and their peaks, processes that work together, threads, compiled code that is kept.

It imports `model.network.config`, and of `model.training` the configuration alone.
"""
