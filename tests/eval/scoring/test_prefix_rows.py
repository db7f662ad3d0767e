"""Rows of several sequences give every token what it has alone, for every variant of the network."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from eval.scoring.prefix_rows import batches, build_row, build_rows, pad_rows
from model.network.choices import Activation, AttentionKind, DocumentMask, MLPKind, Norm, Position, Smear
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.network.prefix_tree import Tree
from model.parsing import ConfigError

BASE: dict[str, Any] = {"depth": 3, "width": 32, "heads": 4, "sequence_length": 32, "vocab_size": 50}
GPT2 = {
    "norm": Norm.LAYER,
    "position": Position.LEARNED,
    "activation": Activation.GELU,
    "qk_norm": False,
    "bias": True,
    "tied_head": True,
    "zero_init_projections": False,
}
VARIANTS: dict[str, dict[str, Any]] = {
    "modern": {},
    "gpt2": GPT2,
    "gqa": {"kv_heads": 2},
    "mla": {"attention": AttentionKind.MLA},
    "windows": {"window_pattern": "SSL", "short_window": 5},
    "key smear": {"smear": Smear.KEY},
    "embedding smear": {"smear": Smear.EMBEDDING},
    "key offset": {"rotary_fraction": 0.5, "partial_key_offset": True},
    "documents": {"document_mask": DocumentMask.OWN, "eot_token": 4, "smear": Smear.EMBEDDING, "window_pattern": "SL"},
    "moe": {"mlp": MLPKind.MOE},
    "everything": {
        "smear": Smear.KEY,
        "value_embeddings": True,
        "residual_lambdas": True,
        "embedding_lambdas": True,
        "backout": True,
        "attention_gate": True,
        "softcap": 15.0,
        "window_pattern": "SL",
    },
}
# two contexts that share nothing, choices that share a beginning, one that is the beginning of another, one token
SEQUENCES = [(7, 3, 9, 4, 1, 8, 2, 6, 5, *end) for end in [(11, 12, 13), (11, 12, 14, 15, 16), (11,), (17,) * 12]]
SEQUENCES += [(20, 21, 22, 23), (20, 21, 24), (30,)]


def _network(settings: dict) -> GPT:
    network = GPT(GPTConfig(**BASE, **settings)).eval()
    initialise(network, seed=1)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for parameter in network.parameters():  # nothing may be 0 or 1, as projections and gates are at first
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=generator))
    return network


@pytest.mark.parametrize("name", VARIANTS)
@torch.inference_mode()
def test_a_token_has_in_a_shared_row_what_it_has_alone(name):
    network = _network(VARIANTS[name])
    rows = [build_row(sorted(SEQUENCES)), build_row(sorted(SEQUENCES[:2]))]
    batch = pad_rows(rows)
    assert batch.tokens.shape[1] < sum(map(len, SEQUENCES)) and batch.tokens.shape[1] > network.config.sequence_length
    tokens, *tree = (torch.from_numpy(x) for x in (batch.tokens, batch.positions, batch.parents, batch.ends))
    tree = Tree(tokens, *tree, network.config.eot_token)
    h_BTD = network.hidden(tokens, tree)
    assert torch.isfinite(h_BTD).all()
    read = torch.tensor([[8, 0, 23], [2, 15, 2]])
    torch.testing.assert_close(
        network.hidden(tokens, tree, read), torch.stack([h_BTD[0, read[0]], h_BTD[1, read[1]]]), atol=2e-5, rtol=1e-4
    )
    for number, row in enumerate(rows):
        for sequence, path in row.paths.items():
            alone_TD = network.hidden(torch.tensor([sequence]))[0]
            torch.testing.assert_close(h_BTD[number, path], alone_TD, atol=2e-5, rtol=1e-4)


def test_sparse_attention_never_shares_rows():
    network = _network({"window_pattern": "N", "sparse_block": 4})
    assert not network.shares_beginnings
    batch = pad_rows([build_row(sorted(SEQUENCES[:2]))])
    with pytest.raises(ConfigError, match="sparse attention cannot read a tree"):
        network.hidden(torch.from_numpy(batch.tokens), Tree(*(torch.from_numpy(batch.positions),) * 4))


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.lists(st.integers(0, 2), min_size=1, max_size=9).map(tuple), min_size=1, max_size=20),
    st.integers(1, 60),
    st.integers(1, 40),
)
def test_rows_hold_every_sequence_once_and_no_more_tokens_than_alone(sequences, longest, tokens):
    rows = build_rows(sequences, width=16, longest=longest)
    assert sorted(sequence for row in rows for sequence in row.paths) == sorted(set(sequences))
    assert sum(len(row.tokens) for row in rows) <= sum(map(len, set(sequences)))
    for row in rows:
        assert len(row.paths) == 1 or len(row.tokens) <= longest
        for sequence, path in row.paths.items():
            assert tuple(row.tokens[path]) == sequence
            assert row.positions[path].tolist() == list(range(len(sequence)))
            assert row.parents[path].tolist() == [path[0], *path[:-1]]
            last = path[-1]  # sees its own sequence and nothing else
            assert np.flatnonzero(row.ends[: last + 1] > last).tolist() == path.tolist()
    found = list(batches(rows, tokens))
    assert [row for batch in found for row in batch.rows] == rows
    assert all(batch.tokens.size <= tokens or len(batch.rows) == 1 for batch in found)


def test_choices_of_one_question_share_its_tokens():
    question = tuple(range(40))
    rows = build_rows([(*question, 50 + choice, 60) for choice in range(4)], width=64, longest=1024)
    assert [len(row.tokens) for row in rows] == [40 + 4 * 2]
