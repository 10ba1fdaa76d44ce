"""How each library computes a case.

For every kind of case that a library can compute it has a method of that name. It takes the case and its
inputs, does whatever a user would do once (build a mask, repeat heads, load weights), and returns a function
without arguments that does the rest and returns the results named in `case.results`. Each is called in the
way that suits it best.
"""

from __future__ import annotations

import contextlib
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np
from cases import Attention, Case, EncoderLayer, Function, MultiheadAttention
from formulas import (
    LAYER_NORM_EPS,
    Arrays,
    encoder_layer,
    layer_norm,
    multihead_attention,
    rms_norm,
    softmax,
    tanh_gelu,
)
from sentence_cases import Sentences, checkpoint, embed_padded

Call = Callable[[], tuple]
Context = contextlib.AbstractContextManager[None]


class Unsupported(Exception):
    """The library cannot compute this case, or not within reason; the text says why."""


class Library(ABC):
    @abstractmethod
    def version(self) -> str: ...

    def check(self, case: Case) -> None:
        """Raises Unsupported."""
        return

    def context(self, case: Case) -> Context:
        """What calls run within."""
        return contextlib.nullcontext()

    def array(self, result) -> np.ndarray:
        """One result of a call, for comparison."""
        return np.asarray(result)


class Blasformer(Library):
    """This package."""

    def version(self) -> str:
        import blasformer

        return f"blasformer {blasformer.__version__}"

    def context(self, case: Case) -> Context:
        import blasformer

        return blasformer.precision(case.precision)

    def array(self, result) -> np.ndarray:
        return result if result.dtype.char in "fd" else result.astype(np.float32)

    def attention(self, case: Attention, inputs: Arrays) -> Call:
        import blasformer

        if case.dtype == "bfloat16":
            import ml_dtypes

            inputs = {name: array.astype(ml_dtypes.bfloat16) for name, array in inputs.items()}
        query, key, value = inputs["query"], inputs["key"], inputs["value"]
        options = {name: inputs[name] for name in ("mask", "bias") if name in inputs}
        if case.causal:
            options["causal"] = True
        if case.window:
            options["window"] = case.window
        if case.mask == "key lengths":
            options["key_lengths"] = case.key_lengths()
        if case.dropout_p:
            options.update(dropout_p=case.dropout_p, rng=np.random.default_rng(0))
        if not case.backward:
            return lambda: (blasformer.scaled_dot_product_attention(query, key, value, **options),)

        def forward_and_backward() -> tuple:
            _, saved = blasformer.attention_forward(query, key, value, **options)
            gradients = blasformer.attention_backward(saved, inputs["d_output"])
            return tuple(getattr(gradients, name) for name in case.results)

        return forward_and_backward

    def function(self, case: Function, inputs: Arrays) -> Call:
        import blasformer

        x, weight, bias = (inputs.get(name) for name in ("x", "weight", "bias"))
        features = x.shape[-1]
        calls = {
            "softmax": lambda: (blasformer.softmax(x),),
            "log_softmax": lambda: (blasformer.log_softmax(x),),
            "gelu": lambda: (blasformer.gelu(x),),
            "gelu_tanh": lambda: (blasformer.gelu(x, approximate="tanh"),),
            "silu": lambda: (blasformer.silu(x),),
            "layer_norm": lambda: (blasformer.layer_norm(x, features, weight, bias, LAYER_NORM_EPS),),
            "rms_norm": lambda: (blasformer.rms_norm(x, features, weight, LAYER_NORM_EPS),),
            "linear": lambda: (blasformer.linear(x, weight, bias),),
        }
        return calls[case.function]

    def encoder_layer(self, case: EncoderLayer, inputs: Arrays) -> Call:
        from blasformer import nn

        layer = nn.TransformerEncoderLayer(
            case.d_model,
            case.heads,
            case.dim_feedforward,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            norm_first=case.norm_first,
            dtype=case.dtype,
        )
        layer.load_state_dict(case.state())
        x = inputs["x"]
        options = {"causal": True} if case.causal else {}
        if case.ragged:
            options["key_lengths"] = case.key_lengths()
        return lambda: (layer(x, **options),)

    def multihead_attention(self, case: MultiheadAttention, inputs: Arrays) -> Call:
        from blasformer import nn

        layer = nn.MultiheadAttention(case.d_model, case.heads)
        layer.load_state_dict(case.state())
        x = inputs["x"]
        return lambda: (layer(x),)

    def sentences(self, case: Sentences, inputs: Arrays) -> Call:
        from blasformer.models import SentenceEncoder

        encoder = SentenceEncoder.from_pretrained(checkpoint())
        texts = case.texts()
        return lambda: (encoder.encode(texts, show_progress_bar=False),)


class BatchInvariant(Blasformer):
    """This package in batch_invariant(): what that costs."""

    CASES = (
        "BERT B1 L128",
        "BERT B8 L128, key lengths",
        "GPT-2 L1024 causal",
        "BERT B1 L512, fwd+bwd",
        *(f"decode 32/8 heads, {keys} keys" for keys in (512, 2048, 32768)),
        "linear 1 x 4096 -> 4096",
        "linear 4 x 768 -> 3072",
        "BERT layer B1 L128",
        "BERT layer B8 L128",
        "MultiheadAttention(128, 2), L1",
        "MiniLM, one sentence",
        "MiniLM, 256 sentences",
    )

    def check(self, case: Case) -> None:
        if case.name not in self.CASES:
            raise Unsupported("measured on some cases only")

    @contextlib.contextmanager
    def context(self, case: Case) -> Iterator[None]:
        import blasformer

        with super().context(case), blasformer.batch_invariant():
            yield


class PyTorch(Library):
    """torch.nn.functional and torch.nn, in inference mode or through autograd; transformers for sentences."""

    def version(self) -> str:
        import torch

        return f"PyTorch {torch.__version__}"

    @contextlib.contextmanager
    def context(self, case: Case) -> Iterator[None]:
        import torch

        torch.set_float32_matmul_precision(case.precision)
        with contextlib.nullcontext() if case.backward else torch.inference_mode():
            yield

    def array(self, result) -> np.ndarray:
        import torch

        if isinstance(result, np.ndarray):
            return result
        return (result.float() if result.dtype == torch.bfloat16 else result).detach().numpy()

    def compiled(self, function: Callable) -> Callable:
        return function

    def attention(self, case: Attention, inputs: Arrays) -> Call:
        import torch

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        if case.dtype == "bfloat16":
            tensors = {name: tensor.bfloat16() for name, tensor in tensors.items()}
        query, key, value = tensors["query"], tensors["key"], tensors["value"]
        options = {}
        if case.causal and case.window is None:
            options["is_causal"] = True
        elif (allowed := case.allowed()) is not None:
            options["attn_mask"] = torch.from_numpy(allowed)
        if "mask" in inputs:
            options["attn_mask"] = tensors["mask"]
        elif "bias" in inputs:
            options["attn_mask"] = tensors["bias"]
        if case.dropout_p:
            options["dropout_p"] = case.dropout_p
        if case.key_heads not in (None, case.heads):
            options["enable_gqa"] = True
        operands = [tensors[name].requires_grad_() for name in case.results] if case.backward else []

        @self.compiled
        def attend() -> torch.Tensor:
            return torch.nn.functional.scaled_dot_product_attention(query, key, value, **options)

        if not case.backward:
            return lambda: (attend(),)
        d_output = tensors["d_output"]
        return lambda: torch.autograd.grad(attend(), operands, d_output)

    def function(self, case: Function, inputs: Arrays) -> Call:
        import torch
        from torch.nn import functional

        tensors = {name: torch.from_numpy(array) for name, array in inputs.items()}
        x, weight, bias = (tensors.get(name) for name in ("x", "weight", "bias"))
        features = x.shape[-1:]
        calls = {
            "softmax": lambda: (functional.softmax(x, -1),),
            "log_softmax": lambda: (functional.log_softmax(x, -1),),
            "gelu": lambda: (functional.gelu(x),),
            "gelu_tanh": lambda: (functional.gelu(x, approximate="tanh"),),
            "silu": lambda: (functional.silu(x),),
            "layer_norm": lambda: (functional.layer_norm(x, features, weight, bias, LAYER_NORM_EPS),),
            "rms_norm": lambda: (functional.rms_norm(x, features, weight, LAYER_NORM_EPS),),
            "linear": lambda: (functional.linear(x, weight, bias),),
        }
        return self.compiled(calls[case.function])

    def encoder_layer(self, case: EncoderLayer, inputs: Arrays) -> Call:
        import torch

        layer = torch.nn.TransformerEncoderLayer(
            case.d_model,
            case.heads,
            case.dim_feedforward,
            dropout=0.0,
            activation="gelu",
            layer_norm_eps=LAYER_NORM_EPS,
            batch_first=True,
            norm_first=case.norm_first,
            dtype=getattr(torch, case.dtype),
        ).eval()
        layer.load_state_dict({name: torch.from_numpy(array) for name, array in case.state().items()})
        x = torch.from_numpy(inputs["x"])
        options = {}
        if case.causal:
            mask = torch.nn.Transformer.generate_square_subsequent_mask(case.length, dtype=x.dtype)
            options = {"src_mask": mask, "is_causal": True}
        if case.ragged:
            hidden = np.arange(case.length) >= case.key_lengths()[:, None]
            options["src_key_padding_mask"] = torch.from_numpy(hidden)
        layer = self.compiled(layer)
        return lambda: (layer(x, **options),)

    def multihead_attention(self, case: MultiheadAttention, inputs: Arrays) -> Call:
        import torch

        layer = torch.nn.MultiheadAttention(case.d_model, case.heads, batch_first=True).eval()
        layer.load_state_dict({name: torch.from_numpy(array) for name, array in case.state().items()})
        x = torch.from_numpy(inputs["x"])
        layer = self.compiled(layer)
        return lambda: (layer(x, x, x, need_weights=False)[0],)

    def sentences(self, case: Sentences, inputs: Arrays) -> Call:
        import torch

        try:
            import transformers
        except ImportError:
            raise Unsupported("transformers is not installed beside it") from None
        transformers.utils.logging.disable_progress_bar()
        model = transformers.AutoModel.from_pretrained(checkpoint()).eval()

        def hidden_states(ids: np.ndarray, lengths: np.ndarray) -> np.ndarray:
            attention_mask = torch.from_numpy(np.arange(ids.shape[1]) < lengths[:, None]).long()
            output = model(input_ids=torch.from_numpy(ids), attention_mask=attention_mask)
            return output.last_hidden_state.numpy()

        return embed_padded(case, hidden_states)


class NumPy(Library):
    """The formula, all heads at once."""

    # Scores of all heads beyond which the formula is not run: it would take minutes and most of the memory.
    MOST_SCORES = 2**28

    def version(self) -> str:
        return f"NumPy {np.__version__}"

    def check(self, case: Case) -> None:
        if case.precision != "highest" or case.dtype == "bfloat16":
            raise Unsupported("no bfloat16")

    def attention(self, case: Attention, inputs: Arrays) -> Call:
        if case.batch * case.heads * case.length * case.key_shape[2] > self.MOST_SCORES:
            raise Unsupported("the scores would fill the memory")
        group = case.heads // case.key_shape[1]
        query = inputs["query"]
        key, value = (np.repeat(inputs[name], group, axis=1) for name in ("key", "value"))
        scale = query.dtype.type(1 / np.sqrt(case.dim))
        allowed = inputs.get("mask", case.allowed())
        bias = inputs.get("bias")
        if allowed is not None:
            bias = np.where(allowed, 0, -np.inf).astype(query.dtype)
        rng = np.random.default_rng(0)

        def weights_of_scores() -> np.ndarray:
            scores = (query * scale) @ key.swapaxes(-1, -2)
            if bias is not None:
                scores += bias
            scores -= scores.max(axis=-1, keepdims=True)
            np.exp(scores, out=scores)
            scores /= scores.sum(axis=-1, keepdims=True)
            return scores

        def keep_factors(weights: np.ndarray) -> np.ndarray:
            kept = rng.random(weights.shape, dtype=weights.dtype) >= case.dropout_p
            return kept * weights.dtype.type(1 / (1 - case.dropout_p))

        def forward() -> tuple:
            weights = weights_of_scores()
            if case.dropout_p:
                weights *= keep_factors(weights)
            return (weights @ value,)

        def forward_and_backward() -> tuple:
            d_output = inputs["d_output"]
            weights = weights_of_scores()
            kept = keep_factors(weights) if case.dropout_p else None
            dropped = weights if kept is None else weights * kept
            output = dropped @ value
            d_value = dropped.swapaxes(-1, -2) @ d_output
            d_scores = d_output @ value.swapaxes(-1, -2)
            if kept is not None:
                d_scores *= kept
            d_scores -= (d_output * output).sum(axis=-1, keepdims=True)
            d_scores *= weights
            d_bias = () if case.bias_shape is None else (sum_to(d_scores, case.bias_shape),)
            d_scores *= scale
            d_query = d_scores @ key
            d_key = d_scores.swapaxes(-1, -2) @ query
            return d_query, sum_over_groups(d_key, group), sum_over_groups(d_value, group), *d_bias

        return forward_and_backward if case.backward else forward

    def function(self, case: Function, inputs: Arrays) -> Call:
        x, weight, bias = (inputs.get(name) for name in ("x", "weight", "bias"))

        def log_softmax() -> tuple:
            shifted = x - x.max(axis=-1, keepdims=True)
            return (shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True)),)

        calls = {
            "softmax": lambda: (softmax(x),),
            "log_softmax": log_softmax,
            "gelu": lambda: (approximate_gelu(x),),
            "gelu_tanh": lambda: (tanh_gelu(x),),
            "silu": lambda: (x / (1 + np.exp(-x)),),
            "layer_norm": lambda: (layer_norm(x, weight, bias),),
            "rms_norm": lambda: (rms_norm(x, weight),),
            "linear": lambda: (x @ weight.T + bias,),
        }
        return calls[case.function]

    def encoder_layer(self, case: EncoderLayer, inputs: Arrays) -> Call:
        x, state = inputs["x"], case.state()
        allowed = np.tri(case.length, dtype=bool) if case.causal else None
        if case.ragged:
            allowed = (np.arange(case.length) < case.key_lengths()[:, None])[:, None, None]
        return lambda: (encoder_layer(x, state, case.heads, case.norm_first, allowed, approximate_gelu),)

    def multihead_attention(self, case: MultiheadAttention, inputs: Arrays) -> Call:
        x, state = inputs["x"], case.state()
        return lambda: (multihead_attention(x, state, case.heads),)


def sum_to(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    axes = tuple(axis for axis, extent in enumerate(shape) if extent == 1 < x.shape[axis])
    return x.sum(axis=axes, keepdims=True) if axes else x.copy()


def sum_over_groups(x: np.ndarray, group: int) -> np.ndarray:
    batch, heads, length, dim = x.shape
    return x if group == 1 else x.reshape(batch, heads // group, group, length, dim).sum(axis=2)


def approximate_gelu(x: np.ndarray) -> np.ndarray:
    """NumPy has no erf: formula 7.1.26 of Abramowitz and Stegun, to 1.5e-7."""
    z = np.abs(x) * x.dtype.type(1 / math.sqrt(2))
    t = 1 / (1 + 0.3275911 * z)
    series = ((((1.061405429 * t - 1.453152027) * t + 1.421413741) * t - 0.284496736) * t + 0.254829592) * t
    return x * (1 + np.copysign(1 - series * np.exp(-z * z), x)) / 2


LIBRARIES: dict[str, type[Library]] = {
    "blasformer": Blasformer,
    "batch invariant": BatchInvariant,
    "pytorch": PyTorch,
    "numpy": NumPy,
}
