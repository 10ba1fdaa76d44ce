"""Optimisers: steps equal to their formulas, which happen as a whole or not at all."""

import copy
import itertools
import math
import os
import pickle
import signal
import threading

import blasformer
import numpy as np
import pytest
import reference
from blasformer import nn, optim
from reference import assert_as_accurate_as_numpy


class Parameters:
    """The least that an optimiser takes: a layer that is nothing but its parameters."""

    def __init__(self, **arrays):
        self.arrays = arrays

    def parameters(self):
        return self.arrays


CASES = {
    "SGD": (optim.SGD, reference.sgd, {"lr": 0.1}),
    "SGD, decay": (optim.SGD, reference.sgd, {"lr": 0.1, "weight_decay": 0.3}),
    "momentum": (optim.SGD, reference.sgd, {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
    "Nesterov": (optim.SGD, reference.sgd, {"lr": 0.1, "momentum": 0.8, "nesterov": True}),
    "Adam": (optim.Adam, reference.adam, {"lr": 0.01}),
    "Adam, decay": (
        optim.Adam,
        reference.adam,
        {"lr": 0.01, "weight_decay": 0.2, "betas": (0.8, 0.95), "eps": 1e-3},
    ),
    "AdamW": (optim.AdamW, reference.adamw, {"lr": 0.01}),
    "AdamW, decay": (optim.AdamW, reference.adamw, {"lr": 0.02, "weight_decay": 0.5, "betas": (0.7, 0.9)}),
    "Lion": (optim.Lion, reference.lion, {"lr": 0.01}),
    "Lion, decay": (optim.Lion, reference.lion, {"lr": 0.02, "weight_decay": 0.5, "betas": (0.7, 0.9)}),
}


def trajectory(shape, dtype, steps=5, seed=0):
    """A parameter, and gradients of very different sizes."""
    random = np.random.default_rng(seed)
    scale = 10.0 ** random.uniform(-3, 3, shape)
    gradients = [(scale * random.standard_normal(shape)).astype(dtype) for _ in range(steps)]
    return np.asarray(random.standard_normal(shape), dtype), gradients


def train(kind, values, parameter, gradients):
    layer = Parameters(weight=parameter.copy())
    optimizer = kind(layer, **values)
    for gradient in gradients:
        optimizer.step({"weight": gradient})
    return layer.arrays["weight"]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("shape", [(), (1,), (0, 3), (7,), (3, 11), (127,), (129,), (3, 16385)])
@pytest.mark.parametrize("case", CASES)
def test_a_step_is_its_formula(case, shape, dtype, isa):
    kind, formula, values = CASES[case]
    parameter, gradients = trajectory(shape, dtype)
    result = train(kind, values, parameter, gradients)
    assert_as_accurate_as_numpy(
        result, lambda p, *g, dtype: formula(p, g, **values, dtype=dtype), parameter, *gradients
    )


@pytest.mark.parametrize("case", CASES)
def test_the_number_of_threads_changes_no_bit(case, threads):
    kind, _, values = CASES[case]
    parameter, gradients = trajectory((5, 33333), np.float32, steps=2)
    with blasformer.num_threads(1):
        alone = train(kind, values | {"clip_norm": 3.0}, parameter, gradients)
    np.testing.assert_array_equal(train(kind, values | {"clip_norm": 3.0}, parameter, gradients), alone)


@pytest.mark.parametrize("case", CASES)
def test_steps_are_those_of_pytorch(case):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    kind, _, values = CASES[case]
    if kind is optim.Lion:
        pytest.skip("PyTorch has no Lion")
    parameter, gradients = trajectory((3, 129), np.float64)
    theirs = torch.tensor(parameter, requires_grad=True)
    optimizer = getattr(torch.optim, kind.__name__)([theirs], **values)
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    ours = train(kind, values, parameter, gradients)
    np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW])
def test_defaults_are_those_of_pytorch(kind):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    parameter, gradients = trajectory((3, 5), np.float64)
    theirs = torch.tensor(parameter, requires_grad=True)
    optimizer = getattr(torch.optim, kind.__name__)([theirs])
    for gradient in gradients:
        theirs.grad = torch.tensor(gradient)
        optimizer.step()
    np.testing.assert_allclose(train(kind, {}, parameter, gradients), theirs.detach().numpy(), rtol=1e-12)


def test_the_norm_is_that_of_all_gradients_together(isa, threads):
    random = np.random.default_rng(3)
    grads = {
        "a": random.standard_normal((3, 16411)).astype(np.float32) * np.float32(1e25),
        "b": random.standard_normal(17),
        "c": np.zeros((0, 4), np.float32),
        "d": np.full((), 1e20, np.float32),
    }
    exact = math.sqrt(sum((array.astype(np.longdouble) ** 2).sum() for array in grads.values()))
    assert optim.global_norm(grads) == pytest.approx(exact, rel=1e-14)
    assert optim.global_norm([{"a": grads["a"]}, {"b": grads["b"], "d": grads["d"]}]) == optim.global_norm(
        grads
    )


def test_the_norm_has_the_same_bits_for_every_instruction_set_and_number_of_threads(isa, threads):
    grads = {str(n): np.random.default_rng(n).standard_normal(n).astype(np.float32) for n in (1, 31, 40000)}
    with blasformer.num_threads(1), blasformer.use_isa("baseline"):
        alone = optim.global_norm(grads)
    assert optim.global_norm(grads) == alone


@pytest.mark.parametrize("case", CASES)
def test_clipping_scales_all_gradients_by_one_factor(case):
    kind, formula, values = CASES[case]
    parameter, gradients = trajectory((3, 33), np.float64, steps=3)
    clipped = [gradient * min(1, 7 / np.linalg.norm(gradient)) for gradient in gradients]
    result = train(kind, values | {"clip_norm": 7.0}, parameter, gradients)
    np.testing.assert_allclose(result, formula(parameter, clipped, **values), rtol=1e-12)


def test_gradients_within_the_norm_are_not_clipped():
    parameter, gradients = trajectory((3, 33), np.float64)
    unclipped = train(optim.AdamW, {}, parameter, gradients)
    np.testing.assert_array_equal(train(optim.AdamW, {"clip_norm": 1e9}, parameter, gradients), unclipped)


def test_a_step_returns_the_norm_before_clipping_and_leaves_gradients_alone():
    layer = Parameters(a=np.zeros(2), b=np.zeros((1, 1), np.float32))
    grads = {"a": np.array([3.0, 4.0]), "b": np.full((1, 1), 12, np.float32)}
    assert optim.SGD(layer, lr=1.0, clip_norm=1.3).step(grads) == 13
    np.testing.assert_array_equal(grads["a"], [3, 4])
    np.testing.assert_allclose(layer.arrays["a"], [-0.3, -0.4])


def test_clip_grad_norm_returns_scaled_gradients_and_leaves_its_input_alone():
    grads = {"a": np.array([3.0, 4.0]), "b": np.zeros(3, np.float32)}
    clipped, norm = optim.clip_grad_norm(grads, 0.5)
    assert norm == 5
    assert optim.global_norm(clipped) == pytest.approx(0.5)
    assert clipped["b"].dtype == np.float32
    np.testing.assert_array_equal(grads["a"], [3, 4])
    same, norm = optim.clip_grad_norm(grads, 5.0)
    assert same["a"] is grads["a"]
    with pytest.raises(ValueError, match="gradients must be finite, but their norm is nan"):
        optim.clip_grad_norm({"a": np.array([np.nan])}, 1.0)
    with pytest.raises(ValueError, match="max_norm must be > 0, got 0"):
        optim.clip_grad_norm(grads, 0)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("case", CASES)
def test_nonfinite_gradients_change_nothing(case, bad):
    kind, _, values = CASES[case]
    layer = Parameters(good=np.ones(40000), bad=np.ones(3, np.float32))
    optimizer = kind(layer, **values)
    grads = {"good": np.ones(40000), "bad": np.ones(3, np.float32)}
    optimizer.step(grads)
    parameters = {name: array.copy() for name, array in layer.arrays.items()}
    state = optimizer.state_dict()
    grads["bad"][2] = bad
    with pytest.raises(ValueError, match=r"gradients must be finite; NaN or Inf in: bad$"):
        optimizer.step(grads)
    for name, array in parameters.items():
        np.testing.assert_array_equal(layer.arrays[name], array)
    for name, value in optimizer.state_dict().items():
        np.testing.assert_array_equal(value, state[name])


def test_nonfinite_gradients_are_skipped_on_request():
    layer = Parameters(weight=np.ones(3))
    optimizer = optim.AdamW(layer, nonfinite="skip")
    assert math.isnan(optimizer.step({"weight": np.array([1, np.nan, 1])}))
    assert optimizer.step({"weight": np.array([1, np.inf, 1])}) == math.inf
    np.testing.assert_array_equal(layer.arrays["weight"], 1)
    assert optimizer.steps == 0
    assert optimizer.step({"weight": np.ones(3)}) == pytest.approx(math.sqrt(3))
    assert optimizer.steps == 1


def test_huge_finite_gradients_are_no_error_in_float32():
    layer = Parameters(weight=np.ones(3, np.float32))
    optim.AdamW(layer, lr=0.1, clip_norm=1.0).step({"weight": np.full(3, 3e38, np.float32)})
    assert np.isfinite(layer.arrays["weight"]).all()


BAD_GRADS = [
    ({"a": np.ones(3)}, ValueError, "that is not frozen; missing: b$"),
    (
        {"a": np.ones(3), "b": np.ones((2, 2)), "c": np.ones(3)},
        ValueError,
        "that is not frozen; unexpected: c$",
    ),
    (
        {"a": np.ones(3), "b": np.ones((2, 1))},
        ValueError,
        r"wrong shape: b must have the shape \(2, 2\), got",
    ),
    (
        {"a": np.ones(3), "b": np.ones((2, 2), "f")},
        TypeError,
        "b must be a NumPy array of float64, got float32",
    ),
    ({"a": [1, 2, 3], "b": np.ones((2, 2))}, TypeError, "a must be a NumPy array of float64, got list"),
    (
        {"a": np.ones(4), "c": np.ones(4)},
        ValueError,
        r"missing: b; unexpected: c; wrong shape: a must have the shape \(3,\), got \(4,\)$",
    ),
    ({}, ValueError, "that is not frozen; missing: a, b$"),
    ([{"a": np.ones(3), "b": np.ones((2, 2))}], ValueError, "grads must be one mapping"),
    (np.ones(3), TypeError, "grads must map names to arrays, got ndarray"),
    (3, TypeError, "grads must map names to arrays, got int"),
]


@pytest.mark.parametrize(("grads", "kind", "text"), BAD_GRADS)
def test_gradients_that_do_not_fit_are_one_clear_error_and_change_nothing(grads, kind, text):
    layer = Parameters(a=np.ones(3), b=np.ones((2, 2)))
    optimizer = optim.SGD(layer, lr=1.0, momentum=0.9)
    with pytest.raises(kind, match=text):
        optimizer.step(grads)
    assert (layer.arrays["a"] == 1).all()
    assert (layer.arrays["b"] == 1).all()
    assert optimizer.steps == 0


def test_several_layers_are_optimised_together():
    one, two = Parameters(weight=np.zeros(2)), Parameters(weight=np.zeros(3, np.float32))
    optimizer = optim.SGD([one, two], lr=1.0, groups=[{"match": "1.*", "lr": 2.0}])
    norm = optimizer.step([{"weight": np.ones(2)}, {"weight": np.ones(3, np.float32)}])
    assert norm == pytest.approx(math.sqrt(5))
    np.testing.assert_array_equal(one.arrays["weight"], -1)
    np.testing.assert_array_equal(two.arrays["weight"], -2)
    with pytest.raises(ValueError, match="grads must be a sequence of 2 mappings"):
        optimizer.step({"weight": np.ones(2)})


def test_groups_give_parameters_values_of_their_own():
    def layer():
        return Parameters(
            **{"linear.weight": np.ones((2, 2)), "linear.bias": np.ones(2), "norm.weight": np.ones(2)}
        )

    grads = {"linear.weight": np.zeros((2, 2)), "linear.bias": np.zeros(2), "norm.weight": np.zeros(2)}
    decayed = layer()
    no_decay = {"match": optim.biases_and_norms, "weight_decay": 0.0}
    optim.AdamW(decayed, lr=0.5, weight_decay=0.5, groups=[no_decay]).step(grads)
    assert {name: array.flat[0] for name, array in decayed.arrays.items()} == {
        "linear.weight": 0.75,
        "linear.bias": 1,
        "norm.weight": 1,
    }
    first_counts = layer()
    groups = [{"match": ["*.bias", "none"], "lr": 0.25}, {"match": "linear.*", "weight_decay": 0.0}]
    optimizer = optim.AdamW(first_counts, lr=0.5, weight_decay=0.5, groups=groups)
    optimizer.step(grads)
    assert {name: array.flat[0] for name, array in first_counts.arrays.items()} == {
        "linear.weight": 1,
        "linear.bias": 0.875,
        "norm.weight": 0.75,
    }
    optimizer.lr = 1.0
    optimizer.step(grads)
    assert first_counts.arrays["linear.bias"][0] == 0.875 * 0.75


def test_frozen_parameters_need_no_gradient_and_no_memory():
    layer = Parameters(embedding=np.ones(3), weight=np.ones(3))
    optimizer = optim.Adam(layer, groups=[{"match": "embedding", "frozen": True}])
    optimizer.step({"weight": np.ones(3)})
    optimizer.step({"weight": np.ones(3), "embedding": np.ones(3)})
    np.testing.assert_array_equal(layer.arrays["embedding"], 1)
    assert (layer.arrays["weight"] != 1).all()
    assert [name for name in optimizer.state_dict() if "embedding" in name] == []


def test_what_a_layer_froze_waits_until_it_is_unfrozen():
    layer, grads = nn.Linear(3, 2, dtype=np.float64, rng=0), {"weight": np.ones((2, 3)), "bias": np.ones(2)}
    before = layer.state_dict()
    optimizer = optim.AdamW(layer, lr=0.1, weight_decay=0.0)
    layer.freeze("weight")
    optimizer.step({"bias": grads["bias"]})
    np.testing.assert_array_equal(layer.parameters()["weight"], before["weight"])
    assert "exp_avg.weight" not in optimizer.state_dict()
    layer.unfreeze("weight")
    with pytest.raises(ValueError, match=r"missing: weight$"):
        optimizer.step({"bias": grads["bias"]})
    restored = optim.AdamW(layer, lr=0.1, weight_decay=0.0)
    restored.load_state_dict(optimizer.state_dict())
    restored.step(grads)
    # the first step of the one, the second of the other: each is as long as lr
    np.testing.assert_allclose(layer.parameters()["weight"], before["weight"] - 0.1, rtol=1e-6)
    np.testing.assert_allclose(layer.parameters()["bias"], before["bias"] - 0.2, rtol=1e-6)


def test_a_step_is_seen_in_views_and_ends_the_use_of_what_was_saved_before():
    layer = nn.Linear(3, 2, rng=0)
    view = layer.parameters()["bias"]
    y, saved = layer.forward(np.ones((5, 3), np.float32))
    _, grads = layer.backward(layer.forward(np.ones((5, 3), np.float32))[1], np.ones_like(y))
    optim.SGD(layer, lr=1.0).step(grads)
    np.testing.assert_array_equal(view, layer.parameters()["bias"])
    with pytest.raises(RuntimeError, match="weights of the layer were changed"):
        layer.backward(saved, np.ones_like(y))


@pytest.mark.parametrize(
    ("group", "kind", "text"),
    [
        (
            {"match": "wieght", "lr": 1.0},
            ValueError,
            "match must match a parameter, but 'wieght' matches none of ",
        ),
        (
            {"match": 3},
            TypeError,
            "match must be a name with wildcards, a list of them, or a function, got 3",
        ),
        ({"lr": 1.0}, ValueError, "a group must have the key 'match'"),
        ("weight", TypeError, "a group must map names to values, got str"),
        ({"match": "*", "frozen": "no"}, TypeError, "frozen of a group must be a bool, got str"),
        ({"match": "*", "dampening": 1.0}, ValueError, "a group may have the keys match, .* got dampening"),
        ({"match": "*", "lr": -1.0}, ValueError, "lr of a group must be >= 0 and finite, got -1.0"),
        (
            {"match": "*", "weight_decay": math.nan},
            ValueError,
            "weight_decay must be >= 0 and finite, got nan",
        ),
    ],
)
def test_a_group_that_makes_no_sense_is_refused(group, kind, text):
    with pytest.raises(kind, match=text):
        optim.AdamW(Parameters(weight=np.ones(3)), groups=[group])


@pytest.mark.parametrize(
    ("kind", "values", "error", "text"),
    [
        (optim.SGD, {"lr": -1.0}, ValueError, "lr must be >= 0 and finite, got -1.0"),
        (optim.SGD, {"lr": "fast"}, TypeError, "lr must be a number, got str"),
        (optim.SGD, {"nesterov": 0.9}, TypeError, "nesterov must be a bool, got float"),
        (optim.SGD, {"nesterov": True}, ValueError, "nesterov must have a momentum > 0, got 0"),
        (optim.Adam, {"betas": (0.9, 1.0)}, ValueError, "betas must be >= 0 and < 1, got 1.0"),
        (optim.Adam, {"betas": 0.9}, TypeError, "betas must be a pair of numbers, got 0.9"),
        (optim.AdamW, {"eps": -1e-8}, ValueError, "eps must be >= 0 and finite"),
        (optim.Lion, {"weight_decay": True}, TypeError, "weight_decay must be a number, got bool"),
        (optim.Lion, {"groups": {"match": "*"}}, TypeError, "groups must be a list of dicts, got dict"),
        (optim.Lion, {"clip_norm": 0}, ValueError, "clip_norm must be > 0 or None, got 0"),
        (
            optim.Lion,
            {"nonfinite": "ignore"},
            ValueError,
            "nonfinite must be 'error' or 'skip', got 'ignore'",
        ),
    ],
)
def test_values_that_make_no_sense_are_refused(kind, values, error, text):
    with pytest.raises(error, match=text):
        kind(Parameters(weight=np.ones(3)), **values)


@pytest.mark.parametrize(
    ("layer", "error", "text"),
    [
        (3, TypeError, r"layers must have parameters\(\), .* got int"),
        ([], ValueError, "layers must not be empty"),
        (Parameters(weight=[1.0]), TypeError, "parameter weight of Parameters must be .* got list"),
        (Parameters(weight=np.ones(3, np.float16)), TypeError, "float32 or float64, got float16"),
        (
            Parameters(weight=np.broadcast_to(1.0, 3)),
            ValueError,
            r"must be writeable, or the layer must have edit",
        ),
    ],
)
def test_layers_that_cannot_be_optimised_are_refused(layer, error, text):
    with pytest.raises(error, match=text):
        optim.AdamW(layer)


def test_a_parameter_with_two_names_is_updated_once_with_the_sum_of_its_gradients():
    shared = np.ones(3)
    layer = Parameters(embedding=shared, output=shared)
    optimizer = optim.SGD(layer, lr=1.0, weight_decay=0.5)
    norm = optimizer.step({"embedding": np.full(3, 1.0), "output": np.full(3, 2.0)})
    assert norm == pytest.approx(math.sqrt(27))
    np.testing.assert_array_equal(shared, 1 - 3.5)
    total = np.full(3, 4.0)
    optimizer.step({"embedding": total, "output": total})
    np.testing.assert_array_equal(shared, -2.5 - (4 - 1.25))


def test_a_parameter_of_two_layers_is_updated_once():
    layer = nn.Linear(2, 2, dtype=np.float64, rng=0)
    shared = np.ones((2, 2))
    optimizer = optim.SGD([Parameters(weight=shared), Parameters(weight=shared), layer], lr=1.0)
    before = layer.parameters()["weight"].copy()
    ours = {"weight": np.ones((2, 2)), "bias": np.zeros(2)}
    optimizer.step([{"weight": np.ones((2, 2))}, {"weight": np.ones((2, 2))}, ours])
    np.testing.assert_array_equal(shared, -1)
    np.testing.assert_array_equal(layer.parameters()["weight"], before - 1)


def test_parameters_and_gradients_may_have_any_strides():
    parameter, (gradient, *_) = trajectory((7, 33), np.float64)
    dense = train(optim.AdamW, {}, parameter, [gradient])
    memory = np.zeros((33, 14))
    strided = memory.T[::2]
    strided[...] = parameter
    layer = Parameters(weight=strided)
    optim.AdamW(layer).step({"weight": np.asfortranarray(gradient)})
    np.testing.assert_array_equal(strided, dense)
    assert (memory.T[1::2] == 0).all()


@pytest.mark.parametrize("kind", [optim.SGD, optim.Adam, optim.AdamW, optim.Lion])
def test_an_attribute_that_would_change_nothing_is_refused(kind):
    optimizer = kind(nn.Linear(2, 2))
    for name in ("weight_decay", "clip_norm", "momentum" if kind is optim.SGD else "betas"):
        with pytest.raises(AttributeError, match=rf"{name} must be given to {kind.__name__}\(\)"):
            setattr(optimizer, name, 0.5)
    optimizer.lr = 0.5
    optimizer.note = "of mine"
    assert (optimizer.lr, copy.deepcopy(optimizer).note) == (0.5, "of mine")


@pytest.mark.parametrize("case", CASES)
def test_gradients_may_be_views_of_weights(case):
    kind, _, values = CASES[case]
    layer, expected = (nn.FeedForward(8, 8, rng=0) for _ in range(2))
    optimizer, other = kind(layer, **values), kind(expected, **values)
    for _ in range(2):
        live = layer.parameters()
        grads = {
            "linear1.weight": live["linear2.weight"],
            "linear2.weight": live["linear1.weight"],
            "linear1.bias": live["linear1.weight"][0],
            "linear2.bias": live["linear2.bias"],
        }
        other.step({name: gradient.copy() for name, gradient in grads.items()})
        optimizer.step(grads)
    for name, array in layer.parameters().items():
        assert array.tobytes() == expected.parameters()[name].tobytes()
    arrays = {"a": np.array([1.0, 2.0]), "b": np.array([3.0, 4.0])}
    optim.SGD(Parameters(**arrays), lr=1.0).step({"a": arrays["b"], "b": arrays["a"]})
    assert np.array_equal(arrays["a"], [-2, -2])
    assert np.array_equal(arrays["b"], [2, 2])


def test_our_layers_compute_with_the_new_weights():
    layer = nn.Linear(3, 2, rng=0)
    x = np.ones((5, 3), np.float32)
    before = layer(x)
    optimizer = optim.SGD(layer, lr=1.0)
    optimizer.step({"weight": np.zeros((2, 3), np.float32), "bias": np.ones(2, np.float32)})
    np.testing.assert_allclose(layer(x), before - 1, rtol=1e-6)


@pytest.mark.parametrize("case", CASES)
def test_a_restored_optimiser_continues_with_the_same_bits(case, tmp_path):
    kind, _, values = CASES[case]
    parameter, gradients = trajectory((3, 37), np.float32, steps=6)
    whole = train(kind, values, parameter, gradients)
    layer = Parameters(weight=parameter.copy())
    optimizer = kind(layer, **values)
    for gradient in gradients[:3]:
        optimizer.step({"weight": gradient})
    np.savez(tmp_path / "state.npz", **optimizer.state_dict())
    with np.load(tmp_path / "state.npz") as saved:
        restored = kind(layer, **values | {"lr": 7.0})
        restored.load_state_dict(saved)
    assert (restored.steps, restored.lr) == (3, values["lr"])
    for gradient in gradients[3:]:
        restored.step({"weight": gradient})
    np.testing.assert_array_equal(layer.arrays["weight"], whole)


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_a_copy_of_a_model_and_its_optimiser_trains_on_by_itself_with_the_same_bits(copied):
    def step(model, optimizer):
        y, saved = model.forward(np.ones((5, 3), np.float32))
        return optimizer.step(model.backward(saved, y)[1])

    model = nn.Sequential(nn.Linear(3, 4, rng=0), nn.LayerNorm(4))
    optimizer = optim.AdamW(model, lr=0.1, groups=[{"match": optim.biases_and_norms, "weight_decay": 0.0}])
    step(model, optimizer)
    other, of_other = copied((model, optimizer))
    before = model.state_dict()
    step(other, of_other)
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, before[name])
    step(model, optimizer)
    for name, array in model.parameters().items():
        np.testing.assert_array_equal(array, other.parameters()[name])
    assert of_other.steps == optimizer.steps == 2


def test_a_state_of_another_optimiser_is_refused_and_changes_nothing():
    optimizer = optim.AdamW(Parameters(weight=np.ones(3), bias=np.ones(2)))
    state = optimizer.state_dict()
    foreign = optim.SGD(Parameters(weight=np.ones(3)), momentum=0.9).state_dict()
    with pytest.raises(
        ValueError, match=r"state dict of AdamW; missing: exp_avg.weight, .*; unexpected: momentum_b"
    ):
        optimizer.load_state_dict(foreign)
    with pytest.raises(ValueError, match=r"exp_avg.weight must have the shape \(3,\), got \(4,\)"):
        optimizer.load_state_dict(state | {"exp_avg.weight": np.ones(4)})
    with pytest.raises(ValueError, match="missing: step"):
        optimizer.load_state_dict({name: value for name, value in state.items() if name != "step"})
    with pytest.raises(ValueError, match="step must be >= 0"):
        optimizer.load_state_dict(state | {"step": -1, "lr": 5.0})
    with pytest.raises(TypeError, match=r"state\['lr'\] must be a number, got str"):
        optimizer.load_state_dict(state | {"lr": "fast"})
    with pytest.raises(TypeError, match="state must map names to numbers and arrays, got list"):
        optimizer.load_state_dict([state])
    assert (optimizer.steps, optimizer.lr) == (0, 1e-3)


def test_a_parameter_that_changes_its_shape_is_noticed():
    layer = Parameters(weight=np.ones(3))
    optimizer = optim.SGD(layer)
    layer.arrays["weight"] = np.ones(4)
    with pytest.raises(ValueError, match=r"parameter weight must stay float64 \(3,\), .* got float64 \(4,\)"):
        optimizer.step({"weight": np.ones(3)})


def test_ctrl_c_waits_for_the_end_of_a_step():
    class Interrupting(Parameters):
        """Ctrl-C comes when the step has begun."""

        def parameters(self):
            if self.armed:
                os.kill(os.getpid(), signal.SIGINT)
            return self.arrays

    layer = Interrupting(weight=np.ones(100000))
    layer.armed = False
    optimizer = optim.SGD(layer, lr=1.0)
    layer.armed = True
    with pytest.raises(KeyboardInterrupt):
        optimizer.step({"weight": np.ones(100000)})
    assert (layer.arrays["weight"] == 0).all()
    assert optimizer.steps == 1
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_two_steps_at_once_are_refused():
    entered, leave = threading.Event(), threading.Event()

    class Waiting(Parameters):
        def parameters(self):
            if threading.current_thread() is not threading.main_thread():
                entered.set()
                leave.wait(30)
            return self.arrays

    layer = Waiting(weight=np.ones(3))
    optimizer = optim.SGD(layer)
    other = threading.Thread(target=optimizer.step, args=({"weight": np.ones(3)},))
    other.start()
    entered.wait(30)
    with pytest.raises(RuntimeError, match="one step at a time"):
        optimizer.step({"weight": np.ones(3)})
    leave.set()
    other.join()
    assert optimizer.steps == 1


SCHEDULES = {
    "constant": optim.constant_schedule(2.0, warmup=5),
    "linear": optim.linear_schedule(2.0, steps=30, warmup=5, final=0.5),
    "cosine": optim.cosine_schedule(2.0, steps=30, warmup=5, final=0.5),
    "inverse square root": optim.inverse_sqrt_schedule(2.0, warmup=5),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_rises_linearly_to_its_rate_and_never_again(name):
    rates = [SCHEDULES[name](step) for step in range(60)]
    np.testing.assert_allclose(rates[:5], [0.4, 0.8, 1.2, 1.6, 2.0])
    assert all(later <= earlier for earlier, later in itertools.pairwise(rates[4:]))
    assert rates[59] == {"constant": 2, "linear": 0.5, "cosine": 0.5}.get(name, 2 * math.sqrt(5 / 60))


def test_schedules_without_warm_up_begin_at_their_rate():
    assert optim.constant_schedule(2.0)(0) == 2
    assert optim.linear_schedule(2.0, steps=3)(0) == 2
    assert optim.cosine_schedule(2.0, steps=3)(0) == 2


def test_schedules_refuse_what_makes_no_sense():
    with pytest.raises(ValueError, match="steps must be >= 6, got 5"):
        optim.cosine_schedule(1.0, steps=5, warmup=5)
    with pytest.raises(ValueError, match="warmup must be >= 1, got 0"):
        optim.inverse_sqrt_schedule(1.0, warmup=0)
    with pytest.raises(TypeError, match="steps must be an integer, got float"):
        optim.linear_schedule(1.0, steps=1e3)
    with pytest.raises(ValueError, match="lr must be >= 0 and finite, got -1"):
        optim.constant_schedule(-1)
