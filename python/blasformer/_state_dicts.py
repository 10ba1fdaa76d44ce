"""Whether given arrays are what is wanted: name by name, in shape and dtype."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ._arguments import checked_flag, is_masked


class IncompatibleKeys(NamedTuple):
    """What load_state_dict(..., strict=False) passed over."""

    missing_keys: list[str]
    unexpected_keys: list[str]


class Wanted(NamedTuple):
    """An array that must be given."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]


def require_mapping(name: str, value: Any, *, keys: str = "names", of: str = "arrays") -> None:
    """Raises TypeError unless the argument of that name maps these keys to something."""
    if not isinstance(value, Mapping):
        raise TypeError(f"{name} must map {keys} to {of}, got {type(value).__name__}")


def is_array_of(dtype: npt.DTypeLike, value: Any) -> bool:
    """Whether this is an array of that dtype, and nothing else besides: masks would be ignored."""
    return isinstance(value, np.ndarray) and value.dtype == dtype and not is_masked(value)


def array_kind(value: Any) -> str:
    """What this is instead, for errors."""
    if is_masked(value):
        return f"a masked array of {value.dtype}"
    return str(value.dtype) if isinstance(value, np.ndarray) else type(value).__name__


def require_fitting(
    subject: str,
    given: Mapping[str, Any],
    wanted: Mapping[str, Wanted],
    optional: Mapping[str, Wanted] | None = None,
) -> None:
    """Raises an error that begins with `subject` and lists everything that is missing, unexpected, or of the
    wrong shape or type: TypeError if only types are wrong, otherwise ValueError.

    optional: what may be there or not.
    """
    missing = [name for name in wanted if name not in given]
    wrong_type, wrong_shape, unexpected = [], [], []
    for name, array in given.items():
        want = wanted.get(name) or (optional or {}).get(name)
        if want is None:
            unexpected.append(str(name))
        elif not is_array_of(want.dtype, array):
            wrong_type.append(f"{name} must be a NumPy array of {want.dtype}, got {array_kind(array)}")
        elif array.shape != want.shape:
            wrong_shape.append(f"{name} must have the shape {want.shape}, got {array.shape}")
    problems = {
        "missing": missing,
        "unexpected": unexpected,
        "wrong shape": wrong_shape,
        "wrong type": wrong_type,
    }
    found = [f"{kind}: {', '.join(names)}" for kind, names in problems.items() if names]
    if found:
        error = TypeError if wrong_type and len(found) == 1 else ValueError
        raise error(f"{subject}; {'; '.join(found)}")


def select_fitting(
    subject: str, arrays: Mapping[str, Any], wanted: Mapping[str, Wanted], strict: bool
) -> tuple[dict[str, Any], IncompatibleKeys]:
    """The arrays that are wanted, and which names are missing or unexpected, which strict refuses.

    Raises what require_fitting raises.
    """
    require_mapping("arrays", arrays)
    checked_flag("strict", strict)
    given = {name: _as_array(arrays[name]) for name in wanted if name in arrays}
    if strict:
        require_fitting(subject, {**arrays, **given}, wanted)
    else:
        require_fitting(subject, given, {name: wanted[name] for name in given})
    missing = [name for name in wanted if name not in arrays]
    return given, IncompatibleKeys(missing, [name for name in arrays if name not in wanted])


def _as_array(tensor: Any) -> Any:
    """What NumPy sees in a tensor of another package; the tensor itself if that is nothing."""
    if isinstance(tensor, np.ndarray) or not hasattr(tensor, "__array__"):
        return tensor
    try:
        return np.asarray(tensor)
    except (TypeError, ValueError, RuntimeError):  # on another device, or of a dtype that NumPy does not have
        return tensor
