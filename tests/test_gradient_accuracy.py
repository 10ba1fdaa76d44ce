"""Outputs and gradients of layers are as accurate as those of their formulas in plain NumPy."""

import blasformer
import numpy as np
import pytest
import reference
import tape
from blasformer import _core, nn
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
ISAS = [*_core.detected_isas(), "amx_reference"]  # the last one is slow: for small layers
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


def assert_as_accurate_as_numpy(layer, formula, inputs, *, orders=3, isas=ISAS, **arguments):
    """y, every gradient the layer gives and that of every input; any instruction set, one thread and two."""
    whole, named = of_one_dict(formula, inputs, **arguments)
    y = layer(*inputs, **arguments)
    d_y = normal(y.shape, y.dtype, 9)
    accuracy = Accuracy(whole, {**named, **layer.state_dict()}, d_y, y.dtype.type, orders)
    for isa in isas:
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
    assert_as_accurate_as_numpy(lively(case, dtype), case.formula, inputs_of(case, dtype))


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


@pytest.mark.parametrize("num_kv_heads", [4, 2])
@pytest.mark.parametrize("widths", [(24, 24), (24, 10), (7, 24), (7, 10)])
def test_attention_to_keys_and_values_of_their_own_is_as_accurate_as_numpy(widths, num_kv_heads):
    layer = nn.MultiheadAttention(24, 4, kdim=widths[0], vdim=widths[1], num_kv_heads=num_kv_heads, rng=0)
    inputs = [normal((2, 35, 24)), *(normal((2, 19, width), seed=width) for width in widths)]

    def formula(p, *inputs, **arguments):
        heads = {"num_heads": 4, "num_kv_heads": num_kv_heads}
        return reference.multi_head_attention(p, *inputs, **heads, **arguments)

    assert_as_accurate_as_numpy(layer, formula, inputs, key_lengths=[19, 8], causal="lower_right")


def test_an_embedding_is_as_accurate_as_numpy_however_often_an_id_occurs():
    layer = nn.Embedding(5, 33, rng=0)
    ids = np.random.default_rng(0).choice(5, (3, 1000), p=[0.9, 0.07, 0.02, 0.01, 0])
    y, saved = layer.forward(ids)
    d_y = normal(y.shape, seed=9)
    _, grads = layer.backward(saved, d_y)
    Accuracy(
        lambda p, *, dtype: reference.embedding(ids, p["weight"], dtype=dtype),
        layer.state_dict(),
        d_y,
        np.float32,
    ).check({"y": y, **grads})


@pytest.mark.parametrize("name", ["post-norm encoder layer", "pre-norm decoder layer"])
@pytest.mark.parametrize("learning", ["everything", "a part", "nothing"])
@pytest.mark.parametrize("recompute", [False, True])
def test_layers_of_which_a_part_learns_are_as_accurate_as_numpy(name, learning, recompute):
    case = (LAYERS | DECODING)[name]
    layer = lively(case)
    layer = type(layer)(**{**layer._arguments, "recompute": recompute})
    layer.load_state_dict(lively(case).state_dict())
    if learning != "everything":
        layer.freeze()
    if learning == "a part":
        layer.unfreeze("self_attn.in_proj_weight", "linear1.bias", "norm2.*")
    assert_as_accurate_as_numpy(layer, case.formula, inputs_of(case), causal=True)


# ----------------------------------------------------------------------------------------------------------
# Sizes at which something changes: edges of tiles, powers of two, heads one wider than a vector
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("head_dim", [64, 65, 128, 129])
@pytest.mark.parametrize("length", [1, 4, 5, 33, 129])
def test_attention_of_any_head_dim_and_length_is_as_accurate_as_numpy(head_dim, length):
    layer = nn.MultiheadAttention(2 * head_dim, 2, num_kv_heads=1, rng=0)

    def formula(p, x, **arguments):
        return reference.multi_head_attention(p, x, num_heads=2, num_kv_heads=1, **arguments)

    assert_as_accurate_as_numpy(
        layer, formula, [normal((1, length, 2 * head_dim))], isas=_core.detected_isas(), causal=True
    )


@pytest.mark.parametrize("rows", [1, 4, 5, 17, 129])
@pytest.mark.parametrize("widths", [(64, 512), (256, 256), (257, 65), (512, 33), (33, 513)], ids=str)
def test_layers_of_any_rows_and_widths_are_as_accurate_as_numpy(rows, widths):
    networks = [
        (nn.FeedForward(*widths, rng=0), reference.feed_forward),
        (nn.GatedFeedForward(*widths, rng=0), reference.gated_feed_forward),
    ]
    for layer, formula in networks:
        assert_as_accurate_as_numpy(layer, formula, [normal((rows, widths[0]))], isas=_core.detected_isas())


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize(("d_model", "heads", "length"), [(128, 2, 129), (130, 2, 65), (129, 1, 257)])
def test_encoder_layers_of_any_size_are_as_accurate_as_numpy(d_model, heads, length, norm_first):
    layer = nn.TransformerEncoderLayer(
        d_model, heads, 2 * d_model, activation="silu", norm_first=norm_first, rng=0
    )

    def formula(p, x, **arguments):
        variant = {"num_heads": heads, "activation": "silu", "norm_first": norm_first}
        return reference.transformer_encoder_layer(p, x, **variant, **arguments)

    assert_as_accurate_as_numpy(layer, formula, [normal((1, length, d_model))], isas=_core.detected_isas())
