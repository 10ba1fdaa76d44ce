"""Layers: equal to their formulas, with live parameters that only whole, fitting sets of arrays replace."""

import copy
import pickle
import threading

import blasformer
import numpy as np
import pytest
import reference
from blasformer import models, nn
from derivatives import Accuracy
from layer_cases import ATTENDING, LAYERS, MASKS, lively, make_encoder, normal, same_bits
from reference import assert_as_accurate_as_numpy

# ----------------------------------------------------------------------------------------------------------
# The formula
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("name", LAYERS)
def test_output_is_as_accurate_as_numpy(name, dtype, product_isa):
    case = LAYERS[name]
    layer = lively(case, dtype)
    x = normal(case.shape, dtype)
    assert_as_accurate_as_numpy(
        layer(x), lambda x, dtype: case.formula(layer.parameters(), x, dtype=dtype), x
    )


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("mask", MASKS)
@pytest.mark.parametrize("name", ATTENDING)
def test_attending_layers_take_the_masks_of_attention(name, mask, dtype):
    case = ATTENDING[name]
    layer = lively(case, dtype)
    x = normal(case.shape, dtype)
    masks = MASKS[mask](case, np.random.default_rng(3))
    if "bias" in masks:
        masks["bias"] = masks["bias"].astype(dtype)
    assert_as_accurate_as_numpy(
        layer(x, **masks), lambda x, dtype: case.formula(layer.parameters(), x, dtype=dtype, **masks), x
    )


@pytest.mark.parametrize("block", [32, 64, 50])
def test_a_layer_takes_block_sparse_masks(block):
    layer = nn.TransformerEncoderLayer(16, 2, 24, rng=0)
    x = normal((2, 299, 16))
    place = np.arange(299) // block
    near = np.abs(place[:, None] - place) <= 1
    mask = (near | (place == 0)) & (place != 3)  # a band of blocks and the first one, but nobody sees block 3
    y = layer(x, mask=mask)
    assert_as_accurate_as_numpy(
        y,
        lambda x, dtype: reference.transformer_encoder_layer(
            layer.parameters(), x, num_heads=2, mask=mask, dtype=dtype
        ),
        x,
    )
    x[:, place == 3] = np.nan
    assert same_bits(layer(x, mask=mask)[:, place != 3], y[:, place != 3])


@pytest.mark.parametrize("name", ATTENDING)
def test_alibi_slopes_reach_every_head(name):
    case = ATTENDING[name]
    layer = lively(case)
    arguments = layer._arguments.get("encoder_layer", layer)._arguments
    heads = arguments.get("num_heads", arguments.get("nhead"))
    slopes = (2.0 ** -np.arange(1, heads + 1)).astype(np.float32)
    x = normal(case.shape)
    assert_as_accurate_as_numpy(
        layer(x, alibi_slopes=slopes),
        lambda x, dtype: case.formula(layer.parameters(), x, dtype=dtype, alibi_slopes=slopes),
        x,
    )


@pytest.mark.parametrize("shape", [(1, 5), (5, 1), (1, 1), (0, 5), (5, 0), (7,), (1,), (0,)])
@pytest.mark.parametrize("name", ATTENDING)
def test_any_batch_and_length(name, shape):
    case = ATTENDING[name]
    layer = lively(case)
    x = normal((*shape, case.shape[-1]))
    y = layer(x)
    assert y.shape == x.shape
    if x.size:
        assert_as_accurate_as_numpy(y, lambda x, dtype: case.formula(layer.parameters(), x, dtype=dtype), x)


@pytest.mark.parametrize("shape", [(67,), (0, 67), (2, 0, 67), (2, 1, 3, 67)])
@pytest.mark.parametrize("name", ["linear", "layer norm", "RMS norm"])
def test_any_number_of_leading_axes(name, shape):
    case = LAYERS[name]
    layer = lively(case)
    x = normal(shape)
    y = layer(x)
    assert y.shape[:-1] == shape[:-1]
    if x.size:
        assert_as_accurate_as_numpy(y, lambda x, dtype: case.formula(layer.parameters(), x, dtype=dtype), x)


@pytest.mark.parametrize(("key_width", "value_width"), [(24, 24), (24, 10), (7, 24), (7, 10)])
@pytest.mark.parametrize("num_kv_heads", [4, 2])
def test_cross_attention_takes_keys_and_values_of_their_own(key_width, value_width, num_kv_heads):
    layer = nn.MultiheadAttention(24, 4, kdim=key_width, vdim=value_width, num_kv_heads=num_kv_heads, rng=0)
    query, key, value = (
        normal((2, 5, 24)),
        normal((2, 9, key_width), seed=1),
        normal((2, 9, value_width), seed=2),
    )
    masks = {"key_lengths": [9, 4], "query_lengths": [3, 5], "causal": "lower_right"}

    def formula(query, key, value, dtype):
        heads = {"num_heads": 4, "num_kv_heads": num_kv_heads}
        return reference.multi_head_attention(
            layer.parameters(), query, key, value, **heads, **masks, return_weights=True, dtype=dtype
        )

    actual = layer(query, key, value, **masks, return_weights=True)
    assert_as_accurate_as_numpy(actual, formula, query, key, value)


def test_without_value_attention_takes_the_key_and_without_key_the_query():
    layer = nn.MultiheadAttention(12, 3, rng=0)
    query, key = normal((2, 5, 12)), normal((2, 7, 12), seed=1)
    assert_as_accurate_as_numpy(layer(query, key), _two(layer), query, key, key)
    assert_as_accurate_as_numpy(layer(query, value=key[:, :5]), _two(layer), query, query, key[:, :5])
    # The first rows of one array are another array, however alike their addresses.
    assert_as_accurate_as_numpy(layer(query[0, :2], query[0]), _two(layer), query[0, :2], query[0], query[0])


def _two(layer):
    return lambda query, key, value, dtype: reference.multi_head_attention(
        layer.parameters(), query, key, value, num_heads=3, dtype=dtype
    )


@pytest.mark.parametrize("ids", [[[1, 9], [0, 3]], np.array(7, np.uint8), np.zeros((0, 3), np.int16), []])
def test_embedding_looks_up_ids_of_any_integer_type(ids):
    for dtype in (np.float32, np.float64):
        layer = nn.Embedding(10, 7, dtype=dtype, rng=0)
        expected = reference.embedding(np.asarray(ids, int), layer.parameters()["weight"], dtype=dtype)
        assert same_bits(layer(ids), expected)
        assert same_bits(layer.forward(ids)[0], expected)


# ----------------------------------------------------------------------------------------------------------
# Bits
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", LAYERS)
def test_forward_without_rng_is_the_call(name):
    case = LAYERS[name]
    layer = lively(case)
    x = normal(case.shape)
    y, saved = layer.forward(x)
    assert same_bits(y, layer(x))
    assert isinstance(saved, blasformer._core.Saved)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_results_have_the_same_bits_for_any_number_of_threads(dtype, product_isa):
    layer = nn.TransformerEncoderLayer(96, 3, 390, dtype=dtype, rng=0)
    x = normal((2, 203, 96), dtype)
    results = []
    for count in (1, 2, 3, 24):
        with blasformer.num_threads(count):
            results.append((layer(x, causal=True), layer.forward(x, rng=5)[0]))
    for result in results[1:]:
        assert same_bits(result[0], results[0][0])
        assert same_bits(result[1], results[0][1])


def _misaligned(x):
    buffer = np.empty(x.nbytes + 1, np.uint8)
    view = buffer[1:].view(x.dtype).reshape(x.shape)
    view[...] = x
    return view


LAYOUTS = {
    "Fortran order": np.asfortranarray,
    "every second": lambda x: np.repeat(x, 2, axis=-1)[..., ::2],
    "backwards": lambda x: np.ascontiguousarray(x[::-1])[::-1],
    "misaligned": _misaligned,
    "read-only": lambda x: np.broadcast_to(x, x.shape),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", ["linear", "layer norm", "feed-forward, gelu", "post-norm encoder layer"])
def test_any_memory_layout_gives_the_bits_of_a_dense_array(name, layout):
    case = LAYERS[name]
    layer = lively(case)
    x = normal(case.shape)
    arranged = LAYOUTS[layout](x)
    before = arranged.copy()
    assert same_bits(layer(arranged), layer(x))
    assert same_bits(layer.forward(arranged)[0], layer(x))
    assert same_bits(arranged.copy(), before)


@pytest.mark.parametrize("name", ATTENDING)
def test_what_lies_behind_the_key_lengths_changes_no_bit_before_them(name):
    case = ATTENDING[name]
    layer = lively(case)
    x = normal(case.shape)
    lengths = [3, 6, 5][: case.shape[0]]
    spoilt = x.copy()
    for sequence, length in zip(spoilt, lengths, strict=True):
        sequence[length:] = np.nan
    clean, dirty = layer(x, key_lengths=lengths), layer(spoilt, key_lengths=lengths)
    for a, b, length in zip(clean, dirty, lengths, strict=True):
        assert same_bits(a[:length], b[:length])


@pytest.mark.parametrize("name", LAYERS)
def test_outputs_own_their_memory_and_inputs_stay_as_they_are(name):
    case = LAYERS[name]
    layer = lively(case)
    x = normal(case.shape)
    before = x.copy()
    y = layer(x)
    assert y.flags.writeable
    assert not np.shares_memory(x, y)
    y += 1
    assert same_bits(x, before)
    assert same_bits(layer(x) + np.float32(1), y)


# ----------------------------------------------------------------------------------------------------------
# Attention weights
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.MultiheadAttention(24, 4, rng=0),
        lambda: nn.TransformerEncoderLayer(24, 4, 30, rng=0),
    ],
)
def test_layers_return_the_weights_of_each_head(make):
    layer = make()
    x = normal((2, 9, 24))
    output, weights = layer(x, causal=True, return_weights=True)
    assert same_bits(output, layer(x, causal=True))
    parameters = layer.parameters()
    own = reference.within(parameters, "self_attn.") or parameters

    def formula(x, dtype):
        return reference.multi_head_attention(
            own, x, num_heads=4, causal=True, return_weights=True, dtype=dtype
        )[1]

    assert_as_accurate_as_numpy(weights, formula, x)
    selection = blasformer.WeightSelection(heads=[-1, 0], rows=[3, 1], mean=False)
    _, chosen = layer(x, causal=True, return_weights=selection)
    assert same_bits(chosen, weights[:, [3, 0]][:, :, [3, 1]])
    _, mean = layer(x[0], causal=True, return_weights=blasformer.WeightSelection(mean=True))
    assert mean.shape == (9, 9)
    np.testing.assert_allclose(mean, weights[0].mean(0), atol=1e-6)


def test_encoders_return_the_weights_of_chosen_layers():
    encoder = lively(LAYERS["pre-norm encoder"])
    x = normal((2, 9, 24))
    output, weights = encoder(x, return_weights=True)
    assert same_bits(output, encoder(x))
    assert list(weights) == [0, 1, 2]
    assert all(array.shape == (2, 2, 9, 9) for array in weights.values())
    _, chosen = encoder(x, return_weights=(-1, 0))
    assert list(chosen) == [-1, 0]
    assert same_bits(chosen[-1], weights[2])
    assert same_bits(chosen[0], weights[0])
    selection = {1: blasformer.WeightSelection(heads=[1], rows=[0, 8]), 2: True, 0: False}
    _, selected = encoder(x, return_weights=selection)
    assert list(selected) == [1, 2]
    assert same_bits(selected[1], weights[1][:, 1:, [0, 8]])


# ----------------------------------------------------------------------------------------------------------
# Dropout
# ----------------------------------------------------------------------------------------------------------


def test_dropout_in_a_feed_forward_network_is_its_formula():
    layer = nn.FeedForward(13, 57, 0.3, "gelu", rng=0)
    x = normal((3, 5, 13))
    seed = reference.dropout_seed(7)

    def formula(x, dtype):
        p = layer.parameters()
        hidden = reference.gelu(
            reference.linear(x, p["linear1.weight"], p["linear1.bias"], dtype=dtype), dtype=dtype
        )
        dropped = reference.dropout(hidden, 0.3, seed, dtype=dtype)
        return reference.linear(dropped, p["linear2.weight"], p["linear2.bias"], dtype=dtype)

    assert_as_accurate_as_numpy(layer.forward(x, rng=7)[0], formula, x)


def test_dropout_in_multi_head_attention_is_that_of_attention():
    layer = nn.MultiheadAttention(24, 4, 0.4, rng=0)
    x = normal((2, 9, 24))

    def formula(x, dtype):
        drop = {"dropout_p": 0.4, "rng": 7}
        return reference.multi_head_attention(layer.parameters(), x, num_heads=4, **drop, dtype=dtype)

    assert_as_accurate_as_numpy(layer.forward(x, rng=7)[0], formula, x)


def test_dropout_in_a_gated_feed_forward_network_is_its_formula():
    layer = nn.GatedFeedForward(13, 57, 0.3, "gelu", rng=0)
    x = normal((3, 5, 13))
    seed = reference.dropout_seed(7)

    def formula(x, dtype):
        p = layer.parameters()
        gate, up = (
            reference.linear(x, p[f"{name}.weight"], p[f"{name}.bias"], dtype=dtype)
            for name in ("gate_proj", "up_proj")
        )
        dropped = reference.dropout(reference.gelu(gate, dtype=dtype) * up, 0.3, seed, dtype=dtype)
        return reference.linear(dropped, p["down_proj.weight"], p["down_proj.bias"], dtype=dtype)

    assert_as_accurate_as_numpy(layer.forward(x, rng=7)[0], formula, x)


@pytest.mark.parametrize("shape", [(), (7,), (0,), (3, 0, 5), (2, 3, 5, 7)])
def test_dropout_as_a_layer_is_the_formula_and_copies_without_rng(shape):
    layer = nn.Dropout(0.3)
    x = normal(shape)
    expected = reference.dropout(x, 0.3, reference.dropout_seed(7), dtype=np.float32)
    np.testing.assert_array_equal(layer.forward(x, rng=7)[0], expected)
    for copy_of_x in (layer(x), layer.forward(x)[0]):
        assert same_bits(copy_of_x, x)
        assert not np.shares_memory(copy_of_x, x)


@pytest.mark.parametrize("kind", ["interleaved", "concatenated", "learned"])
def test_positions_may_begin_anywhere_or_be_given(kind):
    layer = nn.PositionalEncoding(6, max_len=20, kind=kind, scale=2.0, rng=0)
    x = normal((3, 7, 6))
    expected = layer(np.concatenate([np.zeros((3, 5, 6), np.float32), x], axis=1))[:, 5:]
    np.testing.assert_array_equal(layer(x, first=5), expected)
    np.testing.assert_array_equal(layer(x, positions=range(5, 12)), expected)
    np.testing.assert_array_equal(layer(x[0], positions=np.arange(5, 12)), expected[0])
    shuffled = np.random.default_rng(0).integers(0, 20, (3, 7))
    table = layer(np.zeros((20, 6), np.float32))
    np.testing.assert_array_equal(layer(x, positions=shuffled), 2 * x + table[shuffled])


@pytest.mark.parametrize("kind", ["interleaved", "learned"])
def test_dropout_in_a_positional_encoding_is_its_formula(kind):
    layer = nn.PositionalEncoding(6, 0.4, max_len=9, kind=kind, rng=0)
    x = normal((3, 7, 6))
    expected = reference.dropout(layer(x), 0.4, reference.dropout_seed(7), dtype=np.float32)
    np.testing.assert_array_equal(layer.forward(x, rng=7)[0], expected)


@pytest.mark.parametrize("norm_first", [False, True])
def test_an_encoder_layer_drops_in_four_places(norm_first, isa):
    layer = nn.TransformerEncoderLayer(12, 3, 31, 0.2, norm_first=norm_first, rng=0)
    x = normal((2, 9, 12))
    seed = reference.dropout_seed(7)

    def formula(p, dtype):
        x = p["x"]

        def drop(place, y):
            return reference.dropout(y, 0.2, (seed + place) % 2**64, dtype=dtype)

        def attend(y):
            own = reference.within(p, "self_attn.")
            attended = reference.multi_head_attention(own, y, num_heads=3, dropout_p=0.2, rng=7, dtype=dtype)
            return drop(1, attended)

        def feed(y):
            hidden = reference.linear(y, p["linear1.weight"], p["linear1.bias"], dtype=dtype)
            hidden = reference.relu(hidden, dtype=dtype)
            return drop(
                3, reference.linear(drop(2, hidden), p["linear2.weight"], p["linear2.bias"], dtype=dtype)
            )

        def norm(name, y):
            return reference.layer_norm(y, p[f"{name}.weight"], p[f"{name}.bias"], dtype=dtype)

        if norm_first:
            x = x + attend(norm("norm1", x))
            return x + feed(norm("norm2", x))
        x = norm("norm1", x + attend(x))
        return norm("norm2", x + feed(x))

    y, saved = layer.forward(x, rng=7)
    d_y = normal(y.shape, seed=4)
    d_x, grads = layer.backward(saved, d_y)
    accuracy = Accuracy(formula, {"x": x, **layer.state_dict()}, d_y, np.float32)
    accuracy.check({"y": y, "x": d_x, **grads})


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
def test_dropout_drops_at_its_rate_and_keeps_the_mean(dropout_p):
    layer = nn.FeedForward(1, 40_000, dropout_p, bias=False, rng=0)
    with layer.edit() as p:
        p["linear1.weight"][:] = 1
        p["linear2.weight"][:] = 1 / 40_000
    kept = layer.forward(np.ones((1, 1), np.float32), rng=0)[0]
    assert kept[0, 0] == pytest.approx(1, abs=5 * np.sqrt(dropout_p / (1 - dropout_p) / 40_000))


def test_dropout_of_everything_leaves_the_residual_stream():
    layer = nn.TransformerEncoderLayer(12, 3, 31, 1.0, norm_first=True, rng=0)
    x = normal((2, 9, 12))
    assert same_bits(layer.forward(x, rng=0)[0], x)


def test_the_same_rng_gives_the_same_bits_and_another_one_others():
    encoder = make_encoder(2, False, d_model=24, nhead=4, dim_feedforward=33)(dtype=np.float32, rng=0)
    x = normal((2, 9, 24))
    y = encoder.forward(x, rng=3)[0]
    assert same_bits(encoder.forward(x, rng=np.random.default_rng(3))[0], y)
    generator = np.random.default_rng(3)
    assert same_bits(encoder.forward(x, rng=generator)[0], y)
    assert not same_bits(encoder.forward(x, rng=generator)[0], y)
    assert not same_bits(encoder(x), y)


def test_no_dropout_probability_and_no_rng_drop_nothing():
    x = normal((2, 9, 12))
    for dropout_p, rng in ((0.0, 1), (0.7, None)):
        layer = nn.TransformerEncoderLayer(12, 3, 31, dropout_p, rng=0)
        assert same_bits(layer.forward(x, rng=rng)[0], layer(x))


# ----------------------------------------------------------------------------------------------------------
# Parameters
# ----------------------------------------------------------------------------------------------------------

# As PyTorch's TransformerEncoder(TransformerEncoderLayer(8, 2, 12), 1, LayerNorm(8)).state_dict() has them.
ENCODER_SHAPES = {
    "layers.0.self_attn.in_proj_weight": (24, 8),
    "layers.0.self_attn.in_proj_bias": (24,),
    "layers.0.self_attn.out_proj.weight": (8, 8),
    "layers.0.self_attn.out_proj.bias": (8,),
    "layers.0.linear1.weight": (12, 8),
    "layers.0.linear1.bias": (12,),
    "layers.0.linear2.weight": (8, 12),
    "layers.0.linear2.bias": (8,),
    "layers.0.norm1.weight": (8,),
    "layers.0.norm1.bias": (8,),
    "layers.0.norm2.weight": (8,),
    "layers.0.norm2.bias": (8,),
    "norm.weight": (8,),
    "norm.bias": (8,),
}


def small_encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12, rng=0), 1, nn.LayerNorm(8))


def test_a_state_dict_of_pytorch_loads_as_it_is():
    arrays = {name: normal(shape, seed=i) for i, (name, shape) in enumerate(ENCODER_SHAPES.items())}
    encoder = small_encoder()
    encoder.load_state_dict(arrays)
    assert list(encoder.parameters()) == list(ENCODER_SHAPES)
    assert all(same_bits(encoder.parameters()[name], array) for name, array in arrays.items())
    x = normal((2, 5, 8))

    def formula(x, dtype):
        return reference.transformer_encoder(arrays, x, num_layers=1, num_heads=2, dtype=dtype)

    assert_as_accurate_as_numpy(encoder(x), formula, x)


def test_separate_projections_are_named_as_in_pytorch():
    layer = nn.MultiheadAttention(8, 2, kdim=3, vdim=5)
    shapes = {name: array.shape for name, array in layer.parameters().items()}
    assert shapes == {
        "q_proj_weight": (8, 8),
        "k_proj_weight": (8, 3),
        "v_proj_weight": (8, 5),
        "in_proj_bias": (24,),
        "out_proj.weight": (8, 8),
        "out_proj.bias": (8,),
    }


@pytest.mark.parametrize("name", LAYERS)
def test_parameters_are_read_only_views_of_the_live_weights(name):
    layer = lively(LAYERS[name])
    for one, other in zip(layer.parameters().values(), layer.parameters().values(), strict=True):
        assert np.shares_memory(one, other)
        with pytest.raises(ValueError, match="read-only"):
            one[...] = 0
        with pytest.raises(ValueError, match="WRITEABLE"):
            one.flags.writeable = True


@pytest.mark.parametrize("name", LAYERS)
def test_views_of_parameters_show_every_change(name):
    layer = lively(LAYERS[name])
    views = layer.parameters()
    layer.load_state_dict({name: array + 1 for name, array in layer.state_dict().items()})
    with layer.edit() as parameters:
        for array in parameters.values():
            array *= 3
    for name, array in layer.state_dict().items():
        assert same_bits(views[name], array)


def test_a_view_of_a_parameter_outlives_its_layer():
    weight = nn.Linear(3, 4, rng=0).parameters()["weight"]
    assert same_bits(weight, nn.Linear(3, 4, rng=0).state_dict()["weight"])


@pytest.mark.parametrize("name", LAYERS)
def test_a_state_dict_is_a_copy_that_brings_the_layer_back(name):
    case = LAYERS[name]
    layer, other = lively(case), case.make(dtype=np.float32, rng=9)
    state = layer.state_dict()
    assert all(array.flags.writeable for array in state.values())
    assert other.load_state_dict(state) == ([], [])
    x = normal(case.shape)
    before = layer(x)
    for array in state.values():
        array[...] = 0
    assert same_bits(layer(x), before)
    assert same_bits(other(x), before)


def test_arrays_of_any_layout_load():
    layer = nn.Linear(3, 4, rng=0)
    weight = normal((4, 3))
    for layout in LAYOUTS.values():
        layer.load_state_dict({"weight": layout(weight), "bias": np.zeros(4, np.float32)})
        assert same_bits(layer.parameters()["weight"], weight)


def test_everything_that_does_not_fit_is_named_at_once_and_nothing_changes():
    layer = nn.FeedForward(2, 3, rng=0)
    before = layer.state_dict()
    arrays = {
        "linear1.weight": np.zeros((3, 2), np.float32),
        "linear1.bias": np.zeros((3, 1), np.float32),
        "linear2.weight": np.zeros((2, 3)),
        "gain": np.zeros(2, np.float32),
        "shift": [0, 0],
    }
    with pytest.raises(ValueError, match="state dict") as caught:
        layer.load_state_dict(arrays)
    assert str(caught.value) == (
        "arrays must be a state dict of FeedForward; missing: linear2.bias; unexpected: gain, shift; "
        "wrong shape: linear1.bias must have the shape (3,), got (3, 1); "
        "wrong type: linear2.weight must be a NumPy array of float32, got float64"
    )
    assert all(same_bits(array, before[name]) for name, array in layer.parameters().items())


def test_a_negative_padding_id_counts_from_the_end():
    layer = nn.Embedding(5, 3, -2, rng=0)
    y, saved = layer.forward([3, 4])
    assert (y[0] == 0).all()
    assert (y[1] != 0).all()
    assert layer.backward(saved, np.ones_like(y))[1]["weight"][:, 0].tolist() == [0, 0, 0, 0, 1]


class Tensor:
    """As of another package, that NumPy can read or not."""

    def __init__(self, array):
        self.array = array

    def __array__(self, dtype=None, copy=None):
        if self.array is None:
            raise TypeError("can't convert a tensor on another device")
        return self.array


def test_tensors_that_numpy_can_read_are_loaded_as_they_are():
    layer, state = nn.Linear(3, 4, rng=0), nn.Linear(3, 4, rng=1).state_dict()
    layer.load_state_dict({name: Tensor(array) for name, array in state.items()})
    assert all(same_bits(array, state[name]) for name, array in layer.parameters().items())
    nn.Sequential(layer).load_state_dict({"0.bias": Tensor(np.ones(4, np.float32))}, strict=False)
    assert same_bits(layer.parameters()["bias"], np.ones(4, np.float32))
    for tensor, got in ((Tensor(np.zeros(4)), "float64"), (Tensor(None), "Tensor")):
        with pytest.raises(TypeError, match=f"bias must be a NumPy array of float32, got {got}"):
            layer.load_state_dict({**state, "bias": tensor})


@pytest.mark.parametrize("arrays", [None, 3, [np.zeros(4, np.float32)], "weight"])
def test_what_is_no_state_dict_is_a_type_error(arrays):
    got = type(arrays).__name__
    for layer in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4))):
        with pytest.raises(TypeError, match=f"arrays must map names to arrays, got {got}"):
            layer.load_state_dict(arrays)
        with pytest.raises(TypeError, match=f"arrays must map names to arrays, got {got}"):
            layer.load_state_dict(arrays, strict=False)


@pytest.mark.parametrize("dtype", [None, 3, "x", "float16", "bfloat16", {"a": 1}, np.zeros(3), len, "\ud800"])
def test_a_dtype_that_layers_do_not_have_is_a_type_error_that_says_so(dtype):
    calls = [
        lambda: nn.Linear(3, 4, dtype=dtype),
        lambda: nn.TransformerEncoderLayer(8, 2, dtype=dtype),
        lambda: models.LanguageModel(5, 8, 16, 2, 1, dtype=dtype),
        lambda: models.BertModel(models.BertConfig(5, 8, 1, 2, 16), dtype=dtype),
    ]
    for call in calls:
        with pytest.raises(TypeError, match="dtype must be float32 or float64, got "):
            call()
    if not (isinstance(dtype, str) and dtype == "bfloat16"):
        with pytest.raises(TypeError, match="dtype must be bfloat16 or float32"):
            nn.Linear(3, 4).hold_weights(dtype)


def test_names_to_freeze_are_given_one_by_one():
    for layer in (nn.Linear(3, 4), nn.Sequential(nn.Linear(3, 4))):
        with pytest.raises(TypeError, match=r"patterns must be strings, one by one, got \['\*'\]"):
            layer.freeze(["*"])
        assert layer.frozen == frozenset()


@pytest.mark.parametrize(("bias", "got"), [([0.0] * 4, "list"), (np.zeros(4, ">f4"), ">f4")])
def test_wrong_types_alone_are_a_type_error(bias, got):
    layer = nn.Linear(3, 4)
    with pytest.raises(TypeError, match=f"bias must be a NumPy array of float32, got {got}"):
        layer.load_state_dict({**layer.state_dict(), "bias": bias})


def load(layer, arrays):
    layer.load_state_dict(arrays, strict=False)


def replace_in_edit(layer, arrays):
    with layer.edit() as parameters:
        parameters.update(arrays)


@pytest.mark.parametrize("computing", [False, True])
@pytest.mark.parametrize("write", [load, replace_in_edit])
def test_weights_may_be_given_views_of_one_another(write, computing):
    layer = nn.TransformerDecoderLayer(8, 2, 8, rng=0)
    # Those who compute, as a cache does, keep the weights, and changes go to new memory.
    cache = layer.new_cache(normal((2, 5, 8)), 3) if computing else None
    live = layer.parameters()
    given = {
        "linear1.weight": live["linear2.weight"],
        "linear2.weight": live["linear1.weight"],
        "linear1.bias": live["linear1.weight"].reshape(-1)[3:11],
        "linear2.bias": live["linear2.weight"].diagonal()[::-1],
        "self_attn.out_proj.weight": live["multihead_attn.out_proj.weight"].T,
        "multihead_attn.out_proj.weight": live["self_attn.out_proj.weight"][::-1],
        "multihead_attn.in_proj_bias": live["self_attn.in_proj_weight"][:3].reshape(-1),
        "norm1.weight": np.broadcast_to(live["self_attn.in_proj_weight"][0, :1], (8,)),
    }
    expected = {**layer.state_dict(), **{name: array.copy() for name, array in given.items()}}
    write(layer, given)
    assert all(same_bits(array, expected[name]) for name, array in layer.parameters().items())
    del cache


@pytest.mark.parametrize("write", [load, replace_in_edit])
def test_layers_of_a_composite_may_be_given_views_of_one_another(write):
    model = nn.Sequential(nn.Linear(4, 4, rng=0), nn.Sequential(nn.Linear(4, 4, rng=1)))
    live, before = model.parameters(), model.state_dict()
    write(model, {"0.weight": live["1.0.weight"], "1.0.weight": live["0.weight"]})
    assert same_bits(live["0.weight"], before["1.0.weight"])
    assert same_bits(live["1.0.weight"], before["0.weight"])


def test_weights_of_another_layer_may_be_given_while_it_changes():
    one, other = nn.FeedForward(64, 256, rng=0), nn.FeedForward(64, 256, rng=1)
    done = threading.Event()

    def change():
        while not done.is_set():
            with other.edit() as parameters:
                for array in parameters.values():
                    array += 1

    thread = threading.Thread(target=change)
    thread.start()
    for _ in range(50):
        one.load_state_dict(other.parameters())
    done.set()
    thread.join()
    one.load_state_dict(other.parameters())
    assert all(same_bits(array, other.parameters()[name]) for name, array in one.parameters().items())


@pytest.mark.parametrize("name", LAYERS)
def test_an_attribute_that_would_not_set_a_parameter_is_refused(name):
    layer = lively(LAYERS[name])
    before = layer.state_dict()
    for parameter, array in before.items():
        attribute = parameter.split(".")[0]
        with pytest.raises(AttributeError, match=r"must be set by edit, as in `with layer.edit\(\) as p"):
            setattr(layer, attribute, array + 1)
    with pytest.raises(AttributeError, match=r"wieght must be a parameter of \w+, of which there are "):
        layer.wieght = np.ones(3, np.float32)
    with pytest.raises(AttributeError, match=r"dtype"):
        layer.dtype = np.float64
    assert all(same_bits(array, before[name]) for name, array in layer.parameters().items())


def test_attributes_of_composites_arguments_and_classes_of_ones_own():
    class Scaled(nn.Linear):
        def __init__(self):
            super().__init__(3, 4)
            self.scale = np.ones(4)

    assert Scaled().scale.shape == (4,)
    with pytest.raises(AttributeError, match="weight must be set by edit"):
        Scaled().weight = np.ones((4, 3), np.float32)
    with pytest.raises(AttributeError, match="weight must be a parameter of Sequential, of which "):
        nn.Sequential(nn.Linear(3, 4)).weight = np.ones((4, 3), np.float32)
    layer = nn.TransformerEncoderLayer(8, 2, dropout=0.5)
    with pytest.raises(AttributeError, match=r"dropout must be given to TransformerEncoderLayer\(\)"):
        layer.dropout = 0.0
    with pytest.raises(AttributeError, match=r"self_attn.in_proj_weight must be set by edit, .* self_attn$"):
        layer.self_attn = nn.MultiheadAttention(8, 2)


def test_loading_that_is_not_strict_returns_what_it_passed_over():
    layer = nn.Linear(3, 4, rng=0)
    before = layer.state_dict()
    passed_over = layer.load_state_dict({"bias": np.ones(4, np.float32), "gain": 3}, strict=False)
    assert passed_over == (["weight"], ["gain"])
    assert passed_over.missing_keys == ["weight"]
    assert same_bits(layer.parameters()["weight"], before["weight"])
    assert same_bits(layer.parameters()["bias"], np.ones(4, np.float32))
    with pytest.raises(ValueError, match=r"wrong shape: bias must have the shape \(4,\), got \(3,\)"):
        layer.load_state_dict({"bias": np.ones(3, np.float32)}, strict=False)


def test_an_edit_becomes_the_weights_at_its_end():
    layer = nn.Linear(3, 4, rng=0)
    x = normal((2, 3))
    before, y = layer.state_dict(), layer(x)
    with layer.edit() as parameters:
        parameters["weight"] *= 2
        parameters["bias"] = np.ones(4, np.float32)
        assert same_bits(layer(x), y)
    assert same_bits(layer.parameters()["weight"], 2 * before["weight"])
    assert same_bits(layer.parameters()["bias"], np.ones(4, np.float32))


def test_arrays_of_an_edit_have_no_power_after_it():
    layer = nn.Linear(3, 4, rng=0)
    with layer.edit() as parameters:
        row = parameters["weight"][0]
    after = layer.state_dict()
    with pytest.raises(ValueError, match="read-only"):
        parameters["weight"][0] = 0
    row[...] = 0  # NumPy keeps views of views writeable: they reach nobody
    assert same_bits(layer.parameters()["weight"], after["weight"])


def test_an_edit_that_raises_or_does_not_fit_changes_nothing():
    layer = nn.Linear(3, 4, rng=0)
    before = layer.state_dict()

    def interrupted():
        with layer.edit() as parameters:
            parameters["weight"][...] = 0
            raise KeyError("interrupted")

    def misshapen():
        with layer.edit() as parameters:
            parameters["weight"][...] = 0
            parameters["bias"] = np.zeros(3, np.float32)

    def reduced():
        with layer.edit() as parameters:
            del parameters["bias"]

    for attempt, error, text in (
        (interrupted, KeyError, "interrupted"),
        (misshapen, ValueError, r"wrong shape: bias must have the shape \(4,\), got \(3,\)"),
        (reduced, ValueError, "missing: bias"),
    ):
        with pytest.raises(error, match=text):
            attempt()
        assert all(same_bits(array, before[name]) for name, array in layer.parameters().items())


def test_an_edit_of_weights_that_changed_meanwhile_is_refused():
    layer = nn.Linear(3, 4, rng=0)
    loaded = nn.Linear(3, 4, rng=1).state_dict()

    def overtaken():
        with layer.edit() as parameters:
            layer.load_state_dict(loaded)
            parameters["weight"][...] = 0

    with pytest.raises(
        RuntimeError, match="weights must not be changed elsewhere while they are being edited"
    ):
        overtaken()
    assert same_bits(layer.parameters()["weight"], loaded["weight"])


def test_an_encoder_is_made_of_copies_of_its_layer():
    layer, norm = nn.TransformerEncoderLayer(8, 2, 12, rng=0), nn.LayerNorm(8)
    encoder = nn.TransformerEncoder(layer, 2, norm)
    with layer.edit() as parameters:
        parameters["linear1.weight"][...] = 0
    one, other = (encoder.parameters()[f"layers.{i}.linear1.weight"] for i in (0, 1))
    assert same_bits(one, other)
    assert one.any()
    assert not np.shares_memory(one, other)
    drawn = nn.TransformerEncoder(layer, 2, norm, rng=0).parameters()
    assert not same_bits(drawn["layers.0.linear1.weight"], drawn["layers.1.linear1.weight"])


# ----------------------------------------------------------------------------------------------------------
# Initial values
# ----------------------------------------------------------------------------------------------------------


def _uniform_within(array, bound):
    assert np.abs(array).max() <= bound
    assert np.abs(array).max() > 0.97 * bound
    assert array.std() == pytest.approx(bound / np.sqrt(3), rel=0.06)
    assert array.mean() == pytest.approx(0, abs=0.1 * bound)


def test_initial_values_are_distributed_as_in_pytorch():
    linear = nn.Linear(300, 200, rng=0).parameters()
    _uniform_within(linear["weight"], 1 / np.sqrt(300))
    _uniform_within(linear["bias"], 1 / np.sqrt(300))
    attention = nn.MultiheadAttention(128, 4, rng=0).parameters()
    _uniform_within(attention["in_proj_weight"], np.sqrt(6 / (4 * 128)))
    _uniform_within(attention["out_proj.weight"], 1 / np.sqrt(128))
    assert not attention["in_proj_bias"].any()
    assert not attention["out_proj.bias"].any()
    cross = nn.MultiheadAttention(128, 4, kdim=60, vdim=70, rng=0).parameters()
    for name, fans in (("q", 256), ("k", 188), ("v", 198)):
        _uniform_within(cross[f"{name}_proj_weight"], np.sqrt(6 / fans))
    embedding = nn.Embedding(301, 51, padding_idx=2, rng=0).parameters()["weight"]
    assert not embedding[2].any()
    others = np.delete(embedding, 2, axis=0)
    assert others.mean() == pytest.approx(0, abs=0.05)
    assert others.std() == pytest.approx(1, abs=0.03)
    assert (np.abs(others) < 1).mean() == pytest.approx(0.6827, abs=0.02)
    norm = nn.LayerNorm(5).parameters()
    assert norm["weight"].tolist() == [1] * 5
    assert norm["bias"].tolist() == [0] * 5


@pytest.mark.parametrize("name", LAYERS)
def test_initial_values_depend_on_the_rng_alone(name):
    make = LAYERS[name].make
    single, doubled = make(dtype=np.float32, rng=4), make(dtype=np.float64, rng=np.random.default_rng(4))
    with blasformer.num_threads(3):
        again = make(dtype=np.float32, rng=4)
    for key, array in single.parameters().items():
        assert same_bits(array, again.parameters()[key])
        assert same_bits(array, doubled.parameters()[key].astype(np.float32))


def test_without_rng_initial_values_are_new_every_time():
    one, other = nn.Linear(3, 4), nn.Linear(3, 4)
    assert not same_bits(one.parameters()["weight"], other.parameters()["weight"])


# ----------------------------------------------------------------------------------------------------------
# Objects
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
def test_copies_and_pickles_keep_what_users_have_noted_on_a_layer(duplicate):
    layer = nn.Linear(3, 4, rng=0)
    layer.notes = {"trained": 3}
    assert duplicate(layer).notes == {"trained": 3}


@pytest.mark.parametrize(
    "duplicate", [copy.deepcopy, copy.copy, lambda layer: pickle.loads(pickle.dumps(layer))]
)
@pytest.mark.parametrize("name", LAYERS)
def test_copies_and_pickles_are_layers_of_their_own(name, duplicate):
    case = LAYERS[name]
    layer = lively(case, np.float64)
    other = duplicate(layer)
    x = normal(case.shape, np.float64)
    assert same_bits(other(x), layer(x))
    assert repr(other) == repr(layer)
    for one, copied in zip(layer.parameters().values(), other.parameters().values(), strict=True):
        assert not np.shares_memory(one, copied)


def test_repr_shows_arguments_and_the_number_of_parameters():
    assert repr(nn.Linear(300, 4)) == (
        "Linear(in_features=300, out_features=4, bias=True, dtype='float32')  # 1,204 parameters"
    )
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 12), 1, nn.LayerNorm(8))
    assert repr(encoder) == (
        "TransformerEncoder(encoder_layer=TransformerEncoderLayer(d_model=8, nhead=2, dim_feedforward=12, "
        "dropout=0.1, activation='relu', layer_norm_eps=1e-05, norm_first=False, bias=True, "
        "norm='layer', gated=False, recompute=False, dtype='float32'), num_layers=1, "
        "norm=LayerNorm(normalized_shape=(8,), eps=1e-05, "
        "elementwise_affine=True, bias=True, dtype='float32'))  # 548 parameters"
    )


def test_many_threads_may_use_a_layer_while_it_is_changed():
    layer = nn.TransformerEncoderLayer(32, 4, 64, rng=0)
    states = [nn.TransformerEncoderLayer(32, 4, 64, rng=seed).state_dict() for seed in range(3)]
    x = normal((2, 37, 32))
    expected = set()
    for state in states:
        layer.load_state_dict(state)
        expected.add(layer(x).tobytes())
    wrong = []
    done = threading.Event()

    def use():
        while not done.is_set():
            if layer(x).tobytes() not in expected or layer.forward(x)[0].tobytes() not in expected:
                wrong.append(1)

    threads = [threading.Thread(target=use) for _ in range(4)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        layer.load_state_dict(states[turn % 3])
    done.set()
    for thread in threads:
        thread.join()
    assert not wrong


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------

X = np.zeros((2, 5, 8), np.float32)
FOREIGN = X.astype(">f4")

ERRORS = {
    TypeError: {
        "in_features must be an integer, got float": lambda: nn.Linear(3.0, 3),
        "dtype must be float32 or float64, got float16": lambda: nn.Linear(3, 3, dtype=np.float16),
        "dtype must be float32 or float64, got None": lambda: nn.Linear(3, 3, dtype=None),
        "dtype must be float32 or float64, got int64": lambda: nn.LayerNorm(3, dtype=int),
        "rng must be a numpy.random.Generator or an int, got str": lambda: nn.Linear(3, 3, rng="0"),
        "in_features must be an integer, got bool": lambda: nn.Linear(True, 3),
        "bias must be a bool, got int": lambda: nn.Linear(3, 3, 0),
        "bias must be a bool, got ndarray": lambda: nn.MultiheadAttention(8, 2, bias=np.zeros(8)),
        "norm_first must be a bool, got str": lambda: nn.TransformerEncoderLayer(8, 2, norm_first="False"),
        "interleaved of rotary must be a bool, got int": lambda: nn.MultiheadAttention(
            8, 2, rotary=nn.RotaryPositions(interleaved=1)
        ),
        "normalized_shape must be an integer, got str": lambda: nn.LayerNorm(["3"]),
        "eps must be a number, got str": lambda: nn.RMSNorm(3, "small"),
        "activation must be a string, got builtin_function_or_method": lambda: nn.FeedForward(
            3, 3, activation=max
        ),
        "encoder_layer must be a TransformerEncoderLayer, got Linear": lambda: nn.TransformerEncoder(
            nn.Linear(8, 8), 2
        ),
        "norm must be a LayerNorm or None, got RMSNorm": lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 4), 2, nn.RMSNorm(8)
        ),
        "norm must have the dtype of encoder_layer, float32, got float64": lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 4), 2, nn.LayerNorm(8, dtype=np.float64)
        ),
        "x must be a NumPy array of float32, the dtype of the layer, got float64": lambda: nn.Linear(8, 3)(
            X.astype(float)
        ),
        "x must be a NumPy array of float64, the dtype of the layer, got float32": lambda: nn.LayerNorm(
            8, dtype=float
        )(X),
        "x must be a NumPy array of float32, the dtype of the layer, got float16": lambda: nn.FeedForward(
            8, 3
        )(X.astype(np.float16)),
        "x must be a NumPy array of float32, the dtype of the layer, got float32 in foreign byte order": (
            lambda: nn.Linear(8, 3)(FOREIGN)
        ),
        "x must be a NumPy array of float32, the dtype of the layer, got list": lambda: nn.Linear(8, 3)(
            [0.0] * 8
        ),
        "x must be a NumPy array of float32, the dtype of the layer, got NoneType": lambda: (
            nn.TransformerEncoderLayer(8, 2, 4)(None)
        ),
        "positions must be integers, got float32": lambda: nn.PositionalEncoding(8)(X, positions=X[..., 0]),
        "first must be an integer, got float": lambda: nn.PositionalEncoding(8)(X, first=0.5),
        "query must be a NumPy array of float32, the dtype of the layer, got int64": lambda: (
            nn.MultiheadAttention(8, 2)(X.astype(int))
        ),
        "key must be a NumPy array of float32, the dtype of the layer, got float64": lambda: (
            nn.MultiheadAttention(8, 2)(X, X.astype(float))
        ),
        "ids must be integers, got float32": lambda: nn.Embedding(3, 3)(X),
        "ids must be integers, got bool": lambda: nn.Embedding(3, 3)(np.array([True])),
        "mask must be a NumPy array of bool (True = may attend), got int64": lambda: nn.MultiheadAttention(
            8, 2
        )(X, mask=np.ones((5, 5), int)),
        "bias must have the dtype of query, float32, got float64": lambda: nn.MultiheadAttention(8, 2)(
            X, bias=np.zeros((5, 5))
        ),
        "rng must be a numpy.random.Generator or an int, got bool": lambda: nn.Linear(8, 3).forward(
            X, rng=True
        ),
        "return_weights must be a bool or a WeightSelection, got list": lambda: nn.MultiheadAttention(8, 2)(
            X, return_weights=[0]
        ),
        "layers of return_weights must be an integer, got str": lambda: small_encoder()(
            X, return_weights="0"
        ),
        "return_weights must be a bool, layer indices or a dict from them to WeightSelections, got float": (
            lambda: small_encoder()(X, return_weights=0.5)
        ),
    },
    ValueError: {
        "in_features must be positive, got 0": lambda: nn.Linear(0, 3),
        "out_features must be positive, got -1": lambda: nn.Linear(3, -1),
        "in_features must fit into 64 bits, got 1180591620717411303424": lambda: nn.Linear(2**70, 3),
        "rng must be a numpy.random.Generator or an int >= 0, got -1": lambda: nn.Linear(3, 3, rng=-1),
        "num_embeddings must be positive, got 0": lambda: nn.Embedding(0, 3),
        "embedding_dim must be positive, got 0": lambda: nn.Embedding(3, 0),
        "padding_idx must lie in [0, 3), got 3": lambda: nn.Embedding(3, 3, 3),
        "padding_idx must lie in [0, 3), got -4": lambda: nn.Embedding(3, 3, -4),
        "normalized_shape must hold at least one axis, all of them positive, got (3, 0)": lambda: (
            nn.LayerNorm((3, 0))
        ),
        "normalized_shape must hold at least one axis, all of them positive, got ()": lambda: nn.RMSNorm(()),
        "eps must be finite and at least 0, got -1": lambda: nn.LayerNorm(3, -1),
        "eps must be finite and at least 0, got nan": lambda: nn.RMSNorm(3, float("nan")),
        "activation must be relu, gelu, gelu_tanh, gelu_sigmoid or silu, got swish": lambda: nn.FeedForward(
            3, 3, activation="swish"
        ),
        "dropout must lie between 0 and 1, got 1.5": lambda: nn.FeedForward(3, 3, 1.5),
        "d_model must be positive, got -3": lambda: nn.FeedForward(-3, 3),
        "dim_feedforward must be positive, got -3": lambda: nn.FeedForward(3, -3),
        "d_model must be positive, got -4": lambda: nn.GatedFeedForward(-4, 3),
        "dim_feedforward must be positive, got -4": lambda: nn.GatedFeedForward(3, -4),
        "eps must be finite and at least 0, got inf": lambda: nn.LayerNorm(3, float("inf")),
        "layer_norm_eps must be finite and at least 0, got nan": lambda: nn.Transformer(
            8, 2, layer_norm_eps=float("nan")
        ),
        "dropout must lie between 0 and 1, got nan": lambda: nn.MultiheadAttention(3, 3, float("nan")),
        "dropout must lie between 0 and 1, got -0.1": lambda: nn.GatedFeedForward(3, 3, -0.1),
        "activation must be relu, gelu, gelu_tanh, gelu_sigmoid or silu, got swiglu": lambda: (
            nn.GatedFeedForward(3, 3, activation="swiglu")
        ),
        "p must lie between 0 and 1, got 1.5": lambda: nn.Dropout(1.5),
        "d_model must be positive and even, got 7": lambda: nn.PositionalEncoding(7),
        "d_model must be positive, got -1": lambda: nn.PositionalEncoding(-1, max_len=3, kind="learned"),
        "max_len must be >= 1, got 0": lambda: nn.PositionalEncoding(8, max_len=0, kind="learned"),
        "max_len must be given for a learned encoding, got None": lambda: nn.PositionalEncoding(
            8, kind="learned"
        ),
        "kind must be interleaved, concatenated or learned, got rotary": lambda: nn.PositionalEncoding(
            8, kind="rotary"
        ),
        "x must have the shape (batch, length, 4) or (length, 4), got (2, 5, 8)": lambda: (
            nn.PositionalEncoding(4)(X)
        ),
        "positions must have the shape (length,) = (5,) or (batch, length) to fit x (2, 5, 8), got (4,)": (
            lambda: nn.PositionalEncoding(8)(X, positions=range(4))
        ),
        "first must be at most 9223372036854775803, got 9223372036854775807": lambda: nn.PositionalEncoding(
            8
        )(X, first=2**63 - 1),
        "scale must be a finite number, got nan": lambda: nn.PositionalEncoding(8, scale=float("nan")),
        "first must not be given together with positions, got 1": lambda: nn.PositionalEncoding(8)(
            X, first=1, positions=range(5)
        ),
        "num_heads must be positive, got 0": lambda: nn.MultiheadAttention(8, 0),
        "embed_dim must be a multiple of num_heads = 3, got 8": lambda: nn.MultiheadAttention(8, 3),
        "num_kv_heads must divide num_heads = 4, got 3": lambda: nn.MultiheadAttention(8, 4, num_kv_heads=3),
        "num_kv_heads must divide num_heads = 4, got 0": lambda: nn.MultiheadAttention(8, 4, num_kv_heads=0),
        "kdim must be positive, got 0": lambda: nn.MultiheadAttention(8, 4, kdim=0),
        "vdim must be positive, got -2": lambda: nn.MultiheadAttention(8, 4, vdim=-2),
        "d_model must be a multiple of nhead = 3, got 8": lambda: nn.TransformerEncoderLayer(8, 3),
        "d_model must be positive, got 0": lambda: nn.TransformerEncoderLayer(0, 1),
        "nhead must be positive, got 0": lambda: nn.TransformerEncoderLayer(8, 0),
        "dim_feedforward must be positive, got 0": lambda: nn.TransformerEncoderLayer(8, 2, 0),
        "layer_norm_eps must be finite and at least 0, got -1": lambda: nn.TransformerEncoderLayer(
            8, 2, layer_norm_eps=-1
        ),
        "num_layers must be positive, got 0": lambda: nn.TransformerEncoder(
            nn.TransformerEncoderLayer(8, 2, 4), 0
        ),
        "norm must normalise over the 8 features of the encoder layer, got normalized_shape (7,)": lambda: (
            nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 4), 2, nn.LayerNorm(7))
        ),
        "x must have the shape (..., 7), got (2, 5, 8)": lambda: nn.Linear(7, 3)(X),
        "x must have the shape (..., 8), got ()": lambda: nn.Linear(8, 3)(np.zeros((), np.float32)),
        "x must end in the axes of normalized_shape (4, 8), got (2, 5, 8)": lambda: nn.LayerNorm((4, 8))(X),
        "x must end in the axes of normalized_shape (7,), got (2, 5, 8)": lambda: nn.RMSNorm(7)(X),
        "x must end in the axes of normalized_shape (2, 8), got (8,)": lambda: nn.RMSNorm((2, 8))(X[0, 0]),
        "query must have the shape (batch, length, 6) or (length, 6), got (2, 5, 8)": lambda: (
            nn.MultiheadAttention(6, 2)(X)
        ),
        "key must have the shape (2, key_length, 8) to fit query (2, 5, 8), got (1, 5, 8)": lambda: (
            nn.MultiheadAttention(8, 2)(X, X[:1])
        ),
        "key must have the shape (2, key_length, 6) to fit query (2, 5, 8), got (2, 5, 8)": lambda: (
            nn.MultiheadAttention(8, 2, kdim=6)(X)
        ),
        "value must have the shape (2, 5, 8) to fit key (2, 5, 8), got (2, 4, 8)": lambda: (
            nn.MultiheadAttention(8, 2)(X, X, X[:, :4])
        ),
        "x must have the shape (batch, length, 6) or (length, 6), got (2, 5, 8)": lambda: (
            nn.TransformerEncoderLayer(6, 2, 4)(X)
        ),
        "x must have the shape (batch, length, 8) or (length, 8), got (8,)": lambda: (
            nn.TransformerEncoderLayer(8, 2, 4, norm_first=True)(X[0, 0])
        ),
        "mask must broadcast to (..., heads, query_length, key_length) = (2, 2, 5, 5), got (4, 5)": lambda: (
            nn.TransformerEncoderLayer(8, 2, 4)(X, mask=np.ones((4, 5), bool))
        ),
        "key_lengths must lie in [0, 5], got 6 for sequence 1": lambda: nn.TransformerEncoderLayer(8, 2, 4)(
            X, key_lengths=[5, 6]
        ),
        "causal=True is ambiguous for query length 5 and key length 4": lambda: nn.MultiheadAttention(8, 2)(
            X, X[:, :4], causal=True
        ),
        "layers of return_weights must not name a layer twice, got [0, -1]": lambda: small_encoder()(
            X, return_weights=(0, -1)
        ),
    },
    IndexError: {
        "ids must be in [0, 3) to select rows of weight, got 3 at position 1": lambda: nn.Embedding(3, 3)(
            [0, 3]
        ),
        "ids must be in [0, 3) to select rows of weight, got -1 at position 0": lambda: nn.Embedding(3, 3)(
            [-1]
        ),
        "positions must lie in [0, 4), got 4": lambda: nn.PositionalEncoding(8, max_len=4, kind="learned")(X),
        "positions must lie in [0, 9), got -1": lambda: nn.PositionalEncoding(8, max_len=9, kind="learned")(
            X, first=-1
        ),
        "heads of a WeightSelection must lie in [-2, 1], got 2": lambda: nn.MultiheadAttention(8, 2)(
            X, return_weights=blasformer.WeightSelection(heads=[2])
        ),
        "layers of return_weights must lie in [-1, 0], got 1": lambda: small_encoder()(
            X, return_weights=(0, 1)
        ),
    },
    MemoryError: {
        "not enough memory for this call's arrays": lambda: nn.Linear(2**31, 2**31),
    },
}


@pytest.mark.parametrize(("kind", "text"), [(kind, text) for kind, calls in ERRORS.items() for text in calls])
def test_errors_name_the_argument_what_it_must_be_and_what_it_was(kind, text):
    with pytest.raises(kind) as caught:
        ERRORS[kind][text]()
    assert type(caught.value) is kind
    assert str(caught.value).startswith(text)


# ----------------------------------------------------------------------------------------------------------
# PyTorch, where it is installed
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_an_encoder_of_pytorch_computes_the_same(activation, norm_first):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    theirs = torch.nn.TransformerEncoder(
        torch.nn.TransformerEncoderLayer(
            24, 4, 48, 0.0, activation, norm_first=norm_first, batch_first=True, dtype=torch.float64
        ),
        2,
        torch.nn.LayerNorm(24, dtype=torch.float64),
        enable_nested_tensor=False,
    )
    layer = nn.TransformerEncoderLayer(24, 4, 48, activation=activation, norm_first=norm_first, dtype=float)
    ours = nn.TransformerEncoder(layer, 2, nn.LayerNorm(24, dtype=float))
    ours.load_state_dict(theirs.state_dict())
    x = normal((3, 17, 24), np.float64)
    lengths = np.array([17, 9, 1])
    padding = torch.from_numpy(np.arange(17) >= lengths[:, None])
    expected = theirs(torch.from_numpy(x), src_key_padding_mask=padding).detach().numpy()
    assert reference.error(ours(x, key_lengths=lengths), expected) < 1e-14


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("num_layers", lambda n: nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 2, 16, rng=0), n)),
        ("num_layers", lambda n: nn.TransformerDecoder(nn.TransformerDecoderLayer(8, 2, 16, rng=0), n)),
        ("num_encoder_layers", lambda n: nn.Transformer(8, 2, num_encoder_layers=n)),
        ("num_decoder_layers", lambda n: nn.Transformer(8, 2, num_decoder_layers=n)),
        ("num_layers", lambda n: models.Classifier(2, 6, vocab_size=9, d_model=8, nhead=2, num_layers=n)),
        ("num_layers", lambda n: models.LanguageModel(5, 8, d_model=8, nhead=2, num_layers=n)),
        ("num_layers", lambda n: models.Llama(5, 8, d_model=8, nhead=2, num_layers=n)),
        (
            "num_encoder_layers",
            lambda n: models.Seq2Seq(9, 9, bos_id=0, eos_id=1, d_model=8, nhead=2, num_encoder_layers=n),
        ),
    ],
)
def test_so_many_layers_that_memory_would_end_are_refused_at_once(name, make):
    with pytest.raises(ValueError, match=f"{name} must be at most 1000, got 1000000000"):
        make(10**9)
