"""Layers that attend to a memory: equal to their formulas, with gradients of both inputs."""

import copy
import pickle

import blasformer
import numpy as np
import pytest
import reference
from blasformer import WeightSelection, lora, nn
from derivatives import Accuracy, assert_is_derivative
from layer_cases import (
    DECODER_MASKS,
    DECODING,
    TRANSFORMER_MASKS,
    TRANSFORMERS,
    lively,
    normal,
    same_bits,
)
from reference import assert_as_accurate_as_numpy


def inputs_of(case, dtype=np.float32):
    return [normal(shape, dtype, seed) for seed, shape in enumerate(case.shapes)]


def masks_of(case, name, dtype=np.float32):
    masks = (DECODER_MASKS | TRANSFORMER_MASKS)[name](*case.shapes, np.random.default_rng(3))
    return {key: array.astype(dtype) if key == "bias" else array for key, array in masks.items()}


def assert_has_the_gradients_of_its_formula(layer, formula, names, inputs, rng=None, **arguments):
    y, saved = layer.forward(*inputs, rng=rng, **arguments)
    d_y = normal(y.shape, np.float64, 4)
    d_inputs, grads = layer.backward(saved, d_y)
    assert isinstance(d_inputs, tuple)

    def function(arrays):
        parameters = {name: array for name, array in arrays.items() if name not in names}
        return np.sum(d_y * formula(parameters, *(arrays[name] for name in names)))

    assert_is_derivative(
        function,
        {**dict(zip(names, inputs, strict=True)), **layer.state_dict()},
        {**dict(zip(names, d_inputs, strict=True)), **grads},
    )


# ----------------------------------------------------------------------------------------------------------
# Decoders
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masks", DECODER_MASKS)
@pytest.mark.parametrize("name", DECODING)
def test_output_is_as_accurate_as_numpy(name, masks, dtype):
    case = DECODING[name]
    layer = lively(case, dtype)
    arguments = masks_of(case, masks, dtype)
    inputs = inputs_of(case, dtype)
    y = layer(*inputs, **arguments)
    assert same_bits(layer.forward(*inputs, **arguments)[0], y)
    assert_as_accurate_as_numpy(
        y, lambda *xs, dtype: case.formula(layer.parameters(), *xs, dtype=dtype, **arguments), *inputs
    )


@pytest.mark.parametrize("masks", DECODER_MASKS)
@pytest.mark.parametrize("name", DECODING)
def test_gradients_are_the_derivatives_of_the_formula(name, masks):
    case = DECODING[name]
    arguments = masks_of(case, masks, np.float64)
    assert_has_the_gradients_of_its_formula(
        lively(case, np.float64),
        lambda p, *xs: case.formula(p, *xs, dtype=np.float64, **arguments),
        ("target", "memory"),
        inputs_of(case, np.float64),
        **arguments,
    )


@pytest.mark.parametrize(
    ("target", "memory"),
    [((1, 5), (1, 3)), ((5, 1), (5, 1)), ((0, 5), (0, 3)), ((5, 0), (5, 3)), ((7,), (3,))],
)
@pytest.mark.parametrize("name", DECODING)
def test_any_batch_and_length_has_an_output_and_gradients(name, target, memory):
    case = DECODING[name]
    layer = lively(case, np.float64)
    width = case.shapes[0][-1]
    inputs = [normal((*target, width), np.float64), normal((*memory, width), np.float64, 1)]
    y, saved = layer.forward(*inputs)
    assert y.shape == inputs[0].shape
    d_inputs, grads = layer.backward(saved, np.ones_like(y))
    for d_input, given in zip(d_inputs, inputs, strict=True):
        assert d_input.shape == given.shape
    if y.size == 0:
        assert all((gradient == 0).all() for gradient in (*d_inputs, *grads.values()))
    else:
        expected = case.formula(layer.parameters(), *inputs, dtype=np.float64)
        assert reference.error(y, expected) < 1e-12


def test_an_empty_memory_gives_the_bias_of_its_output_projection():
    layer = nn.TransformerDecoderLayer(8, 2, 16, dtype=float, rng=0)
    target, memory = normal((2, 3, 8), np.float64), np.zeros((2, 0, 8))
    y, saved = layer.forward(target, memory)
    formula = reference.transformer_decoder_layer(layer.parameters(), target, memory, num_heads=2)
    assert reference.error(y, formula) < 1e-14
    (_, d_memory), _ = layer.backward(saved, y)
    assert d_memory.shape == (2, 0, 8)


@pytest.mark.parametrize("name", DECODING)
def test_what_lies_behind_the_lengths_changes_no_bit(name):
    case = DECODING[name]
    layer = lively(case)
    target, memory = inputs_of(case)
    lengths = {"key_lengths": [3, 1], "memory_key_lengths": [2, 4]}
    expected = layer(target, memory, **lengths)
    target[0, 3:] = target[1, 1:] = memory[0, 2:] = memory[1, 4:] = np.nan
    y, saved = layer.forward(target, memory, **lengths)
    assert same_bits(y[0, :3], expected[0, :3])
    assert same_bits(y[1, :1], expected[1, :1])
    d_y = np.ones_like(y)
    d_y[0, 3:] = d_y[1, 1:] = 0
    (_, d_memory), _ = layer.backward(saved, d_y)
    assert (d_memory[0, 2:] == 0).all()
    assert (d_memory[1, 4:] == 0).all()


class Seeded(np.random.Generator):
    """A generator of one seed."""

    def __init__(self, seed):
        super().__init__(np.random.PCG64(0))
        self.seed = seed % 2**64

    def integers(self, *_, **__):
        return self.seed


@pytest.mark.parametrize("norm_first", [False, True])
def test_a_decoder_layer_drops_in_six_places(norm_first, isa):
    layer = nn.TransformerDecoderLayer(12, 3, 31, 0.2, norm_first=norm_first, rng=0)
    target, memory = normal((2, 9, 12)), normal((2, 7, 12), seed=1)
    seed = reference.dropout_seed(7)

    def formula(p, dtype):
        x, memory = p["target"], p["memory"]

        def drop(place, y):
            return reference.dropout(y, 0.2, (seed + place) % 2**64, dtype=dtype)

        def attend(name, place, *inputs):
            own = reference.within(p, f"{name}.")
            return drop(
                place + 1,
                reference.multi_head_attention(
                    own, *inputs, num_heads=3, dropout_p=0.2, rng=Seeded(seed + place), dtype=dtype
                ),
            )

        def feed(y):
            hidden = reference.linear(y, p["linear1.weight"], p["linear1.bias"], dtype=dtype)
            hidden = reference.relu(hidden, dtype=dtype)
            return drop(
                5, reference.linear(drop(4, hidden), p["linear2.weight"], p["linear2.bias"], dtype=dtype)
            )

        def norm(number, y):
            return reference.layer_norm(y, p[f"norm{number}.weight"], p[f"norm{number}.bias"], dtype=dtype)

        if norm_first:
            x = x + attend("self_attn", 0, norm(1, x))
            x = x + attend("multihead_attn", 2, norm(2, x), memory)
            return x + feed(norm(3, x))
        x = norm(1, x + attend("self_attn", 0, x))
        x = norm(2, x + attend("multihead_attn", 2, x, memory))
        return norm(3, x + feed(x))

    y, saved = layer.forward(target, memory, rng=7)
    d_y = normal(y.shape, seed=4)
    (d_target, d_memory), grads = layer.backward(saved, d_y)
    arrays = {"target": target, "memory": memory, **layer.state_dict()}
    results = {"y": y, "target": d_target, "memory": d_memory, **grads}
    Accuracy(formula, arrays, d_y, np.float32).check(results)


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize("norm_first", [False, True])
def test_gradients_under_dropout_are_those_of_what_forward_dropped(norm_first, recompute):
    make = {"dropout": 0.3, "norm_first": norm_first, "recompute": recompute, "activation": "gelu"}
    layer, other = (nn.TransformerDecoderLayer(12, 3, 31, dtype=float, rng=0, **make) for _ in range(2))

    def formula(p, target, memory):
        other.load_state_dict(p)
        return other.forward(target, memory, causal=True, rng=7)[0]

    inputs = [normal((2, 9, 12), np.float64), normal((2, 7, 12), np.float64, 1)]
    assert_has_the_gradients_of_its_formula(layer, formula, ("target", "memory"), inputs, causal=True, rng=7)


@pytest.mark.parametrize("norm_first", [False, True])
def test_recomputing_changes_no_bit_and_keeps_less(norm_first):
    layers = [
        nn.TransformerDecoderLayer(24, 4, 96, 0.2, norm_first=norm_first, recompute=recompute, rng=1)
        for recompute in (False, True)
    ]
    target, memory, d_y = (normal((3, length, 24), seed=length) for length in (33, 20, 33))
    found, kept = [], []
    for layer in layers:
        y, saved = layer.forward(target, memory, causal=True, memory_key_lengths=[20, 5, 0], rng=3)
        kept.append(saved.nbytes)
        (d_target, d_memory), grads = layer.backward(saved, d_y)
        found.append([y, d_target, d_memory, *grads.values()])
    assert all(same_bits(one, other) for one, other in zip(*found, strict=True))
    assert kept[1] == target.nbytes + memory.nbytes < kept[0] / 5


def test_decoder_layers_return_the_weights_of_both_attentions():
    layer = nn.TransformerDecoderLayer(12, 3, 31, rng=0)
    target, memory = normal((2, 5, 12)), normal((2, 7, 12), seed=1)
    y, weights = layer(target, memory, causal=True, memory_key_lengths=[7, 2], return_weights=True)
    assert same_bits(y, layer(target, memory, causal=True, memory_key_lengths=[7, 2]))
    assert weights.self_attn.shape == (2, 3, 5, 5)
    assert weights.multihead_attn.shape == (2, 3, 5, 7)
    for array in weights:
        np.testing.assert_allclose(array.sum(-1), 1, rtol=1e-6)
    assert (np.triu(weights.self_attn, 1) == 0).all()
    assert (weights.multihead_attn[1, ..., 2:] == 0).all()
    chosen = WeightSelection(heads=[2], rows=[-1])
    _, few = layer(target, memory, causal=True, memory_key_lengths=[7, 2], return_weights=chosen)
    assert same_bits(few.multihead_attn, weights.multihead_attn[:, 2:, -1:])


def test_decoders_return_the_weights_of_chosen_layers():
    decoder = nn.TransformerDecoder(nn.TransformerDecoderLayer(12, 3, 31), 3, nn.LayerNorm(12), rng=0)
    target, memory = normal((2, 5, 12)), normal((2, 7, 12), seed=1)
    y, weights = decoder(target, memory, return_weights=(0, -1))
    assert same_bits(y, decoder(target, memory))
    assert list(weights) == [0, -1]
    first = reference.within(decoder.parameters(), "layers.0.")
    layer = nn.TransformerDecoderLayer(12, 3, 31)
    layer.load_state_dict(first)
    for ours, its in zip(weights[0], layer(target, memory, return_weights=True)[1], strict=True):
        assert same_bits(ours, its)


# ----------------------------------------------------------------------------------------------------------
# The whole Transformer
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("masks", TRANSFORMER_MASKS)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_a_transformer_is_its_formula(name, masks, dtype):
    case = TRANSFORMERS[name]
    model = lively(case, dtype)
    arguments = masks_of(case, masks, dtype)
    inputs = inputs_of(case, dtype)
    y = model(*inputs, **arguments)
    assert same_bits(model.forward(*inputs, **arguments)[0], y)
    assert_as_accurate_as_numpy(
        y, lambda *xs, dtype: case.formula(model.parameters(), *xs, dtype=dtype, **arguments), *inputs
    )


@pytest.mark.parametrize("masks", TRANSFORMER_MASKS)
@pytest.mark.parametrize("name", TRANSFORMERS)
def test_gradients_of_a_transformer_are_the_derivatives_of_its_formula(name, masks):
    case = TRANSFORMERS[name]
    arguments = masks_of(case, masks, np.float64)
    assert_has_the_gradients_of_its_formula(
        lively(case, np.float64),
        lambda p, *xs: case.formula(p, *xs, dtype=np.float64, **arguments),
        ("source", "target"),
        inputs_of(case, np.float64),
        **arguments,
    )


def test_gradients_of_a_transformer_under_dropout_are_those_of_what_forward_dropped():
    make = {"dropout": 0.3, "activation": "gelu", "dtype": float, "rng": 0}
    model, other = (nn.Transformer(12, 3, 2, 2, 17, **make) for _ in range(2))

    def formula(p, source, target):
        other.load_state_dict(p)
        return other.forward(source, target, causal=True, rng=7)[0]

    inputs = [normal((2, 9, 12), np.float64), normal((2, 7, 12), np.float64, 1)]
    assert_has_the_gradients_of_its_formula(model, formula, ("source", "target"), inputs, causal=True, rng=7)


@pytest.mark.parametrize("name", TRANSFORMERS)
def test_encoding_and_decoding_are_the_two_halves_of_a_call(name):
    case = TRANSFORMERS[name]
    model = lively(case)
    arguments = masks_of(case, "masks of all three") | {"source_lengths": [3, 1, 2][: case.shapes[0][0]]}
    source, target = inputs_of(case)
    of_source = {key: arguments.pop(key) for key in ("source_mask", "source_lengths")}
    memory = model.encode(source, **of_source)
    y = model.decode(target, memory, source_lengths=of_source["source_lengths"], **arguments)
    assert same_bits(y, model(source, target, **of_source, **arguments))


def test_a_target_decoded_word_by_word_is_that_decoded_at_once():
    model = nn.Transformer(12, 3, 1, 2, 17, rng=0, dtype=float)
    source, target = normal((2, 9, 12), np.float64), normal((2, 7, 12), np.float64, 1)
    memory = model.encode(source)
    whole = model.decode(target, memory, causal=True)
    for length in range(1, 8):
        part = model.decode(target[:, :length], memory, causal=True)
        assert reference.error(part, whole[:, :length]) < 1e-14


@pytest.mark.parametrize("shapes", [((0, 3), (0, 2)), ((2, 1), (2, 1)), ((4,), (3,)), ((2, 3), (2, 0))])
def test_a_transformer_takes_any_batch_and_length(shapes):
    case = TRANSFORMERS["pre-norm"]
    model = lively(case, np.float64)
    inputs = [normal((*shape, 24), np.float64, seed) for seed, shape in enumerate(shapes)]
    y, saved = model.forward(*inputs)
    assert y.shape == inputs[1].shape
    d_inputs, _ = model.backward(saved, np.ones_like(y))
    assert [d.shape for d in d_inputs] == [x.shape for x in inputs]
    if y.size:
        assert reference.error(y, case.formula(model.parameters(), *inputs, dtype=np.float64)) < 1e-12


def test_a_transformer_returns_the_weights_of_chosen_layers():
    model = nn.Transformer(12, 3, 3, 2, 17, rng=0)
    source, target = normal((2, 9, 12)), normal((2, 7, 12), seed=1)
    y, weights = model(source, target, causal=True, return_weights=(-1,))
    assert same_bits(y, model(source, target, causal=True))
    assert list(weights.encoder) == list(weights.decoder) == [-1]
    assert weights.encoder[-1].shape == (2, 3, 9, 9)
    assert weights.decoder[-1].self_attn.shape == (2, 3, 7, 7)
    assert weights.decoder[-1].multihead_attn.shape == (2, 3, 7, 9)
    _, every = model(source, target, return_weights=True)
    assert list(every.encoder) == [0, 1, 2]
    assert list(every.decoder) == [0, 1]


def test_adapters_of_a_transformer_have_gradients():
    def adapted():
        rotary = nn.RotaryPositions(interleaved=False)
        model = nn.Transformer(12, 3, 1, 1, 17, 0.2, "silu", gated=True, rotary=rotary, rng=0, dtype=float)
        names = lora.add(
            model, ["decoder.*.multihead_attn.*", "encoder.*.q_proj", "gate_proj"], rank=2, dropout=0.3, rng=1
        )
        assert len(names) == 7
        random = np.random.default_rng(2)
        arrays = {name: array for name, array in model.state_dict().items() if "lora_" in name}
        model.load_state_dict(
            {name: random.standard_normal(array.shape) for name, array in arrays.items()}, strict=False
        )
        return model

    model, other = adapted(), adapted()
    inputs = {"source": normal((2, 9, 12), np.float64), "target": normal((2, 7, 12), np.float64, 1)}
    y, saved = model.forward(**inputs, causal=True, rng=7)
    d_y = normal(y.shape, np.float64, 4)
    d_inputs, grads = model.backward(saved, d_y)

    def function(arrays):
        here = {name: arrays[name] for name in inputs}
        other.load_state_dict(
            {name: array for name, array in arrays.items() if name not in inputs}, strict=False
        )
        return np.sum(d_y * other.forward(**here, causal=True, rng=7)[0])

    trained = {name: array for name, array in model.state_dict().items() if "lora_" in name}
    assert_is_derivative(
        function, inputs | trained, dict(zip(inputs, d_inputs, strict=True)) | {n: grads[n] for n in trained}
    )


def test_matrices_of_a_transformer_begin_as_in_pytorch():
    model = nn.Transformer(64, 4, 1, 1, 96, rng=0)
    for name, array in model.parameters().items():
        if array.ndim == 2:
            bound = np.sqrt(6 / sum(array.shape))
            assert 0.98 * bound < np.abs(array).max() <= bound, name
    assert not model.parameters()["encoder.layers.0.self_attn.in_proj_bias"].any()
    assert model.parameters()["decoder.layers.0.linear1.bias"].any()


@pytest.mark.parametrize("duplicate", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_and_pickles_are_models_of_their_own(duplicate):
    make = {"rotary": nn.RotaryPositions(interleaved=True, dims=2), "norm": "rms", "gated": True}
    model = nn.Transformer(12, 3, 1, 1, 17, rng=0, **make)
    source, target = normal((2, 9, 12)), normal((2, 7, 12), seed=1)
    other = duplicate(model)
    assert same_bits(other(source, target), model(source, target))
    assert repr(other) == repr(model)
    assert "rotary=RotaryPositions(interleaved=True, base=10000.0, dims=2)" in repr(model)


@pytest.mark.parametrize("name", [*DECODING, *TRANSFORMERS])
def test_gradients_have_the_same_bits_for_any_number_of_threads(name):
    case = (DECODING | TRANSFORMERS)[name]
    layer = lively(case)
    found = []
    for threads in (1, 3):
        with blasformer.num_threads(threads):
            y, saved = layer.forward(*inputs_of(case), rng=1)
            d_inputs, grads = layer.backward(saved, np.ones_like(y))
        found.append([y, *d_inputs, *grads.values()])
    assert all(same_bits(one, other) for one, other in zip(*found, strict=True))


# ----------------------------------------------------------------------------------------------------------
# Rotary positions
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize(
    "masks",
    [
        {"causal": "lower_right"},
        {"causal": "upper_left"},
        {"query_offset": 3, "causal": True},
        {"query_offset": np.array([3, -1]), "window": (2, 1)},
    ],
)
def test_rotary_queries_stand_where_masks_say(interleaved, masks):
    rotary = nn.RotaryPositions(interleaved=interleaved)
    layer = nn.MultiheadAttention(12, 3, kdim=10, vdim=10, rotary=rotary, dtype=float, rng=0)
    query, key = normal((2, 4, 12), np.float64), normal((2, 7, 10), np.float64, 1)

    def formula(parameters, query, key):
        return reference.multi_head_attention(
            parameters, query, key, num_heads=3, rotary={"interleaved": interleaved}, **masks
        )

    assert reference.error(layer(query, key, **masks), formula(layer.parameters(), query, key)) < 1e-14
    y, saved = layer.forward(query, key, **masks)
    (d_query, d_key, d_value), grads = layer.backward(saved, y)
    assert d_value is None
    assert_is_derivative(
        lambda arrays: np.sum(y * formula(arrays, arrays["query"], arrays["key"])),
        {"query": query, "key": key, **layer.state_dict()},
        {"query": d_query, "key": d_key, **grads},
    )


def test_rotary_scores_depend_on_distances_alone():
    layer = nn.MultiheadAttention(24, 3, rotary=nn.RotaryPositions(interleaved=False), dtype=float, rng=0)
    x = normal((2, 9, 24), np.float64)
    shifted = layer(x, x, query_offset=1000, key_lengths=[9, 9])
    turned = layer(x, x, query_offset=0)
    assert reference.error(shifted, turned) > 0.01
    padded = np.concatenate([normal((2, 1000, 24), np.float64), x], axis=1)
    seen = np.arange(1009) >= 1000
    assert reference.error(layer(x, padded, query_offset=1000, mask=seen), turned) < 1e-12


def test_rotary_of_cross_attention_needs_to_know_where_queries_stand():
    layer = nn.MultiheadAttention(12, 3, rotary=nn.RotaryPositions(interleaved=False))
    with pytest.raises(ValueError, match="rotary is ambiguous for query length 4 and key length 7"):
        layer(normal((2, 4, 12)), normal((2, 7, 12)))


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------

X = np.zeros((2, 5, 8), np.float32)
MEMORY = np.zeros((2, 7, 8), np.float32)
WRONG_MASK = np.ones((3, 3), bool)


def a_layer(**arguments):
    return nn.TransformerDecoderLayer(8, 2, 4, **arguments)


def a_transformer(**arguments):
    return nn.Transformer(8, 2, 1, 1, 4, **arguments)


ERRORS = {
    TypeError: {
        "decoder_layer must be a TransformerDecoderLayer, got Linear": lambda: nn.TransformerDecoder(
            nn.Linear(8, 8), 2
        ),
        "norm must be a LayerNorm or None, got RMSNorm": lambda: nn.TransformerDecoder(
            a_layer(), 2, nn.RMSNorm(8)
        ),
        "norm must be a RMSNorm or None, got LayerNorm": lambda: nn.TransformerDecoder(
            a_layer(norm="rms"), 2, nn.LayerNorm(8)
        ),
        "norm must have the dtype of decoder_layer, float32, got float64": lambda: nn.TransformerDecoder(
            a_layer(), 2, nn.LayerNorm(8, dtype=float)
        ),
        "rotary must be a RotaryPositions or None, got bool": lambda: a_layer(rotary=True),
        "dims of rotary must be an integer, got float": lambda: a_layer(
            rotary=nn.RotaryPositions(interleaved=True, dims=2.0)
        ),
        "target must be a NumPy array of float32, the dtype of the layer, got float64": lambda: a_layer()(
            X.astype(float), MEMORY
        ),
        "memory must be a NumPy array of float32, the dtype of the layer, got NoneType": lambda: a_layer()(
            X, None
        ),
        "memory_mask must be a NumPy array of bool (True = may attend), got int64": lambda: a_layer()(
            X, MEMORY, memory_mask=np.ones((5, 7), int)
        ),
        "source must be a NumPy array of float32, the dtype of the layer, got list": lambda: a_transformer()(
            [1.0], X
        ),
        "source_lengths must be integers, got float64": lambda: a_transformer()(
            X, X, source_lengths=np.ones(2)
        ),
    },
    ValueError: {
        "norm must be layer or rms, got batch": lambda: a_layer(norm="batch"),
        "num_layers must be positive, got 0": lambda: nn.TransformerDecoder(a_layer(), 0),
        "norm must normalise over the 8 features of the decoder layer, got normalized_shape (7,)": lambda: (
            nn.TransformerDecoder(a_layer(), 2, nn.LayerNorm(7))
        ),
        "dims of rotary must be positive, even and at most the 4 features of a head, got 3": lambda: a_layer(
            rotary=nn.RotaryPositions(interleaved=True, dims=3)
        ),
        "dims of rotary must be positive, even and at most the 4 features of a head, got 6": lambda: a_layer(
            rotary=nn.RotaryPositions(interleaved=True, dims=6)
        ),
        "base of rotary must be a finite number above 0, got 0": lambda: a_layer(
            rotary=nn.RotaryPositions(interleaved=True, base=0)
        ),
        "target must have the shape (batch, length, 8) or (length, 8), got (2, 5, 7)": lambda: a_layer()(
            X[..., :7], MEMORY
        ),
        "memory must have the shape (2, memory_length, 8) to fit target (2, 5, 8), got (1, 7, 8)": lambda: (
            a_layer()(X, MEMORY[:1])
        ),
        "memory must have the shape (memory_length, 8) to fit target (5, 8), got (2, 7, 8)": lambda: (
            a_layer()(X[0], MEMORY)
        ),
        "mask must broadcast to (..., heads, query_length, key_length) = (2, 2, 5, 5), got (3, 3)": lambda: (
            a_layer()(X, MEMORY, mask=WRONG_MASK)
        ),
        "memory_mask must broadcast to (..., heads, query_length, key_length) = (2, 2, 5, 7)": lambda: (
            a_layer()(X, MEMORY, memory_mask=WRONG_MASK)
        ),
        "memory_key_lengths must lie in [0, 7], got 8 for sequence 1": lambda: a_layer()(
            X, MEMORY, memory_key_lengths=[7, 8]
        ),
        "memory_key_segments must be given together with query_segments": lambda: a_layer()(
            X, MEMORY, memory_key_segments=np.zeros((2, 7), int)
        ),
        "memory_key_segments must have the shape (batch, length) = (2, 7), got (2, 5)": lambda: a_layer()(
            X, MEMORY, query_segments=np.zeros((2, 5), int), memory_key_segments=np.zeros((2, 5), int)
        ),
        "num_encoder_layers must be positive, got 0": lambda: nn.Transformer(8, 2, 0, 1),
        "num_decoder_layers must be positive, got -1": lambda: nn.Transformer(8, 2, 1, -1),
        "d_model must be a multiple of nhead = 3, got 8": lambda: nn.Transformer(8, 3),
        "source must have the shape (batch, length, 8) or (length, 8), got (2, 5, 7)": lambda: (
            a_transformer()(X[..., :7], X)
        ),
        "target must have the axes of source (2, 5, 8), but for a length of its own, and 8 features, "
        "got (1, 5, 8)": lambda: a_transformer()(X, X[:1]),
        "source_mask must broadcast to": lambda: a_transformer()(X, X, source_mask=WRONG_MASK),
        "target_mask must broadcast to": lambda: a_transformer()(X, X, target_mask=WRONG_MASK),
        "memory_mask must broadcast to": lambda: a_transformer()(X, X, memory_mask=WRONG_MASK),
        "source_lengths must lie in [0, 5], got 6 for sequence 0": lambda: a_transformer()(
            X, X, source_lengths=[6, 0]
        ),
        "target_lengths must lie in [0, 5], got -1 for sequence 1": lambda: a_transformer()(
            X, X, target_lengths=[5, -1]
        ),
        "source_lengths must be an integer or have the shape (batch,) = (2,), got (3,)": lambda: (
            a_transformer().decode(X, MEMORY, source_lengths=[1, 2, 3])
        ),
    },
    IndexError: {
        "layers of return_weights must lie in [-1, 0], got 1": lambda: a_transformer()(
            X, X, return_weights=(1,)
        ),
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


@pytest.mark.filterwarnings("ignore:enable_nested_tensor")  # which PyTorch turns off by itself
@pytest.mark.parametrize("norm_first", [False, True])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_a_transformer_of_pytorch_computes_the_same_and_has_the_same_gradients(activation, norm_first):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    theirs = torch.nn.Transformer(
        24, 4, 2, 3, 48, 0.0, activation, batch_first=True, norm_first=norm_first, dtype=torch.float64
    )
    ours = nn.Transformer(24, 4, 2, 3, 48, activation=activation, norm_first=norm_first, dtype=float)
    arrays = {name: tensor.numpy() for name, tensor in theirs.state_dict().items()}
    assert list(arrays) == list(ours.parameters())
    ours.load_state_dict(arrays)
    inputs = [normal((3, 17, 24), np.float64), normal((3, 11, 24), np.float64, 1)]
    tensors = [torch.from_numpy(x).requires_grad_() for x in inputs]
    lengths = {"source_lengths": np.array([17, 9, 1]), "target_lengths": np.array([11, 3, 7])}
    padding = [
        torch.from_numpy(np.arange(x.shape[1]) >= of_x[:, None])
        for x, of_x in zip(inputs, lengths.values(), strict=True)
    ]
    expected = theirs(
        *tensors,
        tgt_mask=torch.triu(torch.ones(11, 11, dtype=torch.bool), 1),
        src_key_padding_mask=padding[0],
        tgt_key_padding_mask=padding[1],
        memory_key_padding_mask=padding[0],
    )
    y, saved = ours.forward(*inputs, causal=True, **lengths)
    assert reference.error(y, expected.detach().numpy()) < 1e-13
    d_y = normal(y.shape, np.float64, 2)
    expected.backward(torch.from_numpy(d_y))
    d_inputs, grads = ours.backward(saved, d_y)
    for ours_d, tensor in zip(d_inputs, tensors, strict=True):
        assert reference.error(ours_d, tensor.grad.numpy()) < 1e-12
    for name, parameter in theirs.named_parameters():
        assert reference.error(grads[name], parameter.grad.numpy()) < 1e-12, name
