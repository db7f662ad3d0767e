"""Running work: child processes that end with their parent (`child.py`, `child_process.py`), several processes on GPUs
(`ranks.py`, `devices.py`), the supervisor of a training, locks, progress, events, liveness, trackers.

Imports `model/`, figures of `eval/`, and `store/`.
"""
