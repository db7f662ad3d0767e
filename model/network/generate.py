"""Text from a model, one token at a time. The seed draws alike on every device, so the same weights give other tokens
only where rounding decides between two.
"""

from collections.abc import Iterator

import torch

from model.network.config import ConfigError
from model.network.gpt import GPT


def generate(
    model: GPT,
    prompt: list[int],
    new_tokens: int,
    *,
    seed: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    stop_token: int | None = None,
) -> list[int]:
    """Continue `prompt` (token ids) by up to `new_tokens` ids; the prompt is not returned. See `stream`."""
    return list(
        stream(model, prompt, new_tokens, seed=seed, temperature=temperature, top_k=top_k, stop_token=stop_token)
    )


@torch.no_grad()
def stream(
    model: GPT,
    prompt: list[int],
    new_tokens: int,
    *,
    seed: int,
    temperature: float = 0.8,
    top_k: int | None = 50,
    stop_token: int | None = None,
) -> Iterator[int]:
    """The same ids, each as soon as it is drawn.

    temperature 0 takes the most likely token; top_k null samples from all. Only the last
    sequence_length tokens are seen. `stop_token` ends the text and is not returned.
    """
    vocab_size = model.vocab_size
    if not prompt or not all(0 <= token < vocab_size for token in prompt):
        raise ConfigError(f"a prompt must be token ids below {vocab_size}, at least one, but it is {prompt}")
    if temperature < 0:
        raise ConfigError(f"temperature must be at least 0, but it is {temperature}")
    device = next(model.parameters()).device
    generator = torch.Generator().manual_seed(seed)  # on the CPU, where every device agrees
    tokens = list(prompt)
    for _ in range(new_tokens):
        seen_BT = torch.tensor([tokens[-model.config.sequence_length :]], device=device)
        logits_V = model.project(model.hidden(seen_BT)[0, -1]).cpu()
        if temperature == 0:
            token = int(logits_V.argmax())
        else:
            if top_k is not None and top_k < vocab_size:
                logits_V[logits_V < logits_V.topk(top_k).values[-1]] = -torch.inf
            probabilities_V = torch.softmax(logits_V / temperature, dim=-1)
            token = int(torch.multinomial(probabilities_V, 1, generator=generator))
        if token == stop_token:
            break
        tokens.append(token)
        yield token
