"""The compiled core. Private: its callers, the public modules, say what arguments mean."""

from collections.abc import Sequence
from typing import Any, SupportsFloat, SupportsIndex, SupportsInt, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]

__version__: str

class AttentionSaved:
    @property
    def nbytes(self) -> int: ...

def active_isa() -> str: ...
def attention(
    query: object,
    key: object,
    value: object,
    mask: object,
    bias: object,
    causal: object,
    query_offset: object,
    window: object,
    query_lengths: object,
    key_lengths: object,
    query_segments: object,
    key_segments: object,
    alibi_slopes: object,
    sinks: object,
    softcap: object,
    scale: object,
    dropout_p: object,
    seed: object,
    weights: object,
    return_logsumexp: bool,
    out: object,
) -> Array | tuple[Array, Array | None, Array | None]: ...
def attention_backward(
    saved: AttentionSaved, d_output: object
) -> tuple[Array, Array, Array, Array | None, Array | None]: ...
def attention_forward(
    query: object,
    key: object,
    value: object,
    mask: object,
    bias: object,
    causal: object,
    query_offset: object,
    window: object,
    query_lengths: object,
    key_lengths: object,
    query_segments: object,
    key_segments: object,
    alibi_slopes: object,
    sinks: object,
    softcap: object,
    scale: object,
    dropout_p: object,
    seed: object,
) -> tuple[Array, AttentionSaved]: ...
def attention_plan(
    query_shape: Sequence[SupportsInt | SupportsIndex],
    key_shape: Sequence[SupportsInt | SupportsIndex],
    value_shape: Sequence[SupportsInt | SupportsIndex],
    dtype: np.dtype[Any],
    bias: object,
) -> dict[str, Any]: ...
def available_cores() -> int: ...
def blas_config() -> str: ...
def blas_core_name() -> str: ...
def blas_path() -> str: ...
def built_isas() -> list[str]: ...
def detected_isas() -> list[str]: ...
def explain_mask(
    query_shape: Sequence[SupportsInt | SupportsIndex],
    key_shape: Sequence[SupportsInt | SupportsIndex],
    mask: object,
    causal: object,
    query_offset: object,
    window: object,
    query_lengths: object,
    key_lengths: object,
    query_segments: object,
    key_segments: object,
) -> NDArray[np.bool_]: ...
def num_threads() -> int: ...
def override_num_threads(count: SupportsInt | SupportsIndex | None) -> int | None: ...
def set_num_threads(count: SupportsInt | SupportsIndex) -> None: ...
def sleep_in_tasks(
    tasks: SupportsInt | SupportsIndex, seconds: SupportsFloat | SupportsIndex
) -> list[int]: ...
def use_isa(name: str) -> None: ...
