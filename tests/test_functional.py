"""The functions beside attention: equal to their formulas for all sizes, layouts, dtypes and hard inputs."""

import blasformer
import ml_dtypes
import numpy as np
import pytest
import reference
from attention_cases import LAYOUTS
from reference import assert_as_accurate_as_numpy, assert_rounded_once
from row_cases import HALF_DTYPES, HARD_INPUTS, nearly_the_same, normal, same_bits


def parameter(x, seed):
    """A weight or bias for the last axis of x."""
    return normal(x.shape[-1:], np.float32, seed).astype(x.dtype)


# What has the shape of x and takes x alone: the function of the package, and its formula.
FUNCTIONS = {
    "softmax": (blasformer.softmax, reference.softmax),
    "log_softmax": (blasformer.log_softmax, reference.log_softmax),
    "gelu": (blasformer.gelu, reference.gelu),
    "gelu tanh": (
        lambda x, **out: blasformer.gelu(x, approximate="tanh", **out),
        lambda x, **dtype: reference.gelu(x, "tanh", **dtype),
    ),
    "gelu sigmoid": (
        lambda x, **out: blasformer.gelu(x, approximate="sigmoid", **out),
        lambda x, **dtype: reference.gelu(x, "sigmoid", **dtype),
    ),
    "relu": (blasformer.relu, reference.relu),
    "silu": (blasformer.silu, reference.silu),
    "layer_norm": (
        lambda x, **out: blasformer.layer_norm(x, x.shape[-1], parameter(x, 1), parameter(x, 2), **out),
        lambda x, **dtype: reference.layer_norm(x, parameter(x, 1), parameter(x, 2), **dtype),
    ),
    "layer_norm without parameters": (
        lambda x, **out: blasformer.layer_norm(x, x.shape[-1], **out),
        reference.layer_norm,
    ),
    "layer_norm with bias alone": (
        lambda x, **out: blasformer.layer_norm(x, x.shape[-1], None, parameter(x, 2), 1e-12, **out),
        lambda x, **dtype: reference.layer_norm(x, None, parameter(x, 2), eps=1e-12, **dtype),
    ),
    "rms_norm": (
        lambda x, **out: blasformer.rms_norm(x, x.shape[-1], parameter(x, 3), 1e-6, **out),
        lambda x, **dtype: reference.rms_norm(x, parameter(x, 3), **dtype),
    ),
    "rms_norm without weight": (
        lambda x, **out: blasformer.rms_norm(x, x.shape[-1], eps=1e-6, **out),
        reference.rms_norm,
    ),
    "rotary_embedding": (
        lambda x, **out: blasformer.rotary_embedding(
            x, range(x.shape[-2]), interleaved=False, dims=x.shape[-1] // 2 * 2, **out
        ),
        lambda x, **dtype: reference.rotary_embedding(
            x, range(x.shape[-2]), interleaved=False, dims=x.shape[-1] // 2 * 2, **dtype
        ),
    ),
    "rotary_embedding interleaved": (
        lambda x, **out: blasformer.rotary_embedding(
            x, range(x.shape[-2]), interleaved=True, dims=x.shape[-1] // 2 * 2, **out
        ),
        lambda x, **dtype: reference.rotary_embedding(
            x, range(x.shape[-2]), interleaved=True, dims=x.shape[-1] // 2 * 2, **dtype
        ),
    ),
    "linear": (
        lambda x, **out: blasformer.linear(x, square_weight(x), parameter(x, 4), **out),
        lambda x, **dtype: reference.linear(x, square_weight(x), parameter(x, 4), **dtype),
    ),
}


def square_weight(x):
    return normal((x.shape[-1], x.shape[-1]), np.float32, 5).astype(x.dtype)


def all_functions(test):
    return pytest.mark.parametrize(("function", "formula"), FUNCTIONS.values(), ids=FUNCTIONS)(test)


# ----------------------------------------------------------------------------------------------------------
# The formula
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("kind", HARD_INPUTS)
@all_functions
def test_a_function_is_as_accurate_as_numpy(function, formula, kind, dtype, isa):
    with np.errstate(invalid="ignore"):
        x = HARD_INPUTS[kind](normal((5, 67), np.float64)).astype(dtype)
    assert_as_accurate_as_numpy(function(x), formula, x)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 15, 16, 17, 31, 63, 64, 65, 130])
@all_functions
def test_any_length_will_do(function, formula, length, isa):
    for rows in (1, 4, 6):
        for dtype in (np.float32, np.float64):
            x = normal((rows, length), dtype, length)
            assert_as_accurate_as_numpy(function(x), formula, x)


@pytest.mark.parametrize("length", [4095, 4097, 8193, 20011])
@pytest.mark.parametrize("name", ["softmax", "log_softmax", "layer_norm", "rms_norm"])
def test_long_rows_are_summed_as_accurately_as_numpy_does(name, length, isa):
    function, formula = FUNCTIONS[name]
    x = normal((2, length)) + 3
    assert_as_accurate_as_numpy(function(x), formula, x)


@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-3])
@pytest.mark.parametrize("magnitude", [1e-25, 1e-12, 1.0, 1e25])
def test_norms_forget_the_magnitude_of_a_row_whatever_eps_is(magnitude, eps, isa):
    x = (magnitude * normal((3, 50), np.float64)).astype(np.float32)
    for name, actual in {
        "layer_norm": blasformer.layer_norm(x, 50, eps=eps),
        "rms_norm": blasformer.rms_norm(x, 50, eps=eps),
    }.items():
        assert reference.error(actual, getattr(reference, name)(x, eps=eps)) < 1e-6


def test_layer_norm_sees_through_a_mean_far_from_zero(isa):
    """NumPy's own float32 formula is wrong by 1e-3 here."""
    x = (1e4 + 0.01 * normal((4, 768), np.float64)).astype(np.float32)
    assert reference.error(blasformer.layer_norm(x, 768), reference.layer_norm(x)) < 1e-6


@pytest.mark.parametrize("normalized_shape", [(4,), (3, 4), (2, 3, 4), [3, 4], np.array([3, 4])])
def test_norms_act_on_as_many_last_axes_as_normalized_shape_has(normalized_shape):
    x = normal((5, 2, 3, 4))
    axes = len(normalized_shape)
    weight, bias = normal(x.shape[-axes:], seed=1), normal(x.shape[-axes:], seed=2)
    actual = blasformer.layer_norm(x, normalized_shape, weight, bias)
    assert_as_accurate_as_numpy(actual, reference.layer_norm, x, weight, bias, axes=axes)
    actual = blasformer.rms_norm(x, normalized_shape, weight, 1e-6)
    assert_as_accurate_as_numpy(actual, reference.rms_norm, x, weight, axes=axes)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES], ids=str)
def test_rms_norm_without_eps_takes_the_machine_epsilon_of_x(dtype):
    x = (1e-4 * normal((3, 20))).astype(dtype)
    eps = float(ml_dtypes.finfo(dtype).eps)
    assert same_bits(blasformer.rms_norm(x, 20), blasformer.rms_norm(x, 20, eps=eps))


@pytest.mark.parametrize("axis", [0, 1, 2, -1, -2, -3])
@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_softmax_acts_on_any_axis(name, axis, isa):
    function, formula = getattr(blasformer, name), getattr(reference, name)
    for shape in ((4, 35, 18), (1, 300, 5), (33, 1, 40)):
        for dtype in (np.float32, np.float64):
            x = normal(shape, dtype)
            assert_as_accurate_as_numpy(function(x, axis), formula, x, axis=axis)


@pytest.mark.parametrize("name", ["softmax", "log_softmax"])
def test_long_columns_are_summed_as_accurately_as_numpy_does(name, isa):
    x = normal((20011, 67)) + 3
    assert_as_accurate_as_numpy(getattr(blasformer, name)(x, 0), getattr(reference, name), x, axis=0)


def test_softmax_along_columns_has_the_same_bits_for_every_number_of_threads():
    x = normal((3, 500, 400))
    results = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            results.append(blasformer.softmax(x, 1))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


def test_softmax_sums_to_one_and_log_softmax_is_its_logarithm(isa):
    x = 10 * normal((7, 1000), np.float64)
    weights = blasformer.softmax(x)
    np.testing.assert_allclose(weights.sum(-1), 1, rtol=1e-14)
    np.testing.assert_allclose(blasformer.log_softmax(x), np.log(weights), rtol=1e-13, atol=1e-13)


def test_a_row_of_minus_infinities_has_no_softmax(isa):
    x = normal((3, 20))
    x[1] = -np.inf
    weights = blasformer.softmax(x)
    assert np.isnan(weights[1]).all()
    assert np.isfinite(weights[[0, 2]]).all()


# ----------------------------------------------------------------------------------------------------------
# Arrays: any layout, any dtype; inputs unmodified, outputs owned; out
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", LAYOUTS)
@all_functions
def test_any_layout_gives_the_same_result(function, formula, layout, isa):
    for dtype in (np.float32, np.float64, *HALF_DTYPES):
        x = normal((2, 3, 40, 66)).astype(dtype)
        strided = LAYOUTS[layout](x)
        before = strided.tobytes()
        assert nearly_the_same(function(strided), function(x))
        assert strided.tobytes() == before


@all_functions
def test_broadcast_arrays_are_read_in_place(function, formula, isa):
    x = np.broadcast_to(normal((1, 3, 1, 66)), (4, 3, 40, 66))
    assert same_bits(function(x), function(x.copy()))


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@all_functions
def test_half_types_are_computed_in_float32_and_rounded_once(function, formula, dtype, isa):
    x = normal((5, 66)).astype(dtype)
    assert_rounded_once(function(x), formula(x))


@all_functions
def test_results_own_their_memory_and_are_dense(function, formula):
    y = function(normal((4, 40))[:, ::2])
    assert y.flags.c_contiguous
    assert y.flags.owndata
    assert y.flags.writeable


@pytest.mark.parametrize("name", ["softmax", "log_softmax", "gelu", "relu", "silu"])
def test_results_of_one_shape_have_the_memory_order_of_x_as_numpys_do(name):
    x = np.asfortranarray(normal((3, 4, 5)))
    assert getattr(blasformer, name)(x).strides == np.exp(x).strides
    assert getattr(blasformer, name)(x.swapaxes(0, 1)).strides == np.exp(x.swapaxes(0, 1)).strides


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES], ids=str)
@all_functions
def test_out_receives_the_result_whatever_its_layout(function, formula, dtype, isa):
    x = normal((6, 34)).astype(dtype)
    expected = function(x)
    for out in (
        np.empty_like(x),
        np.asfortranarray(np.empty_like(x)),
        np.empty((12, 70), dtype)[::-2, 1:69:2],
    ):
        assert function(x, out=out) is out
        assert nearly_the_same(out, expected)


@all_functions
def test_out_may_be_the_input_or_overlap_it(function, formula, isa):
    memory = normal(7 * 34)
    x = memory[:204].reshape(6, 34)
    expected = function(x)
    for start, reorder in ((0, np.asarray), (34, np.asarray), (3, np.asarray), (0, lambda y: y[::-1])):
        shared = memory.copy()
        out = reorder(shared[start : start + 204].reshape(6, 34))
        function(shared[:204].reshape(6, 34), out=out)
        assert same_bits(np.ascontiguousarray(out), expected)
    strided = np.zeros((34, 6), np.float32).T
    strided[...] = x
    function(strided, out=strided)
    assert nearly_the_same(strided, expected)


@all_functions
def test_every_number_of_threads_gives_the_same_bits(function, formula):
    x = normal((300, 700))
    results = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            results.append(function(x))
    assert same_bits(results[0], results[1])
    assert same_bits(results[0], results[2])


@pytest.mark.parametrize("shape", [(0, 5), (3, 0, 8), (2, 0)])
@all_functions
def test_empty_arrays_give_empty_results(function, formula, shape):
    assert function(np.zeros(shape, np.float32)).shape == shape


@pytest.mark.parametrize("name", ["gelu", "gelu tanh", "gelu sigmoid", "relu", "silu"])
def test_activations_take_arrays_of_any_rank(name):
    function, formula = FUNCTIONS[name]
    for shape in ((), (1,), (2,) * 7):
        x = normal(shape, np.float64)
        x = np.asarray(x)
        assert function(x).shape == shape
        assert_as_accurate_as_numpy(function(x), formula, x)


# ----------------------------------------------------------------------------------------------------------
# Linear
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rows", [0, 1, 2, 3, 4, 5, 8, 9, 16, 17, 70, 257])
def test_linear_is_as_accurate_as_numpy_for_few_and_many_rows(rows, dtype, product_isa):
    for features, outputs in ((1, 1), (5, 3), (64, 67), (130, 34), (129, 400)):
        x, weight = normal((rows, features), dtype, 1), normal((outputs, features), dtype, 2)
        bias = normal(outputs, dtype, 3)
        assert_as_accurate_as_numpy(blasformer.linear(x, weight), reference.linear, x, weight)
        assert_as_accurate_as_numpy(blasformer.linear(x, weight, bias), reference.linear, x, weight, bias)


@pytest.mark.parametrize("rows", [1, 3, 40])
def test_weights_of_any_layout_give_what_dense_ones_give(rows, product_isa):
    x, weight = normal((rows, 150)), normal((70, 150), seed=1)
    wide = normal((70, 160), seed=1)
    wide[:, 5:155] = weight
    layouts = {
        "transposed": np.asfortranarray(weight),
        "columns of a wider matrix": wide[:, 5:155],
        "transposed columns": np.asfortranarray(np.pad(weight, ((0, 9), (0, 0))))[:70],
        "reversed": weight[::-1].copy()[::-1],
        "every second": np.repeat(weight, 2, axis=1)[:, ::2],
        "broadcast": np.broadcast_to(weight[:1], weight.shape),
    }
    for name, strided in layouts.items():
        bias = np.repeat(normal(70, seed=2), 3)[::3]
        actual = blasformer.linear(x, strided, bias)
        assert reference.error(actual, reference.linear(x, strided, bias)) < 1e-6, name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "shape",
    [
        (37, 61, 31),
        (193, 513, 65),
        (125, 385, 61),
        (49, 1025, 33),
        (401, 40, 129),
        (64, 2, 300),
        (397, 515, 1),
    ],
)
def test_linear_is_as_accurate_as_numpy_across_the_edges_of_blocks(shape, dtype, product_isa):
    rows, features, outputs = shape
    random = np.random.default_rng(rows)
    x = random.standard_normal((rows, features)).astype(dtype)
    weight = random.standard_normal((outputs, features)).astype(dtype)
    bias = random.standard_normal(outputs).astype(dtype)
    assert_as_accurate_as_numpy(blasformer.linear(x, weight, bias), reference.linear, x, weight, bias)


def test_a_row_of_a_product_has_the_same_bits_whatever_other_rows_there_are(product_isa):
    if product_isa == "baseline":
        pytest.skip("there products are OpenBLAS's")
    random = np.random.default_rng(3)
    weight = random.standard_normal((97, 700)).astype(np.float32)
    x = random.standard_normal((301, 700)).astype(np.float32)
    whole = blasformer.linear(x, weight)
    for first, rows in ((0, 40), (7, 53), (100, 201), (250, 51)):
        part = blasformer.linear(x[first : first + rows], weight)
        assert part.tobytes() == whole[first : first + rows].tobytes()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(384, 101), (517, 37), (1029, 1)])
def test_a_product_has_the_same_bits_whether_its_weight_is_packed_or_read_in_place(shape, dtype, isa):
    # Up to 512 rows that fill the vectors of a CPU read it as it lies, from 128 on in two parts.
    features, outputs = shape
    x, weight, bias = (
        normal((520, features), dtype, 1),
        normal(shape[::-1], dtype, 2),
        normal(outputs, dtype, 3),
    )
    x[3::4] *= np.finfo(dtype).tiny ** 0.6  # products by the last row, without bias, round to -0 and 0
    weight[-1] *= np.finfo(dtype).tiny ** 0.6
    bias[::2] = -0.0
    wide = normal((outputs, features + 7), dtype, 4)
    wide[:, 3:-4] = weight
    transposed = np.asfortranarray(weight)  # is packed
    with blasformer.batch_invariant():
        for added in (None, bias):
            whole = blasformer.linear(x, transposed, added)
            assert np.signbit(whole).any()
            for rows in (3, 13, 16, 31, 61, 64, 97, 112, 125, 128, 160, 191, 253, 256, 379, 500, 512, 520):
                for layout in (weight, wide[:, 3:-4], transposed):
                    assert same_bits(blasformer.linear(x[:rows], layout, added), whole[:rows])


def test_linear_maps_every_leading_axis(product_isa):
    x, weight = normal((2, 3, 4, 10)), normal((7, 10), seed=1)
    assert_as_accurate_as_numpy(blasformer.linear(x, weight), reference.linear, x, weight)
    assert blasformer.linear(x[0, 0, 0], weight).shape == (7,)


def test_linear_without_features_is_the_bias():
    bias = normal(3)
    for rows in (2, 100):
        y = blasformer.linear(np.zeros((rows, 0), np.float32), np.zeros((3, 0), np.float32), bias)
        assert (y == bias).all()
        assert (blasformer.linear(np.zeros((rows, 0), np.float32), np.zeros((3, 0), np.float32)) == 0).all()


@pytest.mark.parametrize("rows", [2, 40])
def test_a_nan_in_one_row_of_linear_touches_no_other(rows, product_isa):
    x, weight = normal((rows, 33)), normal((20, 33), seed=1)
    clean = blasformer.linear(x, weight)
    x[1, 5] = np.nan
    y = blasformer.linear(x, weight)
    assert np.isnan(y[1]).all()
    others = np.arange(rows) != 1
    assert same_bits(y[others], clean[others])


@pytest.mark.parametrize(
    "shape",
    [
        (1, 300, 500),
        (16, 300, 500),
        (17, 300, 500),
        (33, 129, 131),
        (61, 64, 250),
        (127, 400, 500),
        (250, 400, 500),
        (507, 400, 101),
        (600, 70, 400),
        (5000, 70, 40),
    ],
)
def test_linear_has_the_same_bits_for_every_number_of_threads(shape, product_isa):
    rows, features, outputs = shape
    x, weight = normal((rows, features)), normal((outputs, features), seed=1)
    results = []
    for threads in (1, 2, 3, 24):
        with blasformer.num_threads(threads):
            results.append(blasformer.linear(x, weight))
    assert all(same_bits(result, results[0]) for result in results[1:])


# ----------------------------------------------------------------------------------------------------------
# Embedding
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES], ids=str)
@pytest.mark.parametrize("id_dtype", [np.int8, np.uint8, np.int32, np.uint32, np.int64, np.uint64])
def test_embedding_selects_rows_for_ids_of_any_integer_type(id_dtype, dtype, threads):
    weight = normal((100, 37)).astype(dtype)
    ids = np.random.default_rng(1).integers(0, 100, (5, 41)).astype(id_dtype)
    for strided in (weight, np.asfortranarray(weight), np.repeat(weight, 2, axis=1)[:, ::2]):
        assert same_bits(blasformer.embedding(ids, strided), weight[ids])
        assert same_bits(blasformer.embedding(ids.T, strided), weight[ids.T])


def test_embedding_takes_lists_and_single_ids_and_none():
    weight = normal((4, 3))
    assert same_bits(blasformer.embedding([2, 0], weight), weight[[2, 0]])
    assert same_bits(blasformer.embedding(3, weight), weight[3])
    assert blasformer.embedding([], weight).shape == (0, 3)


def test_embedding_keeps_every_bit_of_a_nan():
    weight = np.array([[0x7F800001, 0x7FC12345]], np.uint32).view(np.float32)
    assert same_bits(blasformer.embedding([0], weight), weight)


def test_embedding_writes_nothing_if_an_id_is_wrong():
    weight, out = normal((4, 3)), np.zeros((2, 3), np.float32)
    with pytest.raises(IndexError, match=r"ids must be in \[0, 4\)"):
        blasformer.embedding([1, 4], weight, out=out)
    assert (out == 0).all()
    strided = np.zeros((3, 2), np.float32).T
    assert blasformer.embedding([1, 2], weight, out=strided) is strided
    assert (strided == weight[[1, 2]]).all()


# ----------------------------------------------------------------------------------------------------------
# Positions
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("dims", [None, 0, 2, 10, 32, 64])
def test_rotary_embedding_turns_the_first_dims_by_their_angles(dims, interleaved, dtype, isa, threads):
    x = normal((2, 3, 35, 64), dtype)
    positions = np.random.default_rng(1).integers(0, 3000, (2, 35))
    for arguments in (
        {"positions": positions[0], "base": 10000.0},
        {"positions": positions, "base": 500000},
        {"positions": positions.astype(np.int16)},
    ):
        actual = blasformer.rotary_embedding(x, interleaved=interleaved, dims=dims, **arguments)
        formula = reference.rotary_embedding(x, interleaved=interleaved, dims=dims, **arguments)
        assert reference.error(actual, formula) < 4 * np.finfo(dtype).eps + 3000 * 2.0**-52
        untouched = slice(64 if dims is None else dims, None)
        assert same_bits(actual[..., untouched], x[..., untouched])


def test_rotary_embedding_reads_positions_far_beyond_any_context(isa):
    x = normal((2, 6), np.float64)
    positions = [10_000_019, -3_000_000]
    formula = reference.rotary_embedding(x, positions, interleaved=True, dtype=np.longdouble)
    assert reference.error(blasformer.rotary_embedding(x, positions, interleaved=True), formula) < 1e-8


@pytest.mark.parametrize("interleaved", [False, True])
def test_rotated_queries_and_keys_see_only_the_distance(interleaved):
    query, key = normal((1, 1, 16), np.float64), normal((1, 1, 16), np.float64, 1)

    def score(query_position, key_position):
        q = blasformer.rotary_embedding(query, [query_position], interleaved=interleaved)
        k = blasformer.rotary_embedding(key, [key_position], interleaved=interleaved)
        return float((q * k).sum())

    assert score(7, 3) == pytest.approx(score(1007, 1003), rel=1e-11)
    assert score(7, 3) != pytest.approx(score(7, 4), rel=1e-3)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
@pytest.mark.parametrize(("length", "d_model", "first"), [(1, 2, 0), (70, 34, 0), (33, 130, 2), (3, 8, -5)])
def test_sinusoidal_positions_are_sines_and_cosines(length, d_model, first, layout, dtype, isa, threads):
    actual = blasformer.sinusoidal_positions(length, d_model, layout=layout, first=first, dtype=dtype)
    exact = reference.sinusoidal_positions(length, d_model, layout=layout, first=first, dtype=np.longdouble)
    assert actual.dtype == dtype
    assert reference.error(actual, exact) < np.finfo(dtype).eps + length * 2.0**-52


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
def test_sinusoidal_positions_come_in_half_types_too(dtype, isa):
    actual = blasformer.sinusoidal_positions(40, 12, dtype=dtype)
    assert_rounded_once(actual, reference.sinusoidal_positions(40, 12))


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------

X = np.zeros((2, 3, 4), np.float32)
WEIGHT = np.zeros((5, 4), np.float32)
READ_ONLY = np.broadcast_to(np.float32(0), X.shape)
ERRORS = [
    (
        lambda: blasformer.softmax([1.0, 2.0]),
        TypeError,
        "x must be a NumPy array of float32, float64, float16 or bfloat16, got list",
    ),
    (
        lambda: blasformer.relu(np.zeros(3, np.int32)),
        TypeError,
        "x must be a NumPy array of float32, float64, float16 or bfloat16, got int32",
    ),
    (
        lambda: blasformer.gelu(np.zeros(3, np.complex64)),
        TypeError,
        "x must be a NumPy array of float32, float64, float16 or bfloat16, got complex64",
    ),
    (
        lambda: blasformer.silu(np.zeros(3, np.dtype(np.float32).newbyteorder())),
        TypeError,
        "x must be a NumPy array of float32, float64, float16 or bfloat16, got float32 in foreign byte order",
    ),
    (lambda: blasformer.softmax(X, 3), ValueError, "axis must be an axis of x (2, 3, 4), got 3"),
    (lambda: blasformer.log_softmax(X, -4), ValueError, "axis must be an axis of x (2, 3, 4), got -4"),
    (
        lambda: blasformer.softmax(np.zeros((), np.float32)),
        ValueError,
        "axis must be an axis of x (), got -1",
    ),
    (lambda: blasformer.softmax(X, 0.5), TypeError, "axis must be an integer, got float"),
    (lambda: blasformer.softmax(X, None), TypeError, "axis must be an integer, got NoneType"),
    (
        lambda: blasformer.gelu(X, approximate="erf"),
        ValueError,
        'approximate must be "none", "tanh" or "sigmoid", got "erf"',
    ),
    (lambda: blasformer.relu(X, out=[0]), TypeError, "out must be a NumPy array of float32, float64"),
    (
        lambda: blasformer.relu(X, out=X[0].copy()),
        ValueError,
        "out must have the shape (2, 3, 4), got (3, 4)",
    ),
    (
        lambda: blasformer.relu(X, out=np.zeros(X.shape)),
        TypeError,
        "out must have the dtype of x, float32, got float64",
    ),
    (
        lambda: blasformer.relu(X, out=READ_ONLY),
        ValueError,
        "out must be writeable, got a read-only array",
    ),
    (
        lambda: blasformer.relu(X, out=np.zeros(97, np.uint8)[1:].view(np.float32).reshape(X.shape)),
        ValueError,
        "out must have aligned elements",
    ),
    (
        lambda: blasformer.layer_norm(X, 3),
        ValueError,
        "normalized_shape must be the last axes of x (2, 3, 4), got (3,)",
    ),
    (
        lambda: blasformer.layer_norm(X, (2, 3)),
        ValueError,
        "normalized_shape must be the last axes of x (2, 3, 4), got (2, 3)",
    ),
    (
        lambda: blasformer.rms_norm(X, (1, 2, 3, 4)),
        ValueError,
        "normalized_shape must be the last axes of x (2, 3, 4), got (1, 2, 3, 4)",
    ),
    (
        lambda: blasformer.layer_norm(X, ()),
        ValueError,
        "normalized_shape must name at least one axis, got ()",
    ),
    (lambda: blasformer.layer_norm(X, 4.0), TypeError, "normalized_shape must be an integer, got float"),
    (
        lambda: blasformer.layer_norm(X, 4, WEIGHT),
        ValueError,
        "weight must have the shape (4,) that is normalised, got (5, 4)",
    ),
    (
        lambda: blasformer.layer_norm(X, 4, None, np.zeros(3, np.float32)),
        ValueError,
        "bias must have the shape (4,) that is normalised, got (3,)",
    ),
    (
        lambda: blasformer.layer_norm(X, 4, np.zeros(4)),
        TypeError,
        "weight must have the dtype of x, float32, got float64",
    ),
    (
        lambda: blasformer.layer_norm(X, 4, eps=-1e-5),
        ValueError,
        "eps must be finite and at least 0, got -1e-05",
    ),
    (
        lambda: blasformer.rms_norm(X, 4, eps=np.nan),
        ValueError,
        "eps must be finite and at least 0, got nan",
    ),
    (lambda: blasformer.layer_norm(X, 4, eps="small"), TypeError, "eps must be a number, got str"),
    (
        lambda: blasformer.linear(X, np.zeros((5, 3), np.float32)),
        ValueError,
        "weight must have the shape (out_features, 4) to fit x (2, 3, 4), got (5, 3)",
    ),
    (
        lambda: blasformer.linear(X, np.zeros(4, np.float32)),
        ValueError,
        "weight must have the shape (out_features, 4) to fit x (2, 3, 4), got (4,)",
    ),
    (
        lambda: blasformer.linear(X, np.zeros((5, 4))),
        TypeError,
        "weight must have the dtype of x, float32, got float64",
    ),
    (
        lambda: blasformer.linear(X, WEIGHT, np.zeros(4, np.float32)),
        ValueError,
        "bias must have the shape (5,) to fit weight (5, 4), got (4,)",
    ),
    (
        lambda: blasformer.linear(X, WEIGHT, np.zeros(5)),
        TypeError,
        "bias must have the dtype of x, float32, got float64",
    ),
    (
        lambda: blasformer.linear(np.zeros((), np.float32), WEIGHT),
        ValueError,
        "x must have the shape (..., in_features), got ()",
    ),
    (
        lambda: blasformer.embedding([[0, 1], [-1, 9]], WEIGHT),
        IndexError,
        "ids must be in [0, 5) to select rows of weight, got -1 at position 2",
    ),
    (
        lambda: blasformer.embedding(np.zeros(3), WEIGHT),
        TypeError,
        "ids must be integers, got float64",
    ),
    (
        lambda: blasformer.embedding([0], X),
        ValueError,
        "weight must have the shape (num_embeddings, embedding_dim), got (2, 3, 4)",
    ),
    (
        lambda: blasformer.rotary_embedding(np.zeros(4, np.float32), [0], interleaved=True),
        ValueError,
        "x must have the shape (..., length, head_dim), got (4,)",
    ),
    (
        lambda: blasformer.rotary_embedding(X, [0, 1], interleaved=True),
        ValueError,
        "positions must have the shape (length,) or (batch, length) of x (2, 3, 4), got (2,)",
    ),
    (
        lambda: blasformer.rotary_embedding(X, np.zeros((3, 3), int), interleaved=True),
        ValueError,
        "positions must have the shape (length,) or (batch, length) of x (2, 3, 4), got (3, 3)",
    ),
    (
        lambda: blasformer.rotary_embedding(X, [0.0, 1.0, 2.0], interleaved=True),
        TypeError,
        "positions must be integers, got float64",
    ),
    (
        lambda: blasformer.rotary_embedding(X, [0, 1, 2], interleaved=None),
        TypeError,
        "interleaved must be True (pairs 2 i, 2 i + 1) or False (pairs i, i + dims / 2), got NoneType",
    ),
    (
        lambda: blasformer.rotary_embedding(X, [0, 1, 2], interleaved=True, base=0),
        ValueError,
        "base must be finite and greater than 0, got 0",
    ),
    (
        lambda: blasformer.rotary_embedding(X, [0, 1, 2], interleaved=True, dims=6),
        ValueError,
        "dims, which default to head_dim, must be even and between 0 and 4, got 6",
    ),
    (
        lambda: blasformer.rotary_embedding(X[..., :3], [0, 1, 2], interleaved=True),
        ValueError,
        "dims, which default to head_dim, must be even and between 0 and 3, got 3",
    ),
    (lambda: blasformer.sinusoidal_positions(-1, 4), ValueError, "length must be at least 0, got -1"),
    (
        lambda: blasformer.sinusoidal_positions(3, 5),
        ValueError,
        "d_model must be even and greater than 0, got 5",
    ),
    (lambda: blasformer.sinusoidal_positions(3.0, 4), TypeError, "length must be an integer, got float"),
    (
        lambda: blasformer.sinusoidal_positions(3, 4, layout="split"),
        ValueError,
        'layout must be "interleaved" or "concatenated", got "split"',
    ),
    (
        lambda: blasformer.sinusoidal_positions(3, 4, dtype=int),
        TypeError,
        "dtype must be float32, float64, float16 or bfloat16, got int64",
    ),
    (
        lambda: blasformer.sinusoidal_positions(3, 4, first=2**70),
        ValueError,
        "first must fit into 64 bits, got 1180591620717411303424",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS, ids=[text for _, _, text in ERRORS])
def test_an_error_names_the_argument_what_it_must_be_and_what_it_was(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_rotary_embedding_does_not_guess_the_pairs():
    with pytest.raises(TypeError, match="interleaved"):
        blasformer.rotary_embedding(X, [0, 1, 2])
