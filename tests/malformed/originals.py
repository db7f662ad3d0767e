"""Real files of each kind, which malformed inputs are made from."""

import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from eval.document_parquet import SCHEMA
from model.network.config import GPTConfig
from model.network.gpt import GPT
from model.training import checkpoint
from tasks.config import ShardConfig
from tasks.shard import write_shards
from tasks.store.context import open_context
from tasks.store.stage import Stage, build_or_skip
from tasks.tokenizer import train_bpe

TEXTS = [f"Speech {number}: the “Union” is {number * number} years old, naïve 日本 🚂.\n" * 3 for number in range(40)]


class Originals:
    """Real files of each kind, made once."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        train_bpe(iter(TEXTS), 300, 1).save(str(folder / "tokenizer.json"))
        self.tokenizer = json.loads((folder / "tokenizer.json").read_text())
        (folder / "documents").mkdir()
        for split, texts in (("train", TEXTS), ("val", TEXTS[:7])):
            columns = {"id": [f"{n}" for n in range(len(texts))], "text": texts, "source": [""] * len(texts)}
            pq.write_table(pa.table(columns, schema=SCHEMA), folder / "documents" / f"{split}_000000.parquet")
        (folder / "shards").mkdir()
        write_shards(
            ShardConfig(tokens_per_shard=1024), folder / "documents", folder / "tokenizer.json", 1, folder / "shards"
        )
        self.network = GPTConfig(depth=1, width=16, heads=2, sequence_length=16, vocab_size=300, eot_token=0)
        model = GPT(self.network)
        digest = checkpoint.file_sha256(folder / "tokenizer.json")
        checkpoint.publish_final(folder / "final", model, 0, digest, {"loss": 1.0})
        weights = {name: value.detach() for name, value in model.state_dict().items()}
        checkpoint.save(folder / "checkpoints", 1, weights, {"a": weights["blocks.0.mlp.expand.weight"]}, {"x": 1})
        context = open_context(str(folder / "store"), None, 1, "cpu", None, 0.0)

        def build(_: Path, out: Path) -> None:
            (out / "a.json").write_text("{}")

        self.result = build_or_skip(
            Stage(name="shard", version=1, config={"a": 1}, inputs={"b": "0" * 64}), context, build
        )
        self.row = {
            "run": "a" * 64,
            "preset": "smoke",
            "finished": "2026-01-01 00:00 UTC",
            "commit": "b" * 40,
            "bits_per_byte": 1.5,
            "loss_nats_per_token": 4.5,
            "validation_data": "c" * 64,
            "parameters": 1000,
            "tokens": 1000,
            "flops": 1e9,
            "seconds": 10.0,
            "usd": 0.1,
            "scores": {"arc_easy/acc": 0.25},
            "regressed": [],
            "stages": dict.fromkeys(("contamination", "evaluate", "tokenizer", "train"), "d" * 64),
        }
