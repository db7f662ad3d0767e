"""Log-probabilities of answers from rows of their own and from shared ones, and which answer is greedy."""

import math
from dataclasses import replace

import pytest
import torch

from eval.scoring.scorer import Scorer
from eval.scoring.trained_model import TrainedModel
from model.network.gpt import GPT, initialise
from model.training.checkpoint import FinalModel
from tests.eval.scoring.invented import NETWORK, VOCAB


def test_sparse_attention_is_scored_in_rows_of_its_own():
    """Its blocks are stretches of a row, so a shared row would be wrong; a plain network has equal scores both ways."""
    contexts = [tuple(range(start, start + 20)) for start in (1, 30)]
    requests = [(context, [50 + choice, 60, 61 + choice]) for context in contexts for choice in range(4)]
    for pattern, shared in (("N", False), ("S", True)):
        network = GPT(replace(NETWORK, window_pattern=pattern, sparse_block=4, sparse_blocks=1, short_window=7)).eval()
        initialise(network, seed=3)
        final = FinalModel(network, 0, "", {})
        scorer = Scorer(TrainedModel(final, torch.device("cpu")), torch.device("cpu"))
        inputs = [(*context, *answer[:-1]) for context, answer in requests]
        scores = scorer(inputs, [answer for _, answer in requests], lambda done: None)
        assert (scorer.tokens < sum(map(len, inputs))) is shared
        for (context, answer), (logprob, greedy) in zip(requests, scores, strict=True):
            with torch.no_grad():
                logits = network(torch.tensor([[*context, *answer[:-1]]]))[0, len(context) - 1 :]
            expected = logits.log_softmax(-1)[range(len(answer)), answer].sum().item()
            assert logprob == pytest.approx(expected, abs=1e-4)
            assert greedy == (logits.argmax(-1).tolist() == answer)


def test_of_equal_logits_the_first_is_greedy():
    network = GPT(NETWORK).eval()
    initialise(network, seed=0)
    torch.nn.init.zeros_(network.token_embedding.weight)
    scorer = Scorer(TrainedModel(FinalModel(network, 0, "", {}), torch.device("cpu")), torch.device("cpu"))
    scores = scorer([(5, 6), (5, 7)], [[0], [3]], lambda done: None)
    uniform = pytest.approx(-math.log(VOCAB))
    assert scores == [(uniform, True), (uniform, False)]
