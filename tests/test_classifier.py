"""models.Classifier: its formula, its loss and gradients, training, prediction and the folders it lies in."""

import json
import pickle

import blasformer
import numpy as np
import pytest
import reference
from blasformer import models, nn, optim
from derivatives import Accuracy, assert_is_derivative
from layer_cases import same_bits, shaken

CLASSES, LONGEST, VOCABULARY, FEATURES = 5, 12, 23, 7
VARIANTS = {
    "ids": {"vocab_size": VOCABULARY},
    "ids, class token, post-norm": {"vocab_size": VOCABULARY, "pooling": "first", "norm_first": False},
    "vectors": {"in_features": FEATURES, "recompute": True},
    "vectors, class token": {"in_features": FEATURES, "pooling": "first", "activation": "gelu_tanh"},
    "vectors, post-norm": {"in_features": FEATURES, "norm_first": False, "num_layers": 1},
}
LENGTHS = np.array([9, 1, 0, 5])
HOLES = np.random.default_rng(8).random((4, 9)) < 0.6
PRESENT = {
    "all": {},
    "lengths": {"lengths": LENGTHS},
    "mask": {"mask": HOLES},
    "lengths and mask": {"lengths": LENGTHS, "mask": HOLES},
}


def make(variant, dtype=np.float64, **changes):
    """A model of which no weight is zero or one, and whose attention is far from uniform."""
    sizes = {"d_model": 24, "nhead": 3, "num_layers": 2, "dim_feedforward": 37, "dropout": 0.0}
    model = models.Classifier(CLASSES, LONGEST, **sizes | VARIANTS[variant] | changes, dtype=dtype, rng=1)
    return shaken(model)


def inputs(variant, *shape, dtype=np.float64, seed=0):
    random = np.random.default_rng(seed)
    if "vocab_size" in VARIANTS[variant]:
        return random.integers(0, VOCABULARY, shape)
    return random.standard_normal((*shape, FEATURES)).astype(dtype)


def presence(lengths=None, mask=None):
    present = np.ones((4, 9), bool) if mask is None else mask
    return present if lengths is None else present & (np.arange(9) < lengths[:, None])


def formula(model, x, parameters, dtype=np.float64, **present):
    arguments = model._arguments
    return reference.classifier(
        parameters,
        x,
        num_layers=arguments["num_layers"],
        num_heads=arguments["nhead"],
        norm_first=arguments["norm_first"],
        activation=arguments["activation"],
        present=presence(**present) if present else None,
        dtype=dtype,
    )


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("variant", VARIANTS)
def test_logits_are_as_accurate_as_numpy(variant, present, isa):
    model, x = make(variant, np.float32), inputs(variant, 4, 9, dtype=np.float32)

    def of_parameters(parameters, dtype):
        return formula(model, x, parameters, dtype, **PRESENT[present])

    reference.assert_as_accurate_as_numpy(model(x, **PRESENT[present]), of_parameters, model.state_dict())


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_are_the_derivatives_of_the_loss(variant, present):
    model, x, targets = make(variant), inputs(variant, 4, 9), np.array([3, 0, 4, -100])
    weight = np.array([0.5, 1.0, 2.0, 0.25, 3.0])
    options = {"label_smoothing": 0.1, "class_weight": weight}
    loss, grads = model.loss_and_gradients(x, targets, **options, **PRESENT[present])

    def function(parameters):
        logits = formula(model, x, parameters, **PRESENT[present])
        return reference.cross_entropy(logits, targets, label_smoothing=0.1, weight=weight)[0]

    assert loss == pytest.approx(function(model.state_dict()), rel=1e-12)
    assert model.loss(x, targets, **options, **PRESENT[present]) == pytest.approx(loss, rel=1e-12)
    assert model.target_count(x, targets, class_weight=weight) == 0.25 + 0.5 + 3
    assert_is_derivative(function, model.state_dict(), grads)


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_of_the_loss_are_as_accurate_as_numpys(variant, present, isa):
    model, x = make(variant, np.float32), inputs(variant, 4, 9, dtype=np.float32)
    targets = np.array([3, 0, 4, 1])

    def function(parameters, dtype):
        logits = formula(model, x, parameters, dtype, **PRESENT[present])
        return reference.cross_entropy(logits, targets, dtype=dtype)[0]

    accuracy = Accuracy(function, model.state_dict(), 1, np.float32)
    accuracy.check(model.loss_and_gradients(x, targets, **PRESENT[present])[1])


@pytest.mark.parametrize("present", PRESENT)
@pytest.mark.parametrize("variant", VARIANTS)
def test_backward_gives_the_gradients_of_parameters_and_vectors(variant, present):
    model, x, targets = make(variant), inputs(variant, 4, 9), np.array([3, 0, 4, 1])
    logits, saved = model.forward(x, rng=3, **PRESENT[present])
    assert saved.nbytes > 0
    loss, d_logits = blasformer.cross_entropy(logits, targets)
    d_x, grads = model.backward(saved, d_logits)
    own_loss, own_grads = model.loss_and_gradients(x, targets, rng=3, **PRESENT[present])
    assert own_loss == pytest.approx(loss, rel=1e-12)
    for name, gradient in grads.items():
        np.testing.assert_allclose(own_grads[name], gradient, atol=1e-12)
    if "vocab_size" in VARIANTS[variant]:
        assert d_x is None
        return

    def function(arrays):
        return reference.cross_entropy(
            formula(model, arrays["x"], model.state_dict(), **PRESENT[present]), targets
        )[0]

    assert_is_derivative(function, {"x": x}, {"x": d_x})
    if PRESENT[present]:
        assert not d_x[~presence(**PRESENT[present])].any()


@pytest.mark.parametrize("variant", VARIANTS)
def test_what_is_not_there_is_not_looked_at(variant):
    model, x, targets = make(variant), inputs(variant, 4, 9), np.array([3, 0, 4, 1])
    present = PRESENT["lengths and mask"]
    wild = x.copy()
    wild[~presence(**present)] = -7 if "vocab_size" in VARIANTS[variant] else np.nan
    assert same_bits(model(x, **present), model(wild, **present))
    loss, grads = model.loss_and_gradients(x, targets, **present)
    same, same_grads = model.loss_and_gradients(wild, targets, **present)
    assert loss == same
    assert all(same_bits(gradient, same_grads[name]) for name, gradient in grads.items())


@pytest.mark.parametrize("variant", VARIANTS)
def test_one_sequence_needs_no_axis_for_the_batch(variant):
    model, x = make(variant), inputs(variant, 9)
    assert same_bits(model(x), model(x[None])[0])
    assert model.predict(x).shape == ()
    assert model.loss(x, 3, lengths=5) == model.loss(x[None], [3], lengths=[5])
    logits, saved = model.forward(x)
    d_x, _ = model.backward(saved, np.ones_like(logits))
    assert d_x is None or d_x.reshape(x.shape).shape == x.shape


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("shape", [(0, 5), (3, 0)])
def test_empty_batches_are_legal(variant, shape):
    model, x = make(variant), inputs(variant, *shape)
    assert model(x).shape == (shape[0], CLASSES)
    _, grads = model.loss_and_gradients(x, np.full(shape[0], -100))
    assert not any(gradient.any() for gradient in grads.values())


@pytest.mark.parametrize("variant", VARIANTS)
def test_attention_weights_are_returned(variant):
    model, x = make(variant), inputs(variant, 4, 9)
    length = 10 if model._arguments["pooling"] == "first" else 9
    logits, weights = model(x, lengths=[9, 3, 5, 1], return_weights=(-1,))
    assert same_bits(logits, model(x, lengths=[9, 3, 5, 1]))
    assert weights[-1].shape == (4, 3, length, length)
    assert model(x[0], return_weights=True)[1][0].shape == (3, length, length)


@pytest.mark.parametrize("variant", VARIANTS)
def test_results_have_the_same_bits_for_every_number_of_threads(variant):
    model, x = make(variant, np.float32, dropout=0.2), inputs(variant, 33, 9, dtype=np.float32)
    targets, results = np.arange(33) % CLASSES, []
    for count in (1, 2, 3):
        with blasformer.num_threads(count):
            results.append((model(x), *model.loss_and_gradients(x, targets, rng=5)))
    for logits, loss, grads in results[1:]:
        assert same_bits(logits, results[0][0])
        assert loss == results[0][1]
        assert all(same_bits(gradient, results[0][2][name]) for name, gradient in grads.items())


@pytest.mark.parametrize(
    "frozen",
    [
        ("embedding.*",),
        ("embedding.*", "position_embedding.*"),
        ("embedding.*", "position_embedding.*", "encoder.layers.0.*"),
        ("embedding.*", "position_embedding.*", "encoder.*"),
        ("encoder.*",),
        ("head.*",),
    ],
)
@pytest.mark.parametrize("variant", VARIANTS)
def test_frozen_parameters_have_no_gradients_and_the_others_are_the_same(variant, frozen):
    model, x, targets = make(variant), inputs(variant, 4, 9), np.array([3, 0, 4, 1])
    loss, everything = model.loss_and_gradients(x, targets, rng=1)
    model.freeze(*frozen)
    same, some = model.loss_and_gradients(x, targets, rng=1)
    assert same == loss
    assert set(some) == set(everything) - model.frozen
    assert all(same_bits(gradient, everything[name]) for name, gradient in some.items())
    total = {name: np.ones_like(gradient) for name, gradient in some.items()}
    model.loss_and_gradients(x, targets, rng=1, accumulate=total)
    for name, gradient in some.items():
        np.testing.assert_allclose(total[name], 1 + gradient, atol=1e-13)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_small_model_learns_a_few_sequences_by_heart(variant):
    model = models.Classifier(
        CLASSES, LONGEST, d_model=32, nhead=4, **{"num_layers": 2} | VARIANTS[variant], rng=0
    )
    x, targets = inputs(variant, 20, 9, dtype=np.float32), np.arange(20) % CLASSES
    optimizer, generator = optim.AdamW(model, lr=5e-3), np.random.default_rng(0)
    for _ in range(60):
        _, grads = model.loss_and_gradients(x, targets, rng=generator)
        optimizer.step(grads)
    np.testing.assert_array_equal(model.predict(x), targets)
    probabilities = model.predict_proba(x)
    np.testing.assert_allclose(probabilities.sum(-1), 1, rtol=1e-6)
    assert probabilities[np.arange(20), targets].min() > 0.5


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_saved_model_is_loaded_as_it_was(tmp_path, variant, dtype):
    model, x = make(variant, dtype), inputs(variant, 4, 9, dtype=dtype)
    model.save(tmp_path)
    loaded = models.Classifier.from_pretrained(tmp_path)
    assert loaded._arguments == model._arguments
    assert same_bits(loaded(x), model(x))
    assert same_bits(pickle.loads(pickle.dumps(model))(x), model(x))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"model_type": "gpt2"}, "model_type must be 'blasformer_classifier' for Classifier, got 'gpt2'"),
        ({"d_model": None}, "config.json lacks d_model"),
        ({"nhead": "3"}, "nhead must be an integer, got str"),
        ({"in_features": 7}, "one of vocab_size and in_features must be given"),
        ({"pooling": "last"}, 'pooling must be "mean" or "first", got "last"'),
        ({"num_layers": 1}, "unexpected: encoder.layers.1.linear1.bias"),
        ({"num_classes": 4}, r"misshapen: head.bias \(5,\) instead of \(4,\)"),
    ],
)
def test_a_folder_of_something_else_is_refused(tmp_path, change, text):
    make("ids").save(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    for name, value in change.items():
        config[name] = value
        if value is None:
            del config[name]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match=text):
        models.Classifier.from_pretrained(tmp_path)


def test_a_model_is_a_module():
    assert isinstance(make("ids"), nn.Module)


@pytest.mark.parametrize(
    ("variant", "arguments", "error", "text"),
    [
        ("ids", {"x": [[1.0, 2.0]]}, TypeError, "x must be integers, got float64"),
        ("ids", {"x": [[[1]]]}, ValueError, r"x must have the shape \(batch, length\) or \(length,\), got"),
        ("ids", {"x": np.full((4, 9), 23)}, IndexError, r"^x must lie in \[0, 23\), got 23 at position 0"),
        ("ids", {"x": np.zeros((4, 13), int)}, ValueError, "x must have at most max_length = 12 positions"),
        ("vectors", {"x": np.zeros((4, 9, 6))}, ValueError, r"x must have the shape \(batch, length, 7\)"),
        ("vectors", {"x": np.zeros((4, 9, 7), np.float32)}, TypeError, "x must be a NumPy array of float64"),
        ("vectors", {"x": np.zeros(7)}, ValueError, r"x must have the shape \(batch, length, 7\)"),
        ("ids", {"lengths": [3]}, ValueError, r"lengths must have the shape \(4,\), got \(1,\)"),
        ("ids", {"lengths": [3, 10, 0, 0]}, ValueError, "lengths must lie between 0 and the 9 positions"),
        ("ids", {"mask": np.ones((4, 9), int)}, TypeError, "mask must be a NumPy array of bool"),
        ("ids", {"mask": np.ones((4, 8), bool)}, ValueError, r"mask must have the shape \(4, 9\), got"),
        ("ids", {"targets": [1, 2]}, ValueError, r"targets must have the shape \(4,\), got \(2,\)"),
        ("ids", {"targets": [1, 2, 5, 0]}, IndexError, r"targets must be classes in \[0, 5\)"),
        ("ids", {"class_weight": np.ones(4)}, ValueError, r"class_weight must have the shape \(5,\), got"),
        ("ids", {"class_weight": -np.ones(5)}, ValueError, "class_weight must be finite and not negative"),
        ("ids", {"divisor": -1}, ValueError, "divisor must be positive, got -1"),
        ("ids", {"label_smoothing": -0.1}, ValueError, "label_smoothing must lie between 0 and 1, got -0.1"),
    ],
)
def test_arguments_that_do_not_fit_are_named(variant, arguments, error, text):
    model = make(variant)
    accumulate = {name: np.ones_like(array) for name, array in model.parameters().items()}
    given = {"x": inputs(variant, 4, 9), "targets": [0, 1, 2, 3], "accumulate": accumulate} | arguments
    with pytest.raises(error, match=text):
        model.loss_and_gradients(**given)
    assert all((array == 1).all() for array in accumulate.values())


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"num_classes": 0}, ValueError, "num_classes must be positive, got 0"),
        ({"max_length": -1}, ValueError, "max_length must be positive, got -1"),
        ({"vocab_size": 0}, ValueError, "vocab_size must be positive, got 0"),
        ({"vocab_size": None}, ValueError, "one of vocab_size and in_features must be given"),
        ({"vocab_size": None, "in_features": 0}, ValueError, "in_features must be positive, got 0"),
        ({"num_layers": 0}, ValueError, "num_layers must be positive, got 0"),
        ({"nhead": 5}, ValueError, "d_model must be a multiple of nhead = 5, got 8"),
        ({"pooling": "max"}, ValueError, 'pooling must be "mean" or "first", got "max"'),
        ({"dtype": int}, TypeError, "dtype must be float32 or float64"),
    ],
)
def test_sizes_that_make_no_model_are_named(change, error, text):
    sizes = {"num_classes": 3, "max_length": 6, "vocab_size": 5, "d_model": 8, "nhead": 2, "num_layers": 1}
    with pytest.raises(error, match=text):
        models.Classifier(**sizes | change)


# ----------------------------------------------------------------------------------------------------------
# Patches
# ----------------------------------------------------------------------------------------------------------


def test_patches_are_the_parts_of_an_image():
    images = np.random.default_rng(0).random((3, 6, 10, 2))
    patches = models.image_patches(images, (3, 5))
    assert patches.shape == (3, 4, 30)
    np.testing.assert_array_equal(patches[1, 0], images[1, :3, :5].ravel())
    np.testing.assert_array_equal(patches[1, 1], images[1, :3, 5:].ravel())
    np.testing.assert_array_equal(patches[2, 2], images[2, 3:, :5].ravel())
    grey = models.image_patches(images[..., 0], (3, 5))
    np.testing.assert_array_equal(grey, patches[..., ::2])


@pytest.mark.parametrize(
    ("images", "patch_size", "error", "text"),
    [
        ([[1]], 1, TypeError, "images must be a NumPy array, got list"),
        (np.zeros((4, 4)), 2, ValueError, r"images must have the shape \(N, H, W\)"),
        (np.zeros((1, 4, 4)), 3, ValueError, "patch_size must divide the height and the width"),
        (np.zeros((1, 4, 4)), 0, ValueError, "patch_size must divide the height and the width"),
        (np.zeros((1, 4, 4)), 2.0, TypeError, "patch_size must be an integer, got float"),
        (np.zeros((1, 4, 4)), (2, 2, 2), ValueError, "patch_size must be an integer or two"),
    ],
)
def test_images_that_cannot_be_cut_are_refused(images, patch_size, error, text):
    with pytest.raises(error, match=text):
        models.image_patches(images, patch_size)
