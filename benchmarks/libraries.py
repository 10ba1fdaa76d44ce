"""How each library computes a case: `Library.prepare(case, inputs)` returns a function without arguments that does it.

Each is called in the way that suits it best; whatever a user would do once (build a mask, repeat heads, load weights) is
done before the clock starts.
"""

from __future__ import annotations

import contextlib
import importlib.metadata
from collections.abc import Callable

import numpy as np
from cases import Arrays, Attention

Results = Callable[[], tuple]


class Unsupported(Exception):
    """The library cannot compute this case, or not within reason; the text says why."""


class Blasformer:
    """This package."""

    def version(self) -> str:
        import blasformer

        return f"blasformer {blasformer.__version__}"

    def context(self, case: Attention) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def prepare(self, case: Attention, inputs: Arrays) -> Results:
        import blasformer

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
            return blasformer.attention_backward(saved, inputs["d_output"])[:3]

        return forward_and_backward


class PyTorch:
    """torch.nn.functional.scaled_dot_product_attention, in inference mode or through autograd."""

    def version(self) -> str:
        import torch

        return f"PyTorch {torch.__version__}"

    def context(self, case: Attention) -> contextlib.AbstractContextManager[None]:
        import torch

        return contextlib.nullcontext() if case.backward else torch.inference_mode()

    def prepare(self, case: Attention, inputs: Arrays) -> Results:
        import torch

        query, key, value = (torch.from_numpy(inputs[name]) for name in ("query", "key", "value"))
        options = {}
        if case.causal and case.window is None:
            options["is_causal"] = True
        elif (allowed := case.allowed()) is not None:
            options["attn_mask"] = torch.from_numpy(allowed)
        for name in ("mask", "bias"):
            if name in inputs:
                options["attn_mask"] = torch.from_numpy(inputs[name])
        if case.dropout_p:
            options["dropout_p"] = case.dropout_p
        if case.key_heads not in (None, case.heads):
            options["enable_gqa"] = True
        attend = torch.nn.functional.scaled_dot_product_attention
        if not case.backward:
            return lambda: (attend(query, key, value, **options),)
        operands = [x.requires_grad_() for x in (query, key, value)]
        d_output = torch.from_numpy(inputs["d_output"])
        return lambda: torch.autograd.grad(attend(*operands, **options), operands, d_output)


class NumPy:
    """The formula, all heads at once."""

    # Scores of all heads beyond which the formula is not run: it would take minutes and most of the memory.
    MOST_SCORES = 2**28

    def version(self) -> str:
        return f"NumPy {np.__version__}"

    def context(self, case: Attention) -> contextlib.AbstractContextManager[None]:
        return contextlib.nullcontext()

    def prepare(self, case: Attention, inputs: Arrays) -> Results:
        if case.batch * case.heads * case.length * case.key_shape[2] > self.MOST_SCORES:
            raise Unsupported("the scores would fill the memory")
        group = case.heads // case.key_shape[1]
        query = inputs["query"]
        key, value = (np.repeat(inputs[name], group, axis=1) for name in ("key", "value"))
        scale = query.dtype.type(1 / np.sqrt(case.dim))
        allowed = case.allowed()
        if "mask" in inputs:
            allowed = inputs["mask"]
        bias = inputs.get("bias")
        if allowed is not None:
            bias = np.where(allowed, 0, -np.inf).astype(query.dtype)
        rng = np.random.default_rng(0)

        def softmax_of_scores() -> np.ndarray:
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
            weights = softmax_of_scores()
            if case.dropout_p:
                weights *= keep_factors(weights)
            return (weights @ value,)

        def forward_and_backward() -> tuple:
            d_output = inputs["d_output"]
            weights = softmax_of_scores()
            kept = keep_factors(weights) if case.dropout_p else None
            dropped = weights if kept is None else weights * kept
            output = dropped @ value
            d_value = dropped.swapaxes(-1, -2) @ d_output
            d_scores = d_output @ value.swapaxes(-1, -2)
            if kept is not None:
                d_scores *= kept
            d_scores -= (d_output * output).sum(axis=-1, keepdims=True)
            d_scores *= weights
            d_scores *= scale
            d_query = d_scores @ key
            d_key = d_scores.swapaxes(-1, -2) @ query

            def of_key_heads(x: np.ndarray) -> np.ndarray:
                batch, heads, length, dim = x.shape
                return x.reshape(batch, heads // group, group, length, dim).sum(axis=2)

            return d_query, of_key_heads(d_key), of_key_heads(d_value)

        return forward_and_backward if case.backward else forward


LIBRARIES = {"blasformer": Blasformer, "pytorch": PyTorch, "numpy": NumPy}
