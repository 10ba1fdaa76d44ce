"""Calling a layer with out=: the same bits, in the array that is given, whatever that array is."""

import numpy as np
import pytest
from blasformer import nn
from layer_cases import DECODING, LAYERS, TRANSFORMERS, lively, normal, same_bits


def call(name):
    """The layer of a case, its inputs, and what it makes of them."""
    case = (LAYERS | DECODING | TRANSFORMERS)[name]
    layer = lively(case)
    shapes = [case.shape] if name in LAYERS else case.shapes
    inputs = [normal(shape, seed=i) for i, shape in enumerate(shapes)]
    return layer, inputs, layer(*inputs)


ALL = [*LAYERS, *DECODING, *TRANSFORMERS]


def dense(shape):
    return np.full(shape, np.nan, np.float32)


def in_columns(shape):
    return np.full((*shape[:-1], 2 * shape[-1]), np.nan, np.float32)[..., ::2]


def backwards(shape):
    return np.full(shape, np.nan, np.float32)[..., ::-1]


def transposed(shape):
    return np.full(shape[::-1], np.nan, np.float32).T


def unaligned(shape):
    memory = np.zeros(4 * int(np.prod(shape)) + 1, np.uint8)
    return memory[1:].view(np.float32).reshape(shape)


@pytest.mark.parametrize("make", [dense, in_columns, backwards, transposed, unaligned])
@pytest.mark.parametrize("name", ALL)
def test_out_gets_the_bits_of_the_output_and_is_returned(name, make):
    layer, inputs, y = call(name)
    out = make(y.shape)
    assert layer(*inputs, out=out) is out
    assert same_bits(np.ascontiguousarray(out), y)


@pytest.mark.parametrize("name", ALL)
def test_out_may_be_an_input(name):
    layer, inputs, y = call(name)
    for index in [i for i, x in enumerate(inputs) if x.shape == y.shape]:
        given = [x.copy() for x in inputs]
        assert layer(*given, out=given[index]) is given[index]
        assert same_bits(given[index], y)


@pytest.mark.parametrize("shift", [1, 7, 40])
@pytest.mark.parametrize("name", ["linear", "layer norm", "RMS norm", "feed-forward, gelu", "dropout"])
def test_out_may_share_some_of_the_memory_of_an_input(name, shift):
    layer, (x,), y = call(name)
    memory = np.zeros(max(x.size, y.size) + shift, np.float32)
    memory[shift : shift + x.size] = x.ravel()
    moved = memory[shift : shift + x.size].reshape(x.shape)
    assert same_bits(layer(moved, out=memory[: y.size].reshape(y.shape)), y)


def test_out_may_lie_in_ids_and_positions():
    ids = np.arange(20).reshape(4, 5)
    embedding = nn.Embedding(20, 2, rng=0)
    y = embedding(ids)
    assert same_bits(embedding(ids, out=ids.view(np.float32).reshape(y.shape)), y)
    positions = np.arange(12)
    encoding = nn.PositionalEncoding(2)
    x = normal((12, 2))
    y = encoding(x, positions=positions)
    assert same_bits(encoding(x, positions=positions, out=positions.view(np.float32).reshape(y.shape)), y)


def test_out_may_lie_in_a_bias_of_attention():
    x = normal((7, 8))
    for layer in (nn.MultiheadAttention(8, 2, rng=0), nn.TransformerEncoderLayer(8, 2, 16, rng=0)):
        bias = normal((7, 8), seed=1)
        y = layer(x, bias=bias[:, :7].copy())
        assert same_bits(layer(x, bias=bias[:, :7], out=bias), y)


def test_out_of_a_call_that_returns_weights_too():
    layer = nn.TransformerEncoderLayer(8, 2, 16, rng=0)
    x, out = normal((3, 5, 8)), dense((3, 5, 8))
    y, weights = layer(x, return_weights=True)
    of_out, also = layer(x, return_weights=True, out=out)
    assert of_out is out
    assert same_bits(out, y)
    assert same_bits(also, weights)


def test_the_halves_of_a_transformer_take_out():
    layer, (source, target), y = call("pre-norm")
    memory, out = dense(source.shape), dense(target.shape)
    assert layer.encode(source, out=memory) is memory
    assert layer.decode(target, memory, out=out) is out
    assert same_bits(out, y)


def test_the_last_layer_of_a_sequential_takes_out():
    model = nn.Sequential(nn.Linear(8, 5, rng=0), nn.LayerNorm(5))
    out = dense((3, 5))
    assert model(normal((3, 8)), arguments={1: {"out": out}}) is out
    assert same_bits(out, model(normal((3, 8))))


def test_out_may_be_empty():
    out = np.zeros((0, 4), np.float32)
    assert nn.Linear(3, 4, rng=0)(np.zeros((0, 3), np.float32), out=out) is out


X = normal((2, 5, 8))
READ_ONLY = np.zeros((2, 5, 8), np.float32)
READ_ONLY.flags.writeable = False
ERRORS = [
    (TypeError, [], "out must be a NumPy array of float32, the dtype of the layer, got list"),
    (TypeError, X.astype(float), "out must be a NumPy array of float32, the dtype of the layer, got float64"),
    (ValueError, READ_ONLY, "out must be writeable, got a read-only array"),
    (
        ValueError,
        np.zeros((2, 5, 7), np.float32),
        "out must have the shape of the output, (2, 5, 8), got (2, 5, 7)",
    ),
    (
        ValueError,
        np.zeros((1, 2, 5, 8), np.float32),
        "out must have the shape of the output, (2, 5, 8), got (1, 2, 5, 8)",
    ),
    (
        ValueError,
        np.zeros((2, 5, 16), np.float32)[..., :1],
        "out must have the shape of the output, (2, 5, 8), got (2, 5, 1)",
    ),
]


@pytest.mark.parametrize(("kind", "out", "text"), ERRORS)
@pytest.mark.parametrize(
    "layer",
    [
        nn.Linear(8, 8, rng=0),
        nn.LayerNorm(8),
        nn.PositionalEncoding(8),
        nn.MultiheadAttention(8, 2, rng=0),
        nn.TransformerEncoderLayer(8, 2, 16, rng=0),
        lambda x, out: nn.TransformerDecoderLayer(8, 2, 16, rng=0)(x, x, out=out),
        lambda x, out: nn.Transformer(8, 2, 1, 1, 16, rng=0)(x, x, out=out),
    ],
    ids=lambda layer: type(layer).__name__,
)
def test_an_out_that_does_not_fit_is_refused_and_stays_as_it_is(layer, kind, out, text):
    before = np.copy(out)
    with pytest.raises(kind) as error:
        layer(X, out=out)
    assert str(error.value) == text
    assert np.array_equal(out, before)


def test_an_input_that_does_not_fit_is_named_before_out():
    with pytest.raises(ValueError, match=r"x must have the shape \(\.\.\., 8\)"):
        nn.Linear(8, 3, rng=0)(X[..., :7], out=np.zeros((2, 5, 4), np.float32))
