"""Exact attention and Transformer layers for NumPy arrays, on a CPU.

`scaled_dot_product_attention` and the other functions take arrays and return arrays; `..._backward` are their
gradients, and `attention_forward` keeps what attention_backward needs. `nn` has layers, forward and backward,
with PyTorch's names; `models` published models and ones to train; `optim`, `train`, `data` and `lora` what
training takes; `io` checkpoints; `testing` numerical derivatives; `sklearn` an estimator.

Attention works on (..., heads, length, head_dim), layers on (batch, length, features). Masks: True = may
attend. Dtypes are never converted silently, and nothing is dropped out without an `rng`.

>>> import numpy as np
>>> import blasformer as bf
>>> x = np.ones((1, 2, 3, 4), np.float32)  # (batch, heads, length, head_dim)
>>> bf.scaled_dot_product_attention(x, x, x, causal=True).shape
(1, 2, 3, 4)
"""

from . import data, io, lora, models, nn, optim, testing, train
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
from ._batch_invariance import batch_invariant
from ._core import __version__
from ._machine import show_config, use_isa
from ._precision import precision
from ._threads import get_num_threads, num_threads, set_num_threads
from .functional import (
    LayerNormGrads,
    LinearGrads,
    RMSNormGrads,
    cross_entropy,
    embedding,
    embedding_backward,
    gelu,
    gelu_backward,
    layer_norm,
    layer_norm_backward,
    linear,
    linear_backward,
    log_softmax,
    log_softmax_backward,
    relu,
    relu_backward,
    rms_norm,
    rms_norm_backward,
    rotary_embedding,
    rotary_embedding_backward,
    silu,
    silu_backward,
    sinusoidal_positions,
    softmax,
    softmax_backward,
)

__all__ = [
    "AttentionGrads",
    "AttentionPlan",
    "AttentionResult",
    "LayerNormGrads",
    "LinearGrads",
    "RMSNormGrads",
    "WeightSelection",
    "__version__",
    "attention_backward",
    "attention_forward",
    "attention_plan",
    "batch_invariant",
    "cross_entropy",
    "data",
    "embedding",
    "embedding_backward",
    "explain_mask",
    "gelu",
    "gelu_backward",
    "get_num_threads",
    "io",
    "layer_norm",
    "layer_norm_backward",
    "linear",
    "linear_backward",
    "log_softmax",
    "log_softmax_backward",
    "lora",
    "models",
    "nn",
    "num_threads",
    "optim",
    "precision",
    "relu",
    "relu_backward",
    "rms_norm",
    "rms_norm_backward",
    "rotary_embedding",
    "rotary_embedding_backward",
    "scaled_dot_product_attention",
    "set_num_threads",
    "show_config",
    "silu",
    "silu_backward",
    "sinusoidal_positions",
    "softmax",
    "softmax_backward",
    "testing",
    "train",
    "use_isa",
]
