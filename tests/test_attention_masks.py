"""Who may attend to whom: every reading of every mask, and that what is masked has no influence at all."""

import itertools
import time

import blasformer
import numpy as np
import pytest
import reference
from attention_cases import ARGUMENTS, FEW, MANY, Sizes, normal, operands
from reference import assert_as_accurate_as_numpy

attend = blasformer.scaled_dot_product_attention
EVERYTHING = {"return_weights": True, "return_logsumexp": True}
NOT_MASKS = {"alibi_slopes", "sinks", "softcap", "scale", "dropout_p", "rng"}
NOT_EXPLAINED = NOT_MASKS | {"bias"}
POISON = [np.nan, np.inf, -np.inf]


def masks_only(arguments):
    return {name: value for name, value in arguments.items() if name not in NOT_MASKS}


def explainable(arguments):
    return {name: value for name, value in arguments.items() if name not in NOT_EXPLAINED}


def picture(text):
    """Rows of x (may attend) and . (may not)."""
    return np.array([[cell == "x" for cell in row] for row in text.split()])


def explained(query_length, key_length, **arguments):
    return blasformer.explain_mask((1, query_length, 4), (1, key_length, 4), **arguments)[0]


# ----------------------------------------------------------------------------------------------------------
# The picture
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "sizes", [Sizes(), Sizes(130, 33, heads=3, kv_heads=1), Sizes(5, 7, batch=(2, 3)), Sizes(0, 3)]
)
@pytest.mark.parametrize("kind", ARGUMENTS)
def test_explain_mask_is_the_conjunction_of_all_masks(kind, sizes):
    arguments = explainable(ARGUMENTS[kind](np.random.default_rng(0), sizes, np.float32))
    explanation = blasformer.explain_mask(sizes.query, sizes.key, **arguments)
    assert explanation.dtype == bool
    np.testing.assert_array_equal(explanation, reference.allowed(sizes.query, sizes.key, **arguments))


@pytest.mark.parametrize(
    ("query_length", "key_length", "arguments", "expected"),
    [
        (3, 3, {"causal": True}, "x.. xx. xxx"),
        (2, 5, {"causal": "upper_left"}, "x.... xx..."),
        (2, 5, {"causal": "lower_right"}, "xxxx. xxxxx"),
        (5, 2, {"causal": "upper_left"}, "x. xx xx xx xx"),
        (5, 2, {"causal": "lower_right"}, ".. .. .. x. xx"),
        (1, 4, {"causal": "lower_right"}, "xxxx"),
        (1, 4, {"causal": "upper_left"}, "x..."),
        (2, 5, {"causal": True, "query_offset": 1}, "xx... xxx.."),
        (2, 5, {"causal": True, "query_offset": -1}, "..... x...."),
        (4, 4, {"window": (1, 0)}, "x... xx.. .xx. ..xx"),
        (4, 4, {"window": (0, 0)}, "x... .x.. ..x. ...x"),
        (4, 4, {"window": (1, 1)}, "xx.. xxx. .xxx ..xx"),
        (4, 4, {"window": (None, 1)}, "xx.. xxx. xxxx xxxx"),
        (4, 4, {"window": (1, None)}, "xxxx xxxx .xxx ..xx"),
        (4, 4, {"window": (None, None)}, "xxxx xxxx xxxx xxxx"),
        (2, 5, {"window": (1, 1), "query_offset": 2}, ".xxx. ..xxx"),
        (2, 5, {"window": (1, None), "causal": "lower_right"}, "..xx. ...xx"),
        (3, 3, {"key_lengths": [2]}, "xx. xx. xx."),
        (3, 3, {"query_lengths": [2]}, "xxx xxx ..."),
        (3, 3, {"query_segments": [[0, 0, 7]], "key_segments": [[7, 0, 0]]}, ".xx .xx x.."),
        (3, 3, {"causal": True, "key_lengths": [1]}, "x.. x.. x.."),
        (2, 2, {"mask": np.array([[True, False]])}, "x. x."),
    ],
)
def test_masks_mean_what_they_say(query_length, key_length, arguments, expected):
    np.testing.assert_array_equal(explained(query_length, key_length, **arguments), picture(expected))


def hidden_by(pattern, queries, keys):
    """Pairs that a bias of -inf hides: parts of tiles and blocks, or all of them but something."""
    hidden = np.zeros((queries, keys), bool)
    if pattern == "corners":
        hidden[0, 0] = hidden[0, -1] = hidden[-1, 0] = hidden[-1, -1] = True
    elif pattern == "all but a corner of each tile":
        hidden[:] = True
        hidden[::16, 0] = hidden[::16, 128:129] = False
    elif pattern == "all but one pair":
        hidden[:] = True
        hidden[queries // 2, keys // 2] = False
    elif pattern == "later keys":
        hidden[:] = ~np.tri(queries, keys, dtype=bool)
    elif pattern == "one pair":
        hidden[queries // 2, keys // 2] = True
    return hidden


@pytest.mark.parametrize(
    "pattern", ["corners", "all but a corner of each tile", "all but one pair", "later keys", "one pair"]
)
@pytest.mark.parametrize("lengths", [(3, 131), (70, 261), (33, 7)])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_bias_of_minus_infinity_is_the_mask_it_stands_for(pattern, lengths, dtype, product_isa):
    """Also where a mask hides what the bias leaves of a tile."""
    random = np.random.default_rng(9)
    sizes = Sizes(*lengths)
    query, key, value = operands(random, sizes, dtype)
    d_output = normal(random, sizes.output, dtype)
    bias = normal(random, sizes.scores, dtype)
    hidden = hidden_by(pattern, *lengths)
    first_of_tiles = np.arange(lengths[0])[:, None] % 16 != 0
    for mask in (None, np.broadcast_to(first_of_tiles, hidden.shape)):
        output, saved = blasformer.attention_forward(
            query, key, value, bias=np.where(hidden, dtype(-np.inf), bias), mask=mask
        )
        expected, expected_saved = blasformer.attention_forward(
            query, key, value, bias=bias, mask=~hidden if mask is None else mask & ~hidden
        )
        np.testing.assert_array_equal(output, expected)
        grads = blasformer.attention_backward(saved, d_output)
        for part, expected_part in zip(
            grads[:4], blasformer.attention_backward(expected_saved, d_output)[:4], strict=True
        ):
            np.testing.assert_array_equal(part, expected_part)


@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("query_length", [130, FEW])
def test_any_mask_equals_the_boolean_mask_it_stands_for(query_length, kind, product_isa):
    """Skipping a tile must not differ from masking each of its entries."""
    sizes = Sizes(query_length, 257, 24, 16)
    random = np.random.default_rng(1)
    inputs = operands(random, sizes, np.float32)
    arguments = ARGUMENTS[kind](random, sizes, np.float32)
    masks = masks_only(arguments)
    others = {name: value for name, value in arguments.items() if name not in masks or name == "bias"}
    if "alibi_slopes" in others:
        offset = arguments.get("query_offset")
        others["query_offset"] = sizes.key_length - sizes.query_length if offset is None else offset
    as_mask = reference.allowed(sizes.query, sizes.key, **masks)
    result, expected = (
        attend(*inputs, **arguments, **EVERYTHING),
        attend(*inputs, **others, mask=as_mask, **EVERYTHING),
    )
    for part, expected_part in zip(result, expected, strict=True):
        np.testing.assert_array_equal(part, expected_part)


PAIRS = list(itertools.combinations(
        ["mask bhij", "bias bhij", "causal lower right", "window at offsets", "query lengths", "key lengths",
         "unsorted segments", "alibi per sequence", "sinks", "softcap", "scale", "dropout"], 2
    ))  # fmt: skip


@pytest.mark.parametrize("pair", PAIRS, ids=" + ".join)
def test_every_two_arguments_compose(pair):
    sizes = Sizes(37, 101, 9, 7)
    random = np.random.default_rng(2)
    inputs = operands(random, sizes, np.float32)
    arguments = {}
    for kind in pair:
        arguments |= ARGUMENTS[kind](random, sizes, np.float32)
    if arguments.get("causal") == "lower_right" and "query_offset" in arguments:
        arguments["causal"] = True
    result = attend(*inputs, **arguments, **EVERYTHING)
    assert_as_accurate_as_numpy(result, reference.attention, *inputs, **arguments)


# ----------------------------------------------------------------------------------------------------------
# Rows that may attend to nothing
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("query_length", [35, FEW])
def test_a_row_that_may_attend_to_nothing_is_zero(query_length, kind, dtype):
    sizes = Sizes(query_length, 99, 9, 7)
    random = np.random.default_rng(3)
    inputs = operands(random, sizes, dtype)
    arguments = ARGUMENTS[kind](random, sizes, dtype)
    empty = ~reference.allowed(sizes.query, sizes.key, **masks_only(arguments)).any(-1)
    output, weights, logsumexp = attend(*inputs, **arguments, **EVERYTHING)
    assert (output[empty] == 0).all()
    assert (weights[empty] == 0).all()
    assert (logsumexp[empty] == -np.inf).all()
    assert np.isfinite(logsumexp[~empty]).all()


@pytest.mark.parametrize(
    "arguments",
    [
        {"mask": np.zeros((1, 1), bool)},
        {"bias": np.full((33, 97), -np.inf, np.float32)},
        {"key_lengths": np.zeros(2, int)},
        {"query_lengths": np.zeros(2, int)},
        {"causal": True, "query_offset": -33},
        {"window": (0, 0), "query_offset": 97},
        {"query_segments": np.zeros((2, 33), int), "key_segments": np.ones((2, 97), int)},
        {"mask": np.zeros((1, 1), bool), "sinks": np.ones(4, np.float32)},
    ],
    ids=lambda arguments: ", ".join(arguments),
)
def test_masking_everything_gives_zeros(arguments, product_isa):
    inputs = operands(np.random.default_rng(4), Sizes(), np.float32)
    output, weights, logsumexp = attend(*inputs, **arguments, **EVERYTHING)
    assert (output == 0).all()
    assert (weights == 0).all()
    assert (logsumexp == -np.inf).all()


# ----------------------------------------------------------------------------------------------------------
# NaN and Inf
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.float16], ids=lambda dtype: dtype.__name__)
@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("lengths", [(67, 199), (FEW, 199), (FEW, MANY)])
def test_garbage_reaches_only_the_rows_that_may_attend_to_it(lengths, kind, dtype, product_isa):
    """The other rows keep their bits, whatever is in the keys and values they may not see."""
    sizes = Sizes(*lengths, 24, 16)
    random = np.random.default_rng(5)
    query, key, value = operands(random, sizes, dtype)
    arguments = ARGUMENTS[kind](random, sizes, dtype)
    may_attend = reference.allowed(sizes.query, sizes.key, **masks_only(arguments))

    bad = np.arange(sizes.key_length) == random.integers(130, lengths[1], (*sizes.key[:-2], 1))
    bad |= ~may_attend.reshape(*sizes.key[:-2], -1, *sizes.scores[-2:]).any(
        (-3, -2)
    )  # and all that nobody sees
    garbage = random.choice(POISON, bad.sum()).astype(dtype)
    bad_key, bad_value = key.copy(), value.copy()
    bad_key[bad] = bad_value[bad] = garbage[:, None]

    group = sizes.heads // sizes.kv_heads
    reached = (may_attend & np.repeat(bad, group, axis=-2)[..., None, :]).any(-1)
    clean = attend(query, key, value, **arguments, **EVERYTHING)
    result = attend(query, bad_key, bad_value, **arguments, **EVERYTHING)
    for part, clean_part in zip(result, clean, strict=True):
        np.testing.assert_array_equal(part[~reached], clean_part[~reached])


@pytest.mark.parametrize("poisoned", ["key", "value"])
@pytest.mark.parametrize("kind", ARGUMENTS)
@pytest.mark.parametrize("lengths", [(67, 199), (FEW, 199), (FEW, MANY)])
def test_a_nan_reaches_all_the_rows_that_may_attend_to_it(lengths, kind, poisoned, product_isa):
    """Also where its weight is 0 or dropped, for 0 * NaN is NaN. A value does not touch the weights."""
    sizes = Sizes(*lengths, 24, 16)
    random = np.random.default_rng(5)
    query, key, value = operands(random, sizes, np.float32)
    arguments = ARGUMENTS[kind](random, sizes, np.float32)
    bad = np.arange(sizes.key_length) == random.integers(0, lengths[1], (*sizes.key[:-2], 1))
    may_attend = reference.allowed(sizes.query, sizes.key, **masks_only(arguments))
    reached = (may_attend & np.repeat(bad, sizes.heads // sizes.kv_heads, axis=-2)[..., None, :]).any(-1)
    clean = attend(query, key, value, **arguments, **EVERYTHING)
    {"key": key, "value": value}[poisoned][bad] = np.nan
    result = attend(query, key, value, **arguments, **EVERYTHING)
    assert np.isnan(result.output[reached]).all()
    np.testing.assert_array_equal(result.output[~reached], clean.output[~reached])
    for part, clean_part in zip(result[1:], clean[1:], strict=True):
        if poisoned == "value":
            np.testing.assert_array_equal(part, clean_part)
        else:
            np.testing.assert_array_equal(part[~reached], clean_part[~reached])
            assert np.isnan(
                part[reached] if part.ndim == reached.ndim else part[may_attend & reached[..., None]]
            ).all()


@pytest.mark.parametrize("operand", range(3), ids=["query", "key", "value"])
def test_a_nan_in_an_attended_position_makes_its_rows_nan_and_no_other(operand, product_isa):
    sizes = Sizes(67, 199, 24, 16)
    inputs = operands(np.random.default_rng(6), sizes, np.float32)
    clean = attend(*inputs, causal="upper_left")
    inputs[operand][1, 1, 40, :] = np.nan
    result = attend(*inputs, causal="upper_left")
    expected = np.zeros(clean.shape, bool)
    if operand == 0:
        expected[1, 1, 40] = True
    else:
        expected[1, 2:, 40:] = True  # the query heads that share key head 1, from row 40 on
    np.testing.assert_array_equal(np.isnan(result), expected)
    np.testing.assert_array_equal(result[~expected], clean[~expected])


def test_a_nan_in_one_feature_of_an_attended_key_makes_the_row_nan(product_isa):
    query, key, value = operands(np.random.default_rng(7), Sizes(), np.float32)
    key[0, 0, 96, 7] = np.nan
    output, weights, logsumexp = attend(query, key, value, **EVERYTHING)
    for part in (output, weights, logsumexp):
        assert np.isnan(part[0, :2]).all()
        assert np.isfinite(part[0, 2:]).all()
        assert np.isfinite(part[1]).all()


@pytest.mark.parametrize("garbage", POISON)
def test_the_bias_behind_a_mask_has_no_influence(garbage, product_isa):
    sizes = Sizes()
    random = np.random.default_rng(8)
    inputs = operands(random, sizes, np.float32)
    mask = random.random(sizes.scores) < 0.5
    bias = normal(random, sizes.scores, np.float32)
    clean = attend(*inputs, mask=mask, bias=bias, **EVERYTHING)
    result = attend(*inputs, mask=mask, bias=np.where(mask, bias, np.float32(garbage)), **EVERYTHING)
    for part, clean_part in zip(result, clean, strict=True):
        np.testing.assert_array_equal(part, clean_part)


def test_an_infinite_key_acts_as_the_formula_says(product_isa):
    """A score of -inf takes no weight. One of +inf leaves inf / inf: NaN, for its row alone."""
    query, key, value = operands(np.random.default_rng(7), Sizes(33, 97, 8, 5, 1, 1, (1,)), np.float32)
    key[0, 0, 40] = 0
    key[0, 0, 40, 3] = np.inf
    query[0, 0, :, 3] = np.where(np.arange(33) % 2, 1, -1)
    output = attend(query, key, value)
    assert np.isnan(output[0, 0, 1::2]).all()
    without = np.arange(97) != 40
    expected = reference.attention(query, key[:, :, without], value[:, :, without]).output
    np.testing.assert_allclose(output[0, 0, ::2], expected[0, 0, ::2], rtol=0, atol=1e-6)


@pytest.mark.parametrize("garbage", POISON)
def test_garbage_in_padded_queries_has_no_influence(garbage, product_isa):
    query, key, value = operands(np.random.default_rng(9), Sizes(), np.float32)
    clean = attend(query, key, value, query_lengths=[20, 33], **EVERYTHING)
    query[0, :, 20:] = garbage
    result = attend(query, key, value, query_lengths=[20, 33], **EVERYTHING)
    for part, clean_part in zip(result, clean, strict=True):
        np.testing.assert_array_equal(part, clean_part)


def test_a_score_of_plus_infinity_makes_its_row_nan_as_the_formula_does(product_isa):
    query, key, value = operands(np.random.default_rng(10), Sizes(), np.float32)
    bias = np.zeros((33, 97), np.float32)
    clean = attend(query, key, value, bias=bias)
    bias[5, 60] = np.inf
    output = attend(query, key, value, bias=bias)
    assert np.isnan(output[:, :, 5]).all()
    others = np.arange(33) != 5
    np.testing.assert_array_equal(output[:, :, others], clean[:, :, others])


# ----------------------------------------------------------------------------------------------------------
# What masks are for
# ----------------------------------------------------------------------------------------------------------


def test_a_causal_output_ignores_later_keys(product_isa):
    sizes = Sizes(130, 130, 24, 16)
    query, key, value = operands(np.random.default_rng(11), sizes, np.float32)
    before = attend(query, key, value, causal=True)
    key[..., 70:, :] += 1
    value[..., 70:, :] -= 1
    after = attend(query, key, value, causal=True)
    np.testing.assert_array_equal(after[..., :70, :], before[..., :70, :])
    assert (after[..., 70:, :] != before[..., 70:, :]).any(-1).all()


def test_padding_keys_changes_nothing(product_isa):
    sizes = Sizes(33, 60, 24, 16)
    query, key, value = operands(np.random.default_rng(12), sizes, np.float32)
    padding = [(0, 0), (0, 0), (0, 139), (0, 0)]
    padded_key, padded_value = (np.pad(x, padding, constant_values=np.nan) for x in (key, value))
    result = attend(query, padded_key, padded_value, key_lengths=[60, 60])
    np.testing.assert_array_equal(result, attend(query, key, value))


def test_packed_documents_attend_as_if_alone(product_isa):
    lengths = [40, 1, 97, 12]
    total = sum(lengths)
    sizes = Sizes(total, total, 24, 16, batch=(1,))
    query, key, value = operands(np.random.default_rng(13), sizes, np.float32)
    segments = np.repeat(np.arange(4), lengths)[None]
    for causal in (False, True):
        together = attend(query, key, value, query_segments=segments, key_segments=segments, causal=causal)
        for document in range(4):
            of_document = (..., slice(sum(lengths[:document]), sum(lengths[: document + 1])), slice(None))
            alone = attend(query[of_document], key[of_document], value[of_document], causal=causal)
            np.testing.assert_allclose(together[of_document], alone, rtol=0, atol=2e-6)


def test_decoding_one_query_at_a_time_equals_the_causal_whole(product_isa):
    sizes = Sizes(37, 37, 24, 16)
    query, key, value = operands(np.random.default_rng(14), sizes, np.float32)
    whole = attend(query, key, value, causal=True)
    for i in range(37):
        step = attend(query[..., i : i + 1, :], key, value, causal=True, query_offset=i)
        np.testing.assert_allclose(step, whole[..., i : i + 1, :], rtol=0, atol=2e-6)


def test_alibi_is_the_bias_it_stands_for(product_isa):
    sizes = Sizes(33, 97, 24, 16)
    inputs = operands(np.random.default_rng(15), sizes, np.float64)
    slopes = np.array([0.5, 0.25, 0.125, 0.0625])
    distance = np.abs(np.arange(33)[:, None] + 64 - np.arange(97))
    result = attend(*inputs, alibi_slopes=slopes, query_offset=64)
    expected = attend(*inputs, bias=-slopes[:, None, None] * distance)
    np.testing.assert_allclose(result, expected, rtol=0, atol=1e-14)


# ----------------------------------------------------------------------------------------------------------
# Tiles nobody may look into are skipped
# ----------------------------------------------------------------------------------------------------------

LONG = Sizes(3000, 3000, 32, 32, 2, 2, (1,))


def seconds_of_one_core(*calls):
    """The least processor time of each call over several turns, which other work hardly changes."""
    least = [float("inf")] * len(calls)
    with blasformer.num_threads(1):
        for _ in range(5):
            for index, call in enumerate(calls):
                began = time.process_time()
                call()
                least[index] = min(least[index], time.process_time() - began)
    return least


@pytest.mark.parametrize(
    ("arguments", "share"),
    [
        ({"causal": True}, 0.5),
        ({"window": (100, 100)}, 0.07),
        ({"causal": True, "window": (100, 0)}, 0.035),
        ({"key_lengths": [300]}, 0.1),
        ({"query_lengths": [300]}, 0.1),
        ({"causal": True, "query_offset": -2400}, 0.02),
        ({"query_segments": np.arange(3000)[None] // 300, "key_segments": np.arange(3000)[None] // 300}, 0.1),
    ],
    ids=lambda value: ", ".join(value) if isinstance(value, dict) else None,
)
@pytest.mark.parametrize("direction", ["forward", "backward"])
def test_what_is_masked_as_a_whole_is_skipped(direction, arguments, share):
    """share: the part of the scores that may be attended to. Half of the rest is for edges and noise."""
    query, key, value = operands(np.random.default_rng(16), LONG, np.float32)

    def work(**arguments):
        if direction == "forward":
            return lambda: attend(query, key, value, **arguments)
        _, saved = blasformer.attention_forward(query, key, value, **arguments)
        return lambda: blasformer.attention_backward(saved, value)

    masked, whole = seconds_of_one_core(work(**arguments), work())
    assert masked < (share + 0.5 * (1 - share)) * whole


# ----------------------------------------------------------------------------------------------------------
# The plan
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_planned_memory_grows_linearly_with_length(dtype):
    def peak_bytes(length):
        shape = (1, length, 64)
        return blasformer.attention_plan(shape, shape, shape, dtype).peak_bytes

    short, long = peak_bytes(8192), peak_bytes(65536)
    output = 65536 * 64 * np.dtype(dtype).itemsize
    assert output <= long <= 8.5 * short
    assert long < 2 * output  # nowhere near length squared


def test_the_plan_names_kernel_tiles_and_threads(product_isa):
    with blasformer.num_threads(2):
        plan = blasformer.attention_plan((2, 8, 512, 64), (2, 2, 512, 64), (2, 2, 512, 64), np.float32)
    assert plan.kernel == product_isa
    assert plan.threads == 2
    assert plan.query_tile > 0
    assert plan.key_block > 0
    assert plan.queries_per_task % plan.query_tile == 0
    assert plan.tasks == 2 * 8 * -(-512 // plan.queries_per_task)


def test_the_keys_of_a_single_query_are_work_for_many_threads(product_isa):
    with blasformer.num_threads(4):
        plan = blasformer.attention_plan((1, 1, 64), (1, 32768, 64))
    assert plan.threads == 4
    assert plan.queries_per_task == 1
    assert plan.tasks == -(-32768 // plan.keys_per_task) >= 8


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64], ids=lambda dtype: dtype.__name__)
def test_the_plan_counts_what_a_call_is_asked_to_return(dtype):
    shape = (2, 4, 40, 8)
    x = np.ones(shape, dtype)
    alone = blasformer.attention_plan(shape, shape, shape, dtype).peak_bytes
    for selection in (True, blasformer.WeightSelection(heads=[0, -1], rows=slice(3), mean=True)):
        asked = {"return_weights": selection, "return_logsumexp": True}
        plan = blasformer.attention_plan(shape, shape, shape, dtype, **asked)
        _, weights, logsumexp = blasformer.scaled_dot_product_attention(x, x, x, **asked)
        assert plan.peak_bytes == alone + weights.nbytes + logsumexp.nbytes


def test_the_plan_is_that_of_the_mode_a_call_asks_for():
    shapes = (1, 32, 1, 64), (1, 8, 32768, 64)
    with blasformer.num_threads(2):
        cut = blasformer.attention_plan(*shapes)
        whole = blasformer.attention_plan(*shapes, batch_invariant=True)
        with blasformer.batch_invariant():
            assert blasformer.attention_plan(*shapes) == whole
            assert blasformer.attention_plan(*shapes, batch_invariant=False) == cut
    assert cut.keys_per_task < whole.keys_per_task == 32768
    with blasformer.use_isa("amx_reference"):
        kernels = [
            blasformer.attention_plan((8, 512, 64), (8, 512, 64), precision=mode).kernel
            for mode in ("highest", "ieee")
        ]
    assert kernels[0] == "amx_reference" != kernels[1]
    for arguments, error in (({"precision": "low"}, ValueError), ({"batch_invariant": 1}, TypeError)):
        with pytest.raises(error, match=f"{next(iter(arguments))} must be"):
            blasformer.attention_plan(*shapes, **arguments)
