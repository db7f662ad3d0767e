"""A finished model of ours as `eval/scoring/scorer.py` sees it. Needs torch, numpy and safetensors alone."""

from contextlib import AbstractContextManager

import torch

from eval.scoring.arithmetic import in_fp32, round_weights
from eval.scoring.precision import Precision
from eval.scoring.prefix_rows import Batch
from eval.scoring.scorer import at_places, on_device
from model.network.config import DocumentMask
from model.network.prefix_tree import Tree
from model.training.checkpoint import FinalModel


class Checkpoint:
    """The network, its weights rounded to what `precision` computes with."""

    unproven = False  # tested for every variant

    def __init__(self, final: FinalModel, device: torch.device, precision: Precision = Precision.FP32) -> None:
        config = final.model.config
        assert config.vocab_size is not None  # no network is built without
        self.width, self.vocab_size, self.max_length = config.width, config.vocab_size, config.sequence_length
        self.shares_beginnings = final.model.shares_beginnings
        self.project = final.model.project
        round_weights(final.model, precision)
        self._model, self._device = final.model, device
        self._eot = None if config.document_mask is DocumentMask.NONE else config.eot_token
        # on a GPU, Documents compiles FlexAttention anew for every length of a row; a tree masks the same
        self._always_tree = device.type == "cuda" and self._eot is not None and self.shares_beginnings

    def in_fp32(self) -> AbstractContextManager[None]:
        return in_fp32(self._model)

    def hidden(self, batch: Batch, read_BR: torch.Tensor) -> torch.Tensor:
        tokens_BT = on_device(batch.tokens, self._device)
        if not batch.branched and not self._always_tree:
            return at_places(self._model.hidden(tokens_BT), read_BR)
        positions_BT, parents_BT = on_device(batch.positions, self._device), on_device(batch.parents, self._device)
        ends_BT = on_device(batch.ends, self._device)
        longest = int(batch.positions.max()) + 1
        tree = Tree(tokens_BT, positions_BT, parents_BT, ends_BT, self._eot, longest)
        return self._model.hidden(tokens_BT, tree, read_BR)
