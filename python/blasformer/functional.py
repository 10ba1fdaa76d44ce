"""The functions that layers are made of, on NumPy arrays.

Every function takes float32, float64, float16 or bfloat16 arrays with any strides, never changes them, and
returns an array of the same dtype. float64 is computed in float64, everything else in float32. `out` is an
array of the result's shape and dtype to write the result into; it may be the input. As in NumPy, softmax and
the activations return arrays with the memory order of x.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, TypeAlias

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core

Array: TypeAlias = NDArray[Any]


def softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """exp(x - m) / sum(exp(x - m)) along an axis, where m is the largest element.

    x: (...)
    axis: the axis whose elements sum to 1

    Returns an array of x's shape. Where x has NaN or +inf, or nothing but -inf, along the axis, the result is
    NaN.
    Raises TypeError for other dtypes, ValueError for an axis that x does not have.

    >>> softmax(np.array([[0.0, 0.0], [0.0, np.log(3)]]))
    array([[0.5 , 0.5 ],
           [0.25, 0.75]])
    """
    return _core.softmax(x, axis, out)


def log_softmax(x: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """x - m - log(sum(exp(x - m))) along an axis, where m is the largest element: the logarithm of softmax.

    x: (...)
    axis: the axis along which exp of the result sums to 1

    Returns an array of x's shape. Where x has NaN or +inf, or nothing but -inf, along the axis, the result is
    NaN.
    Raises TypeError for other dtypes, ValueError for an axis that x does not have.

    >>> log_softmax(np.zeros(2)).round(4)
    array([-0.6931, -0.6931])
    """
    return _core.log_softmax(x, axis, out)


def gelu(
    x: Array, *, approximate: Literal["none", "tanh", "sigmoid"] = "none", out: Array | None = None
) -> Array:
    """x * Phi(x), where Phi is the standard normal distribution function.

    x: (...)
    approximate: which of three functions that share the name
        "none": x * Phi(x) = x / 2 * (1 + erf(x / sqrt(2))), as in BERT; negative x keep their relative
            accuracy
        "tanh": x / 2 * (1 + tanh(sqrt(2 / pi) * (x + 0.044715 * x**3))), as in GPT-2
        "sigmoid": x * sigmoid(1.702 * x), as in CLIP

    Returns an array of x's shape. Raises TypeError for other dtypes, ValueError for another `approximate`.
    Hendrycks and Gimpel 2016, "Gaussian Error Linear Units".

    >>> gelu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.1587,  0.    ,  0.8413])
    """
    return _core.gelu(x, approximate, out)


def relu(x: Array, *, out: Array | None = None) -> Array:
    """max(x, 0); NaN stays NaN.

    x: (...)

    Returns an array of x's shape. Raises TypeError for other dtypes.

    >>> relu(np.array([-1.0, 0.0, 2.0]))
    array([0., 0., 2.])
    """
    return _core.relu(x, out)


def silu(x: Array, *, out: Array | None = None) -> Array:
    """x * sigmoid(x) = x / (1 + exp(-x)), also known as swish.

    x: (...)

    Returns an array of x's shape. Raises TypeError for other dtypes.
    Elfwing, Uchibe and Doya 2018, "Sigmoid-weighted linear units"; Llama's feed-forward uses it.

    >>> silu(np.array([-1.0, 0.0, 1.0])).round(4)
    array([-0.2689,  0.    ,  0.7311])
    """
    return _core.silu(x, out)


def layer_norm(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    bias: Array | None = None,
    eps: float = 1e-5,
    *,
    out: Array | None = None,
) -> Array:
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last axes.

    x: (..., *normalized_shape)
    normalized_shape: the extents of the last axes, over which mean and variance are taken; an int for the
        last axis alone
    weight, bias: (*normalized_shape) of x's dtype; left out when None
    eps: at least 0

    Returns an array of x's shape. The variance divides by the number of elements and is computed from x -
    mean, in two passes; a mean far from 0 and elements as large as 1e38 cost no accuracy.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and a negative or infinite eps.
    Ba, Kiros and Hinton 2016, "Layer Normalization".

    >>> layer_norm(np.array([[1.0, 2.0, 3.0]]), 3, eps=0.0).round(4)
    array([[-1.2247,  0.    ,  1.2247]])
    """
    return _core.layer_norm(x, normalized_shape, weight, bias, eps, out)


def rms_norm(
    x: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float | None = None,
    *,
    out: Array | None = None,
) -> Array:
    """x / sqrt(mean(x**2) + eps) * weight over the last axes.

    x: (..., *normalized_shape)
    normalized_shape: the extents of the last axes, over which the mean is taken; an int for the last axis
        alone
    weight: (*normalized_shape) of x's dtype; left out when None
    eps: at least 0; None is the machine epsilon of x's dtype, as in PyTorch. Llama's checkpoints name 1e-5 or
        1e-6.

    Returns an array of x's shape.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and a negative or infinite eps.
    Zhang and Sennrich 2019, "Root Mean Square Layer Normalization".

    >>> rms_norm(np.array([3.0, 4.0]), 2, eps=0.0).round(4)
    array([0.8485, 1.1314])
    """
    return _core.rms_norm(x, normalized_shape, weight, eps, out)


def linear(x: Array, weight: Array, bias: Array | None = None, *, out: Array | None = None) -> Array:
    """x @ weight.T + bias.

    x: (..., in_features)
    weight: (out_features, in_features) of x's dtype
    bias: (out_features,) of x's dtype; left out when None

    Returns an array (..., out_features).
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.

    >>> linear(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0]]), np.array([0.5]))
    array([[11.5]])
    """
    return _core.linear(x, weight, bias, out)


def embedding(ids: Array | Sequence[int], weight: Array, *, out: Array | None = None) -> Array:
    """weight[ids], with every id checked.

    ids: (...) integers in [0, num_embeddings)
    weight: (num_embeddings, embedding_dim)

    Returns an array (..., embedding_dim) of weight's dtype.
    Raises IndexError that names the first id out of range (negative ones are) before anything is written,
    TypeError for other dtypes, ValueError for shapes that do not fit.

    >>> embedding([1, 1, 0], np.array([[1.0, 2.0], [3.0, 4.0]]))
    array([[3., 4.],
           [3., 4.],
           [1., 2.]])
    """
    return _core.embedding(ids, weight, out)


def rotary_embedding(
    x: Array,
    positions: Array | Sequence[int],
    *,
    base: float = 10000.0,
    interleaved: bool,
    dims: int | None = None,
    out: Array | None = None,
) -> Array:
    """Rotate pairs of features by angles that grow with the position.

    Pair i of the first `dims` features is turned by the angle a = position * base**(-2 * i / dims):
    (u, v) becomes (u * cos(a) - v * sin(a), v * cos(a) + u * sin(a)). The other features are copied.

    x: (..., heads, length, head_dim)
    positions: (length,) integers, or (batch, length) if x is (batch, ..., length, head_dim)
    base: greater than 0
    interleaved: which features are pair i. True: 2 * i and 2 * i + 1 (GPT-J, the first Llama). False: i and i
        + dims / 2 (GPT-NeoX, Llama as Hugging Face stores it). Checkpoints need the one they were trained
        with.
    dims: how many features turn, even; by default all

    Returns an array of x's shape. Angles, sines and cosines are computed in float64.
    Raises TypeError for other dtypes, ValueError for shapes and values that do not fit.
    Su et al. 2021, "RoFormer".

    >>> rotary_embedding(np.array([[[1.0, 0.0]]]), [1], interleaved=True).round(4)
    array([[[0.5403, 0.8415]]])
    """
    return _core.rotary_embedding(x, positions, base, interleaved, dims, out)


def sinusoidal_positions(
    length: int,
    d_model: int,
    *,
    layout: Literal["interleaved", "concatenated"] = "interleaved",
    first: int = 0,
    dtype: DTypeLike = np.float32,
) -> Array:
    """Sines and cosines of each position, at frequencies that fall from 1 to about 1 / 10000.

    length: number of positions
    d_model: number of features, even
    layout: features 2 * i and 2 * i + 1 of position p are, "interleaved", the sine and cosine of
        p * 10000**(-2 * i / d_model) (Vaswani et al. 2017); "concatenated": features i and i + d_model / 2
        are those of p * 10000**(-i / (d_model / 2 - 1)) (tensor2tensor, fairseq, Marian, Whisper)
    first: position of the first row; fairseq counts from 2, OpenNMT from 1
    dtype: of the result

    Returns an array (length, d_model), computed in float64.
    Raises TypeError for other dtypes, ValueError for a negative length, an odd d_model and another layout.

    >>> sinusoidal_positions(2, 4).round(4)
    array([[0.    , 1.    , 0.    , 1.    ],
           [0.8415, 0.5403, 0.01  , 1.    ]], dtype=float32)
    """
    return _core.sinusoidal_positions(length, d_model, layout, first, dtype)
