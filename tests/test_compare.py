"""What `blasformer compare` measures: its formulas are the specification's, its verdicts follow the error."""

import inspect
import math

import blasformer as bf
import numpy as np
import pytest
import reference
from blasformer import _numpy_formulas as formulas
from blasformer import functional
from blasformer._compare import (
    CASES,
    Measurement,
    Problem,
    attention_of,
    gradients_of,
    measure,
    relative_error,
)

random = np.random.default_rng(0)


def normal(*shape):
    return random.standard_normal(shape)


QUERY, KEY, VALUE, D_OUTPUT = normal(2, 6, 7, 5), normal(2, 3, 9, 5), normal(2, 3, 9, 4), normal(2, 6, 7, 4)
MASKS = {
    "nothing": {},
    "scale": {"scale": 0.3},
    "mask": {"mask": random.random((6, 7, 9)) < 0.5},
    "bias": {"bias": normal(6, 1, 9)},
    "causal": {"causal": True, "query_offset": 0},
    "offset": {"causal": True, "query_offset": 2},
    "window": {"window": (2, None), "query_offset": 1},
    "key lengths": {"key_lengths": [4, 0]},
    "everything": {
        "mask": random.random((1, 1, 7, 9)) < 0.8,
        "bias": normal(2, 1, 7, 9),
        "causal": True,
        "query_offset": 3,
        "window": (4, 1),
        "key_lengths": [9, 5],
        "scale": 1.5,
    },
}


def same(actual, expected):
    assert actual.shape == np.shape(expected)
    np.testing.assert_allclose(actual, expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", MASKS)
def test_attention_is_that_of_the_specification(kind):
    expected = reference.attention(QUERY, KEY, VALUE, **MASKS[kind])
    same(formulas.attention(QUERY, KEY, VALUE, dtype=np.float64, **MASKS[kind]), expected.output)
    same(formulas.attention_weights(QUERY, KEY, dtype=np.float64, **MASKS[kind]), expected.weights)


@pytest.mark.parametrize("kind", MASKS)
def test_gradients_are_those_of_the_specification(kind):
    inputs = (QUERY, KEY, VALUE, D_OUTPUT)
    result = formulas.attention_and_gradients(*inputs, dtype=np.float64, **MASKS[kind])
    expected = reference.attention_gradients(*inputs, **MASKS[kind])
    same(result.output, reference.attention(QUERY, KEY, VALUE, **MASKS[kind]).output)
    same(result.d_query, expected.query)
    same(result.d_key, expected.key)
    same(result.d_value, expected.value)
    terms = reference.attention_gradient_terms(*inputs, **MASKS[kind])
    np.testing.assert_allclose(
        formulas.gradient_terms(*inputs, **MASKS[kind]), [0, terms.query, terms.key, terms.value], rtol=1e-12
    )


def test_dropout_is_that_of_the_specification():
    factor = reference.dropout_keep(3, 0.25, (2, 6, 7, 9)) / 0.75
    expected = reference.attention(QUERY, KEY, VALUE, dropout_p=0.25, rng=3).output
    same(formulas.attention(QUERY, KEY, VALUE, dropout=factor, dtype=np.float64), expected)


X, WEIGHT, BIAS = normal(3, 7, 8), normal(8), normal(8)
FUNCTIONS = {
    "softmax": ((X,), {}),
    "log_softmax": ((X,), {}),
    "gelu": ((X, "none"), {}),
    "gelu tanh": ((X, "tanh"), {}),
    "gelu sigmoid": ((X, "sigmoid"), {}),
    "relu": ((X,), {}),
    "silu": ((X,), {}),
    "layer_norm": ((X, WEIGHT, BIAS), {"eps": 1e-3}),
    "rms_norm": ((X, WEIGHT), {"eps": 1e-3}),
    "linear": ((X, normal(5, 8), normal(5)), {}),
    "embedding": ((np.array([[1, 4], [0, 1]]), normal(5, 8)), {}),
    "rotary_embedding": ((X, np.arange(7)), {"interleaved": True}),
    "rotary_embedding of halves": ((X, np.arange(7)), {"interleaved": False}),
    "sinusoidal_positions": ((9, 8), {}),
    "softmax_backward": ((reference.softmax(X), normal(3, 7, 8)), {}),
    "log_softmax_backward": ((reference.log_softmax(X), normal(3, 7, 8)), {}),
    "gelu_backward": ((X, normal(3, 7, 8), "none"), {}),
    "gelu_backward tanh": ((X, normal(3, 7, 8), "tanh"), {}),
    "gelu_backward sigmoid": ((X, normal(3, 7, 8), "sigmoid"), {}),
    "relu_backward": ((X, normal(3, 7, 8)), {}),
    "silu_backward": ((X, normal(3, 7, 8)), {}),
    "layer_norm_backward": ((X, normal(3, 7, 8), WEIGHT), {"eps": 1e-3}),
    "rms_norm_backward": ((X, normal(3, 7, 8), WEIGHT), {"eps": 1e-3}),
    "linear_backward": ((X, normal(3, 7, 5), normal(5, 8)), {}),
    "embedding_backward": ((np.array([[1, 4], [1, 1]]), normal(2, 2, 8), 5), {}),
    "rotary_embedding_backward": ((X, np.arange(7)), {"interleaved": True}),
    "cross_entropy": ((normal(7, 8), np.arange(7)), {}),
}


@pytest.mark.parametrize("kind", FUNCTIONS)
def test_functions_are_those_of_the_specification(kind):
    arguments, options = FUNCTIONS[kind]
    name = kind.partition(" ")[0]
    expected = getattr(reference, name)(*arguments, **options)
    result = getattr(formulas, name)(*arguments, **options, dtype=np.float64)
    parts = zip(result, expected, strict=True) if isinstance(result, tuple) else [(result, expected)]
    for one, other in parts:
        same(one, other)


@pytest.mark.parametrize("norm_first", [False, True])
def test_layers_are_those_of_the_specification(norm_first):
    layer = bf.nn.TransformerEncoderLayer(
        8, 2, 16, activation="gelu_tanh", norm_first=norm_first, dtype=np.float64, rng=0
    )
    parameters = bf.nn.TransformerEncoder(layer, 2, rng=1).parameters()
    arguments = {
        "num_layers": 2,
        "num_heads": 2,
        "norm_first": norm_first,
        "key_lengths": [7, 4, 1],
        "causal": True,
    }
    expected = reference.transformer_encoder(
        parameters, X, activation="gelu_tanh", layer_norm_eps=1e-6, **arguments
    )
    same(formulas.encoder(parameters, X, eps=1e-6, **arguments, dtype=np.float64), expected)

    attention = reference.within(parameters, "layers.0.self_attn.")
    result = formulas.multi_head_attention(attention, X, num_heads=2, dtype=np.float64)
    output, weights = reference.multi_head_attention(attention, X, num_heads=2, return_weights=True)
    same(result.output, output)
    same(result.weights, weights)


def test_the_table_has_every_function():
    cases = [*CASES["functions"], *CASES["gradients"]]
    compared = {name.partition(",")[0].partition(" ")[0] for name in cases}
    public = {
        name for name, value in vars(functional).items() if inspect.isfunction(value) and name[0] != "_"
    }
    assert compared == {name for name in public if getattr(bf, name, None) is getattr(functional, name)}


def test_cases_draw_the_same_inputs_every_time():
    prepare = CASES["attention"]["2 heads, 8 tokens"]
    first, second = (prepare(np.random.default_rng(0)).ours() for _ in range(2))
    np.testing.assert_array_equal(first, second)


def constant(ours, exact=1.0, **options):
    """A problem whose result is `ours` where NumPy, in float32, is off by 1e-5."""

    def formula(dtype):
        return np.array([exact, 1.0 + (1e-5 if dtype is np.float32 else 0)])

    return Problem(ours=lambda: np.asarray(ours), formula=formula, **options)


@pytest.mark.parametrize(
    ("ours", "ok"),
    [
        ([1.0, 1.0], True),
        ([1.0, 1.0 + 2.09e-5], True),
        ([1.0, 1.0 + 2.11e-5], False),
        ([1.0, math.nan], False),
        ([1.0, math.inf], False),
        ([1.0], False),
        ([[1.0, 1.0]], False),
    ],
)
def test_a_result_is_right_up_to_twice_the_error_of_numpy(ours, ok):
    assert measure(constant(ours), seconds=0).ok == ok


def test_gradients_are_right_up_to_three_times_the_error_of_numpy():
    assert measure(constant([1.0, 1.0 + 3.09e-5], factor=3), seconds=0).ok
    assert not measure(constant([1.0, 1.0 + 3.11e-5], factor=3), seconds=0).ok


def test_a_result_is_off_though_numpy_is_not_finite_either():
    result = measure(constant([1.0, math.nan], reordered=[lambda: np.array([1.0, math.nan])]), seconds=0)
    assert not result.ok


def test_the_speed_is_the_median_of_rounds_in_which_both_met_the_same_machine():
    slow, fast, disturbed = (4.0, 8.0), (1.0, 2.0), (8.0, 2.0)
    measurement = Measurement("float32", 0.0, 0.0, 0.0, rounds=[slow, fast, disturbed])
    assert (measurement.speed, measurement.seconds, measurement.numpy_seconds) == (2.0, 4.0, 2.0)


def test_the_worst_part_of_a_result_decides():
    parts = (np.ones(2), np.ones(2) * 1.001)
    problem = Problem(ours=lambda: parts, formula=lambda dtype: (np.ones(2, dtype), np.ones(2, dtype)))
    result = measure(problem, seconds=0)
    assert not result.ok
    assert result.error == pytest.approx(1e-3)


def test_errors_are_relative_to_the_largest_magnitude_or_to_the_terms_that_cancelled():
    exact = np.array([0.0, -4.0])
    assert relative_error(exact + 0.5, exact) == 0.125
    assert relative_error(exact + 0.5, exact, terms=3.0) == 0.125
    assert relative_error(exact + 0.5, exact, terms=5.0) == 0.1
    assert relative_error(np.full(2, 0.25), np.zeros(2)) == 0.25
    assert relative_error(np.zeros((0, 3)), np.zeros((0, 3))) == 0


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("magnitude", [0.01, 1, 10, 30])
def test_attention_is_found_right_however_large_the_scores_are(magnitude, dtype):
    rng = np.random.default_rng(1)
    for queries, keys in [(1, 1), (1, 42), (3, 41), (35, 30)]:
        q, d = (magnitude * rng.standard_normal((2, queries, 16)).astype(dtype) for _ in range(2))
        k, v = (magnitude * rng.standard_normal((2, keys, 16)).astype(dtype) for _ in range(2))
        assert measure(attention_of(q, k, v, any_size=True), seconds=0).ok
        assert measure(gradients_of(q, k, v, d, any_size=True), seconds=0).ok


def test_float16_is_judged_after_rounding():
    q, k, v = (random.standard_normal((2, 9, 8)).astype(np.float16) for _ in range(3))
    result = measure(attention_of(q, k, v), seconds=0)
    assert result.ok
    assert 1e-5 < result.numpy_error < 1e-3
