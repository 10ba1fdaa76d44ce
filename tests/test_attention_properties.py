"""Attention under any combination of arguments, shapes, layouts and dtypes that hypothesis thinks of."""

import blasformer
import hypothesis.strategies as st
import numpy as np
import reference
from attention_cases import LAYOUTS, Sizes, normal, operands
from hypothesis import given
from reference import assert_as_accurate_as_numpy

LENGTHS = st.sampled_from([0, 1, 2, 7, 16, 17, 33, 64, 95, 96, 97, 130, 193])
DIMS = st.sampled_from([1, 2, 5, 8, 16, 17, 33, 64, 70])


@st.composite
def all_sizes(draw):
    kv_heads = draw(st.integers(1, 3))
    return Sizes(
        query_length=draw(LENGTHS),
        key_length=draw(LENGTHS),
        dim=draw(DIMS),
        value_dim=draw(DIMS),
        heads=kv_heads * draw(st.integers(1, 3)),
        kv_heads=kv_heads,
        batch=draw(st.sampled_from([(), (1,), (2,), (3,), (2, 2)])),
    )


def sometimes(draw):
    return draw(st.integers(0, 3)) == 0


def broadcast_shape(draw, shape):
    """A shape that broadcasts to `shape`: fewer axes, and 1 along some of them.

    Rank 3 keeps the heads, because a first axis that is the batch is refused.
    """
    rank = draw(st.integers(0, len(shape)))
    return tuple(1 if draw(st.booleans()) else extent for extent in shape[len(shape) - rank :])


@st.composite
def mask_arguments(draw, random, sizes, dtype):
    arguments = {}
    if sometimes(draw):
        shape = broadcast_shape(draw, sizes.scores)
        arguments["mask"] = np.asarray(random.random(shape) < draw(st.sampled_from([0.1, 0.5, 0.95])))
    if sometimes(draw):
        bias = np.asarray(normal(random, broadcast_shape(draw, sizes.scores), dtype), dtype)
        if sometimes(draw):
            bias = np.where(random.random(bias.shape) < 0.3, dtype(-np.inf), bias)
        arguments["bias"] = bias
    arguments["causal"] = draw(st.sampled_from([False, False, True, "upper_left", "lower_right"]))
    windowed = sometimes(draw)
    if windowed:
        side = st.none() | st.integers(0, 40)
        arguments["window"] = (draw(side), draw(side))
    if sometimes(draw):
        arguments["alibi_slopes"] = random.random(
            (*sizes.batch, sizes.heads)[draw(st.sampled_from([0, -1])) :]
        ).astype(dtype)
    placed = windowed or "alibi_slopes" in arguments
    unplaced = sizes.query_length != sizes.key_length and arguments["causal"] not in (
        "upper_left",
        "lower_right",
    )
    if arguments["causal"] in (False, True) and (
        ((placed or arguments["causal"]) and unplaced) or sometimes(draw)
    ):
        low, high = -sizes.query_length, sizes.key_length + 2
        one_each = len(sizes.batch) == 1 and draw(st.booleans())
        arguments["query_offset"] = (
            random.integers(low, high, sizes.batch) if one_each else draw(st.integers(low, high))
        )
    if len(sizes.batch) == 1:
        if sometimes(draw):
            arguments["query_lengths"] = random.integers(0, sizes.query_length + 1, sizes.batch)
        if sometimes(draw):
            arguments["key_lengths"] = random.integers(0, sizes.key_length + 1, sizes.batch)
        if sometimes(draw):
            highest = draw(st.integers(1, 4))
            for name, length in (("query_segments", sizes.query_length), ("key_segments", sizes.key_length)):
                arguments[name] = random.integers(0, highest, (*sizes.batch, length))
    return arguments


@st.composite
def calls(draw):
    """(sizes, query, key, value, d_output, arguments)."""
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    sizes, dtype = draw(all_sizes()), draw(st.sampled_from([np.float32, np.float64]))
    arrange = [LAYOUTS[draw(st.sampled_from(sorted(LAYOUTS)))] for _ in range(4)]
    arrays = (*operands(random, sizes, dtype), normal(random, sizes.output, dtype))
    arrays = tuple(layout(x) for layout, x in zip(arrange, arrays, strict=True))
    arguments = draw(mask_arguments(random, sizes, dtype))
    if sometimes(draw):
        arguments["sinks"] = normal(random, (sizes.heads,), dtype)
    if sometimes(draw):
        arguments["softcap"] = draw(st.sampled_from([0.5, 3.0, 50.0]))
    if sometimes(draw):
        arguments["scale"] = draw(st.sampled_from([-1.0, 0.0, 0.3, 2.0]))
    if sometimes(draw):
        arguments |= {
            "dropout_p": draw(st.sampled_from([0.1, 0.5, 0.99])),
            "rng": draw(st.integers(0, 2**40)),
        }
    return sizes, *arrays, arguments


def for_the_reference(sizes, arguments):
    """causal=True without an offset is upper left, which is the only reading of a square."""
    if arguments["causal"] is True and "query_offset" not in arguments:
        assert sizes.query_length == sizes.key_length
        return {**arguments, "causal": "upper_left"}
    return arguments


@given(call=calls())
def test_attention_is_as_accurate_as_numpy(call, product_isa):
    sizes, query, key, value, _, arguments = call
    result = blasformer.scaled_dot_product_attention(
        query, key, value, **arguments, return_weights=True, return_logsumexp=True
    )
    arguments = for_the_reference(sizes, arguments)
    assert_as_accurate_as_numpy(result, reference.attention, query, key, value, **arguments, orders=4)


@given(call=calls())
def test_gradients_are_as_accurate_as_numpy(call, product_isa):
    sizes, query, key, value, d_output, arguments = call
    _, saved = blasformer.attention_forward(query, key, value, **arguments)
    grads = blasformer.attention_backward(saved, d_output)
    arguments = for_the_reference(sizes, arguments)
    inputs = (query, key, value, d_output)
    terms = reference.attention_gradient_terms(*inputs, **arguments)
    assert_as_accurate_as_numpy(
        tuple(grads), reference.attention_gradients, *inputs, **arguments, factor=3, orders=4, terms=terms
    )


@given(call=calls())
def test_explain_mask_is_the_conjunction_of_all_masks(call):
    sizes, _, _, _, _, arguments = call
    for name in ("bias", "alibi_slopes", "sinks", "softcap", "scale", "dropout_p", "rng"):
        arguments.pop(name, None)
    if "window" in arguments and arguments["causal"] is False and "query_offset" not in arguments:
        assert sizes.query_length == sizes.key_length
    explanation = blasformer.explain_mask(sizes.query, sizes.key, **arguments)
    expected = reference.allowed(sizes.query, sizes.key, **for_the_reference(sizes, arguments))
    np.testing.assert_array_equal(explanation, expected)


@given(call=calls(), permutation_seed=st.integers(0, 1000))
def test_permuting_keys_and_values_together_changes_nothing(call, permutation_seed):
    sizes, query, key, value, _, arguments = call
    kept = {name: arguments[name] for name in ("sinks", "softcap", "scale") if name in arguments}
    order = np.random.default_rng(permutation_seed).permutation(sizes.key_length)
    result = blasformer.scaled_dot_product_attention(query, key, value, **kept)
    permuted = blasformer.scaled_dot_product_attention(
        query, key[..., order, :], value[..., order, :], **kept
    )
    np.testing.assert_allclose(permuted, result, rtol=0, atol=2e3 * np.finfo(query.dtype).eps)


@given(call=calls())
def test_attention_is_linear_in_the_values(call):
    sizes, query, key, value, _, arguments = call
    other = np.roll(value, 1, axis=-2) if sizes.key_length else value

    def attend(values):
        return blasformer.scaled_dot_product_attention(query, key, values, **arguments).astype(np.float64)

    bound = 200 * np.finfo(query.dtype).eps * (1 + np.abs(attend(value)).max(initial=0))
    np.testing.assert_allclose(attend(value + other), attend(value) + attend(other), rtol=0, atol=bound)
