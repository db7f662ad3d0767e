"""Scores any causal language model of `transformers`: `python -m eval.scoring.pretrained CONFIG.json`.

The model is a folder, a `.gguf` file, or an id on the hub; its tokens, its length, its left truncation and the type of
its weights are those of lm-eval's `hf` backend with the same dtype. Two short cuts are taken only where they were
seen to be exact: the head apart from the rest (compared with the whole model when it is loaded), and rows of several
sequences, through position ids and a 4-D mask (compared in fp32 on the longest real row and sequence, `Scorer`).

Shape suffixes: B rows, T tokens, D width, U positions, V vocabulary.
"""

import inspect
import os
import sys
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# read when a model is loaded: a thread of the library would ask a service of the hub to convert its weights
os.environ.setdefault("DISABLE_SAFETENSORS_CONVERSION", "1")

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from transformers.utils.hub import cached_file, extract_commit_hash

from eval.command import run
from eval.scoring.arithmetic import DTYPES, in_fp32
from eval.scoring.harness import (
    AnswerModel,
    HarnessError,
    ScoringConfig,
    evaluate_model,
    prepare,
    require_finite,
    require_steady,
    tokenized_on_all_threads,
)
from eval.scoring.prefix_rows import Batch
from eval.scoring.scorer import Scorer, at_places, on_device

_UNKNOWN_LENGTH = 2048  # what the hf backend assumes
_TOLERANCE = 1e-3


@dataclass(frozen=True, kw_only=True)
class PretrainedConfig(ScoringConfig):
    model: str
    """A folder that `transformers` opens, a `.gguf` file, or an id on the hub."""
    revision: str | None = None
    """Of an id on the hub: branch, tag or commit; null: what the hub gives at present."""
    trust_code: bool = False
    """Run the modelling file that the model brings along."""


class Pretrained:
    """A `transformers` model as `eval/scoring/scorer.py` sees it."""

    unproven = True

    def __init__(self, model: PreTrainedModel, max_length: int) -> None:
        self.model, self._device = model, model.device
        self.max_length = max_length
        embedding = _embedding(model)
        self.width = embedding.size(1)
        sample = torch.arange(8, device=model.device)[None] * (len(embedding) // 8)
        head = model.get_output_embeddings()
        with torch.inference_mode():
            logits_BTV = model(sample, use_cache=False).logits
            self.head_apart = head is not None and isinstance(model.base_model, PreTrainedModel)
            if self.head_apart:  # unless the model caps or scales its logits after the head
                h_BTD = getattr(model.base_model(sample, use_cache=False), "last_hidden_state", None)
                self.head_apart = h_BTD is not None and _agree(head(h_BTD), logits_BTV)
        self.vocab_size = logits_BTV.size(-1)
        self._head = head
        takes_positions = "position_ids" in inspect.signature(model.forward).parameters
        self.shares_beginnings = takes_positions and not _has_windows(model.config)

    def in_fp32(self) -> AbstractContextManager[None]:
        return in_fp32(self.model)

    def hidden(self, batch: Batch, read_BR: Tensor) -> Tensor:
        """h_BRD, or logits_BRV where the head does not come apart."""
        tree = {}
        if batch.branched:
            positions_BT, ends_BT = (on_device(array, self._device) for array in (batch.positions, batch.ends))
            place_T = torch.arange(ends_BT.size(1), device=self._device)
            seen_BTT = (place_T <= place_T[:, None]) & (place_T[:, None] < ends_BT[:, None, :])
            dtype = _embedding(self.model).dtype
            mask_B1TT = torch.zeros_like(seen_BTT, dtype=dtype).masked_fill_(~seen_BTT, torch.finfo(dtype).min)[:, None]
            tree = {"position_ids": positions_BT, "attention_mask": mask_B1TT}
        tokens_BT = on_device(batch.tokens, self._device)
        if self.head_apart:
            return at_places(self.model.base_model(tokens_BT, use_cache=False, **tree).last_hidden_state, read_BR)
        return at_places(self.model(tokens_BT, use_cache=False, **tree).logits, read_BR)

    def project(self, h_UD: Tensor) -> Tensor:
        return (self._head(h_UD) if self._head is not None and self.head_apart else h_UD).float()


def _embedding(model: PreTrainedModel) -> Tensor:
    """Weights of the input embedding, a row a token."""
    weight = model.get_input_embeddings().weight
    if not isinstance(weight, Tensor):
        raise HarnessError(f"{type(model).__name__}: its input embedding has no tensor of weights")
    return weight


def _agree(parts: Tensor, whole: Tensor) -> bool:
    """Whether the head on the hidden states gives the logits of the whole model. In fp32 to rounding; in bf16, where
    rounding would hide a scale, to the bit: the same products of the same shapes."""
    atol = _TOLERANCE if parts.dtype is torch.float32 else 0.0
    return torch.allclose(parts.float(), whole.float(), rtol=0, atol=atol)


def _has_windows(config: object) -> bool:
    kinds = set(getattr(config, "layer_types", None) or []) - {"full_attention"}
    return bool(kinds) or getattr(config, "sliding_window", None) is not None


def load_pretrained(config: PretrainedConfig) -> AnswerModel:
    """The model, checked: weights finite, tokenizer not larger than the vocabulary. Raises `HarnessError`."""
    device = prepare(config)
    source, file = config.model, "config.json"
    options: dict[str, Any] = {"trust_remote_code": config.trust_code}
    if source.endswith(".gguf"):
        source, file = str(Path(source).parent), Path(source).name
        options["gguf_file"] = file
    origin = None
    try:
        if not Path(source).exists():
            found = cached_file(source, file, revision=config.revision)
            commit = extract_commit_hash(found, None)  # for all that is loaded; another repository has no such commit
            origin = {"id": config.model, "revision": config.revision, "commit": commit}
            options |= {"revision": commit, "code_revision": commit}
        tokenizer = AutoTokenizer.from_pretrained(source, **options)
        model = AutoModelForCausalLM.from_pretrained(source, dtype=DTYPES[config.precision], **options)
    except Exception as error:  # transformers raises what its many parts raise
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise HarnessError(f"{config.model}: cannot be loaded by transformers: {reason}") from error
    require_finite(model.named_parameters(), config.model)
    if tokenizer.is_fast:
        require_steady(tokenizer.backend_tokenizer, config.model)
    vocabulary = _embedding(model).size(0)
    if len(tokenizer) > vocabulary:
        raise HarnessError(f"{config.model}: its tokenizer has {len(tokenizer)} tokens, its model {vocabulary}")
    model.to(device)  # type: ignore[arg-type]  # transformers wraps torch's method in one of another signature
    network = Pretrained(model.eval(), _max_length(model, tokenizer))
    prefix = tokenizer.eos_token_id if tokenizer.bos_token_id is None else tokenizer.bos_token_id
    prefix_text = str(tokenizer.decode(prefix))

    def encode(texts: list[str], add_special_tokens: bool | None) -> list[list[int]]:
        ids: dict[str, list[int]] = {}
        for special in (True, False):
            part = [
                text
                for text in texts
                if special == (not text.startswith(prefix_text) if add_special_tokens is None else add_special_tokens)
            ]
            with tokenized_on_all_threads():
                ids |= zip(part, tokenizer(part, add_special_tokens=special)["input_ids"] if part else [])
        return [ids[text] for text in texts]

    return AnswerModel(Scorer(network, device, config.execution.batch_tokens), encode, prefix, origin)


def _max_length(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> int:
    """Tokens of the longest sequence, found as the hf backend finds it."""
    config = getattr(model.config, "text_config", None) or model.config
    for name in ("n_positions", "max_position_embeddings", "n_ctx"):
        if getattr(config, name, None) is not None:
            return getattr(config, name)
    return tokenizer.model_max_length if tokenizer.model_max_length < 1e30 else _UNKNOWN_LENGTH


def evaluate_pretrained(config: PretrainedConfig) -> dict:
    """Scores the model; see `evaluate_model`."""
    return evaluate_model(config, lambda: load_pretrained(config))


if __name__ == "__main__":
    sys.exit(run(sys.argv[1:], PretrainedConfig, evaluate_pretrained))
