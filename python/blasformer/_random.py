"""Random numbers come only from an argument rng."""

from __future__ import annotations

from typing import TypeAlias

import numpy as np

Rng: TypeAlias = np.random.Generator | int


def generator_of(rng: Rng) -> np.random.Generator:
    """A Generator itself, or one that an int >= 0 seeds."""
    if isinstance(rng, np.random.Generator):
        return rng
    if isinstance(rng, bool) or not isinstance(rng, (int, np.integer)):
        raise TypeError(f"rng must be a numpy.random.Generator or an int, got {type(rng).__name__}")
    if rng < 0:
        raise ValueError(f"rng must be a numpy.random.Generator or an int >= 0, got {rng}")
    return np.random.default_rng(rng)


def draw_seed(rng: Rng) -> int:
    """64 random bits drawn from a Generator, or from one that an int >= 0 seeds."""
    return int(generator_of(rng).integers(0, 2**64, dtype=np.uint64))


def initial_seed(rng: Rng | None) -> int:
    """Of initial weights: fresh ones where there is no rng."""
    return draw_seed(np.random.default_rng() if rng is None else rng)


def seed_or_none(rng: Rng | None) -> int | None:
    """Of dropout: none where there is no rng."""
    return None if rng is None else draw_seed(rng)
