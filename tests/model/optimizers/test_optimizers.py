"""Muon, AdamW's roles, the schedule, and resuming."""

import itertools
import math

import pytest
import torch
from torch import nn

from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.network.scaling import learning_rates_for, sized
from model.optimizers.muon import Muon, orthogonalise
from model.optimizers.optimizer import Optimizer
from model.optimizers.psgd import PSGD
from model.optimizers.schedule import learning_rate_multiplier, muon_momentum
from model.parsing import ConfigError, parse
from model.training.config import TrainConfig

TRAIN = dict(
    seed=0,
    tokens=1000,
    tokens_per_step=100,
    micro_batch_sequences=1,
    learning_rate=0.02,
    embedding_learning_rate=0.1,
    head_learning_rate=0.01,
    scalar_learning_rate=0.01,
    validation_every_steps=1,
    validation_tokens=1,
    checkpoint_every_steps=1,
)


PRESETS = {
    "gpt2": {"norm": "layer", "position": "learned", "activation": "gelu", "tied_head": True, "bias": True},
    "speedrun": {
        "smear": "embedding",
        "backout": True,
        "attention_gate": True,
        "partial_key_offset": True,
        "rotary_fraction": 0.5,
        "window_pattern": "SL",
    },
}


@pytest.mark.parametrize("name", PRESETS)
def test_the_network_compiles_as_one_graph(name):
    torch._dynamo.reset()
    model = GPT(
        parse(
            GPTConfig,
            {"depth": 2, "width": 32, "heads": 2, "sequence_length": 16, "vocab_size": 40} | PRESETS[name],
            "model",
        )
    )
    initialise(model, 0)
    x_BT = torch.arange(32).reshape(2, 16)
    found = torch._dynamo.explain(model)(x_BT, x_BT)
    assert (found.graph_count, found.graph_break_count) == (1, 0), found.break_reasons


def test_the_compiled_optimizer_is_the_same_and_the_schedule_compiles_nothing_again():
    models, counted = [new_model(), new_model()], []
    settings = config(muon_beta2=0.9, cautious_decay=True, weight_decay=0.1)
    optimizers = [Optimizer(model, settings) for model in models]
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    optimizers[1].compile(backend="aot_eager")
    for step in range(4):
        for model, optimizer in zip(models, optimizers):
            model.zero_grad()
            model(torch.arange(8)[None], torch.arange(8)[None]).backward()
            optimizer.step(1 / (step + 1), 0.85 + step / 100)
        counted.append(torch._dynamo.utils.counters["stats"]["unique_graphs"])
        if step == 2:  # as a training does that measures its speed first
            state = {name: value.clone() for name, value in optimizers[1].state_tensors().items()}
            optimizers[1] = Optimizer(models[1], settings)
            optimizers[1].compile(backend="aot_eager")
            optimizers[1].load_state_tensors(state)
    assert counted == 4 * [len(optimizers[1].matrices.groups)]
    for plain, compiled in zip(*(model.parameters() for model in models)):
        torch.testing.assert_close(plain, compiled)
    for plain, compiled in zip(*(optimizer.state_tensors().values() for optimizer in optimizers)):
        torch.testing.assert_close(plain, compiled)


def config(**settings) -> TrainConfig:
    return parse(TrainConfig, TRAIN | settings, "train")


def new_model() -> GPT:
    model = GPT(GPTConfig(depth=2, width=16, heads=2, sequence_length=8, vocab_size=40))
    initialise(model, 0)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("shape", [(3, 64, 64), (2, 32, 128), (2, 128, 32)])
def test_orthogonalise_sets_singular_values_to_one(shape, dtype):
    matrices = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    result = orthogonalise(matrices, dtype).float()
    singular = torch.linalg.svdvals(result)
    large = torch.linalg.svdvals(matrices) > 0.02 * matrices.norm(dim=(-2, -1))[:, None]
    assert singular.max() < 1.15 and singular[large].min() > 0.85
    U, _, Vh = torch.linalg.svd(matrices, full_matrices=False)
    alignment = (result * (U @ Vh)).sum(dim=(-2, -1)) / min(shape[1:])
    assert (alignment > 0.9).all(), "same singular vectors as the input"


def test_batched_equals_one_by_one():
    matrices = torch.randn(4, 16, 48, generator=torch.Generator().manual_seed(0))
    single = torch.cat([orthogonalise(matrix[None], torch.float32) for matrix in matrices])
    torch.testing.assert_close(orthogonalise(matrices, torch.float32), single, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("optimizer", ["muon", "psgd", "adamw"])
def test_zero_gradients_are_safe(optimizer):
    # zero-initialised projections give the other matrices exactly zero gradients in the first step
    model = new_model()
    chosen = Optimizer(model, config(optimizer=optimizer))
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    chosen.step(1.0)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, before[name], msg=name)


def test_muon_step_has_the_same_size_for_every_shape_and_decays():
    for rows, columns in ((32, 32), (64, 16), (16, 64)):
        parameter = nn.Parameter(torch.zeros(rows, columns))
        parameter.grad = torch.randn(rows, columns, generator=torch.Generator().manual_seed(0)) * 1e-4
        Muon([parameter], weight_decay=0.0, dtype=torch.float32).step(0.1, momentum=0.9)
        spectral_norm = torch.linalg.svdvals(parameter.detach())[0]
        assert spectral_norm == pytest.approx(0.1 * math.sqrt(max(1, rows / columns)), rel=0.15)
    decayed = nn.Parameter(torch.ones(4, 4))
    decayed.grad = torch.zeros(4, 4)
    Muon([decayed], weight_decay=0.5, dtype=torch.float32).step(0.1, momentum=0.9)
    torch.testing.assert_close(decayed.detach(), torch.full((4, 4), 0.95))


def test_each_role_moves_at_its_own_rate():
    model = GPT(GPTConfig(depth=1, width=16, heads=2, sequence_length=8, vocab_size=40, norm="layer", bias=True))
    initialise(model, 0)
    rates = {
        "learning_rate": 0.3,
        "embedding_learning_rate": 0.1,
        "head_learning_rate": 0.01,
        "scalar_learning_rate": 0.002,
    }
    chosen = Optimizer(model, config(optimizer="adamw", **rates))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    chosen.step(0.5)
    for name, value in model.named_parameters():
        role = "scalar" if value.ndim == 1 else "embedding" if "embedding" in name else name.split(".")[0]
        rate = 0.5 * rates.get(f"{role}_learning_rate", rates["learning_rate"])  # AdamW's first step is of size 1
        torch.testing.assert_close(before[name] - value, torch.full_like(value, rate), rtol=1e-3, atol=1e-6, msg=name)


@pytest.mark.parametrize("beta2", [None, 0.9])
def test_muon_subtracts_the_orthogonalised_nesterov_momentum(beta2):
    generator = torch.Generator().manual_seed(0)
    weight = nn.Parameter(torch.randn(8, 32, generator=generator))
    muon = Muon([weight], weight_decay=0.3, dtype=torch.float32, beta2=beta2, cautious=True)
    expected, momentum, square = weight.detach().clone(), torch.zeros(8, 32), torch.zeros(8, 1)
    for share in (0.6, 0.8, 0.9):
        gradient = torch.randn(8, 32, generator=generator)
        weight.grad = gradient.clone()
        muon.step(0.05, momentum=share)
        momentum = share * momentum + (1 - share) * gradient
        update = orthogonalise((share * momentum + (1 - share) * gradient)[None], torch.float32)[0]
        if beta2 is not None:
            square = beta2 * square + (1 - beta2) * update.square().mean(1, keepdim=True)
            update = update / square.sqrt() * (update.norm() / (update / square.sqrt()).norm())
        expected -= 0.05 * 0.3 * expected * (update * expected > 0) + 0.05 * update
    torch.testing.assert_close(weight.detach(), expected, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("optimizer", ["muon", "psgd", "adamw"])
def test_weight_decay_reaches_only_its_roles(optimizer):
    model = GPT(GPTConfig(depth=1, width=16, heads=2, sequence_length=8, vocab_size=40, norm="layer", bias=True))
    chosen = Optimizer(model, config(optimizer=optimizer, weight_decay=0.5))
    for parameter in model.parameters():
        parameter.data.fill_(1.0)
        parameter.grad = torch.zeros_like(parameter)
    chosen.step(1.0)
    decayed = {name for name, value in model.named_parameters() if (value < 1).all()}
    expected = {
        name
        for name, value in model.named_parameters()
        if value.ndim == 2 and (optimizer == "adamw" or name.startswith("blocks"))
    }
    assert decayed == expected


@pytest.mark.parametrize("optimizer", ["muon", "psgd", "adamw"])
def test_restored_state_continues_bit_exactly(optimizer):
    tokens = torch.randint(0, 40, (6, 4, 8), generator=torch.Generator().manual_seed(0))

    def steps(model, chosen, batches):
        for x in batches:
            model.zero_grad()
            model(x, x.roll(-1, 1)).backward()
            chosen.step(0.7)

    straight = new_model()
    steps(straight, Optimizer(straight, config(optimizer=optimizer)), tokens)
    first = new_model()
    chosen = Optimizer(first, config(optimizer=optimizer))
    steps(first, chosen, tokens[:3])
    state = {name: value.clone() for name, value in chosen.state_tensors().items()}
    second = GPT(first.config)
    second.load_state_dict(first.state_dict())
    restored = Optimizer(second, config(optimizer=optimizer))
    restored.load_state_tensors(state)
    steps(second, restored, tokens[3:])
    for name, value in straight.state_dict().items():
        assert torch.equal(value, second.state_dict()[name]), name


def test_state_of_another_optimizer_is_refused():
    model = new_model()
    with pytest.raises(ConfigError, match="another run"):
        Optimizer(model, config()).load_state_tensors({"adamw.step.head.weight": torch.zeros(())})


def test_wsd_schedule_warms_up_stays_and_cools_down():
    settings = config(warmup_steps=4, cooldown_fraction=0.5, final_lr_fraction=0.1)
    rates = [learning_rate_multiplier(settings, step, 20) for step in range(20)]
    assert rates[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert rates[4:11] == pytest.approx([1.0] * 7)
    assert rates[11:] == pytest.approx([0.1 + 0.9 * (20 - step) / 10 for step in range(11, 20)])


def test_cosine_schedule_falls_from_peak_to_final():
    settings = config(schedule="cosine", warmup_steps=2, final_lr_fraction=0.1)
    rates = [learning_rate_multiplier(settings, step, 22) for step in range(22)]
    assert rates[2] == pytest.approx(1.0) and rates[12] == pytest.approx(0.55)
    assert all(a > b for a, b in itertools.pairwise(rates[2:])) and 0.1 < rates[-1] < 0.11


@pytest.mark.parametrize(
    "settings",
    [
        dict(),
        dict(warmup_steps=50),
        dict(cooldown_fraction=0.0),
        dict(cooldown_fraction=1.0),
        dict(schedule="cosine", warmup_steps=50),
    ],
)
def test_no_step_is_wasted_and_no_rate_exceeds_the_peak(settings):
    rates = [learning_rate_multiplier(config(**settings), step, 10) for step in range(10)]
    assert all(0 < rate <= 1 for rate in rates)


def test_muon_momentum_rises_stays_and_falls_with_the_cooldown():
    settings = config(momentum=0.95, momentum_warmup_steps=5, momentum_final=0.9, cooldown_fraction=0.5)
    values = [muon_momentum(settings, step, 20) for step in range(20)]
    assert values[:6] == pytest.approx([0.85, 0.87, 0.89, 0.91, 0.93, 0.95])
    assert values[5:11] == pytest.approx([0.95] * 6)
    assert values[15] == pytest.approx(0.925) and 0.9 < values[19] < values[18]
    assert muon_momentum(config(), 0, 20) == 0.95


def test_normuon_evens_out_rows_and_keeps_the_size_of_the_update():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(64, 16, generator=generator) * torch.logspace(-2, 0, 64)[:, None]
    updates = []
    for beta2 in (None, 0.9):
        parameter = nn.Parameter(torch.zeros(64, 16))
        parameter.grad = gradient.clone()
        Muon([parameter], weight_decay=0.0, dtype=torch.float32, beta2=beta2).step(1.0, momentum=0.0)
        updates.append(parameter.detach())
    plain, normalised = updates
    assert normalised.norm() == pytest.approx(plain.norm().item(), rel=1e-4)
    rows = normalised.norm(dim=1)
    assert rows.max() / rows.min() < 1.01 < 10 < plain.norm(dim=1).max() / plain.norm(dim=1).min()


def test_cautious_decay_only_helps_the_update():
    parameter = nn.Parameter(torch.tensor([[3.0, -3.0], [-3.0, -3.0]]))
    parameter.grad = torch.eye(2)  # is its own orthogonalisation: moves [0, 0] towards 0, [1, 1] away
    muon = Muon([parameter], weight_decay=1.0, dtype=torch.float32, cautious=True)
    muon.step(0.1, momentum=0.0, decay_multiplier=0.5)
    decayed = parameter.detach() + 0.1 * orthogonalise(torch.eye(2)[None], torch.float32)[0]
    torch.testing.assert_close(decayed, torch.tensor([[3 * 0.95, -3.0], [-3.0, -3.0]]), rtol=0, atol=1e-6)


def test_a_stack_of_experts_is_updated_like_its_matrices():
    gradient = torch.randn(3, 8, 24, generator=torch.Generator().manual_seed(0))
    stack, single = nn.Parameter(torch.ones(3, 8, 24)), [nn.Parameter(torch.ones(8, 24)) for _ in range(3)]
    stack.grad = gradient.clone()
    for parameter, part in zip(single, gradient):
        parameter.grad = part.clone()
    for parameters in ([stack], single):
        Muon(parameters, weight_decay=0.1, dtype=torch.float32, beta2=0.9, cautious=True).step(0.1, momentum=0.9)
    torch.testing.assert_close(stack.detach(), torch.stack([parameter.detach() for parameter in single]))


@pytest.mark.parametrize(("rows", "columns"), [(12, 12), (8, 24), (24, 8)])
def test_psgd_whitens_correlated_gradients_of_any_size(rows, columns):
    generator = torch.Generator().manual_seed(0)
    mixers = [
        torch.linalg.qr(torch.randn(size, size, generator=generator))[0] * torch.logspace(-1, 0, size)
        for size in (rows, columns)
    ]
    parameters = [nn.Parameter(torch.zeros(rows, columns)) for _ in range(2)]
    kron, updates, gradients = PSGD(parameters, weight_decay=0.0), [], []
    for step in range(600):
        for parameter, size in zip(parameters, (1e-5, 1e3)):
            noise = torch.randn(rows, columns, generator=generator)
            parameter.grad = size * mixers[0] @ noise @ mixers[1].T
        before = parameters[0].detach().clone()
        kron.step(1.0, momentum=0.0)
        if step >= 300:
            updates.append(before - parameters[0].detach())
            gradients.append(parameters[0].grad)

    def spread(matrices: list[torch.Tensor]) -> float:
        stack = torch.stack(matrices)
        sides = (stack @ stack.mT, stack.mT @ stack)
        return max((torch.linalg.cond(side.mean(0))).item() for side in sides)

    assert spread(updates) < 2 < 90 < spread(gradients)
    assert torch.stack(updates).square().mean().sqrt().item() == pytest.approx(1, abs=0.15)
    sizes = [parameter.detach().norm() for parameter in parameters]
    assert 0.5 < sizes[0] / sizes[1] < 2, "small and large gradients move their weights alike"


def test_psgd_stays_finite_when_a_gradient_stops():
    parameter = nn.Parameter(torch.zeros(6, 4))
    kron = PSGD([parameter], weight_decay=0.0)
    for step in range(600):
        parameter.grad = torch.zeros(6, 4)
        if step < 5:
            parameter.grad[:3] = torch.randn(3, 4, generator=torch.Generator().manual_seed(step))
        kron.step(0.01, momentum=0.9)
    assert parameter.isfinite().all() and all(value.isfinite().all() for value in kron.state.values())
    assert (parameter[3:] == 0).all()


def test_depth_sizes_the_whole_network():
    sizes = [(config.width, config.heads, config.head_size) for config in map(sized, (2, 5, 12, 24))]
    assert sizes == [(128, 1, 128), (384, 3, 128), (768, 6, 128), (1536, 12, 128)]
    assert sized(4, sequence_length=256, vocab_size=4096).short_window_tokens == 64


def test_scaling_rules_leave_the_reference_alone_and_move_the_known_way():
    reference, large = sized(12), sized(24)
    rates = learning_rates_for(reference, 2**19)
    assert (rates["learning_rate"], rates["embedding_learning_rate"]) == (0.02, 0.3)
    larger = learning_rates_for(large, 2**19)
    assert larger["learning_rate"] == 0.02 and larger["head_learning_rate"] == pytest.approx(0.008 / 2**0.5)
    assert learning_rates_for(reference, 2**21)["learning_rate"] == pytest.approx(0.04)
