"""Exact attention and Transformer layers for NumPy arrays, on a CPU."""

from ._attention import (
    AttentionPlan,
    AttentionResult,
    WeightSelection,
    attention_plan,
    explain_mask,
    scaled_dot_product_attention,
)
from ._core import __version__

__all__ = [
    "AttentionPlan",
    "AttentionResult",
    "WeightSelection",
    "__version__",
    "attention_plan",
    "explain_mask",
    "scaled_dot_product_attention",
]
