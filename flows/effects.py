"""Which settings act only beside others: one that a person sets to no effect is refused.

A setting that a preset brings along may be without effect (the momentum of a recipe that is tried with AdamW); one that
somebody asks for may not, or its ablation would report the baseline.
"""

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from eval.suites.suites import SUITES
from model.errors import shown_value
from model.network.choices import AttentionKind, MLPKind, Norm, Position, Smear, Window
from model.network.config import GPTConfig
from model.training.config import OptimizerName, Precision, Schedule
from tasks.config import TokenizerKind

if TYPE_CHECKING:
    from flows.run_config import RunConfig


def _has_scalars(model: GPTConfig) -> bool:
    """Whether the network has parameters of role scalar (`model.optimizers.optimizer.roles`)."""
    return (
        model.norm is Norm.LAYER
        or model.bias
        or model.attention_gate
        or model.residual_lambdas
        or model.embedding_lambdas
        or model.backout
        or model.smear is not Smear.NONE
        or model.value_embeddings
        or model.mlp is MLPKind.MOE
        or Window.SPARSE in model.windows
    )


Condition = tuple[Callable[["RunConfig"], bool], str]

_MOE: Condition = (lambda run: run.model.mlp is MLPKind.MOE, "model.mlp is moe")
_ROTARY: Condition = (lambda run: run.model.position is Position.ROTARY, "model.position is rotary")
_SPARSE: Condition = (lambda run: Window.SPARSE in run.model.windows, "a layer has the window N")
_MATRICES: Condition = (lambda run: run.train.optimizer is not OptimizerName.ADAMW, "train.optimizer is muon or psgd")
_COOLDOWN: Condition = (
    lambda run: run.train.optimizer is not OptimizerName.ADAMW and run.train.cooldown_fraction > 0,
    "train.optimizer is muon or psgd and train.cooldown_fraction over 0",
)

ACTS_WHEN: dict[str, Condition] = {
    "model.latent_size": (lambda run: run.model.attention is AttentionKind.MLA, "model.attention is mla"),
    "model.rotary_base": _ROTARY,
    "model.rotary_fraction": (
        lambda run: (
            run.model.position is Position.ROTARY
            and (run.model.attention is AttentionKind.MHA or run.model.rotary_fraction <= 0.5)
        ),
        "model.position is rotary, at most 0.5 if model.attention is mla",
    ),
    "model.partial_key_offset": (lambda run: Window.LONG in run.model.windows, "a layer has the window L"),
    "model.qk_scale": (lambda run: run.model.qk_norm, "model.qk_norm is true"),
    "model.short_window": (
        lambda run: (
            not {Window.SHORT, Window.SPARSE}.isdisjoint(run.model.windows)
            and (run.model.short_window or 0) <= run.model.sequence_length
        ),
        "a layer has the window S or N and it is at most model.sequence_length",
    ),
    "model.sparse_block": _SPARSE,
    "model.sparse_blocks": _SPARSE,
    "model.mlp_ratio": (
        lambda run: run.model.mlp is MLPKind.DENSE or run.model.expert_hidden is None,
        "model.mlp is dense or model.expert_hidden is null",
    ),
    **dict.fromkeys(
        (
            "model.experts",
            "model.experts_per_token",
            "model.shared_experts",
            "model.expert_hidden",
            "model.balance",
            "model.balance_rate",
        ),
        _MOE,
    ),
    "train.head_learning_rate": (lambda run: not run.model.tied_head, "model.tied_head is false"),
    "train.scalar_learning_rate": (
        lambda run: _has_scalars(run.model),
        "the network has norms with weights, biases, gates, lambdas or routers",
    ),
    "train.momentum": _MATRICES,
    "train.momentum_warmup_steps": _MATRICES,
    "train.momentum_final": _COOLDOWN,
    "train.muon_beta2": (lambda run: run.train.optimizer is OptimizerName.MUON, "train.optimizer is muon"),
    "train.cautious_decay": (
        lambda run: run.train.optimizer is not OptimizerName.ADAMW and run.train.weight_decay > 0,
        "train.optimizer is muon or psgd and train.weight_decay over 0",
    ),
    "train.cooldown_fraction": (
        lambda run: run.train.schedule is Schedule.WSD or (run.train.momentum_final is not None and _COOLDOWN[0](run)),
        "train.schedule is wsd",
    ),
    "train.spike_steps": (lambda run: run.train.spike_deviations is not None, "train.spike_deviations is not null"),
    "train.fp8_smallest_size": (lambda run: run.train.precision is Precision.FP8, "train.precision is fp8"),
    "tokenizer.training_bytes": (lambda run: run.tokenizer.kind is TokenizerKind.TRAIN, "tokenizer.kind is train"),
    "evaluation.seed": (
        lambda run: run.evaluation.items_per_suite is not None,
        "evaluation.items_per_suite is not null",
    ),
    "evaluation.items_per_suite": (
        lambda run: any(SUITES[name].rows > (run.evaluation.items_per_suite or 0) for name in run.evaluation.suites),
        "it is under the number of items of a suite",
    ),
}
"""When each setting acts, and the same in words; one that is not here always does."""


def without_effect(run: "RunConfig", changes: dict[str, dict[str, Any]]) -> str | None:
    """Why one of the changes would do nothing, in one sentence; None: all do something. Null and false turn something
    off, which is no less off where it does nothing."""
    for section, fields in changes.items():
        for name, value in fields.items():
            acts, when = ACTS_WHEN.get(f"{section}.{name}", (lambda run: True, ""))
            if value is not None and value is not False and not acts(run):
                return f"{section}.{name} {shown_value(value)} has no effect: it acts where {when}"
    return None
