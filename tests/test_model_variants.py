"""Every attention with every MLP: no leak from the future, honest counts, equal to a plain reference."""

import itertools
import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from model import cost
from model.attention import windowed_attention
from model.config import ConfigError, GPTConfig, parse
from model.gpt import GPT, initialise
from model.mlp import mixtures, rebalance
from model.sparse_attention import sparse_attention

BASE = dict(depth=3, width=32, heads=4, sequence_length=24, vocab_size=101)
EVERYTHING = dict(kv_heads=2, value_embeddings=True, residual_lambdas=True, embedding_lambdas=True, backout=True,
                  smear="embedding", attention_gate=True, qk_scale=1.2, softcap=15.0)
ATTENTIONS = {
    "full": {},
    "grouped": dict(kv_heads=2),
    "latent": dict(attention="mla"),
    "latent, learned positions": dict(attention="mla", position="learned", latent_size=6),
    "windows": dict(window_pattern="SSL", short_window=5),
    "key offset": dict(rotary_fraction=0.5, partial_key_offset=True, window_pattern="SL"),
    "smeared key": dict(smear="key"),
    "sparse": dict(window_pattern="N", sparse_block=4, sparse_blocks=2, short_window=4),
    "sparse, grouped": dict(window_pattern="SN", sparse_block=3, sparse_blocks=1, short_window=7, kv_heads=1),
    "sparse, latent": dict(attention="mla", window_pattern="NL", sparse_block=4, sparse_blocks=2),
    "everything": EVERYTHING,
    "everything, latent, offset": EVERYTHING | dict(
        kv_heads=None, attention="mla", rotary_fraction=0.5, partial_key_offset=True),
}
MLPS = {
    "relu2": {},
    "gelu": dict(activation="gelu"),
    "swiglu": dict(activation="swiglu"),
    "moe": dict(mlp="moe", experts=6, experts_per_token=2),
    "moe, swiglu, loss, none shared": dict(mlp="moe", activation="swiglu", experts=5, experts_per_token=2,
                                           shared_experts=0, balance="loss", balance_rate=0.1),
}
VARIANTS = {f"{attention} x {mlp}": BASE | a | m
            for (attention, a), (mlp, m) in itertools.product(ATTENTIONS.items(), MLPS.items())}


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # tiny tensors: threads only wait for each other
    yield
    torch.set_num_threads(threads)


def configuration(settings: dict) -> GPTConfig:
    return parse(GPTConfig, settings, "model")


def random_model(settings: dict) -> GPT:
    model = GPT(configuration(settings))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.empty(parameter.shape).normal_(0, 0.3, generator=generator))
    return model


def random_tokens(rows: int, length: int = 24) -> torch.Tensor:
    return torch.randint(0, 101, (rows, length), generator=torch.Generator().manual_seed(1))


def normal(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.empty(shape).normal_(generator=torch.Generator().manual_seed(seed)).requires_grad_()


@pytest.fixture(params=VARIANTS.values(), ids=VARIANTS.keys())
def model(request) -> GPT:
    return random_model(request.param)


def test_future_tokens_change_no_logits_and_get_no_gradient(model):
    tokens = random_tokens(3)
    before = model(tokens)
    for t in (1, 7, 12, 23):
        changed = tokens.clone()
        changed[:, t:] = (changed[:, t:] + 1) % 101
        after = model(changed)
        torch.testing.assert_close(before[:, :t], after[:, :t], rtol=0, atol=1e-5)
        assert (before[:, t] - after[:, t]).abs().max() > 1e-3
    kept = []
    model.token_embedding.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model(tokens)[:, 11].square().sum(), kept[-1])
    assert gradient[:, 12:].abs().max() == 0
    assert (gradient[:, :12].abs().amax(dim=(0, 2)) > 0).all()


def test_counts_are_the_models_and_the_products_it_does(model):
    config, tokens = model.config, random_tokens(2)
    assert cost.parameters(config)["total"] == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    counted = counter.get_flop_counts()["Global"]
    weights = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = 12 * config.width * sum(cost.attention_spans(config, 24))
    expected = (cost.flops_per_token(config, 24) - attention) // 3 * tokens.numel()
    experts = cost.parameters(config)["experts"]  # the counter does not know grouped products
    expected -= 2 * experts * config.experts_per_token // config.experts * tokens.numel()
    if config.smear == "embedding":
        expected -= 2 * 24 * 2  # the first token of a row has none before it
    assert weights == expected


def test_fresh_model_predicts_uniformly_and_every_weight_learns(model):
    initialise(model, 3)
    tokens = random_tokens(4)
    assert model(tokens[:, :-1], tokens[:, 1:]).item() == pytest.approx(math.log(101), abs=0.05)
    random = random_model(vars(model.config))
    random(tokens[:, :-1], tokens[:, 1:]).backward()
    for name, parameter in random.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.abs().sum() > 0, name


def assert_same_with_gradients(ours, theirs, inputs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)
    weights = normal(*ours.shape, seed=9).detach()
    for mine, reference in zip(torch.autograd.grad((ours * weights).sum(), inputs, retain_graph=True),
                               torch.autograd.grad((theirs * weights).sum(), inputs, retain_graph=True)):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=atol)


@pytest.mark.parametrize("window", [1, 5, 8, 23, 24, 100])
def test_windowed_attention_is_masked_attention(window):
    q, k, v = (normal(2, 3, 24, 8, seed=seed) for seed in range(3))
    distance = torch.arange(24)[:, None] - torch.arange(24)
    masked = F.scaled_dot_product_attention(q, k, v, attn_mask=(distance >= 0) & (distance < window))
    assert_same_with_gradients(windowed_attention(q, k, v, window), masked, (q, k, v))


@pytest.mark.parametrize(("size", "blocks", "length"), [(4, 2, 24), (5, 1, 23), (8, 9, 24), (8, 2, 6)])
def test_sparse_attention_is_the_loop_over_queries(size, blocks, length):
    q, k, v = (normal(1, 2, length, 8, seed=seed) for seed in range(3))
    weights = normal(size, seed=4)
    summary = torch.softmax(weights, 0)[:, None]
    compressed, selected = [], []
    for t in range(length):
        ended = [range(start, start + size) for start in range(0, length, size) if start + size <= t + 1]
        probability = torch.zeros(2, len(ended))
        rows = torch.zeros(2, 8)
        if ended:
            keys, values = (torch.stack([(x[0, :, list(block)] * summary).sum(1) for block in ended], 1)
                            for x in (k, v))
            scores = (keys @ q[0, :, t, :, None])[..., 0] / 8**0.5
            probability = scores.exp() / (1 + scores.exp().sum(-1, keepdim=True))
            rows = (probability[..., None] * values).sum(1)
        compressed.append(rows)
        own = t // size
        others = sorted((j for j in range(len(ended)) if j != own), key=lambda j: -probability[:, j].sum().item())
        read = sorted({i for j in others[:blocks] for i in ended[j]} | set(range(own * size, t + 1)))
        weight = torch.softmax((k[0, :, read] @ q[0, :, t, :, None])[..., 0] / 8**0.5, -1)
        selected.append((weight[..., None] * v[0, :, read]).sum(1))
    ours = sparse_attention(q, k, v, weights, blocks=blocks, shared=2)
    inputs = (q, k, v)
    assert_same_with_gradients(ours[0] + ours[1], (torch.stack(compressed, 1) + torch.stack(selected, 1))[None], inputs)


def test_latent_attention_is_attention_with_factored_keys_and_values():
    latent = random_model(BASE | dict(attention="mla", depth=1, position="learned")).blocks[0].attention
    x = normal(2, 24, 32)
    small = F.rms_norm(latent.latent(x), (8,), eps=1e-6)
    q, k, v = (y.view(2, 24, 4, 8).transpose(1, 2) for y in (latent.query(x), latent.key(small), latent.value(small)))
    q, k = (F.rms_norm(y, (8,), eps=1e-6) for y in (q, k))
    scores = (q @ k.mT / 8**0.5).masked_fill(torch.ones(24, 24).triu(1).bool(), -torch.inf)
    plain = latent.project((scores.softmax(-1) @ v).transpose(1, 2).reshape(2, 24, 32))
    assert_same_with_gradients(latent(x, None, None), plain, (x, latent.key.weight, latent.latent.weight), 1e-4)


@pytest.mark.parametrize("settings", [MLPS["moe"], MLPS["moe, swiglu, loss, none shared"]])
def test_mixture_is_the_sum_over_all_experts(settings):
    mixture = random_model(BASE | settings | dict(depth=1)).blocks[0].mlp
    x = normal(2, 24, 32)
    chosen, weights = mixture.route(x.flatten(0, 1))
    dense = torch.zeros(48, mixture.config.experts).scatter(-1, chosen, weights)
    h = torch.einsum("pd,emd->pem", x.flatten(0, 1), mixture.expert_expand)
    if settings.get("activation") == "swiglu":
        h = F.silu(h) * torch.einsum("pd,emd->pem", x.flatten(0, 1), mixture.expert_multiply)
    else:
        h = h.relu().square()
    plain = torch.einsum("pem,edm,pe->pd", h, mixture.expert_project, dense).view(x.shape)
    if mixture.shared is not None:
        plain = plain + mixture.shared(x)
    inputs = (x, mixture.expert_expand, mixture.expert_project, mixture.router.weight)
    assert_same_with_gradients(mixture(x), plain, inputs, 1e-3)


@pytest.mark.parametrize("balance", ["bias", "loss"])
def test_routers_even_out_the_load(balance):
    settings = BASE | dict(depth=1, mlp="moe", experts=8, experts_per_token=2, balance=balance, balance_rate=0.02)
    model = GPT(configuration(settings))
    initialise(model, 0)
    mixture = mixtures(model)[0]
    with torch.no_grad():
        mixture.router.weight[:2] += 0.2 * torch.ones(32)
    x = normal(4, 24, 32).detach() + 0.5
    loads = []
    for _ in range(150):
        mixture(x)
        if balance == "loss":
            (gradient,) = torch.autograd.grad(mixture.auxiliary_loss, mixture.router.weight)
            with torch.no_grad():
                mixture.router.weight -= 20 * gradient
        loads.append(rebalance(model))
    assert loads[0] > 2 and sum(loads[-10:]) / 10 < 1.5
    assert (mixture.balance_bias.abs().max() > 0) == (balance == "bias")


def test_auxiliary_loss_changes_gradients_and_not_the_loss():
    settings = BASE | dict(mlp="moe", experts=6, experts_per_token=2, balance="loss")
    tokens, values = random_tokens(2), []
    for rate in (0.0, 1.0):
        model = random_model(settings | dict(balance_rate=rate))
        loss = model(tokens[:, :-1], tokens[:, 1:])
        loss.backward()
        values.append((loss.item(), model.blocks[0].mlp.router.weight.grad))
    assert values[0][0] == pytest.approx(values[1][0], rel=1e-6)
    assert not torch.allclose(values[0][1], values[1][1])


def test_last_layer_is_long_and_tables_are_memory_only():
    config = configuration(BASE | dict(depth=6, window_pattern="SSSL", short_window=8, value_embeddings=True))
    assert "".join(config.windows) == "SSSLSL"
    assert cost.attention_spans(config, 24) == [8, 8, 8, 24, 8, 24]
    assert [config.has_value_embedding(layer) for layer in range(6)] == [False, True] * 3
    plain = configuration(BASE | dict(depth=6, window_pattern="SSSL", short_window=8))
    assert cost.parameters(config)["tables"] == 3 * 128 * 32
    assert cost.flops_per_token(config, 24) - cost.flops_per_token(plain, 24) == 6 * 3 * 12 * 4  # the gates


@pytest.mark.parametrize(("change", "words"), [
    (dict(window_pattern="SX"), "window_pattern.*SX"),
    (dict(kv_heads=3), "heads 4.*kv_heads 3"),
    (dict(attention="mla", kv_heads=2), "mla.*kv_heads is 2"),
    (dict(partial_key_offset=True), "rotary_fraction"),
    (dict(experts=2, experts_per_token=3), "experts_per_token.*at most experts, 2"),
])
def test_contradictions_are_named(change, words):
    with pytest.raises(ConfigError, match=words):
        configuration(BASE | change)
