"""The machine that trains: GPUs and their peaks, processes that work together, threads, compiled code that is kept.

It imports no other folder of `model/`.
"""
