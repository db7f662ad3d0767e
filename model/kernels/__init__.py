"""Attention kernels for GPUs, and the choice among them. They import `model.network` alone."""
