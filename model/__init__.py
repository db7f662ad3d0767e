"""The network, its training and its data. Needs torch, numpy and safetensors alone, and imports nothing of ours.

`train.py` is the entry point: `python -m model.train CONFIG.json`. `parsing.py` reads configurations, `errors.py` tells
errors. The rooms: `network/`, `kernels/`, `training/`, `data/`, `planning/` and `machine/`.
"""
