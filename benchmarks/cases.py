"""What is timed: every case, its inputs, and the float64 truth its results are judged by.

A case is a value. It makes the same inputs in every process (the seed is its name), so that only names and
results travel between them. Errors are taken on a sample of the result, since the truth is slow.
"""

from __future__ import annotations

import dataclasses
import math
import zlib
from dataclasses import dataclass

import numpy as np
from formulas import (
    Arrays,
    encoder_layer,
    exact_gelu,
    layer_norm,
    multihead_attention,
    rms_norm,
    softmax,
    tanh_gelu,
)
from sentence_cases import Sentences

# Queries of one head that the truth is computed for at a time: bounds its memory.
ROWS_AT_A_TIME = 512
# Queries of one head whose output is compared.
SAMPLED_ROWS = 64


def generator(name: str) -> np.random.Generator:
    return np.random.default_rng(zlib.crc32(name.encode()))


def end_of_sequences(batch: int, length: int) -> np.ndarray:
    """A batch of sequences that end between 60 % and 100 % of the full length; a single one ends at 80 %."""
    fractions = np.linspace(0.6, 1.0, batch) if batch > 1 else np.array([0.8])
    return np.ceil(fractions * length).astype(np.int64)


def rounded_to_bfloat16(x: np.ndarray) -> np.ndarray:
    """To the nearest, ties to even; float32 that is finite."""
    bits = x.view(np.uint32)
    bits = bits + (0x7FFF + ((bits >> 16) & 1)).astype(np.uint32) & np.uint32(0xFFFF0000)
    return bits.view(np.float32)


@dataclass(frozen=True)
class Attention:
    """scaled_dot_product_attention of random normal inputs, forward or forward and backward."""

    name: str
    group: str
    batch: int
    heads: int
    length: int
    dim: int
    key_heads: int | None = None
    key_length: int | None = None
    causal: bool = False
    window: tuple[int, int] | None = None
    # "key lengths" (sequences end early), "bool" or "bias" (1, 1, length, keys), "bias per head" (full shape)
    mask: str | None = None
    dropout_p: float = 0.0
    backward: bool = False
    dtype: str = "float32"  # or "float64" or "bfloat16"
    # "heads first": dense (batch, heads, length, dim); "length first": a view of (batch, length, heads, dim)
    layout: str = "heads first"

    kind = "attention"
    precision = "highest"

    @property
    def results(self) -> tuple[str, ...]:
        if not self.backward:
            return ("output",)
        return ("query", "key", "value", "bias") if self.bias_shape else ("query", "key", "value")

    @property
    def bias_shape(self) -> tuple[int, int, int, int] | None:
        keys = self.key_shape[2]
        if self.mask == "bias":
            return 1, 1, self.length, keys
        return (self.batch, self.heads, self.length, keys) if self.mask == "bias per head" else None

    @property
    def query_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.heads, self.length, self.dim

    @property
    def key_shape(self) -> tuple[int, int, int, int]:
        return self.batch, self.key_heads or self.heads, self.key_length or self.length, self.dim

    @property
    def flops(self) -> float:
        """Of the pairs that may attend; backward forms five products of them where forward forms two."""
        keys = self.key_shape[2]
        if self.window:
            pairs = np.minimum(self.window[0] + 1 + (0 if self.causal else self.window[1]), keys)
        elif self.mask == "key lengths":
            pairs = self.key_lengths().mean()
        else:
            pairs = keys / 2 if self.causal else keys
        products = 7 if self.backward else 2
        return float(2 * products * self.batch * self.heads * self.length * pairs * self.dim)

    @property
    def cache_bytes(self) -> int | None:
        """Of the keys and values, where reading them once is the work: one query per head."""
        if self.length > 1 or self.backward:
            return None
        return 2 * math.prod(self.key_shape) * {"bfloat16": 2, "float32": 4, "float64": 8}[self.dtype]

    @property
    def pytorch_fuses(self) -> bool:
        """Whether PyTorch has a kernel that does not form the matrix of all weights."""
        return not self.dropout_p and not (self.backward and self.bias_shape)

    def key_lengths(self) -> np.ndarray:
        return end_of_sequences(self.batch, self.key_shape[2])

    def inputs(self) -> Arrays:
        """For bfloat16, float32 arrays of numbers that are exact in it."""
        rng = generator(self.name)

        def normal(*shape: int) -> np.ndarray:
            if self.dtype == "bfloat16":
                return rounded_to_bfloat16(rng.standard_normal(shape, dtype=np.float32))
            return rng.standard_normal(shape, dtype=self.dtype)

        def operand(shape: tuple[int, int, int, int]) -> np.ndarray:
            batch, heads, length, dim = shape
            if self.layout == "length first":
                return normal(batch, length, heads, dim).swapaxes(1, 2)
            return normal(*shape)

        arrays = {
            "query": operand(self.query_shape),
            "key": operand(self.key_shape),
            "value": operand(self.key_shape),
        }
        keys = self.key_shape[2]
        if self.mask == "bool":
            # Four of five keys, and always the query's own, so that no query is left with nothing.
            own = np.eye(self.length, keys, dtype=bool)
            arrays["mask"] = (rng.random((1, 1, self.length, keys)) < 0.8) | own
        if self.bias_shape:
            arrays["bias"] = normal(*self.bias_shape)
        if self.backward:
            arrays["d_output"] = normal(*self.query_shape)
        return arrays

    def allowed(self) -> np.ndarray | None:
        """Every mask but the caller's own array, as one bool array (batch or 1, 1, length or 1, keys): for
        libraries and formulas that have no other way to say it."""
        keys = np.arange(self.key_shape[2])
        rows = np.arange(self.length)[:, None]
        parts = []
        if self.causal:
            parts.append((keys <= rows)[None, None])
        if self.window:
            parts.append(((keys >= rows - self.window[0]) & (keys <= rows + self.window[1]))[None, None])
        if self.mask == "key lengths":
            parts.append((keys < self.key_lengths()[:, None])[:, None, None])
        if not parts:
            return None
        result = parts[0]
        for part in parts[1:]:
            result = result & part
        return result

    def comparable(self) -> bool:
        return self.dropout_p == 0  # every library draws its own random numbers

    def sample(self, results: Arrays) -> Arrays:
        """What of the results is compared: forward some queries of the first and the last head, backward all
        gradients of the last key head and of its queries."""
        if not self.backward:
            return {"output": results["output"][:1, [0, -1]][:, :, self._sampled_rows()]}
        group = self.heads // self.key_shape[1]
        # The bias's gradient is left out: a sum over heads that the truth would have to compute one by one.
        return {
            "query": results["query"][-1:, -group:],
            "key": results["key"][-1:, -1:],
            "value": results["value"][-1:, -1:],
        }

    def _sampled_rows(self) -> np.ndarray:
        return np.unique(np.linspace(0, self.length - 1, SAMPLED_ROWS).astype(int))

    def truth(self) -> Arrays:
        """The sample, by the formula in float64 (longdouble for float64)."""
        exact = np.longdouble if self.dtype == "float64" else np.float64
        arrays = self.inputs()
        group = self.heads // self.key_shape[1]
        if not self.backward:
            rows = self._sampled_rows()
            outputs = []
            for head in (0, self.heads - 1):
                weights = self._weights(arrays, exact, 0, head, rows)
                outputs.append(weights @ arrays["value"][0, head // group].astype(exact))
            return {"output": np.stack(outputs)[None]}
        return self._true_gradients(arrays, exact, group)

    def _weights(self, arrays: Arrays, exact: type, batch: int, head: int, rows: np.ndarray) -> np.ndarray:
        key_head = head // (self.heads // self.key_shape[1])
        query = arrays["query"][batch, head, rows].astype(exact) / np.sqrt(exact(self.dim))
        scores = query @ arrays["key"][batch, key_head].astype(exact).T

        def of_rows(array: np.ndarray) -> np.ndarray:
            shape = (self.batch, self.heads, self.length, self.key_shape[2])
            return np.broadcast_to(array, shape)[batch, head, rows]

        if "bias" in arrays:
            scores += of_rows(arrays["bias"])
        for allowed in (arrays.get("mask"), self.allowed()):
            if allowed is not None:
                scores = np.where(of_rows(allowed), scores, -np.inf)
        weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
        return weights / weights.sum(axis=-1, keepdims=True)

    def _true_gradients(self, arrays: Arrays, exact: type, group: int) -> Arrays:
        key, value = (arrays[name][-1, -1].astype(exact) for name in ("key", "value"))
        scale = 1 / np.sqrt(exact(self.dim))
        d_query = np.zeros((group, self.length, self.dim), exact)
        d_key, d_value = np.zeros_like(key), np.zeros_like(value)
        for i in range(group):
            head = self.heads - group + i
            for first in range(0, self.length, ROWS_AT_A_TIME):
                rows = np.arange(first, min(first + ROWS_AT_A_TIME, self.length))
                query = arrays["query"][-1, head, rows].astype(exact)
                d_output = arrays["d_output"][-1, head, rows].astype(exact)
                weights = self._weights(arrays, exact, self.batch - 1, head, rows)
                d_value += weights.T @ d_output
                d_weights = d_output @ value.T
                d_scores = weights * (d_weights - (d_weights * weights).sum(axis=-1, keepdims=True)) * scale
                d_query[i, rows] = d_scores @ key
                d_key += d_scores.T @ query
        return {"query": d_query[None], "key": d_key[None, None], "value": d_value[None, None]}


@dataclass(frozen=True)
class Function:
    """A function of random normal inputs, on the last axis or on every element, in float32."""

    name: str
    function: str  # softmax, log_softmax, gelu, gelu_tanh, silu, layer_norm, rms_norm or linear
    shape: tuple[int, ...]
    out_features: int = 0

    kind = "function"
    group = "functions"
    backward = False
    precision = "highest"
    cache_bytes = None
    dtype = "float32"
    results = ("output",)

    @property
    def flops(self) -> float | None:
        return 2.0 * math.prod(self.shape) * self.out_features if self.function == "linear" else None

    def inputs(self) -> Arrays:
        rng = generator(self.name)
        features = self.shape[-1]
        arrays = {"x": rng.standard_normal(self.shape, dtype=np.float32)}
        if self.function == "linear":
            weight = rng.standard_normal((self.out_features, features), dtype=np.float32)
            arrays["weight"] = weight / np.float32(math.sqrt(features))
            arrays["bias"] = rng.standard_normal(self.out_features, dtype=np.float32)
        elif self.function in ("layer_norm", "rms_norm"):
            arrays["weight"] = rng.standard_normal(features, dtype=np.float32)
            arrays["bias"] = rng.standard_normal(features, dtype=np.float32)
        return arrays

    def comparable(self) -> bool:
        return True

    def sample(self, results: Arrays) -> Arrays:
        return {"output": results["output"].reshape(-1, results["output"].shape[-1])[:SAMPLED_ROWS]}

    def truth(self) -> Arrays:
        arrays = {name: array.astype(np.float64) for name, array in self.inputs().items()}
        x = arrays["x"].reshape(-1, self.shape[-1])[:SAMPLED_ROWS]
        formulas = {
            "softmax": lambda: softmax(x),
            "log_softmax": lambda: np.log(softmax(x)),
            "gelu": lambda: exact_gelu(x),
            "gelu_tanh": lambda: tanh_gelu(x),
            "silu": lambda: x / (1 + np.exp(-x)),
            "layer_norm": lambda: layer_norm(x, arrays["weight"], arrays["bias"]),
            "rms_norm": lambda: rms_norm(x, arrays["weight"]),
            "linear": lambda: x @ arrays["weight"].T + arrays["bias"],
        }
        return {"output": formulas[self.function]()}


@dataclass(frozen=True)
class EncoderLayer:
    """A Transformer encoder layer with GELU, inference."""

    name: str
    batch: int
    length: int
    d_model: int
    heads: int
    dim_feedforward: int
    norm_first: bool = False
    causal: bool = False
    ragged: bool = False  # sequences of different lengths
    dtype: str = "float32"
    precision: str = "highest"  # or "medium": products of bfloat16 numbers are good enough

    kind = "encoder_layer"
    backward = False
    cache_bytes = None
    results = ("output",)

    @property
    def group(self) -> str:
        return "layers" if self.precision == "highest" else f"layers {self.precision}"

    @property
    def flops(self) -> float:
        linear = 2 * self.d_model * (4 * self.d_model + 2 * self.dim_feedforward)
        attention = 4 * self.length * self.d_model / (2 if self.causal else 1)
        return float(self.batch * self.length * (linear + attention))

    def key_lengths(self) -> np.ndarray:
        return end_of_sequences(self.batch, self.length)

    def state(self) -> Arrays:
        """Weights, named as PyTorch names them."""
        rng = generator(self.name + " weights")
        d_model, hidden = self.d_model, self.dim_feedforward
        state = {}
        for name, outputs, inputs in (
            ("self_attn.in_proj_{}", 3 * d_model, d_model),
            ("self_attn.out_proj.{}", d_model, d_model),
            ("linear1.{}", hidden, d_model),
            ("linear2.{}", d_model, hidden),
        ):
            state[name.format("weight")] = rng.standard_normal((outputs, inputs)) / math.sqrt(inputs)
            state[name.format("bias")] = rng.standard_normal(outputs) * 0.1
        for name in ("norm1", "norm2"):
            state[f"{name}.weight"] = 1 + 0.1 * rng.standard_normal(d_model)
            state[f"{name}.bias"] = 0.1 * rng.standard_normal(d_model)
        return {name: array.astype(self.dtype) for name, array in state.items()}

    def inputs(self) -> Arrays:
        shape = self.batch, self.length, self.d_model
        return {"x": generator(self.name).standard_normal(shape, dtype=self.dtype)}

    def comparable(self) -> bool:
        return True

    def sample(self, results: Arrays) -> Arrays:
        return {"output": results["output"][-1:]}  # the last sequence has the full length

    def truth(self) -> Arrays:
        x = self.inputs()["x"][-1:].astype(np.float64)
        state = {name: array.astype(np.float64) for name, array in self.state().items()}
        allowed = np.tri(self.length, dtype=bool) if self.causal else None
        return {"output": encoder_layer(x, state, self.heads, self.norm_first, allowed, exact_gelu)}


@dataclass(frozen=True)
class MultiheadAttention:
    """Self-attention with its projections, one sequence, inference."""

    name: str
    length: int
    d_model: int
    heads: int

    kind = "multihead_attention"
    group = "multihead attention"
    backward = False
    precision = "highest"
    cache_bytes = None
    dtype = "float32"
    results = ("output",)

    @property
    def flops(self) -> float:
        return float(self.length * (8 * self.d_model**2 + 4 * self.length * self.d_model))

    def state(self) -> Arrays:
        """Weights, named as PyTorch names them."""
        rng = generator(self.name + " weights")
        state = {
            "in_proj_weight": rng.standard_normal((3 * self.d_model, self.d_model)),
            "out_proj.weight": rng.standard_normal((self.d_model, self.d_model)),
            "in_proj_bias": rng.standard_normal(3 * self.d_model),
            "out_proj.bias": rng.standard_normal(self.d_model),
        }
        scale = 1 / math.sqrt(self.d_model)
        return {name: (scale * array).astype(np.float32) for name, array in state.items()}

    def inputs(self) -> Arrays:
        shape = 1, self.length, self.d_model
        return {"x": generator(self.name).standard_normal(shape, dtype=np.float32)}

    def comparable(self) -> bool:
        return True

    def sample(self, results: Arrays) -> Arrays:
        return results

    def truth(self) -> Arrays:
        state = {name: array.astype(np.float64) for name, array in self.state().items()}
        return {"output": multihead_attention(self.inputs()["x"].astype(np.float64), state, self.heads)}


Case = Attention | Function | EncoderLayer | MultiheadAttention | Sentences


def _attention_cases() -> list[Attention]:
    gpt2, llama = (1, 12, 1024, 64), (1, 32, 512, 128)
    models = [
        ("BERT B1 L128", (1, 12, 128, 64), {}),
        ("BERT B1 L384", (1, 12, 384, 64), {}),
        ("BERT B1 L512", (1, 12, 512, 64), {}),
        ("BERT B8 L128", (8, 12, 128, 64), {}),
        ("GPT-2 L1024 causal", gpt2, {"causal": True}),
        ("B1 H25 L1024", (1, 25, 1024, 64), {}),
        ("ViT B1 L197", (1, 12, 197, 64), {}),
        ("ViT B32 L197", (32, 12, 197, 64), {}),
        ("Whisper H8 L1500", (1, 8, 1500, 64), {}),
        ("Llama L512 causal", llama, {"causal": True}),
        ("Llama L2048 causal", (1, 32, 2048, 128), {"causal": True}),
    ]
    masks = [
        ("BERT B8 L128, key lengths", (8, 12, 128, 64), {"mask": "key lengths"}),
        ("BERT B1 L512, key lengths", (1, 12, 512, 64), {"mask": "key lengths"}),
        ("BERT B1 L512, bool mask", (1, 12, 512, 64), {"mask": "bool"}),
        ("BERT B1 L512, bias (1, 1, L, L)", (1, 12, 512, 64), {"mask": "bias"}),
        ("BERT B1 L512, bias (B, H, L, L)", (1, 12, 512, 64), {"mask": "bias per head"}),
        ("GPT-2 L1024, window 256", gpt2, {"causal": True, "window": (255, 0)}),
        ("H8 L4096, window 256", (1, 8, 4096, 64), {"causal": True, "window": (255, 0)}),
        ("BERT B1 L512, dropout", (1, 12, 512, 64), {"dropout_p": 0.1}),
        ("GPT-2 L1024 causal, dropout", gpt2, {"causal": True, "dropout_p": 0.1}),
    ]
    shapes = [
        ("SD L4096 H8 d40", (1, 8, 4096, 40), {}),
        ("L4096 H8 d80", (1, 8, 4096, 80), {}),
        ("SD L4096 H8 d160", (1, 8, 4096, 160), {}),
        ("SD cross 4096 x 77 d40", (1, 8, 4096, 40), {"key_length": 77}),
        ("Whisper cross 1 x 1500", (1, 8, 1, 64), {"key_length": 1500}),
        ("ViT B1 L197, length first", (1, 12, 197, 64), {"layout": "length first"}),
        ("BERT B8 L128, length first", (8, 12, 128, 64), {"layout": "length first"}),
        ("GPT-2 L1024 causal, length first", gpt2, {"causal": True, "layout": "length first"}),
        *((f"H8 L512 d{dim}", (1, 8, 512, dim), {}) for dim in (32, 72, 96, 112, 160, 256)),
    ]
    grouped = [
        ("Llama L512 causal, 8 key heads", llama, {"causal": True, "key_heads": 8}),
        ("Llama L512 causal, 1 key head", llama, {"causal": True, "key_heads": 1}),
        ("Llama L512, 8 key heads", llama, {"key_heads": 8}),
    ]
    decode = [
        (
            f"decode 32/{key_heads} heads, {keys} keys",
            (1, 32, 1, 128),
            {"key_heads": key_heads, "key_length": keys},
        )
        for key_heads in (32, 8, 1)
        for keys in (512, 2048, 8192, 32768)
        if (key_heads, keys) != (1, 32768)
    ]
    tiny = [
        ("H2 L8 d16", (1, 2, 8, 16), {}),
        ("H2 L1 d64", (1, 2, 1, 64), {}),
        ("H4 L6 d32", (1, 4, 6, 32), {}),
        ("H8 L16 d64", (1, 8, 16, 64), {}),
        ("H12 L32 d64", (1, 12, 32, 64), {}),
        ("H2 L8 d16 causal", (1, 2, 8, 16), {"causal": True}),
    ]
    long = [
        ("H8 L4096", (1, 8, 4096, 64), {}),
        ("H8 L4096 causal", (1, 8, 4096, 64), {"causal": True}),
        ("H8 L16384", (1, 8, 16384, 64), {}),
    ]
    double = [
        ("BERT B1 L128, float64", (1, 12, 128, 64), {}),
        ("BERT B8 L128, float64", (8, 12, 128, 64), {}),
        ("BERT B1 L512, float64", (1, 12, 512, 64), {}),
        ("ViT B1 L197, float64", (1, 12, 197, 64), {}),
        ("GPT-2 L1024 causal, float64", gpt2, {"causal": True}),
        ("Llama L512 causal, float64", llama, {"causal": True}),
        ("decode 32/8 heads, 2048 keys, float64", (1, 32, 1, 128), {"key_heads": 8, "key_length": 2048}),
    ]
    half = [
        ("BERT B1 L128, bfloat16", (1, 12, 128, 64), {}),
        ("BERT B8 L128, bfloat16", (8, 12, 128, 64), {}),
        ("BERT B1 L512, bfloat16", (1, 12, 512, 64), {}),
        ("ViT B1 L197, bfloat16", (1, 12, 197, 64), {}),
        ("GPT-2 L1024 causal, bfloat16", gpt2, {"causal": True}),
        ("Whisper H8 L1500, bfloat16", (1, 8, 1500, 64), {}),
        ("Llama L512 causal, bfloat16", llama, {"causal": True}),
        ("Llama L512 causal, 8 key heads, bfloat16", llama, {"causal": True, "key_heads": 8}),
        ("H8 L4096, bfloat16", (1, 8, 4096, 64), {}),
        ("decode 32/8 heads, 2048 keys, bfloat16", (1, 32, 1, 128), {"key_heads": 8, "key_length": 2048}),
    ]
    forward = {
        "models": models,
        "masks": masks,
        "shapes": shapes,
        "grouped": grouped,
        "decode": decode,
        "tiny": tiny,
        "long": long,
    }
    cases = [
        Attention(name, group, *shape, **options)
        for group, entries in forward.items()
        for name, shape, options in entries
    ]
    cases += [
        Attention(name, group, *shape, **options, dtype=group)
        for group, entries in (("float64", double), ("bfloat16", half))
        for name, shape, options in entries
    ]
    # Forward and backward of all but the inference cases and the slowest.
    backward = [
        *models[:-1],
        *masks,
        shapes[0],
        shapes[3],
        *shapes[5:],
        *grouped,
        tiny[0],
        tiny[3],
        *long[:2],
    ]
    cases += [
        Attention(f"{name}, fwd+bwd", "backward", *shape, **options, backward=True)
        for name, shape, options in backward
    ]
    cases += [
        Attention(f"{name}, fwd+bwd", "backward float64", *shape, **options, dtype="float64", backward=True)
        for name, shape, options in double[:-1]
    ]
    return cases


def _function_cases() -> list[Function]:
    return [
        Function("softmax 12 x 128 x 128", "softmax", (12, 128, 128)),
        Function("softmax 1024 x 1024", "softmax", (1024, 1024)),
        Function("softmax 32 x 50257", "softmax", (32, 50257)),
        Function("softmax 16 x 8", "softmax", (16, 8)),
        Function("log_softmax 32 x 50257", "log_softmax", (32, 50257)),
        Function("gelu 128 x 3072", "gelu", (128, 3072)),
        Function("gelu 1024 x 3072", "gelu", (1024, 3072)),
        Function("gelu tanh 1024 x 3072", "gelu_tanh", (1024, 3072)),
        Function("gelu 1 x 64", "gelu", (1, 64)),
        Function("silu 512 x 11008", "silu", (512, 11008)),
        Function("layer_norm 128 x 768", "layer_norm", (128, 768)),
        Function("layer_norm 1024 x 768", "layer_norm", (1024, 768)),
        Function("layer_norm 1500 x 512", "layer_norm", (1500, 512)),
        Function("layer_norm 8 x 64", "layer_norm", (8, 64)),
        Function("rms_norm 512 x 4096", "rms_norm", (512, 4096)),
        Function("linear 128 x 768 -> 768", "linear", (128, 768), 768),
        Function("linear 128 x 768 -> 3072", "linear", (128, 768), 3072),
        Function("linear 128 x 3072 -> 768", "linear", (128, 3072), 768),
        Function("linear 1024 x 768 -> 3072", "linear", (1024, 768), 3072),
        Function("linear 1024 x 768 -> 50257", "linear", (1024, 768), 50257),
        Function("linear 1 x 4096 -> 4096", "linear", (1, 4096), 4096),
        Function("linear 4 x 768 -> 3072", "linear", (4, 768), 3072),
        Function("linear 8 x 64 -> 64", "linear", (8, 64), 64),
    ]


def _layer_cases() -> list[EncoderLayer]:
    base = 768, 12, 3072
    highest = [
        EncoderLayer("BERT layer B1 L128", 1, 128, *base),
        EncoderLayer("BERT layer B1 L512", 1, 512, *base),
        EncoderLayer("BERT layer B8 L128", 8, 128, *base),
        EncoderLayer("BERT layer B8 L128, key lengths", 8, 128, *base, ragged=True),
        EncoderLayer("MiniLM layer B32 L32", 32, 32, 384, 12, 1536),
        EncoderLayer("ViT layer B1 L197, norm first", 1, 197, *base, norm_first=True),
        EncoderLayer("GPT-2 layer L1024 causal, norm first", 1, 1024, *base, norm_first=True, causal=True),
        EncoderLayer("Whisper layer L1500, norm first", 1, 1500, 512, 8, 2048, norm_first=True),
        EncoderLayer("tiny layer L16", 1, 16, 128, 2, 512),
    ]
    double = [EncoderLayer("BERT layer B1 L128, float64", 1, 128, *base, dtype="float64")]
    medium = [
        dataclasses.replace(layer, name=f"{layer.name}, medium", precision="medium")
        for layer in highest
        if not layer.ragged
    ]
    return [*highest, *double, *medium]


def _multihead_attention_cases() -> list[MultiheadAttention]:
    return [
        MultiheadAttention(f"MultiheadAttention(128, 2), L{length}", length, 128, 2) for length in range(1, 7)
    ]


def _sentence_cases() -> list[Sentences]:
    return [
        Sentences("MiniLM, one sentence", 1),
        Sentences("MiniLM, 256 sentences", 256),
    ]


CASES: list[Case] = [
    *_attention_cases(),
    *_function_cases(),
    *_layer_cases(),
    *_multihead_attention_cases(),
    *_sentence_cases(),
]
BY_NAME = {case.name: case for case in CASES}
assert len(BY_NAME) == len(CASES), "every case has a name of its own"
