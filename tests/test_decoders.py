"""Layers that attend to a memory: equal to their formulas, with gradients of both inputs."""

import numpy as np
import pytest
import reference
from blasformer import WeightSelection, nn
from layer_cases import DECODER_MASKS, DECODING, lively, normal, same_bits
from reference import assert_as_accurate_as_numpy
from test_layer_gradients import assert_is_derivative


def inputs_of(case, dtype=np.float32):
    return [normal(shape, dtype, seed) for seed, shape in enumerate(case.shapes)]


def masks_of(case, name, dtype=np.float32):
    masks = DECODER_MASKS[name](*case.shapes, np.random.default_rng(3))
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
def test_a_decoder_layer_drops_in_six_places(norm_first):
    layer = nn.TransformerDecoderLayer(12, 3, 31, 0.2, norm_first=norm_first, rng=0)
    target, memory = normal((2, 9, 12)), normal((2, 7, 12), seed=1)
    seed = reference.dropout_seed(7)

    def formula(x, memory, dtype):
        p = layer.parameters()

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
            hidden = reference.relu(reference.linear(y, p["linear1.weight"], p["linear1.bias"], dtype=dtype))
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

    assert_as_accurate_as_numpy(layer.forward(target, memory, rng=7)[0], formula, target, memory)


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
