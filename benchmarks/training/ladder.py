"""The ladder: how much compute the `daily` recipe saves over tuned GPT-2 with AdamW, and what each technique adds.

Every point is a complete training with its own schedule, by the project's own trainer, at one of three sizes:

  sweep      learning rates of both recipes, on a seed that is not reported
  arms       the daily recipe at C, GPT-2 at multiples of C until one of them is better; paired seeds
  ablation   one technique removed from the recipe, or one candidate added; paired seeds, one size

A finished run is one JSON line in OUT/runs.jsonl, keyed by all that decides its result: an interrupted ladder goes on
where it was, and several processes may share one folder. `--report` prints the tables from the lines that are there.

  python -m benchmarks.training.ladder --corpus books.parquet --id-column id     # everything, hours on one core
  python -m benchmarks.training.ladder --report
"""

import argparse
import dataclasses
import hashlib
import json
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.training.ladder_report import Run, best_rate, mean_loss, read_runs, report
from eval.document_parquet import SCHEMA
from flows.run_config import compose
from model.data.shards import read_dataset
from model.training.loss_guard import TrainingError
from model.training.metrics import NoLog
from model.training.run import TrainerConfig, TrainerExecution
from model.training.trainer import Trainer
from tasks.config import ShardConfig
from tasks.download import is_validation
from tasks.shard import write_shards
from tasks.sources.config import FilesSource, Source
from tasks.sources.document_sources import Document, read_source
from tasks.store.source_digest import model_source_digest
from tasks.tokenizer import train_bpe

SEQUENCE_LENGTH, HEAD_SIZE = 128, 32
TOKENS_PER_STEP = 512
OTHER_RATES = ("embedding_learning_rate", "head_learning_rate", "scalar_learning_rate")
SECTIONS = ("model", "train", "shares")  # what a change names; shares: warm-ups as shares of all steps
VOCABULARY, VALIDATION_TOKENS = 1024, 49_152
TRAIN_BYTES, VALIDATION_BYTES, TOKENIZER_BYTES = 24_000_000, 600_000, 4_000_000
VALIDATION_FRACTION = 0.03  # of works, not of documents
PRESETS = {"daily": "mini-d2", "gpt2": "gpt2-124m"}  # mini-d2: the daily recipe with the rates of small networks
TUNING_SEED = 101
PHASES = ("arms", "ablation", "trials")


@dataclass(frozen=True)
class Size:
    """A rung: the same depth and width for both recipes."""

    name: str
    depth: int
    width: int
    steps: int  # of the daily recipe: the compute C of this size
    rates: dict[str, tuple[float, ...]]  # first tried for each recipe, around the best of the size before
    sweep_multiple: float  # GPT-2's rates are swept at this multiple of C
    first_multiple: float  # first horizon of GPT-2; others by factors of 1.5 until they lie on both sides


SIZES = (
    Size("d2", 2, 64, 384, {"daily": (0.01, 0.02, 0.04, 0.08), "gpt2": (2e-3, 4e-3, 8e-3, 16e-3)}, 6, 6),
    Size("d3", 3, 96, 384, {"daily": (0.02, 0.04, 0.08), "gpt2": (4e-3, 8e-3, 16e-3)}, 4, 9),
    Size("d4", 4, 128, 384, {"daily": (0.02, 0.04, 0.08), "gpt2": (2e-3, 4e-3, 8e-3)}, 4, 8),
)
# what else was tried for each recipe, on the tuning seed at the smallest size
TRIALS: dict[str, dict[str, dict[str, dict[str, Any]]]] = {
    "gpt2": {
        "warm-up 4 %": {"shares": {"warmup_steps": 0.0375}},
        "warm-up 40 %": {"shares": {"warmup_steps": 0.4}},
        "beta2 0.99": {"train": {"adam_beta2": 0.99}},
        "1024 tokens a step": {"train": {"tokens_per_step": 1024}},
        "no decay": {"train": {"weight_decay": 0.0}},
    },
    "daily": {
        "warm-up 5 %": {"shares": {"warmup_steps": 0.05}},
        "momentum warm-up 20 %": {"shares": {"momentum_warmup_steps": 0.2}},
        "beta2 0.99": {"train": {"adam_beta2": 0.99}},
        "1024 tokens a step": {"train": {"tokens_per_step": 1024}},
        "no decay": {"train": {"weight_decay": 0.0}},
    },
}
# what was found with trials like these and is used in all runs
CHOSEN: dict[str, dict[str, dict[str, Any]]] = {"gpt2": {"shares": {"warmup_steps": 0.25}}, "daily": {}}
ADAMW_RATES = (4e-3, 8e-3, 16e-3)
TUNED = "Muon → AdamW, rate swept"  # what needs rates of its own: the matrices, and a table that is also the head
ONE_RATE = "Muon and rates by role → AdamW with one rate, swept"
TIED = "untied → tied head, at the head's rate"
ABLATIONS: dict[str, dict[str, dict[str, Any]]] = {
    TUNED: {"train": {"optimizer": "adamw", "weight_decay": 0.0}},
    ONE_RATE: {"train": {"optimizer": "adamw", "weight_decay": 0.0} | dict.fromkeys(OTHER_RATES)},
    "rotary → learned positions": {"model": {"position": "learned"}},
    "QK-norm off": {"model": {"qk_norm": False}},
    "QK scale 1.2 → 1": {"model": {"qk_scale": 1.0}},
    "ReLU² → GELU": {"model": {"activation": "gelu"}},
    "zero-initialised projections → GPT-2's initialisation": {"model": {"zero_init_projections": False}},
    "RMSNorm → LayerNorm with weights": {"model": {"norm": "layer"}},
    TIED: {"model": {"tied_head": True}},
    "value embeddings off": {"model": {"value_embeddings": False}},
    "residual lambdas off": {"model": {"residual_lambdas": False}},
    "embedding lambdas off": {"model": {"embedding_lambdas": False}},
    "windows SSSL → L": {"model": {"window_pattern": "L"}},
    "softcap off": {"model": {"softcap": None}},
    "NorMuon off": {"train": {"muon_beta2": None}},
    "cautious decay → plain decay": {"train": {"cautious_decay": False}},
    "momentum schedule off": {"train": {"momentum_warmup_steps": 0, "momentum_final": None}},
    "Adam beta1 0.8 → 0.9": {"train": {"adam_beta1": 0.9}},
    "+ partial key offset": {"model": {"partial_key_offset": True, "rotary_fraction": 0.5}},
    "+ smear": {"model": {"smear": "embedding"}},
    "+ backout": {"model": {"backout": True}},
    "+ attention gate": {"model": {"attention_gate": True}},
    "rotary base 100k → 10k": {"model": {"rotary_base": 10_000.0}},
    "weight decay off": {"train": {"weight_decay": 0.0}},
    "cooldown 0.65 → 0.4": {"train": {"cooldown_fraction": 0.4}},
    "cooldown 0.65 → 0.85": {"train": {"cooldown_fraction": 0.85}},
    "final rate 0.05 → 0": {"train": {"final_lr_fraction": 0.0}},
}


def prepare(source: Source, folder: Path) -> Path:
    """Shards of the corpus in folder/shards, made once. The split is by work (a document's id up to '#'), so that no
    passage of a validated book was trained on; the documents of each split are shuffled, then cut to size."""
    out = folder / "shards"
    if (out / "shards.json").exists():
        return out
    out.mkdir(parents=True, exist_ok=True)
    documents = list(read_source(source, folder))
    parts: dict[str, list[Document]] = {"train": [], "val": []}
    sizes = {"train": TRAIN_BYTES, "val": VALIDATION_BYTES}
    for number in np.random.default_rng(0).permutation(len(documents)).tolist():
        document = documents[number]
        split = "val" if is_validation(document.id.partition("#")[0], VALIDATION_FRACTION) else "train"
        if sizes[split] > 0 and document.text.strip():
            parts[split].append(document)
            sizes[split] -= len(document.text.encode())
    for split, part in parts.items():
        columns = {name: [getattr(document, name) for document in part] for name in SCHEMA.names}
        pq.write_table(pa.table(columns, schema=SCHEMA), out / f"{split}_000000.parquet")
    left = TOKENIZER_BYTES
    texts = [d.text for d in parts["train"] if (left := left - len(d.text)) > 0]
    train_bpe(iter(texts), VOCABULARY, 1).save(str(out / "tokenizer.json"))
    write_shards(ShardConfig(tokens_per_shard=2**24), out, out / "tokenizer.json", 1, out)
    return out


def rates_at(recipe: str, rate: float) -> dict[str, float]:
    """The rates of embeddings, head and scalars keep their ratio to the learning rate: one dial."""
    preset = compose(PRESETS[recipe], {}).train
    factor = rate / preset.learning_rate
    others = {name: value * factor for name in OTHER_RATES if (value := getattr(preset, name))}
    return {"learning_rate": rate} | others


def config_of(
    recipe: str,
    size: Size,
    multiple: float,
    seed: int,
    rate: float,
    changes: dict[str, dict[str, Any]],
    shards: Path,
    run_dir: str,
) -> TrainerConfig:
    """A preset at this size for multiple x C, with CHOSEN and then `changes` applied. Warm-ups keep the
    preset's share of all steps."""
    preset = compose(PRESETS[recipe], {}).train
    changed = {section: CHOSEN[recipe].get(section, {}) | changes.get(section, {}) for section in SECTIONS}
    tokens_per_step = changed["train"].get("tokens_per_step", TOKENS_PER_STEP)
    steps = round(multiple * size.steps * TOKENS_PER_STEP / tokens_per_step)
    train: dict[str, Any] = {
        "seed": seed,
        "tokens": steps * tokens_per_step,
        "tokens_per_step": tokens_per_step,
        "micro_batch_sequences": tokens_per_step // SEQUENCE_LENGTH,
        "precision": "fp32",
        "validation_every_steps": steps,
        "validation_tokens": VALIDATION_TOKENS,
        "checkpoint_every_steps": steps,
        "sample_tokens": 0,
    }
    for name in ("warmup_steps", "momentum_warmup_steps"):
        share = getattr(preset, name) * preset.tokens_per_step / preset.tokens
        train[name] = round(changed["shares"].get(name, share) * steps)
    train |= rates_at(recipe, rate) | changed["train"]
    model = {
        "depth": size.depth,
        "width": size.width,
        "heads": size.width // HEAD_SIZE,
        "sequence_length": SEQUENCE_LENGTH,
    } | changed["model"]
    composed = compose(PRESETS[recipe], {"model": model, "train": train})
    return TrainerConfig(
        model=composed.model,
        train=composed.train,
        shards=str(shards),
        run_dir=run_dir,
        sample_prompts=[[0]],
        execution=TrainerExecution(device="cpu", threads=1),
    )


def changed_fields(config: Any) -> dict[str, Any]:
    """The fields that are not at their default: a key that a new field of the dataclass leaves as it is."""
    return {
        field.name: value
        for field in dataclasses.fields(config)
        if (value := getattr(config, field.name)) != field.default
    }


class Ladder:
    """Trains what is not in the file yet."""

    def __init__(self, folder: Path, source: Source) -> None:
        self.file = folder / "runs.jsonl"
        self.shards = prepare(source, folder)
        data = read_dataset(self.shards)
        self.data = [data.tokenizer_sha256, dataclasses.asdict(data.splits["train"])]
        self.code = model_source_digest()[:12]

    def run(
        self,
        phase: str,
        recipe: str,
        size: Size,
        multiple: float,
        seed: int,
        rate: float,
        arm: str = "",
        changes: dict[str, dict[str, Any]] | None = None,
    ) -> Run:
        """The result of one complete training, from the file if it is there. A run that diverges has no loss."""
        with tempfile.TemporaryDirectory() as run_dir:
            config = config_of(recipe, size, multiple, seed, rate, changes or {}, self.shards, run_dir)
            decides = [self.data, changed_fields(config.model), changed_fields(config.train)]
            key = hashlib.sha256(json.dumps(decides, sort_keys=True).encode()).hexdigest()[:16]
            known = [run for run in read_runs(self.file) if run.key == key]
            labels = {
                "phase": phase,
                "arm": arm or recipe,
                "size": size.name,
                "multiple": multiple,
                "seed": seed,
                "rate": rate,
            }
            for run in known:
                if all(getattr(run, name) == value for name, value in labels.items()):
                    return run
            result = dataclasses.asdict(known[0]) if known else self.train(config) | {"key": key, "code": self.code}
        run = Run(**result | labels)
        with self.file.open("a") as file:
            file.write("\n" + json.dumps(dataclasses.asdict(run)))  # also ends a line that a crash cut short
        print(
            f"{run.phase} {run.arm} {run.size} x{run.multiple:g} seed {run.seed} rate {run.rate:g}: "
            f"{run.bits_per_byte} bits per byte, {run.cpu_seconds:.0f} s",
            flush=True,
        )
        return run

    @staticmethod
    def train(config: TrainerConfig) -> dict[str, Any]:
        """One complete training in this process."""
        began, bits_per_byte = time.process_time(), None
        trainer = Trainer(config)
        try:
            for _ in range(trainer.steps):
                trainer.train_step()
            trainer.validate(NoLog())
            assert trainer.validation is not None
            bits_per_byte = trainer.validation.bits_per_byte
        except TrainingError as error:
            print(f"diverged: {error}")
        counted = trainer.run["parameters"]
        return {
            "tokens": trainer.run["tokens"],
            "flops": trainer.run["flops"],
            "bits_per_byte": bits_per_byte,
            "matrices": counted["matrices"],
            "parameters": counted["total"],
            "cpu_seconds": round(time.process_time() - began, 2),
        }

    def sweep(
        self,
        recipe: str,
        size: Size,
        multiple: float,
        rates: tuple[float, ...],
        arm: str = "",
        changes: dict[str, dict[str, Any]] | None = None,
    ) -> float:
        """The best learning rate on the tuning seed; factors of 2 are added until it is neither end."""
        tried = {rate: self.run("sweep", recipe, size, multiple, TUNING_SEED, rate, arm, changes) for rate in rates}
        while (best := best_rate(list(tried.values()))) in (min(tried), max(tried)):
            rate = best / 2 if best == min(tried) else best * 2
            tried[rate] = self.run("sweep", recipe, size, multiple, TUNING_SEED, rate, arm, changes)
        return best

    def tuned(self, recipe: str, size: Size) -> float:
        """The learning rate of a recipe at a size."""
        return self.sweep(recipe, size, size.sweep_multiple if recipe == "gpt2" else 1, size.rates[recipe])

    def trials(self, size: Size) -> None:
        """What else was tried for both recipes, at their best rates."""
        for recipe, trials in TRIALS.items():
            rate, multiple = self.tuned(recipe, size), size.sweep_multiple if recipe == "gpt2" else 1
            for name, changes in trials.items():
                self.run("sweep", recipe, size, multiple, TUNING_SEED, rate, f"{recipe}, {name}", changes)

    def arms(self, size: Size, seeds: list[int]) -> None:
        """The daily recipe at C and GPT-2 at horizons that lie on both sides of its loss."""
        rates = {recipe: self.tuned(recipe, size) for recipe in PRESETS}
        target = mean_loss([self.run("arms", "daily", size, 1, seed, rates["daily"]) for seed in seeds])

        def baseline(multiple: float) -> float:
            return mean_loss([self.run("arms", "gpt2", size, multiple, seed, rates["gpt2"]) for seed in seeds])

        multiple = size.first_multiple
        while baseline(multiple) < target:
            multiple /= 1.5
        while baseline(multiple) > target:
            multiple *= 1.5

    def ablations(self, size: Size, seeds: list[int], only: str) -> None:
        """The recipe at C/2, C and 2C, which turns losses into compute, then each change at C."""
        rate = self.tuned("daily", size)
        for seed in seeds:
            for multiple in (1, 0.5, 2):
                self.run("ablation", "daily", size, multiple, seed, rate)
        for arm, changes in ((arm, changes) for arm, changes in ABLATIONS.items() if only in arm):
            own, recipe = rate, rates_at("daily", rate)
            if arm == TIED:
                changes = changes | {"train": {"embedding_learning_rate": recipe["head_learning_rate"]}}
            if arm == TUNED:  # every other rate stays the recipe's
                changes = {"train": changes["train"] | {name: recipe[name] for name in OTHER_RATES}}
            if arm in (TUNED, ONE_RATE):
                own = self.sweep("daily", size, 1, ADAMW_RATES, arm, changes)
            for seed in seeds:
                self.run("ablation", "daily", size, 1, seed, own, arm, changes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path(".daily-train/ladder"), help="folder of shards and results")
    parser.add_argument("--corpus", help="text, JSONL or parquet file or folder; default: State of the Union speeches")
    parser.add_argument("--id-column", help="names the work of a document, up to '#'; default: each is its own")
    parser.add_argument(
        "--sizes",
        nargs="+",
        choices=[size.name for size in SIZES],
        default=[s.name for s in SIZES],
        help="rungs of the arms; ablation and trials take the first of them",
    )
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=PHASES)
    parser.add_argument("--only", default="", help="ablations whose name holds this")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--report", action="store_true", help="print the tables and train nothing")
    arguments = parser.parse_args()
    if not arguments.report:
        source = compose("laptop", {}).data.source
        if arguments.corpus:
            source = FilesSource(path=arguments.corpus, id_column=arguments.id_column)
        ladder = Ladder(arguments.out, source)
        for size in (size for size in SIZES if size.name in arguments.sizes):
            if "arms" in arguments.phases:
                ladder.arms(size, arguments.seeds)
        first = next(size for size in SIZES if size.name in arguments.sizes)
        if "ablation" in arguments.phases:
            ladder.ablations(first, arguments.seeds, arguments.only)
        if "trials" in arguments.phases:
            ladder.trials(first)
    print(report(read_runs(arguments.out / "runs.jsonl")))


if __name__ == "__main__":
    main()
