"""The specification: every formula of the package in plain NumPy, in float64 unless told otherwise.

Nothing here is fast and nothing is clever. Each function takes `dtype`: in float64 it is the truth that
results are compared with, in float32 it shows how far plain NumPy arithmetic is from that truth, which is
what our own error is measured against (`assert_as_accurate_as_numpy`). In longdouble it judges float64
results.

Shapes: attention (..., heads, length, head_dim); layers (..., length, features); weights (out_features,
in_features). Masks: True means "may attend".
"""

import math
from typing import NamedTuple

import numpy as np

# ----------------------------------------------------------------------------------------------------------
# How results are judged
# ----------------------------------------------------------------------------------------------------------


def error(actual, exact, terms=0.0):
    """Largest difference relative to the largest magnitude, over the finite entries of `exact`.

    Inf and NaN must agree, or the error is infinite. Where sums of terms of size `terms` cancel, the terms
    are the magnitude. Zeros have none: there the difference itself counts.
    """
    actual, exact = np.asarray(actual), np.asarray(exact)
    assert actual.shape == exact.shape, f"shape {actual.shape} instead of {exact.shape}"
    working = np.promote_types(np.float64, exact.dtype)
    actual, exact = actual.astype(working), exact.astype(working)
    finite = np.isfinite(exact)
    if (
        not np.array_equal(actual[~finite], exact[~finite], equal_nan=True)
        or not np.isfinite(actual[finite]).all()
    ):
        return math.inf
    if not finite.any():
        return 0.0
    magnitude = max(np.abs(exact[finite]).max(), terms)
    return float(np.abs(actual[finite] - exact[finite]).max() / (magnitude if magnitude > 0 else 1))


def assert_as_accurate_as_numpy(actual, formula, *arguments, factor=2.0, orders=1, terms=None, **keywords):
    """error(actual) <= factor * error(the formula in plain NumPy of actual's dtype) + 1e-6 (float64: 8 eps).

    `formula(*arguments, dtype=..., **keywords)` returns one array, or a tuple of them as `actual` does; what
    is None in `actual` is skipped. factor is 2 for results and 3 for gradients. float64 results are judged by
    longdouble.

    orders: take NumPy's largest error over so many orders of the features of the first two arguments, query
    and key. With scores in the hundreds, the error of a single run hangs on whether two keys happen to be
    nearly tied and on how the roundings of their scores happen to fall: luck that must decide nothing.
    terms: for each part the size of the terms it is a sum of, which counts where they cancel.
    """
    results = actual if isinstance(actual, tuple) else (actual,)
    dtype = next(result.dtype.type for result in results if result is not None)
    assert dtype in (np.float32, np.float64), f"{dtype.__name__} results are judged by assert_rounded_once"

    def parts(arguments, dtype):
        with np.errstate(all="ignore"):
            result = formula(*arguments, dtype=dtype, **keywords)
        return result if isinstance(actual, tuple) else (result,)

    exact = parts(arguments, np.float64 if dtype == np.float32 else np.longdouble)
    names = getattr(exact, "_fields", range(len(exact)))
    terms = dict(zip(names, (0.0,) * len(exact) if terms is None else terms, strict=True))
    slack = 1e-6 if dtype == np.float32 else 8 * float(np.finfo(dtype).eps)
    allowed_errors = dict.fromkeys(names, slack)
    random = np.random.default_rng(0)
    for turn in range(orders):
        order = slice(None) if turn == 0 else random.permutation(arguments[0].shape[-1])
        reordered = arguments if turn == 0 else (*(x[..., order] for x in arguments[:2]), *arguments[2:])
        for name, truth, numpys in zip(names, exact, parts(reordered, dtype), strict=True):
            if truth is not None:
                same_order = truth[..., order] if name in ("query", "key") else truth
                bound = factor * error(numpys, same_order, terms[name]) + slack
                allowed_errors[name] = max(allowed_errors[name], bound)
    for name, ours, truth in zip(names, results, exact, strict=True):
        if ours is not None:
            assert ours.dtype == dtype, f"{name}: dtype {ours.dtype} instead of {np.dtype(dtype)}"
            off = error(ours, truth, terms[name])
            assert off <= allowed_errors[name], f"{name}: error {off:.3g}, allowed {allowed_errors[name]:.3g}"


def assert_rounded_once(actual, exact, *, roundings=1.0):
    """A half-precision result is the exact one, computed in float32 and rounded to the half dtype at the end.

    Each entry may be off by half a unit of its own last place (`roundings` times), and 1e-5 of the largest
    entry.
    """
    exact = np.asarray(exact, np.float64)
    assert actual.shape == exact.shape, f"shape {actual.shape} instead of {exact.shape}"
    mantissa_bits = {"float16": 10, "bfloat16": 7}[actual.dtype.name]
    smallest_normal_exponent = {"float16": -14, "bfloat16": -126}[actual.dtype.name]
    exponent = np.maximum(np.floor(np.log2(np.maximum(np.abs(exact), 2.0**-140))), smallest_normal_exponent)
    allowed_difference = roundings * 0.5 * 2.0 ** (exponent - mantissa_bits) * 1.01
    allowed_difference = allowed_difference + 1e-5 * np.abs(exact).max(initial=0)
    difference = np.abs(actual.astype(np.float64) - exact)
    worst = np.argmax(difference / allowed_difference) if difference.size else None
    assert worst is None or (difference <= allowed_difference).all(), (
        f"{actual.astype(np.float64).flat[worst]} instead of {exact.flat[worst]}"
    )


def numerical_derivative(function, x, direction, step=1e-4):
    """The scalar d/dt function(x + t * direction) at t = 0, by central differences of fourth order."""

    def at(t):
        return function(x + t * direction)

    return (8 * (at(step) - at(-step)) - (at(2 * step) - at(-2 * step))) / (12 * step)


# ----------------------------------------------------------------------------------------------------------
# Rows
# ----------------------------------------------------------------------------------------------------------


def softmax(x, axis=-1, *, dtype=np.float64):
    x = np.asarray(x, dtype)
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def log_softmax(x, axis=-1, *, dtype=np.float64):
    x = np.asarray(x, dtype)
    shifted = x - x.max(axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis, keepdims=True))


def sigmoid(x, *, dtype=np.float64):
    x = np.asarray(x, dtype)
    decay = np.exp(-np.abs(x))  # never overflows
    return np.where(x >= 0, 1 / (1 + decay), decay / (1 + decay)).astype(dtype)


def gelu(x, approximate="none", *, dtype=np.float64):
    """none: x * Phi(x), the normal distribution; tanh: GPT-2's; sigmoid: CLIP's x * sigmoid(1.702 x)."""
    x = np.asarray(x, dtype)
    if approximate == "none":
        upper_tail = np.vectorize(math.erfc, otypes=[dtype])(-x * dtype(math.sqrt(0.5)))
        return dtype(0.5) * x * upper_tail
    if approximate == "tanh":
        return dtype(0.5) * x * (1 + np.tanh(dtype(math.sqrt(2 / math.pi)) * (x + dtype(0.044715) * x**3)))
    if approximate == "sigmoid":
        return x * sigmoid(dtype(1.702) * x, dtype=dtype)
    raise ValueError(approximate)


def relu(x, *, dtype=np.float64):
    return np.maximum(np.asarray(x, dtype), 0)


def silu(x, *, dtype=np.float64):
    x = np.asarray(x, dtype)
    return x * sigmoid(x, dtype=dtype)


ACTIVATIONS = {
    "relu": relu,
    "gelu": gelu,
    "gelu_tanh": lambda x, *, dtype=np.float64: gelu(x, "tanh", dtype=dtype),
    "gelu_sigmoid": lambda x, *, dtype=np.float64: gelu(x, "sigmoid", dtype=dtype),
    "silu": silu,
}


def layer_norm(x, weight=None, bias=None, *, axes=1, eps=1e-5, dtype=np.float64):
    """(x - mean) / sqrt(variance + eps) * weight + bias over the last `axes` axes; variance divides by n."""
    x = np.asarray(x, dtype)
    last = tuple(range(-axes, 0))
    centred = x - x.mean(last, keepdims=True)
    variance = (centred * centred).mean(last, keepdims=True)
    y = centred / np.sqrt(variance + dtype(eps))
    if weight is not None:
        y = y * np.asarray(weight, dtype)
    if bias is not None:
        y = y + np.asarray(bias, dtype)
    return y


def rms_norm(x, weight=None, *, axes=1, eps=1e-6, dtype=np.float64):
    """x / sqrt(mean(x^2) + eps) * weight over the last `axes` axes."""
    x = np.asarray(x, dtype)
    y = x / np.sqrt((x * x).mean(tuple(range(-axes, 0)), keepdims=True) + dtype(eps))
    return y if weight is None else y * np.asarray(weight, dtype)


def linear(x, weight, bias=None, *, dtype=np.float64):
    """x @ weight.T + bias."""
    y = np.asarray(x, dtype) @ np.asarray(weight, dtype).T
    return y if bias is None else y + np.asarray(bias, dtype)


def embedding(ids, weight, *, dtype=np.float64):
    return np.asarray(weight, dtype)[ids]


# ----------------------------------------------------------------------------------------------------------
# Positions
# ----------------------------------------------------------------------------------------------------------


def rotary_embedding(x, positions, *, base=10000.0, interleaved, dims=None, dtype=np.float64):
    """Rotates pair i of the first `dims` features by position * base**(-2 i / dims) (Su et al. 2021).

    x (..., length, head_dim). positions (length,), or (batch, length) for x (batch, ..., length, head_dim).
    Pair i is features (2 i, 2 i + 1) when interleaved, and (i, i + dims / 2) otherwise.
    """
    x = np.asarray(x, dtype)
    dims = x.shape[-1] if dims is None else dims
    positions = np.asarray(positions, dtype)
    if positions.ndim == 2:
        positions = positions.reshape(positions.shape[0], *([1] * (x.ndim - 3)), positions.shape[1])
    frequencies = dtype(base) ** (-np.arange(0, dims, 2, dtype=dtype) / dtype(dims))
    angles = positions[..., None] * frequencies
    cosine, sine = np.cos(angles), np.sin(angles)
    first = slice(0, dims, 2) if interleaved else slice(0, dims // 2)
    second = slice(1, dims, 2) if interleaved else slice(dims // 2, dims)
    rotated = x.copy()
    rotated[..., first] = x[..., first] * cosine - x[..., second] * sine
    rotated[..., second] = x[..., second] * cosine + x[..., first] * sine
    return rotated


def sinusoidal_positions(length, d_model, *, layout="interleaved", first=0, dtype=np.float64):
    """Row p - first encodes position p as sines and cosines of p * frequency; d_model is even.

    interleaved (Vaswani et al. 2017): features 2 i and 2 i + 1 are sin and cos, with the frequency
    10000**(-2 i / d_model).
    concatenated (tensor2tensor, fairseq, Whisper): all sines, then all cosines, and the frequencies fall from
    1 to 1 / 10000 inclusive: 10000**(-i / (d_model / 2 - 1)).
    """
    half = d_model // 2
    index = np.arange(half, dtype=dtype)
    exponent = index * 2 / dtype(d_model) if layout == "interleaved" else index / dtype(max(half - 1, 1))
    angles = np.arange(first, first + length, dtype=dtype)[:, None] * dtype(10000) ** -exponent
    encoding = np.empty((length, d_model), dtype)
    if layout == "interleaved":
        encoding[:, 0::2], encoding[:, 1::2] = np.sin(angles), np.cos(angles)
    elif layout == "concatenated":
        encoding[:, :half], encoding[:, half:] = np.sin(angles), np.cos(angles)
    else:
        raise ValueError(layout)
    return encoding


# ----------------------------------------------------------------------------------------------------------
# Gradients of rows and positions, each with the derivative of the formula above as its truth
# ----------------------------------------------------------------------------------------------------------


def softmax_backward(output, d_output, axis=-1, *, dtype=np.float64):
    y, d_y = np.asarray(output, dtype), np.asarray(d_output, dtype)
    return y * (d_y - (y * d_y).sum(axis, keepdims=True))


def log_softmax_backward(output, d_output, axis=-1, *, dtype=np.float64):
    y, d_y = np.asarray(output, dtype), np.asarray(d_output, dtype)
    return d_y - np.exp(y) * d_y.sum(axis, keepdims=True)


def gelu_backward(x, d_output, approximate="none", *, dtype=np.float64):
    """The slopes of infinity are their limits: nothing changes beyond |x| = 100."""
    x, d_y = np.clip(np.asarray(x, dtype), -100, 100), np.asarray(d_output, dtype)
    if approximate == "none":
        phi = dtype(0.5) * np.vectorize(math.erfc, otypes=[dtype])(-x * dtype(math.sqrt(0.5)))
        return d_y * (phi + x * np.exp(-x * x / 2) / np.sqrt(dtype(2 * math.pi)))
    if approximate == "tanh":
        slope, cubic = dtype(2 * math.sqrt(2 / math.pi)), dtype(2 * math.sqrt(2 / math.pi) * 0.044715)
        return d_y * _times_sigmoid_slope(x, slope * x + cubic * x**3, slope + 3 * cubic * x * x, dtype)
    if approximate == "sigmoid":
        return d_y * _times_sigmoid_slope(x, dtype(1.702) * x, dtype(1.702), dtype)
    raise ValueError(approximate)


def _times_sigmoid_slope(x, u, du, dtype):
    """d/dx of x * sigmoid(u), with u and du/dx given."""
    return sigmoid(u, dtype=dtype) + x * du * sigmoid(u, dtype=dtype) * sigmoid(-u, dtype=dtype)


def relu_backward(x, d_output, *, dtype=np.float64):
    return np.where(np.asarray(x, dtype) <= 0, dtype(0), np.asarray(d_output, dtype))


def silu_backward(x, d_output, *, dtype=np.float64):
    x = np.clip(np.asarray(x, dtype), -1000, 1000)
    return np.asarray(d_output, dtype) * _times_sigmoid_slope(x, x, dtype(1), dtype)


class LayerNormGradients(NamedTuple):
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def layer_norm_backward(x, d_output, weight=None, *, axes=1, eps=1e-5, dtype=np.float64):
    x, d_y = np.asarray(x, dtype), np.asarray(d_output, dtype)
    last, rows = tuple(range(-axes, 0)), tuple(range(x.ndim - axes))
    centred = x - x.mean(last, keepdims=True)
    reciprocal = 1 / np.sqrt((centred * centred).mean(last, keepdims=True) + dtype(eps))
    y = centred * reciprocal
    g = d_y if weight is None else d_y * np.asarray(weight, dtype)
    d_x = reciprocal * (g - g.mean(last, keepdims=True) - y * (g * y).mean(last, keepdims=True))
    return LayerNormGradients(d_x, (d_y * y).sum(rows), d_y.sum(rows))


class RMSNormGradients(NamedTuple):
    x: np.ndarray
    weight: np.ndarray


def rms_norm_backward(x, d_output, weight=None, *, axes=1, eps=1e-6, dtype=np.float64):
    x, d_y = np.asarray(x, dtype), np.asarray(d_output, dtype)
    last, rows = tuple(range(-axes, 0)), tuple(range(x.ndim - axes))
    reciprocal = 1 / np.sqrt((x * x).mean(last, keepdims=True) + dtype(eps))
    y = x * reciprocal
    g = d_y if weight is None else d_y * np.asarray(weight, dtype)
    return RMSNormGradients(reciprocal * (g - y * (g * y).mean(last, keepdims=True)), (d_y * y).sum(rows))


class LinearGradients(NamedTuple):
    x: np.ndarray
    weight: np.ndarray
    bias: np.ndarray


def linear_backward(x, d_output, weight, *, dtype=np.float64):
    x, d_y, weight = (np.asarray(array, dtype) for array in (x, d_output, weight))
    d_rows = d_y.reshape(-1, weight.shape[0])
    return LinearGradients(d_y @ weight, d_rows.T @ x.reshape(-1, weight.shape[1]), d_rows.sum(0))


def embedding_backward(ids, d_output, num_embeddings, padding_idx=None, *, dtype=np.float64):
    ids, d_y = np.asarray(ids), np.asarray(d_output, dtype)
    d_weight = np.zeros((num_embeddings, d_y.shape[-1]), dtype)
    np.add.at(d_weight, ids.ravel(), d_y.reshape(-1, d_y.shape[-1]))
    if padding_idx is not None:
        d_weight[padding_idx] = 0
    return d_weight


def rotary_embedding_backward(d_output, positions, **arguments):
    """The inverse of a rotation is its transpose."""
    return rotary_embedding(d_output, -np.asarray(positions), **arguments)


class CrossEntropy(NamedTuple):
    loss: np.ndarray
    d_logits: np.ndarray


def cross_entropy(
    logits,
    targets,
    *,
    ignore_index=-100,
    label_smoothing=0.0,
    weight=None,
    reduction="mean",
    dtype=np.float64,
):
    """torch.nn.functional.cross_entropy, and the gradient of (the sum of) it; 0 where nothing counts."""
    logits, targets = np.asarray(logits, dtype), np.asarray(targets)
    classes = logits.shape[-1]
    weight = np.ones(classes, dtype) if weight is None else np.asarray(weight, dtype)
    counts = targets != ignore_index
    hit = (np.arange(classes) == targets[..., None]).astype(dtype)
    aim = weight * (dtype(1 - label_smoothing) * hit + dtype(label_smoothing / classes))
    log_p = log_softmax(logits, dtype=dtype)
    losses = np.where(counts, -np.where(aim == 0, 0, aim * log_p).sum(-1), 0)
    d_logits = np.where(counts[..., None], aim.sum(-1, keepdims=True) * np.exp(log_p) - aim, 0)
    if reduction == "none":
        return CrossEntropy(losses.astype(dtype), d_logits)
    total = (hit * weight).sum(-1)[counts].sum() if reduction == "mean" else dtype(1)
    if total == 0:
        return CrossEntropy(dtype(0), np.zeros_like(logits))
    return CrossEntropy(losses.sum() / total, d_logits / total)


# ----------------------------------------------------------------------------------------------------------
# Dropout: a random number per (batch, head, query, key) that depends on nothing else
# ----------------------------------------------------------------------------------------------------------


def philox(counter, key, rounds):
    """Philox4x32 (Salmon et al. 2011): four uint32 arrays and two uint32 keys to four uint32 arrays."""
    low = np.uint64(0xFFFFFFFF)
    c0, c1, c2, c3 = (np.asarray(word, np.uint64) & low for word in counter)
    k0, k1 = (int(word) for word in key)
    for _ in range(rounds):
        product0, product1 = c0 * np.uint64(0xD2511F53), c2 * np.uint64(0xCD9E8D57)
        c0, c1, c2, c3 = (
            (product1 >> np.uint64(32)) ^ c1 ^ np.uint64(k0),
            product1 & low,
            (product0 >> np.uint64(32)) ^ c3 ^ np.uint64(k1),
            product0 & low,
        )
        k0, k1 = (k0 + 0x9E3779B9) & 0xFFFFFFFF, (k1 + 0xBB67AE85) & 0xFFFFFFFF
    return tuple(word.astype(np.uint32) for word in (c0, c1, c2, c3))


def dropout_seed(rng):
    """The 64 bits that a call draws from its `rng` (a Generator, or an int that seeds one)."""
    return int(np.random.default_rng(rng).integers(0, 2**64, dtype=np.uint64))


def dropout_keep(rng, dropout_p, shape):
    """Which weights of `shape` (..., Hq, Lq, Lk) stay: those whose random word reaches dropout_p * 2**32.

    Keys 4 to 7 of 8 have the words of keys 0 to 3, with the halves exchanged.
    """
    seed = dropout_seed(rng)
    *leading, heads, queries, keys = shape
    batch = math.prod(leading)
    b, h, i, j = np.ogrid[:batch, :heads, :queries, :keys]
    words = philox(np.broadcast_arrays(j // 8, i, h, b), (seed & 0xFFFFFFFF, seed >> 32), rounds=7)
    words += tuple((word << np.uint32(16)) | (word >> np.uint32(16)) for word in words)
    word = np.choose(np.broadcast_to(j % 8, words[0].shape), words)
    return (word >= np.uint64(math.floor(dropout_p * 2**32))).reshape(shape)


def dropout(x, dropout_p, seed, *, dtype=np.float64):
    """x / (1 - p) where kept, 0 elsewhere: element i stays if its random word reaches p * 2**32."""
    x = np.asarray(x, dtype)
    i = np.arange(x.size)
    words = philox((i // 4, 0 * i, 0 * i, 0 * i), (seed & 0xFFFFFFFF, seed >> 32), rounds=10)
    keep = np.choose(i % 4, words).reshape(x.shape) >= np.uint64(math.floor(dropout_p * 2**32))
    return np.where(keep, x * dtype(1 / (1 - dropout_p)), dtype(0))


# ----------------------------------------------------------------------------------------------------------
# Attention
# ----------------------------------------------------------------------------------------------------------


def query_positions(query_length, key_length, causal, query_offset, leading):
    """Index among the keys of every query: (*leading or 1s, 1, Lq, 1)."""
    if query_offset is None:
        query_offset = key_length - query_length if causal == "lower_right" else 0
    offset = np.asarray(query_offset)
    if offset.ndim:
        offset = offset.reshape(*leading, 1, 1, 1)
    return np.arange(query_length)[:, None] + offset


def allowed(
    query_shape,
    key_shape,
    *,
    mask=None,
    bias=None,
    causal=False,
    query_offset=None,
    window=None,
    query_lengths=None,
    key_lengths=None,
    query_segments=None,
    key_segments=None,
):
    """Who may attend to whom: the AND of all that masks, as (..., Hq, Lq, Lk). A bias of -inf masks too."""
    *leading, heads, query_length, _ = query_shape
    key_length = key_shape[-2]
    shape = (*leading, heads, query_length, key_length)
    i, j = np.arange(query_length)[:, None], np.arange(key_length)
    p = query_positions(query_length, key_length, causal, query_offset, leading)

    result = np.ones(shape, bool)
    if mask is not None:
        result = result & np.broadcast_to(mask, shape)
    if bias is not None:
        result = result & np.broadcast_to(np.asarray(bias) != -np.inf, shape)
    if causal:
        result = result & (j <= p)
    if window is not None:
        left, right = window
        if left is not None:
            result = result & (j >= p - left)
        if right is not None:
            result = result & (j <= p + right)
    if query_lengths is not None:
        result = result & (i < np.asarray(query_lengths).reshape(*leading, 1, 1, 1))
    if key_lengths is not None:
        result = result & (j < np.asarray(key_lengths).reshape(*leading, 1, 1, 1))
    if query_segments is not None:
        key_segments = query_segments if key_segments is None else key_segments
        of_query = np.asarray(query_segments).reshape(*leading, 1, query_length, 1)
        of_key = np.asarray(key_segments).reshape(*leading, 1, 1, key_length)
        result = result & (of_query == of_key)
    return result


class Attention(NamedTuple):
    output: np.ndarray
    weights: np.ndarray  # before dropout
    logsumexp: (
        np.ndarray
    )  # log of the softmax denominator, a sink's share included; -inf where nobody may attend


class AttentionGradients(NamedTuple):
    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    bias: np.ndarray | None
    sinks: np.ndarray | None


class _Scores(NamedTuple):
    query: np.ndarray
    key: np.ndarray  # repeated to the query's heads
    value: np.ndarray  # likewise
    scale: float
    capped_slope: np.ndarray  # derivative of the soft cap at each score
    scores: np.ndarray  # -inf where masked


def _scores(query, key, value, *, bias, alibi_slopes, softcap, scale, dtype, **mask_arguments):
    query, key, value = (np.asarray(x, dtype) for x in (query, key, value))
    may_attend = allowed(query.shape, key.shape, bias=bias, **mask_arguments)
    *leading, heads, query_length, head_dim = query.shape
    group = heads // key.shape[-3]
    key, value = np.repeat(key, group, axis=-3), np.repeat(value, group, axis=-3)

    scale = dtype(1 / math.sqrt(head_dim) if scale is None else scale)
    scores = scale * (query @ np.swapaxes(key, -1, -2))
    capped_slope = dtype(1)
    if softcap is not None:
        saturation = np.tanh(scores / dtype(softcap))
        scores = dtype(softcap) * saturation
        capped_slope = 1 - saturation * saturation
    if bias is not None:
        scores = scores + np.asarray(bias, dtype)
    if alibi_slopes is not None:
        slopes = np.asarray(alibi_slopes, dtype)
        slopes = slopes.reshape(*(leading if slopes.ndim > 1 else ()), heads, 1, 1)
        causal, query_offset = mask_arguments.get("causal", False), mask_arguments.get("query_offset")
        p = query_positions(query_length, key.shape[-2], causal, query_offset, leading)
        scores = scores - slopes * np.abs(p - np.arange(key.shape[-2])).astype(dtype)
    return _Scores(query, key, value, scale, capped_slope, np.where(may_attend, scores, dtype(-np.inf)))


def _softmax_with_sink(scores, sinks):
    """Weights, the sink's weight and the log of the denominator of each row; a row of -inf has weights 0."""
    dtype = scores.dtype.type
    largest = scores.max(-1, keepdims=True, initial=-np.inf)
    empty = largest == -np.inf
    sink = (
        np.full_like(largest, -np.inf)
        if sinks is None
        else np.zeros_like(largest) + np.reshape(sinks, (-1, 1, 1))
    )
    largest = np.where(empty, dtype(0), np.maximum(largest, sink))
    exponentials = np.exp(scores - largest)
    sink_exponential = np.where(empty, dtype(0), np.exp(sink - largest))
    denominator = exponentials.sum(-1, keepdims=True) + sink_exponential
    weights = exponentials / np.where(empty, dtype(1), denominator)
    sink_weight = sink_exponential / np.where(empty, dtype(1), denominator)
    logsumexp = np.where(empty, dtype(-np.inf), largest + np.log(np.where(empty, dtype(1), denominator)))
    return weights, sink_weight, logsumexp[..., 0]


def attention(
    query,
    key,
    value,
    *,
    bias=None,
    alibi_slopes=None,
    sinks=None,
    softcap=None,
    scale=None,
    dropout_p=0.0,
    rng=None,
    dtype=np.float64,
    **mask_arguments,
):
    """dropout(softmax(softcap(scale * q k^T) + bias + alibi, where allowed)) v; no dropout without an rng."""
    terms = {"bias": bias, "alibi_slopes": alibi_slopes, "softcap": softcap, "scale": scale}
    s = _scores(query, key, value, **terms, dtype=dtype, **mask_arguments)
    sinks = None if sinks is None else np.asarray(sinks, dtype)
    weights, _, logsumexp = _softmax_with_sink(s.scores, sinks)
    return Attention(
        (weights * _dropout_factor(weights.shape, dropout_p, rng, dtype)) @ s.value, weights, logsumexp
    )


def attention_gradients(
    query,
    key,
    value,
    d_output,
    *,
    bias=None,
    alibi_slopes=None,
    sinks=None,
    softcap=None,
    scale=None,
    dropout_p=0.0,
    rng=None,
    dtype=np.float64,
    **mask_arguments,
):
    """Gradient of sum(output * d_output).

    A weight w_j = exp(s_j) / (sum_k exp(s_k) + exp(sink)) has dw_j/ds_k = w_j (delta_jk - w_k), hence
    d_s = w * (d_w - sum(d_w * w)) and d_sink = -w_sink * sum(d_w * w).
    """
    terms = {"bias": bias, "alibi_slopes": alibi_slopes, "softcap": softcap, "scale": scale}
    s = _scores(query, key, value, **terms, dtype=dtype, **mask_arguments)
    d_output = np.asarray(d_output, dtype)
    weights, sink_weight, _ = _softmax_with_sink(
        s.scores, None if sinks is None else np.asarray(sinks, dtype)
    )
    factor = _dropout_factor(weights.shape, dropout_p, rng, dtype)

    d_value = np.swapaxes(weights * factor, -1, -2) @ d_output
    d_weights = factor * (d_output @ np.swapaxes(s.value, -1, -2))
    expectation = (d_weights * weights).sum(-1, keepdims=True)
    d_scores = weights * (d_weights - expectation)
    d_products = s.scale * s.capped_slope * d_scores

    d_sinks = None
    if sinks is not None:
        d_sinks = reduce_to(-sink_weight * expectation, (len(sinks), 1, 1)).reshape(len(sinks))
    kv_heads = np.shape(key)[-3]
    return AttentionGradients(
        query=d_products @ s.key,
        key=_sum_groups(np.swapaxes(d_products, -1, -2) @ s.query, kv_heads),
        value=_sum_groups(d_value, kv_heads),
        bias=None if bias is None else reduce_to(d_scores, np.shape(bias)),
        sinks=d_sinks,
    )


def attention_gradient_terms(query, key, value, d_output, *, dtype=np.float64, **arguments):
    """How large the terms are that each gradient is a sum of. With one key, say, they cancel to zero.

    The rounding errors of n terms add up like sqrt(n) of them at best: that counts for bias and sinks, which
    are summed over all that they are broadcast along.
    """
    query, key, value, d_output = (np.asarray(x, dtype) for x in (query, key, value, d_output))
    weights = attention(query, key, value, dtype=dtype, **{**arguments, "rng": None}).weights
    values = np.repeat(value, query.shape[-3] // value.shape[-3], axis=-3)
    keep = 1 / (1 - arguments.get("dropout_p", 0)) if arguments.get("rng") is not None else 1
    d_weights = keep * np.abs(d_output @ np.swapaxes(values, -1, -2))
    d_scores = (weights * (d_weights + (weights * d_weights).sum(-1, keepdims=True))).max(initial=0)
    scale = arguments.get("scale")
    d_products = d_scores * abs(1 / math.sqrt(query.shape[-1]) if scale is None else scale)
    largest_query, largest_key, largest_d = (np.abs(x).max(initial=0) for x in (query, key, d_output))
    return AttentionGradients(
        query=d_products * largest_key,
        key=d_products * largest_query,
        value=keep * weights.max(initial=0) * largest_d,
        bias=d_scores * math.sqrt(weights.size / max(np.size(arguments.get("bias")), 1)),
        sinks=d_scores * math.sqrt(weights.size / max(np.size(arguments.get("sinks")), 1)),
    )


def _dropout_factor(shape, dropout_p, rng, dtype):
    """What the weights are multiplied by: 1 / (1 - p) where kept, 0 where dropped; 1 without an rng."""
    if rng is None or dropout_p == 0:
        return dtype(1)
    if dropout_p == 1:
        return dtype(0)
    return np.where(dropout_keep(rng, dropout_p, shape), dtype(1 / (1 - dropout_p)), dtype(0))


def _sum_groups(gradient, kv_heads):
    """Adds up what the query heads of a group contribute to the key/value head they share."""
    *leading, heads, length, features = gradient.shape
    return gradient.reshape(*leading, kv_heads, heads // kv_heads, length, features).sum(-3)


def reduce_to(gradient, shape):
    """Sums `gradient` over the axes along which an array of `shape` was broadcast to it."""
    extra = gradient.ndim - len(shape)
    gradient = gradient.sum(tuple(range(extra)))
    stretched = tuple(axis for axis, extent in enumerate(shape) if extent == 1 and gradient.shape[axis] != 1)
    return gradient.sum(stretched, keepdims=True)


# ----------------------------------------------------------------------------------------------------------
# Layers: parameters are a dict of arrays under PyTorch's names
# ----------------------------------------------------------------------------------------------------------


def within(parameters, prefix):
    """The parameters of a part: those whose name begins with `prefix`, without it."""
    return {name[len(prefix) :]: array for name, array in parameters.items() if name.startswith(prefix)}


def split_heads(x, heads):
    """(..., length, heads * head_dim) -> (..., heads, length, head_dim)."""
    return np.swapaxes(x.reshape(*x.shape[:-1], heads, x.shape[-1] // heads), -2, -3)


def merge_heads(x):
    """(..., heads, length, head_dim) -> (..., length, heads * head_dim)."""
    x = np.swapaxes(x, -2, -3)
    return x.reshape(*x.shape[:-2], x.shape[-2] * x.shape[-1])


def multi_head_attention(
    parameters,
    query,
    key=None,
    value=None,
    *,
    num_heads,
    num_kv_heads=None,
    rotary=None,
    return_weights=False,
    dtype=np.float64,
    **attention_arguments,
):
    """concat_h attention(q_h, k_h, v_h) W_o^T; q, k, v are linear in query, key, value (Vaswani et al. 2017).

    in_proj_weight stacks the rows of the three projections; q_proj_weight, k_proj_weight and v_proj_weight
    are used when key or value have widths of their own. rotary: arguments of rotary_embedding but for
    positions, which are those that masks count: q and k turn by them.
    """
    key = query if key is None else key
    value = key if value is None else value
    num_kv_heads = num_heads if num_kv_heads is None else num_kv_heads
    if "in_proj_weight" in parameters:
        width = parameters["out_proj.weight"].shape[1]
        kv_width = width // num_heads * num_kv_heads
        weights = np.split(parameters["in_proj_weight"], [width, width + kv_width])
    else:
        weights = [parameters[f"{name}_proj_weight"] for name in "qkv"]
    biases = [None] * 3
    if parameters.get("in_proj_bias") is not None:
        biases = np.split(parameters["in_proj_bias"], np.cumsum([len(weight) for weight in weights[:2]]))

    q, k, v = (
        split_heads(linear(x, weight, bias, dtype=dtype), heads)
        for x, weight, bias, heads in zip(
            (query, key, value), weights, biases, (num_heads, num_kv_heads, num_kv_heads), strict=True
        )
    )
    if rotary is not None:
        causal, offset = (attention_arguments.get(name) for name in ("causal", "query_offset"))
        leading = q.shape[:-3]
        positions = query_positions(q.shape[-2], k.shape[-2], causal, offset, leading)[..., 0]
        positions = positions[:, 0] if positions.ndim == 3 else positions
        q = rotary_embedding(q, positions, **rotary, dtype=dtype)
        k = rotary_embedding(k, np.arange(k.shape[-2]), **rotary, dtype=dtype)
    attended = attention(q, k, v, **attention_arguments, dtype=dtype)
    output = linear(
        merge_heads(attended.output),
        parameters["out_proj.weight"],
        parameters.get("out_proj.bias"),
        dtype=dtype,
    )
    return (output, attended.weights) if return_weights else output


def feed_forward(parameters, x, *, activation="relu", dtype=np.float64):
    """linear2(activation(linear1(x)))."""
    hidden = linear(x, parameters["linear1.weight"], parameters.get("linear1.bias"), dtype=dtype)
    hidden = ACTIVATIONS[activation](hidden, dtype=dtype)
    return linear(hidden, parameters["linear2.weight"], parameters.get("linear2.bias"), dtype=dtype)


def gated_feed_forward(parameters, x, *, activation="silu", dtype=np.float64):
    """down_proj(activation(gate_proj(x)) * up_proj(x)) (Shazeer 2020)."""
    gate, up = (
        linear(x, parameters[f"{name}.weight"], parameters.get(f"{name}.bias"), dtype=dtype)
        for name in ("gate_proj", "up_proj")
    )
    hidden = ACTIVATIONS[activation](gate, dtype=dtype) * up
    return linear(hidden, parameters["down_proj.weight"], parameters.get("down_proj.bias"), dtype=dtype)


def positional_encoding(parameters, x, *, kind="interleaved", scale=1.0, first=0, dtype=np.float64):
    """scale * x + encoding, whose rows are learned or sinusoidal positions."""
    x = np.asarray(x, dtype)
    length, d_model = x.shape[-2:]
    if kind == "learned":
        encoding = np.asarray(parameters["weight"], dtype)[first : first + length]
    else:
        encoding = sinusoidal_positions(length, d_model, layout=kind, first=first, dtype=dtype)
    return dtype(scale) * x + encoding


def _block(parameters, *, activation, norm, gated, layer_norm_eps, dtype):
    """The norm(name, x) and feed(x) of a Transformer layer."""

    def apply_norm(name, x):
        weight, bias = parameters[f"{name}.weight"], parameters.get(f"{name}.bias")
        if norm == "rms":
            return rms_norm(x, weight, eps=layer_norm_eps, dtype=dtype)
        return layer_norm(x, weight, bias, eps=layer_norm_eps, dtype=dtype)

    def feed(x):
        network = gated_feed_forward if gated else feed_forward
        return network(parameters, x, activation=activation, dtype=dtype)

    return apply_norm, feed


def transformer_encoder_layer(
    parameters,
    x,
    *,
    num_heads,
    activation="relu",
    norm_first=False,
    norm="layer",
    gated=False,
    layer_norm_eps=1e-5,
    dtype=np.float64,
    **attention_arguments,
):
    """Post-norm: x = norm(x + sublayer(x)), as in 2017; pre-norm: x = x + sublayer(norm(x))."""
    x = np.asarray(x, dtype)
    apply_norm, feed = _block(
        parameters, activation=activation, norm=norm, gated=gated, layer_norm_eps=layer_norm_eps, dtype=dtype
    )

    def attend(y):
        return multi_head_attention(
            within(parameters, "self_attn."), y, num_heads=num_heads, dtype=dtype, **attention_arguments
        )

    if norm_first:
        x = x + attend(apply_norm("norm1", x))
        return x + feed(apply_norm("norm2", x))
    x = apply_norm("norm1", x + attend(x))
    return apply_norm("norm2", x + feed(x))


def transformer_decoder_layer(
    parameters,
    target,
    memory,
    *,
    num_heads,
    num_kv_heads=None,
    activation="relu",
    norm_first=False,
    norm="layer",
    gated=False,
    layer_norm_eps=1e-5,
    rotary=None,
    memory_mask=None,
    memory_key_lengths=None,
    memory_key_segments=None,
    dtype=np.float64,
    **attention_arguments,
):
    """An encoder layer with attention to the memory between its two parts; rotary is for self-attention."""
    x = np.asarray(target, dtype)
    memory = np.asarray(memory, dtype)
    apply_norm, feed = _block(
        parameters, activation=activation, norm=norm, gated=gated, layer_norm_eps=layer_norm_eps, dtype=dtype
    )
    heads = {"num_heads": num_heads, "num_kv_heads": num_kv_heads, "dtype": dtype}

    def attend(y):
        own = within(parameters, "self_attn.")
        return multi_head_attention(own, y, rotary=rotary, **heads, **attention_arguments)

    def look_up(y):
        masks = {"mask": memory_mask, "key_lengths": memory_key_lengths}
        if memory_key_segments is not None:
            masks["query_segments"] = attention_arguments["query_segments"]
            masks["key_segments"] = memory_key_segments
        return multi_head_attention(within(parameters, "multihead_attn."), y, memory, **heads, **masks)

    if norm_first:
        x = x + attend(apply_norm("norm1", x))
        x = x + look_up(apply_norm("norm2", x))
        return x + feed(apply_norm("norm3", x))
    x = apply_norm("norm1", x + attend(x))
    x = apply_norm("norm2", x + look_up(x))
    return apply_norm("norm3", x + feed(x))


def _stack(parameters, x, layer, num_layers, **arguments):
    """Layers "layers.0." ... in turn, then "norm." if there is one."""
    dtype = arguments["dtype"]
    for index in range(num_layers):
        x = layer(within(parameters, f"layers.{index}."), x, **arguments)
    if "norm.weight" in parameters:
        last, _ = _block(
            parameters,
            activation=None,
            norm=arguments.get("norm", "layer"),
            gated=None,
            layer_norm_eps=arguments["layer_norm_eps"],
            dtype=dtype,
        )
        x = last("norm", x)
    return x


def transformer_encoder(
    parameters, x, *, num_layers, layer_norm_eps=1e-5, dtype=np.float64, **layer_arguments
):
    return _stack(
        parameters,
        x,
        transformer_encoder_layer,
        num_layers,
        layer_norm_eps=layer_norm_eps,
        dtype=dtype,
        **layer_arguments,
    )


def transformer_decoder(
    parameters, target, memory, *, num_layers, layer_norm_eps=1e-5, dtype=np.float64, **layer_arguments
):
    def layer(own, x, **arguments):
        return transformer_decoder_layer(own, x, memory, **arguments)

    return _stack(
        parameters, target, layer, num_layers, layer_norm_eps=layer_norm_eps, dtype=dtype, **layer_arguments
    )


def transformer(
    parameters,
    source,
    target,
    *,
    num_encoder_layers,
    num_decoder_layers,
    source_lengths=None,
    target_lengths=None,
    causal=False,
    source_mask=None,
    target_mask=None,
    memory_mask=None,
    dtype=np.float64,
    **layer_arguments,
):
    """decoder(target, encoder(source))."""
    memory = transformer_encoder(
        within(parameters, "encoder."),
        source,
        num_layers=num_encoder_layers,
        mask=source_mask,
        key_lengths=source_lengths,
        dtype=dtype,
        **layer_arguments,
    )
    return transformer_decoder(
        within(parameters, "decoder."),
        target,
        memory,
        num_layers=num_decoder_layers,
        mask=target_mask,
        causal=causal,
        key_lengths=target_lengths,
        memory_mask=memory_mask,
        memory_key_lengths=source_lengths,
        dtype=dtype,
        **layer_arguments,
    )


# ----------------------------------------------------------------------------------------------------------
# Models: parameters under the names of the published checkpoint
# ----------------------------------------------------------------------------------------------------------


def bert_layer_parameters(parameters, index):
    """Layer `index` of a BERT checkpoint under the names of a post-norm encoder layer."""
    own = within(parameters, f"encoder.layer.{index}.")
    result = {
        f"self_attn.in_proj_{kind}": np.concatenate(
            [own[f"attention.self.{name}.{kind}"] for name in ("query", "key", "value")]
        )
        for kind in ("weight", "bias")
    }
    renamed = {
        "self_attn.out_proj": "attention.output.dense",
        "norm1": "attention.output.LayerNorm",
        "linear1": "intermediate.dense",
        "linear2": "output.dense",
        "norm2": "output.LayerNorm",
    }
    for name, published in renamed.items():
        for kind in ("weight", "bias"):
            result[f"{name}.{kind}"] = own[f"{published}.{kind}"]
    return result


def bert(
    parameters,
    input_ids,
    *,
    num_heads,
    lengths=None,
    mask=None,
    token_type_ids=None,
    positions=None,
    eps=1e-12,
    activation="gelu",
    dtype=np.float64,
):
    """(last_hidden_state, pooler_output or None) of BERT (Devlin et al. 2018) for ids (batch, length).

    positions: (length,) or like the ids; from 0 by default
    mask: bool, broadcasts to (batch, heads, length, length); True = may attend
    """
    input_ids = np.asarray(input_ids)
    token_type_ids = np.zeros_like(input_ids) if token_type_ids is None else token_type_ids
    positions = np.arange(input_ids.shape[-1]) if positions is None else positions
    x = (
        embedding(input_ids, parameters["embeddings.word_embeddings.weight"], dtype=dtype)
        + embedding(positions, parameters["embeddings.position_embeddings.weight"], dtype=dtype)
        + embedding(token_type_ids, parameters["embeddings.token_type_embeddings.weight"], dtype=dtype)
    )
    x = layer_norm(
        x,
        parameters["embeddings.LayerNorm.weight"],
        parameters["embeddings.LayerNorm.bias"],
        eps=eps,
        dtype=dtype,
    )
    layers = {name.split(".")[2] for name in parameters if name.startswith("encoder.layer.")}
    for index in range(len(layers)):
        x = transformer_encoder_layer(
            bert_layer_parameters(parameters, index),
            x,
            num_heads=num_heads,
            activation=activation,
            layer_norm_eps=eps,
            key_lengths=lengths,
            mask=mask,
            dtype=dtype,
        )
    pooled = None
    if "pooler.dense.weight" in parameters:
        weight, bias = parameters["pooler.dense.weight"], parameters["pooler.dense.bias"]
        pooled = np.tanh(linear(x[..., 0, :], weight, bias, dtype=dtype))
    return x, pooled


def gpt2_block_parameters(parameters, index):
    """Block `index` of GPT-2 under the names of a pre-norm encoder layer."""
    own = within(parameters, f"h.{index}.")
    renamed = {
        "self_attn.in_proj_weight": "attn.c_attn.weight",
        "self_attn.in_proj_bias": "attn.c_attn.bias",
        **{
            f"{name}.{kind}": f"{published}.{kind}"
            for name, published in {
                "norm1": "ln_1",
                "self_attn.out_proj": "attn.c_proj",
                "norm2": "ln_2",
                "linear1": "mlp.c_fc",
                "linear2": "mlp.c_proj",
            }.items()
            for kind in ("weight", "bias")
        },
    }
    return {name: own[published] for name, published in renamed.items()}


def language_model(
    parameters, ids, *, num_heads, lengths=None, segments=None, activation="gelu_tanh", dtype=np.float64
):
    """The logits of GPT-2 (Radford et al. 2019) for ids (batch, length), with matrices (outputs, inputs)."""
    ids = np.asarray(ids)
    positions = np.arange(ids.shape[-1])
    if segments is not None:
        segments = np.asarray(segments)
        starts = np.diff(segments, axis=-1, prepend=segments[:, :1] - 1) != 0
        positions = positions - np.maximum.accumulate(np.where(starts, positions, 0), axis=-1)
    x = embedding(ids, parameters["wte.weight"], dtype=dtype)
    x = x + embedding(positions, parameters["wpe.weight"], dtype=dtype)
    blocks = {name.split(".")[1] for name in parameters if name.startswith("h.")}
    for index in range(len(blocks)):
        x = transformer_encoder_layer(
            gpt2_block_parameters(parameters, index),
            x,
            num_heads=num_heads,
            activation=activation,
            norm_first=True,
            causal=True,
            key_lengths=lengths,
            query_segments=segments,
            dtype=dtype,
        )
    x = layer_norm(x, parameters["ln_f.weight"], parameters["ln_f.bias"], dtype=dtype)
    return linear(x, parameters.get("lm_head.weight", parameters["wte.weight"]), dtype=dtype)


def llama_block_parameters(parameters, index):
    """Block `index` of Llama under the names of a pre-norm encoder layer."""
    own = within(parameters, f"layers.{index}.")
    result = {"self_attn.out_proj.weight": own["self_attn.o_proj.weight"]}
    for kind in ("weight", "bias"):
        projections = [f"self_attn.{name}_proj.{kind}" for name in "qkv"]
        if projections[0] in own:
            result[f"self_attn.in_proj_{kind}"] = np.concatenate([own[name] for name in projections])
    result["norm1.weight"] = own["input_layernorm.weight"]
    result["norm2.weight"] = own["post_attention_layernorm.weight"]
    for name in ("gate_proj", "up_proj", "down_proj"):
        result[f"{name}.weight"] = own[f"mlp.{name}.weight"]
    return result


def llama(
    parameters,
    ids,
    *,
    num_heads,
    num_kv_heads,
    lengths=None,
    segments=None,
    base=10000.0,
    eps=1e-6,
    activation="silu",
    dtype=np.float64,
):
    """The logits of Llama (Touvron et al. 2023) for ids (batch, length), with matrices (outputs, inputs)."""
    x = embedding(np.asarray(ids), parameters["embed_tokens.weight"], dtype=dtype)
    blocks = {name.split(".")[1] for name in parameters if name.startswith("layers.")}
    for index in range(len(blocks)):
        x = transformer_encoder_layer(
            llama_block_parameters(parameters, index),
            x,
            num_heads=num_heads,
            num_kv_heads=num_kv_heads,
            rotary={"base": base, "interleaved": False},
            activation=activation,
            norm_first=True,
            norm="rms",
            gated=True,
            layer_norm_eps=eps,
            causal=True,
            key_lengths=lengths,
            query_segments=segments,
            dtype=dtype,
        )
    x = rms_norm(x, parameters["norm.weight"], eps=eps, dtype=dtype)
    return linear(x, parameters.get("lm_head.weight", parameters["embed_tokens.weight"]), dtype=dtype)


def classifier(
    parameters,
    x,
    *,
    num_layers,
    num_heads,
    norm_first=True,
    present=None,
    activation="gelu",
    dtype=np.float64,
):
    """The logits of an encoder with a head, for ids (batch, length) or vectors (batch, length, features).

    present: bool (batch, length), which positions are there. With a class token that is pooled, else the
        mean.
    """
    x = np.asarray(x)
    present = np.ones(x.shape[:2], bool) if present is None else present
    if "embedding.bias" in parameters:
        x = np.where(present[..., None], x, 0)
        x = linear(x, parameters["embedding.weight"], parameters["embedding.bias"], dtype=dtype)
    else:
        x = embedding(np.where(present, x, 0), parameters["embedding.weight"], dtype=dtype)
    x = x + np.asarray(parameters["position_embedding.weight"], dtype)[: x.shape[1]]
    pooled_first = "class_token" in parameters
    if pooled_first:
        token = np.broadcast_to(np.asarray(parameters["class_token"], dtype), (len(x), 1, x.shape[-1]))
        x = np.concatenate([token, x], axis=1)
        present = np.concatenate([np.ones((len(x), 1), bool), present], axis=1)
    x = transformer_encoder(
        within(parameters, "encoder."),
        x,
        num_layers=num_layers,
        num_heads=num_heads,
        norm_first=norm_first,
        activation=activation,
        mask=present[:, None, None, :],
        dtype=dtype,
    )
    counts = np.maximum(present.sum(1, keepdims=True), 1).astype(dtype)
    pooled = x[:, 0] if pooled_first else np.where(present[..., None], x, 0).sum(1) / counts
    return linear(pooled, parameters["head.weight"], parameters["head.bias"], dtype=dtype)


def seq2seq(
    parameters,
    source_ids,
    target_ids,
    *,
    bos_id,
    num_encoder_layers,
    num_decoder_layers,
    num_heads,
    norm_first=False,
    activation="relu",
    source_lengths=None,
    target_lengths=None,
    dtype=np.float64,
):
    """The logits of an encoder-decoder (Vaswani et al. 2017), whose decoder reads bos_id and the targets.

    source_ids: ids, or vectors if there is a source_projection
    """
    d_model = parameters["target_embedding.weight"].shape[1]
    target_ids = np.concatenate([np.full((len(target_ids), 1), bos_id), target_ids], axis=1)

    def placed(x, positions, scale):
        own = {"weight": parameters[positions]} if positions in parameters else {}
        kind = "learned" if own else "interleaved"
        return positional_encoding(own, x, kind=kind, scale=scale, dtype=dtype)

    def embedded(ids, weight, positions):
        return placed(embedding(ids, weight, dtype=dtype), positions, math.sqrt(d_model))

    of_target = parameters["target_embedding.weight"]
    if "source_projection.weight" in parameters:
        projection = within(parameters, "source_projection.")
        x = linear(source_ids, projection["weight"], projection["bias"], dtype=dtype)
        source = placed(x, "source_positions.weight", 1.0)
    else:
        of_source = parameters.get("source_embedding.weight", of_target)
        source = embedded(source_ids, of_source, "source_positions.weight")
    x = transformer(
        within(parameters, "transformer."),
        source,
        embedded(target_ids, of_target, "target_positions.weight"),
        num_encoder_layers=num_encoder_layers,
        num_decoder_layers=num_decoder_layers,
        num_heads=num_heads,
        norm_first=norm_first,
        activation=activation,
        source_lengths=source_lengths,
        target_lengths=None if target_lengths is None else np.asarray(target_lengths) + 1,
        causal=True,
        dtype=dtype,
    )
    return linear(x, parameters.get("output.weight", of_target), parameters.get("output.bias"), dtype=dtype)


def mean_pool(hidden, lengths, *, dtype=np.float64):
    """Mean over the valid prefix of each sequence: (batch, length, d) -> (batch, d)."""
    hidden = np.asarray(hidden, dtype)
    return np.stack([sequence[:length].mean(0) for sequence, length in zip(hidden, lengths, strict=True)])


def normalise(x, *, dtype=np.float64):
    """Rows of Euclidean length 1."""
    x = np.asarray(x, dtype)
    return x / np.linalg.norm(x, axis=-1, keepdims=True)


# ----------------------------------------------------------------------------------------------------------
# Optimisers: the parameter after one step for each of `gradients`
# ----------------------------------------------------------------------------------------------------------


def sgd(parameter, gradients, *, lr, momentum=0.0, weight_decay=0.0, nesterov=False, dtype=np.float64):
    """Sutskever et al. 2013."""
    p, m = np.asarray(parameter, dtype), np.zeros(np.shape(parameter), dtype)
    for gradient in gradients:
        g = np.asarray(gradient, dtype) + weight_decay * p
        m = momentum * m + g
        p = p - lr * (g + momentum * m if nesterov else m)
    return p


def adam(parameter, gradients, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=0.0, dtype=np.float64):
    """Kingma and Ba 2015."""
    return _adam(parameter, gradients, lr, betas, eps, weight_decay, 0.0, dtype)


def adamw(parameter, gradients, *, lr, betas=(0.9, 0.999), eps=1e-8, weight_decay=1e-2, dtype=np.float64):
    """Loshchilov and Hutter 2019."""
    return _adam(parameter, gradients, lr, betas, eps, 0.0, weight_decay, dtype)


def _adam(parameter, gradients, lr, betas, eps, coupled_decay, decoupled_decay, dtype):
    p = np.asarray(parameter, dtype)
    m, v = np.zeros_like(p), np.zeros_like(p)
    for step, gradient in enumerate(gradients, 1):
        g = np.asarray(gradient, dtype) + coupled_decay * p
        p = p - lr * decoupled_decay * p
        m = betas[0] * m + (1 - betas[0]) * g
        v = betas[1] * v + (1 - betas[1]) * g**2
        p = p - lr * (m / (1 - betas[0] ** step)) / (np.sqrt(v / (1 - betas[1] ** step)) + eps)
    return p


def lion(parameter, gradients, *, lr, betas=(0.9, 0.99), weight_decay=0.0, dtype=np.float64):
    """Chen et al. 2023."""
    p, m = np.asarray(parameter, dtype), np.zeros(np.shape(parameter), dtype)
    for gradient in gradients:
        g = np.asarray(gradient, dtype)
        p = p - lr * (np.sign(betas[0] * m + (1 - betas[0]) * g) + weight_decay * p)
        m = betas[1] * m + (1 - betas[1]) * g
    return p
