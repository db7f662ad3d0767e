"""A tokenizer is trained to the same bytes, gives back every text, or is refused."""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models

from tasks.config import TokenizerConfig, TokenizerKind
from tasks.token_bytes import TokenizerError, check_tokenizer, token_bytes
from tasks.tokenizer import load_tokenizer, train_bpe
from tests.tasks.small_corpus import TEXTS


@pytest.fixture(scope="module")
def bpe() -> Tokenizer:
    return train_bpe(iter(TEXTS), 400, 2)


def test_training_twice_gives_the_same_tokenizer(bpe: Tokenizer):
    assert train_bpe(iter(TEXTS), 400, 1).to_str() == bpe.to_str()


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(st.characters(exclude_categories=["Cs"])))
def test_every_text_comes_back_and_its_bytes_add_up(bpe: Tokenizer, text: str):
    ids = bpe.encode(text, add_special_tokens=False).ids
    assert bpe.decode(ids, skip_special_tokens=False) == text
    table = token_bytes(bpe)
    assert b"".join(table[number] for number in ids) == text.encode()


def test_tokenizers_that_break_a_contract_are_refused(bpe: Tokenizer, tmp_path: Path):
    huge = Tokenizer(models.BPE({str(number): number for number in range(65_537)}, []))
    with pytest.raises(TokenizerError, match=r"65,537 is over 65,536.*uint16"):
        check_tokenizer(huge, "huge")
    (tmp_path / "tokenizer.json").write_text("{}")
    with pytest.raises(TokenizerError, match=r"tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="a branch can move"):
        TokenizerConfig(kind=TokenizerKind.HUB, path="gpt2@main")
