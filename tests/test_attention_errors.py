"""Bad input to attention: one clear error each, that names the argument, what it must be and what it was."""

import re

import blasformer
import ml_dtypes
import numpy as np
import pytest

FLOAT = np.float32
QUERY = np.zeros((2, 4, 33, 8), FLOAT)
KEY = np.zeros((2, 2, 97, 8), FLOAT)
VALUE = np.zeros((2, 2, 97, 5), FLOAT)
ARRAY_OF_FLOATS = "must be a NumPy array of float32, float64, float16 or bfloat16, got "


def zeros(*shape, dtype=FLOAT):
    return np.zeros(shape, dtype)


OPERANDS = [
    # dtypes
    ({"query": [[1.0]]}, TypeError, f"query {ARRAY_OF_FLOATS}list"),
    ({"query": None}, TypeError, f"query {ARRAY_OF_FLOATS}NoneType"),
    ({"key": KEY.astype(np.int64)}, TypeError, f"key {ARRAY_OF_FLOATS}int64"),
    ({"value": VALUE.astype(bool)}, TypeError, f"value {ARRAY_OF_FLOATS}bool"),
    ({"query": QUERY.astype(np.complex64)}, TypeError, f"query {ARRAY_OF_FLOATS}complex64"),
    ({"query": QUERY.astype(object)}, TypeError, f"query {ARRAY_OF_FLOATS}object"),
    ({"query": QUERY.astype(">f4")}, TypeError, f"query {ARRAY_OF_FLOATS}float32 in foreign byte order"),
    ({"key": KEY.astype(np.float64)}, TypeError, "key must have the dtype of query, float32, got float64"),
    (
        {"value": VALUE.astype(np.float16)},
        TypeError,
        "value must have the dtype of query, float32, got float16",
    ),
    (
        {"query": QUERY.astype(ml_dtypes.bfloat16)},
        TypeError,
        "key must have the dtype of query, bfloat16, got float32",
    ),
    # shapes
    ({"query": zeros(3)}, ValueError, "query must have the shape (..., heads, length, dim), got (3,)"),
    ({"query": zeros(*[1] * 9)}, ValueError, "query must have at most 8 dimensions, got 9"),
    (
        {"key": KEY[0]},
        ValueError,
        "key must have as many dimensions as query (2, 4, 33, 8), got (2, 97, 8)",
    ),
    (
        {"key": zeros(3, 2, 97, 8), "value": zeros(3, 2, 97, 5)},
        ValueError,
        "key must agree with query (2, 4, 33, 8) in its leading dimensions, got (3, 2, 97, 8)",
    ),
    (
        {"key": zeros(2, 2, 97, 7)},
        ValueError,
        "key must have the last dimension of query (2, 4, 33, 8), got (2, 2, 97, 7)",
    ),
    (
        {"key": zeros(2, 3, 97, 8), "value": zeros(2, 3, 97, 5)},
        ValueError,
        "key must have a number of heads that divides that of query (2, 4, 33, 8), got (2, 3, 97, 8)",
    ),
    (
        {"value": zeros(2, 4, 97, 5)},
        ValueError,
        "value must have as many heads as key (2, 2, 97, 8), got (2, 4, 97, 5)",
    ),
    (
        {"value": zeros(2, 2, 96, 5)},
        ValueError,
        "value must have the length of key (2, 2, 97, 8), got (2, 2, 96, 5)",
    ),
    ({"query": zeros(2, 0, 33, 8)}, ValueError, "query must have at least one head, got (2, 0, 33, 8)"),
    (
        {"key": zeros(2, 0, 97, 8), "value": zeros(2, 0, 97, 5)},
        ValueError,
        "key must have at least one head, got (2, 0, 97, 8)",
    ),
    (
        {"query": zeros(2, 4, 33, 0), "key": zeros(2, 2, 97, 0)},
        ValueError,
        "query must have a last dimension of at least 1, got (2, 4, 33, 0)",
    ),
    (
        {"value": zeros(2, 2, 97, 0)},
        ValueError,
        "value must have a last dimension of at least 1, got (2, 2, 97, 0)",
    ),
]

READINGS = (
    "(query_length, key_length), rank 3 is (heads, query_length, key_length), "
    "rank 4 is (batch, heads, query_length, key_length)"
)
BROADCAST = "must broadcast to (..., heads, query_length, key_length) = (2, 4, 33, 97), got "
AMBIGUOUS = (
    'is ambiguous for query length 33 and key length 97: causal must be "upper_left" (key j <= query i) or '
    '"lower_right" (key j <= query i + key length - query length)'
)

MASKS = [
    (
        {"mask": np.ones((33, 97), int)},
        TypeError,
        "mask must be a NumPy array of bool (True = may attend), got int64",
    ),
    (
        {"mask": zeros(33, 97)},
        TypeError,
        "mask must be a NumPy array of bool (True = may attend), got float32; "
        "numbers to be added to scores are a bias",
    ),
    ({"mask": [[True]]}, TypeError, "mask must be a NumPy array of bool (True = may attend), got list"),
    ({"mask": np.ones((33, 96), bool)}, ValueError, f"mask {BROADCAST}(33, 96)"),
    ({"mask": np.ones((2, 97), bool)}, ValueError, f"mask {BROADCAST}(2, 97)"),
    ({"mask": np.ones((1, 2, 4, 33, 97), bool)}, ValueError, f"mask {BROADCAST}(1, 2, 4, 33, 97)"),
    (
        {"mask": np.ones((2, 33, 97), bool)},
        ValueError,
        f"mask {BROADCAST}(2, 33, 97): a rank-2 mask is {READINGS}",
    ),
    ({"mask": np.ones((2, 1, 97), bool)}, ValueError, "for one mask per batch entry pass mask[:, None]"),
    ({"bias": zeros(2, 33, 97)}, ValueError, f"bias {BROADCAST}(2, 33, 97): a rank-2 bias is {READINGS}"),
    ({"bias": zeros(33, 96)}, ValueError, f"bias {BROADCAST}(33, 96)"),
    (
        {"bias": zeros(33, 97, dtype=np.float64)},
        TypeError,
        "bias must have the dtype of query, float32, got float64",
    ),
    ({"bias": np.ones((33, 97), bool)}, TypeError, f"bias {ARRAY_OF_FLOATS}bool"),
    # positions
    ({"causal": True}, ValueError, f"causal=True {AMBIGUOUS}"),
    ({"causal": True}, ValueError, "or query_offset must be given"),
    ({"window": (1, 1)}, ValueError, f"window {AMBIGUOUS}"),
    ({"window": (None, 1)}, ValueError, f"window {AMBIGUOUS}"),
    ({"alibi_slopes": zeros(4)}, ValueError, f"alibi_slopes {AMBIGUOUS}"),
    (
        {"causal": "lower_left"},
        ValueError,
        'causal must be False, True, "upper_left" or "lower_right", got \'lower_left\'',
    ),
    ({"causal": 1}, TypeError, 'causal must be False, True, "upper_left" or "lower_right", got int'),
    ({"causal": None}, TypeError, 'causal must be False, True, "upper_left" or "lower_right", got NoneType'),
    (
        {"causal": "lower_right", "query_offset": 3},
        ValueError,
        'query_offset must not be given together with causal="upper_left" or "lower_right"',
    ),
    ({"causal": True, "query_offset": 1.5}, TypeError, "query_offset must be integers, got float64"),
    (
        {"causal": True, "query_offset": [1, 2, 3]},
        ValueError,
        "query_offset must be an integer or have the shape (batch,) = (2,), got (3,)",
    ),
    ({"causal": True, "query_offset": [2**62, 0]}, ValueError, "query_offset must lie in ["),
    ({"window": 3, "query_offset": 0}, TypeError, "window must be a pair (left, right), got 3"),
    (
        {"window": (1, 2, 3), "query_offset": 0},
        TypeError,
        "window must be a pair (left, right), got (1, 2, 3)",
    ),
    (
        {"window": (-1, 2), "query_offset": 0},
        ValueError,
        "window must be (left, right) with sides >= 0 or None, got left -1",
    ),
    (
        {"window": (1, -2), "query_offset": 0},
        ValueError,
        "window must be (left, right) with sides >= 0 or None, got right -2",
    ),
    (
        {"window": (1.5, 2), "query_offset": 0},
        TypeError,
        "window's sides must be an integer or None, got float",
    ),
    # lengths and segments
    ({"key_lengths": [97, 98]}, ValueError, "key_lengths must lie in [0, 97], got 98 for sequence 1"),
    ({"key_lengths": [-1, 97]}, ValueError, "key_lengths must lie in [0, 97], got -1 for sequence 0"),
    ({"query_lengths": [34, 1]}, ValueError, "query_lengths must lie in [0, 33], got 34 for sequence 0"),
    ({"key_lengths": [1.0, 2.0]}, TypeError, "key_lengths must be integers, got float64"),
    ({"key_lengths": [True, False]}, TypeError, "key_lengths must be integers, got bool"),
    (
        {"key_lengths": [1, 2, 3]},
        ValueError,
        "key_lengths must be an integer or have the shape (batch,) = (2,), got (3,)",
    ),
    (
        {"key_lengths": np.array([2**63 + 1, 1], np.uint64)},
        ValueError,
        "key_lengths must fit into 64-bit signed integers, got 9223372036854775809",
    ),
    (
        {"query_segments": zeros(2, 33, dtype=int)},
        ValueError,
        "query_segments and key_segments must be given together, got only query_segments",
    ),
    (
        {"key_segments": zeros(2, 97, dtype=int)},
        ValueError,
        "query_segments and key_segments must be given together, got only key_segments",
    ),
    (
        {"query_segments": zeros(2, 33, dtype=int), "key_segments": zeros(2, 96, dtype=int)},
        ValueError,
        "key_segments must have the shape (batch, length) = (2, 97), got (2, 96)",
    ),
    (
        {"query_segments": zeros(2, 33), "key_segments": zeros(2, 97)},
        TypeError,
        "query_segments must be integers, got float32",
    ),
]

NUMBERS = [
    (
        {"alibi_slopes": zeros(3), "query_offset": 0},
        ValueError,
        "alibi_slopes must have the shape (heads,) = (4,)",
    ),
    ({"alibi_slopes": np.ones(4, int), "query_offset": 0}, TypeError, f"alibi_slopes {ARRAY_OF_FLOATS}int64"),
    (
        {"alibi_slopes": zeros(4) + np.nan, "query_offset": 0},
        ValueError,
        "alibi_slopes must be finite, got nan",
    ),
    (
        {"alibi_slopes": zeros(4) + np.inf, "query_offset": 0},
        ValueError,
        "alibi_slopes must be finite, got inf",
    ),
    ({"sinks": zeros(2, 4)}, ValueError, "sinks must have the shape (heads,) = (4,), got (2, 4)"),
    (
        {"sinks": zeros(4, dtype=np.float64)},
        TypeError,
        "sinks must have the dtype of query, float32, got float64",
    ),
    ({"sinks": zeros(4) + np.nan}, ValueError, "sinks must "),
    ({"scale": np.nan}, ValueError, "scale must be a finite number, got nan"),
    ({"scale": np.inf}, ValueError, "scale must be a finite number, got inf"),
    ({"scale": "1"}, TypeError, "scale must be a number, got str"),
    ({"scale": 1j}, TypeError, "scale must be a number, got complex"),
    ({"scale": np.ones(3)}, TypeError, "scale must be a number, got ndarray"),
    ({"softcap": 0}, ValueError, "softcap must be a finite number above 0, got 0"),
    ({"softcap": -1.5}, ValueError, "softcap must be a finite number above 0, got -1.5"),
    ({"softcap": np.nan}, ValueError, "softcap must be a finite number above 0, got nan"),
    ({"dropout_p": -0.1, "rng": 1}, ValueError, "dropout_p must lie in [0, 1], got -0.1"),
    ({"dropout_p": 1.1}, ValueError, "dropout_p must lie in [0, 1], got 1.1"),
    ({"dropout_p": np.nan, "rng": 1}, ValueError, "dropout_p must lie in [0, 1], got nan"),
    ({"dropout_p": "half"}, TypeError, "dropout_p must be a number, got str"),
    ({"dropout_p": 0.1, "rng": "a"}, TypeError, "rng must be a numpy.random.Generator or an int, got str"),
    ({"rng": "a"}, TypeError, "rng must be a numpy.random.Generator or an int, got str"),
    ({"dropout_p": 0.1, "rng": 1.0}, TypeError, "rng must be a numpy.random.Generator or an int, got float"),
    ({"dropout_p": 0.1, "rng": True}, TypeError, "rng must be a numpy.random.Generator or an int, got bool"),
    (
        {"dropout_p": 0.1, "rng": -1},
        ValueError,
        "rng must be a numpy.random.Generator or an int >= 0, got -1",
    ),
    (
        {"dropout_p": 0.1, "rng": np.random.RandomState(1)},
        TypeError,
        "rng must be a numpy.random.Generator or an int, got RandomState",
    ),
    (
        {"precision": "fast"},
        ValueError,
        'precision must be "highest", "high", "medium" or "ieee", got \'fast\'',
    ),
]

OUTPUTS = [
    ({"return_weights": "yes"}, TypeError, "return_weights must be a bool or a WeightSelection, got str"),
    ({"out": zeros(2, 4, 33, 8)}, ValueError, "out must have the shape (2, 4, 33, 5), got (2, 4, 33, 8)"),
    ({"out": zeros(2, 4, 33, 5, dtype=np.float64)}, TypeError, "out must have the dtype of query"),
    (
        {"out": np.broadcast_to(FLOAT(0), (2, 4, 33, 5))},
        ValueError,
        "out must be writeable, got a read-only array",
    ),
    ({"out": [1.0]}, TypeError, f"out {ARRAY_OF_FLOATS}list"),
    (
        {"out": np.frombuffer(bytearray(2 * 4 * 33 * 5 * 4 + 1), FLOAT, offset=1).reshape(2, 4, 33, 5)},
        ValueError,
        "out must have aligned elements",
    ),
    (
        {"return_weights": blasformer.WeightSelection(heads=[4])},
        IndexError,
        "heads of a WeightSelection must lie in [-4, 3], got 4",
    ),
    (
        {"return_weights": blasformer.WeightSelection(rows=[0, -34])},
        IndexError,
        "rows of a WeightSelection must lie in [-33, 32], got -34",
    ),
    (
        {"return_weights": blasformer.WeightSelection(rows=[1.5])},
        TypeError,
        "rows of a WeightSelection must be integers, a slice or None, got [1.5]",
    ),
    (
        {"return_weights": blasformer.WeightSelection(heads=[], mean=True)},
        ValueError,
        "heads of a WeightSelection with mean=True must not be empty",
    ),
]


@pytest.mark.parametrize(("wrong", "error", "text"), OPERANDS + MASKS + NUMBERS + OUTPUTS)
def test_bad_input_is_refused_with_a_clear_text(wrong, error, text):
    call = {"query": QUERY, "key": KEY, "value": VALUE, **wrong}
    with pytest.raises(error, match=re.escape(text)):
        blasformer.scaled_dot_product_attention(**call)
    good = blasformer.scaled_dot_product_attention(QUERY, KEY, VALUE)
    assert (good == 0).all()


@pytest.mark.parametrize(("wrong", "error", "text"), OPERANDS + MASKS + NUMBERS)
def test_forward_for_training_refuses_the_same(wrong, error, text):
    call = {"query": QUERY, "key": KEY, "value": VALUE, **wrong}
    with pytest.raises(error, match=re.escape(text)):
        blasformer.attention_forward(**call)


@pytest.mark.parametrize(
    ("wrong", "error", "text"), [case for case in MASKS if not case[0].keys() & {"bias", "alibi_slopes"}]
)
def test_explain_mask_refuses_the_same(wrong, error, text):
    with pytest.raises(error, match=re.escape(text)):
        blasformer.explain_mask(QUERY.shape, KEY.shape, **wrong)


@pytest.mark.parametrize(
    ("shapes", "error", "text"),
    [
        (((4, 33, 8), (2, 2, 97, 8)), ValueError, "key must have as many dimensions as query (4, 33, 8)"),
        (((4, 33, -8), (2, 97, -8)), ValueError, "query_shape must have dimensions >= 0, got (4, 33, -8)"),
        (((8,), (8,)), ValueError, "query must have the shape (..., heads, length, dim), got (8,)"),
        ((3, (2, 97, 8)), TypeError, "query_shape must be"),
        (((4, 33, 8), (2, 97.5, 8)), TypeError, "key_shape must be"),
        (("abc", (2, 97, 8)), TypeError, "query_shape must be"),
    ],
)
def test_wrong_shapes_to_explain_and_plan_are_refused(shapes, error, text):
    with pytest.raises(error, match=re.escape(text)):
        blasformer.explain_mask(*shapes)
    with pytest.raises(error, match=re.escape(text)):
        blasformer.attention_plan(*shapes)


def test_a_plan_for_an_unknown_dtype_is_refused():
    with pytest.raises(TypeError, match="dtype must be float32, float64, float16 or bfloat16, got int32"):
        blasformer.attention_plan(QUERY.shape, KEY.shape, VALUE.shape, np.int32)


def test_arguments_after_the_operands_must_be_named():
    """mask and dropout_p are never mistaken for one another by their place."""
    with pytest.raises(TypeError, match="positional arguments"):
        blasformer.scaled_dot_product_attention(QUERY, KEY, VALUE, np.ones((33, 97), bool))


@pytest.mark.parametrize(
    ("d_output", "error", "text"),
    [
        (
            zeros(2, 4, 33, 6),
            ValueError,
            "d_output must have the shape of the output, (2, 4, 33, 5), got (2, 4, 33, 6)",
        ),
        (
            zeros(2, 4, 33, 5, dtype=np.float64),
            TypeError,
            "d_output must have the dtype of the output, float32, got float64",
        ),
        (zeros(2, 4, 33, 5, dtype=int), TypeError, f"d_output {ARRAY_OF_FLOATS}int64"),
        ([1.0], TypeError, f"d_output {ARRAY_OF_FLOATS}list"),
        (None, TypeError, f"d_output {ARRAY_OF_FLOATS}NoneType"),
    ],
)
def test_a_wrong_output_gradient_is_refused(d_output, error, text):
    output, saved = blasformer.attention_forward(QUERY, KEY, VALUE)
    with pytest.raises(error, match=re.escape(text)):
        blasformer.attention_backward(saved, d_output)
    assert (blasformer.attention_backward(saved, output).query == 0).all()


def test_backward_takes_only_what_forward_saved():
    with pytest.raises(TypeError, match="saved must be what attention_forward returned, got ndarray"):
        blasformer.attention_backward(QUERY, QUERY)


@pytest.mark.parametrize("wanted", [{}, {"return_weights": True}], ids=["output", "weights"])
def test_results_that_no_memory_can_hold_are_a_memory_error_at_once(wanted):
    length = 2**23 if wanted else 2**46  # more than there are addresses
    query = np.broadcast_to(zeros(1, 1, 4), (1, length, 4))
    key = query if wanted else zeros(1, 3, 4)
    with pytest.raises(MemoryError):
        blasformer.scaled_dot_product_attention(query, key, key, **wanted)


@pytest.mark.parametrize("shape", [(2**40, 2**20, 2**20, 4), (2**62, 1, 2, 4), (1, 2**33, 4), (2**63 - 1, 4)])
def test_a_mask_that_no_memory_can_hold_is_refused(shape):
    with pytest.raises((MemoryError, ValueError)):
        blasformer.explain_mask(shape, shape)
