"""The graphs that torch.compile makes of a function, without compiling them; importing the compiler takes seconds."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx
from torch._functorch.aot_autograd import aot_function
from torch._functorch.partitioners import min_cut_rematerialization_partition
from torch._inductor.decomposition import select_decomp_table


class _Traced(Exception):
    """Ends a trace as soon as its graphs are known."""

    def __init__(self, *graphs: fx.Graph) -> None:
        super().__init__()
        self.graphs = graphs


def graphs_of(function: Callable[..., Tensor], *arguments: Any) -> tuple[fx.Graph, ...]:
    """The graph of the forward and the graph of the backward pass; under no_grad the first alone.

    The first output of a forward graph is the function's; with a backward pass the others are what that reads.
    """
    def partition(joint: fx.GraphModule, inputs: Any, **settings: Any) -> None:
        raise _Traced(*(module.graph for module in min_cut_rematerialization_partition(joint, inputs, **settings)))

    def inference(module: fx.GraphModule, inputs: Any) -> None:
        raise _Traced(module.graph)

    traced = aot_function(function, fw_compiler=inference, partition_fn=partition, decompositions=select_decomp_table())
    try:
        traced(*arguments)
    except _Traced as done:
        return done.graphs
    raise AssertionError(f"torch {torch.__version__} traced no graph")
