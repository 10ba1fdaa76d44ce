"""Layers, arguments they take, and the formulas they must equal: what every test of layers runs over."""

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import reference
from blasformer import nn


class Case(NamedTuple):
    """A layer, a shape that it takes, and its formula of (parameters, x)."""

    make: Callable[..., Any]
    shape: tuple[int, ...]
    formula: Callable[..., Any]


def _linear(p, x, *, dtype):
    return reference.linear(x, p["weight"], p.get("bias"), dtype=dtype)


def _layer_norm(axes, eps):
    return lambda p, x, *, dtype: reference.layer_norm(
        x, p.get("weight"), p.get("bias"), axes=axes, eps=eps, dtype=dtype
    )


def _rms_norm(axes, eps):
    def formula(p, x, *, dtype):
        chosen = np.finfo(np.float32).eps if eps is None else eps
        return reference.rms_norm(x, p.get("weight"), axes=axes, eps=chosen, dtype=dtype)

    return formula


def _feed_forward(activation):
    return lambda p, x, *, dtype: reference.feed_forward(p, x, activation=activation, dtype=dtype)


def _gated_feed_forward(activation):
    return lambda p, x, *, dtype: reference.gated_feed_forward(p, x, activation=activation, dtype=dtype)


def _positional_encoding(**arguments):
    return lambda p, x, *, dtype: reference.positional_encoding(p, x, **arguments, dtype=dtype)


def _attention(**arguments):
    return lambda p, x, *, dtype, **masks: reference.multi_head_attention(
        p, x, **arguments, **masks, dtype=dtype
    )


def _encoder_layer(**arguments):
    return lambda p, x, *, dtype, **masks: reference.transformer_encoder_layer(
        p, x, **arguments, **masks, dtype=dtype
    )


def _encoder(**arguments):
    return lambda p, x, *, dtype, **masks: reference.transformer_encoder(
        p, x, **arguments, **masks, dtype=dtype
    )


def make_encoder(num_layers, norm, **arguments):
    def make(*, dtype, rng):
        layer = nn.TransformerEncoderLayer(dtype=dtype, **arguments)
        last = nn.LayerNorm(arguments["d_model"], dtype=dtype) if norm else None
        return nn.TransformerEncoder(layer, num_layers, last, rng=rng)

    return make


def _make(kind, /, *arguments, **keywords):
    return lambda *, dtype, rng: kind(*arguments, **keywords, dtype=dtype, rng=rng)


def _make_norm(kind, /, *arguments, **keywords):
    return lambda *, dtype, rng: kind(*arguments, **keywords, dtype=dtype)


ATTENDING = {
    "multi-head attention": Case(_make(nn.MultiheadAttention, 35, 5), (2, 33, 35), _attention(num_heads=5)),
    "multi-head attention, no bias": Case(
        _make(nn.MultiheadAttention, 24, 3, bias=False), (2, 17, 24), _attention(num_heads=3)
    ),
    "grouped heads": Case(
        _make(nn.MultiheadAttention, 42, 6, num_kv_heads=2),
        (3, 13, 42),
        _attention(num_heads=6, num_kv_heads=2),
    ),
    "rotary attention": Case(
        _make(
            nn.MultiheadAttention,
            42,
            3,
            num_kv_heads=1,
            rotary=nn.RotaryPositions(interleaved=False, base=100.0, dims=10),
        ),
        (2, 33, 42),
        _attention(num_heads=3, num_kv_heads=1, rotary={"interleaved": False, "base": 100.0, "dims": 10}),
    ),
    "rotary encoder layer": Case(
        _make(
            nn.TransformerEncoderLayer,
            36,
            3,
            20,
            activation="gelu",
            norm_first=True,
            rotary=nn.RotaryPositions(interleaved=True),
        ),
        (2, 19, 36),
        _encoder_layer(num_heads=3, activation="gelu", norm_first=True, rotary={"interleaved": True}),
    ),
    "post-norm encoder layer": Case(
        _make(nn.TransformerEncoderLayer, 40, 5, 91, activation="gelu", layer_norm_eps=1e-12),
        (2, 33, 40),
        _encoder_layer(num_heads=5, activation="gelu", layer_norm_eps=1e-12),
    ),
    "pre-norm encoder layer": Case(
        _make(nn.TransformerEncoderLayer, 36, 3, 65, norm_first=True),
        (2, 19, 36),
        _encoder_layer(num_heads=3, norm_first=True),
    ),
    "encoder layer, no bias": Case(
        _make(nn.TransformerEncoderLayer, 36, 6, 20, activation="silu", bias=False, num_kv_heads=3),
        (2, 7, 36),
        _encoder_layer(num_heads=6, activation="silu", num_kv_heads=3),
    ),
    "RMS-norm gated encoder layer": Case(
        _make(
            nn.TransformerEncoderLayer,
            36,
            3,
            33,
            activation="silu",
            norm_first=True,
            norm="rms",
            gated=True,
            layer_norm_eps=1e-6,
        ),
        (2, 19, 36),
        _encoder_layer(
            num_heads=3, activation="silu", norm_first=True, norm="rms", gated=True, layer_norm_eps=1e-6
        ),
    ),
    "post-norm RMS encoder layer": Case(
        _make(nn.TransformerEncoderLayer, 24, 3, 17, norm="rms"),
        (2, 9, 24),
        _encoder_layer(num_heads=3, norm="rms"),
    ),
    "post-norm encoder": Case(
        make_encoder(2, False, d_model=24, nhead=4, dim_feedforward=33),
        (2, 11, 24),
        _encoder(num_layers=2, num_heads=4),
    ),
    "pre-norm encoder": Case(
        make_encoder(3, True, d_model=24, nhead=2, dim_feedforward=40, norm_first=True),
        (2, 9, 24),
        _encoder(num_layers=3, num_heads=2, norm_first=True),
    ),
}

LAYERS = {
    "linear": Case(_make(nn.Linear, 67, 35), (3, 5, 67), _linear),
    "linear, no bias": Case(_make(nn.Linear, 130, 129, bias=False), (131, 130), _linear),
    "layer norm": Case(_make_norm(nn.LayerNorm, 67), (3, 5, 67), _layer_norm(1, 1e-5)),
    "layer norm of two axes": Case(
        _make_norm(nn.LayerNorm, (5, 7), eps=1e-3), (3, 5, 7), _layer_norm(2, 1e-3)
    ),
    "layer norm, no bias": Case(_make_norm(nn.LayerNorm, 33, bias=False), (3, 33), _layer_norm(1, 1e-5)),
    "layer norm without parameters": Case(
        _make_norm(nn.LayerNorm, 33, elementwise_affine=False), (3, 33), _layer_norm(1, 1e-5)
    ),
    "RMS norm": Case(_make_norm(nn.RMSNorm, 67, eps=1e-6), (3, 5, 67), _rms_norm(1, 1e-6)),
    "RMS norm without parameters": Case(
        _make_norm(nn.RMSNorm, (5, 7), 1e-5, elementwise_affine=False), (3, 5, 7), _rms_norm(2, 1e-5)
    ),
    **{
        f"feed-forward, {activation}": Case(
            _make(nn.FeedForward, 31, 65, activation=activation), (3, 5, 31), _feed_forward(activation)
        )
        for activation in ("relu", "gelu", "gelu_tanh", "gelu_sigmoid", "silu")
    },
    **{
        f"gated feed-forward, {activation}": Case(
            _make(nn.GatedFeedForward, 31, 65, activation=activation),
            (3, 5, 31),
            _gated_feed_forward(activation),
        )
        for activation in ("relu", "gelu", "gelu_tanh", "gelu_sigmoid", "silu")
    },
    "gated feed-forward, no bias": Case(
        _make(nn.GatedFeedForward, 33, 7, bias=False), (35, 33), _gated_feed_forward("silu")
    ),
    "dropout": Case(_make_norm(nn.Dropout), (3, 5, 7), lambda p, x, *, dtype: x.astype(dtype)),
    **{
        f"positional encoding, {kind}": Case(
            _make(nn.PositionalEncoding, 34, max_len=47, kind=kind, scale=5.5),
            (3, 33, 34),
            _positional_encoding(kind=kind, scale=5.5),
        )
        for kind in ("interleaved", "concatenated", "learned")
    },
    **ATTENDING,
}


def lively(case, dtype=np.float32):
    """The layer with weights of which none is zero or one."""
    return shaken(case.make(dtype=dtype, rng=1), 0.2)


def shaken(model, spread=0.3, seed=2):
    """The model, with weights of which none is zero or one, and with attention that is far from uniform."""
    random = np.random.default_rng(seed)
    with model.edit() as parameters:
        for array in parameters.values():
            array += (spread * random.standard_normal(array.shape)).astype(array.dtype)
    return model


def normal(shape, dtype=np.float32, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(dtype)


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.tobytes() == b.tobytes()


class DecodingCase(NamedTuple):
    """A layer, the shapes of its two inputs, and its formula of (parameters, first, second)."""

    make: Callable[..., Any]
    shapes: tuple[tuple[int, ...], tuple[int, ...]]
    formula: Callable[..., Any]


def _decoder_layer(**arguments):
    return lambda p, target, memory, *, dtype, **masks: reference.transformer_decoder_layer(
        p, target, memory, **arguments, **masks, dtype=dtype
    )


def make_decoder(num_layers, last_norm, /, **arguments):
    def make(*, dtype, rng):
        layer = nn.TransformerDecoderLayer(dtype=dtype, **arguments)
        last = last_norm(arguments["d_model"], 1e-5, dtype=dtype) if last_norm else None
        return nn.TransformerDecoder(layer, num_layers, last, rng=rng)

    return make


def _decoder(**arguments):
    return lambda p, target, memory, *, dtype, **masks: reference.transformer_decoder(
        p, target, memory, **arguments, **masks, dtype=dtype
    )


def _transformer(**arguments):
    return lambda p, source, target, *, dtype, **masks: reference.transformer(
        p, source, target, **arguments, **masks, dtype=dtype
    )


DECODING = {
    "post-norm decoder layer": DecodingCase(
        _make(nn.TransformerDecoderLayer, 40, 5, 91, activation="gelu", layer_norm_eps=1e-12),
        ((2, 33, 40), (2, 21, 40)),
        _decoder_layer(num_heads=5, activation="gelu", layer_norm_eps=1e-12),
    ),
    "pre-norm decoder layer": DecodingCase(
        _make(nn.TransformerDecoderLayer, 36, 6, 65, norm_first=True, activation="silu", num_kv_heads=3),
        ((2, 11, 36), (2, 35, 36)),
        _decoder_layer(num_heads=6, norm_first=True, activation="silu", num_kv_heads=3),
    ),
    "decoder layer, no bias": DecodingCase(
        _make(nn.TransformerDecoderLayer, 24, 3, 20, activation="gelu_tanh", bias=False),
        ((2, 7, 24), (2, 5, 24)),
        _decoder_layer(num_heads=3, activation="gelu_tanh"),
    ),
    "RMS-norm gated decoder layer": DecodingCase(
        _make(
            nn.TransformerDecoderLayer, 24, 3, 20, activation="silu", norm="rms", gated=True, norm_first=True
        ),
        ((2, 7, 24), (2, 5, 24)),
        _decoder_layer(num_heads=3, activation="silu", norm="rms", gated=True, norm_first=True),
    ),
    "rotary decoder layer": DecodingCase(
        _make(
            nn.TransformerDecoderLayer,
            24,
            3,
            20,
            activation="gelu",
            rotary=nn.RotaryPositions(interleaved=False),
        ),
        ((2, 7, 24), (2, 5, 24)),
        _decoder_layer(num_heads=3, activation="gelu", rotary={"interleaved": False}),
    ),
    "post-norm decoder": DecodingCase(
        make_decoder(2, None, d_model=24, nhead=4, dim_feedforward=33, activation="gelu"),
        ((2, 11, 24), (2, 9, 24)),
        _decoder(num_layers=2, num_heads=4, activation="gelu"),
    ),
    "pre-norm decoder": DecodingCase(
        make_decoder(
            3, nn.LayerNorm, d_model=24, nhead=2, dim_feedforward=40, norm_first=True, activation="silu"
        ),
        ((2, 9, 24), (2, 12, 24)),
        _decoder(num_layers=3, num_heads=2, norm_first=True, activation="silu"),
    ),
    "RMS-norm decoder": DecodingCase(
        make_decoder(2, nn.RMSNorm, d_model=24, nhead=2, dim_feedforward=40, norm="rms", activation="silu"),
        ((2, 9, 24), (2, 12, 24)),
        _decoder(num_layers=2, num_heads=2, norm="rms", activation="silu"),
    ),
}

TRANSFORMERS = {
    "post-norm": DecodingCase(
        _make(nn.Transformer, 24, 4, 2, 3, 33, activation="gelu"),
        ((2, 11, 24), (2, 9, 24)),
        _transformer(num_heads=4, num_encoder_layers=2, num_decoder_layers=3, activation="gelu"),
    ),
    "pre-norm": DecodingCase(
        _make(nn.Transformer, 24, 2, 2, 1, 17, activation="silu", norm_first=True, bias=False),
        ((2, 5, 24), (2, 35, 24)),
        _transformer(
            num_heads=2, num_encoder_layers=2, num_decoder_layers=1, activation="silu", norm_first=True
        ),
    ),
    "rotary, gated, RMS-norm": DecodingCase(
        _make(
            nn.Transformer,
            24,
            2,
            1,
            2,
            17,
            activation="silu",
            norm_first=True,
            norm="rms",
            gated=True,
            rotary=nn.RotaryPositions(interleaved=False),
            num_kv_heads=1,
        ),
        ((3, 7, 24), (3, 6, 24)),
        _transformer(
            num_heads=2,
            num_encoder_layers=1,
            num_decoder_layers=2,
            activation="silu",
            norm_first=True,
            norm="rms",
            gated=True,
            rotary={"interleaved": False},
            num_kv_heads=1,
        ),
    ),
}

TRANSFORMER_MASKS = {
    "nothing": lambda source, target, random: {},
    "causal and lengths": lambda source, target, random: {
        "causal": True,
        "source_lengths": random.integers(0, source[1] + 1, source[0]),
        "target_lengths": random.integers(0, target[1] + 1, target[0]),
    },
    "masks of all three": lambda source, target, random: {
        "source_mask": random.random((source[1],) * 2) < 0.6,
        "target_mask": random.random((target[0], 1, target[1], target[1])) < 0.6,
        "memory_mask": random.random((target[1], source[1])) < 0.6,
    },
}


DECODER_MASKS = {
    "nothing": lambda target, memory, random: {},
    "causal": lambda target, memory, random: {"causal": True},
    "masks": lambda target, memory, random: {
        "mask": random.random((target[1],) * 2) < 0.6,
        "memory_mask": random.random((target[1], memory[1])) < 0.6,
    },
    "lengths": lambda target, memory, random: {
        "causal": True,
        "key_lengths": random.integers(0, target[1] + 1, target[0]),
        "memory_key_lengths": random.integers(0, memory[1] + 1, memory[0]),
    },
    "window and bias": lambda target, memory, random: {
        "window": (3, 1),
        "bias": random.standard_normal((target[1],) * 2),
        "memory_mask": random.random((memory[0], 1, 1, memory[1])) < 0.6,
    },
    "segments": lambda target, memory, random: {
        "query_segments": np.sort(random.integers(0, 3, target[:2]), axis=-1),
        "memory_key_segments": np.sort(random.integers(0, 3, memory[:2]), axis=-1),
    },
}


MASKS = {
    "mask": lambda case, random: {"mask": random.random((case.shape[1],) * 2) < 0.6},
    "mask per sequence": lambda case, random: {
        "mask": random.random((case.shape[0], 1, 1, case.shape[1])) < 0.6
    },
    "bias": lambda case, random: {"bias": random.standard_normal((case.shape[1],) * 2)},
    "causal": lambda case, random: {"causal": True},
    "window": lambda case, random: {"window": (3, 1)},
    "key_lengths": lambda case, random: {"key_lengths": random.integers(0, case.shape[1] + 1, case.shape[0])},
    "query_segments": lambda case, random: {
        "query_segments": np.sort(random.integers(0, 3, case.shape[:2]), axis=-1)
    },
    "causal window and lengths": lambda case, random: {
        "causal": True,
        "window": (4, None),
        "key_lengths": random.integers(1, case.shape[1] + 1, case.shape[0]),
    },
}
