"""Gradients of layers: the derivatives of their formulas, each from one use of a saved value."""

import blasformer
import numpy as np
import pytest
import reference
from blasformer import nn
from derivatives import assert_is_derivative
from layer_cases import ATTENDING, LAYERS, MASKS, lively, normal, same_bits


def gradients(layer, x, d_y, *, rng=None, **arguments):
    _, saved = layer.forward(x, rng=rng, **arguments)
    d_x, grads = layer.backward(saved, d_y)
    return d_x[0] if isinstance(d_x, tuple) else d_x, grads  # attention has three inputs, and is given one


@pytest.mark.parametrize("name", LAYERS)
def test_gradients_are_the_derivatives_of_the_formula(name, product_isa):
    case = LAYERS[name]
    layer = lively(case, np.float64)
    x = normal(case.shape, np.float64, 3)
    d_y = normal(layer(x).shape, np.float64, 4)
    d_x, grads = gradients(layer, x, d_y)

    def function(arrays):
        parameters = {name: array for name, array in arrays.items() if name != "x"}
        return np.sum(d_y * case.formula(parameters, arrays["x"], dtype=np.float64))

    assert_is_derivative(function, {"x": x, **layer.state_dict()}, {"x": d_x, **grads})


@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ATTENDING)
def test_gradients_under_masks_are_the_derivatives_of_the_formula(name, mask):
    case = ATTENDING[name]
    layer = lively(case, np.float64)
    arguments = MASKS[mask](case, np.random.default_rng(5))
    x = normal(case.shape, np.float64, 6)
    d_y = normal(case.shape, np.float64, 7)
    d_x, grads = gradients(layer, x, d_y, **arguments)

    def function(arrays):
        parameters = {name: array for name, array in arrays.items() if name != "x"}
        return np.sum(d_y * case.formula(parameters, arrays["x"], dtype=np.float64, **arguments))

    assert_is_derivative(function, {"x": x, **layer.state_dict()}, {"x": d_x, **grads})


@pytest.mark.parametrize("name", LAYERS)
def test_a_batch_of_one_and_a_length_of_one_have_gradients(name):
    case = LAYERS[name]
    layer = lively(case, np.float64)
    for shape in ((1, *case.shape[1:]), (1,) * (len(case.shape) - 2) + case.shape[-2:]):
        x = normal(shape, np.float64, 8)
        d_y = normal(layer(x).shape, np.float64, 9)
        d_x, grads = gradients(layer, x, d_y)

        def function(arrays, d_y=d_y):
            parameters = {name: array for name, array in arrays.items() if name != "x"}
            return np.sum(d_y * case.formula(parameters, arrays["x"], dtype=np.float64))

        assert_is_derivative(function, {"x": x, **layer.state_dict()}, {"x": d_x, **grads})


@pytest.mark.parametrize("name", LAYERS)
def test_an_empty_batch_has_zero_gradients(name):
    case = LAYERS[name]
    layer = lively(case)
    x = np.zeros((0, *case.shape[1:]), np.float32)
    d_x, grads = gradients(layer, x, np.zeros_like(layer(x)))
    assert d_x.shape == x.shape
    assert all((gradient == 0).all() for gradient in grads.values())


@pytest.mark.parametrize("given", ["query", "query and key", "query, key and value", "one array thrice"])
@pytest.mark.parametrize("widths", [(24, 24), (24, 15), (33, 24), (33, 15)])
def test_every_input_that_was_given_has_a_gradient_of_its_own(given, widths):
    kdim, vdim = widths
    layer = nn.MultiheadAttention(24, 4, kdim=kdim, vdim=vdim, num_kv_heads=2, dtype=float, rng=1)
    query = normal((2, 7, 24), np.float64, 1)
    inputs = {"query": query}
    if given == "one array thrice":
        if widths != (24, 24):
            pytest.skip("one array has one width")
        inputs |= {"key": query, "value": query}
    elif given == "query":
        if widths != (24, 24):
            pytest.skip("one array has one width")
    elif given == "query and key":
        if kdim != vdim:
            pytest.skip("one array has one width")
        inputs["key"] = normal((2, 11, kdim), np.float64, 2)
    else:
        inputs |= {"key": normal((2, 11, kdim), np.float64, 2), "value": normal((2, 11, vdim), np.float64, 3)}
    d_y = normal((2, 7, 24), np.float64, 4)
    _, saved = layer.forward(**inputs)
    d_inputs, grads = layer.backward(saved, d_y)
    names = ("query", "key", "value")
    assert [d is not None for d in d_inputs] == [name in inputs for name in names]

    def function(arrays):
        parameters = {name: array for name, array in arrays.items() if name not in names}
        here = [arrays.get(name) for name in names]
        return np.sum(
            d_y
            * reference.multi_head_attention(
                parameters, here[0], *here[1:], num_heads=4, num_kv_heads=2, dtype=np.float64
            )
        )

    assert_is_derivative(
        function,
        {**inputs, **layer.state_dict()},
        {**{name: d for name, d in zip(names, d_inputs, strict=True) if d is not None}, **grads},
    )


def test_the_gradient_of_an_embedding_counts_every_use_of_an_id():
    layer = nn.Embedding(7, 5, padding_idx=2, dtype=float, rng=0)
    ids = np.array([[1, 1, 6], [2, 1, 0]])
    _, saved = layer.forward(ids)
    d_y = normal((2, 3, 5), np.float64)
    d_ids, grads = layer.backward(saved, d_y)
    expected = np.zeros((7, 5))
    np.add.at(expected, ids, d_y)
    expected[2] = 0
    assert d_ids is None
    np.testing.assert_allclose(grads["weight"], expected, rtol=1e-15)


def test_the_gradient_of_learned_positions_counts_every_use_of_a_position():
    layer = nn.PositionalEncoding(4, max_len=6, kind="learned", scale=3.0, dtype=float, rng=0)
    positions = np.array([[0, 1, 2, 0], [5, 5, 1, 0]])
    _, saved = layer.forward(normal((2, 4, 4), np.float64), positions=positions)
    d_y = normal((2, 4, 4), np.float64, 1)
    d_x, grads = layer.backward(saved, d_y)
    expected = np.zeros((6, 4))
    np.add.at(expected, positions, d_y)
    np.testing.assert_allclose(grads["weight"], expected, rtol=1e-15)
    np.testing.assert_array_equal(d_x, 3 * d_y)


DROPPING = {
    "feed-forward": lambda: nn.FeedForward(24, 50, dropout=0.3, activation="gelu", dtype=float, rng=1),
    "gated feed-forward": lambda: nn.GatedFeedForward(24, 50, dropout=0.3, dtype=float, rng=1),
    "dropout": lambda: nn.Dropout(0.3, dtype=float),
    "sinusoidal positions": lambda: nn.PositionalEncoding(24, 0.3, scale=3.0, dtype=float),
    "learned positions": lambda: nn.PositionalEncoding(24, 0.3, 9, kind="learned", dtype=float, rng=1),
    "attention": lambda: nn.MultiheadAttention(24, 3, dropout=0.3, dtype=float, rng=1),
    "post-norm layer": lambda: nn.TransformerEncoderLayer(
        24, 3, 50, dropout=0.3, activation="silu", dtype=float, rng=1
    ),
    "pre-norm layer": lambda: nn.TransformerEncoderLayer(
        24, 3, 50, dropout=0.3, activation="silu", norm_first=True, dtype=float, rng=1
    ),
    "encoder": lambda: nn.TransformerEncoder(
        nn.TransformerEncoderLayer(24, 3, 50, dropout=0.3, activation="silu", dtype=float), 2, rng=1
    ),
}


@pytest.mark.parametrize("name", DROPPING)
def test_gradients_under_dropout_are_those_of_what_forward_dropped(name):
    layer = DROPPING[name]()
    x = normal((2, 9, 24), np.float64, 3)
    d_y = normal((2, 9, 24), np.float64, 4)
    d_x, grads = gradients(layer, x, d_y, rng=17)
    other = DROPPING[name]()

    def function(arrays):
        other.load_state_dict({name: array for name, array in arrays.items() if name != "x"})
        return np.sum(d_y * other.forward(arrays["x"], rng=17)[0])

    assert_is_derivative(function, {"x": x, **layer.state_dict()}, {"x": d_x, **grads})


@pytest.mark.parametrize("norm_first", [False, True])
def test_recomputing_changes_no_bit_and_keeps_less(norm_first):
    layers = [
        nn.TransformerEncoderLayer(24, 4, 96, dropout=0.2, norm_first=norm_first, recompute=recompute, rng=1)
        for recompute in (False, True)
    ]
    x, d_y = normal((3, 33, 24), seed=1), normal((3, 33, 24), seed=2)
    lengths = np.array([33, 20, 5])
    results, kept = [], []
    for layer in layers:
        y, saved = layer.forward(x, key_lengths=lengths, rng=3)
        kept.append(saved.nbytes)
        d_x, grads = layer.backward(saved, d_y)
        results.append([y, d_x, *grads.values()])
    for one, other in zip(*results, strict=True):
        assert same_bits(one, other)
    assert kept[1] == x.nbytes < kept[0] / 5


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_gradients_have_the_same_bits_for_any_number_of_threads(name, dtype):
    case = LAYERS[name]
    layer = lively(case, dtype)
    x = normal((7, *case.shape[1:]), dtype, 3)
    d_y = normal(layer(x).shape, dtype, 4)
    found = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            d_x, grads = gradients(layer, x, d_y)
        found.append([d_x, *grads.values()])
    for results in found[1:]:
        assert all(same_bits(one, other) for one, other in zip(results, found[0], strict=True))


def test_large_layers_have_the_same_gradients_for_any_number_of_threads(product_isa):
    layer = nn.TransformerEncoderLayer(128, 4, 517, activation="gelu", dropout=0.1, rng=0)
    x, d_y = normal((3, 141, 128), seed=1), normal((3, 141, 128), seed=2)
    found = []
    for threads in (1, 2, 3, 24):
        with blasformer.num_threads(threads):
            d_x, grads = gradients(layer, x, d_y, rng=5)
        found.append([d_x, *grads.values()])
    for results in found[1:]:
        assert all(same_bits(one, other) for one, other in zip(results, found[0], strict=True))


def test_accumulating_adds_to_the_arrays_it_is_given():
    layer = nn.FeedForward(5, 9, rng=0)
    x, d_y = normal((4, 5), seed=1), normal((4, 5), seed=2)
    _, once = gradients(layer, x, d_y)
    total = {name: gradient.copy() for name, gradient in once.items()}
    _, saved = layer.forward(x)
    _, result = layer.backward(saved, d_y, accumulate=total)
    for name, gradient in once.items():
        assert result[name] is total[name]
        np.testing.assert_array_equal(total[name], 2 * gradient)


def test_frozen_parameters_have_no_gradients_and_the_others_are_the_same():
    layer = nn.TransformerEncoderLayer(24, 4, 48, rng=0)
    x, d_y = normal((2, 9, 24), seed=1), normal((2, 9, 24), seed=2)
    d_x, everything = gradients(layer, x, d_y)
    layer.freeze("self_attn.in_proj_weight", "linear1.*", "norm1.bias")
    assert layer.frozen == {"self_attn.in_proj_weight", "linear1.weight", "linear1.bias", "norm1.bias"}
    same, some = gradients(layer, x, d_y)
    assert same_bits(d_x, same)
    assert set(some) == set(everything) - layer.frozen
    assert all(same_bits(gradient, everything[name]) for name, gradient in some.items())
    layer.freeze()
    assert gradients(layer, x, d_y)[1] == {}
    layer.unfreeze("norm2.*")
    assert set(gradients(layer, x, d_y)[1]) == {"norm2.weight", "norm2.bias"}
    with pytest.raises(ValueError, match=r"patterns must match parameters, got 'linear3.*'"):
        layer.freeze("linear3.*")


# ----------------------------------------------------------------------------------------------------------
# A saved value is used once, by its own layer, before the weights change
# ----------------------------------------------------------------------------------------------------------


def test_a_saved_value_is_of_its_layer_and_not_of_another_in_its_place():
    for _ in range(100):  # some lie where the one before has lain
        y, saved = nn.Linear(3, 2, rng=0).forward(normal((4, 3)))
        with pytest.raises(ValueError, match="that of another layer"):
            nn.Linear(3, 2, rng=1).backward(saved, y)


def test_a_saved_value_is_used_up():
    layer = nn.Linear(3, 2, rng=0)
    y, saved = layer.forward(normal((4, 3)))
    assert saved.nbytes == 48
    layer.backward(saved, y)
    assert saved.nbytes == 0
    with pytest.raises(RuntimeError, match="saved was used already"):
        layer.backward(saved, y)


@pytest.mark.parametrize("other", [nn.Linear(3, 2, rng=0), nn.LayerNorm(3), nn.FeedForward(3, 2)])
def test_a_saved_value_of_another_layer_is_refused_and_stays_usable(other):
    layer = nn.Linear(3, 2, rng=0)
    y, saved = layer.forward(normal((4, 3)))
    with pytest.raises(ValueError, match="saved must be of a forward pass of this layer"):
        other.backward(saved, y)
    layer.backward(saved, y)


def test_weights_that_have_changed_since_forward_are_an_error():
    layer = nn.Linear(3, 2, rng=0)
    y, saved = layer.forward(normal((4, 3)))
    with layer.edit() as parameters:
        parameters["bias"] += 1
    with pytest.raises(RuntimeError, match="the weights of the layer were changed"):
        layer.backward(saved, y)


@pytest.mark.parametrize(
    ("d_output", "error", "text"),
    [
        (
            np.zeros((4, 3), np.float32),
            ValueError,
            r"d_output must have the shape of the output, \(4, 2\), got \(4, 3\)",
        ),
        (np.zeros((4, 2)), TypeError, "d_output must be a NumPy array of float32"),
        ([[0.0] * 2] * 4, TypeError, "d_output must be a NumPy array of float32"),
        (None, TypeError, "d_output must be a NumPy array of float32"),
    ],
)
def test_a_wrong_output_gradient_is_refused_and_saved_stays_usable(d_output, error, text):
    layer = nn.Linear(3, 2, rng=0)
    y, saved = layer.forward(normal((4, 3)))
    with pytest.raises(error, match=text):
        layer.backward(saved, d_output)
    layer.backward(saved, y)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: a.pop("bias"), ValueError, "the names of the trainable parameters; differing: bias"),
        (lambda a: a.update(bias=np.zeros(3, np.float32)), ValueError, r"the shape \(2,\), got \(3,\)"),
        (lambda a: a.update(bias=np.zeros(2)), TypeError, "a NumPy array of float32, got float64"),
        (lambda a: a["bias"].setflags(write=False), ValueError, "must be writeable"),
    ],
)
def test_gradients_that_do_not_fit_are_not_added_to(change, error, text):
    layer = nn.Linear(3, 2, rng=0)
    y, saved = layer.forward(normal((4, 3)))
    total = {"weight": np.zeros((2, 3), np.float32), "bias": np.zeros(2, np.float32)}
    change(total)
    with pytest.raises(error, match=text):
        layer.backward(saved, y, accumulate=total)
    assert not total["weight"].any()
    layer.backward(saved, y)


def test_any_layout_of_the_output_gradient_gives_the_same_bits():
    layer = nn.TransformerEncoderLayer(24, 4, 48, rng=0)
    x, d_y = normal((2, 9, 24), seed=1), normal((2, 9, 24), seed=2)
    expected = gradients(layer, x, d_y)
    wide = np.zeros((2, 9, 48), np.float32)
    wide[..., ::2] = d_y
    for layout in (np.asfortranarray(d_y), wide[..., ::2], d_y[:, ::-1].copy()[:, ::-1]):
        d_x, grads = gradients(layer, x, layout)
        assert same_bits(d_x, expected[0])
        assert all(same_bits(gradient, expected[1][name]) for name, gradient in grads.items())
