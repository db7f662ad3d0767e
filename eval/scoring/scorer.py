"""Log-likelihoods of answers: every shared beginning runs once, and only answer positions are projected.

`Scorer` takes all requests at once. It lays their tokens into rows (`eval/scoring/prefix_rows.py`), runs the rows of
this process, projects each position that some answer is read from once, and hands every process all scores.

Shape suffixes: B rows of a batch, T tokens, R positions that are read in a row, D width, U distinct positions,
P (position, token) pairs, V vocabulary.
"""

from collections import defaultdict
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from eval.scoring.prefix_rows import Batch, Row, Sequence, batch_of, batches, row_of, rows_of

BATCH_TOKENS = {"cpu": 1024, "cuda": 32768}
"""Tokens of a forward pass: on a CPU as many as stay in its caches, on a GPU as many as keep it busy."""
_LOGITS = {"cpu": 2**24, "cuda": 2**27}
"""Logits held at once (64 and 512 MiB), and as many log-probabilities."""
_TOLERANCE = 1e-3
"""Largest difference of a log-probability that rounding explains."""
_LONGEST_ROW = 1024
"""Tokens of a row of several sequences; attention in a row is dense."""
_ATTENTION = [SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.MATH]
"""Not cuDNN's, to which torch 2.11 gives masked bf16 first: it builds a plan for every new shape, half a second each
(measured on a B200, github.com/modelscope/FunASR/issues/3704), and every batch here has another."""

Score = tuple[float, bool]
"""Sum of log p of an answer in nats, and whether it is the greedy one."""


class Network(Protocol):
    """What a model needs to be scored."""

    width: int
    """Size of its hidden states."""
    vocab_size: int
    max_length: int
    """Most tokens of a sequence."""
    shares_beginnings: bool
    """Whether a batch may be branched: false where a token's values depend on more than its ancestors."""
    unproven: bool
    """Whether that is only believed, so that it is tried on real rows first, `in_fp32`."""

    def in_fp32(self) -> AbstractContextManager[None]:
        """While it lasts the same weights are multiplied in fp32; asked of unproven networks only."""

    def hidden(self, batch: Batch, read_BR: Tensor) -> Tensor:
        """h_BRD: hidden states at places `read_BR` of the rows of a batch."""

    def project(self, h_UD: Tensor) -> Tensor:
        """fp32 logits_UV."""


class RequestScorer(Protocol):
    """What `AnswerModel` needs: `Scorer`, or what stands in for it when there is no network yet."""

    device: torch.device
    tokens: int
    """Tokens run so far."""

    @property
    def max_length(self) -> int:
        """Most tokens of a sequence."""

    def __call__(
        self, inputs: list[Sequence], answers: list[list[int]], report: Callable[[int], None], /
    ) -> list[Score]:
        """See `Scorer.__call__`."""


def at_places(h_BTD: Tensor, read_BR: Tensor) -> Tensor:
    """h_BRD."""
    return h_BTD[torch.arange(len(h_BTD), device=h_BTD.device)[:, None], read_BR]


def on_device(array: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor. The copy to a GPU is asynchronous: the host does not wait for the batch before."""
    tensor = torch.from_numpy(array)
    return tensor.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else tensor


@dataclass(frozen=True)
class _Launched:
    """The scores of a batch, which a GPU may still be computing."""

    numbers: list[int]
    """The requests."""
    lengths: list[int]
    """Tokens of their answers."""
    order_P: np.ndarray
    """Place of each pair of the next two in the concatenated answers."""
    logprob_P: Tensor
    greedy_P: Tensor
    done: torch.cuda.Event | None
    """When both have arrived in the host's memory."""

    def scores(self) -> list[tuple[int, Score]]:
        """The score of each request; waits for this batch alone."""
        if self.done is not None:
            self.done.synchronize()
        logprob = np.empty(len(self.order_P))
        logprob[self.order_P] = self.logprob_P.numpy()
        greedy = np.empty(len(self.order_P), bool)
        greedy[self.order_P] = self.greedy_P.numpy()
        begins = np.cumsum([0, *self.lengths[:-1]])
        sums, all_greedy = np.add.reduceat(logprob, begins), np.logical_and.reduceat(greedy, begins)
        return list(zip(self.numbers, zip(sums.tolist(), all_greedy.tolist())))


class Scorer:
    """Scores requests with a network, on `device`; `batch_tokens` bounds a forward pass, padding included."""

    def __init__(self, network: Network, device: torch.device, batch_tokens: int | None = None) -> None:
        self.network = network
        self.device = device
        self.batch_tokens = batch_tokens or BATCH_TOKENS[device.type]
        self.tokens = 0
        """Tokens run through the network by all processes, without padding."""
        self.shares_beginnings = network.shares_beginnings

    @property
    def max_length(self) -> int:
        return self.network.max_length

    def __call__(self, inputs: list[Sequence], answers: list[list[int]], report: Callable[[int], None]) -> list[Score]:
        """Scores of `answers[i]`, read from the last positions of `inputs[i]` (which lacks the last token).

        `report` gets the number of requests that are done. Each of several processes runs its share of rows.
        """
        wanted: dict[Sequence, list[int]] = defaultdict(list)
        for number, sequence in enumerate(inputs):
            wanted[sequence].append(number)
        rows = self._rows(wanted)
        if self.network.unproven and not self._proven(rows):
            self.shares_beginnings = False
            rows = self._rows(wanted)
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        found: dict[int, Score] = {}
        tokens = 0
        launched: _Launched | None = None
        for batch in batches(rows[rank::world], self.batch_tokens):
            numbers = [
                (row, number)
                for row in range(len(batch.rows))
                for sequence in batch.rows[row].paths
                for number in wanted[sequence]
            ]
            paths = [batch.rows[row].paths[inputs[number]] for row, number in numbers]
            before, launched = launched, self._launch(batch, numbers, paths, [answers[number] for _, number in numbers])
            if before is not None:  # read only now: the GPU already has its next batch while the host waits
                found.update(before.scores())
            tokens += sum(len(row.tokens) for row in batch.rows)
            report(min(len(inputs), len(found) * world))
        if launched is not None:
            found.update(launched.scores())
        if world > 1:
            shares: list = [None] * world
            dist.all_gather_object(shares, (found, tokens))
            found = {number: score for share, _ in shares for number, score in share.items()}
            tokens = sum(count for _, count in shares)
        self.tokens += tokens
        report(len(inputs))
        return [found[number] for number in range(len(inputs))]

    def _rows(self, sequences: dict[Sequence, list[int]]) -> list[Row]:
        """The longest first, so that a batch has little padding and memory runs out at once or never."""
        if self.shares_beginnings:
            return rows_of(sequences, self.network.width, _LONGEST_ROW)
        return [row_of([sequence]) for sequence in sorted(sequences, key=lambda sequence: (-len(sequence), sequence))]

    def _proven(self, rows: list[Row]) -> bool:
        """Whether shared rows were seen to be exact, which takes the weights in fp32: false if they do not fit."""
        try:
            with self.network.in_fp32():
                return self._agree(rows)
        except torch.OutOfMemoryError:
            return False

    @torch.inference_mode()
    def _agree(self, rows: list[Row]) -> bool:
        """Whether the longest row, and the one of the longest sequence, give each of their sequences the logits it
        has alone, at its last token."""
        branched = [row for row in rows if row.branched]
        if not branched:
            return True
        for row in (branched[0], max(branched, key=lambda row: max(map(len, row.paths)))):
            ends_1R = torch.tensor([[path[-1] for path in row.paths.values()]], device=self.device)
            h_RD = self.network.hidden(batch_of([row]), ends_1R)[0]
            for number, sequence in enumerate(row.paths):
                end_11 = torch.tensor([[len(sequence) - 1]], device=self.device)
                alone_1D = self.network.hidden(batch_of([row_of([sequence])]), end_11)[0]
                logits_2V = self.network.project(torch.cat((alone_1D, h_RD[number : number + 1]))).log_softmax(-1)
                if (logits_2V[0] - logits_2V[1]).abs().max() > _TOLERANCE:
                    return False
        return True

    @torch.inference_mode()
    def _launch(
        self, batch: Batch, numbers: list[tuple[int, int]], paths: list[np.ndarray], answers: list[list[int]]
    ) -> _Launched:
        """Scores of `answers[i]` at the end of `paths[i]`; `numbers[i]` is its row and its request.

        Nothing here waits for a GPU: everything that decides a shape is computed on the host.
        """
        B, T = batch.tokens.shape
        place_P = np.concatenate(
            [row * T + path[-len(answer) :] for (row, _), path, answer in zip(numbers, paths, answers)]
        )
        place_U, where_P = np.unique(place_P, return_inverse=True)  # choices are read from one end of the context
        row_U, counts_B = place_U // T, np.bincount(place_U // T, minlength=B)
        number_U = np.arange(len(place_U)) - (np.cumsum(counts_B) - counts_B)[row_U]  # within its row
        read_BR = np.zeros((B, counts_B.max()), np.int64)
        read_BR[row_U, number_U] = place_U % T
        with sdpa_kernel(_ATTENTION):
            h_BRD = self.network.hidden(batch, on_device(read_BR, self.device))
        h_UD = h_BRD[on_device(row_U, self.device), on_device(number_U, self.device)]
        order_P = np.argsort(where_P, kind="stable")
        where_P = where_P[order_P]
        step = max(1, _LOGITS[self.device.type] // self.network.vocab_size)
        starts = range(0, len(place_U), step)
        bounds = np.searchsorted(where_P, [*starts, len(place_U)]).tolist()
        target_P = on_device(np.concatenate(answers)[order_P], self.device)
        number_P = on_device(where_P, self.device)
        logprob_P, greedy_P = [], []
        for start, first, last in zip(starts, bounds, bounds[1:]):
            logits_uV = self.network.project(h_UD[start : start + step])
            row_p, target_p = number_P[first:last] - start, target_P[first:last]
            greedy_P.append(_greedy(logits_uV, row_p, target_p))
            logprob_P.append(logits_uV.log_softmax(-1)[row_p, target_p])
        # queued right behind this batch, into pinned memory: read later, they would wait for the next batch as well
        return _Launched(
            numbers=[number for _, number in numbers],
            lengths=[len(answer) for answer in answers],
            order_P=order_P,
            logprob_P=torch.cat(logprob_P).to("cpu", non_blocking=True),
            greedy_P=torch.cat(greedy_P).to("cpu", non_blocking=True),
            done=_recorded(self.device),
        )


def _recorded(device: torch.device) -> torch.cuda.Event | None:
    return torch.cuda.current_stream(device).record_event() if device.type == "cuda" else None


def _greedy(logits_uV: Tensor, row_p: Tensor, target_p: Tensor) -> Tensor:
    """Whether each target is the largest logit of its row; of equal ones the first is, as in lm-eval."""
    if logits_uV.device.type == "cuda":
        return logits_uV.argmax(-1)[row_p] == target_p
    # on a CPU amax() is ten times faster than argmax(), and few rows are left to tell equal ones apart
    greedy_p = logits_uV[row_p, target_p] == logits_uV.amax(-1)[row_p]
    greedy_p[greedy_p.clone()] = logits_uV[row_p[greedy_p]].argmax(-1) == target_p[greedy_p]
    return greedy_p
