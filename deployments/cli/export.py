"""`daily-train export RUN-OR-FOLDER DEST`: a finished model as a folder that `transformers` opens.

A network that is GPT-2 in all but size becomes a GPT2LMHeadModel. Every other one keeps its own names and brings
`modeling_daily_train.py` and the files of `model/` that it imports. Weights stay fp32. Torch is not needed.
"""

import dataclasses
import json
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from deployments.cli.exported_code import exported_code
from eval.reporting.model_card import model_card
from model.errors import DailyTrainError, expand_home, reason_of, regular_file, shown_value
from model.network.config import Activation, ConfigError, GPTConfig, Norm, Position, parse
from tasks.store.attempts import StageResult, fetch_outputs, load, read_json
from tasks.store.context import RunContext
from tasks.store.ledger import find_run, stage_of_run
from tasks.store.objects import digest_file
from tasks.store.source_digest import model_source_digest
from tasks.token_bytes import load_tokenizer

MODELLING = Path(__file__).with_name("modeling_daily_train.py")
Weights = dict[str, np.ndarray]


class ExportError(DailyTrainError):
    """A model cannot be exported; the message names the folder or file and the value."""


@dataclass(frozen=True, kw_only=True)
class FinishedModel:
    """A trained model, its tokenizer and what its run recorded."""

    model: Path
    """Folder with model.safetensors and config.json."""
    tokenizer: Path
    """Its tokenizer.json."""
    facts: dict[str, Any]
    """What the model card tells: `report`, `lock`, `lock_sha256`, `model_source`; missing where not recorded."""


def export(name: str, destination: Path, tokenizer: Path | None, context: RunContext) -> str:
    """Write the model called `name` to the new folder `destination`; returns the family it was written as.

    `name` is a folder with a finished model, or the beginning of a run's or its train stage's key, or `latest`.
    """
    if destination.exists() and (not destination.is_dir() or any(destination.iterdir())):
        raise ExportError(f"{destination}: exists already, and an export overwrites nothing")
    if destination.exists() and destination.samefile("."):  # it would be replaced, and whoever is in it sees nothing
        raise ExportError(f"{destination}: is the folder that the command runs in; name a new one")
    folder = expand_home(name)
    return write_export(
        _model_in_folder(folder, tokenizer) if folder.is_dir() else _model_of_run(name, context), destination
    )


def _model_in_folder(folder: Path, tokenizer: Path | None) -> FinishedModel:
    tokenizer_file = tokenizer or folder / "tokenizer.json"
    if not tokenizer_file.is_file():
        raise ExportError(
            f"{tokenizer_file}: there is no such file; a folder needs --tokenizer with its tokenizer.json"
        )
    return FinishedModel(model=folder, tokenizer=tokenizer_file, facts={})


def _model_of_run(name: str, context: RunContext) -> FinishedModel:
    row = find_run(name, context)
    trained, tokenizer = (stage_of_run(stage, row, context) for stage in ("train", "tokenizer"))
    facts: dict[str, Any] = {"model_source": trained.manifest.inputs.get("model_source")}
    if report := load("report", row["run"], context):
        facts["report"] = read_json(report, context, "report.json")
    if download := load("download", row["stages"].get("download", ""), context):
        facts |= _lock(download, context)
    return FinishedModel(
        model=fetch_outputs(trained, context),
        tokenizer=fetch_outputs(tokenizer, context) / "tokenizer.json",
        facts=facts,
    )


def _lock(download: StageResult, context: RunContext) -> dict[str, Any]:
    digest = download.manifest.output("lock.json").sha256
    return {"lock": read_json(download, context, "lock.json"), "lock_sha256": digest}


def write_export(finished: FinishedModel, destination: Path) -> str:
    """The exported folder; returns `gpt2` or `daily_train`. Raises ExportError for files that do not fit together."""
    record = _record(finished.model)
    digest = digest_file(finished.tokenizer).sha256
    if digest != record.get("tokenizer_sha256"):
        raise ExportError(
            f"{finished.tokenizer}: SHA-256 is {digest}, but {finished.model} was trained with "
            f"{shown_value(record.get('tokenizer_sha256'))}"
        )
    config = parse(GPTConfig, record.get("model"), f"{finished.model / 'config.json'}: model")
    tokenizer, number = load_tokenizer(finished.tokenizer), record.get("eot_token")
    eot = tokenizer.id_to_token(number) if type(number) is int and 0 <= number < 2**32 else None
    if eot is None:
        raise ExportError(f"{finished.tokenizer}: has no token {shown_value(number)}, the end of text of the model")
    try:
        weights = load_file(finished.model / "model.safetensors")
    except (OSError, SafetensorError, TypeError, KeyError) as error:
        raise ExportError(f"{finished.model / 'model.safetensors'}: cannot be read: {reason_of(error)}") from error
    try:
        if is_gpt2(config):
            family, (weights, described) = "gpt2", _gpt2(config, weights)
        else:
            family, (weights, described) = "daily_train", _daily_train(config, weights)
    except (LookupError, ValueError) as error:
        raise ExportError(
            f"{finished.model}: its config.json and model.safetensors do not belong together: {reason_of(error)}"
        ) from error
    ids = dict.fromkeys(("bos_token_id", "eos_token_id", "pad_token_id"), number)
    texts = {
        "config.json": {**described, **ids, "dtype": "float32"},
        "generation_config.json": ids,
        "tokenizer_config.json": {
            "tokenizer_class": "PreTrainedTokenizerFast",
            **dict.fromkeys(("bos_token", "eos_token", "pad_token"), eot),
            "model_max_length": config.sequence_length,
            "clean_up_tokenization_spaces": False,
        },
    }
    facts = finished.facts | {"record": record, "family": family, "model_source_here": model_source_digest()}
    temporary = destination.with_name(f".{destination.name}.tmp")
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        _fill(temporary, texts, weights, finished.tokenizer, family)
        (temporary / "README.md").write_text(model_card(facts))
        if destination.exists():
            destination.rmdir()  # only an empty one
        temporary.rename(destination)
    except (OSError, SafetensorError) as error:
        shutil.rmtree(temporary, ignore_errors=True)
        raise ExportError(f"{destination}: cannot be written: {reason_of(error)}") from error
    except (ValueError, TypeError, AttributeError) as error:  # the card tells what the record holds
        shutil.rmtree(temporary, ignore_errors=True)
        raise ExportError(f"{finished.model / 'config.json'}: {reason_of(error)}") from error
    return family


def _fill(folder: Path, texts: dict[str, dict], weights: Weights, tokenizer: Path, family: str) -> None:
    folder.mkdir(parents=True)
    for name, value in texts.items():
        (folder / name).write_text(json.dumps(value, indent=2) + "\n")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # the library writes it for its owner alone
    shutil.copyfile(tokenizer, folder / "tokenizer.json")
    if family == "daily_train":
        for name, source in exported_code(MODELLING).items():
            (folder / name).write_text(source)


def _record(folder: Path) -> dict[str, Any]:
    """config.json of a finished model whose weights are what it says."""
    try:
        record = json.loads(regular_file(folder / "config.json").read_text())
        found, expected = digest_file(folder / "model.safetensors").sha256, record["model_sha256"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise ExportError(f"{folder}: holds no finished model: {type(error).__name__}: {reason_of(error)}") from error
    if found != expected:
        raise ExportError(f"{folder / 'model.safetensors'}: SHA-256 is {found}, expected {expected}")
    return record


def is_gpt2(config: GPTConfig) -> bool:
    """Whether GPT2LMHeadModel computes the same function."""
    sizes = ("depth", "width", "heads", "mlp_ratio", "sequence_length", "vocab_size", "vocab_multiple")
    free = {name: getattr(config, name) for name in (*sizes, "tied_head", "bias", "zero_init_projections", "eot_token")}
    try:
        same = GPTConfig(norm=Norm.LAYER, position=Position.LEARNED, activation=Activation.GELU, qk_norm=False, **free)
    except ConfigError:
        return False
    return dataclasses.replace(config, kv_heads=None) == same and config.key_heads == config.heads


def _gpt2(config: GPTConfig, ours: Weights) -> tuple[Weights, dict[str, Any]]:
    """Weights and config.json of a GPT2LMHeadModel: its matrices are transposed, query, key and value are one, and
    what has no bias here gets one of zeros."""
    theirs: Weights = {
        "transformer.wte.weight": ours["token_embedding.weight"][: config.vocab_size],
        "transformer.wpe.weight": ours["position_embedding.weight"],
    }
    if not config.tied_head:
        theirs["lm_head.weight"] = ours["head.weight"][: config.vocab_size]

    def bias(name: str, size: int) -> np.ndarray:
        return ours.get(f"{name}.bias", np.zeros(size, np.float32))

    norms = {"transformer.ln_f": "final_norm"}
    for layer in range(config.depth):
        block, their = f"blocks.{layer}", f"transformer.h.{layer}"
        norms |= {f"{their}.ln_1": f"{block}.attention_norm", f"{their}.ln_2": f"{block}.mlp_norm"}
        for name, parts in (
            ("attn.c_attn", ("attention.query", "attention.key", "attention.value")),
            ("attn.c_proj", ("attention.project",)),
            ("mlp.c_fc", ("mlp.expand",)),
            ("mlp.c_proj", ("mlp.project",)),
        ):
            matrix = np.concatenate([ours[f"{block}.{part}.weight"] for part in parts]).T
            theirs[f"{their}.{name}.weight"] = np.ascontiguousarray(matrix)
            sizes = {part: len(ours[f"{block}.{part}.weight"]) for part in parts}
            theirs[f"{their}.{name}.bias"] = np.concatenate([bias(f"{block}.{part}", n) for part, n in sizes.items()])
    for their, name in norms.items():
        theirs |= {f"{their}.weight": ours[f"{name}.weight"], f"{their}.bias": bias(name, config.width)}
    described = {
        "architectures": ["GPT2LMHeadModel"],
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_embd": config.width,
        "n_head": config.heads,
        "n_inner": config.mlp_ratio * config.width,
        "n_layer": config.depth,
        "n_positions": config.sequence_length,
        "tie_word_embeddings": config.tied_head,
        "vocab_size": config.vocab_size,
        **dict.fromkeys(("attn_pdrop", "embd_pdrop", "resid_pdrop"), 0.0),
    }
    return theirs, described


def _daily_train(config: GPTConfig, ours: Weights) -> tuple[Weights, dict[str, Any]]:
    """The same weights under the model's prefix, and a config.json that points at the modelling file."""
    classes = {"AutoConfig": "DailyTrainConfig", "AutoModelForCausalLM": "DailyTrainForCausalLM"}
    described = {
        "architectures": ["DailyTrainForCausalLM"],
        "model_type": "daily_train",
        "auto_map": {auto: f"{MODELLING.stem}.{name}" for auto, name in classes.items()},
        "network": dataclasses.asdict(config),
    }
    return {f"gpt.{name}": value for name, value in ours.items()}, described
