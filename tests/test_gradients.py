"""Gradients of functions: the derivatives of their formulas for all sizes, layouts, dtypes, hard inputs."""

from collections.abc import Callable
from typing import Any, NamedTuple

import blasformer
import numpy as np
import pytest
import reference
from attention_cases import LAYOUTS
from reference import assert_as_accurate_as_numpy, assert_rounded_once
from row_cases import HALF_DTYPES, HARD_INPUTS, nearly_the_same, normal, same_bits


class Gradient(NamedTuple):
    """gradient(first, d_output, **out), its formula, and the formula of which that is the derivative."""

    gradient: Callable[..., Any]
    formula: Callable[..., Any]
    function: Callable[[Any], Any]
    first: Callable[[Any], Any] = lambda x: x  # what the gradient takes first, where that is not x
    terms: Callable[..., Any] = lambda x, d_output: None  # how large the terms of cancelling sums are


def size(*arrays):
    """The largest finite magnitude."""
    return max(float(np.abs(array[np.isfinite(array)]).max(initial=0)) for array in arrays)


def softmax_terms(y, d):
    y, d = y.astype(np.float64), np.abs(d).astype(np.float64)
    return (size(y * (d + (y * d).sum(-1, keepdims=True))),)


def log_softmax_terms(y, d):
    y, d = y.astype(np.float64), np.abs(d).astype(np.float64)
    return (size(d, np.exp(y) * d.sum(-1, keepdims=True)),)


def layer_norm_terms(x, d, weight=None, eps=1e-5):
    y = np.abs(reference.layer_norm(x, eps=eps))
    d = np.abs(d).astype(np.float64)
    g = d if weight is None else d * np.abs(weight)
    r = 1 / np.sqrt(x.astype(np.float64).var(-1, keepdims=True) + eps)
    of_x = size(r * (g + g.mean(-1, keepdims=True) + y * (g * y).mean(-1, keepdims=True)))
    return of_x, size((d * y).sum(0)), size(d.sum(0))


def rms_norm_terms(x, d, weight=None, eps=1e-6):
    y = np.abs(reference.rms_norm(x, eps=eps))
    d = np.abs(d).astype(np.float64)
    g = d if weight is None else d * np.abs(weight)
    r = 1 / np.sqrt((x.astype(np.float64) ** 2).mean(-1, keepdims=True) + eps)
    return size(r * (g + y * (g * y).mean(-1, keepdims=True))), size((d * y).sum(0))


def linear_terms(x, d, weight):
    x, d, weight = (np.abs(array).astype(np.float64) for array in (x, d, weight))
    return tuple(size(part) for part in reference.linear_backward(x, d, weight))


def parameter(x, seed):
    """A weight for the last axis of x."""
    return normal(x.shape[-1:], np.float32, seed).astype(x.dtype)


def square_weight(x):
    return normal((x.shape[-1], x.shape[-1]), np.float32, 5).astype(x.dtype)


def activation(name, **arguments):
    return Gradient(
        lambda x, d, **out: getattr(blasformer, f"{name}_backward")(x, d, **arguments, **out),
        lambda x, d, **dtype: getattr(reference, f"{name}_backward")(x, d, **arguments, **dtype),
        lambda x: getattr(reference, name)(x, **arguments),
    )


def rotary(interleaved):
    def arguments(x):
        dims = x.shape[-1] // 2 * 2
        return {"positions": range(x.shape[-2]), "interleaved": interleaved, "dims": dims}

    return Gradient(
        lambda x, d, **out: blasformer.rotary_embedding_backward(d, **arguments(x), **out),
        lambda x, d, **dtype: reference.rotary_embedding_backward(d, **arguments(x), **dtype),
        lambda x: reference.rotary_embedding(x, **arguments(x)),
    )


# Of results that have the shape of x.
GRADIENTS = {
    "softmax": Gradient(
        blasformer.softmax_backward,
        reference.softmax_backward,
        reference.softmax,
        blasformer.softmax,
        softmax_terms,
    ),
    "log_softmax": Gradient(
        blasformer.log_softmax_backward,
        reference.log_softmax_backward,
        reference.log_softmax,
        blasformer.log_softmax,
        log_softmax_terms,
    ),
    "gelu": activation("gelu"),
    "gelu tanh": activation("gelu", approximate="tanh"),
    "gelu sigmoid": activation("gelu", approximate="sigmoid"),
    "relu": activation("relu"),
    "silu": activation("silu"),
    "rotary_embedding": rotary(False),
    "rotary_embedding interleaved": rotary(True),
    "layer_norm": Gradient(
        lambda x, d: blasformer.layer_norm_backward(x, d, x.shape[-1], parameter(x, 1)),
        lambda x, d, **dtype: reference.layer_norm_backward(x, d, parameter(x, 1), **dtype),
        lambda x: reference.layer_norm(x, parameter(x, 1)),
        terms=lambda x, d: layer_norm_terms(x, d, parameter(x, 1)),
    ),
    "layer_norm without weight": Gradient(
        lambda x, d: blasformer.layer_norm_backward(x, d, x.shape[-1], eps=1e-3),
        lambda x, d, **dtype: reference.layer_norm_backward(x, d, eps=1e-3, **dtype),
        lambda x: reference.layer_norm(x, eps=1e-3),
        terms=lambda x, d: layer_norm_terms(x, d, eps=1e-3),
    ),
    "rms_norm": Gradient(
        lambda x, d: blasformer.rms_norm_backward(x, d, x.shape[-1], parameter(x, 3), 1e-6),
        lambda x, d, **dtype: reference.rms_norm_backward(x, d, parameter(x, 3), **dtype),
        lambda x: reference.rms_norm(x, parameter(x, 3)),
        terms=lambda x, d: rms_norm_terms(x, d, parameter(x, 3)),
    ),
    "rms_norm without weight": Gradient(
        lambda x, d: blasformer.rms_norm_backward(x, d, x.shape[-1], eps=1e-6),
        reference.rms_norm_backward,
        reference.rms_norm,
        terms=rms_norm_terms,
    ),
    "linear": Gradient(
        lambda x, d: blasformer.linear_backward(x, d, square_weight(x)),
        lambda x, d, **dtype: reference.linear_backward(x, d, square_weight(x), **dtype),
        lambda x: reference.linear(x, square_weight(x)),
        terms=lambda x, d: linear_terms(x, d, square_weight(x)),
    ),
}
ACTIVATIONS = ["gelu", "gelu tanh", "gelu sigmoid", "relu", "silu"]
WITH_OUT = ["softmax", "log_softmax", *ACTIVATIONS, "rotary_embedding", "rotary_embedding interleaved"]

all_gradients = pytest.mark.parametrize("case", GRADIENTS.values(), ids=GRADIENTS)


def parts(result):
    return result if isinstance(result, tuple) else (result,)


def of_x(result):
    return parts(result)[0]


def assert_accurate(case, x, d):
    first = case.first(x)
    with np.errstate(all="ignore"):
        terms = case.terms(first, d)
    assert_as_accurate_as_numpy(case.gradient(first, d), case.formula, first, d, factor=3, terms=terms)


def assert_nearly_the_same(actual, expected):
    for one, other in zip(parts(actual), parts(expected), strict=True):
        assert (one is None and other is None) or nearly_the_same(one, other)


# ----------------------------------------------------------------------------------------------------------
# The formula
# ----------------------------------------------------------------------------------------------------------


@all_gradients
def test_the_formula_is_the_derivative_of_that_of_the_function(case):
    for shape in ((3, 9), (2, 3, 8)):
        x, d = normal(shape, np.float64, 1), normal(shape, np.float64, 2)
        gradient = of_x(case.formula(case.first(x), d, dtype=np.float64))
        for seed in range(3):
            direction = normal(shape, np.float64, 10 + seed)
            slope = reference.numerical_derivative(lambda x, d=d: (case.function(x) * d).sum(), x, direction)
            assert (gradient * direction).sum() == pytest.approx(slope, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize(
    ("formula", "function"),
    [
        (reference.layer_norm_backward, reference.layer_norm),
        (reference.rms_norm_backward, reference.rms_norm),
        (reference.linear_backward, reference.linear),
    ],
    ids=lambda f: f.__name__,
)
def test_the_formulas_for_parameters_are_derivatives_too(formula, function):
    x, weight, bias = normal((5, 6), np.float64, 1), normal(6, np.float64, 2), normal(6, np.float64, 3)
    if function is reference.linear:
        weight = normal((4, 6), np.float64, 2)
        bias = bias[:4]
    d = normal((5, bias.size), np.float64, 4)
    gradients = formula(x, d, weight)
    for index, name in enumerate(gradients._fields[1:]):
        direction = normal(gradients[1 + index].shape, np.float64, 5)

        def loss(changed, name=name):
            parameters = {"weight": weight, "bias": bias, name: changed}
            if "bias" not in gradients._fields:
                parameters.pop("bias")
            return (function(x, **parameters) * d).sum()

        start = {"weight": weight, "bias": bias}[name]
        slope = reference.numerical_derivative(loss, start, direction)
        assert (getattr(gradients, name) * direction).sum() == pytest.approx(slope, rel=1e-8, abs=1e-8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", HARD_INPUTS)
@all_gradients
def test_a_gradient_is_as_accurate_as_numpys(case, kind, dtype, isa):
    with np.errstate(invalid="ignore"):
        x = HARD_INPUTS[kind](normal((5, 67), np.float64)).astype(dtype)
    assert_accurate(case, x, normal(x.shape, dtype, 9))


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 15, 16, 17, 31, 63, 64, 65, 130])
@all_gradients
def test_any_length_will_do(case, length, isa):
    for rows in (1, 4, 6):
        for dtype in (np.float32, np.float64):
            assert_accurate(case, normal((rows, length), dtype, length), normal((rows, length), dtype, 1))


@pytest.mark.parametrize("shape", [(3, 20011), (20011, 3), (700, 130)])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm"])
def test_long_sums_are_as_accurate_as_numpys(name, shape, isa):
    assert_accurate(GRADIENTS[name], normal(shape) + 3, normal(shape, seed=1) + 1)


@pytest.mark.parametrize("eps", [0.0, 1e-12])
@pytest.mark.parametrize("magnitude", [1e-25, 1e-12, 1.0, 1e25, 5e37])
def test_gradients_of_norms_forget_the_magnitude_of_a_row(magnitude, eps, isa):
    """NumPy's float32 formulas overflow where ours must not."""
    x, d, weight = (normal(shape, np.float32, i) for i, shape in enumerate([(3, 50), (3, 50), 50]))
    x = (magnitude * x.astype(np.float64)).astype(np.float32)
    for name in ("layer_norm", "rms_norm"):
        actual = getattr(blasformer, f"{name}_backward")(x, d, 50, weight, eps=eps)
        exact = getattr(reference, f"{name}_backward")(x, d, weight, eps=eps)
        for one, other in zip(actual, exact, strict=True):
            assert reference.error(one, other) < 1e-6


def test_layer_norm_backward_sees_through_a_mean_far_from_zero(isa):
    """The saved mean is off by a tenth of the deviation of these rows."""
    x = (3e4 + 0.01 * normal((4, 768), np.float64)).astype(np.float32)
    d, weight = normal(x.shape, seed=1), normal(768, seed=2)
    actual = blasformer.layer_norm_backward(x, d, 768, weight)
    for one, other in zip(actual, reference.layer_norm_backward(x, d, weight), strict=True):
        assert reference.error(one, other) < 2e-6


@pytest.mark.parametrize("normalized_shape", [(4,), (3, 4), (2, 3, 4), [3, 4], np.array([3, 4])])
def test_norms_act_on_as_many_last_axes_as_normalized_shape_has(normalized_shape):
    x, d = normal((5, 2, 3, 4)), normal((5, 2, 3, 4), seed=3)
    axes = len(normalized_shape)
    weight = normal(x.shape[-axes:], seed=1)
    for name in ("layer_norm", "rms_norm"):
        actual = getattr(blasformer, f"{name}_backward")(x, d, normalized_shape, weight, eps=1e-5)
        formula = getattr(reference, f"{name}_backward")
        assert_as_accurate_as_numpy(actual, formula, x, d, weight, axes=axes, eps=1e-5, factor=3)


def test_a_norm_without_weight_has_no_gradient_of_one():
    x, d = normal((3, 8)), normal((3, 8), seed=1)
    assert blasformer.layer_norm_backward(x, d, 8).weight is None
    assert blasformer.layer_norm_backward(x, d, 8).bias.shape == (8,)
    assert blasformer.rms_norm_backward(x, d, 8).weight is None


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_has_gradients_along_any_axis(name, axis, isa):
    gradient, formula = getattr(blasformer, f"{name}_backward"), getattr(reference, f"{name}_backward")
    for shape in ((4, 35, 18), (1, 300, 5), (33, 1, 40)):
        for dtype in (np.float32, np.float64):
            y, d = getattr(blasformer, name)(normal(shape, dtype), axis), normal(shape, dtype, 1)
            assert_as_accurate_as_numpy(
                gradient(y, d, axis), formula, y, d, axis=axis, factor=3, terms=(1.0,)
            )
            fortran = gradient(np.asfortranarray(y), d, axis)
            assert_as_accurate_as_numpy(fortran, formula, y, d, axis=axis, factor=3, terms=(1.0,))


def test_gelu_keeps_the_relative_accuracy_of_small_slopes(isa):
    x = -np.linspace(1, 12, 2001, dtype=np.float32)
    slopes = blasformer.gelu_backward(x, np.ones_like(x))
    exact = reference.gelu_backward(x, np.ones_like(x))
    np.testing.assert_allclose(slopes, exact, rtol=1e-6)


def test_the_slope_of_gelu_is_accurate_to_a_few_units_in_the_last_place_of_1(isa):
    x = np.linspace(-14, 14, 20_001, dtype=np.float32)
    slopes = blasformer.gelu_backward(x, np.ones_like(x))
    np.testing.assert_allclose(slopes, reference.gelu_backward(x, np.ones_like(x)), rtol=0, atol=3e-7)


def test_gelu_of_a_number_does_not_depend_on_its_neighbours(isa):
    x = np.float32([-12.0, -9.0, -7.75, -3.0, 0.0, 2.0, 9.0, np.nan, -1e-3, np.inf] * 4)
    ones = np.ones_like(x)
    together = blasformer.gelu(x), blasformer.gelu_backward(x, ones)
    for i in range(10):
        alone = blasformer.gelu(x[i : i + 1]), blasformer.gelu_backward(x[i : i + 1], ones[:1])
        for of_all, of_one in zip(together, alone, strict=True):
            np.testing.assert_array_equal(of_all[i::10], np.repeat(of_one, 4))


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_slopes_of_infinity_are_limits(name, isa):
    for dtype in (np.float32, np.float64):
        x = np.array([-np.inf, np.inf] * 20, dtype)
        assert (GRADIENTS[name].gradient(x, np.ones_like(x)) == [0, 1] * 20).all()


def test_relu_passes_nothing_where_it_is_closed_and_nan_where_its_input_is(isa):
    x = np.array([0.0, -0.0, -1.0, 1.0, np.nan] * 9, np.float32)
    d = np.full_like(x, np.nan)
    d[:5] = [1, 2, 3, 4, 5]
    y = blasformer.relu_backward(x, d)
    assert y[:5].tolist() == [0, 0, 0, 4, 5]
    assert np.isnan(y[5:]).tolist() == [False, False, False, True, True] * 8


@all_gradients
def test_nan_and_infinity_stay_in_their_row(case, isa):
    x, d = normal((6, 67)), normal((6, 67), seed=1)
    clean = of_x(case.gradient(case.first(x), d))
    others = [0, 2, 4, 5]
    for value in (np.nan, np.inf, -np.inf):
        wrong_x, wrong_d = x.copy(), d.copy()
        wrong_x[1, 5] = wrong_d[3, 20] = value
        gradient = of_x(case.gradient(case.first(wrong_x), wrong_d))
        assert same_bits(gradient[others], clean[others])


# ----------------------------------------------------------------------------------------------------------
# Arrays: any layout, any dtype; inputs unmodified, outputs owned; out
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@all_gradients
def test_any_layout_gives_the_same_gradient(case, layout, isa):
    for dtype in (np.float32, np.float64, *HALF_DTYPES):
        x, d = normal((2, 3, 20, 34)).astype(dtype), normal((2, 3, 20, 34), seed=1).astype(dtype)
        first = case.first(x)
        expected = case.gradient(first, d)
        for a, b in ((LAYOUTS[layout](first), d), (first, LAYOUTS[layout](d))):
            before = a.tobytes(), b.tobytes()
            assert_nearly_the_same(case.gradient(a, b), expected)
            assert before == (a.tobytes(), b.tobytes())


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@all_gradients
def test_half_types_are_computed_in_float32_and_rounded_once(case, dtype, isa):
    x, d = normal((5, 66)).astype(dtype), normal((5, 66), seed=1).astype(dtype)
    first = case.first(x)
    exact = case.formula(first, d, dtype=np.float64)
    for one, other in zip(parts(case.gradient(first, d)), parts(exact), strict=True):
        if one is not None:
            assert_rounded_once(one, other)


@all_gradients
def test_gradients_own_their_memory(case):
    x, d = normal((4, 40))[:, ::2], normal((4, 40), seed=1)[:, ::2]
    for part in parts(case.gradient(case.first(x), d)):
        assert part is None or (part.flags.owndata and part.flags.writeable)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES], ids=str)
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_receives_the_gradient_whatever_its_layout(name, dtype, isa):
    case = GRADIENTS[name]
    x, d = normal((6, 34)).astype(dtype), normal((6, 34), seed=1).astype(dtype)
    first = case.first(x)
    expected = case.gradient(first, d)
    for out in (
        np.empty_like(x),
        np.asfortranarray(np.empty_like(x)),
        np.empty((12, 70), dtype)[::-2, 1:69:2],
    ):
        assert case.gradient(first, d, out=out) is out
        assert nearly_the_same(out, expected)


@pytest.mark.parametrize("layout", ["contiguous", "Fortran", "every second feature", "reversed"])
@pytest.mark.parametrize("name", WITH_OUT)
def test_out_may_be_either_input_or_overlap_them(name, layout, isa):
    case = GRADIENTS[name]
    first, d = case.first(normal((6, 34))), normal((6, 34), seed=1)
    expected = case.gradient(first, d)
    for which in (0, 1):
        for other_layout in ("contiguous", layout):
            inputs = [LAYOUTS[other_layout](first.copy()), LAYOUTS[other_layout](d.copy())]
            inputs[which] = LAYOUTS[layout](inputs[which].copy())
            assert nearly_the_same(case.gradient(*inputs, out=inputs[which]), expected)
    memory = np.zeros(7 * 34, np.float32)
    shifted = memory[34:].reshape(6, 34)
    for overlapping in (0, 1):
        inputs = [first, d]
        memory[:204].reshape(6, 34)[...] = inputs[overlapping]
        inputs[overlapping] = memory[:204].reshape(6, 34)
        assert nearly_the_same(case.gradient(*inputs, out=shifted), expected)


@all_gradients
def test_every_number_of_threads_gives_the_same_bits(case):
    x, d = normal((300, 700)), normal((300, 700), seed=1)
    first = case.first(x)
    results = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            results.append(parts(case.gradient(first, d)))
    for one, two, three in zip(*results, strict=True):
        assert one is None or (same_bits(one, two) and same_bits(one, three))


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 8), (2, 0)])
@all_gradients
def test_empty_arrays_have_empty_gradients_and_sums_of_nothing_are_zero(case, shape):
    x = np.zeros(shape, np.float32)
    gradient = case.gradient(case.first(x), x)
    assert of_x(gradient).shape == shape
    for part in parts(gradient)[1:]:
        assert part is None or (part == 0).all()


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_activations_have_gradients_of_any_rank(name):
    case = GRADIENTS[name]
    for shape in ((), (1,), (2,) * 7):
        x, d = np.asarray(normal(shape, np.float64)), np.asarray(normal(shape, np.float64, 1))
        assert case.gradient(x, d).shape == shape
        assert_accurate(case, x, d)


# ----------------------------------------------------------------------------------------------------------
# Linear and embedding
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [0, 1, 3, 9, 70, 257, 1100])
def test_gradients_of_linear_are_as_accurate_as_numpys(rows, dtype, isa):
    for features, outputs in ((1, 1), (5, 3), (64, 67), (96, 160), (129, 400), (256, 320)):
        x, d = normal((rows, features), dtype, 1), normal((rows, outputs), dtype, 2)
        weight = normal((outputs, features), dtype, 3)
        for laid_out in (weight, np.asfortranarray(weight)):
            actual = blasformer.linear_backward(x, d, laid_out)
            terms = linear_terms(x, d, weight)
            assert_as_accurate_as_numpy(
                actual, reference.linear_backward, x, d, weight, factor=3, terms=terms
            )


def test_linear_sums_over_every_leading_axis():
    x, d, weight = normal((2, 3, 4, 10)), normal((2, 3, 4, 7), seed=1), normal((7, 10), seed=2)
    actual = blasformer.linear_backward(x, d, weight)
    assert_as_accurate_as_numpy(actual, reference.linear_backward, x, d, weight, factor=3)
    single = blasformer.linear_backward(x[0, 0, 0], d[0, 0, 0], weight)
    assert [part.shape for part in single] == [(10,), (7, 10), (7,)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("id_dtype", [np.int8, np.uint8, np.int32, np.uint64])
@pytest.mark.parametrize("padding_idx", [None, 0, 17])
def test_embedding_adds_up_the_rows_of_each_id(padding_idx, id_dtype, dtype, threads):
    for dim in (1, 37, 64, 65, 200):
        ids = np.random.default_rng(1).integers(0, 100, (5, 41)).astype(id_dtype)
        ids[0] = 17
        d = normal((5, 41, dim), dtype)
        actual = blasformer.embedding_backward(ids, d, 100, padding_idx=padding_idx)
        formula = reference.embedding_backward
        assert_as_accurate_as_numpy(actual, formula, ids, d, 100, padding_idx, factor=3)
        actual = blasformer.embedding_backward(ids.T, d.swapaxes(0, 1), 100, padding_idx=padding_idx)
        assert reference.error(actual, formula(ids, d, 100, padding_idx)) < 1e-6


def test_the_formula_for_embedding_is_a_derivative():
    ids, weight, d = [1, 1, 3], normal((4, 5), np.float64), normal((3, 5), np.float64, 1)
    direction = normal(weight.shape, np.float64, 2)
    slope = reference.numerical_derivative(
        lambda w: (reference.embedding(ids, w) * d).sum(), weight, direction
    )
    assert (reference.embedding_backward(ids, d, 4) * direction).sum() == pytest.approx(slope)


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_embedding_adds_up_half_types_in_float32(dtype):
    ids = [2] * 3000
    d = np.full((3000, 3), 0.25, dtype)  # one by one, sums of halves would stay at 512, of bfloat16 at 64
    assert_rounded_once(blasformer.embedding_backward(ids, d, 3), reference.embedding_backward(ids, d, 3))


def test_embedding_backward_writes_out_or_nothing():
    d, out = normal((2, 3)), np.ones((4, 3), np.float32)
    with pytest.raises(IndexError, match=r"ids must be in \[0, 4\)"):
        blasformer.embedding_backward([1, 4], d, 4, out=out)
    assert (out == 1).all()
    strided = np.ones((3, 4), np.float32).T
    assert blasformer.embedding_backward([1, 2], d, 4, out=strided) is strided
    assert (strided == reference.embedding_backward([1, 2], d, 4)).all()
    assert blasformer.embedding_backward([], np.zeros((0, 3), np.float32), 4).tolist() == [[0.0] * 3] * 4


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [None, 0, 10, 32])
def test_rotating_back_undoes_the_rotation(dims, interleaved, isa):
    x = normal((2, 3, 35, 64), np.float64)
    positions = np.random.default_rng(1).integers(-3000, 3_000_000, (2, 35))
    arguments = {"positions": positions, "base": 500000.0, "interleaved": interleaved, "dims": dims}
    turned = blasformer.rotary_embedding(x, **arguments)
    np.testing.assert_allclose(blasformer.rotary_embedding_backward(turned, **arguments), x, atol=1e-14)


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------

X = np.zeros((2, 3, 4), np.float32)
WEIGHT = np.zeros((5, 4), np.float32)
ERRORS = [
    (
        lambda: blasformer.softmax_backward([1.0], X),
        TypeError,
        "output must be a NumPy array of float32, float64, float16 or bfloat16, got list",
    ),
    (
        lambda: blasformer.softmax_backward(X, X.astype(np.float64)),
        TypeError,
        "d_output must have the dtype of output, float32, got float64",
    ),
    (
        lambda: blasformer.log_softmax_backward(X, X[0]),
        ValueError,
        "d_output must have the shape of the output, (2, 3, 4), got (3, 4)",
    ),
    (
        lambda: blasformer.softmax_backward(X, X, 3),
        ValueError,
        "axis must be an axis of output (2, 3, 4), got 3",
    ),
    (
        lambda: blasformer.gelu_backward(X, np.zeros(4, int)),
        TypeError,
        "d_output must be a NumPy array of float32, float64, float16 or bfloat16, got int64",
    ),
    (
        lambda: blasformer.gelu_backward(X, X, approximate="erf"),
        ValueError,
        'approximate must be "none", "tanh" or "sigmoid", got "erf"',
    ),
    (
        lambda: blasformer.relu_backward(X, X.astype(np.float16)),
        TypeError,
        "d_output must have the dtype of x, float32, got float16",
    ),
    (
        lambda: blasformer.silu_backward(X, X, out=X[0].copy()),
        ValueError,
        "out must have the shape (2, 3, 4), got (3, 4)",
    ),
    (
        lambda: blasformer.layer_norm_backward(X, X, 3),
        ValueError,
        "normalized_shape must be the last axes of x (2, 3, 4), got (3,)",
    ),
    (
        lambda: blasformer.layer_norm_backward(X, X, 4, WEIGHT),
        ValueError,
        "weight must have the shape (4,) that is normalised, got (5, 4)",
    ),
    (
        lambda: blasformer.rms_norm_backward(X, X[:1], 4),
        ValueError,
        "d_output must have the shape of the output, (2, 3, 4), got (1, 3, 4)",
    ),
    (
        lambda: blasformer.rms_norm_backward(X, X, 4, eps=-1.0),
        ValueError,
        "eps must be finite and at least 0, got -1",
    ),
    (
        lambda: blasformer.linear_backward(X, X, WEIGHT),
        ValueError,
        "d_output must have the shape of the output, (2, 3, 5), got (2, 3, 4)",
    ),
    (
        lambda: blasformer.linear_backward(X, X, WEIGHT[:, :3]),
        ValueError,
        "weight must have the shape (out_features, 4) to fit x (2, 3, 4), got (5, 3)",
    ),
    (
        lambda: blasformer.embedding_backward([0, 1], X, 5),
        ValueError,
        "d_output must have the shape (*ids.shape, embedding_dim) to fit ids (2,), got (2, 3, 4)",
    ),
    (
        lambda: blasformer.embedding_backward([[0, 1, 5], [0, 0, 0]], X, 5),
        IndexError,
        "ids must be in [0, 5) to select rows of weight, got 5 at position 2",
    ),
    (
        lambda: blasformer.embedding_backward([[0, 1, 4], [0, 0, 0]], X, 5, padding_idx=5),
        ValueError,
        "padding_idx must lie in [0, 5), got 5",
    ),
    (
        lambda: blasformer.embedding_backward([[0, 1, 4], [0, 0, 0]], X, -5),
        ValueError,
        "num_embeddings must be at least 0, got -5",
    ),
    (
        lambda: blasformer.embedding_backward([[0.0, 1, 4], [0, 0, 0]], X, 5),
        TypeError,
        "ids must be integers, got float64",
    ),
    (
        lambda: blasformer.rotary_embedding_backward(X[0, 0], [0], interleaved=True),
        ValueError,
        "d_output must have the shape (..., length, head_dim), got (4,)",
    ),
    (
        lambda: blasformer.rotary_embedding_backward(X, [0, 1], interleaved=True),
        ValueError,
        "positions must have the shape (length,) or (batch, length) of d_output (2, 3, 4), got (2,)",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS, ids=[text for _, _, text in ERRORS])
def test_an_error_names_the_argument_what_it_must_be_and_what_it_was(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)
