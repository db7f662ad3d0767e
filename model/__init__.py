"""The network, its training and its data. Needs torch, numpy and safetensors alone, and imports none of our packages.

`train.py` is the entry point: `python -m model.train CONFIG.json`. Every folder may import `errors.py` (errors as a
person reads them), `files.py` (files written as a whole, SHA-256) and `parsing.py` (configurations from JSON).
"""
