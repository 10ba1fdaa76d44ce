"""Exact attention and Transformer layers for NumPy arrays, on a CPU."""

from . import io, models, nn, optim, testing
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
from .functional import (
    embedding,
    gelu,
    layer_norm,
    linear,
    log_softmax,
    relu,
    rms_norm,
    rotary_embedding,
    silu,
    sinusoidal_positions,
    softmax,
)

__all__ = [
    "AttentionGrads",
    "AttentionPlan",
    "AttentionResult",
    "WeightSelection",
    "__version__",
    "attention_backward",
    "attention_forward",
    "attention_plan",
    "embedding",
    "explain_mask",
    "gelu",
    "get_num_threads",
    "io",
    "layer_norm",
    "linear",
    "log_softmax",
    "models",
    "nn",
    "num_threads",
    "optim",
    "precision",
    "relu",
    "rms_norm",
    "rotary_embedding",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "silu",
    "sinusoidal_positions",
    "softmax",
    "testing",
    "use_isa",
]
