"""The network: its configuration, layers, text generation, and what it costs in parameters and FLOPs.

It imports no other folder of `model/`, so that an exported model can carry these files with it.
"""
