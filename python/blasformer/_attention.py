"""Scaled dot-product attention on NumPy arrays."""

from __future__ import annotations

import math
import operator
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import _core
from ._arguments import checked_flag, checked_integer
from ._batch_invariance import batch_invariant as in_any_batch
from ._batch_invariance import checked_batch_invariance
from ._core import AttentionSaved
from ._dtypes import array_dtype
from ._precision import Precision, at_precision
from ._random import Rng, draw_seed

Array: TypeAlias = NDArray[Any]
Causal: TypeAlias = Literal["upper_left", "lower_right"] | bool


class AttentionResult(NamedTuple):
    """The output of an attention call and what else was asked for; absent parts are None.

    output: (..., query_heads, query_length, value_dim)
    weights: (..., heads, rows, key_length), those that were selected, before dropout
    logsumexp: (..., query_heads, query_length): of the scores of each query; -inf if it may attend to nothing
    """

    output: Array
    weights: Array | None
    logsumexp: Array | None


@dataclass(frozen=True)
class WeightSelection:
    """Which attention weights to return.

    heads, rows: indices of query heads and of queries (negative ones count from the end), a slice, or
        None for all of them.
    mean: return the mean over the selected heads instead of every head.

    The call it is given to raises IndexError for heads and rows that there are not, TypeError for what are no
    indices.

    >>> WeightSelection(heads=[0], rows=[-1])
    WeightSelection(heads=[0], rows=[-1], mean=False)
    """

    heads: Sequence[int] | slice | int | None = None
    rows: Sequence[int] | slice | int | None = None
    mean: bool = False


def _indices(selected: Sequence[int] | slice | int | None, extent: int, name: str) -> list[int]:
    if selected is None:
        return list(range(extent))
    if isinstance(selected, slice):
        return list(range(extent))[selected]
    try:
        chosen = [selected] if isinstance(selected, (int, np.integer)) else list(selected)
        asked = [operator.index(i) for i in chosen]
    except TypeError:
        message = f"{name} of a WeightSelection must be integers, a slice or None, got {selected!r}"
        raise TypeError(message) from None
    for i in asked:
        if not -extent <= i < extent:
            raise IndexError(f"{name} of a WeightSelection must lie in [{-extent}, {extent - 1}], got {i}")
    return [i % extent for i in asked]


ChosenWeights: TypeAlias = tuple[list[int], list[int], bool]  # heads, rows, mean


def choose_weights(
    return_weights: bool | WeightSelection | None, heads: int, length: int
) -> ChosenWeights | None:
    """The indices that return_weights stands for, None if it asks for nothing."""
    if return_weights is False or return_weights is None:
        return None
    chosen = WeightSelection() if return_weights is True else return_weights
    if not isinstance(chosen, WeightSelection):
        raise TypeError(f"return_weights must be a bool or a WeightSelection, got {type(chosen).__name__}")
    selected = _indices(chosen.heads, heads, "heads")
    if chosen.mean and not selected:
        raise ValueError("heads of a WeightSelection with mean=True must not be empty")
    mean = checked_flag("mean of a WeightSelection", chosen.mean)
    return selected, _indices(chosen.rows, length, "rows"), mean


LayerWeights: TypeAlias = bool | Sequence[int] | Mapping[int, bool | WeightSelection]


def choose_layers(
    return_weights: LayerWeights, layers: int, heads: int, length: int
) -> dict[int, tuple[int, ChosenWeights]]:
    """The weights to return of a stack of layers: index as given -> (index from 0, what of that layer)."""
    if isinstance(return_weights, Mapping):
        of_layers = dict(return_weights)
    elif isinstance(return_weights, bool):
        of_layers = dict.fromkeys(range(layers), return_weights)
    elif isinstance(return_weights, Sequence):
        of_layers = {checked_integer("layers of return_weights", index): True for index in return_weights}
    else:
        raise TypeError(
            "return_weights must be a bool, layer indices or a dict from them to WeightSelections, "
            f"got {type(return_weights).__name__}"
        )
    asked: dict[int, tuple[int, ChosenWeights]] = {}
    for name, of_layer in of_layers.items():
        try:
            index = operator.index(name)
        except TypeError:
            got = type(name).__name__
            raise TypeError(f"layers of return_weights must be an integer, got {got}") from None
        if not -layers <= index < layers:
            raise IndexError(f"layers of return_weights must lie in [{-layers}, {layers - 1}], got {index}")
        chosen = choose_weights(of_layer, heads, length)
        if chosen is not None:
            asked[name] = (index % layers, chosen)
    if len({index for index, _ in asked.values()}) < len(asked):
        raise ValueError(f"layers of return_weights must not name a layer twice, got {list(asked)}")
    return asked


def _selection(return_weights: bool | WeightSelection, query: Array) -> ChosenWeights | None:
    shape = np.shape(query)
    if len(shape) < 2:
        raise ValueError(f"query must have the shape (..., heads, length, dim), got {shape}")
    return choose_weights(return_weights, shape[-3] if len(shape) > 2 else 1, shape[-2])


def _seed(dropout_p: float, rng: Rng | None) -> int | None:
    """64 random bits for the dropout of one call; None when nothing is to be dropped."""
    if rng is None:
        return None
    seed = draw_seed(rng)
    return None if dropout_p == 0 else seed


def _shape(shape: Sequence[int], name: str) -> list[int]:
    try:
        return [operator.index(extent) for extent in shape]
    except TypeError:
        raise TypeError(f"{name} must be a sequence of integers, got {shape!r}") from None


def scaled_dot_product_attention(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    query_offset: int | Array | None = None,
    window: tuple[int | None, int | None] | None = None,
    query_lengths: Array | Sequence[int] | None = None,
    key_lengths: Array | Sequence[int] | None = None,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Rng | None = None,
    return_weights: bool | WeightSelection = False,
    return_logsumexp: bool = False,
    precision: Precision | None = None,
    batch_invariant: bool | None = None,
    out: Array | None = None,
) -> Any:
    """Attend: softmax(scale * query @ key.T) @ value, for each head.

    In this order: scores = scale * query @ key.T; softcap * tanh(scores / softcap); + bias; + ALiBi; every
    mask, all of which must allow a key; softmax, in float32 or better; dropout; weights @ value. Computed
    tile by tile: memory grows with the length, never with its square, whatever the arguments.

    Parameters
    ----------
    query : (..., query_heads, query_length, dim) float32, float64, float16 or bfloat16, any strides
    key : (..., key_heads, key_length, dim); key_heads divides query_heads: query head h reads key head
        h // (query_heads / key_heads), which is never repeated in memory
    value : (..., key_heads, key_length, value_dim)
    mask : bool, broadcasts to (..., query_heads, query_length, key_length); True = may attend
    bias : of query's dtype, broadcasts likewise; added to the scaled scores. -inf masks.
    causal : query i sees keys j <= i; for different lengths "upper_left" (that), or "lower_right"
        (j <= i + key_length - query_length)
    query_offset : int or (batch,): the index among the keys of query 0, for causal, window and alibi_slopes
    window : (left, right), both inclusive, None = unbounded: p - left <= j <= p + right with p = i + offset
    query_lengths, key_lengths : (batch,) ints, the valid beginning of each sequence
    query_segments, key_segments : (batch, length) ints: only equal segments see each other
    alibi_slopes : (query_heads,) or (batch, query_heads): -slope * abs(p - j) is added (Press et al. 2022)
    sinks : (query_heads,): the logit of one more key per head, which takes weight and has the value 0
    softcap : scores become softcap * tanh(scores / softcap) (Gemma 2)
    scale : default 1 / sqrt(dim)
    dropout_p, rng : each weight is dropped with this probability and divided by 1 - dropout_p otherwise; rng
        is a numpy.random.Generator or an int. Without rng nothing is dropped.
    return_weights : True, or a WeightSelection; the weights are those before dropout
    return_logsumexp : also return log(sum(exp(scores))) of each row, sinks included
    precision : "highest" | "high" | "medium" | "ieee", for float32; default that of the context
        (blasformer.precision)
    batch_invariant : whether the output of a query has the same bits whatever else is in the call; default
        that of the context (blasformer.batch_invariant)
    out : array to write the output into

    Returns
    -------
    (..., query_heads, query_length, value_dim) of query's dtype; with return_weights or return_logsumexp an
    AttentionResult(output, weights, logsumexp). A query that may attend to nothing gets output 0, weights 0,
    logsumexp -inf.

    Raises
    ------
    TypeError for wrong types and dtypes, ValueError for shapes and values that do not fit, IndexError for a
    WeightSelection out of range.

    References
    ----------
    Vaswani et al. 2017, "Attention Is All You Need", equation 1; Dao 2023, "FlashAttention-2", algorithm 1.

    Examples
    --------
    >>> x = np.ones((1, 2, 3, 4), np.float32)
    >>> scaled_dot_product_attention(x, x, x, causal=True).shape
    (1, 2, 3, 4)
    """
    attention = _core.attention if precision is None else at_precision(precision, _core.attention)
    seed = None if rng is None else _seed(dropout_p, rng)
    weights = None if return_weights is False else _selection(return_weights, query)
    result = attention(
        query,
        key,
        value,
        mask,
        bias,
        causal,
        query_offset,
        window,
        query_lengths,
        key_lengths,
        query_segments,
        key_segments,
        alibi_slopes,
        sinks,
        softcap,
        scale,
        dropout_p,
        seed,
        weights,
        checked_flag("return_logsumexp", return_logsumexp),
        checked_batch_invariance(batch_invariant),
        out,
        False,
    )
    return AttentionResult(*result[:3]) if isinstance(result, tuple) else result


class AttentionGrads(NamedTuple):
    """Gradients of an attention call; bias and sinks are None where they were not given."""

    query: Array
    key: Array
    value: Array
    bias: Array | None
    sinks: Array | None


def attention_forward(
    query: Array,
    key: Array,
    value: Array,
    *,
    mask: Array | None = None,
    bias: Array | None = None,
    causal: Causal = False,
    query_offset: int | Array | None = None,
    window: tuple[int | None, int | None] | None = None,
    query_lengths: Array | Sequence[int] | None = None,
    key_lengths: Array | Sequence[int] | None = None,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
    alibi_slopes: Array | None = None,
    sinks: Array | None = None,
    softcap: float | None = None,
    scale: float | None = None,
    dropout_p: float = 0.0,
    rng: Rng | None = None,
    return_weights: bool | WeightSelection = False,
    return_logsumexp: bool = False,
    precision: Precision | None = None,
    batch_invariant: bool | None = None,
    out: Array | None = None,
) -> tuple[Any, AttentionSaved]:
    """scaled_dot_product_attention, keeping what attention_backward needs.

    Takes the same arguments. Returns (output, saved), or (AttentionResult, saved) with return_weights or
    return_logsumexp. saved is a value of its own: it holds the statistics of the softmax and a copy of the
    output (saved.nbytes), and refers to the arrays passed in, which must not change before
    attention_backward. Memory is linear in the length; dropout is drawn again from its seed.

    Raises what scaled_dot_product_attention raises.

    >>> x = np.ones((1, 2, 3, 4), np.float32)
    >>> output, saved = attention_forward(x, x, x)
    >>> attention_backward(saved, np.ones_like(output)).value.shape
    (1, 2, 3, 4)
    """
    attention = _core.attention if precision is None else at_precision(precision, _core.attention)
    output, weights, logsumexp, saved = attention(
        query,
        key,
        value,
        mask,
        bias,
        causal,
        query_offset,
        window,
        query_lengths,
        key_lengths,
        query_segments,
        key_segments,
        alibi_slopes,
        sinks,
        softcap,
        scale,
        dropout_p,
        None if rng is None else _seed(dropout_p, rng),
        None if return_weights is False else _selection(return_weights, query),
        checked_flag("return_logsumexp", return_logsumexp),
        checked_batch_invariance(batch_invariant),
        out,
        True,
    )
    if return_weights is False and not return_logsumexp:
        return output, saved
    return AttentionResult(output, weights, logsumexp), saved


def attention_backward(saved: AttentionSaved, d_output: Array) -> AttentionGrads:
    """The gradients of an attention call for the gradient of its output.

    saved: what attention_forward returned beside the output
    d_output: of the shape and dtype of the output, any strides

    Returns AttentionGrads(query, key, value, bias, sinks), each of the shape and dtype of its argument: what
    an argument was broadcast along is summed. With P the softmax weights and dP = d_output @ value.T (both
    with dropout applied where P is used as a weight): d_value = P.T @ d_output,
    dS = P * (dP - rowsum(d_output * output)), d_query = scale * dS @ key, d_key = scale * dS.T @ query,
    d_bias = dS. A query that attends to nothing gets gradient 0.

    Raises TypeError and ValueError for a d_output that does not fit.
    Source: Dao et al. 2022, "FlashAttention", algorithm 4.

    >>> x = np.ones((1, 2, 3, 4))
    >>> output, saved = attention_forward(x, x, x, causal=True)
    >>> attention_backward(saved, output).query.dtype
    dtype('float64')
    """
    if not isinstance(saved, AttentionSaved):
        raise TypeError(f"saved must be what attention_forward returned, got {type(saved).__name__}")
    return AttentionGrads(*_core.attention_backward(saved, d_output))


def explain_mask(
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    *,
    mask: Array | None = None,
    causal: Causal = False,
    query_offset: int | Array | None = None,
    window: tuple[int | None, int | None] | None = None,
    query_lengths: Array | Sequence[int] | None = None,
    key_lengths: Array | Sequence[int] | None = None,
    query_segments: Array | None = None,
    key_segments: Array | None = None,
) -> NDArray[np.bool_]:
    """Who may attend to whom under the mask arguments of scaled_dot_product_attention.

    query_shape: (..., query_heads, query_length, dim); key_shape: (..., key_heads, key_length, dim)

    Returns a bool array (..., query_heads, query_length, key_length), True = may attend, decided by the code
    that attention runs. Raises what scaled_dot_product_attention raises for shapes and masks.

    >>> explain_mask((1, 3, 8), (1, 3, 8), causal=True)[0].astype(int)
    array([[1, 0, 0],
           [1, 1, 0],
           [1, 1, 1]])
    """
    return _core.explain_mask(
        _shape(query_shape, "query_shape"),
        _shape(key_shape, "key_shape"),
        mask,
        causal,
        query_offset,
        window,
        query_lengths,
        key_lengths,
        query_segments,
        key_segments,
    )


class AttentionPlan(NamedTuple):
    """What an attention call would run; see attention_plan."""

    kernel: str
    query_tile: int
    key_block: int
    queries_per_task: int
    keys_per_task: int
    tasks: int
    threads: int
    peak_bytes: int


def attention_plan(
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    value_shape: Sequence[int] | None = None,
    dtype: Any = np.float32,
    *,
    bias: Array | None = None,
    return_weights: bool | WeightSelection = False,
    return_logsumexp: bool = False,
    precision: Precision | None = None,
    batch_invariant: bool | None = None,
) -> AttentionPlan:
    """What scaled_dot_product_attention would run for such arrays and arguments, without running it.

    There is one algorithm, tiles with an online softmax, and no slower one that some arguments fall into.
    Masks change nothing of the plan: tiles that they hide are skipped when they come up. It tells

    kernel: the instruction set; "amx" where its tiles serve the precision
    query_tile, key_block: queries computed side by side, and keys per step of the online softmax
    queries_per_task, keys_per_task, tasks, threads: how the work is cut, and how many threads share it at
        most: fewer do where they would have to be woken for 10 us each or less. Keys are cut where there
        are few queries
    peak_bytes: memory of the call: its results and all scratch memory; linear in the lengths, but for
        weights. Each thread may copy 160 rows more of keys and of values that are not dense

    Raises what scaled_dot_product_attention raises for shapes and dtypes.

    >>> attention_plan((1, 8, 1024, 64), (1, 8, 1024, 64)).peak_bytes < 16e6
    True
    """
    query = _shape(query_shape, "query_shape")
    key = _shape(key_shape, "key_shape")
    value = key if value_shape is None else _shape(value_shape, "value_shape")
    element = array_dtype(dtype)
    invariant = checked_batch_invariance(batch_invariant)
    invariance = nullcontext() if invariant is None else in_any_batch(invariant)
    planned = _core.attention_plan if precision is None else at_precision(precision, _core.attention_plan)
    with invariance:
        plan = planned(query, key, value, element, bias)
    rows = math.prod(query[:-1])
    result_bytes = rows * value[-1] * element.itemsize
    if checked_flag("return_logsumexp", return_logsumexp):
        result_bytes += rows * max(element.itemsize, 4)
    if chosen := choose_weights(return_weights, query[-3] if len(query) > 2 else 1, query[-2]):
        heads, chosen_rows, mean = chosen
        count = math.prod(query[:-3]) * (1 if mean else len(heads)) * len(chosen_rows)
        result_bytes += count * key[-2] * element.itemsize
    return AttentionPlan(
        kernel=plan["kernel"],
        query_tile=plan["query_tile"],
        key_block=plan["key_block"],
        queries_per_task=plan["queries_per_task"],
        keys_per_task=plan["keys_per_task"],
        tasks=plan["tasks"],
        threads=plan["threads"],
        peak_bytes=result_bytes + plan["shared_bytes"] + plan["threads"] * plan["workspace_bytes"],
    )
