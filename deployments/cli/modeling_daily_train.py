"""A Daily Train model for `transformers`; the source of the file that `daily-train export` puts beside the weights.

The files of `model/` that it imports are copied beside it (`deployments/cli/exported_code.py`), so that
`AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=True)` needs torch and transformers alone.
"""

from typing import Any

import torch
from torch import Tensor
from transformers import GenerationMixin, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import CausalLMOutput

from model.network.attention import rotary_tables
from model.network.config import GPTConfig, parse
from model.network.experts import MixtureOfExperts
from model.network.gpt import GPT


class DailyTrainConfig(PretrainedConfig):
    """`network` holds the GPTConfig; the rest are the names under which `transformers` looks for sizes."""

    model_type = "daily_train"

    def __init__(self, network: dict[str, Any] | None = None, **kwargs: Any) -> None:
        self.network = network
        if network is not None:
            self.vocab_size = network["vocab_size"]
            self.hidden_size = network["width"]
            self.num_hidden_layers = network["depth"]
            self.num_attention_heads = network["heads"]
            self.max_position_embeddings = network["sequence_length"]
        super().__init__(**({"tie_word_embeddings": False, "use_cache": False} | kwargs))


class DailyTrainForCausalLM(PreTrainedModel, GenerationMixin):
    """Causal language model without a key-value cache: each new token runs the whole context again."""

    config_class = DailyTrainConfig
    base_model_prefix = "gpt"
    _supports_sdpa = True

    def __init__(self, config: DailyTrainConfig) -> None:
        super().__init__(config)
        self.gpt = GPT(parse(GPTConfig, config.network, "network"))
        self.post_init()

    def _init_weights(self, module: torch.nn.Module) -> None:
        """Fill what is in no file: transformers builds a model without memory, so buffers come up empty."""
        if isinstance(module, GPT) and module.config.rotary_size:
            for name, table in zip(("rotary_cos", "rotary_sin"), rotary_tables(module.config)):
                getattr(module, name).copy_(table)
        elif isinstance(module, MixtureOfExperts):
            module.get_buffer("load").zero_()

    def get_input_embeddings(self) -> torch.nn.Module:
        return self.gpt.token_embedding

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, *args: Any, attention_mask: Tensor | None = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The last sequence_length tokens, all that the network can see."""
        length = self.config.max_position_embeddings
        mask = None if attention_mask is None else attention_mask[:, -length:]
        return {"input_ids": input_ids[:, -length:], "attention_mask": mask}

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor | None = None,
        labels: Tensor | None = None,
        return_dict: bool | None = None,
        logits_to_keep: int = 0,
        **kwargs: object,
    ) -> CausalLMOutput | tuple:
        """fp32 logits (B, T, V). Padding on the right cannot be seen by a causal model; on the left it is refused."""
        if attention_mask is not None and (attention_mask[:, 1:] > attention_mask[:, :-1]).any():
            raise ValueError("padding on the left is not supported: set tokenizer.padding_side = 'right'")
        logits_BTV = self.gpt.project(self.gpt.hidden(input_ids)[:, -logits_to_keep:])
        loss = None if labels is None else self.loss_function(logits_BTV, labels, self.config.vocab_size)
        if return_dict is False:
            return (logits_BTV,) if loss is None else (loss, logits_BTV)
        return CausalLMOutput(loss=loss, logits=logits_BTV)
