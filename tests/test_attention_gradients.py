"""Attention, backward: the derivative of the formula, for all arguments, sizes, layouts and dtypes."""

import blasformer
import ml_dtypes
import numpy as np
import pytest
import reference
from attention_cases import ARGUMENTS, FEW, HEAD_DIMS, LAYOUTS, LENGTHS, SIZES, Sizes, normal, operands
from reference import assert_as_accurate_as_numpy, assert_rounded_once, numerical_derivative

NOT_MASKS = {"alibi_slopes", "sinks", "softcap", "scale", "dropout_p", "rng"}


def gradients(query, key, value, d_output, **arguments):
    _, saved = blasformer.attention_forward(query, key, value, **arguments)
    return blasformer.attention_backward(saved, d_output)


def assert_accurate(grads, *inputs, orders=1, **arguments):
    assert_as_accurate_as_numpy(
        tuple(grads),
        reference.attention_gradients,
        *inputs,
        **arguments,
        factor=3,
        orders=orders,
        terms=reference.attention_gradient_terms(*inputs, **arguments),
    )


def same_bits(a, b):
    if a is None or b is None:
        return a is b
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


def case(kind, sizes, dtype, seed=0):
    random = np.random.default_rng(seed)
    inputs = (*operands(random, sizes, dtype), normal(random, sizes.output, dtype))
    return inputs, ARGUMENTS[kind](random, sizes, dtype)


# ----------------------------------------------------------------------------------------------------------
# The specification itself
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ARGUMENTS)
def test_the_reference_gradients_are_the_derivatives_of_the_reference(kind):
    (query, key, value, d_output), arguments = case(kind, Sizes(7, 11, 3, 2), np.float64)
    arguments = {**arguments, "query": query, "key": key, "value": value}
    grads = reference.attention_gradients(**arguments, d_output=d_output)
    random = np.random.default_rng(1)
    for name, gradient in grads._asdict().items():
        if gradient is None:
            continue
        direction = random.standard_normal(np.shape(arguments[name]))

        def loss(x, name=name):
            return (reference.attention(**{**arguments, name: x}).output * d_output).sum()

        slope = numerical_derivative(loss, arguments[name], direction)
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-7, abs=1e-9), name


# ----------------------------------------------------------------------------------------------------------
# Equal to the formula
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_gradients_are_as_accurate_as_numpy_for_all_arguments(kind, sizes, product_isa):
    inputs, arguments = case(kind, sizes, np.float32)
    grads = gradients(*inputs, **arguments)
    assert grads._fields == reference.AttentionGradients._fields
    assert (grads.bias is None) == ("bias" not in arguments)
    assert (grads.sinks is None) == ("sinks" not in arguments)
    assert_accurate(grads, *inputs, **arguments)


@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("query_length", [35, FEW])
def test_float64_gradients_are_the_formula_to_twelve_digits(query_length, kind, product_isa):
    inputs, arguments = case(kind, Sizes(query_length, 99, 11, 6), np.float64)
    grads = gradients(*inputs, **arguments)
    exact = reference.attention_gradients(*inputs, **arguments)
    terms = reference.attention_gradient_terms(*inputs, **arguments)
    for gradient, truth, size in zip(grads, exact, terms, strict=True):
        if truth is not None:
            assert gradient.dtype == np.float64
            assert reference.error(gradient, truth, size) < 1e-12


@pytest.mark.parametrize(
    "kind", ["none", "bias 1hi1", "causal at offsets", "sinks", "softcap", "dropout", "everything"]
)
def test_gradients_predict_how_the_output_changes(kind, product_isa):
    """Directional derivatives of our own forward, measured by central differences."""
    (query, key, value, d_output), arguments = case(kind, Sizes(35, 99, 11, 6), np.float64)
    arguments = {**arguments, "query": query, "key": key, "value": value}
    grads = gradients(**arguments, d_output=d_output)
    random = np.random.default_rng(2)
    for name, gradient in grads._asdict().items():
        if gradient is None:
            continue
        direction = random.standard_normal(arguments[name].shape)

        def loss(x, name=name):
            return (blasformer.scaled_dot_product_attention(**{**arguments, name: x}) * d_output).sum()

        slope = numerical_derivative(loss, arguments[name], direction)
        assert slope == pytest.approx((gradient * direction).sum(), rel=1e-7, abs=1e-8), name


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turn", range(0, len(HEAD_DIMS), 2))
def test_every_length_meets_every_head_dim(turn, dtype, product_isa):
    for place, query_length in enumerate(LENGTHS):
        key_length = LENGTHS[(3 * place + turn) % len(LENGTHS)]
        dim, value_dim = (
            HEAD_DIMS[(place + turn) % len(HEAD_DIMS)],
            HEAD_DIMS[(7 * place + 2 * turn) % len(HEAD_DIMS)],
        )
        sizes = Sizes(query_length, key_length, dim, value_dim, heads=1, kv_heads=1, batch=(1,))
        inputs, arguments = case("causal lower right", sizes, dtype, seed=place)
        grads = gradients(*inputs, **arguments)
        exact = reference.attention_gradients(*inputs, **arguments)
        plain = reference.attention_gradients(*inputs, **arguments, dtype=dtype)
        for ours, truth, numpys in zip(grads[:3], exact[:3], plain[:3], strict=True):
            bound = 3 * reference.error(numpys, truth) + 8 * np.finfo(dtype).eps
            bound += 0 if dtype == np.float32 else 1e-13  # in float64 the truth has NumPy's own error
            assert reference.error(ours, truth) <= bound, sizes


BIAS_SHAPES = [
    (35, 99), (1, 99), (35, 1), (1, 1), (99,), (1,), (), (4, 35, 99), (4, 1, 99), (4, 35, 1), (1, 35, 99),
    (4, 1, 1), (2, 4, 35, 99), (2, 1, 1, 99), (2, 4, 1, 1), (1, 4, 35, 99), (2, 1, 35, 99), (1, 1, 1, 1),
    (2, 4, 35, 1),
]  # fmt: skip


@pytest.mark.parametrize("shape", BIAS_SHAPES, ids=str)
def test_the_gradient_of_a_broadcast_bias_has_its_own_shape(shape, product_isa):
    sizes = Sizes(35, 99, 11, 6)
    inputs, arguments = case("causal upper left", sizes, np.float32)
    arguments["bias"] = normal(np.random.default_rng(3), shape, np.float32)
    grads = gradients(*inputs, **arguments)
    assert grads.bias.shape == shape
    assert_accurate(grads, *inputs, **arguments)


def test_a_bias_broadcast_by_strides_has_a_gradient_per_entry(product_isa):
    """np.broadcast_to makes an array of the full shape: each of its entries counts on its own."""
    sizes = Sizes(35, 99, 11, 6)
    inputs, _ = case("none", sizes, np.float32)
    bias = np.broadcast_to(normal(np.random.default_rng(3), (99,), np.float32), sizes.scores)
    grads = gradients(*inputs, bias=bias)
    assert_accurate(grads, *inputs, bias=bias)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 6), (6, 3), (6, 1), (13, 1)])
def test_shared_heads_add_up_their_gradients(heads, kv_heads, product_isa):
    inputs, arguments = case("causal lower right", Sizes(37, 101, 20, 12, heads, kv_heads), np.float32)
    grads = gradients(*inputs, **arguments)
    assert_accurate(grads, *inputs, **arguments)


@pytest.mark.parametrize(
    "dtype", [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)], ids=lambda dtype: dtype.name
)
@pytest.mark.parametrize("kind", ["none", "bias bhij", "causal lower right", "dropout", "sinks"])
@pytest.mark.parametrize(("query_length", "dim", "value_dim"), [(35, 40, 24), (FEW, 40, 24), (FEW, 64, 32)])
def test_half_precision_gradients_are_rounded_once(query_length, dim, value_dim, kind, dtype, product_isa):
    inputs, arguments = case(kind, Sizes(query_length, 99, dim, value_dim), dtype)
    grads = gradients(*inputs, **arguments)
    for gradient, exact in zip(grads, reference.attention_gradients(*inputs, **arguments), strict=True):
        if exact is not None:
            assert gradient.dtype == dtype
            assert_rounded_once(gradient, exact)


@pytest.mark.parametrize("batch", [(), (1,), (2, 3)])
def test_any_number_of_leading_axes(batch):
    inputs, arguments = case("bias ij", Sizes(9, 14, 6, 4, batch=batch), np.float32)
    grads = gradients(*inputs, **arguments)
    assert_accurate(grads, *inputs, **arguments)


def test_rank_two_is_one_head():
    inputs, _ = case("none", Sizes(9, 14, 6, 4, 1, 1, ()), np.float32)
    grads, expected = gradients(*(x[0] for x in inputs)), gradients(*inputs)
    assert all(same_bits(ours, theirs[0]) for ours, theirs in zip(grads[:3], expected[:3], strict=True))


# ----------------------------------------------------------------------------------------------------------
# Bits
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("kind", ["none", "causal lower right", "bias 1hi1", "bias bhij", "everything"])
@pytest.mark.parametrize("query_length", [197, FEW])
def test_the_number_of_threads_changes_no_bit(query_length, kind, dtype, product_isa):
    inputs, arguments = case(kind, Sizes(query_length, 257, 40, 24), dtype)
    results = []
    for count in (1, 2, 3, 2, 1):
        with blasformer.num_threads(count):
            results.append(gradients(*inputs, **arguments))
    for result in results[1:]:
        assert all(same_bits(part, first) for part, first in zip(result, results[0], strict=True))


def test_the_gradients_of_a_batch_entry_do_not_depend_on_its_neighbours(product_isa):
    inputs, _ = case("none", Sizes(130, 197, 40, 24, batch=(3,)), np.float32)
    key_lengths = np.array([197, 60, 3])
    together = gradients(*inputs, key_lengths=key_lengths, causal="lower_right")
    for entry in range(3):
        one = slice(entry, entry + 1)
        alone = gradients(*(x[one] for x in inputs), key_lengths=key_lengths[one], causal="lower_right")
        for part, whole in zip(alone[:3], together[:3], strict=True):
            np.testing.assert_allclose(part, whole[one], rtol=0, atol=2e-6)


@pytest.mark.parametrize("kind", ["none", "everything"])
def test_forward_for_training_has_the_bits_of_plain_forward(kind, product_isa):
    inputs, arguments = case(kind, Sizes(130, 197, 40, 24), np.float32)
    output, _ = blasformer.attention_forward(*inputs[:3], **arguments)
    assert same_bits(output, blasformer.scaled_dot_product_attention(*inputs[:3], **arguments))


def test_forward_for_training_returns_what_was_asked_for():
    inputs, arguments = case("dropout", Sizes(), np.float32)
    wanted = {"return_weights": True, "return_logsumexp": True}
    result, _ = blasformer.attention_forward(*inputs[:3], **arguments, **wanted)
    expected = blasformer.scaled_dot_product_attention(*inputs[:3], **arguments, **wanted)
    assert all(same_bits(part, other) for part, other in zip(result, expected, strict=True))


def test_saved_serves_backward_again_and_again():
    inputs, arguments = case("everything", Sizes(), np.float32)
    _, saved = blasformer.attention_forward(*inputs[:3], **arguments)
    first = blasformer.attention_backward(saved, inputs[3])
    blasformer.scaled_dot_product_attention(*inputs[:3])
    again = blasformer.attention_backward(saved, inputs[3])
    assert all(same_bits(part, other) for part, other in zip(again, first, strict=True))


def test_a_generator_is_used_once_and_backward_drops_what_forward_dropped():
    inputs, _ = case("none", Sizes(), np.float32)
    generator = np.random.default_rng(11)
    grads = gradients(*inputs, dropout_p=0.3, rng=generator)
    expected = gradients(*inputs, dropout_p=0.3, rng=11)
    assert all(same_bits(part, other) for part, other in zip(grads, expected, strict=True))
    assert generator.integers(2**62) != np.random.default_rng(11).integers(2**62)


# ----------------------------------------------------------------------------------------------------------
# Memory
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("query_length", [35, FEW])
def test_the_layout_in_memory_changes_no_bit(query_length, layout, dtype, product_isa):
    sizes = Sizes(query_length, 99, 20, 12)
    inputs, arguments = case("bias bhij", sizes, dtype)
    expected = gradients(*inputs, **arguments)
    arrange = LAYOUTS[layout]
    grads = gradients(*(arrange(x) for x in inputs), bias=arrange(arguments["bias"]))
    assert all(same_bits(part, other) for part, other in zip(grads, expected, strict=True))


@pytest.mark.parametrize("axis", range(4))
def test_a_broadcast_output_gradient_is_read_in_place(axis):
    inputs, arguments = case("none", Sizes(), np.float32)
    *inputs, d_output = inputs
    broadcast = np.broadcast_to(np.take(d_output, [0], axis), d_output.shape)
    grads, expected = (
        gradients(*inputs, broadcast, **arguments),
        gradients(*inputs, broadcast.copy(), **arguments),
    )
    assert all(same_bits(part, other) for part, other in zip(grads, expected, strict=True))


def test_inputs_keep_their_bits_and_gradients_own_their_memory():
    inputs, arguments = case("everything", Sizes(), np.float32)
    arrays = [*inputs, *(value for value in arguments.values() if isinstance(value, np.ndarray))]
    before = [array.tobytes() for array in arrays]
    for array in arrays:
        array.flags.writeable = False
    grads = gradients(*inputs, **arguments)
    assert [array.tobytes() for array in arrays] == before
    for part in grads:
        assert part.flags.writeable
        assert part.flags.c_contiguous
        assert not any(np.shares_memory(part, array) for array in arrays)


@pytest.mark.parametrize("sizes", [Sizes(batch=(0,)), Sizes(query_length=0), Sizes(key_length=0)])
@pytest.mark.parametrize("kind", ["none", "bias hij", "bias 1hi1", "sinks"])
def test_empty_axes_have_zero_gradients(sizes, kind):
    inputs, arguments = case(kind, sizes, np.float32)
    for gradient, exact in zip(
        gradients(*inputs, **arguments), reference.attention_gradients(*inputs, **arguments), strict=True
    ):
        if exact is not None:
            assert gradient.shape == exact.shape
            assert (gradient == 0).all()


# ----------------------------------------------------------------------------------------------------------
# Masked entries
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("query_length", [67, FEW])
def test_garbage_nobody_may_attend_to_changes_no_bit_of_any_gradient(query_length, kind, dtype, product_isa):
    sizes = Sizes(query_length, 199, 24, 16)
    (query, key, value, d_output), arguments = case(kind, sizes, dtype)
    masks = {name: value for name, value in arguments.items() if name not in NOT_MASKS}
    may_attend = reference.allowed(sizes.query, sizes.key, **masks)
    unseen_keys = ~may_attend.reshape(*sizes.key[:-2], -1, *sizes.scores[-2:]).any((-3, -2))
    unseen_keys[..., -30:] = True
    arguments["mask"] = np.broadcast_to(arguments.get("mask", True), sizes.scores).copy()
    arguments["mask"][..., -30:] = False
    blind_queries = ~(may_attend & arguments["mask"]).any(-1)
    clean = gradients(query, key, value, d_output, **arguments)
    assert (clean.query[blind_queries] == 0).all()
    assert (clean.key[unseen_keys] == 0).all()
    assert (clean.value[unseen_keys] == 0).all()
    for garbage in (np.nan, np.inf, -np.inf):
        for array, hidden in (
            (query, blind_queries),
            (key, unseen_keys),
            (value, unseen_keys),
            (d_output, blind_queries),
        ):
            array[hidden] = garbage
        grads = gradients(query, key, value, d_output, **arguments)
        assert all(same_bits(part, other) for part, other in zip(grads, clean, strict=True))


def test_garbage_some_may_attend_to_leaves_the_gradients_of_other_queries(product_isa):
    (query, key, value, d_output), _ = case("none", Sizes(130, 130, 24, 16), np.float32)
    clean = gradients(query, key, value, d_output, causal=True)
    key[:, 1, 70] = np.nan
    value[:, 1, 70] = np.inf
    grads = gradients(query, key, value, d_output, causal=True)
    assert same_bits(grads.query[:, :, :70], clean.query[:, :, :70])
    assert same_bits(grads.query[:, :2], clean.query[:, :2])
    assert same_bits(grads.key[:, 0], clean.key[:, 0])
    assert same_bits(grads.value[:, 0], clean.value[:, 0])
    assert np.isnan(grads.query[:, 2:, 70:]).all()


@pytest.mark.parametrize("poisoned", ["query", "d_output"])
@pytest.mark.parametrize(
    "kind", ["mask bhij", "causal lower right", "key lengths", "unsorted segments", "window"]
)
@pytest.mark.parametrize("query_length", [67, FEW])
def test_a_nan_in_a_query_reaches_only_the_keys_it_may_attend_to(query_length, kind, poisoned, product_isa):
    sizes = Sizes(query_length, 199, 24, 16)
    (query, key, value, d_output), arguments = case(kind, sizes, np.float32)
    clean = gradients(query, key, value, d_output, **arguments)
    bad = np.arange(query_length) == 0
    {"query": query, "d_output": d_output}[poisoned][:, :, bad] = np.nan
    grads = gradients(query, key, value, d_output, **arguments)
    may_attend = reference.allowed(sizes.query, sizes.key, **arguments)[:, :, bad]
    reached = may_attend.reshape(*sizes.key[:-2], -1, sizes.key_length).any(-2)
    assert not reached.all()
    for part, clean_part in ((grads.key, clean.key), (grads.value, clean.value)):
        assert np.isnan(part[reached]).all()
        np.testing.assert_array_equal(part[~reached], clean_part[~reached])
    np.testing.assert_array_equal(grads.query[:, :, ~bad], clean.query[:, :, ~bad])


def test_the_bias_behind_a_mask_has_no_influence_and_no_gradient(product_isa):
    sizes = Sizes()
    inputs, arguments = case("causal, mask", sizes, np.float32)
    allowed = reference.allowed(sizes.query, sizes.key, **arguments)
    bias = normal(np.random.default_rng(4), sizes.scores, np.float32)
    clean = gradients(*inputs, bias=bias, **arguments)
    assert (clean.bias[~allowed] == 0).all()
    assert (clean.bias[allowed] != 0).mean() > 0.9
    bias[~allowed] = np.nan
    grads = gradients(*inputs, bias=bias, **arguments)
    assert all(same_bits(part, other) for part, other in zip(grads, clean, strict=True))


@pytest.mark.parametrize(
    "masks",
    [
        {"causal": True},
        {"window": (20, 30)},
        {"key_lengths": np.array([7, 200])},
        {"query_lengths": np.array([0, 129])},
        {"mask": np.kron(np.eye(3, dtype=bool), np.ones((100, 100), bool))},
    ],
    ids=lambda masks: next(iter(masks)),
)
def test_the_gradient_of_a_bias_is_zero_wherever_nobody_attends_whatever_memory_held(masks, product_isa):
    inputs, _ = case(
        "none", Sizes(heads=2, query_length=300, key_length=300, dim=16, value_dim=16), np.float32
    )
    bias = normal(np.random.default_rng(4), (2, 2, 300, 300), np.float32)
    allowed = np.broadcast_to(blasformer.explain_mask(inputs[0].shape, inputs[1].shape, **masks), bias.shape)
    _, saved = blasformer.attention_forward(*inputs[:3], bias=bias, **masks)
    for _ in range(3):
        np.full((3, bias.size), np.nan, np.float32)  # given back at once, for the next array to take
        gradient = blasformer.attention_backward(saved, inputs[3]).bias
        assert (gradient[~allowed] == 0).all()
        assert np.isfinite(gradient).all()


def test_everything_dropped_has_zero_gradients(product_isa):
    inputs, _ = case("none", Sizes(), np.float32)
    for gradient in gradients(*inputs, dropout_p=1.0, rng=3)[:3]:
        assert (gradient == 0).all()


# ----------------------------------------------------------------------------------------------------------
# Hard numbers
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize(
    "factors", [(5, 5, 1, 1), (30, 30, 1, 1), (1, 1, 1000, 1), (1, 1, 1, 1e-30), (1e-18, 1e-18, 1, 1)]
)
@pytest.mark.parametrize("query_length", [33, 3])
def test_gradients_of_hard_numbers_are_as_accurate_as_numpy(query_length, factors, dtype, product_isa):
    inputs, arguments = case("causal lower right", Sizes(query_length, 197, 40, 24), dtype)
    inputs = [x * dtype(factor) for x, factor in zip(inputs, factors, strict=True)]
    grads = gradients(*inputs, **arguments)
    assert_accurate(grads, *inputs, **arguments, orders=8)


def test_gradients_of_shifted_values_are_as_accurate_as_numpy(product_isa):
    """d_weights is large and nearly constant along a row: its mean must cancel."""
    (query, key, value, d_output), _ = case("none", Sizes(33, 197, 40, 24), np.float32)
    inputs = (query, key, value + 100, d_output)
    assert_accurate(gradients(*inputs), *inputs)


@pytest.mark.parametrize(("kv_heads", "layout"), [(4, "contiguous"), (2, "split heads"), (2, "Fortran")])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=lambda x: x.__name__)
def test_heads_that_come_from_memory_have_the_bits_of_a_few(dtype, kv_heads, layout, product_isa):
    """Where caches do not hold them all, kernels ask for the next head while they compute."""
    few = Sizes(query_length=37, key_length=41, dim=24, value_dim=40, heads=4, kv_heads=kv_heads, batch=(3,))
    times = 12 * 2**20 // (3 * kv_heads * 41 * (24 + 40) * np.dtype(dtype).itemsize)
    inputs, arguments = case("window to the left", few, dtype)
    many = [LAYOUTS[layout](np.tile(x, (times, 1, 1, 1))) for x in inputs]
    output, saved = blasformer.attention_forward(*inputs[:3], **arguments)
    grads = blasformer.attention_backward(saved, inputs[3])
    outputs, saved = blasformer.attention_forward(*many[:3], **arguments)
    many_grads = blasformer.attention_backward(saved, many[3])
    assert same_bits(np.ascontiguousarray(outputs), np.tile(output, (times, 1, 1, 1)))
    for name in ("query", "key", "value"):
        of_many, of_few = getattr(many_grads, name), getattr(grads, name)
        assert same_bits(np.ascontiguousarray(of_many), np.tile(of_few, (times, 1, 1, 1))), name


@pytest.mark.parametrize("query_length", [37, 385])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda x: x.__name__)
def test_rows_that_lie_whole_pages_apart_have_the_bits_of_dense_ones(dtype, query_length, product_isa):
    """Such rows share a few sets of the caches: kernels read fewer of them at once, or copy them."""
    heads = 4096 // np.dtype(dtype).itemsize // 64
    sizes = Sizes(query_length, key_length=277, dim=64, value_dim=64, heads=heads, kv_heads=heads, batch=(1,))
    inputs, arguments = case("causal, lengths", sizes, dtype)
    apart = [LAYOUTS["split heads"](x) for x in inputs]
    assert {x.strides[-2] for x in apart} == {4096}
    results = []
    for query, key, value, d_output in (inputs, apart):
        output, saved = blasformer.attention_forward(query, key, value, **arguments)
        results.append((output, *blasformer.attention_backward(saved, d_output)[:3]))
    for dense, of_apart in zip(*results, strict=True):
        assert same_bits(np.ascontiguousarray(of_apart), np.ascontiguousarray(dense))


@pytest.mark.parametrize("layout", ["contiguous", "split heads", "Fortran"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64, ml_dtypes.bfloat16], ids=lambda x: x.__name__)
def test_keys_that_no_query_attends_to_change_no_bit_however_many_they_are(dtype, layout, product_isa):
    """Where caches do not hold the keys of one head, kernels ask for the next block while they compute."""
    sizes = Sizes(query_length=70, key_length=15001, dim=33, value_dim=40, heads=2, kv_heads=1, batch=(1,))
    (query, key, value, d_output), _ = case("none", sizes, dtype)
    seen, fewer = 977, 1400
    results = []
    for rows in (sizes.key_length, fewer):
        inputs = [LAYOUTS[layout](x) for x in (query, key[..., :rows, :], value[..., :rows, :])]
        output, saved = blasformer.attention_forward(*inputs, key_lengths=np.array([seen]))
        results.append((output, blasformer.attention_backward(saved, d_output)))
    (output_of_many, of_many), (output, grads) = results
    assert same_bits(np.ascontiguousarray(output_of_many), np.ascontiguousarray(output))
    assert same_bits(np.ascontiguousarray(of_many.query), np.ascontiguousarray(grads.query))
    for name in ("key", "value"):
        of_all, of_few = getattr(of_many, name), getattr(grads, name)
        assert same_bits(np.ascontiguousarray(of_all[..., :fewer, :]), np.ascontiguousarray(of_few)), name
        assert not of_all[..., seen:, :].any()


@pytest.mark.parametrize("kind", ["none", "mask bhij", "bias hij", "softcap", "dropout", "key lengths"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("rest", [1, 2, 3, 4, 5])
def test_a_tile_of_few_queries_has_the_bits_of_a_full_one(rest, dtype, kind, product_isa):
    """The last queries of a head may fill a few lanes of a tile, which are computed otherwise."""
    sizes = Sizes(query_length=64 + 32, key_length=149, dim=70, value_dim=33)
    (query, key, value, d_output), arguments = case(kind, sizes, dtype)
    count = 64 + rest
    few = {
        name: x[..., :count, :] if name in ("mask", "bias") else x
        for name, x in arguments.items()
        if name != "rng"
    }
    if "rng" in arguments:
        arguments["rng"], few["rng"] = 5, 5
    if "mask" in arguments:
        value[..., 7, :] = np.inf  # kept out of the products
    outputs, saved = blasformer.attention_forward(query, key, value, **arguments)
    output, saved_of_few = blasformer.attention_forward(query[..., :count, :], key, value, **few)
    assert same_bits(output, np.ascontiguousarray(outputs[..., :count, :]))
    d_query = blasformer.attention_backward(saved, d_output).query
    d_query_of_few = blasformer.attention_backward(saved_of_few, d_output[..., :count, :]).query
    assert same_bits(d_query_of_few, np.ascontiguousarray(d_query[..., :count, :]))


def test_no_queries_give_no_gradient_to_keys_that_come_from_memory(product_isa):
    sizes = Sizes(query_length=0, key_length=2000, dim=64, value_dim=64, heads=8, kv_heads=8)
    (query, key, value, d_output), _ = case("none", sizes, np.float32)
    grads = gradients(query, key, value, d_output)
    assert grads.query.shape == query.shape
    assert not grads.key.any()
    assert not grads.value.any()
