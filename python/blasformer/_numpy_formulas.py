"""The formulas that `blasformer compare` measures against, as a NumPy user would write them.

`dtype` says how: in float64 the result is the truth; in float32 it shows how far ordinary arithmetic is from
that truth, and how long NumPy takes. They are as fast as NumPy allows, in place and without repeating the
keys of grouped heads, so that the race is fair. tests/reference.py is the specification: it covers every
argument, favours reading over speed and is not installed; a test holds these formulas to it.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

Array: TypeAlias = NDArray[Any]
Float: TypeAlias = type[np.floating[Any]]
Parameters: TypeAlias = dict[str, Array]


def softmax(x: Array, *, dtype: Float) -> Array:
    x = x.astype(dtype, copy=False)
    exponentials: Array = np.exp(x - x.max(-1, keepdims=True))
    exponentials /= exponentials.sum(-1, keepdims=True)
    return exponentials


def log_softmax(x: Array, *, dtype: Float) -> Array:
    x = x.astype(dtype, copy=False)
    shifted: Array = x - x.max(-1, keepdims=True)
    shifted -= np.log(np.exp(shifted).sum(-1, keepdims=True))
    return shifted


def gelu(x: Array, approximate: str = "none", *, dtype: Float) -> Array:
    """x Phi(x), or an approximation of it. Phi, the normal distribution, takes an erf that NumPy lacks."""
    x = x.astype(dtype, copy=False)
    if approximate == "tanh":
        twice_phi: Array = 1 + np.tanh(dtype(math.sqrt(2 / math.pi)) * (x + dtype(0.044715) * x * x * x))
    elif approximate == "sigmoid":
        twice_phi = 2 / (1 + np.exp(dtype(-1.702) * x))
    else:
        twice_phi = np.fromiter(map(math.erfc, x.ravel() * dtype(-math.sqrt(0.5))), dtype, x.size)
        twice_phi = twice_phi.reshape(x.shape)
    twice_phi *= x
    twice_phi *= dtype(0.5)
    return twice_phi


def relu(x: Array, *, dtype: Float) -> Array:
    return np.maximum(x.astype(dtype, copy=False), 0)


def silu(x: Array, *, dtype: Float) -> Array:
    x = x.astype(dtype, copy=False)
    result: Array = x / (1 + np.exp(-x))
    return result


def layer_norm(x: Array, weight: Array, bias: Array, *, eps: float, dtype: Float) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias, where variance divides by n."""
    x = x.astype(dtype, copy=False)
    centred: Array = x - x.mean(-1, keepdims=True)
    centred /= np.sqrt((centred * centred).mean(-1, keepdims=True) + dtype(eps))
    centred *= weight.astype(dtype, copy=False)
    centred += bias.astype(dtype, copy=False)
    return centred


def rms_norm(x: Array, weight: Array, *, eps: float, dtype: Float) -> Array:
    """x / sqrt(mean(x^2) + eps) * weight."""
    x = x.astype(dtype, copy=False)
    normalised: Array = x / np.sqrt((x * x).mean(-1, keepdims=True) + dtype(eps))
    normalised *= weight.astype(dtype, copy=False)
    return normalised


def linear(x: Array, weight: Array, bias: Array, *, dtype: Float) -> Array:
    """x weight^T + bias."""
    y: Array = x.astype(dtype, copy=False) @ weight.astype(dtype, copy=False).T
    y += bias.astype(dtype, copy=False)
    return y


def embedding(ids: Array, weight: Array, *, dtype: Float) -> Array:
    rows: Array = weight[ids]
    return rows.astype(dtype, copy=False)


def softmax_backward(output: Array, d_output: Array, *, dtype: Float) -> Array:
    y, d_y = output.astype(dtype, copy=False), d_output.astype(dtype, copy=False)
    result: Array = y * (d_y - (y * d_y).sum(-1, keepdims=True))
    return result


def log_softmax_backward(output: Array, d_output: Array, *, dtype: Float) -> Array:
    y, d_y = output.astype(dtype, copy=False), d_output.astype(dtype, copy=False)
    result: Array = d_y - np.exp(y) * d_y.sum(-1, keepdims=True)
    return result


def gelu_backward(x: Array, d_output: Array, approximate: str = "none", *, dtype: Float) -> Array:
    """The derivative of x Phi(x) is Phi(x) + x Phi'(x), that of x s(u), s the sigmoid, s + x u' s (1 - s)."""
    x, d_y = x.astype(dtype, copy=False), d_output.astype(dtype, copy=False)
    if approximate == "none":
        phi = np.fromiter(map(math.erfc, x.ravel() * dtype(-math.sqrt(0.5))), dtype, x.size).reshape(x.shape)
        density = np.exp(dtype(-0.5) * x * x) * dtype(1 / math.sqrt(2 * math.pi))
        return np.asarray(d_y * (dtype(0.5) * phi + x * density))
    if approximate == "tanh":
        slope, cubic = dtype(2 * math.sqrt(2 / math.pi)), dtype(2 * math.sqrt(2 / math.pi) * 0.044715)
        u, d_u = slope * x + cubic * x * x * x, slope + 3 * cubic * x * x
    else:
        u, d_u = dtype(1.702) * x, np.asarray(dtype(1.702))
    s = 1 / (1 + np.exp(-u))
    return np.asarray(d_y * (s + x * d_u * s * (1 - s)))


def relu_backward(x: Array, d_output: Array, *, dtype: Float) -> Array:
    return np.where(x > 0, d_output.astype(dtype, copy=False), dtype(0))


def silu_backward(x: Array, d_output: Array, *, dtype: Float) -> Array:
    x, d_y = x.astype(dtype, copy=False), d_output.astype(dtype, copy=False)
    s = 1 / (1 + np.exp(-x))
    return np.asarray(d_y * s * (1 + x * (1 - s)))


def layer_norm_backward(
    x: Array, d_output: Array, weight: Array, *, eps: float, dtype: Float
) -> tuple[Array, Array, Array]:
    """For x, weight and bias."""
    x, d_y = x.astype(dtype, copy=False), d_output.astype(dtype, copy=False)
    y = x - x.mean(-1, keepdims=True)
    reciprocal = 1 / np.sqrt((y * y).mean(-1, keepdims=True) + dtype(eps))
    y *= reciprocal
    g = d_y * weight.astype(dtype, copy=False)
    d_x = reciprocal * (g - g.mean(-1, keepdims=True) - y * (g * y).mean(-1, keepdims=True))
    rows = tuple(range(x.ndim - 1))
    return d_x, (d_y * y).sum(rows), d_y.sum(rows)


def rms_norm_backward(
    x: Array, d_output: Array, weight: Array, *, eps: float, dtype: Float
) -> tuple[Array, Array]:
    """For x and weight."""
    x, d_y = x.astype(dtype, copy=False), d_output.astype(dtype, copy=False)
    reciprocal = 1 / np.sqrt((x * x).mean(-1, keepdims=True) + dtype(eps))
    y = x * reciprocal
    g = d_y * weight.astype(dtype, copy=False)
    d_x = reciprocal * (g - y * (g * y).mean(-1, keepdims=True))
    return d_x, (d_y * y).sum(tuple(range(x.ndim - 1)))


def linear_backward(x: Array, d_output: Array, weight: Array, *, dtype: Float) -> tuple[Array, Array, Array]:
    """For x, weight and bias."""
    x, d_y, weight = (array.astype(dtype, copy=False) for array in (x, d_output, weight))
    d_rows = d_y.reshape(-1, weight.shape[0])
    return d_y @ weight, d_rows.T @ x.reshape(-1, weight.shape[1]), d_rows.sum(0)


def embedding_backward(ids: Array, d_output: Array, num_embeddings: int, *, dtype: Float) -> Array:
    d_weight = np.zeros((num_embeddings, d_output.shape[-1]), dtype)
    np.add.at(d_weight, ids.ravel(), d_output.astype(dtype, copy=False).reshape(-1, d_output.shape[-1]))
    return d_weight


def rotary_embedding_backward(d_output: Array, positions: Array, *, interleaved: bool, dtype: Float) -> Array:
    """The inverse of a rotation is its transpose."""
    return rotary_embedding(d_output, -positions, interleaved=interleaved, dtype=dtype)


def cross_entropy(logits: Array, targets: Array, *, dtype: Float) -> tuple[Array, Array]:
    """-mean(log softmax(logits)[target]), and its gradient."""
    log_p = log_softmax(logits, dtype=dtype)
    rows = np.arange(len(targets))
    loss = -log_p[rows, targets].mean()
    d_logits = np.exp(log_p)
    d_logits[rows, targets] -= 1
    d_logits /= dtype(len(targets))
    return np.asarray(loss), d_logits


def rotary_embedding(x: Array, positions: Array, *, interleaved: bool, dtype: Float) -> Array:
    """Rotates pair i by position * 10000**(-2 i / dim) (Su et al. 2021).

    Pair i is features (2 i, 2 i + 1) when interleaved, and (i, i + dim / 2) otherwise.
    """
    x = x.astype(dtype, copy=False)
    half = x.shape[-1] // 2
    angles = positions[:, None].astype(dtype) * dtype(10000) ** (-np.arange(half, dtype=dtype) / dtype(half))
    cosine, sine = np.cos(angles), np.sin(angles)
    first = slice(0, None, 2) if interleaved else slice(0, half)
    second = slice(1, None, 2) if interleaved else slice(half, None)
    rotated = np.empty_like(x)
    rotated[..., first] = x[..., first] * cosine - x[..., second] * sine
    rotated[..., second] = x[..., second] * cosine + x[..., first] * sine
    return rotated


def sinusoidal_positions(length: int, d_model: int, *, dtype: Float) -> Array:
    """Features 2 i and 2 i + 1 of row p: sin and cos of p * 10000**(-2 i / d_model) (Vaswani et al. 2017)."""
    frequencies = dtype(10000) ** (-np.arange(0, d_model, 2, dtype=dtype) / dtype(d_model))
    angles = np.arange(length, dtype=dtype)[:, None] * frequencies
    encoding = np.empty((length, d_model), dtype)
    encoding[:, 0::2], encoding[:, 1::2] = np.sin(angles), np.cos(angles)
    return encoding


def may_attend(
    query_shape: Sequence[int],
    key_shape: Sequence[int],
    *,
    mask: Array | None = None,
    causal: bool = False,
    query_offset: int | None = None,
    window: tuple[int | None, int | None] | None = None,
    key_lengths: Array | Sequence[int] | None = None,
) -> Array | None:
    """Who may attend to whom: an array of bool that broadcasts to the scores, or None if nothing masks."""
    parts = [] if mask is None else [mask]
    i, j = np.ogrid[: query_shape[-2], : key_shape[-2]]
    position = i + (query_offset or 0)
    if causal:
        parts.append(j <= position)
    if window is not None:
        left, right = window
        parts += [] if left is None else [j >= position - left]
        parts += [] if right is None else [j <= position + right]
    if key_lengths is not None:
        parts.append(j < np.reshape(key_lengths, (*query_shape[:-3], 1, 1, 1)))
    return np.logical_and.reduce(np.broadcast_arrays(*parts)) if parts else None


def _share_heads(x: Array, key_heads: int) -> Array:
    """(..., heads, length, n) -> (..., key_heads, group * length, n): all rows that read one key head."""
    return x.reshape(*x.shape[:-3], key_heads, -1, x.shape[-1])


def attention_weights(
    query: Array,
    key: Array,
    *,
    bias: Array | None = None,
    scale: float | None = None,
    dtype: Float,
    **masks: Any,
) -> Array:
    """softmax(scale * query key^T + bias, where allowed), for each head; a row of nothing allowed is zero."""
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    rows = _share_heads(query.astype(dtype, copy=False) * dtype(scale), key.shape[-3])
    scores = rows @ key.astype(dtype, copy=False).swapaxes(-1, -2)
    weights: Array = scores.reshape(*query.shape[:-1], key.shape[-2])
    if bias is not None:
        weights += bias.astype(dtype, copy=False)
    allowed = may_attend(query.shape, key.shape, **masks)
    if allowed is not None:
        np.copyto(weights, dtype(-np.inf), where=~allowed)
    largest = weights.max(-1, keepdims=True, initial=-np.inf)
    weights -= np.where(largest == -np.inf, dtype(0), largest)
    np.exp(weights, out=weights)
    total = weights.sum(-1, keepdims=True)
    weights /= np.where(total == 0, dtype(1), total)
    return weights


def attention(
    query: Array, key: Array, value: Array, *, dropout: Array | None = None, dtype: Float, **arguments: Any
) -> Array:
    """weights value. `dropout` is the factor of each weight: 0 where dropped, 1 / (1 - p) elsewhere."""
    weights = attention_weights(query, key, dtype=dtype, **arguments)
    if dropout is not None:
        weights *= dropout.astype(dtype, copy=False)
    rows = _share_heads(weights, value.shape[-3]) @ value.astype(dtype, copy=False)
    return rows.reshape(*query.shape[:-1], value.shape[-1])


class AttentionAndGradients(NamedTuple):
    output: Array
    d_query: Array
    d_key: Array
    d_value: Array


def attention_and_gradients(
    query: Array,
    key: Array,
    value: Array,
    d_output: Array,
    *,
    scale: float | None = None,
    dtype: Float,
    **arguments: Any,
) -> AttentionAndGradients:
    """The output, and the gradients of sum(output * d_output)."""
    query, key, value, d_output = (x.astype(dtype, copy=False) for x in (query, key, value, d_output))
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = attention_weights(query, key, scale=scale, dtype=dtype, **arguments)
    weights, d_rows = (_share_heads(x, key.shape[-3]) for x in (weights, d_output))
    output = weights @ value
    d_value = weights.swapaxes(-1, -2) @ d_rows
    d_scores = d_rows @ value.swapaxes(-1, -2)
    d_scores -= (d_rows * output).sum(-1, keepdims=True)
    d_scores *= weights
    d_scores *= dtype(scale)
    return AttentionAndGradients(
        output=output.reshape(d_output.shape),
        d_query=(d_scores @ key).reshape(query.shape),
        d_key=d_scores.swapaxes(-1, -2) @ _share_heads(query, key.shape[-3]),
        d_value=d_value,
    )


def gradient_terms(
    query: Array,
    key: Array,
    value: Array,
    d_output: Array,
    *,
    scale: float | None = None,
    **arguments: Any,
) -> tuple[float, float, float, float]:
    """How large the terms are that d_query, d_key and d_value are sums of: with one key, say, they cancel.

    The output, which comes first, is a mean of values and has no need of it.
    """
    scale = 1 / math.sqrt(query.shape[-1]) if scale is None else scale
    weights = attention_weights(query, key, scale=scale, dtype=np.float64, **arguments)
    weights, d_rows = (_share_heads(x, key.shape[-3]) for x in (weights, d_output))
    d_weights = np.abs(d_rows.astype(np.float64) @ value.astype(np.float64).swapaxes(-1, -2))
    d_scores = scale * weights * (d_weights + (weights * d_weights).sum(-1, keepdims=True))
    of_query, of_key, of_scores, of_weights, of_output = (
        float(np.abs(x).max(initial=0)) for x in (query, key, d_scores, weights, d_output)
    )
    return 0.0, of_scores * of_key, of_scores * of_query, of_weights * of_output


class AttendedWithWeights(NamedTuple):
    output: Array
    weights: Array


def multi_head_attention(
    parameters: Parameters, x: Array, *, num_heads: int, dtype: Float, **arguments: Any
) -> AttendedWithWeights:
    """Self-attention of x (batch, length, features): project, split into heads, attend, join, project."""
    projected = linear(x, parameters["in_proj_weight"], parameters["in_proj_bias"], dtype=dtype)
    heads = projected.reshape(*x.shape[:-1], 3, num_heads, -1)
    query, key, value = (heads[..., part, :, :].swapaxes(-2, -3) for part in range(3))
    weights = attention_weights(query, key, dtype=dtype, **arguments)
    joined = (weights @ value).swapaxes(-2, -3).reshape(x.shape)
    output = linear(joined, parameters["out_proj.weight"], parameters["out_proj.bias"], dtype=dtype)
    return AttendedWithWeights(output, weights)


def encoder_layer(
    parameters: Parameters,
    x: Array,
    *,
    num_heads: int,
    eps: float,
    norm_first: bool = False,
    dtype: Float,
    **arguments: Any,
) -> Array:
    """Post-norm: x = norm(x + sublayer(x)), as in 2017; pre-norm: x = x + sublayer(norm(x)). GELU by tanh."""
    attention_parameters = _within(parameters, "self_attn.")

    def attend(x: Array) -> Array:
        return multi_head_attention(
            attention_parameters, x, num_heads=num_heads, dtype=dtype, **arguments
        ).output

    def feed_forward(x: Array) -> Array:
        hidden = linear(x, parameters["linear1.weight"], parameters["linear1.bias"], dtype=dtype)
        return linear(
            gelu(hidden, "tanh", dtype=dtype),
            parameters["linear2.weight"],
            parameters["linear2.bias"],
            dtype=dtype,
        )

    def norm(name: str, x: Array) -> Array:
        return layer_norm(x, parameters[f"{name}.weight"], parameters[f"{name}.bias"], eps=eps, dtype=dtype)

    if norm_first:
        x = x + attend(norm("norm1", x))
        return x + feed_forward(norm("norm2", x))
    x = norm("norm1", x + attend(x))
    return norm("norm2", x + feed_forward(x))


def encoder(parameters: Parameters, x: Array, *, num_layers: int, dtype: Float, **arguments: Any) -> Array:
    """The layers one after the other, each under its prefix "layers.0.", "layers.1.", ..."""
    for index in range(num_layers):
        x = encoder_layer(_within(parameters, f"layers.{index}."), x, dtype=dtype, **arguments)
    return x


def _within(parameters: Parameters, prefix: str) -> Parameters:
    """The parameters of a part: those whose name begins with `prefix`, without it."""
    return {name[len(prefix) :]: array for name, array in parameters.items() if name.startswith(prefix)}
