"""Llama, and the published models that are like it, on NumPy arrays."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ._arguments import (
    checked_epsilon,
    checked_flag,
    checked_integer,
    checked_integer_or_none,
    checked_layers,
    checked_name,
    checked_number,
    configured_flag,
    require_supported,
)
from ._dtypes import float_dtype
from ._language_model import LanguageModel
from ._random import Rng, initial_seed

# What config.json calls an activation, and what it is called here.
LLAMA_ACTIVATIONS = {
    "silu": "silu",
    "gelu": "gelu",
    "gelu_pytorch_tanh": "gelu_tanh",
    "gelu_new": "gelu_tanh",
    "relu": "relu",
}


class Llama(LanguageModel):
    """A decoder-only Transformer of the kind of Llama, with all that a LanguageModel can do.

        x = embed_tokens[ids]
        x = x + attention(norm(x));  x = x + down_proj(activation(gate_proj(norm(x))) * up_proj(norm(x)))
        logits = norm(x) @ lm_head.T

    norm is an RMSNorm of its own each time. In attention queries and keys turn by their positions (rotary, of
    pairs (i, i + head_dim / 2)), tokens see earlier ones, and num_kv_heads heads of keys and values are each
    shared by nhead / num_kv_heads heads of queries. There are no biases.

    Parameters
    ----------
    vocab_size : ids are in [0, vocab_size)
    max_length : the longest sequence
    d_model : features, a multiple of nhead
    nhead, num_layers : positive ints
    dim_feedforward : width of the hidden layer; 8 / 3 * d_model by default, rounded up to a multiple of 32
    num_kv_heads : a divisor of nhead; nhead by default
    attention_dropout : probability with which attention weights are dropped in training with an rng
    activation : "silu" as in Llama, "gelu", "gelu_tanh" or "relu"
    rms_norm_eps : added to the mean square by the norms
    rotary_base : of the frequencies of the rotation
    projection_bias : whether queries, keys and values have biases, as in Qwen2
    tied : whether logits are computed with the weights of the embedding, instead of lm_head.weight
    recompute : whether training keeps only the input of each block and computes the rest again
    dtype : float32 or float64
    rng : numpy.random.Generator or int that the initial weights are drawn from; a fresh one by default

    State, under Llama's names: embed_tokens.weight (vocab_size, d_model); for each block layers.0, layers.1,
    ...: self_attn.q_proj.weight (d_model, d_model), self_attn.k_proj.weight, self_attn.v_proj.weight
    (num_kv_heads * head_dim, d_model), their biases if there are any, self_attn.o_proj.weight,
    mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight, input_layernorm.weight,
    post_attention_layernorm.weight; norm.weight; lm_head.weight if not tied.

    Called, trained and asked to generate as LanguageModel; raises what that raises. `from_pretrained` reads
    what is published of Llama, Mistral and Qwen2 as long as positions are not scaled and attention has no
    window; `save` writes what transformers reads, as Llama or, with projection_bias, as Qwen2.

    References
    ----------
    Touvron et al. 2023, "LLaMA: Open and Efficient Foundation Language Models"; Su et al. 2021, "RoFormer";
    Ainslie et al. 2023, "GQA".

    Examples
    --------
    >>> from blasformer import optim
    >>> model = Llama(5, max_length=8, d_model=16, nhead=4, num_layers=1, num_kv_heads=2, rng=0)
    >>> optimizer = optim.AdamW(model, lr=1e-2)
    >>> ids = np.array([[0, 1, 2, 3, 4, 0, 1, 2]])
    >>> for step in range(60):
    ...     loss, grads = model.loss_and_gradients(ids)
    ...     norm = optimizer.step(grads)
    >>> loss < 0.1, model.generate([3, 4], 5)
    (True, array([0, 1, 2, 3, 4]))
    """

    _model_types = ("llama", "mistral", "qwen2")
    _prefix = "model."
    _buffers = (".rotary_emb.inv_freq",)
    _adds_in_place = False
    _is_llama = True

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        d_model: int,
        nhead: int,
        num_layers: int,
        dim_feedforward: int | None = None,
        num_kv_heads: int | None = None,
        attention_dropout: float = 0.0,
        activation: str = "silu",
        rms_norm_eps: float = 1e-6,
        rotary_base: float = 10000.0,
        *,
        projection_bias: bool = False,
        tied: bool = False,
        recompute: bool = False,
        dtype: DTypeLike = np.float32,
        rng: Rng | None = None,
    ) -> None:
        arguments = {
            "vocab_size": checked_integer("vocab_size", vocab_size),
            "max_length": checked_integer("max_length", max_length),
            "d_model": checked_integer("d_model", d_model),
            "nhead": checked_integer("nhead", nhead),
            "num_layers": checked_layers("num_layers", num_layers),
            "dim_feedforward": checked_integer_or_none("dim_feedforward", dim_feedforward),
            "num_kv_heads": checked_integer_or_none("num_kv_heads", num_kv_heads),
            "attention_dropout": checked_number("attention_dropout", attention_dropout),
            "activation": checked_name("activation", activation),
            "rms_norm_eps": checked_epsilon("rms_norm_eps", rms_norm_eps),
            "rotary_base": checked_number("rotary_base", rotary_base),
            "projection_bias": checked_flag("projection_bias", projection_bias),
            "tied": checked_flag("tied", tied),
            "recompute": checked_flag("recompute", recompute),
            "dtype": float_dtype(dtype).name,
        }
        self._allocate(arguments, initial_seed(rng))

    def _sizes(self) -> dict[str, Any]:
        arguments = self._arguments
        if not arguments["rms_norm_eps"] >= 0:
            raise ValueError(f"rms_norm_eps must be at least 0, got {arguments['rms_norm_eps']}")
        width, kv_heads = arguments["dim_feedforward"], arguments["num_kv_heads"]
        default_width = (8 * arguments["d_model"] // 3 + 31) // 32 * 32
        return arguments | {
            "dim_feedforward": checked_integer("dim_feedforward", default_width) if width is None else width,
            "num_kv_heads": arguments["nhead"] if kv_heads is None else kv_heads,
            "layer_norm_eps": arguments["rms_norm_eps"],
            "embedding_dropout": 0.0,
            "dropout": 0.0,
        }

    # ---- Folders, as transformers has them

    def _config(self) -> dict[str, Any]:
        arguments, sizes = self._arguments, self._sizes()
        activations = {ours: published for published, ours in reversed(LLAMA_ACTIVATIONS.items())}
        kind = "Qwen2" if arguments["projection_bias"] else "Llama"
        base = arguments["rotary_base"]
        return {
            "model_type": kind.lower(),
            "architectures": [f"{kind}ForCausalLM"],
            "vocab_size": arguments["vocab_size"],
            "max_position_embeddings": arguments["max_length"],
            "hidden_size": arguments["d_model"],
            "num_attention_heads": arguments["nhead"],
            "num_hidden_layers": arguments["num_layers"],
            "intermediate_size": sizes["dim_feedforward"],
            "num_key_value_heads": sizes["num_kv_heads"],
            "attention_dropout": arguments["attention_dropout"],
            "hidden_act": activations[arguments["activation"]],
            "rms_norm_eps": arguments["rms_norm_eps"],
            "rope_theta": base,
            "rope_parameters": {"rope_type": "default", "rope_theta": base},
            "tie_word_embeddings": arguments["tied"],
            "torch_dtype": arguments["dtype"],
        }

    @classmethod
    def _arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        activation = config.get("hidden_act", "silu")
        if not isinstance(activation, str) or activation not in LLAMA_ACTIVATIONS:
            raise ValueError(f"hidden_act must be one of {', '.join(LLAMA_ACTIVATIONS)}, got {activation!r}")
        require_supported(config, {"attention_bias": False, "mlp_bias": False})
        max_length = checked_integer("max_position_embeddings", config["max_position_embeddings"])
        d_model, nhead = (
            checked_integer(name, config[name]) for name in ("hidden_size", "num_attention_heads")
        )
        head_dim = checked_integer_or_none("head_dim", config.get("head_dim"))
        if head_dim is not None and head_dim * nhead != d_model:
            raise ValueError(f"head_dim must be hidden_size / num_attention_heads, got {head_dim}")
        _require_no_window(config, max_length)
        kv_heads = checked_integer_or_none("num_key_value_heads", config.get("num_key_value_heads"))
        if config["model_type"] != "llama":  # whose default is one per head; the others' fits one size
            kv_heads = checked_integer("num_key_value_heads", config["num_key_value_heads"])
        return {
            "vocab_size": checked_integer("vocab_size", config["vocab_size"]),
            "max_length": max_length,
            "d_model": d_model,
            "nhead": nhead,
            "num_layers": checked_layers("num_hidden_layers", config["num_hidden_layers"]),
            "dim_feedforward": checked_integer("intermediate_size", config["intermediate_size"]),
            "num_kv_heads": kv_heads,
            "attention_dropout": checked_number("attention_dropout", config.get("attention_dropout", 0.0)),
            "activation": LLAMA_ACTIVATIONS[activation],
            "rms_norm_eps": checked_epsilon("rms_norm_eps", config.get("rms_norm_eps", 1e-6)),
            "rotary_base": _rotary_base(config),
            "projection_bias": config["model_type"] == "qwen2",
            "tied": configured_flag(config, "tie_word_embeddings", False),
            "recompute": False,
        }

    def _is_stored_transposed(self, name: str) -> bool:
        return False


def _require_no_window(config: Mapping[str, Any], max_length: int) -> None:
    """That each token sees all earlier ones."""
    kinds = config.get("layer_types")
    if kinds is None:
        kinds = []
    if not isinstance(kinds, list) or any(kind != "full_attention" for kind in kinds):
        raise ValueError(f"layer_types must all be 'full_attention', got {kinds!r}")
    window = config.get("sliding_window")
    used = config["model_type"] == "mistral" or configured_flag(config, "use_sliding_window", False)
    if used and window is not None and checked_integer("sliding_window", window) < max_length:
        raise ValueError(f"sliding_window must be null, or max_position_embeddings or more, got {window}")


def _rotary_base(config: Mapping[str, Any]) -> float:
    """rope_theta, where newer or older files have it; positions that are scaled are refused."""
    parameters, scaling = _object(config, "rope_parameters"), _object(config, "rope_scaling")
    for name, values in {"rope_parameters": parameters, "rope_scaling": scaling}.items():
        kind = values.get("rope_type", values.get("type", "default"))
        if kind != "default":
            raise ValueError(f"{name} must be those of rope_type 'default', got {kind!r}")
        if checked_number("partial_rotary_factor", values.get("partial_rotary_factor", 1)) != 1:
            raise ValueError(f"partial_rotary_factor must be 1, got {values['partial_rotary_factor']!r}")
    base = checked_number("rope_theta", parameters.get("rope_theta", config.get("rope_theta", 10000.0)))
    if not (0 < base < math.inf):
        raise ValueError(f"rope_theta must be a finite number above 0, got {base}")
    return base


def _object(config: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    values = config.get(name)
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise TypeError(f"{name} must be an object or null, got {values!r}")
    return values
