"""Any Transformer layer of any sizes under any masks computes its formula, and its gradients."""

import blasformer
import numpy as np
import reference
import tape
from blasformer import _core, nn
from hypothesis import given
from hypothesis import strategies as st
from layer_cases import normal

LENGTHS = [1, 2, 3, 4, 5, 7, 15, 16, 17, 31, 33, 64, 65, 127, 129]


@st.composite
def heads_and_width(draw):
    num_kv_heads, group = draw(st.sampled_from([1, 1, 2, 3])), draw(st.sampled_from([1, 2, 3]))
    head_dim = 2 * draw(st.sampled_from([2, 3, 4, 5, 8, 12, 16, 17, 20, 33]))
    return num_kv_heads * group, num_kv_heads, num_kv_heads * group * head_dim


@st.composite
def rotations(draw, head_dim):
    if draw(st.booleans()):
        return None
    dims = 2 * draw(st.integers(1, head_dim // 2))
    return {"interleaved": draw(st.booleans()), "base": draw(st.sampled_from([50.0, 10000.0])), "dims": dims}


@st.composite
def masks_of(draw, batch, heads, length, memory_length):
    """Arguments for attention, and those for attention to the memory."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    sides = st.none() | st.integers(0, length)
    shapes = [(length, length), (batch, 1, 1, length), (batch, heads, length, length), (heads, 1, length)]
    make = {
        "causal": lambda: True,
        "window": lambda: (draw(sides), draw(sides)),
        "key_lengths": lambda: random.integers(0, length + 1, batch),
        "mask": lambda: random.random(draw(st.sampled_from(shapes))) < 0.7,
        "query_segments": lambda: np.sort(random.integers(0, 3, (batch, length))),
        "bias": lambda: random.standard_normal(draw(st.sampled_from(shapes))),
        "alibi_slopes": lambda: random.random(heads),
    }
    of_memory = {
        "memory_key_lengths": lambda: random.integers(0, memory_length + 1, batch),
        "memory_mask": lambda: random.random((batch, 1, length, memory_length)) < 0.7,
    }
    few = st.lists(st.sampled_from(list(make)), unique=True, max_size=3)
    masks = {name: make[name]() for name in draw(few)}
    if "query_segments" in masks:
        of_memory["memory_key_segments"] = lambda: np.sort(random.integers(0, 3, (batch, memory_length)))
    few = st.lists(st.sampled_from(list(of_memory)), unique=True)
    return masks, {name: of_memory[name]() for name in draw(few)}


@given(data=st.data())
def test_any_layer_under_any_masks_is_its_formula_and_has_its_gradients(data):
    heads, num_kv_heads, d_model = data.draw(heads_and_width())
    batch, length = data.draw(st.integers(1, 3)), data.draw(st.sampled_from(LENGTHS))
    memory_length = data.draw(st.sampled_from(LENGTHS))
    rotary = data.draw(rotations(d_model // heads))
    masks, memory_masks = data.draw(masks_of(batch, heads, length, memory_length))
    variant = {
        "activation": data.draw(st.sampled_from(list(reference.ACTIVATIONS))),
        "norm_first": data.draw(st.booleans()),
        "norm": data.draw(st.sampled_from(["layer", "rms"])),
        "gated": data.draw(st.booleans()),
        "num_kv_heads": num_kv_heads,
    }
    decodes = data.draw(st.booleans())
    kind = nn.TransformerDecoderLayer if decodes else nn.TransformerEncoderLayer
    layer = kind(
        d_model,
        heads,
        data.draw(st.integers(1, 150)),
        bias=data.draw(st.booleans()),
        recompute=data.draw(st.booleans()),
        rotary=None if rotary is None else nn.RotaryPositions(**rotary),
        **variant,
        dtype=float,
        rng=1,
    )
    inputs = {"x": normal((batch, length, d_model), np.float64, 2)}
    formula = reference.transformer_encoder_layer
    if decodes:
        inputs["memory"] = normal((batch, memory_length, d_model), np.float64, 3)
        formula = reference.transformer_decoder_layer
        masks |= memory_masks
    d_y = normal((batch, length, d_model), np.float64, 4)

    def of_one_dict(arrays, dtype):
        parameters = {name: array for name, array in arrays.items() if name not in inputs}
        given_inputs = (arrays[name] for name in inputs)
        return formula(
            parameters, *given_inputs, num_heads=heads, rotary=rotary, **variant, **masks, dtype=dtype
        )

    with (
        blasformer.use_isa(data.draw(st.sampled_from(_core.detected_isas()))),
        blasformer.num_threads(data.draw(st.integers(1, 3))),
    ):
        y, saved = layer.forward(*inputs.values(), **masks)
        d_inputs, grads = layer.backward(saved, d_y)
    d_inputs = d_inputs if isinstance(d_inputs, tuple) else (d_inputs,)
    exact, gradients = tape.run(of_one_dict, {**inputs, **layer.state_dict()}, d_y)
    assert reference.error(y, exact) < 1e-12
    largest = max(np.abs(gradient).max() for gradient in gradients.values())
    for name, gradient in {**dict(zip(inputs, d_inputs, strict=True)), **grads}.items():
        # Some are zero but for rounding, as those that reach the only key of a row through its score.
        assert reference.error(gradient, gradients[name], terms=1e-3 * largest) < 1e-10, name
