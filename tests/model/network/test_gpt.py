"""The network: causality, equality with GPT-2, its start, its flops."""

import math
from typing import Any

import pytest
import torch
from transformers import GPT2Config, GPT2LMHeadModel

from model.network import flops
from model.network.choices import Activation, Norm, Position
from model.network.config import GPTConfig
from model.network.generate import generate
from model.network.gpt import GPT, initialise
from model.parsing import ConfigError
from model.training.config import TrainConfig
from model.training.steps import resolve_steps, sequences_per_step

MODERN: dict[str, Any] = dict(depth=2, width=32, heads=2, sequence_length=24, vocab_size=101, softcap=15.0)
GPT2: dict[str, Any] = MODERN | dict(
    vocab_multiple=1,
    norm=Norm.LAYER,
    position=Position.LEARNED,
    activation=Activation.GELU,
    qk_norm=False,
    tied_head=True,
    bias=True,
    zero_init_projections=False,
    softcap=None,
)
VARIANTS = {
    "modern": MODERN,
    "gpt2": GPT2,
    "modern, learned positions": MODERN | dict(position=Position.LEARNED),
    "modern, tied, gelu, no qk-norm": MODERN | dict(tied_head=True, activation=Activation.GELU, qk_norm=False),
    "gpt2, rotary": GPT2 | dict(position=Position.ROTARY, bias=False),
}


def random_model(settings: dict) -> GPT:
    """All weights random: zero-initialised projections would hide attention from every test."""
    model = GPT(GPTConfig(**settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    return model


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
def model(request) -> GPT:
    return random_model(request.param)


def random_tokens(rows: int, length: int) -> torch.Tensor:
    return torch.randint(0, 101, (rows, length), generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("t", [1, 7, 23])
def test_future_tokens_do_not_change_logits(model, t):
    tokens = random_tokens(3, 24)
    changed = tokens.clone()
    changed[:, t:] = (changed[:, t:] + 1) % 101
    before, after = model(tokens), model(changed)
    torch.testing.assert_close(before[:, :t], after[:, :t], rtol=0, atol=1e-6)
    assert (before[:, t] - after[:, t]).abs().max() > 1e-3


def test_no_gradient_from_the_future(model):
    kept = []
    model.token_embedding.register_forward_hook(lambda module, inputs, output: kept.append(output))
    logits = model(random_tokens(2, 24))
    (gradient,) = torch.autograd.grad(logits[:, 10].square().sum(), kept[-1])
    assert gradient[:, 11:].abs().max() == 0
    assert (gradient[:, :11].abs().amax(dim=(0, 2)) > 0).all(), "the past must be seen"


def test_equals_gpt2_of_transformers():
    torch.manual_seed(0)
    theirs = GPT2LMHeadModel(GPT2Config(n_layer=2, n_embd=32, n_head=2, vocab_size=101, n_positions=24)).eval()
    ours = GPT(GPTConfig(**GPT2))
    with torch.no_grad():
        for parameter in theirs.parameters():
            parameter.normal_(0, 0.2)
        source = theirs.transformer
        ours.token_embedding.weight.copy_(source.wte.weight)
        ours.position_embedding.weight.copy_(source.wpe.weight)
        ours.final_norm.load_state_dict(source.ln_f.state_dict())
        for block, other in zip(ours.blocks, source.h):
            block.attention_norm.load_state_dict(other.ln_1.state_dict())
            block.mlp_norm.load_state_dict(other.ln_2.state_dict())
            attention = block.attention
            weights, biases = other.attn.c_attn.weight.T.chunk(3), other.attn.c_attn.bias.chunk(3)
            for layer, weight, bias in zip((attention.query, attention.key, attention.value), weights, biases):
                layer.load_state_dict({"weight": weight, "bias": bias})
            for layer, conv in (
                (attention.project, other.attn.c_proj),
                (block.mlp.expand, other.mlp.c_fc),
                (block.mlp.project, other.mlp.c_proj),
            ):
                layer.load_state_dict({"weight": conv.weight.T, "bias": conv.bias})
        tokens = random_tokens(3, 24)
        torch.testing.assert_close(ours(tokens), theirs(tokens).logits, rtol=1e-4, atol=1e-4)


def test_gpt2_parameter_count_is_the_published_one():
    config = GPTConfig(**GPT2 | dict(depth=12, width=768, heads=12, sequence_length=1024, vocab_size=50257))
    assert flops.parameters(config)["total"] == 124_439_808


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_fresh_model_predicts_uniformly(settings):
    model = GPT(GPTConfig(**settings))
    initialise(model, seed=3)
    tokens = random_tokens(8, 24)
    assert model(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(101), abs=0.05)


def test_same_seed_same_weights_other_seed_others():
    weights = []
    for seed in (1, 1, 2):
        model = GPT(GPTConfig(**MODERN))
        initialise(model, seed)
        weights.append(model.token_embedding.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


def test_padding_rows_are_never_predicted():
    model = random_model(MODERN)
    with torch.no_grad():
        model.head.weight[101:] = 100.0
    assert model(random_tokens(1, 5)).shape == (1, 5, 101)
    assert all(token < 101 for token in generate(model, [1], 50, seed=0, top_k=None, temperature=2.0))


def test_loss_skips_ignored_targets_and_matches_logits():
    model = random_model(MODERN)
    tokens = random_tokens(2, 24)
    targets = tokens.roll(-1, dims=1)
    targets[:, 5:] = -1
    logits = model(tokens)[:, :5].log_softmax(-1)
    expected = -logits.gather(-1, targets[:, :5, None]).mean()
    torch.testing.assert_close(model(tokens, targets), expected)


def test_logits_stay_within_softcap():
    model = random_model(MODERN | dict(softcap=5.0))
    assert 4 < model(random_tokens(2, 24)).abs().max() <= 5


@pytest.mark.parametrize("settings", VARIANTS.values(), ids=VARIANTS.keys())
def test_counted_parameters_are_the_models(settings):
    config = GPTConfig(**settings)
    assert flops.parameters(config)["total"] == sum(p.numel() for p in GPT(config).parameters())


def test_flops_per_token_by_hand():
    config = GPTConfig(**MODERN)
    matrices, head = 2 * (4 * 32 * 32 + 2 * 32 * 128), 128 * 32
    assert flops.flops_per_token(config, 24) == 6 * (matrices + head) + 12 * 2 * 32 * 24


def train_config(**settings: Any) -> TrainConfig:
    defaults: dict[str, Any] = dict(
        seed=0,
        tokens_per_step=96,
        micro_batch_sequences=2,
        optimizer="adamw",
        learning_rate=0.1,
        validation_every_steps=1,
        validation_tokens=1,
        checkpoint_every_steps=1,
    )
    return TrainConfig(**defaults | settings)


def test_budget_becomes_steps_and_is_never_exceeded():
    model = GPTConfig(**MODERN)
    assert resolve_steps(train_config(tokens=1000), model) == 10
    budget = 10.9 * 96 * flops.flops_per_token(model, 24)
    assert resolve_steps(train_config(flops=budget), model) == 10
    with pytest.raises(ConfigError, match="95 tokens"):
        resolve_steps(train_config(tokens=95), model)


def test_a_step_is_whole_micro_batches():
    with pytest.raises(ConfigError, match="tokens_per_step 100"):
        sequences_per_step(train_config(tokens=1000, tokens_per_step=100), GPTConfig(**MODERN))


def test_generation_is_seeded_greedy_at_zero_and_stops():
    model = random_model(MODERN)
    prompt = list(range(40))  # longer than the network sees
    sampled = generate(model, prompt, 12, seed=1)
    assert sampled == generate(model, prompt, 12, seed=1) != generate(model, prompt, 12, seed=2)
    assert len(sampled) == 12
    greedy = generate(model, prompt, 1, seed=5, temperature=0)
    assert greedy == [int(model(torch.tensor([prompt[-24:]]))[0, -1].argmax())]
    assert generate(model, prompt, 12, seed=1, top_k=1) == generate(model, prompt, 12, seed=9, temperature=0)
    assert generate(model, prompt, 12, seed=1, stop_token=sampled[3]) == sampled[: sampled.index(sampled[3])]
    with pytest.raises(ConfigError, match="101"):
        generate(model, [101], 1, seed=0)


def test_a_network_draws_no_weights_of_its_own():
    before = torch.get_rng_state()
    GPT(GPTConfig(**GPT2))
    assert torch.equal(torch.get_rng_state(), before)
