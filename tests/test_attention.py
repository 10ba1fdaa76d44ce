"""Attention, forward: equal to its formula for all arguments, sizes, layouts and dtypes."""

import blasformer
import ml_dtypes
import numpy as np
import pytest
import reference
from attention_cases import ARGUMENTS, FEW, HEAD_DIMS, LAYOUTS, LENGTHS, MANY, SIZES, Sizes, normal, operands
from reference import assert_as_accurate_as_numpy, assert_rounded_once

attend = blasformer.scaled_dot_product_attention
EVERYTHING = {"return_weights": True, "return_logsumexp": True}
HALF_DTYPES = [np.dtype(np.float16), np.dtype(ml_dtypes.bfloat16)]


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


# ----------------------------------------------------------------------------------------------------------
# The formula
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sizes", SIZES)
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_attention_is_as_accurate_as_numpy_for_all_arguments(kind, sizes, product_isa):
    random = np.random.default_rng(len(kind))
    inputs = operands(random, sizes, np.float32)
    arguments = ARGUMENTS[kind](random, sizes, np.float32)
    result = attend(*inputs, **arguments, **EVERYTHING)
    assert_as_accurate_as_numpy(result, reference.attention, *inputs, **arguments)


@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("lengths", [(35, 99), (FEW, 99), (FEW, MANY)])
def test_float64_stays_float64_for_all_arguments(lengths, kind, product_isa):
    random = np.random.default_rng(len(kind))
    sizes = Sizes(*lengths, 11, 6)
    inputs = operands(random, sizes, np.float64)
    arguments = ARGUMENTS[kind](random, sizes, np.float64)
    result = attend(*inputs, **arguments, **EVERYTHING)
    assert_as_accurate_as_numpy(result, reference.attention, *inputs, **arguments)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("turn", range(len(HEAD_DIMS)))
def test_every_length_meets_every_head_dim(turn, dtype, product_isa):
    for place, query_length in enumerate(LENGTHS):
        key_length = LENGTHS[(3 * place + turn) % len(LENGTHS)]
        dim, value_dim = (
            HEAD_DIMS[(place + turn) % len(HEAD_DIMS)],
            HEAD_DIMS[(7 * place + 2 * turn) % len(HEAD_DIMS)],
        )
        sizes = Sizes(query_length, key_length, dim, value_dim, heads=1, kv_heads=1, batch=(1,))
        inputs = operands(np.random.default_rng(place), sizes, dtype)
        for arguments in ({}, {"causal": "lower_right"}):
            output = attend(*inputs, **arguments)
            exact = reference.attention(*inputs, **arguments).output
            bound = 8 * np.finfo(dtype).eps
            plain = reference.error(reference.attention(*inputs, **arguments, dtype=dtype).output, exact)
            bound += 2 * plain if dtype == np.float32 else 1e-14  # in float64 the truth has NumPy's own error
            assert reference.error(output, exact) <= bound, (sizes, arguments)


@pytest.mark.parametrize(("heads", "kv_heads"), [(1, 1), (6, 6), (6, 3), (6, 2), (6, 1), (71, 1)])
def test_query_heads_share_key_heads_in_blocks(heads, kv_heads, product_isa):
    sizes = Sizes(17, 35, 20, 12, heads, kv_heads)
    inputs = operands(np.random.default_rng(heads), sizes, np.float32)
    assert_as_accurate_as_numpy(attend(*inputs, **EVERYTHING), reference.attention, *inputs)


@pytest.mark.parametrize("batch", [(), (1,), (3,), (2, 3), (2, 1, 3)])
def test_any_number_of_leading_axes(batch):
    sizes = Sizes(9, 14, 6, 4, batch=batch)
    random = np.random.default_rng(0)
    inputs = operands(random, sizes, np.float32)
    arguments = {
        "mask": random.random(sizes.scores) < 0.8,
        "bias": normal(random, sizes.scores[-2:], np.float32),
    }
    assert_as_accurate_as_numpy(
        attend(*inputs, **arguments, **EVERYTHING), reference.attention, *inputs, **arguments
    )


def test_rank_two_is_one_head():
    sizes = Sizes(9, 14, 6, 4, 1, 1, ())
    query, key, value = operands(np.random.default_rng(0), sizes, np.float32)
    result = attend(query[0], key[0], value[0], **EVERYTHING)
    expected = attend(query, key, value, **EVERYTHING)
    assert [part.shape for part in result] == [(9, 4), (9, 14), (9,)]
    assert all(same_bits(ours, theirs[0]) for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=lambda dtype: dtype.name)
@pytest.mark.parametrize(
    "kind", ["none", "mask bhij", "bias bhij", "causal lower right", "dropout", "everything"]
)
@pytest.mark.parametrize(
    ("query_length", "dim", "value_dim"), [(35, 40, 24), (FEW, 40, 24), (FEW, 64, 32), (1, 96, 160)]
)
def test_half_precision_is_rounded_once_at_the_end(query_length, dim, value_dim, kind, dtype, product_isa):
    sizes = Sizes(query_length, 99, dim, value_dim)
    random = np.random.default_rng(1)
    inputs = operands(random, sizes, dtype)
    arguments = ARGUMENTS[kind](random, sizes, dtype)
    result = attend(*inputs, **arguments, return_weights=True)
    assert result.output.dtype == dtype
    expected = reference.attention(*inputs, **arguments)
    assert_rounded_once(result.output, expected.output)
    assert_rounded_once(result.weights, expected.weights)


# ----------------------------------------------------------------------------------------------------------
# Memory: any layout is read in place, nothing of the caller's is written to
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "dtype", [np.float32, np.float64, np.float16, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__
)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("query_length", "dim", "value_dim"), [(35, 20, 12), (FEW, 20, 12), (FEW, 64, 32)])
def test_the_layout_in_memory_changes_no_bit(query_length, dim, value_dim, layout, dtype, product_isa):
    sizes = Sizes(query_length, 99, dim, value_dim)
    random = np.random.default_rng(2)
    inputs = operands(random, sizes, dtype)
    bias = normal(random, sizes.scores, dtype)
    mask = random.random(sizes.scores) < 0.8
    expected = attend(*inputs, bias=bias, mask=mask, **EVERYTHING)
    arrange = LAYOUTS[layout]
    wider_mask = np.repeat(mask, 2, axis=-1)[..., ::2]
    result = attend(*(arrange(x) for x in inputs), bias=arrange(bias), mask=wider_mask, **EVERYTHING)
    assert all(same_bits(ours, theirs) for ours, theirs in zip(result, expected, strict=True))


@pytest.mark.parametrize("axis", range(4))
@pytest.mark.parametrize("operand", range(3), ids=["query", "key", "value"])
@pytest.mark.parametrize("query_length", [35, FEW])
def test_an_operand_broadcast_along_an_axis_is_read_in_place(query_length, operand, axis, product_isa):
    sizes = Sizes(query_length, 99, 20, 12, 4, 4)
    inputs = list(operands(np.random.default_rng(3), sizes, np.float32))
    one = np.take(inputs[operand], [0], axis)
    inputs[operand] = np.broadcast_to(one, inputs[operand].shape)
    assert inputs[operand].strides[axis] == 0
    assert same_bits(attend(*inputs), attend(*(x.copy() for x in inputs)))


def test_inputs_keep_their_bits_and_outputs_own_their_memory():
    sizes = Sizes()
    random = np.random.default_rng(4)
    inputs = operands(random, sizes, np.float32)
    arguments = ARGUMENTS["everything"](random, sizes, np.float32)
    arrays = [*inputs, *(value for value in arguments.values() if isinstance(value, np.ndarray))]
    before = [array.tobytes() for array in arrays]
    result = attend(*inputs, **arguments, **EVERYTHING)
    assert [array.tobytes() for array in arrays] == before
    for part in result:
        assert part.flags.writeable
        assert part.flags.c_contiguous
        assert not any(np.shares_memory(part, array) for array in arrays)


@pytest.mark.parametrize(
    "layout", ["contiguous", "split heads", "Fortran", "reversed", "every second feature"]
)
def test_out_receives_the_output(layout):
    sizes = Sizes(35, 99, 20, 12)
    inputs = operands(np.random.default_rng(5), sizes, np.float32)
    out = LAYOUTS[layout](np.full(sizes.output, np.nan, np.float32))
    output = attend(*inputs, out=out)
    assert output is out
    assert same_bits(np.ascontiguousarray(out), attend(*inputs))


@pytest.mark.parametrize("overwritten", ["query", "key", "value"])
def test_out_may_be_an_input(overwritten):
    sizes = Sizes(97, 97, 20, 20, 4, 4)
    inputs = operands(np.random.default_rng(6), sizes, np.float32)
    expected = attend(*inputs)
    out = dict(zip(["query", "key", "value"], inputs, strict=True))[overwritten]
    assert same_bits(attend(*inputs, out=out), expected)


def test_out_may_overlap_the_inputs_partly():
    sizes = Sizes(97, 97, 20, 20, 4, 4)
    query, key, value = operands(np.random.default_rng(7), sizes, np.float32)
    memory = np.empty(query.size + 17, np.float32)
    shifted = memory[17:].reshape(query.shape)
    shifted[...] = query
    expected = attend(query, key, value)
    out = memory[: query.size].reshape(query.shape)
    assert same_bits(attend(shifted, key, value, out=out), expected)


# ----------------------------------------------------------------------------------------------------------
# The same bits, always
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("kind", ["none", "causal lower right", "dropout", "everything"])
@pytest.mark.parametrize("lengths", [(197, 257), (FEW, 257), (FEW, MANY)])
def test_the_number_of_threads_changes_no_bit(lengths, kind, dtype, product_isa):
    sizes = Sizes(*lengths, 40, 24)
    random = np.random.default_rng(8)
    inputs = operands(random, sizes, dtype)
    arguments = ARGUMENTS[kind](random, sizes, dtype)
    results = []
    for count in (1, 2, 3, 2, 1):
        with blasformer.num_threads(count):
            results.append(attend(*inputs, **arguments, **EVERYTHING))
    for result in results[1:]:
        assert all(same_bits(part, first) for part, first in zip(result, results[0], strict=True))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16], ids=lambda dtype: dtype.__name__)
def test_how_queries_are_shared_out_among_threads_changes_no_bit(dtype, product_isa):
    shape = (1, 1, 833, 40)
    random = np.random.default_rng(8)
    inputs = [random.standard_normal(shape, np.float32).astype(dtype) for _ in range(3)]
    results, tasks = [], set()
    for count in (1, 2, 7, 24):
        with blasformer.num_threads(count):
            tasks.add(blasformer.attention_plan(shape, shape, dtype=dtype).tasks)
            results.append(attend(*inputs, causal=True, **EVERYTHING))
    assert len(tasks) > 1
    for result in results[1:]:
        assert all(same_bits(part, first) for part, first in zip(result, results[0], strict=True))


@pytest.mark.parametrize("query_length", [130, FEW])
def test_what_else_is_asked_for_changes_no_bit_of_the_output(query_length, product_isa):
    sizes = Sizes(query_length, 197, 40, 24)
    random = np.random.default_rng(9)
    inputs = operands(random, sizes, np.float32)
    arguments = ARGUMENTS["everything"](random, sizes, np.float32)
    output = attend(*inputs, **arguments)
    selection = blasformer.WeightSelection(heads=[1], rows=[1, 0])
    for wanted in (
        {"return_weights": True},
        {"return_logsumexp": True},
        {"return_weights": selection},
        EVERYTHING,
    ):
        assert same_bits(attend(*inputs, **arguments, **wanted).output, output)


@pytest.mark.parametrize("query_length", [130, FEW])
def test_a_batch_entry_does_not_depend_on_its_neighbours(query_length, product_isa):
    sizes = Sizes(query_length, 197, 40, 24, batch=(3,))
    random = np.random.default_rng(10)
    inputs = operands(random, sizes, np.float32)
    key_lengths = np.array([197, 60, 3])
    together = attend(*inputs, key_lengths=key_lengths)
    for entry in range(3):
        alone = attend(*(x[entry : entry + 1] for x in inputs), key_lengths=key_lengths[entry : entry + 1])
        assert same_bits(alone[0], together[entry])


# ----------------------------------------------------------------------------------------------------------
# Weights and the log of the softmax denominator
# ----------------------------------------------------------------------------------------------------------


def test_absent_parts_of_the_result_are_none():
    inputs = operands(np.random.default_rng(11), Sizes(), np.float32)
    assert isinstance(attend(*inputs), np.ndarray)
    with_weights, with_logsumexp = (
        attend(*inputs, return_weights=True),
        attend(*inputs, return_logsumexp=True),
    )
    assert isinstance(with_weights, blasformer.AttentionResult)
    assert with_weights._fields == ("output", "weights", "logsumexp")
    assert with_weights.logsumexp is None
    assert with_logsumexp.weights is None


@pytest.mark.parametrize(
    ("heads", "rows"),
    [
        ([1], None),
        ([3, 0], None),
        (None, [0]),
        (None, [129, 7, 7]),
        ([2, 1], [31, 32, 33]),
        (None, [-1]),
        ([-1], [5]),
    ],
)
@pytest.mark.parametrize("mean", [False, True])
def test_selected_weights_are_those_of_the_full_matrix(heads, rows, mean, product_isa):
    sizes = Sizes(130, 197, 40, 24)
    random = np.random.default_rng(12)
    inputs = operands(random, sizes, np.float32)
    arguments = ARGUMENTS["everything"](random, sizes, np.float32)
    selection = blasformer.WeightSelection(heads=heads, rows=rows, mean=mean)
    selected = attend(*inputs, **arguments, return_weights=selection).weights
    full = attend(*inputs, **arguments, return_weights=True).weights
    expected = full if heads is None else full[..., heads, :, :]
    expected = expected if rows is None else expected[..., rows, :]
    if mean:
        exact = expected.astype(np.float64).mean(-3)
        assert selected.shape == exact.shape
        np.testing.assert_allclose(selected, exact, rtol=0, atol=2e-7)
    else:
        assert same_bits(selected, np.ascontiguousarray(expected))


@pytest.mark.parametrize(
    ("heads", "rows"), [(slice(1, 3), slice(None, None, 50)), (2, -1), (np.arange(2), [0])]
)
def test_heads_and_rows_are_selected_by_slices_and_single_indices_too(heads, rows):
    inputs = operands(np.random.default_rng(12), Sizes(130, 197, 40, 24), np.float32)
    selection = blasformer.WeightSelection(heads=heads, rows=rows)
    selected = attend(*inputs, return_weights=selection).weights
    full = attend(*inputs, return_weights=True).weights
    heads, rows = ([index] if isinstance(index, int) else index for index in (heads, rows))
    assert same_bits(selected, np.ascontiguousarray(full[:, heads][:, :, rows]))


@pytest.mark.parametrize("query_length", [130, FEW])
def test_weights_of_a_row_sum_to_one_or_are_zero(query_length, product_isa):
    sizes = Sizes(query_length, 197, 40, 24)
    random = np.random.default_rng(13)
    inputs = operands(random, sizes, np.float64)
    arguments = ARGUMENTS["mask with empty rows"](random, sizes, np.float64)
    sums = attend(*inputs, **arguments, return_weights=True).weights.sum(-1)
    has_keys = arguments["mask"].any(-1)
    np.testing.assert_allclose(sums[has_keys], 1, rtol=1e-14)
    assert (sums[~has_keys] == 0).all()
    assert not has_keys.all()


def test_sinks_take_weight_and_count_in_the_logsumexp():
    sizes = Sizes(5, 7, 4, 4, 2, 2)
    inputs = operands(np.random.default_rng(14), sizes, np.float64)
    sinks = np.array([1.0, -2.0])
    plain, with_sinks = attend(*inputs, **EVERYTHING), attend(*inputs, sinks=sinks, **EVERYTHING)
    logsumexp = np.logaddexp(plain.logsumexp, sinks[:, None])
    np.testing.assert_allclose(with_sinks.logsumexp, logsumexp, rtol=1e-14)
    share = np.exp(plain.logsumexp - logsumexp)[..., None]
    np.testing.assert_allclose(with_sinks.weights, plain.weights * share, rtol=1e-13)
    np.testing.assert_allclose(with_sinks.output, plain.output * share, rtol=1e-12, atol=1e-15)


# ----------------------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------------------


def test_nothing_is_dropped_without_an_rng():
    inputs = operands(np.random.default_rng(15), Sizes(), np.float32)
    assert same_bits(attend(*inputs, dropout_p=0.5), attend(*inputs))


def test_nothing_is_dropped_with_probability_zero():
    inputs = operands(np.random.default_rng(15), Sizes(), np.float32)
    assert same_bits(attend(*inputs, dropout_p=0.0, rng=1), attend(*inputs))


def test_everything_is_dropped_with_probability_one(product_isa):
    inputs = operands(np.random.default_rng(16), Sizes(), np.float32)
    result = attend(*inputs, dropout_p=1.0, rng=1, **EVERYTHING)
    assert (result.output == 0).all()
    assert same_bits(result.weights, attend(*inputs, return_weights=True).weights)


def test_weights_are_those_before_dropout(product_isa):
    inputs = operands(np.random.default_rng(17), Sizes(), np.float32)
    dropped = attend(*inputs, dropout_p=0.4, rng=5, **EVERYTHING)
    assert same_bits(dropped.weights, attend(*inputs, **EVERYTHING).weights)
    assert same_bits(dropped.logsumexp, attend(*inputs, **EVERYTHING).logsumexp)


def test_a_seed_and_a_generator_of_that_seed_drop_the_same():
    inputs = operands(np.random.default_rng(18), Sizes(), np.float32)
    generator = np.random.default_rng(5)
    first = attend(*inputs, dropout_p=0.4, rng=generator)
    assert same_bits(first, attend(*inputs, dropout_p=0.4, rng=5))
    second = attend(*inputs, dropout_p=0.4, rng=generator)
    assert not same_bits(first, second)
    assert not same_bits(first, attend(*inputs, dropout_p=0.4, rng=6))


@pytest.mark.parametrize("dropout_p", [0.05, 0.5, 0.93])
def test_dropout_drops_the_share_it_was_asked_for(dropout_p, product_isa):
    length = 300
    query = np.zeros((2, length, 4), np.float32)
    identity = np.broadcast_to(np.eye(length, dtype=np.float32), (2, length, length))
    kept = attend(query, query, identity, dropout_p=dropout_p, rng=3) * length * (1 - dropout_p)
    np.testing.assert_allclose(kept[kept != 0], 1, rtol=1e-5)
    assert abs((kept == 0).mean() - dropout_p) < 0.005
    assert (
        np.abs((kept == 0).mean(-1) - dropout_p).max() < 0.15
    )  # no row, no column is spared or hit as a whole
    assert np.abs((kept == 0).mean(-2) - dropout_p).max() < 0.15


@pytest.mark.parametrize("dropout_p", [0.05, 0.5, 0.93])
def test_dropout_of_one_weight_says_nothing_about_another(dropout_p):
    batch, heads, length = 4, 3, 192
    query = np.zeros((batch, heads, length, 4), np.float32)
    identity = np.broadcast_to(np.eye(length, dtype=np.float32), (batch, heads, length, length))
    kept = attend(query, query, identity, dropout_p=dropout_p, rng=4) != 0
    centred = (kept - (1 - dropout_p)) / np.sqrt(dropout_p * (1 - dropout_p))
    for axis, most in {"batch": 3, "heads": 2, "queries": 17, "keys": 17}.items():
        along = np.moveaxis(centred, ["batch", "heads", "queries", "keys"].index(axis), 0)
        for distance in range(1, most + 1):
            products = along[distance:] * along[:-distance]
            assert abs(products.mean()) < 5 / np.sqrt(products.size), (axis, distance)


# ----------------------------------------------------------------------------------------------------------
# Hard numbers
# ----------------------------------------------------------------------------------------------------------


def _large_logits(random, sizes, dtype):
    query, key, value = operands(random, sizes, dtype)
    return 30 * query, 30 * key, value


def _one_hot(random, sizes, dtype):
    query, key, value = operands(random, sizes, dtype)
    return 1000 * query, 1000 * key, value


def _shifted_means(random, sizes, dtype):
    query, key, value = operands(random, sizes, dtype)
    return query + 10, key + 10, value + 1000


def _equal_scores(random, sizes, dtype):
    query, key, value = operands(random, sizes, dtype)
    return query, np.zeros_like(key), value


def _tiny_operands(random, sizes, dtype):
    query, key, value = operands(random, sizes, dtype)
    tiny = dtype(np.sqrt(np.finfo(dtype).smallest_normal))
    return query * tiny, key * tiny, value


def _huge_values(random, sizes, dtype):
    query, key, value = operands(random, sizes, dtype)
    return query, key, value * dtype(np.finfo(dtype).max / 64)


def _rising_scores(random, sizes, dtype):
    """The largest scores come last: the running maximum of an online softmax moves with every tile."""
    query, key, value = operands(random, sizes, dtype)
    ramp = np.linspace(-20, 20, sizes.key_length, dtype=dtype)[:, None]
    return np.abs(query), key + ramp, value


def _falling_scores(random, sizes, dtype):
    query, key, value = _rising_scores(random, sizes, dtype)
    return query, key[..., ::-1, :], value


HARD_INPUTS = [
    _large_logits, _one_hot, _shifted_means, _equal_scores, _tiny_operands, _huge_values, _rising_scores,
    _falling_scores,
]  # fmt: skip


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("hard", HARD_INPUTS, ids=lambda hard: hard.__name__[1:])
@pytest.mark.parametrize("query_length", [33, 3])
def test_hard_numbers_are_as_accurate_as_numpy(query_length, hard, dtype, product_isa):
    sizes = Sizes(query_length, 197, 40, 24)
    inputs = hard(np.random.default_rng(19), sizes, dtype)
    for arguments in ({}, {"causal": "lower_right"}):
        result = attend(*inputs, **arguments, **EVERYTHING)
        assert_as_accurate_as_numpy(result, reference.attention, *inputs, **arguments, orders=8)


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_denormal_values_cost_at_most_the_smallest_normal_number_per_key(dtype, product_isa):
    """Denormals are flushed to zero inside the kernels, where they are up to 200 times slower."""
    query, key, value = operands(np.random.default_rng(19), Sizes(33, 197, 40, 24), dtype)
    smallest = np.finfo(dtype).smallest_normal
    for size in (0.1, 1, 64):
        small = value * (dtype(size) * smallest)
        exact = reference.attention(query, key, small, dtype=np.longdouble).output
        assert np.abs(attend(query, key, small) - exact).max() <= 197 * smallest


@pytest.mark.parametrize("bias", [np.finfo(np.float32).min, -1e30, 1e30, np.finfo(np.float32).max])
def test_a_finite_bias_never_masks(bias, product_isa):
    inputs = operands(np.random.default_rng(20), Sizes(), np.float32)
    bias = np.full((1, 97), bias, np.float32)
    result = attend(*inputs, bias=bias, **EVERYTHING)
    np.testing.assert_allclose(
        result.weights, 1 / 97, rtol=1e-6
    )  # the bias swallows the scores: all keys are equal
    np.testing.assert_allclose(
        result.output, reference.attention(*inputs, bias=bias).output, rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("extreme", [1e30, -1e30, 3e38])
def test_a_score_beyond_all_others_takes_its_row(extreme, product_isa):
    query, key, value = operands(np.random.default_rng(21), Sizes(), np.float32)
    bias = np.zeros((33, 97), np.float32)
    bias[:, 40] = extreme
    result = attend(query, key, value, bias=bias, return_weights=True)
    assert_as_accurate_as_numpy(result, reference.attention, query, key, value, bias=bias)
    assert (result.weights[..., 40] == (extreme > 0)).all()


@pytest.mark.parametrize("precision", ["highest", "high", "medium", "ieee"])
@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_no_precision_is_less_accurate_than_it_promises(precision, dtype, product_isa):
    inputs = operands(np.random.default_rng(21), Sizes(130, 197, 40, 24), dtype)
    output = attend(*inputs, precision=precision)
    if dtype == np.float64 or precision in ("highest", "ieee"):
        assert_as_accurate_as_numpy(
            output, lambda *x, dtype: reference.attention(*x, dtype=dtype).output, *inputs
        )
    else:
        promised = {"high": 1e-5, "medium": 1e-2}[precision]
        assert reference.error(output, reference.attention(*inputs).output) < promised
    with blasformer.precision(precision):
        assert same_bits(attend(*inputs), output)


def test_denormals_outside_the_call_stay_as_they_were():
    inputs = operands(np.random.default_rng(22), Sizes(), np.float32)
    attend(*inputs)
    assert np.float32(1e-40) * np.float32(0.5) > 0


# ----------------------------------------------------------------------------------------------------------
# Empty arrays
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes",
    [
        Sizes(batch=(0,)),
        Sizes(query_length=0),
        Sizes(key_length=0),
        Sizes(query_length=0, key_length=0),
        Sizes(batch=(2, 0)),
    ],
)
@pytest.mark.parametrize("kind", ["none", "mask bhij", "bias bhij", "key lengths", "sinks", "dropout"])
def test_empty_axes_give_empty_or_zero_results(sizes, kind):
    random = np.random.default_rng(23)
    inputs = operands(random, sizes, np.float32)
    arguments = ARGUMENTS[kind](random, sizes, np.float32)
    result = attend(*inputs, **arguments, **EVERYTHING)
    assert result.output.shape == sizes.output
    assert (result.output == 0).all()
    assert result.weights.shape == sizes.scores
    if sizes.key_length == 0:
        assert (result.logsumexp == -np.inf).all()


# ----------------------------------------------------------------------------------------------------------
# Numbers worked out by hand
# ----------------------------------------------------------------------------------------------------------


def test_the_worked_example_of_five_ones(product_isa):
    query = np.ones((5, 1))
    key, value = np.arange(2.0, 7.0)[:, None], np.arange(7.0, 12.0)[:, None]
    result = attend(query, key, value, scale=1.0, return_weights=True)
    weights = [0.01165623, 0.03168492, 0.08612854, 0.23412166, 0.63640865]
    np.testing.assert_allclose(result.weights, np.broadcast_to(weights, (5, 5)), atol=5e-9)
    np.testing.assert_allclose(result.output, 10.45194, atol=5e-6)


def test_the_worked_example_of_the_identity(product_isa):
    identity = np.eye(2)
    weights = attend(identity, identity, identity, return_weights=True).weights
    np.testing.assert_allclose(weights, [[0.66976155, 0.33023845], [0.33023845, 0.66976155]], atol=5e-9)
