"""Token shards and what is read of them: packed rows, batches as a pure function of the step, prefetching.

It imports `model.network.config` alone.
"""
