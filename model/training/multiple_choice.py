"""Multiple choice during training, on items that somebody else has encoded: no tokenizer is needed here.

An item is {"context": token ids, "choices": one list of token ids each, "lengths": characters of each
choice, "gold": number of the right one}. The score is lm-eval's acc_norm: the share of items whose right
choice has the largest log-likelihood per character.
"""

import json
from pathlib import Path

import torch
import torch.nn.functional as F

from model.machine.parallel import Processes
from model.network.config import ConfigError, GPTConfig
from model.network.gpt import GPT, IGNORED_TARGET


def read_items(path: str, config: GPTConfig) -> list[dict]:
    """The items of a JSON file; refuses what the network cannot read."""
    if (vocab_size := config.vocab_size) is None:
        raise ConfigError(f"{path}: vocab_size must be known before items are read")
    try:
        items = json.loads(Path(path).read_text())
        for number, item in enumerate(items):
            ids = item["context"] + [token for choice in item["choices"] for token in choice]
            if not all(0 <= token < vocab_size for token in ids):
                raise ConfigError(f"{path}: item {number} has token ids that are not below {vocab_size}")
            if not all(0 < len(choice) <= config.sequence_length for choice in item["choices"]):
                raise ConfigError(f"{path}: a choice of item {number} has no tokens or over {config.sequence_length}")
            if not (len(item["lengths"]) == len(item["choices"]) > item["gold"] >= 0 and min(item["lengths"]) > 0):
                raise ConfigError(f"{path}: item {number} needs a length over 0 for each choice, and a gold one")
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}") from None
    except (ValueError, KeyError, TypeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path}: is not a list of items: {error!r}") from None
    return sorted(items, key=lambda item: len(item["context"]))  # a batch is padded to its longest


@torch.no_grad()
def accuracy(model: GPT, items: list[dict], *, rows: int, autocast: torch.autocast, processes: Processes) -> float:
    """acc_norm over the items, about `rows` choices a forward pass, shared by the processes."""
    at_once = max(1, rows // len(items[0]["choices"]))
    right = torch.zeros((), device=next(model.parameters()).device)
    for batch, counts in processes.share(items[i : i + at_once] for i in range(0, len(items), at_once)):
        chosen = _most_likely(model, batch, autocast)
        if counts:
            right += sum(choice == item["gold"] for choice, item in zip(chosen, batch))
    return round(processes.sum_(right).item() / len(items), 6)


def _most_likely(model: GPT, items: list[dict], autocast: torch.autocast) -> list[int]:
    """The choice of each item with the largest log-likelihood per character."""
    pairs = [(item["context"], choice) for item in items for choice in item["choices"]]
    texts = [(context + choice)[-(model.config.sequence_length + 1) :] for context, choice in pairs]
    longest = max(map(len, texts)) - 1
    x_BT = torch.zeros(len(texts), longest, dtype=torch.long)
    y_BT = torch.full((len(texts), longest), IGNORED_TARGET)
    for row, (text, (_, choice)) in enumerate(zip(texts, pairs)):
        x_BT[row, : len(text) - 1] = torch.tensor(text[:-1])
        y_BT[row, len(text) - 1 - len(choice) : len(text) - 1] = torch.tensor(choice)
    device = next(model.parameters()).device
    with autocast:
        logits_BTV = model(x_BT.to(device))
    nats_BT = F.cross_entropy(
        logits_BTV.flatten(0, 1), y_BT.flatten().to(device), reduction="none", ignore_index=IGNORED_TARGET
    ).view(y_BT.shape)
    nats = iter(nats_BT.sum(-1).tolist())
    per_character = [[next(nats) / length for length in item["lengths"]] for item in items]
    return [min(range(len(scores)), key=scores.__getitem__) for scores in per_character]
