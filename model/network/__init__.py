"""The network: its configuration, layers, text generation, and what it costs in parameters and FLOPs.

It imports `model.errors`, `model.parsing` and no other room, so that an exported model can carry these files with it.
"""
