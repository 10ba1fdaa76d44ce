"""Exact attention and Transformer layers for NumPy arrays, on a CPU."""

from ._attention import (
    AttentionGrads,
    AttentionPlan,
    AttentionResult,
    WeightSelection,
    attention_backward,
    attention_forward,
    attention_plan,
    explain_mask,
    scaled_dot_product_attention,
)
from ._core import __version__

__all__ = [
    "AttentionGrads",
    "AttentionPlan",
    "AttentionResult",
    "WeightSelection",
    "__version__",
    "attention_backward",
    "attention_forward",
    "attention_plan",
    "explain_mask",
    "scaled_dot_product_attention",
]
