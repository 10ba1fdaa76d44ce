"""Exact attention and Transformer layers for NumPy arrays, on a CPU."""

from . import nn
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
from ._machine import show_config, use_isa
from ._precision import precision
from ._threads import get_num_threads, num_threads, set_num_threads

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
    "get_num_threads",
    "nn",
    "num_threads",
    "precision",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "use_isa",
]
