"""The functions that layers are made of, on NumPy arrays.

Every function takes float32, float64, float16 or bfloat16 arrays with any strides, never changes them, and
returns an array of the same dtype. float64 is computed in float64, everything else in float32. `out` is an
array of the result's shape and dtype to write the result into; it may be the input. As in NumPy, softmax and
the activations return arrays with the memory order of x.

`f_backward` gives the gradients of a function f: how a number that depends on its result changes with its
inputs, given `d_output`, how it changes with the result. It takes what f takes, with d_output after the first
argument; d_output has the shape and dtype of the result, each gradient has those of its input. Sums over rows
have the same bits for every number of threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, NamedTuple, TypeAlias, overload

import numpy as np
from numpy.typing import DTypeLike, NDArray

from . import _core
from ._arguments import checked_name
from ._dtypes import array_dtype

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
    return _core.gelu(x, checked_name("approximate", approximate), out)


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
    return _core.sinusoidal_positions(
        length, d_model, checked_name("layout", layout), first, array_dtype(dtype)
    )


# ----------------------------------------------------------------------------------------------------------
# Gradients
# ----------------------------------------------------------------------------------------------------------


def softmax_backward(output: Array, d_output: Array, axis: int = -1, *, out: Array | None = None) -> Array:
    """output * (d_output - sum(output * d_output)) along an axis: the gradient of softmax.

    output: (...) what softmax returned
    d_output: (...) the gradient of it
    axis: that of the call of softmax

    Returns the gradient of x, of its shape.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and an axis that output does not
    have.

    >>> softmax_backward(np.array([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.1875, -0.1875])
    """
    return _core.softmax_backward(output, d_output, axis, out)


def log_softmax_backward(
    output: Array, d_output: Array, axis: int = -1, *, out: Array | None = None
) -> Array:
    """d_output - exp(output) * sum(d_output) along an axis: the gradient of log_softmax.

    output: (...) what log_softmax returned
    d_output: (...) the gradient of it
    axis: that of the call of log_softmax

    Returns the gradient of x, of its shape.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and an axis that output does not
    have.

    >>> log_softmax_backward(np.log([0.25, 0.75]), np.array([1.0, 0.0]))
    array([ 0.75, -0.75])
    """
    return _core.log_softmax_backward(output, d_output, axis, out)


def gelu_backward(
    x: Array,
    d_output: Array,
    *,
    approximate: Literal["none", "tanh", "sigmoid"] = "none",
    out: Array | None = None,
) -> Array:
    """d_output * gelu'(x).

    x: (...) what gelu was given
    d_output: (...) the gradient of its result
    approximate: which of three functions, as gelu was told
        "none": the slope is Phi(x) + x * exp(-x**2 / 2) / sqrt(2 * pi)
        "tanh": that of x * sigmoid(u), s + x * s * (1 - s) * u' with s = sigmoid(u), where
            u = sqrt(8 / pi) * (x + 0.044715 * x**3)
        "sigmoid": likewise with u = 1.702 * x

    Returns the gradient of x, of its shape.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and another `approximate`.

    >>> gelu_backward(np.array([-1.0, 0.0, 1.0]), np.ones(3)).round(4)
    array([-0.0833,  0.5   ,  1.0833])
    """
    return _core.gelu_backward(x, d_output, checked_name("approximate", approximate), out)


def relu_backward(x: Array, d_output: Array, *, out: Array | None = None) -> Array:
    """d_output where x > 0, otherwise 0, also at x = 0.

    x: (...) what relu was given, or what it returned
    d_output: (...) the gradient of its result

    Returns the gradient of x, of its shape.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.

    >>> relu_backward(np.array([-1.0, 0.0, 2.0]), np.array([3.0, 4.0, 5.0]))
    array([0., 0., 5.])
    """
    return _core.relu_backward(x, d_output, out)


def silu_backward(x: Array, d_output: Array, *, out: Array | None = None) -> Array:
    """d_output * (s + x * s * (1 - s)) with s = sigmoid(x): the gradient of silu.

    x: (...) what silu was given
    d_output: (...) the gradient of its result

    Returns the gradient of x, of its shape.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.

    >>> silu_backward(np.array([-1.0, 0.0, 1.0]), np.ones(3)).round(4)
    array([0.0723, 0.5   , 0.9277])
    """
    return _core.silu_backward(x, d_output, out)


class LayerNormGrads(NamedTuple):
    """The gradients of layer_norm; weight is None if there was none, bias is that of a bias in any case."""

    x: Array
    weight: Array | None
    bias: Array


def layer_norm_backward(
    x: Array,
    d_output: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float = 1e-5,
) -> LayerNormGrads:
    """The gradients of layer_norm.

    With r = 1 / sqrt(variance + eps), y = (x - mean) * r, which is computed again, and g = d_output * weight:
    r * (g - mean(g) - y * mean(g * y)) for x, sum(d_output * y) over the rows for weight, sum(d_output) for
    bias.

    x: (..., *normalized_shape) what layer_norm was given
    d_output: (..., *normalized_shape) the gradient of its result
    normalized_shape, weight, eps: as layer_norm was given them

    Returns LayerNormGrads(x, weight, bias).
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and a negative or infinite eps.

    >>> grads = layer_norm_backward(np.array([[1.0, 2.0, 4.0]]), np.array([[1.0, 0.0, 0.0]]), 3)
    >>> grads.x.round(4)
    array([[ 0.2291, -0.3436,  0.1145]])
    >>> grads.bias
    array([1., 0., 0.])
    """
    return LayerNormGrads(*_core.layer_norm_backward(x, d_output, normalized_shape, weight, eps))


class RMSNormGrads(NamedTuple):
    """The gradients of rms_norm; weight is None if there was none."""

    x: Array
    weight: Array | None


def rms_norm_backward(
    x: Array,
    d_output: Array,
    normalized_shape: int | Sequence[int],
    weight: Array | None = None,
    eps: float | None = None,
) -> RMSNormGrads:
    """The gradients of rms_norm.

    With r = 1 / sqrt(mean(x**2) + eps), y = x * r, which is computed again, and g = d_output * weight:
    r * (g - y * mean(g * y)) for x, sum(d_output * y) over the rows for weight.

    x: (..., *normalized_shape) what rms_norm was given
    d_output: (..., *normalized_shape) the gradient of its result
    normalized_shape, weight, eps: as rms_norm was given them

    Returns RMSNormGrads(x, weight).
    Raises TypeError for other dtypes, ValueError for shapes that do not fit and a negative or infinite eps.

    >>> rms_norm_backward(np.array([3.0, 4.0]), np.array([1.0, 0.0]), 2, eps=0.0).x.round(4)
    array([ 0.181 , -0.1358])
    """
    return RMSNormGrads(*_core.rms_norm_backward(x, d_output, normalized_shape, weight, eps))


class LinearGrads(NamedTuple):
    """The gradients of linear; bias is that of a bias in any case."""

    x: Array
    weight: Array
    bias: Array


def linear_backward(x: Array, d_output: Array, weight: Array) -> LinearGrads:
    """The gradients of linear: d_output @ weight for x, d_output.T @ x for weight, sum(d_output) for bias.

    x: (..., in_features) what linear was given
    d_output: (..., out_features) the gradient of its result
    weight: (out_features, in_features) as linear was given it

    Returns LinearGrads(x, weight, bias); those of weight and bias are sums over all leading axes.
    Raises TypeError for other dtypes, ValueError for shapes that do not fit.

    >>> linear_backward(np.array([[1.0, 2.0]]), np.array([[2.0]]), np.array([[3.0, 4.0]]))
    LinearGrads(x=array([[6., 8.]]), weight=array([[2., 4.]]), bias=array([2.]))
    """
    return LinearGrads(*_core.linear_backward(x, d_output, weight))


def embedding_backward(
    ids: Array | Sequence[int],
    d_output: Array,
    num_embeddings: int,
    *,
    padding_idx: int | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of the weight of embedding: row i is the sum of d_output where ids is i.

    ids: (...) integers in [0, num_embeddings), as embedding was given them
    d_output: (..., embedding_dim) the gradient of its result
    num_embeddings: the number of rows of weight
    padding_idx: an id that has no gradient: its row stays 0

    Returns an array (num_embeddings, embedding_dim); sums are formed in the order of ids.
    Raises IndexError that names the first id out of range, TypeError for other dtypes, ValueError for shapes
    that do not fit and a padding_idx out of range.

    >>> embedding_backward([1, 1, 0], np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]]), 3)
    array([[5., 6.],
           [4., 6.],
           [0., 0.]])
    """
    return _core.embedding_backward(ids, d_output, num_embeddings, padding_idx, out)


def rotary_embedding_backward(
    d_output: Array,
    positions: Array | Sequence[int],
    *,
    base: float = 10000.0,
    interleaved: bool,
    dims: int | None = None,
    out: Array | None = None,
) -> Array:
    """The gradient of rotary_embedding: d_output rotated by the opposite angles.

    d_output: (..., heads, length, head_dim) the gradient of its result
    positions, base, interleaved, dims: as rotary_embedding was given them

    Returns the gradient of x, of its shape.
    Raises TypeError for other dtypes, ValueError for shapes and values that do not fit.

    >>> rotary_embedding_backward(np.array([[[0.5403, 0.8415]]]), [1], interleaved=True).round(4)
    array([[[1., 0.]]])
    """
    return _core.rotary_embedding_backward(d_output, positions, base, interleaved, dims, out)


# ----------------------------------------------------------------------------------------------------------
# Loss
# ----------------------------------------------------------------------------------------------------------


@overload
def cross_entropy(
    logits: Array,
    targets: Array | Sequence[int],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Array | None = None,
    reduction: Literal["mean", "sum"] = "mean",
    out: Array | None = None,
) -> tuple[float, Array]: ...
@overload
def cross_entropy(
    logits: Array,
    targets: Array | Sequence[int],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Array | None = None,
    reduction: Literal["none"],
    out: Array | None = None,
) -> tuple[Array, Array]: ...
def cross_entropy(
    logits: Array,
    targets: Array | Sequence[int],
    *,
    ignore_index: int = -100,
    label_smoothing: float = 0.0,
    weight: Array | None = None,
    reduction: Literal["mean", "sum", "none"] = "mean",
    out: Array | None = None,
) -> tuple[float | Array, Array]:
    """How badly softmax(logits) foretells the targets, and the gradient of that number.

    With p = softmax(logits) along the last axis, the loss of a row whose target is y is

        -(1 - label_smoothing) * weight[y] * log(p[y]) - label_smoothing / classes * sum(weight * log(p))

    and 0 where y is ignore_index: the definition of torch.nn.functional.cross_entropy. "mean" is the sum of
    the losses divided by the sum of weight[y] over the targets that are not ignored, which without weight is
    their number.

    logits: (..., classes)
    targets: (...) integers in [0, classes), or ignore_index
    ignore_index: the target of rows that do not count, whatever they hold
    label_smoothing: from 0 to 1, the share of each target that is spread evenly over all classes
    weight: (classes,) of logits' dtype, finite and at least 0; ones when None
    reduction: "mean", "sum", or "none" for the loss of each row
    out: an array for d_logits; it may be logits, which is then the only copy of them

    Returns (loss, d_logits). loss is a float summed in float64, with reduction="none" an array (...) of
    logits' dtype; d_logits has logits' shape and dtype and is the gradient of the loss, with reduction="none"
    that of the sum of the losses. Where no target counts, the mean is 0.0 and the gradient zero.
    Raises IndexError that names the first target out of range and its position, before anything is written;
    TypeError for other dtypes; ValueError for shapes and values that do not fit.
    Szegedy et al. 2016, "Rethinking the Inception Architecture" (label smoothing).

    >>> loss, d_logits = cross_entropy(np.log([[0.2, 0.8], [0.5, 0.5]]), [1, -100])
    >>> round(loss, 4), d_logits.round(4).tolist()
    (0.2231, [[0.2, -0.2], [0.0, 0.0]])
    """
    return _core.cross_entropy(
        logits, targets, ignore_index, label_smoothing, weight, checked_name("reduction", reduction), out
    )
