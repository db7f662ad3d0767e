"""What is held in memory at each moment: of code that runs eagerly, and of a compiled graph.

Sizes are taken at a number of sequences that divides only what grows with the micro-batch
(`model.training.out_of_memory`), so one trace gives the bytes of every micro-batch. The last dimension of every array
is (fixed bytes, bytes a sequence).
"""

import weakref
from collections import defaultdict
from collections.abc import Container
from enum import Enum, auto
from typing import Any

import numpy as np
import torch
from torch import Tensor, fx
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
_FUSED = {
    aten.cat,
    aten.constant_pad_nd,
    aten.embedding,
    aten.full,
    aten.gather,
    aten.index,
    aten.scalar_tensor,
    aten.scatter,
    aten.select_scatter,
    aten.slice_scatter,
    aten._to_copy,
    torch.ops.prims.iota,
}
"""What Inductor fuses like a pointwise operation, but torch does not tag as one."""
_REDUCTIONS = {aten.amax, aten.amin, aten.any, aten.argmax, aten.mean, aten.prod, aten.sum, aten.var_mean}


def by_sequence(size: int, sequences: int) -> np.ndarray:
    """A size in bytes, taken at this number of sequences, as (fixed bytes, bytes a sequence)."""
    return np.array([0, size / sequences] if size % sequences == 0 else [size, 0.0])


def storages(values: Any) -> dict[int, Tensor]:
    """The tensors in a structure by the address of their storage; one of those that share a storage."""
    return {tensor.untyped_storage()._cdata: tensor for tensor in tree_leaves(values) if isinstance(tensor, Tensor)}


def nbytes(tensor: Tensor) -> int:
    """Bytes of the whole storage, of which the tensor may be a part."""
    return tensor.untyped_storage().nbytes()


class Allocations(TorchDispatchMode):
    """While it is entered, `timeline` gets what is held after each operation besides the storages `given`."""

    def __init__(self, sequences: int, given: Container[int]) -> None:
        super().__init__()
        self.sequences, self.given = sequences, given
        self.live: dict[int, weakref.ref] = {}
        self.now = np.zeros(2)
        self.timeline = [self.now]

    def __torch_dispatch__(self, function: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        result = function(*args, **(kwargs or {}))
        for address, tensor in storages(result).items():
            if address not in self.given and address not in self.live:
                self._allocate(address, tensor)
        self.timeline.append(self.now)
        return result

    def _allocate(self, address: int, tensor: Tensor) -> None:
        size = by_sequence(nbytes(tensor), self.sequences)

        def free(_: weakref.ref) -> None:
            del self.live[address]
            self.now = self.now - size

        self.live[address] = weakref.ref(tensor.untyped_storage(), free)
        self.now = self.now + size


class _Kind(Enum):
    ALIAS = auto()
    """Gives another view of its input."""
    FUSED = auto()
    """Part of the kernel that reads it."""
    REDUCTION = auto()
    """Reads as part of its own kernel, writes its result."""
    KERNEL = auto()
    """Reads from and writes to memory: matrix products, attention, scattered sums, what the graph returns."""


def graph_timeline(graph: fx.Graph, sequences: int, given: set[int]) -> np.ndarray:
    """What is held after each node of a compiled graph, which frees an input when it is read for the last time.

    The storages `given` are not counted. A chain of pointwise operations is one kernel: only what a kernel of
    another kind reads, and what the graph returns, is written to memory.
    """
    nodes = list(graph.nodes)
    own = {
        node: storages(node.meta.get("val")) if node.op in ("placeholder", "call_function") else {} for node in nodes
    }
    read = {node: set().union(*(own[source] for source in node.all_input_nodes)) - given for node in nodes}
    known = set(given)
    allocated: dict[fx.Node, set[int]] = {}
    sizes: dict[int, np.ndarray] = {}
    for node in nodes:
        allocated[node] = set(own[node]) - known
        known |= allocated[node]
        sizes |= {storage: by_sequence(nbytes(own[node][storage]), sequences) for storage in allocated[node]}
    kinds = {node: _kind(node, allocated[node]) for node in nodes}
    written = set().union(*(allocated[node] for node in nodes if kinds[node] is not _Kind.FUSED))
    written |= set().union(*(read[node] for node in nodes if kinds[node] is _Kind.KERNEL))

    last = {storage: place for place, node in enumerate(nodes) for storage in allocated[node]}
    for place, node in reversed(list(enumerate(nodes))):
        if kinds[node] is _Kind.ALIAS:
            continue
        in_memory = kinds[node] is not _Kind.FUSED or allocated[node] & written
        when = place if in_memory else max(last[storage] for storage in allocated[node])
        for storage in read[node]:
            last[storage] = max(last[storage], when)
    freed = defaultdict(set)
    for storage, place in last.items():
        freed[place].add(storage)
    now, timeline = np.zeros(2), []
    for place, node in enumerate(nodes):
        new, old = ([sizes[storage] for storage in changed & written] for changed in (allocated[node], freed[place]))
        after = now + sum(new, start=np.zeros(2)) - sum(old, start=np.zeros(2))
        # a pointwise kernel writes into an input of the same size that nothing reads later
        in_place = kinds[node] is _Kind.FUSED and len(new) == 1 and any((new[0] == size).all() for size in old)
        timeline.append(np.maximum(now, after) if in_place else now + sum(new, start=np.zeros(2)))
        now = after
    return np.array(timeline)


def _kind(node: fx.Node, allocated: set[int]) -> _Kind:
    if node.op != "call_function":
        return _Kind.KERNEL
    if not allocated:
        return _Kind.ALIAS
    packet, tags = getattr(node.target, "overloadpacket", None), getattr(node.target, "tags", ())
    if packet in _FUSED or torch.Tag.pointwise in tags:
        return _Kind.FUSED
    return _Kind.REDUCTION if packet in _REDUCTIONS else _Kind.KERNEL
