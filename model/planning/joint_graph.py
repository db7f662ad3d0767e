"""The graphs that torch.compile makes of a function, without compiling them; importing the compiler takes seconds."""

from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table


class _Partitioned(Exception):
    """Ends a trace as soon as its graphs are known."""

    def __init__(self, *graphs: fx.Graph) -> None:
        super().__init__()
        self.graphs = graphs


def graphs_of(
    function: Callable[..., Tensor], *arguments: Any, cut: Callable[..., tuple] = min_cut_rematerialization_partition
) -> tuple[fx.Graph, fx.Graph]:
    """The graphs of the forward and the backward pass of `function`, which returns a loss.

    The first output of the forward graph is the loss, the others are what the backward pass reads. `cut` makes the two
    of the joint graph.
    """

    def partition(joint: fx.GraphModule, inputs: Any, **settings: Any) -> None:
        raise _Partitioned(*(module.graph for module in cut(joint, inputs, **settings)))

    def compiled(gm: fx.GraphModule, example_inputs: Sequence[Any]) -> NoReturn:
        raise AssertionError(f"torch {torch.__version__} did not partition the network")

    traced = aot_function(function, fw_compiler=compiled, partition_fn=partition, decompositions=select_decomp_table())
    try:
        traced(*arguments)
    except _Partitioned as done:
        forward, backward = done.graphs
        return forward, backward
    raise AssertionError(f"torch {torch.__version__} did not trace the network")
