"""Inputs of functions of rows, and what it means that two results are the same."""

import ml_dtypes
import numpy as np
import reference

HALF_DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]

# What normal numbers are made into.
HARD_INPUTS = {
    "ordinary": lambda x: x,
    "mean 1e4": lambda x: 1e4 + 0.01 * x,
    "constant rows": lambda x: 0 * x + x[..., :1],
    "zeros": lambda x: 0 * x,
    "1e30": lambda x: 1e30 * x,
    "near the largest": lambda x: 1e38 * np.clip(x, -3, 3),
    "1e-30": lambda x: 1e-30 * x,
    "denormal": lambda x: 1e-40 * x,
    "large": lambda x: 100 * x,
    "one logit above all": lambda x: np.where(np.arange(x.shape[-1]) == 5, 1e4, x),
    "masked by -inf": lambda x: np.where(np.arange(x.shape[-1]) % 3 == 0, -np.inf, x),
    "an infinity and a NaN": lambda x: np.where(x == x[1, 7], np.inf, np.where(x == x[3, 40], np.nan, x)),
}


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def nearly_the_same(a, b):
    """Equal but for the order in which float32 or float64 sums were added up."""
    return a.dtype == b.dtype and reference.error(a, b) <= 4 * float(ml_dtypes.finfo(a.dtype).eps)
