"""LoRA: fine-tuning with low-rank adapters instead of all weights (Hu et al. 2021).

    y = x @ weight.T + bias + alpha / rank * (dropout(x) @ lora_A.T) @ lora_B.T

weight and bias stay as they are; lora_A (rank, in_features) and lora_B (out_features, rank) are learnt. They
are parameters of the model like the others, `<layer>.lora_A.weight` and `<layer>.lora_B.weight`, and the only
ones that have gradients: what is frozen costs no memory for gradients or optimisers.

>>> from blasformer import lora, nn, optim
>>> model = nn.TransformerEncoderLayer(8, 2, dim_feedforward=16, rng=0)
>>> lora.add(model, ["q_proj", "v_proj"], rank=2, alpha=4, rng=1)
['self_attn.q_proj', 'self_attn.v_proj']
>>> y, saved = model.forward(np.ones((1, 3, 8), np.float32), rng=2)
>>> d_x, grads = model.backward(saved, np.ones_like(y))
>>> sorted(grads)[:2]
['self_attn.q_proj.lora_A.weight', 'self_attn.q_proj.lora_B.weight']
>>> norm = optim.AdamW(model, lr=1e-3).step(grads)
>>> lora.merge(model)  # from now on the weights have it in them, and inference costs what it did
"""

from __future__ import annotations

import fnmatch
import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from . import _core
from ._arguments import checked_integer, checked_number, checked_path, configured_flag, require_supported
from ._attention import Array
from ._dtypes import FLOATING
from ._random import Rng, draw_seed
from .io import Checkpoint, PathLike, read_json, save_tensors, some_names, write_file
from .nn import Layer

__all__ = ["add", "load", "merge", "remove", "save", "unmerge"]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
# What PEFT can do besides, and what its configuration says if it does not.
SUPPORTED = {
    "peft_type": "LORA",
    "bias": "none",
    "use_dora": False,
    "use_qalora": False,
    "lora_bias": False,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layer_replication": None,
    "trainable_token_indices": None,
}
# Ways to begin that leave the weights of the model as they are. Others change them.
INITIALISATIONS = (True, False, "gaussian", "eva", "orthogonal")
PREFIX = "base_model.model."  # of all names in the file, as PEFT writes them


def add(
    model: Layer,
    targets: str | Iterable[str],
    rank: int = 8,
    alpha: float = 16.0,
    dropout: float = 0.0,
    *,
    also: Iterable[str] = (),
    rng: Rng | None = None,
) -> list[str]:
    """Give linear layers of a model adapters, and freeze everything else.

    At first the model computes the same.

    model: a layer or model of blasformer
    targets: which linear layers: names, shell-style patterns of names such as "*.query", or the last parts of
        names, such as "query". The projections of nn.MultiheadAttention are q_proj, k_proj, v_proj, out_proj;
        those of GPT-2 are c_attn (query, key and value as one, as in PEFT) and c_proj.
    rank: of the adapters' products; alpha: alpha / rank is what they are multiplied by
    dropout: probability with which elements of an adapter's input are dropped in training
    also: names, or patterns of names, of parameters that are trained besides, as "classifier.*"
    rng: numpy.random.Generator or int that lora_A is drawn from, as a linear layer's weight; lora_B is zero

    Returns the names of the linear layers that now have adapters. Raises ValueError for targets that match
    nothing, and for a model that has adapters already.

    >>> from blasformer import nn
    >>> add(nn.FeedForward(8, 32), "linear?", rank=2)
    ['linear1', 'linear2']
    """
    _require_none(model)
    names = _matching(list(model._held.linear_layers()), _patterns("targets", targets))
    rank, alpha, dropout = _checked(rank, alpha, dropout)
    also = _patterns("also", also)
    trained = model._matching(tuple(also)) if also else set()
    _attach(model, names, rank, alpha, dropout, trained, np.random.default_rng() if rng is None else rng)
    return names


def merge(model: Layer) -> None:
    """Add the adapters' products to the weights: the model computes the same, at the cost without them.

    The adapters stay, without effect, until `unmerge` or `remove`; meanwhile they have zero gradients. Raises
    ValueError for a model without adapters, RuntimeError for weights that are held in bfloat16.

    >>> from blasformer import nn
    >>> layer = nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> merge(layer)
    """
    settings = _adapted(model)
    model._held.merge_adapters(True)
    settings["merged"] = True


def unmerge(model: Layer) -> None:
    """Take the adapters' products out of the weights again, up to rounding.

    Raises ValueError for a model without adapters, RuntimeError for weights that are held in bfloat16.

    >>> from blasformer import nn
    >>> layer = nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> merge(layer)
    >>> unmerge(layer)
    """
    settings = _adapted(model)
    model._held.merge_adapters(False)
    settings["merged"] = False


def remove(model: Layer) -> None:
    """Drop the adapters, and let all parameters be trained again. What was merged stays in the weights.

    Raises ValueError for a model without adapters.

    >>> from blasformer import nn
    >>> layer = nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> remove(layer)
    >>> list(layer.parameters()), layer.frozen
    (['linear1.weight', 'linear1.bias', 'linear2.weight', 'linear2.bias'], frozenset())
    """
    _adapted(model)
    model._held.remove_adapters()
    model._held.set_frozen(set())
    model._lora = None


def save(model: Layer, folder: PathLike) -> None:
    """Write the adapters, and what was trained besides, into a folder that the PEFT library reads too.

    adapter_config.json and adapter_model.safetensors: a small part of the model's size. Each file appears as
    a whole or not at all. Raises OSError if the folder cannot be written to.

    >>> import os, tempfile
    >>> from blasformer import nn
    >>> layer = nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(layer, folder)
    ...     sorted(os.listdir(folder))
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    settings = _adapted(model)
    folder = checked_path("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    parameters = model.parameters()
    saved = {name: PREFIX + model._stored_name(name) for name in _saved_names(settings)}
    save_tensors(
        folder / WEIGHTS_FILE,
        {stored: _as_stored(model, name, parameters[name]) for name, stored in saved.items()},
    )
    weights = [_parameter(name, "weight") for name in settings["names"]]
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": settings["dropout"],
        "target_modules": [_module_of(model._stored_name(weight)) for weight in weights],
        "modules_to_save": sorted({_module_of(model._stored_name(name)) for name in settings["also"]})
        or None,
        "bias": "none",
        "fan_in_fan_out": any(model._is_stored_transposed(weight) for weight in weights),
        "init_lora_weights": True,
    }
    write_file(folder / CONFIG_FILE, json.dumps(config, indent=2).encode() + b"\n")


def load(model: Layer, folder: PathLike) -> list[str]:
    """Give a model the adapters in a folder that `save` or the PEFT library wrote.

    The file of weights says which linear layers have adapters, and what was trained besides. All adapters
    have one rank and one alpha (also with use_rslora); adapters of other kinds, as of DoRA, are refused.

    Returns the names of the linear layers that have adapters. Raises ValueError for adapters of another kind,
    or of another model: nothing is changed then.

    >>> import os, tempfile
    >>> from blasformer import nn
    >>> layer, other = nn.FeedForward(8, 32, rng=0), nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(layer, folder)
    ...     load(other, folder)
    ['linear1']
    """
    _require_none(model)
    folder = checked_path("folder", folder)
    file = folder / CONFIG_FILE
    config = read_json(file, dict)
    try:
        rank, alpha, dropout = _settings(config)
        targets, modules = _strings(config, "target_modules"), _strings(config, "modules_to_save")
    except (TypeError, ValueError) as error:
        raise ValueError(f"{file}: {error}") from error
    with Checkpoint(folder / WEIGHTS_FILE) as checkpoint:
        linear_layers = model._held.linear_layers()
        names = [
            name
            for name in linear_layers
            if PREFIX + model._stored_name(_parameter(name, "lora_A.weight")) in checkpoint.shapes
            or _is_targeted(_module_of(model._stored_name(_parameter(name, "weight"))), targets, modules)
        ]
        wanted = {
            name: array.shape
            for name, array in model.parameters().items()
            if PREFIX + model._stored_name(name) in checkpoint.shapes
        }
        also = list(wanted)
        for name in names:
            out_features, in_features = linear_layers[name]
            wanted[_parameter(name, "lora_A.weight")] = (rank, in_features)
            wanted[_parameter(name, "lora_B.weight")] = (out_features, rank)
        stored = {name: PREFIX + model._stored_name(name) for name in wanted}
        found = {name: checkpoint.shapes[own] for name, own in stored.items() if own in checkpoint.shapes}
        common = {
            name: shape[::-1] if model._is_stored_transposed(name) else shape
            for name, shape in wanted.items()
            if name in found
        }
        faults = {
            "missing": {stored[name] for name in wanted if name not in found},
            "unexpected": checkpoint.shapes.keys() - set(stored.values()),
            "misshapen": {
                f"{stored[n]} {found[n]} instead of {common[n]}" for n in common if found[n] != common[n]
            },
            "not floating point": {
                stored[name] for name in found if checkpoint.dtypes[stored[name]] not in FLOATING
            },
        }
        text = "; ".join(f"{fault}: {some_names(names)}" for fault, names in faults.items() if names)
        if text or not names:
            raise ValueError(
                f"{folder}: the adapters are not those of the model; {text or 'there are no adapters'}"
            )
        arrays = {
            name: _as_stored(model, name, checkpoint.read(own, model.dtype)) for name, own in stored.items()
        }
    _attach(model, names, rank, alpha, dropout, set(also), rng=0)
    model.load_state_dict(arrays, strict=False)
    return names


def _attach(
    model: Layer, names: list[str], rank: int, alpha: float, dropout: float, also: set[str], rng: Rng
) -> None:
    """Gives linear layers adapters, and freezes all else but `also`."""
    frozen = set(model.parameters()) - also
    model._held.adapt(set(names), rank, alpha / rank, dropout, draw_seed(rng))
    model._held.set_frozen(frozen)
    model._lora = {
        "names": names,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "also": sorted(also),
        "merged": False,
    }


def _require_none(model: Layer) -> None:
    if not isinstance(getattr(model, "_held", None), _core.Layer):
        raise TypeError(f"model must be a layer or model of blasformer, got {type(model).__name__}")
    if model._lora is not None:
        raise ValueError("model must have no adapters yet: merge or remove them first")


def _checked(rank: int, alpha: float, dropout: float) -> tuple[int, float, float]:
    rank, alpha, dropout = (
        checked_integer("rank", rank),
        checked_number("alpha", alpha),
        checked_number("dropout", dropout),
    )
    if rank < 1:
        raise ValueError(f"rank must be positive, got {rank}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie between 0 and 1, got {dropout}")
    return rank, alpha, dropout


def _settings(config: Mapping[str, Any]) -> tuple[int, float, float]:
    """rank, alpha and dropout, of adapters that can be read."""
    require_supported(config, SUPPORTED)
    initialisation = config.get("init_lora_weights", True)
    if not isinstance(initialisation, (bool, str)) or initialisation not in INITIALISATIONS:
        raise ValueError(
            "init_lora_weights must be one that leaves the model's weights as they are, "
            f"got {initialisation!r}"
        )
    if missing := {"r", "lora_alpha", "target_modules"} - config.keys():
        raise ValueError(f"lacks {some_names(missing)}")
    dropout = config.get("lora_dropout")
    rank, alpha, dropout = _checked(
        checked_integer("r", config["r"]),
        checked_number("lora_alpha", config["lora_alpha"]),
        checked_number("lora_dropout", 0.0 if dropout is None else dropout),
    )
    return rank, alpha * math.sqrt(rank) if configured_flag(config, "use_rslora", False) else alpha, dropout


def _strings(config: Mapping[str, Any], name: str) -> list[str] | None:
    """The names in a list; None for a pattern, which only PEFT can match."""
    values = config.get(name)
    if values is None or isinstance(values, str):
        return None
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise ValueError(f"{name} must hold names, got {values!r}")
    return values


def _is_targeted(module: str, targets: list[str] | None, modules: list[str] | None) -> bool:
    """Whether a linear layer must have an adapter: if it is named, and not trained as a whole."""
    whole = any(f".{module}.".find(f".{name}.") >= 0 for name in modules or ())
    return not whole and any(f".{module}".endswith(f".{target}") for target in targets or ())


def _parameter(name: str, part: str) -> str:
    """The name of a parameter of a linear layer, which may itself be all there is."""
    return f"{name}.{part}" if name else part


def _module_of(name: str) -> str:
    return name.rpartition(".")[0]


def _as_stored(model: Layer, name: str, array: Array) -> Array:
    """A parameter as it lies in files; or back."""
    return array.T if model._is_stored_transposed(name) else array


def _adapted(model: Layer) -> dict[str, Any]:
    settings = model._lora if isinstance(model, Layer) else None
    if settings is None:
        raise ValueError("model must have adapters: lora.add gives it some")
    return settings


def _saved_names(settings: Mapping[str, Any]) -> list[str]:
    """The names of what is saved."""
    adapters = [_parameter(name, f"lora_{part}.weight") for name in settings["names"] for part in "AB"]
    return adapters + list(settings["also"])


def _patterns(name: str, values: str | Iterable[str]) -> list[str]:
    if isinstance(values, str):
        return [values]
    if not isinstance(values, Iterable):
        raise TypeError(f"{name} must be names or patterns of names, got {type(values).__name__}")
    patterns = list(values)
    for pattern in patterns:
        if not isinstance(pattern, str):
            raise TypeError(f"{name} must be names or patterns of names, got {pattern!r} among them")
    return patterns


def _matching(names: list[str], targets: list[str]) -> list[str]:
    """The names that any target means, in their order."""
    if not targets:
        raise ValueError("targets must name at least one linear layer, got none")
    found = set()
    for target in targets:
        matching = {name for name in names if fnmatch.fnmatch(name, target) or name.endswith(f".{target}")}
        if not matching:
            there = "only the layer itself, '*'" if names == [""] else some_names(names)
            raise ValueError(f"targets must match linear layers, got {target!r}; there are {there}")
        found |= matching
    return [name for name in names if name in found]
