"""What `blasformer compare` runs: each computation by blasformer and by its formula in NumPy."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple, TypeAlias

import numpy as np

import blasformer as bf

from . import _numpy_formulas as formulas
from ._numpy_formulas import Array, Float

EVERY = slice(None)  # feature, in order
ROUNDS = 3  # of timing

Result: TypeAlias = Array | tuple[Array, ...]
Shape: TypeAlias = tuple[int, ...]


class Problem(NamedTuple):
    """One computation, twice: by blasformer in `dtype`, and by its formula in any dtype.

    exact: the result, where it is known without computing.
    reordered: the formula in `dtype` with its sums in other orders; NumPy's error is the largest of all.
    terms: for each part of the result, how large the terms are that it is a sum of.
    factor: how many times NumPy's error is allowed: 2 for results, 3 for gradients.
    """

    ours: Callable[[], Result]
    formula: Callable[[Float], Result]
    dtype: Float = np.float32
    exact: Result | None = None
    reordered: Sequence[Callable[[], Result]] = ()
    terms: Sequence[float] | None = None
    factor: int = 2


Prepare: TypeAlias = Callable[[np.random.Generator], Problem]


@dataclass(frozen=True)
class Measurement:
    """How far and how fast a problem was.

    Errors are those of the part of the result (output, gradient, ...) that came closest to its bound.
    rounds: seconds that a call took, and NumPy's right after it, in several turns.
    """

    dtype: str
    error: float
    numpy_error: float
    allowed_error: float
    rounds: Sequence[tuple[float, float]]

    @property
    def ok(self) -> bool:
        return math.isfinite(self.error) and self.error <= self.allowed_error

    @property
    def seconds(self) -> float:
        return statistics.median(ours for ours, _ in self.rounds)

    @property
    def numpy_seconds(self) -> float:
        return statistics.median(numpys for _, numpys in self.rounds)

    @property
    def speed(self) -> float:
        """How many times longer NumPy took: the machine may change from round to round, but hardly within."""
        return statistics.median(numpys / ours for ours, numpys in self.rounds)


def relative_error(actual: Array, exact: Array, terms: float = 0.0) -> float:
    """The largest difference relative to the largest magnitude (to 1 if all is 0); infinite for Inf and NaN.

    terms: how large the terms are that the elements are sums of, if they may cancel: a magnitude, too.
    """
    if np.shape(actual) != np.shape(exact):
        return math.inf
    difference = float(np.abs(np.subtract(actual, exact)).max(initial=0))
    magnitude = max(float(np.abs(exact).max(initial=0)), terms)
    return difference / (magnitude or 1) if math.isfinite(difference) else math.inf


def measure(problem: Problem, *, seconds: float = 0.35) -> Measurement:
    """Judges the result and times it against NumPy, for about so many seconds.

    A result is right if error <= factor * NumPy's error + 8 epsilons, which are 1e-6 in float32.
    """
    more_exact = np.longdouble if problem.dtype is np.float64 else np.float64
    exact = _parts(problem.formula(more_exact) if problem.exact is None else problem.exact)
    terms = problem.terms or [0.0] * len(exact)

    def plain() -> Result:
        return problem.formula(problem.dtype)

    def errors(result: Result) -> list[float]:
        return [relative_error(*part) for part in zip(_parts(result), exact, terms, strict=True)]

    our_errors = errors(problem.ours())
    numpy_runs = [errors(run()) for run in (plain, *problem.reordered)]
    numpy_errors = [max(runs) for runs in zip(*numpy_runs, strict=True)]
    least = 8 * float(np.finfo(problem.dtype).eps)
    allowed_errors = [problem.factor * error + least for error in numpy_errors]
    worst = max(
        zip(our_errors, numpy_errors, allowed_errors, strict=True), key=lambda part: part[0] / part[2]
    )
    return Measurement(
        np.dtype(problem.dtype).name,
        *worst,
        rounds=[
            (median_seconds(problem.ours, seconds / 2 / ROUNDS), median_seconds(plain, seconds / 2 / ROUNDS))
            for _ in range(ROUNDS)
        ],
    )


def median_seconds(function: Callable[[], object], budget: float) -> float:
    """How long a call takes: the median of as many as the budget (in seconds) allows, or of one."""
    _await_idle_threads()
    samples: list[float] = []
    end = time.perf_counter() + budget
    while not samples or (time.perf_counter() < end and len(samples) < 1000):
        start = time.perf_counter()
        function()
        samples.append(time.perf_counter() - start)
    return statistics.median(samples)


def _await_idle_threads() -> None:
    """Those of the BLAS that ran last spin on for a tenth of a second, on cores that the next one needs."""
    pause, most_pauses = 0.005, 100
    for _ in range(most_pauses):
        before = time.process_time()
        time.sleep(pause)
        if time.process_time() - before < pause / 5:
            return


def _parts(result: Result) -> tuple[Array, ...]:
    return result if isinstance(result, tuple) else (result,)


def _attention(
    query: Shape, key: Shape | None = None, *, dtype: Float = np.float32, **arguments: Any
) -> Prepare:
    """Attention on arrays of these shapes, those of value being key's."""

    def prepare(rng: np.random.Generator) -> Problem:
        q, k, v = (rng.standard_normal(shape, dtype) for shape in (query, key or query, key or query))
        return attention_of(q, k, v, **arguments)

    return prepare


def _attention_and_gradients(
    query: Shape, key: Shape | None = None, *, dtype: Float = np.float32, **arguments: Any
) -> Prepare:
    def prepare(rng: np.random.Generator) -> Problem:
        q, k, v = (rng.standard_normal(shape, dtype) for shape in (query, key or query, key or query))
        return gradients_of(q, k, v, rng.standard_normal(query, dtype), **arguments)

    return prepare


def attention_of(
    query: Array, key: Array, value: Array, *, any_size: bool = False, **arguments: Any
) -> Problem:
    """Attention with arguments that both sides know; both compute float16 in float32, then round.

    any_size: the scores may be in the hundreds. Then the error of one run hangs on how the roundings of
    nearly equal scores happen to fall, and NumPy's is taken over several orders of their sums.
    """

    def formula(dtype: Float, order: Any = EVERY) -> Array:
        output = formulas.attention(query[..., order], key[..., order], value, **arguments, dtype=dtype)
        return output.astype(query.dtype) if dtype is np.float32 else output

    dtype = np.float64 if query.dtype == np.float64 else np.float32
    return Problem(
        ours=lambda: bf.scaled_dot_product_attention(query, key, value, **arguments),
        formula=formula,
        dtype=dtype,
        reordered=[partial(formula, dtype, order) for order in _orders(query)] if any_size else [],
    )


def gradients_of(
    query: Array, key: Array, value: Array, d_output: Array, *, any_size: bool = False, **arguments: Any
) -> Problem:
    """Attention and the gradients of sum(output * d_output), in float32 or float64.

    any_size: as in attention_of; and with large scores the terms of a gradient may cancel.
    """
    inputs = (query, key, value, d_output)

    def ours() -> Result:
        output, saved = bf.attention_forward(query, key, value, **arguments)
        gradients = bf.attention_backward(saved, d_output)
        return output, gradients.query, gradients.key, gradients.value

    def formula(dtype: Float) -> Result:
        return formulas.attention_and_gradients(*inputs, **arguments, dtype=dtype)

    def reordered(order: Array) -> Result:
        q, k, back = query[..., order], key[..., order], np.argsort(order)
        result = formulas.attention_and_gradients(q, k, value, d_output, **arguments, dtype=dtype)
        return result._replace(d_query=result.d_query[..., back], d_key=result.d_key[..., back])

    dtype = query.dtype.type
    return Problem(
        ours=ours,
        formula=formula,
        dtype=dtype,
        reordered=[partial(reordered, order) for order in _orders(query)] if any_size else [],
        terms=formulas.gradient_terms(*inputs, **arguments) if any_size else None,
        factor=3,
    )


def _orders(query: Array) -> list[Array]:
    """Some orders of the features of query and key."""
    rng = np.random.default_rng(0)
    return [rng.permutation(query.shape[-1]) for _ in range(7)]


def _biased_attention(shape: Shape, *, scale: float) -> Prepare:
    """A bias for each head and distance, as T5 adds it; it does not depend on the batch."""

    def prepare(rng: np.random.Generator) -> Problem:
        q, k, v = (rng.standard_normal(shape, np.float32) for _ in range(3))
        q *= np.float32(shape[-1] ** -0.5)  # T5 has no scale, its weights are that much smaller
        bias = rng.standard_normal((*shape[1:-1], shape[-2]), np.float32)
        return attention_of(q, k, v, bias=bias, scale=scale)

    return prepare


def _dropped_attention(shape: Shape, dropout_p: float) -> Prepare:
    """What was dropped is read off a call with the same seed that has the identity matrix for values."""

    def prepare(rng: np.random.Generator) -> Problem:
        q, k, v = (rng.standard_normal(shape, np.float32) for _ in range(3))
        identity = np.broadcast_to(np.eye(shape[-2], dtype=np.float32), (*shape[:-1], shape[-2]))
        arguments: dict[str, Any] = {"dropout_p": dropout_p, "rng": 0}
        kept = bf.scaled_dot_product_attention(q, k, identity, **arguments) != 0
        dropout = kept / np.float32(1 - dropout_p)
        return Problem(
            ours=lambda: bf.scaled_dot_product_attention(q, k, v, **arguments),
            formula=lambda dtype: formulas.attention(q, k, v, dropout=dropout, dtype=dtype),
        )

    return prepare


def _worked_example(*qkv: Any, scale: float, output: Any, weights: Any) -> Prepare:
    """Numbers that can be checked by hand: here they are the truth, not a computation."""

    def prepare(_: np.random.Generator) -> Problem:
        query, key, value = (np.array([x], np.float32) for x in qkv)

        def ours() -> Result:
            result = bf.scaled_dot_product_attention(query, key, value, scale=scale, return_weights=True)
            return result.output, result.weights

        def formula(dtype: Float) -> Result:
            weights = formulas.attention_weights(query, key, scale=scale, dtype=dtype)
            return weights @ value.astype(dtype), weights

        return Problem(ours, formula, exact=(np.array([output]), np.array([weights])))

    return prepare


def _function(
    ours: Callable[..., Result], formula: Callable[..., Result], *arguments: Any, **options: Any
) -> Prepare:
    """A function of arrays; what is callable among its arguments draws them, `options` go to both sides."""

    def prepare(rng: np.random.Generator) -> Problem:
        drawn = [argument(rng) if callable(argument) else argument for argument in arguments]
        return Problem(
            ours=lambda: ours(*drawn, **options),
            formula=lambda dtype: formula(*drawn, **options, dtype=dtype),
        )

    return prepare


def _gradient(
    ours: Callable[..., Result], formula: Callable[..., Result], *arguments: Any, **options: Any
) -> Prepare:
    def prepare(rng: np.random.Generator) -> Problem:
        return _function(ours, formula, *arguments, **options)(rng)._replace(factor=3)

    return prepare


def _layer_norm_backward(x: Array, d_output: Array, weight: Array, *, eps: float) -> Result:
    grads = bf.layer_norm_backward(x, d_output, x.shape[-1], weight, eps=eps)
    return tuple(part for part in grads if part is not None)


def _rms_norm_backward(x: Array, d_output: Array, weight: Array, *, eps: float) -> Result:
    grads = bf.rms_norm_backward(x, d_output, x.shape[-1], weight, eps=eps)
    return tuple(part for part in grads if part is not None)


def _linear_backward(x: Array, d_output: Array, weight: Array) -> Result:
    return tuple(bf.linear_backward(x, d_output, weight))


def _cross_entropy(logits: Array, targets: Array) -> Result:
    loss, d_logits = bf.cross_entropy(logits, targets)
    return np.asarray(loss), d_logits


def _layer_norm(x: Array, weight: Array, bias: Array, *, eps: float) -> Array:
    return bf.layer_norm(x, x.shape[-1], weight, bias, eps)


def _rms_norm(x: Array, weight: Array, *, eps: float) -> Array:
    return bf.rms_norm(x, x.shape[-1], weight, eps)


def _normal(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: rng.standard_normal(shape, np.float32)


def _probabilities(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: bf.softmax(rng.standard_normal(shape, np.float32))


def _log_probabilities(*shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: bf.log_softmax(rng.standard_normal(shape, np.float32))


def _ids(count: int, *shape: int) -> Callable[[np.random.Generator], Array]:
    return lambda rng: rng.integers(count, size=shape)


def _trained(layer: Any, rng: np.random.Generator) -> dict[str, Array]:
    """Moves the weights of a new layer, so that no bias is 0 and no factor 1, and returns them."""
    with layer.edit() as weights:
        for array in weights.values():
            array += 0.02 * rng.standard_normal(array.shape, np.float32)
    parameters: dict[str, Array] = layer.parameters()
    return parameters


def _multi_head_attention(batch: int, length: int, d_model: int, nhead: int) -> Prepare:
    """A boolean mask, and the weights of all heads in the result."""

    def prepare(rng: np.random.Generator) -> Problem:
        layer = bf.nn.MultiheadAttention(d_model, nhead, rng=rng)
        parameters = _trained(layer, rng)
        x = rng.standard_normal((batch, length, d_model), np.float32)
        mask = rng.random((batch, 1, length, length)) < 0.8
        return Problem(
            ours=lambda: layer(x, mask=mask, return_weights=True),
            formula=lambda dtype: formulas.multi_head_attention(
                parameters, x, num_heads=nhead, mask=mask, dtype=dtype
            ),
        )

    return prepare


def _encoder_layer(shape: Shape, nhead: int, *, norm_first: bool = False, **arguments: Any) -> Prepare:
    def prepare(rng: np.random.Generator) -> Problem:
        d_model = shape[-1]
        options: dict[str, Any] = {"norm_first": norm_first}
        layer = bf.nn.TransformerEncoderLayer(
            d_model, nhead, 4 * d_model, activation="gelu_tanh", layer_norm_eps=1e-6, **options, rng=rng
        )
        parameters = _trained(layer, rng)
        x = rng.standard_normal(shape, np.float32)
        return Problem(
            ours=lambda: layer(x, **arguments),
            formula=lambda dtype: formulas.encoder_layer(
                parameters, x, num_heads=nhead, eps=1e-6, **options, **arguments, dtype=dtype
            ),
        )

    return prepare


def _encoder(shape: Shape, nhead: int, num_layers: int, **arguments: Any) -> Prepare:
    def prepare(rng: np.random.Generator) -> Problem:
        d_model = shape[-1]
        layer = bf.nn.TransformerEncoderLayer(
            d_model, nhead, 4 * d_model, activation="gelu_tanh", layer_norm_eps=1e-12, rng=rng
        )
        stack = bf.nn.TransformerEncoder(layer, num_layers)
        parameters = _trained(stack, rng)
        x = rng.standard_normal(shape, np.float32)
        return Problem(
            ours=lambda: stack(x, **arguments),
            formula=lambda dtype: formulas.encoder(
                parameters, x, num_layers=num_layers, num_heads=nhead, eps=1e-12, **arguments, dtype=dtype
            ),
        )

    return prepare


ONES = [[1.0]] * 5
IDENTITY = [[1.0, 0.0], [0.0, 1.0]]
OF_IDENTITY = [[0.66976155, 0.33023845], [0.33023845, 0.66976155]]
LENGTHS = np.array([512, 300, 129, 40])

# The table: its groups, and a line each. Shapes of attention are (batch, heads, length, head_dim).
CASES: dict[str, dict[str, Prepare]] = {
    "worked examples": {
        "keys 2, 3, 4, 5, 6, values 7, 8, 9, 10, 11": _worked_example(
            ONES,
            [[2], [3], [4], [5], [6]],
            [[7], [8], [9], [10], [11]],
            scale=1.0,
            output=[[10.45194157]] * 5,
            weights=[[0.01165623, 0.03168492, 0.08612854, 0.23412166, 0.63640865]] * 5,
        ),
        "identity matrices": _worked_example(
            IDENTITY, IDENTITY, IDENTITY, scale=0.5**0.5, output=OF_IDENTITY, weights=OF_IDENTITY
        ),
    },
    "attention": {
        "2 heads, 8 tokens": _attention((1, 2, 8, 16)),
        "BERT-base, 1 x 128 tokens": _attention((1, 12, 128, 64)),
        "BERT-base, 8 x 128 tokens": _attention((8, 12, 128, 64)),
        "BERT-base, 128 tokens, float64": _attention((1, 12, 128, 64), dtype=np.float64),
        "BERT-base, 128 tokens, dropout 0.1": _dropped_attention((1, 12, 128, 64), 0.1),
        "BERT-base, 4 padded to 512 tokens": _attention((4, 12, 512, 64), key_lengths=LENGTHS),
        "GPT-2, 1024 tokens, causal": _attention((1, 12, 1024, 64), causal=True),
        "T5-small, 512 tokens, position bias": _biased_attention((1, 8, 512, 64), scale=1.0),
        "ViT-B/16, 8 x 197 patches": _attention((8, 12, 197, 64)),
        "Whisper-base, 1500 frames": _attention((1, 8, 1500, 64)),
        "Whisper-base, 77 tokens see 1500 frames": _attention((1, 8, 77, 64), (1, 8, 1500, 64)),
        "32 heads on 8, 512 tokens, causal": _attention((1, 32, 512, 128), (1, 8, 512, 128), causal=True),
        "32 heads on 8, 1 new token after 2048": _attention((1, 32, 1, 128), (1, 8, 2048, 128)),
        "2 heads, 4096 tokens": _attention((1, 2, 4096, 64)),
        "2 heads, 4096 tokens, window of 257": _attention((1, 2, 4096, 64), window=(128, 128)),
    },
    "attention and its gradients": {
        "BERT-base, 8 x 128 tokens": _attention_and_gradients((8, 12, 128, 64)),
        "BERT-base, 128 tokens, float64": _attention_and_gradients((1, 12, 128, 64), dtype=np.float64),
        "BERT-base, 4 padded to 512 tokens": _attention_and_gradients((4, 12, 512, 64), key_lengths=LENGTHS),
        "GPT-2, 1024 tokens, causal": _attention_and_gradients((1, 12, 1024, 64), causal=True),
        "32 heads on 8, 512 tokens": _attention_and_gradients((1, 32, 512, 128), (1, 8, 512, 128)),
    },
    "functions": {
        "softmax, 1536 x 512": _function(bf.softmax, formulas.softmax, _normal(1536, 512)),
        "log_softmax, 128 x 30522": _function(bf.log_softmax, formulas.log_softmax, _normal(128, 30522)),
        "gelu, 128 x 3072": _function(bf.gelu, formulas.gelu, _normal(128, 3072)),
        "gelu (tanh), 1024 x 3072": _function(
            bf.gelu, formulas.gelu, _normal(1024, 3072), approximate="tanh"
        ),
        "gelu (sigmoid), 1024 x 3072": _function(
            bf.gelu, formulas.gelu, _normal(1024, 3072), approximate="sigmoid"
        ),
        "relu, 1024 x 3072": _function(bf.relu, formulas.relu, _normal(1024, 3072)),
        "silu, 1024 x 3072": _function(bf.silu, formulas.silu, _normal(1024, 3072)),
        "layer_norm, 1024 x 768": _function(
            _layer_norm, formulas.layer_norm, _normal(1024, 768), _normal(768), _normal(768), eps=1e-6
        ),
        "rms_norm, 1024 x 2048": _function(
            _rms_norm, formulas.rms_norm, _normal(1024, 2048), _normal(2048), eps=1e-6
        ),
        "linear, 1024 x 768 to 3072": _function(
            bf.linear, formulas.linear, _normal(1024, 768), _normal(3072, 768), _normal(3072)
        ),
        "embedding, 8 x 512 of 30522 x 768": _function(
            bf.embedding, formulas.embedding, _ids(30522, 8, 512), _normal(30522, 768)
        ),
        "rotary_embedding, 32 x 512 x 128": _function(
            bf.rotary_embedding,
            formulas.rotary_embedding,
            _normal(1, 32, 512, 128),
            np.arange(512),
            interleaved=False,
        ),
        "sinusoidal_positions, 1500 x 512": _function(
            bf.sinusoidal_positions, formulas.sinusoidal_positions, 1500, 512
        ),
    },
    "gradients": {
        "softmax_backward, 1536 x 512": _gradient(
            bf.softmax_backward, formulas.softmax_backward, _probabilities(1536, 512), _normal(1536, 512)
        ),
        "log_softmax_backward, 128 x 30522": _gradient(
            bf.log_softmax_backward,
            formulas.log_softmax_backward,
            _log_probabilities(128, 30522),
            _normal(128, 30522),
        ),
        "gelu_backward, 128 x 3072": _gradient(
            bf.gelu_backward, formulas.gelu_backward, _normal(128, 3072), _normal(128, 3072)
        ),
        "gelu_backward (tanh), 1024 x 3072": _gradient(
            bf.gelu_backward,
            formulas.gelu_backward,
            _normal(1024, 3072),
            _normal(1024, 3072),
            approximate="tanh",
        ),
        "relu_backward, 1024 x 3072": _gradient(
            bf.relu_backward, formulas.relu_backward, _normal(1024, 3072), _normal(1024, 3072)
        ),
        "silu_backward, 1024 x 3072": _gradient(
            bf.silu_backward, formulas.silu_backward, _normal(1024, 3072), _normal(1024, 3072)
        ),
        "layer_norm_backward, 1024 x 768": _gradient(
            _layer_norm_backward,
            formulas.layer_norm_backward,
            _normal(1024, 768),
            _normal(1024, 768),
            _normal(768),
            eps=1e-6,
        ),
        "rms_norm_backward, 1024 x 2048": _gradient(
            _rms_norm_backward,
            formulas.rms_norm_backward,
            _normal(1024, 2048),
            _normal(1024, 2048),
            _normal(2048),
            eps=1e-6,
        ),
        "linear_backward, 1024 x 768 to 3072": _gradient(
            _linear_backward,
            formulas.linear_backward,
            _normal(1024, 768),
            _normal(1024, 3072),
            _normal(3072, 768),
        ),
        "embedding_backward, 8 x 512 of 30522 x 768": _gradient(
            bf.embedding_backward,
            formulas.embedding_backward,
            _ids(30522, 8, 512),
            _normal(8, 512, 768),
            30522,
        ),
        "rotary_embedding_backward, 32 x 512 x 128": _gradient(
            bf.rotary_embedding_backward,
            formulas.rotary_embedding_backward,
            _normal(1, 32, 512, 128),
            np.arange(512),
            interleaved=False,
        ),
        "cross_entropy, 512 x 30522": _gradient(
            _cross_entropy, formulas.cross_entropy, _normal(512, 30522), _ids(30522, 512)
        ),
    },
    "layers": {
        "multi-head attention, 10 x 20 x 512, mask": _multi_head_attention(10, 20, 512, nhead=8),
        "encoder layer, 4 x 128 x 768": _encoder_layer((4, 128, 768), nhead=12, key_lengths=LENGTHS // 4),
        "encoder layer, pre-norm, causal": _encoder_layer(
            (1, 512, 768), nhead=12, norm_first=True, causal=True
        ),
        "encoder of 6 layers, 4 x 128 x 384": _encoder((4, 128, 384), 12, 6, key_lengths=LENGTHS // 4),
    },
}
