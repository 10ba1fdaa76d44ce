"""The formulas that everything is judged by, in NumPy and in the dtype of their inputs."""

from __future__ import annotations

import math

import numpy as np

Arrays = dict[str, np.ndarray]

LAYER_NORM_EPS = 1e-5


def softmax(x: np.ndarray) -> np.ndarray:
    weights = np.exp(x - x.max(axis=-1, keepdims=True))
    return weights / weights.sum(axis=-1, keepdims=True)


def layer_norm(
    x: np.ndarray, weight: np.ndarray, bias: np.ndarray, eps: float = LAYER_NORM_EPS
) -> np.ndarray:
    centred = x - x.mean(axis=-1, keepdims=True)
    variance = (centred * centred).mean(axis=-1, keepdims=True)
    return centred / np.sqrt(variance + eps) * weight + bias


def rms_norm(x: np.ndarray, weight: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + LAYER_NORM_EPS) * weight


def exact_gelu(x: np.ndarray) -> np.ndarray:
    erf = np.vectorize(math.erf, otypes=[np.float64])
    return x * (1 + erf(x / math.sqrt(2))) / 2


def tanh_gelu(x: np.ndarray) -> np.ndarray:
    return x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x * x * x))) / 2


def multihead_attention(x, state, heads, allowed=None):
    """The formula, in x's dtype; `allowed` is None or broadcasts to (batch, heads, length, length)."""
    batch, length, d_model = x.shape
    projected = x @ state["in_proj_weight"].T + state["in_proj_bias"]
    query, key, value = projected.reshape(batch, length, 3, heads, d_model // heads).transpose(2, 0, 3, 1, 4)
    scores = (query * x.dtype.type((d_model // heads) ** -0.5)) @ key.swapaxes(-1, -2)
    if allowed is not None:
        scores = np.where(allowed, scores, x.dtype.type(-np.inf))
    output = (softmax(scores) @ value).swapaxes(1, 2).reshape(batch, length, d_model)
    return output @ state["out_proj.weight"].T + state["out_proj.bias"]


def encoder_layer(x, state, heads, norm_first, allowed, gelu, eps=LAYER_NORM_EPS):
    """The formula, in x's dtype; `allowed` is None or broadcasts to (batch, heads, length, length)."""

    def linear(x, name):
        return x @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    def norm(x, name):
        return layer_norm(x, state[f"{name}.weight"], state[f"{name}.bias"], eps)

    attention_state = {
        name.removeprefix("self_attn."): array
        for name, array in state.items()
        if name.startswith("self_attn.")
    }

    def self_attention(x):
        return multihead_attention(x, attention_state, heads, allowed)

    def feed_forward(x):
        return linear(gelu(linear(x, "linear1")), "linear2")

    if norm_first:
        x = x + self_attention(norm(x, "norm1"))
        return x + feed_forward(norm(x, "norm2"))
    x = norm(x + self_attention(x), "norm1")
    return norm(x + feed_forward(x), "norm2")
