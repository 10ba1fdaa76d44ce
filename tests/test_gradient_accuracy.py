"""Outputs and gradients of layers are as accurate as those of their formulas in plain NumPy."""

import blasformer
import numpy as np
import pytest
import tape
from blasformer import _core
from derivatives import Accuracy, assert_is_derivative
from layer_cases import (
    ATTENDING,
    DECODER_MASKS,
    DECODING,
    LAYERS,
    MASKS,
    TRANSFORMER_MASKS,
    TRANSFORMERS,
    lively,
    normal,
)

WITH_MEMORY = {**DECODING, **{f"transformer, {name}": case for name, case in TRANSFORMERS.items()}}
STACKS = {name for name in ATTENDING | DECODING if name.endswith(("encoder", "decoder"))}
MASKED = [
    *((name, mask) for name in ATTENDING if name not in STACKS for mask in MASKS),
    *((name, mask) for name in DECODING if name not in STACKS for mask in DECODER_MASKS),
    *((f"transformer, {name}", mask) for name in TRANSFORMERS for mask in TRANSFORMER_MASKS),
]
NAMES = ("first input", "second input", "third input")


def inputs_of(case, dtype=np.float32):
    shapes = case.shapes if hasattr(case, "shapes") else (case.shape,)
    return [normal(shape, dtype, seed) for seed, shape in enumerate(shapes, 3)]


def masks_of(mask, case, dtype=np.float32):
    if hasattr(case, "shapes"):
        masks = (DECODER_MASKS | TRANSFORMER_MASKS)[mask](*case.shapes, np.random.default_rng(5))
    else:
        masks = MASKS[mask](case, np.random.default_rng(5))
    return {key: array.astype(dtype) if key == "bias" else array for key, array in masks.items()}


def of_one_dict(formula, inputs, **arguments):
    """formula(p, *inputs) as a function of one dict that holds them all, and the inputs with their names."""
    names = NAMES[: len(inputs)]

    def whole(arrays, *, dtype):
        parameters = {name: array for name, array in arrays.items() if name not in names}
        return formula(parameters, *(arrays[name] for name in names), dtype=dtype, **arguments)

    return whole, dict(zip(names, inputs, strict=True))


def assert_as_accurate_as_numpy(layer, formula, inputs, *, orders=1, **arguments):
    """y, every gradient the layer gives and that of every input; any instruction set, one thread and two."""
    whole, named = of_one_dict(formula, inputs, **arguments)
    y = layer(*inputs, **arguments)
    d_y = normal(y.shape, y.dtype, 9)
    accuracy = Accuracy(whole, {**named, **layer.state_dict()}, d_y, y.dtype.type, orders)
    for isa in _core.detected_isas():
        for threads in (1, 2):
            with blasformer.use_isa(isa), blasformer.num_threads(threads):
                y, saved = layer.forward(*inputs, **arguments)
                d_inputs, grads = layer.backward(saved, d_y)
            d_inputs = d_inputs if isinstance(d_inputs, tuple) else (d_inputs,)
            d_named = {name: d for name, d in zip(named, d_inputs, strict=False) if d is not None}
            assert grads.keys() == layer.parameters().keys() - layer.frozen
            accuracy.check({"y": y, **d_named, **grads}, f"{isa}, {threads} threads:")


# ----------------------------------------------------------------------------------------------------------
# The tape itself
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in LAYERS | DECODING if name not in STACKS])
def test_the_gradients_of_the_tape_are_the_derivatives_of_the_formula(name):
    case = (LAYERS | DECODING)[name]
    inputs = inputs_of(case, np.float64)
    masks = {"causal": True} if name in ATTENDING | DECODING else {}
    formula, named = of_one_dict(case.formula, inputs, **masks)
    arrays = {**named, **lively(case, np.float64).state_dict()}
    y = formula(arrays, dtype=np.float64)
    d_y = normal(y.shape, np.float64, 9)
    recorded, gradients = tape.run(formula, arrays, d_y)
    np.testing.assert_array_equal(recorded, y)
    assert_is_derivative(lambda arrays: np.sum(d_y * formula(arrays, dtype=np.float64)), arrays, gradients)


# ----------------------------------------------------------------------------------------------------------
# Layers
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*LAYERS, *WITH_MEMORY])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_layers_are_as_accurate_as_numpy(name, dtype):
    case = (LAYERS | WITH_MEMORY)[name]
    orders = 1 if dtype == np.float32 else 3
    assert_as_accurate_as_numpy(lively(case, dtype), case.formula, inputs_of(case, dtype), orders=orders)


@pytest.mark.parametrize(("name", "mask"), MASKED)
def test_layers_under_masks_are_as_accurate_as_numpy(name, mask):
    case = (LAYERS | WITH_MEMORY)[name]
    assert_as_accurate_as_numpy(lively(case), case.formula, inputs_of(case), **masks_of(mask, case))


def with_outliers(x):
    """As in trained Transformers: one feature far larger than the others and one far from zero."""
    x[..., 3] *= 10
    x[..., 1] += 10
    return x


@pytest.mark.parametrize("name", [name for name in LAYERS if name not in ATTENDING])
@pytest.mark.parametrize(
    "hard",
    [lambda x: 1000 * x, lambda x: x / 1000, lambda x: x + 100, lambda x: x + 1000, with_outliers],
    ids=["large", "small", "shifted", "shifted far", "outliers"],
)
def test_layers_of_rows_are_as_accurate_as_numpy_for_hard_inputs(name, hard):
    case = LAYERS[name]
    assert_as_accurate_as_numpy(lively(case), case.formula, [hard(x) for x in inputs_of(case)])


@pytest.mark.parametrize("name", [*ATTENDING, *WITH_MEMORY])
@pytest.mark.parametrize(
    "hard", [lambda x: 3 * x, lambda x: x + 3, with_outliers], ids=["large", "shifted", "outliers"]
)
def test_attending_layers_are_as_accurate_as_numpy_for_hard_inputs(name, hard):
    """Inputs with which one key takes all are for test_attention_gradients.py: the gradients of scores are
    then differences that cancel, whose error is measured against what they are differences of."""
    case = (ATTENDING | WITH_MEMORY)[name]
    inputs = [hard(x) for x in inputs_of(case)]
    assert_as_accurate_as_numpy(lively(case), case.formula, inputs, orders=5)
