"""The attention mask of rows that hold a tree of sequences."""

import pytest
import torch
import torch.nn.functional as F

from model.network.prefix_tree import additive


@pytest.mark.parametrize("length", [13, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_mask_of_numbers_is_the_mask_of_truth_values_and_is_aligned(length, dtype):
    """What a GPU gets: SDPA neither converts nor copies it."""
    generator = torch.Generator().manual_seed(0)
    seen_BTT = (torch.rand(2, length, length, generator=generator) < 0.5) | torch.eye(length, dtype=torch.bool)
    mask_BTT = additive(seen_BTT, dtype)
    assert mask_BTT.dtype is dtype and mask_BTT.shape == seen_BTT.shape
    assert mask_BTT.stride(2) == 1 and all(mask_BTT.stride(dim) % 8 == 0 for dim in (0, 1))
    q, k, v = torch.randn(3, 2, 4, length, 16, generator=generator).to(dtype)
    ways = [F.scaled_dot_product_attention(q, k, v, attn_mask=mask[:, None]) for mask in (seen_BTT, mask_BTT)]
    torch.testing.assert_close(*ways)
