"""Every attention with every MLP: no leak from the future, honest counts, equal to a plain reference."""

import itertools
import math
from typing import Any

import pytest
import torch
from torch.nn.attention.flex_attention import flex_attention
from torch.utils.flop_counter import FlopCounterMode

from model.kernels.attention_kernels import block_mask
from model.network import flops
from model.network.attention import Attention
from model.network.config import GPTConfig
from model.network.document_mask import Documents
from model.network.experts import MixtureOfExperts, mixtures, rebalance
from model.network.gpt import GPT, Block, initialise
from model.network.sparse_attention import sparse_attention
from model.parsing import ConfigError, parse

BASE: dict[str, Any] = dict(depth=3, width=32, heads=4, sequence_length=24, vocab_size=101)
EVERYTHING: dict[str, Any] = dict(
    kv_heads=2,
    value_embeddings=True,
    residual_lambdas=True,
    embedding_lambdas=True,
    backout=True,
    smear="embedding",
    attention_gate=True,
    qk_scale=1.2,
    softcap=15.0,
)
ATTENTIONS: dict[str, dict[str, Any]] = {
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
    "everything, latent, offset": EVERYTHING
    | dict(kv_heads=None, attention="mla", rotary_fraction=0.5, partial_key_offset=True),
}
MLPS: dict[str, dict[str, Any]] = {
    "relu2": {},
    "gelu": dict(activation="gelu"),
    "swiglu": dict(activation="swiglu"),
    "moe": dict(mlp="moe", experts=6, experts_per_token=2),
    "moe, swiglu, loss, none shared": dict(
        mlp="moe",
        activation="swiglu",
        experts=5,
        experts_per_token=2,
        shared_experts=0,
        balance="loss",
        balance_rate=0.1,
    ),
}
VARIANTS = {
    f"{attention} x {mlp}": BASE | a | m
    for (attention, a), (mlp, m) in itertools.product(ATTENTIONS.items(), MLPS.items())
}


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


@pytest.fixture(params=list(VARIANTS.values()), ids=list(VARIANTS))
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
    assert flops.parameters(config)["total"] == sum(parameter.numel() for parameter in model.parameters())
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model(tokens)
    counted = counter.get_flop_counts()["Global"]
    weights = sum(flops for op, flops in counted.items() if str(op) in ("aten.mm", "aten.addmm"))
    attention = 12 * config.width * sum(flops.counted_keys(config, 24))
    expected = (flops.flops_per_token(config, 24) - attention) // 3 * tokens.numel()
    experts = flops.parameters(config)["experts"]  # the counter does not know grouped products
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


def norm(x: torch.Tensor) -> torch.Tensor:
    return x / (x.square().mean(-1, keepdim=True) + 1e-6).sqrt()


def turned(x: torch.Tensor, config: GPTConfig) -> torch.Tensor:
    """Rotary positions as a product of complex numbers."""
    half = config.rotary_size // 2
    angle = torch.outer(torch.arange(len(x)), config.rotary_base ** -(torch.arange(half) / half))
    z = torch.complex(x[..., :half], x[..., half : 2 * half]) * torch.polar(torch.ones_like(angle), angle)[:, None]
    return torch.cat((z.real, z.imag, x[..., 2 * half :]), -1)


def plain_attention(
    module: Attention,
    x: torch.Tensor,
    table: torch.Tensor | None,
    tokens: torch.Tensor,
    document: torch.Tensor,
    previous: list[int],
) -> torch.Tensor:
    """Attention of one row, head by head, every score computed and those that must not be seen thrown away."""
    c, w, T = module.config, dict(module.named_parameters()), len(x)
    H, J, K, R = c.heads, c.key_heads, c.head_size, c.rotary_size

    def linear(name: str, y: torch.Tensor) -> torch.Tensor:
        return y @ w[f"{name}.weight"].T

    latent = norm(linear("latent", x)) if c.attention == "mla" else x
    q, k, v = (
        linear(name, y).view(T, n, -1) for name, y, n in (("query", x, H), ("key", latent, J), ("value", latent, J))
    )
    if "rotary_key.weight" in w:
        k = torch.cat((linear("rotary_key", x)[:, None].expand(T, H, R), k), -1)
    if table is not None:
        v = v + 2 * torch.sigmoid(linear("value_gate", x[:, :12]))[..., None] * table[tokens].view(v.shape)
    if c.smear == "key":
        own = torch.sigmoid(w["key_smear"])[:, None]
        k = own * k + (1 - own) * k[previous]
    if R:
        q, k = turned(q, c), turned(k, c)
    q, k = norm(q) * c.qk_scale, norm(k) * c.qk_scale
    if c.partial_key_offset and module.window == "L":
        k = torch.cat((k[..., :R], k[previous][..., R:]), -1)
    distance = torch.arange(T)[:, None] - torch.arange(T)
    unseen = (distance < 0) | (document[:, None] != document)
    if module.window != "L":
        unseen = unseen | (distance >= c.short_window_tokens)
    heads = []
    for h in range(H):
        scores = (q[:, h] @ k[:, h * J // H].T / K**0.5).masked_fill(unseen, -torch.inf)
        heads.append(scores.softmax(-1) @ v[:, h * J // H])
    y = torch.stack(heads, 1)
    if module.window == "N":  # its other branches have a reference of their own below
        q1, k1, v1 = (z[None].transpose(1, 2).repeat_interleave(H // z.size(1), 1) for z in (q, k, v))
        documents = Documents(tokens[None], 0) if c.document_mask == "own" else None
        settings: dict[str, Any] = dict(blocks=c.sparse_blocks, shared=H // J, documents=documents)
        far = sparse_attention(q1, k1, v1, w["block_weights"], **settings)
        gates = torch.sigmoid(linear("branch_gate", x[:, :12])).view(T, 3, H, 1)
        branches = (y, *(z[0].transpose(0, 1) for z in far))
        y = torch.stack([gates[:, i] * z for i, z in enumerate(branches)]).sum(0)
    if c.attention_gate:
        y = y * 2 * torch.sigmoid(linear("output_gate", x[:, :12]))[..., None]
    return linear("project", y.reshape(T, -1))


def plain_mlp(module: torch.nn.Module, x: torch.Tensor, activation: str) -> torch.Tensor:
    """A dense layer, or all experts of a mixture on all tokens, weighted with 0 where they were not chosen."""

    def layer(expand: torch.Tensor, multiply: torch.Tensor | None, project: torch.Tensor) -> torch.Tensor:
        h = x @ expand.T
        cubic = 0.7978845608 * (h + 0.044715 * h**3)
        h = {"relu2": h.clamp_min(0) ** 2, "gelu": h / 2 * (1 + torch.tanh(cubic)), "swiglu": h * torch.sigmoid(h)}[
            activation
        ]
        return (h if multiply is None else h * (x @ multiply.T)) @ project.T

    w = dict(module.named_parameters())
    if not isinstance(module, MixtureOfExperts):
        return layer(w["expand.weight"], w.get("multiply.weight"), w["project.weight"])
    chosen, weights = module.route(x)
    share = torch.zeros(len(x), module.config.experts).scatter(-1, chosen, weights)
    multiply = w.get("expert_multiply")
    y = torch.zeros_like(x)
    for e in range(module.config.experts):
        gate = None if multiply is None else multiply[e]
        y = y + share[:, e, None] * layer(w["expert_expand"][e], gate, w["expert_project"][e])
    return y if module.shared is None else y + plain_mlp(module.shared, x, activation)


def plain_logits(model: GPT, tokens: torch.Tensor) -> torch.Tensor:
    """Logits of one row (T, V): what the network means, one step after the other."""
    c, w = model.config, dict(model.named_parameters())
    document = (tokens == 0).cumsum(0) if c.document_mask == "own" else torch.zeros_like(tokens)
    previous = [t - 1 if t and document[t] == document[t - 1] else t for t in range(len(tokens))]
    x = w["token_embedding.weight"][tokens]
    if c.position == "learned":
        x = x + w["position_embedding.weight"][: len(tokens)]
    x = norm(x)
    if c.smear == "embedding":
        gate = w["smear_lambda"] * torch.sigmoid(x[:, :24] @ w["smear_gate.weight"].T)
        looks_back = torch.tensor([[float(t != before)] for t, before in enumerate(previous)])
        x = x + looks_back * gate * x[previous]
    first = x
    for i, block in enumerate(model.blocks):
        assert isinstance(block, Block) and isinstance(block.attention, Attention)
        if c.residual_lambdas:
            x = x * w["residual_lambdas"][i] + w["embedding_lambdas"][i] * first
        table = w.get(f"value_embeddings.{i}.weight")
        x = x + plain_attention(block.attention, norm(x), table, tokens, document, previous)
        x = x + plain_mlp(block.mlp, norm(x), c.activation)
        if i == c.depth // 2:
            middle = x
    if c.backout:
        x = x - w["backout_lambda"] * middle
    logits = (norm(x) @ w["head.weight"].T)[:, : c.vocab_size]
    return logits if c.softcap is None else c.softcap * torch.tanh(logits / c.softcap)


@pytest.mark.parametrize("document_mask", ["none", "own"])
def test_logits_and_gradients_are_those_of_a_plain_reference(model, document_mask):
    model = random_model(vars(model.config) | dict(document_mask=document_mask, eot_token=0))
    tokens = documents_of_three_lengths()
    plain = torch.stack([plain_logits(model, row) for row in tokens])
    torch.testing.assert_close(model(tokens), plain, rtol=1e-3, atol=2e-3)
    weights = normal(*plain.shape, seed=9).detach()
    ours, theirs = (
        torch.autograd.grad((logits * weights).sum(), list(model.parameters())) for logits in (model(tokens), plain)
    )
    for (name, _), mine, reference in zip(model.named_parameters(), ours, theirs):
        assert (mine - reference).norm() <= 1e-3 * reference.norm() + 1e-4, name


def documents_of_three_lengths() -> torch.Tensor:
    """Two rows of 24 tokens; documents start at 5 and 12 of the first, at 0 and 12 of the second."""
    tokens = random_tokens(2).clamp_min(1)
    tokens[0, [5, 12]] = tokens[1, [0, 12]] = 0
    return tokens


def test_no_document_sees_another(model):
    model = random_model(vars(model.config) | dict(document_mask="own", eot_token=0))
    joined = random_model(vars(model.config) | dict(document_mask="none"))
    tokens = documents_of_three_lengths()
    changed = tokens.clone()
    changed[0, 6:12] = changed[0, 6:12] % 100 + 1
    changed[1, 1:12] = changed[1, 1:12] % 100 + 1
    difference, leak = ((net(tokens) - net(changed)).abs().amax(-1) for net in (model, joined))
    assert difference[:, 12:].max() < 1e-5 and difference[0, :6].max() < 1e-5
    assert difference[0, 6:12].min() > 1e-3 and difference[1, 1:12].min() > 1e-3
    assert leak[:, 12].min() > 1e-3, "without the mask the first token after the border does see it"
    kept = []
    model.token_embedding.register_forward_hook(lambda module, inputs, output: kept.append(output))
    (gradient,) = torch.autograd.grad(model(tokens)[:, 12:].square().sum(), kept[-1])
    assert gradient[:, :12].abs().max() == 0
    if model.config.position == "rotary":  # no reset is needed: a document alone has the same logits
        torch.testing.assert_close(model(tokens)[:, 12:], model(tokens[:, 12:]), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("window", [7, 40])
def test_flex_attention_is_masked_attention(window):
    # the compiled kernels and the gradient need a GPU; the mask is the same
    q, k, v = (normal(2, 3, 40, 16, seed=seed).detach() for seed in range(3))
    tokens = torch.randint(0, 9, (2, 40), generator=torch.Generator().manual_seed(0))
    documents = Documents(tokens, 0)
    flex = flex_attention(q, k, v, block_mask=block_mask(documents.number_BT, window))
    torch.testing.assert_close(documents.attention(q, k, v, window), flex)


def assert_same_with_gradients(ours, theirs, inputs, atol=1e-5):
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=atol)
    weights = normal(*ours.shape, seed=9).detach()
    for mine, reference in zip(
        torch.autograd.grad((ours * weights).sum(), inputs, retain_graph=True),
        torch.autograd.grad((theirs * weights).sum(), inputs, retain_graph=True),
    ):
        torch.testing.assert_close(mine, reference, rtol=1e-4, atol=atol)


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
            keys, values = (
                torch.stack([(x[0, :, list(block)] * summary).sum(1) for block in ended], 1) for x in (k, v)
            )
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
    assert flops.counted_keys(config, 24) == [8, 8, 8, 24, 8, 24]
    assert [config.has_value_embedding(layer) for layer in range(6)] == [False, True] * 3
    plain = configuration(BASE | dict(depth=6, window_pattern="SSSL", short_window=8))
    assert flops.parameters(config)["tables"] == 3 * 128 * 32
    assert flops.flops_per_token(config, 24) - flops.flops_per_token(plain, 24) == 6 * 3 * 12 * 4  # the gates


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (dict(window_pattern="SX"), "window_pattern.*SX"),
        (dict(kv_heads=3), "heads 4.*kv_heads 3"),
        (dict(attention="mla", kv_heads=2), "mla.*kv_heads is 2"),
        (dict(partial_key_offset=True), "rotary_fraction"),
        (dict(experts=2, experts_per_token=3), "experts_per_token.*at most experts, 2"),
    ],
)
def test_contradictions_are_named(change, words):
    with pytest.raises(ConfigError, match=words):
        configuration(BASE | change)
