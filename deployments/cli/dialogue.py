"""The trained model beside the same network before training, on the same prompt: `python -m deployments.cli.dialogue`.

Loads the finished model of a run; its untrained twin is set from the run's own seed. This is the child process of
`daily-train chat` and what the page of `daily-train demo` draws from.
"""

import argparse
import io
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path

import torch
from tokenizers import Tokenizer

from eval.reporting.markdown import REPLACEMENT, replace_control_characters
from model.errors import print_error
from model.network.generate import stream
from model.network.gpt import GPT, initialise
from model.training.checkpoint import load_final


@dataclass(frozen=True)
class ModelPair:
    """The two models and their tokenizer."""

    untrained: GPT
    trained: GPT
    tokenizer: Tokenizer
    eot_token: int

    def answers(self, prompt: str, new_tokens: int, temperature: float, seed: int) -> Iterator[tuple[str, str]]:
        """How the untrained and the trained model continue the prompt, token by token: the texts so far.

        Raises ConfigError for a temperature below 0."""
        ids = [self.eot_token, *self.tokenizer.encode(prompt, add_special_tokens=False).ids]
        drawn = [
            stream(model, ids, new_tokens, seed=seed, temperature=temperature, stop_token=self.eot_token)
            for model in (self.untrained, self.trained)
        ]
        answers: tuple[list[int], list[int]] = ([], [])
        for tokens in zip_longest(*drawn):
            for texts, token in zip(answers, tokens, strict=True):
                if token is not None:
                    texts.append(token)
            yield self._text(answers[0]), self._text(answers[1])

    def _text(self, ids: list[int]) -> str:
        """The ids as text; the beginning of an unfinished character waits for its end."""
        return replace_control_characters(self.tokenizer.decode(ids).rstrip(REPLACEMENT))


def load_model_pair(folder: Path, tokenizer: Path) -> ModelPair:
    """The models of a finished train stage. Raises CheckpointError when the folder holds no intact one."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    final = load_final(folder, device)
    seed = json.loads((folder / "run.json").read_text())["train"]["seed"]
    untrained = GPT(final.model.config)
    with torch.no_grad():
        initialise(untrained, seed)
    return ModelPair(untrained.to(device).eval(), final.model, Tokenizer.from_file(str(tokenizer)), final.eot_token)


def argument_parser(description: str) -> argparse.ArgumentParser:
    """The arguments that the terminal and the page share."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("folder", type=Path, help="outputs of a train stage")
    parser.add_argument("tokenizer", type=Path, help="its tokenizer.json")
    return parser


def main() -> None:
    """Read a prompt a line and answer it twice, until the input ends."""
    arguments = argument_parser("Talk with a model before and after training.")
    arguments.add_argument("--tokens", type=int, required=True)
    arguments.add_argument("--temperature", type=float, required=True)
    given = arguments.parse_args()
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")
    try:
        _talk(given)
    except Exception as error:
        sys.exit(print_error(error))


def _talk(given: argparse.Namespace) -> None:
    pair = load_model_pair(given.folder, given.tokenizer)
    if sys.stdin.isatty():
        print("Write the beginning of a text; an empty line or Ctrl-D ends.")
    for number, line in enumerate(iter(_read, "")):
        print(f"\ntrained:   {line}", end="", flush=True)
        texts = ("", "")
        for grown in pair.answers(line, given.tokens, given.temperature, seed=number):
            print(grown[1][len(texts[1]) :], end="", flush=True)
            texts = grown
        print(f"\n\nuntrained: {line}{texts[0]}\n", flush=True)


def _read() -> str:
    if sys.stdin.isatty():
        print("> ", end="", flush=True)
    return sys.stdin.readline().rstrip("\n")


if __name__ == "__main__":
    main()
