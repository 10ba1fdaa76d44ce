"""What all models that generate tokens have in common: their arguments, and how a token is chosen."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import _core
from ._attention import Array
from ._random import Rng, draw_seed
from .nn import _integer, _number


def sequences_of(
    name: str, sequences: Any, lengths: ArrayLike | None, vocab_size: int
) -> tuple[list[Array], bool]:
    """Sequences of ids as arrays of their own, and whether there was only one, without an axis for the batch.

    sequences: (length,) or (batch, length) integers, or a list of sequences of different lengths
    """
    if not isinstance(sequences, (np.ndarray, Sequence)) or isinstance(sequences, (str, bytes)):
        raise TypeError(f"{name} must be integers, got {type(sequences).__name__}")
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
        counts = np.atleast_1d(np.asarray(lengths))
        if counts.dtype.kind not in "iu":
            raise TypeError(f"lengths must be integers, got {counts.dtype}")
        if counts.shape != (len(rows),):
            raise ValueError(f"lengths must have the shape ({len(rows)},) to fit {name}, got {counts.shape}")
        for row, count in zip(rows, counts, strict=True):
            if not 0 <= count <= len(row):
                raise ValueError(f"lengths must lie between 0 and the {len(row)} ids of {name}, got {count}")
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
    given = [ids] if isinstance(ids, (int, np.integer)) else list(ids)
    chosen = frozenset(_integer(name, token) for token in given)
    for token in chosen:
        if not 0 <= token < vocab_size:
            raise IndexError(f"{name} must lie in [0, {vocab_size}), got {token}")
    return chosen


class TokenSampler:
    """Chooses tokens by their logits."""

    def __init__(self, temperature: float, top_k: int | None, top_p: float, rng: Rng | None) -> None:
        self._temperature = _number("temperature", temperature)
        if not (0 <= self._temperature < math.inf):
            raise ValueError(f"temperature must be at least 0 and finite, got {temperature}")
        self._top_k = None if top_k is None else _integer("top_k", top_k)
        if self._top_k is not None and self._top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        self._top_p = _number("top_p", top_p)
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
