"""What all models that generate tokens have in common: their arguments, and how a token is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._arguments import checked_integer, checked_integers, checked_number, refuse_masked
from ._attention import Array
from ._random import Rng, draw_seed
from .functional import log_softmax

LARGEST_PENALTY = 10  # so that a power of any length is a number


def sequences_of(
    name: str, sequences: Any, lengths: ArrayLike | None, vocab_size: int, lengths_name: str = "lengths"
) -> tuple[list[Array], bool]:
    """Sequences of ids as arrays of their own, and whether there was only one, without an axis for the batch.

    sequences: (length,) or (batch, length) integers, or a list of sequences of different lengths
    """
    if not isinstance(sequences, (np.ndarray, Sequence)) or isinstance(sequences, (str, bytes)):
        raise TypeError(f"{name} must be integers, got {type(sequences).__name__}")
    for row in [sequences] if isinstance(sequences, np.ndarray) else sequences:
        refuse_masked(name, row)
    ragged = not isinstance(sequences, np.ndarray) and any(np.ndim(row) > 0 for row in sequences)
    rows = [np.asarray(row) for row in sequences] if ragged else []
    if not ragged:
        array = np.asarray(sequences)
        if array.ndim not in (1, 2):
            raise ValueError(f"{name} must have the shape (batch, length) or (length,), got {array.shape}")
        single = array.ndim == 1
        rows = [array] if single else list(array)
    else:
        single = False
    if lengths is not None:
        counts = np.atleast_1d(checked_integers(lengths_name, lengths))
        if counts.shape != (len(rows),):
            raise ValueError(
                f"{lengths_name} must have the shape ({len(rows)},) to fit {name}, got {counts.shape}"
            )
        for row, count in zip(rows, counts, strict=True):
            if not 0 <= count <= len(row):
                raise ValueError(
                    f"{lengths_name} must lie between 0 and the {len(row)} ids of {name}, got {count}"
                )
        rows = [row[:count] for row, count in zip(rows, counts, strict=True)]
    for row in rows:
        if row.ndim != 1 or (row.size and row.dtype.kind not in "iu"):
            raise TypeError(f"{name} must be sequences of integers, got {row.dtype} {row.shape}")
        if row.size and not (row.min() >= 0 and row.max() < vocab_size):
            wrong = row[(row < 0) | (row >= vocab_size)][0]
            raise IndexError(f"{name} must lie in [0, {vocab_size}), got {wrong}")
    return [row.astype(np.int64) for row in rows], single


def padded(rows: Sequence[Array]) -> tuple[Array, Array]:
    """(batch, length) with zeros behind the ends, and the lengths."""
    lengths = np.array([len(row) for row in rows], np.int64)
    result = np.zeros((len(rows), int(lengths.max(initial=0))), np.int64)
    for target, row in zip(result, rows, strict=True):
        target[: len(row)] = row
    return result, lengths


def token_ids(name: str, ids: int | Collection[int], vocab_size: int) -> frozenset[int]:
    """One id or several, all of which exist."""
    try:
        given = [ids] if isinstance(ids, (int, np.integer)) else list(ids)
    except TypeError:
        raise TypeError(f"{name} must be an integer or several, got {type(ids).__name__}") from None
    chosen = frozenset(checked_integer(name, token) for token in given)
    for token in chosen:
        if not 0 <= token < vocab_size:
            raise IndexError(f"{name} must lie in [0, {vocab_size}), got {token}")
    return chosen


class TokenSampler:
    """Chooses tokens by their logits."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float, rng: Rng | None) -> None:
        self._temperature = checked_number("temperature", temperature)
        if not (0 <= self._temperature < math.inf):
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        self._top_k = None if top_k is None else checked_integer("top_k", top_k)
        if self._top_k is not None and self._top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self._top_p = checked_number("top_p", top_p)
        if not 0 < self._top_p <= 1:
            raise ValueError(f"top_p must be more than 0 and at most 1, got {top_p}")
        if self._temperature > 0 and rng is None:
            raise ValueError("rng must be given where temperature > 0: it is what tokens are drawn from")
        self._random = None if rng is None else np.random.default_rng(draw_seed(rng))

    def __call__(self, logits: Array, rows: Sequence[int], batch: int) -> Array:
        """The next token of each of the sequences `rows`, of a batch of so many, from (rows, vocab_size)."""
        uniform = np.zeros(batch) if self._temperature == 0 else self._drawn(batch)
        return _core.sample_tokens(
            logits, self._temperature, self._top_k, self._top_p, uniform[np.asarray(rows, np.intp)]
        )

    def _drawn(self, batch: int) -> Array:
        """A number for every sequence, those that have ended too: what one draws depends on no other."""
        assert self._random is not None
        return self._random.random(batch)


class _Finished(NamedTuple):
    score: float
    tokens: list[int]


class BeamSearch:
    """The best targets of several sources, found token by token.

    A target is finished when it ends with eos_id or has max_tokens tokens; its score is log(probability) /
    tokens**length_penalty. The search for a source ends when no unfinished target can become better than its
    best finished one.
    """

    def __init__(self, sources: int, beams: int, max_tokens: int, length_penalty: float, eos_id: int) -> None:
        if beams < 1:
            raise ValueError(f"beams must be at least 1, got {beams}")
        if not abs(length_penalty) <= LARGEST_PENALTY:
            limits = f"-{LARGEST_PENALTY} and {LARGEST_PENALTY}"
            raise ValueError(f"length_penalty must lie between {limits}, got {length_penalty}")
        self._beams, self._max_tokens = beams, max_tokens
        self._length_penalty, self._eos_id = length_penalty, eos_id
        self._finished: list[_Finished | None] = [None] * sources
        self.active = list(range(sources))  # the sources that are searched for
        # Of each of these, side by side and the most probable first: the tokens so far and log(probability).
        self._tokens: list[list[list[int]]] = [[[]] for _ in range(sources)]
        self._scores: list[Array] = [np.zeros(1) for _ in range(sources)]

    def step(self, logits: Array) -> tuple[list[int], list[int], Array]:
        """Adds a token to each unfinished target.

        logits: of the next token, (targets, vocabulary), for the targets of the sources that are active

        Returns what is to be gone on with: the places of the active sources among those there were, for each
        as many targets, by their place among those there were, and the last token of each.
        """
        if not np.isfinite(logits.max(-1, initial=-np.inf)).all():
            raise ValueError(
                "logits must be numbers with a finite maximum, got NaN or Inf: the weights have diverged"
            )
        log_p = log_softmax(logits.astype(np.float64))
        width = len(log_p) // len(self.active)
        sources, parents, last = [], [], []
        for place, source in enumerate(list(self.active)):
            own = slice(place * width, (place + 1) * width)
            kept = self._extend(source, log_p[own])
            if self._is_decided(source):
                continue
            sources.append(place)
            parents += [place * width + parent for parent, _ in kept]
            last += [token for _, token in kept]
        self.active = [self.active[place] for place in sources]
        return sources, parents, np.array(last, np.int64)

    def _extend(self, source: int, log_p: Array) -> list[tuple[int, int]]:
        """Goes one token further; (which target, which token) of those that are followed."""
        scores = self._scores[source][:, None] + log_p
        # Of these enough are unfinished, for one continuation of each target is eos_id. A single beam is
        # finished when eos_id is the most probable.
        wanted = 1 if self._beams == 1 else min(self._beams + len(scores), scores.size)
        flat = scores.ravel()
        candidates = np.argpartition(-flat, wanted - 1)[:wanted]
        candidates = candidates[np.lexsort((candidates, -flat[candidates]))]
        kept: list[tuple[int, int]] = []
        tokens: list[list[int]] = []
        for candidate in candidates.tolist():
            parent, token = divmod(candidate, log_p.shape[1])
            extended = [*self._tokens[source][parent], token]
            if token == self._eos_id or len(extended) == self._max_tokens:
                self._finish(source, extended, float(flat[candidate]))
            elif len(kept) < self._beams:
                kept.append((parent, token))
                tokens.append(extended)
        places = [parent * log_p.shape[1] + token for parent, token in kept]
        self._tokens[source], self._scores[source] = tokens, flat[places]
        return kept

    def _finish(self, source: int, tokens: list[int], log_probability: float) -> None:
        score = log_probability / len(tokens) ** self._length_penalty
        best = self._finished[source]
        if best is None or score > best.score:
            self._finished[source] = _Finished(score, tokens)

    def _is_decided(self, source: int) -> bool:
        best, scores = self._finished[source], self._scores[source]
        if len(scores) == 0:
            return True
        if best is None:
            return False
        shortest, longest = len(self._tokens[source][0]) + 1, self._max_tokens
        highest = max(scores[0] / length**self._length_penalty for length in (shortest, longest))
        return bool(best.score >= highest)

    def best(self) -> list[Array]:
        """The best target of each source, without eos_id."""
        found = [finished.tokens if finished is not None else [] for finished in self._finished]
        return [
            np.array(tokens[:-1] if tokens[-1:] == [self._eos_id] else tokens, np.int64) for tokens in found
        ]
