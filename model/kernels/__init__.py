"""Attention kernels for GPUs, and the choice among them.

It imports `model.network` alone.
"""
