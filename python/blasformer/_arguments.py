"""Checks of arguments that are no arrays: the value as it is used, or an error that names the argument."""

from __future__ import annotations

import math
import operator
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, SupportsIndex

import numpy as np
from numpy.typing import ArrayLike, NDArray


def checked_flag(name: str, value: bool) -> bool:
    if not isinstance(value, (bool, np.bool_)):
        raise TypeError(f"{name} must be a bool, got {type(value).__name__}")
    return bool(value)


def checked_integer(name: str, value: SupportsIndex, *, least: int | None = None) -> int:
    try:
        if isinstance(value, bool):
            raise TypeError
        integer = operator.index(value)
    except TypeError:
        raise TypeError(f"{name} must be an integer, got {type(value).__name__}") from None
    if not -(2**63) <= integer < 2**63:
        raise ValueError(f"{name} must fit into 64 bits, got {integer}")
    if least is not None and integer < least:
        raise ValueError(f"{name} must be >= {least}, got {integer}")
    return integer


def is_masked(value: Any) -> bool:
    """Whether this is a masked array. Who has one has imported numpy.ma, which NumPy does only then."""
    masked_arrays = getattr(sys.modules.get("numpy.ma"), "MaskedArray", ())
    return isinstance(value, masked_arrays)


def refuse_masked(name: str, value: Any) -> None:
    """Raises TypeError for a masked array: as a plain one it would lose its mask."""
    if is_masked(value):
        raise TypeError(
            f"{name} must be an array without a mask, which would be ignored, got {type(value).__name__}; "
            "its filled(value) is one"
        )


def configured_flag(config: Mapping[str, Any], name: str, default: bool) -> bool:
    """What a configuration file says; the default where it says nothing or null."""
    value = config.get(name)
    return default if value is None else checked_flag(name, value)


def require_supported(config: Mapping[str, Any], supported: Mapping[str, Any]) -> None:
    """That a configuration file asks for nothing but what is supported, in what it says of these."""
    for name, value in supported.items():
        found = config.get(name)
        if found is not None and (type(found) is not type(value) or found != value):
            raise ValueError(f"{name} must be {value!r}, got {found!r}")


MAX_LAYERS = 1000
"""Of a model: more would take memory, layer by layer, until none is left."""


def checked_layers(name: str, value: SupportsIndex) -> int:
    layers = checked_integer(name, value)
    if layers > MAX_LAYERS:
        raise ValueError(f"{name} must be at most {MAX_LAYERS}, got {layers}")
    return layers


def checked_integer_or_none(name: str, value: SupportsIndex | None) -> int | None:
    return None if value is None else checked_integer(name, value)


def checked_number(name: str, value: float) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float, np.integer, np.floating)):
        raise TypeError(f"{name} must be a number, got {type(value).__name__}")
    return float(value)


def checked_number_or_none(name: str, value: float | None) -> float | None:
    return None if value is None else checked_number(name, value)


def checked_epsilon(name: str, value: float) -> float:
    number = checked_number(name, value)
    if not 0 <= number < math.inf:
        raise ValueError(f"{name} must be finite and at least 0, got {number:g}")
    return number


def checked_name(name: str, value: str) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{name} must be a string, got {type(value).__name__}")
    try:
        value.encode()
    except UnicodeEncodeError:
        raise ValueError(f"{name} must be text that UTF-8 can encode, got {value!r}") from None
    return value


def checked_loss_numbers(label_smoothing: float, ignore_index: int) -> tuple[float, int]:
    """These two arguments of losses."""
    return (
        checked_number("label_smoothing", label_smoothing),
        checked_integer("ignore_index", ignore_index),
    )


def checked_path(name: str, value: str | os.PathLike[str]) -> Path:
    if not isinstance(value, (str, os.PathLike)):
        raise TypeError(f"{name} must be a path, got {type(value).__name__}")
    return Path(value)


def checked_integers(name: str, values: ArrayLike) -> NDArray[np.integer[Any]]:
    """As an array of whatever integer type they have."""
    refuse_masked(name, values)
    try:
        array = np.asarray(values)
    except ValueError:
        kind = type(values).__name__
        raise TypeError(f"{name} must be integers, got a {kind} of different lengths") from None
    if array.size == 0 and not isinstance(values, np.ndarray):  # an empty list has no dtype of its own
        array = array.astype(np.int64)
    if array.dtype.kind not in "iu":
        raise TypeError(f"{name} must be integers, got {array.dtype}")
    return array
