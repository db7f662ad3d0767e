"""All parameters of a network under one schedule: Muon or PSGD for the hidden matrices, AdamW for everything else."""

import torch
from torch import Tensor, nn

from model.machine.parallel import assign_
from model.network.config import ConfigError
from model.optimizers.muon import Muon
from model.optimizers.psgd import PSGD
from model.training.config import OptimizerName, Precision, TrainConfig

_PRODUCTS = {Precision.FP32: torch.float32, Precision.FP16: torch.float16}  # else bf16


def roles(model: nn.Module) -> dict[str, list[tuple[str, nn.Parameter]]]:
    """Parameters by role: matrix (hidden), embedding, head, scalar (norms, biases, lambdas, gates, routers)."""
    grouped: dict[str, list[tuple[str, nn.Parameter]]] = {"matrix": [], "embedding": [], "head": [], "scalar": []}
    for name, parameter in model.named_parameters():
        if parameter.ndim < 2 or name.endswith(("gate.weight", "router.weight")):
            role = "scalar"
        elif "embedding" in name:
            role = "embedding"
        elif name.startswith("head"):
            role = "head"
        else:
            role = "matrix"
        grouped[role].append((name, parameter))
    return grouped


class Optimizer:
    """All parameters of a model under one schedule; its state is a flat dict of tensors."""

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        self.config = config
        grouped = roles(model)
        self.matrices: Muon | None = None
        if config.optimizer is OptimizerName.PSGD:
            matrices = [parameter for _, parameter in grouped.pop("matrix")]
            self.matrices = PSGD(matrices, config.weight_decay, config.cautious_decay)
        elif config.optimizer is OptimizerName.MUON:
            matrices = [parameter for _, parameter in grouped.pop("matrix")]
            dtype = _PRODUCTS.get(config.precision, torch.bfloat16)
            self.matrices = Muon(matrices, config.weight_decay, dtype, config.muon_beta2, config.cautious_decay)
        rates = {
            "matrix": config.learning_rate,
            "embedding": config.embedding_learning_rate or config.learning_rate,
            "head": config.head_learning_rate or config.learning_rate,
            "scalar": config.scalar_learning_rate or config.learning_rate,
        }
        self.names: dict[Tensor, str] = {parameter: name for group in grouped.values() for name, parameter in group}
        groups = [
            {
                "params": [parameter for _, parameter in group],
                "lr": rates[role],
                "peak": rates[role],
                "weight_decay": config.weight_decay if self.matrices is None and role != "scalar" else 0.0,
            }
            for role, group in grouped.items()
            if group
        ]
        self.adamw = torch.optim.AdamW(
            groups, betas=(config.adam_beta1, config.adam_beta2), eps=config.adam_epsilon, fused=True
        )
        for parameter in self.names:  # torch would wait for the first step: memory is full before it or not at all
            self.adamw.state[parameter] = {"step": torch.zeros((), device=parameter.device)} | {
                key: torch.zeros_like(parameter, requires_grad=False) for key in ("exp_avg", "exp_avg_sq")
            }

    def step(self, multiplier: float, momentum: float | None = None) -> None:
        """One update at `multiplier` of every peak rate; `momentum` is Muon's, null: the configured one."""
        if self.matrices is not None:
            self.matrices.step(
                self.config.learning_rate * multiplier,
                self.config.momentum if momentum is None else momentum,
                multiplier if self.config.cautious_decay else 1.0,
            )
        for group in self.adamw.param_groups:
            group["lr"] = group["peak"] * multiplier
        self.adamw.step()

    def compile(self, backend: str = "inductor") -> None:
        """Compile Muon's step, once a shape: a number of the schedule enters as a tensor, so none compiles again."""
        if self.matrices is not None:
            self.matrices.compile(backend)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything the next step depends on besides weights and configuration."""
        tensors = {
            f"adamw.{key}.{self.names[parameter]}": value
            for parameter, state in self.adamw.state.items()
            for key, value in state.items()
        }
        if self.matrices is not None:
            tensors |= {f"{self.config.optimizer.value}.{name}": value for name, value in self.matrices.state.items()}
        return tensors

    def state_bytes(self) -> int:
        """Size of state_tensors() after the first step; before it AdamW has no state."""
        moments = sum(2 * parameter.numel() * parameter.element_size() + 4 for parameter in self.names)
        stacks = self.matrices.state.values() if self.matrices is not None else ()
        return moments + sum(tensor.numel() * tensor.element_size() for tensor in stacks)

    def load_state_tensors(self, tensors: dict[str, Tensor]) -> None:
        """Inverse of state_tensors; refuses the state of another network or optimizer."""
        keys = ("step", "exp_avg", "exp_avg_sq")
        expected = {f"adamw.{key}.{name}" for name in self.names.values() for key in keys}
        if self.matrices is not None:
            expected |= {f"{self.config.optimizer.value}.{name}" for name in self.matrices.state}
        if different := sorted(expected ^ set(tensors)):
            raise ConfigError(f"the optimizer state is of another run: {different[0]!r} does not match")
        for parameter, name in self.names.items():
            step = tensors[f"adamw.step.{name}"].to(parameter.device, copy=True)
            moments = {key: torch.empty_like(parameter, requires_grad=False) for key in keys[1:]}
            for key, moment in moments.items():
                assign_(moment, tensors[f"adamw.{key}.{name}"])
            self.adamw.state[parameter] = {"step": step} | moments
        if self.matrices is not None:
            for name, value in self.matrices.state.items():
                assign_(value, tensors[f"{self.config.optimizer.value}.{name}"])
