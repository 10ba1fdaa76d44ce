"""Which dtypes there are to compute in and to hold arrays in."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ._optional import require_package

FLOATING = ("float64", "float32", "float16", "bfloat16")


def dtype_name(dtype: DTypeLike) -> str:
    """What a dtype is called; of what is none, how it is written."""
    if dtype is None or (isinstance(dtype, str) and dtype == "bfloat16"):
        return str(dtype)  # to NumPy these are float64, and unknown before ml_dtypes is imported
    try:
        name: str = np.dtype(dtype).name
    except (TypeError, ValueError, SyntaxError):
        return repr(dtype)
    return name


def float_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """dtype as np.float32 or np.float64; TypeError for any other."""
    name = dtype_name(dtype)
    if name not in ("float32", "float64"):
        raise TypeError(f"dtype must be float32 or float64, got {name}")
    return np.dtype(name)


def array_dtype(dtype: DTypeLike) -> np.dtype[Any]:
    """dtype as one that the arrays of functions may have; TypeError for any other."""
    name = dtype_name(dtype)
    if name not in FLOATING:
        raise TypeError(f"dtype must be float32, float64, float16 or bfloat16, got {name}")
    if name == "bfloat16":
        return bfloat16("making arrays in bfloat16")
    return np.dtype(name)


def bfloat16(purpose: str) -> np.dtype[Any]:
    """The dtype that NumPy does not have; ImportError without ml_dtypes."""
    dtype: np.dtype[Any] = np.dtype(require_package("ml_dtypes", extra="io", purpose=purpose).bfloat16)
    return dtype
