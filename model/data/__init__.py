"""Token shards and what is read of them: validation, packing, batches as a pure function, prefetching.

It imports `model.errors` and `model.network.config` alone.
"""
