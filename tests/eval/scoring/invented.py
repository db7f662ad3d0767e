"""Invented rows of every suite, a small tokenizer and a random network with the parts of GPT-2, ready to be scored."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from eval.scoring.harness import HarnessConfig, ScoringExecution
from eval.suites.items import write_rows
from eval.suites.suites import SUITES
from model.network.choices import Activation, Norm, Position
from model.network.config import GPTConfig
from model.network.gpt import GPT, initialise
from model.training.checkpoint import publish_final

WORDS = ["the", "a", "cat", "dog", "runs", "sees", "small", "old", "house", "tree", "and", "if", "river", "stone"]
QUICK = tuple(name for name in SUITES if name != "hellaswag")
"""Where all suites do not matter: lm-eval takes seconds to load the ten thousand items of HellaSwag."""
VOCAB = 400
NETWORK = GPTConfig(
    depth=2,
    width=32,
    heads=2,
    sequence_length=200,
    vocab_size=VOCAB,
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


def invented_rows(name: str, generator: np.random.Generator, count: int | None = None) -> list[dict]:
    """Rows of a suite, as many as it has unless `count` says otherwise."""

    def text(count: int) -> str:
        return " ".join(WORDS[number] for number in generator.integers(len(WORDS), size=count).tolist())

    rows: list[dict] = []
    for item in range(count or SUITES[name].rows):
        texts = [f"{text(1 + int(generator.integers(5)))} {end}" for end in WORDS[:4]]  # no two are the same
        if name.startswith("arc"):
            choices = {"text": texts, "label": list("ABCD")}
            rows.append({"id": str(item), "question": text(9), "choices": choices, "answerKey": "ABCD"[item % 4]})
        elif name == "hellaswag":
            asked = {"activity_label": text(1), "ctx_a": text(8), "ctx_b": "it"}
            rows.append(
                {"ind": item, **asked, "ctx": f"{asked['ctx_a']} it", "endings": texts}
                | {"source_id": str(item // 2), "split": "val", "split_type": "zeroshot", "label": str(item % 4)}
            )
        elif name == "winogrande":
            sentence = f"{text(6)} _ {text(4)}."
            rows.append({"sentence": sentence, "option1": "cat", "option2": "dog", "answer": str(1 + item % 2)})
        else:
            one = {"choices": texts[:3], "labels": [1, 0, 0]}
            many = {"choices": texts, "labels": [1, 0, 0, item % 2]}
            rows.append({"question": text(7) + "?", "mc1_targets": one, "mc2_targets": many})
    return rows


def write_inputs(directory: Path) -> HarnessConfig:
    """Rows of all suites, a tokenizer and a random GPT-2, as a configuration."""
    generator = np.random.default_rng(0)
    for name, suite in SUITES.items():
        rows = invented_rows(name, generator)
        write_rows(pa.Table.from_pylist(rows, schema=suite.schema), directory / "benchmarks" / f"{name}.parquet")
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([" ".join(generator.choice(WORDS, 2000)) + "\nQuestion: Answer:"], trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    model = GPT(NETWORK)
    initialise(model, seed=1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4.0)  # a sharper model: differences between choices that rounding cannot hide
    digest = hashlib.sha256((directory / "tokenizer.json").read_bytes()).hexdigest()
    publish_final(directory / "final", model, 0, digest, {})
    return HarnessConfig(
        checkpoint=directory / "final",
        tokenizer=directory / "tokenizer.json",
        benchmarks=directory / "benchmarks",
        suites=tuple(SUITES),
        items_per_suite=12,
        seed=3,
        out=directory / "out",
        execution=ScoringExecution(device="cpu", threads=1, batch_tokens=1000),
    )


def command_values(inputs: HarnessConfig, directory: Path) -> dict:
    """The configuration of a process that scores the same below another folder."""
    return {
        "checkpoint": str(inputs.checkpoint),
        "tokenizer": str(inputs.tokenizer),
        "benchmarks": str(inputs.benchmarks),
        "suites": list(inputs.suites),
        "items_per_suite": 12,
        "seed": 3,
        "out": str(directory / "out"),
        "execution": {"device": "cpu", "threads": 1, "batch_tokens": 1000},
    }
