"""How long a training that was asked to end may take, by the bytes of its checkpoint: whatever waits for one before it
kills takes its limit from here. `deployments/` holds the same for the largest preset, in files that cannot compute.
"""

SECONDS = 30.0
"""For the step or validation that is under way."""
SECONDS_WITHOUT = 5.0
"""For a process that has nothing to save: to remove its temporary files and to end its own processes."""
BYTES_PER_SECOND = 100e6
"""The slowest disk, and the slowest store, that is waited for; usual ones take a tenth of the time."""


def seconds_to_save(checkpoint_bytes: int) -> float:
    """To write or to upload two checkpoints: the one that was under way, and the last."""
    return SECONDS + 2 * checkpoint_bytes / BYTES_PER_SECOND


def seconds_to_end(checkpoint_bytes: int) -> float:
    """To write what is left, to upload it, and to end."""
    return SECONDS + 2 * seconds_to_save(checkpoint_bytes) if checkpoint_bytes else SECONDS_WITHOUT
