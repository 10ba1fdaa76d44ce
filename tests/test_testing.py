"""nn.Module, nn.Sequential and check_gradients: layers of users, and ours, composed and judged."""

import numpy as np
import pytest
from blasformer import nn, optim, train
from blasformer.testing import check_gradients


class Affine:
    """y = x @ weight + bias, as a user writes it. The factors make gradients wrong."""

    def __init__(self, n=5, m=3, dtype=np.float64, x_factor=1.0, weight_factor=1.0, bias_factor=1.0):
        random = np.random.default_rng(0)
        self.weight, self.bias = random.standard_normal((n, m)).astype(dtype), np.ones(m, dtype)
        self.x_factor, self.weight_factor, self.bias_factor = x_factor, weight_factor, bias_factor

    def parameters(self):
        return {"weight": self.weight, "bias": self.bias}

    def forward(self, x, *, rng=None):
        return x @ self.weight + self.bias, x

    def backward(self, saved, d_y):
        axes = tuple(range(d_y.ndim - 1))
        d_weight = np.tensordot(saved, d_y, (axes, axes))
        return self.x_factor * (d_y @ self.weight.T), {
            "weight": self.weight_factor * d_weight,
            "bias": self.bias_factor * d_y.sum(axes),
        }


class Gelu:
    """y = x sigmoid(1.702 x), and dropout with p = 0.3."""

    def parameters(self):
        return {}

    def __call__(self, x):
        return x / (1 + np.exp(-1.702 * x))

    def forward(self, x, *, rng=None):
        kept = 1.0 if rng is None else (np.random.default_rng(rng).random(x.shape) > 0.3) / 0.7
        return self(x) * kept, (x, kept)

    def backward(self, saved, d_y):
        x, kept = saved
        s = 1 / (1 + np.exp(-1.702 * x))
        return d_y * kept * (s + 1.702 * x * s * (1 - s)), {}


class Product:
    """y = a * b."""

    def parameters(self):
        return {}

    def forward(self, a, b, *, scale=1.0, rng=None):
        return scale * a * b, (a, b, scale)

    def backward(self, saved, d_y):
        a, b, scale = saved
        return (scale * b * d_y, scale * a * d_y), {}


X = np.random.default_rng(1).standard_normal((2, 7, 5))


def test_right_gradients_pass_and_leave_the_layer_as_it_was():
    layer = Affine()
    before = {name: array.copy() for name, array in layer.parameters().items()}
    errors = check_gradients(layer, X)
    assert list(errors) == ["input 0", "weight", "bias"]
    assert max(errors.values()) < 1e-9
    for name, array in layer.parameters().items():
        np.testing.assert_array_equal(array, before[name])


def test_a_float32_layer_is_checked_as_well_as_that_goes():
    check_gradients(Affine(dtype=np.float32), X.astype(np.float32))
    with pytest.raises(AssertionError, match="bias: wrong at 3 of 3 elements"):
        check_gradients(Affine(dtype=np.float32, bias_factor=np.float32(1.1)), X.astype(np.float32))


def test_every_wrong_gradient_is_named_with_its_worst_element():
    with pytest.raises(AssertionError) as raised:
        check_gradients(Affine(x_factor=1.001, bias_factor=0.5), X, elements=20)
    first, x, bias = str(raised.value).split("\n")
    assert first == "backward of Affine is wrong"
    assert x.startswith("  input 0: wrong at ")
    assert "of 20 elements, worst at [" in x
    assert "allowed 1e-06)" in x
    assert bias.startswith("  bias: wrong at 3 of 3 elements, worst at [")
    assert "(error 0.5, allowed 1e-06)" in bias


def test_a_single_wrong_element_is_found_even_if_it_is_not_among_those_checked():
    class OneWrong(Affine):
        def backward(self, saved, d_y):
            d_x, grads = super().backward(saved, d_y)
            d_x[1, 6, 4] += 1
            return d_x, grads

    with pytest.raises(AssertionError, match=r"input 0: (wrong at 1 of|right at the 3 elements)"):
        check_gradients(OneWrong(), X, elements=3)


def test_nan_gradients_are_wrong():
    with pytest.raises(AssertionError, match=r"weight: wrong at 15 of 15 elements.*backward gives nan"):
        check_gradients(Affine(weight_factor=np.nan), X)


def test_dropout_is_checked_with_the_same_random_numbers_every_time():
    check_gradients(Gelu(), X, rng=3)
    check_gradients(Gelu(), X, rng=np.random.default_rng(3))


def test_several_inputs_and_further_arguments_are_handed_on():
    errors = check_gradients(Product(), X, X + 1, scale=3.0)
    assert list(errors) == ["input 0", "input 1"]


def test_gradients_of_the_wrong_kind_are_named():
    class Wrong(Affine):
        def __init__(self, result):
            super().__init__()
            self.result = result

        def backward(self, saved, d_y):
            d_x, grads = super().backward(saved, d_y)
            return self.result(d_x, grads)

    cases = [
        (lambda d_x, grads: (d_x, {"weight": grads["weight"]}), "gradients of weight, bias, got weight$"),
        (
            lambda d_x, grads: (d_x[0], grads),
            r"gradient of input 0 of float64 \(2, 7, 5\), got float64 \(7, 5\)",
        ),
        (lambda d_x, grads: (None, grads), "gradient of input 0 of float64 .* got NoneType"),
        (lambda d_x, grads: ((d_x, d_x), grads), "a gradient for each of 1 inputs, got 2"),
        (
            lambda d_x, grads: (d_x, grads | {"bias": grads["bias"].astype(np.float32)}),
            r"gradient of bias of float64 \(3,\), got float32",
        ),
    ]
    for result, text in cases:
        with pytest.raises(AssertionError, match=f"backward of Wrong must return .*{text}"):
            check_gradients(Wrong(result), X)


def test_a_forward_that_differs_every_time_cannot_be_judged():
    class Unstable(Affine):
        calls = 0

        def forward(self, x, *, rng=None):
            self.calls += 1
            return super().forward(x + self.calls)

    with pytest.raises(AssertionError, match="cannot be judged: forward gives something else every time"):
        check_gradients(Unstable(), X)


def test_ids_have_no_gradient():
    class Lookup:
        def __init__(self):
            self.table = np.arange(12.0).reshape(4, 3)

        def parameters(self):
            return {"table": self.table}

        def forward(self, ids, *, rng=None):
            return self.table[ids], ids

        def backward(self, saved, d_y):
            gradient = np.zeros_like(self.table)
            np.add.at(gradient, saved, d_y)
            return None, {"table": gradient}

    assert list(check_gradients(Lookup(), np.array([[1, 3, 3], [0, 1, 1]]))) == ["table"]


def test_user_layers_follow_the_protocol_and_others_do_not():
    assert isinstance(Affine(), nn.Module)
    assert not isinstance(np.ones(3), nn.Module)


# ----------------------------------------------------------------------------------------------------------
# Sequential
# ----------------------------------------------------------------------------------------------------------


def test_layers_in_turn_are_the_composition_of_their_functions():
    one, two = Affine(5, 4), Affine(4, 3)
    model = nn.Sequential(one, Gelu(), two)
    expected = Gelu()(X @ one.weight + one.bias) @ two.weight + two.bias
    np.testing.assert_allclose(model(X), expected, rtol=1e-14)
    np.testing.assert_allclose(model.forward(X)[0], expected, rtol=1e-14)
    assert list(model.parameters()) == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert model.parameters()["2.weight"] is two.weight
    assert isinstance(model, nn.Module)
    assert (len(model), model[1], list(model)) == (3, model.layers[1], list(model.layers))


def test_gradients_go_through_all_layers():
    check_gradients(nn.Sequential(Affine(5, 4), Gelu(), nn.Sequential(Affine(4, 3), Gelu())), X, rng=4)


def test_a_layer_in_two_places_is_one_layer():
    shared = Affine(5, 5)
    model = nn.Sequential(shared, Gelu(), shared)
    assert list(model.parameters()) == ["0.weight", "0.bias"]
    check_gradients(model, X)
    before = shared.weight.copy()
    optim.SGD(model, lr=1.0).step({"0.weight": np.ones((5, 5)), "0.bias": np.zeros(5)})
    np.testing.assert_array_equal(shared.weight, before - 1)


def test_ours_and_theirs_compose():
    linear = nn.Linear(5, 4, dtype=np.float64, rng=0)
    model = nn.Sequential(linear, Gelu(), Affine(4, 3))
    np.testing.assert_array_equal(model(X), model[2].forward(Gelu()(linear(X)))[0])
    optimizer = optim.SGD(model, lr=1.0)
    before = model.state_dict()
    optimizer.step({name: np.ones_like(array) for name, array in before.items()})
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name] - 1)


def test_arguments_reach_their_layer():
    encoder = nn.TransformerEncoderLayer(8, 2, 16, dtype=np.float64, rng=0)
    model = nn.Sequential(encoder, encoder)
    x = np.random.default_rng(0).standard_normal((2, 5, 8))
    expected = encoder(encoder(x, key_lengths=[5, 2]), causal=True)
    np.testing.assert_array_equal(
        model(x, arguments={0: {"key_lengths": [5, 2]}, 1: {"causal": True}}), expected
    )
    with pytest.raises(IndexError, match="arguments must be given by layer, 0 to 1, got 2"):
        model(x, arguments={2: {}})


class Sum(nn.Sequential):
    """y = layers[0](a) + layers[1](b): a class of a user, whose layers do not stand in a row."""

    def __call__(self, a, b):
        return self.layers[0](a) + self.layers[1](b)

    def forward(self, a, b, *, rng=None):
        (y, saved_a), (z, saved_b) = self.layers[0].forward(a), self.layers[1].forward(b)
        return y + z, (saved_a, saved_b)

    def backward(self, saved, d_y):
        (d_a, of_a), (d_b, of_b) = (
            layer.backward(s, d_y) for layer, s in zip(self.layers, saved, strict=True)
        )
        named = {f"0.{name}": array for name, array in of_a.items()}
        return (d_a, d_b), named | {f"1.{name}": array for name, array in of_b.items()}


def test_a_class_derived_from_sequential_connects_its_layers_in_its_own_way():
    model = Sum(nn.Linear(5, 3, dtype=np.float64, rng=0), nn.Linear(2, 3, dtype=np.float64, rng=1))
    random = np.random.default_rng(0)
    a, b, wanted = (random.standard_normal((7, size)) for size in (5, 2, 3))
    check_gradients(model, a, b)
    model[0].freeze("bias")
    check_gradients(model, a, b)

    def squares(y, targets):
        return np.square(y - targets).mean(), 2 * (y - targets) / y.size

    before = model.state_dict()
    history = train.fit(
        model, [(a, b, wanted)], loss=squares, optimizer=optim.AdamW(model, lr=0.1), epochs=100
    )
    assert history.loss[-1] < 0.5 * history.loss[0]
    assert {name for name, array in model.parameters().items() if (array != before[name]).any()} == {
        "0.weight",
        "1.weight",
        "1.bias",
    }
    copy = Sum(nn.Linear(5, 3, dtype=np.float64), nn.Linear(2, 3, dtype=np.float64))
    copy.load_state_dict(model.state_dict())
    np.testing.assert_array_equal(copy(a, b), model(a, b))


def test_state_dicts_of_a_sequential_are_loaded_as_a_whole_or_not_at_all():
    model = nn.Sequential(nn.Linear(5, 4, dtype=np.float64, rng=0), Affine(4, 3))
    before = model.state_dict()
    wanted = {name: array + 1 for name, array in before.items()}
    with pytest.raises(
        ValueError, match=r"state dict of this Sequential; missing: 1.bias; unexpected: 1.biass$"
    ):
        model.load_state_dict({name.replace("1.bias", "1.biass"): array for name, array in wanted.items()})
    with pytest.raises(ValueError, match=r"1.weight must have the shape \(4, 3\), got \(3, 4\)"):
        model.load_state_dict(wanted | {"1.weight": np.ones((3, 4))})
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    assert model.load_state_dict(wanted) == ([], [])
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, wanted[name])
    assert model.load_state_dict({"1.bias": np.zeros(3), "x": 1}, strict=False).unexpected_keys == ["x"]
    assert (model[1].bias == 0).all()


def test_edits_of_a_sequential_happen_as_a_whole_or_not_at_all():
    model = nn.Sequential(nn.Linear(5, 4, dtype=np.float64, rng=0), Affine(4, 3))
    before = model.state_dict()

    def edit_what_is_not_there():
        with model.edit() as p:
            p["0.weight"] *= 2
            p["nothing"] *= 2

    with pytest.raises(KeyError):
        edit_what_is_not_there()
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    with model.edit() as p:
        p["0.weight"] *= 2
        p["1.bias"] = np.zeros(3)
    with pytest.raises(ValueError, match="read-only"):
        p["0.weight"] *= 2
    np.testing.assert_array_equal(model[0].parameters()["weight"], 2 * before["0.weight"])
    assert (model[1].bias == 0).all()


@pytest.mark.parametrize(
    ("arguments", "kind", "text"),
    [
        ({"arguments": 3}, TypeError, "arguments must map indices to keyword arguments, got int"),
        ({"arguments": {1: 3}}, TypeError, r"arguments\[1\] must map names to arguments, got int"),
        ({"arguments": {2: {}}}, IndexError, "arguments must be given by layer, 0 to 1, got 2"),
        ({"rng": True}, TypeError, "rng must be a numpy.random.Generator or an int, got bool"),
        ({"rng": -1}, ValueError, "rng must be a numpy.random.Generator or an int >= 0, got -1"),
    ],
)
def test_what_a_sequential_cannot_pass_on_is_refused(arguments, kind, text):
    with pytest.raises(kind, match=text):
        nn.Sequential(nn.Linear(5, 4, rng=0), Affine(4, 3)).forward(np.ones((2, 5), np.float32), **arguments)


def test_what_is_no_layer_is_refused():
    with pytest.raises(TypeError, match=r"layer 1 must have parameters\(\), as nn.Module says, got function"):
        nn.Sequential(Affine(), lambda x: x)
    with pytest.raises(TypeError, match=r"layer must have parameters\(\), as nn.Module says, got function"):
        check_gradients(lambda x: x, X)


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(5, 3, dtype=np.float64, rng=0), (2, 5)),
        (nn.LayerNorm(5, dtype=np.float64), (2, 3, 5)),
        (nn.FeedForward(5, 7, activation="gelu", dtype=np.float64, rng=0), (2, 5)),
    ],
)
def test_our_layers_pass(layer, shape):
    x = np.random.default_rng(5).standard_normal(shape)
    check_gradients(layer, x)
    check_gradients(nn.Sequential(layer, Gelu()), x)


def test_frozen_parameters_need_no_gradient():
    model = nn.Sequential(nn.Linear(5, 4, dtype=np.float64, rng=0), nn.Linear(4, 3, dtype=np.float64, rng=1))
    model[0].freeze()
    assert model.frozen == {"0.weight", "0.bias"}
    assert list(check_gradients(model, X)) == ["input 0", "1.weight", "1.bias"]


def test_attending_layers_pass_with_masks_and_dropout():
    x = np.random.default_rng(6).standard_normal((2, 5, 6))
    attention = nn.MultiheadAttention(6, 2, dropout=0.3, dtype=np.float64, rng=0)
    check_gradients(attention, x, causal=True, rng=1)
    check_gradients(attention, x, x[:, :3] + 1, key_lengths=np.array([3, 1]))
    check_gradients(attention, x, x[:, :3] + 1, x[:, 2:])
    encoder = nn.TransformerEncoderLayer(6, 2, 7, dropout=0.2, activation="gelu", dtype=np.float64, rng=0)
    model = nn.Sequential(attention, encoder, attention)
    check_gradients(model, x, rng=3, arguments={1: {"key_lengths": [5, 3]}}, elements=12)
