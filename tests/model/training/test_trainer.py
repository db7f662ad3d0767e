"""What is compiled: one graph of the network in training, one in validation, and nothing again over a whole run."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx

from benchmarks.gpu.stages import zipf_shards
from model.network.choices import DocumentMask
from model.network.scaling import learning_rates_for, sized
from model.training.config import Precision, TrainConfig
from model.training.metrics import NoLog
from model.training.run import TrainerConfig, TrainerExecution
from model.training.trainer import Trainer

VOCAB, SEQUENCE = 32, 16


def configured(directory: Path, precision: Precision, document_mask: DocumentMask) -> TrainerConfig:
    """A tiny network with the settings of `daily`, its schedule and optimizer in twelve steps of four micro-batches."""
    shards = directory / "shards"
    shards.mkdir()
    zipf_shards(shards, VOCAB, 20_000)
    model = replace(sized(2, width=32, heads=2, sequence_length=SEQUENCE), document_mask=document_mask, backout=True)
    rates: dict[str, Any] = {**learning_rates_for(model, 128)}
    train = TrainConfig(
        **rates,
        seed=1,
        tokens=12 * 128,
        tokens_per_step=128,
        micro_batch_sequences=2,
        warmup_steps=2,
        weight_decay=0.1,
        cautious_decay=True,
        muon_beta2=0.9,
        momentum_warmup_steps=4,
        momentum_final=0.9,
        cooldown_fraction=0.5,
        grad_clip=1.0,
        precision=precision,
        fp8_smallest_size=32,
        validation_every_steps=4,
        validation_tokens=128,
        checkpoint_every_steps=100,
    )
    return TrainerConfig(
        model=model,
        train=train,
        shards=str(shards),
        run_dir=str(directory / "run"),
        sample_prompts=[],
        execution=TrainerExecution(device="cpu", threads=1, compile=True),
    )


@pytest.mark.parametrize(
    ("precision", "document_mask"), [(Precision.FP8, DocumentMask.NONE), (Precision.BF16, DocumentMask.OWN)]
)
def test_a_whole_run_compiles_the_network_twice_and_nothing_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: Precision, document_mask: DocumentMask
):
    graphs: list[fx.Graph] = []

    def backend(module: fx.GraphModule, inputs: list[torch.Tensor]):
        graphs.append(module.graph)
        return module.forward

    compiled = torch.compile
    monkeypatch.setattr(
        torch,
        "compile",
        lambda *given, **settings: compiled(*given, **settings | {"backend": backend, "fullgraph": True}),
    )
    torch._dynamo.reset()
    trainer = Trainer(configured(tmp_path, precision, document_mask))
    documents = {int((row == trainer.dataset.eot_token).sum()) for row in trainer.batches.take(0)[0]}
    assert len(documents) > 1, "rows hold different numbers of documents"
    trainer.validate(NoLog())
    trainer.train_step()
    first = len(graphs)
    networks = [graph for graph in graphs if graph.find_nodes(op="call_function", target=F.embedding)]
    assert len(networks) == 2, "one for training, one for validation"
    assert first > 2, "the others are the optimizer's"
    trainer.train_step()
    with trainer.writer:
        trainer.save()
        trainer.writer.wait()
        for _ in range(2):
            trainer.train_step()
        assert trainer.resume() == [] and trainer.step == 2
    while trainer.step < trainer.steps:
        trainer.train_step()
        if trainer.step % 4 == 0:
            trainer.validate(NoLog())
    assert len(graphs) == first, "a step, the schedule, a validation or resuming compiled something again"
    torch._dynamo.reset()
