"""The attention layers that window_pattern chooses from, and what another one is made of.

A new one takes three files: its letter in `Window` (choices.py), a class in a file of its own, and its place in
`ATTENTION_LAYERS` here; a fourth, config.py, if it has settings. The class extends Attention or WindowedAttention:

  __init__, read_values         its parameters, and what a query reads
  span, counted_keys,           what that costs: the window of the fast kernels, FLOPs and MFU
  visible_keys
  tensor_sizes                  sizes of what it computes on the way, for the plan of memory
  reads_trees                   False where its values depend on more than a token's ancestors

Parameters that come after those of Attention, as they do here, leave the weights drawn for other layers as they are.
"""

from model.network.attention import Attention, WindowedAttention
from model.network.config import GPTConfig, Window
from model.network.sparse_attention import SparseAttention

ATTENTION_LAYERS: dict[Window, type[Attention]] = {
    layer.window: layer for layer in (Attention, WindowedAttention, SparseAttention)
}


def attention_layers(config: GPTConfig) -> list[type[Attention]]:
    """The class of each layer's attention."""
    return [ATTENTION_LAYERS[window] for window in config.windows]
