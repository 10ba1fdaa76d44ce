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
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from ._random import Rng, draw_seed
from .io import Checkpoint, PathLike, read_json, save_tensors, some_names, write_file
from .nn import Layer, _integer, _number

__all__ = ["add", "load", "merge", "remove", "save", "unmerge"]

CONFIG_FILE, WEIGHTS_FILE = "adapter_config.json", "adapter_model.safetensors"
SUPPORTED = {"peft_type": "LORA", "bias": "none", "fan_in_fan_out": False, "use_dora": False}
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
        names, such as "query". The projections of nn.MultiheadAttention are q_proj, k_proj, v_proj, out_proj.
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
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer or model of blasformer, got {type(model).__name__}")
    if model._lora is not None:
        raise ValueError("model must have no adapters yet: merge or remove them first")
    names = _matching(
        list(model._held.linear_layers()), [targets] if isinstance(targets, str) else list(targets)
    )
    rank, alpha, dropout = _integer("rank", rank), _number("alpha", alpha), _number("dropout", dropout)
    if rank < 1:
        raise ValueError(f"rank must be positive, got {rank}")
    if not math.isfinite(alpha):
        raise ValueError(f"alpha must be finite, got {alpha}")
    if not 0 <= dropout <= 1:
        raise ValueError(f"dropout must lie between 0 and 1, got {dropout}")
    also = [also] if isinstance(also, str) else list(also)
    trained = model._matching(tuple(also)) if also else set()
    seed = draw_seed(np.random.default_rng() if rng is None else rng)
    frozen = set(model.parameters()) - trained
    model._held.adapt(set(names), rank, alpha / rank, dropout, seed)
    model._held.set_frozen(frozen)
    model._lora = {
        "names": names,
        "rank": rank,
        "alpha": alpha,
        "dropout": dropout,
        "also": sorted(trained),
        "merged": False,
    }
    return names


def merge(model: Layer) -> None:
    """Add the adapters' products to the weights: the model computes the same, at the cost without them.

    The adapters stay, without effect, until `unmerge` or `remove`; meanwhile they have zero gradients.

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

    >>> import tempfile
    >>> from blasformer import nn
    >>> layer = nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(layer, folder)
    ...     sorted(file.name for file in Path(folder).iterdir())
    ['adapter_config.json', 'adapter_model.safetensors']
    """
    settings = _adapted(model)
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = model.parameters()
    save_tensors(folder / WEIGHTS_FILE, {PREFIX + name: arrays[name] for name in _stored(model)})
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "base_model_name_or_path": None,
        "inference_mode": True,
        "r": settings["rank"],
        "lora_alpha": settings["alpha"],
        "lora_dropout": settings["dropout"],
        "target_modules": settings["names"],
        "modules_to_save": sorted({name.rpartition(".")[0] for name in settings["also"]}) or None,
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
    }
    write_file(folder / CONFIG_FILE, json.dumps(config, indent=2).encode() + b"\n")


def load(model: Layer, folder: PathLike) -> list[str]:
    """Give a model the adapters in a folder that `save` or the PEFT library wrote.

    Returns the names of the linear layers that have adapters. Raises ValueError for adapters of another kind,
    or of another model: nothing is changed then.

    >>> import tempfile
    >>> from blasformer import nn
    >>> layer, other = nn.FeedForward(8, 32, rng=0), nn.FeedForward(8, 32, rng=0)
    >>> names = add(layer, "linear1", rank=2, rng=1)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     save(layer, folder)
    ...     load(other, folder)
    ['linear1']
    """
    folder = Path(folder)
    file = folder / CONFIG_FILE
    config = read_json(file, dict)
    for name, supported in {
        "peft_type": "LORA",
        "bias": "none",
        "fan_in_fan_out": False,
        "use_dora": False,
    }.items():
        if config.get(name, supported) != supported:
            raise ValueError(f"{file}: {name} must be {supported!r}, got {config[name]!r}")
    if missing := {"r", "lora_alpha", "target_modules"} - config.keys():
        raise ValueError(f"{file} lacks {some_names(missing)}")
    modules = config.get("modules_to_save") or []
    if not isinstance(model, Layer):
        raise TypeError(f"model must be a layer or model of blasformer, got {type(model).__name__}")
    before = model.frozen
    with Checkpoint(folder / WEIGHTS_FILE) as checkpoint:
        names = add(
            model,
            config["target_modules"],
            config["r"],
            config["lora_alpha"],
            config.get("lora_dropout", 0.0),
            also=[f"{module}.*" for module in modules],
            rng=0,
        )
        try:
            wanted = {PREFIX + name: model.parameters()[name].shape for name in _stored(model)}
            faults = {
                "missing": wanted.keys() - checkpoint.shapes.keys(),
                "unexpected": checkpoint.shapes.keys() - wanted.keys(),
                "misshapen": {n for n in wanted if checkpoint.shapes.get(n, wanted[n]) != wanted[n]},
            }
            text = "; ".join(f"{fault}: {some_names(found)}" for fault, found in faults.items() if found)
            if text:
                raise ValueError(f"{folder}: the adapters are not those of the model; {text}")
            arrays = {name: checkpoint.read(PREFIX + name, model.dtype) for name in _stored(model)}
            model.load_state_dict(arrays, strict=False)
        except BaseException:
            remove(model)
            model._held.set_frozen(set(before))
            raise
    return names


def _adapted(model: Layer) -> dict[str, Any]:
    settings = model._lora if isinstance(model, Layer) else None
    if settings is None:
        raise ValueError("model must have adapters: lora.add gives it some")
    return settings


def _stored(model: Layer) -> list[str]:
    """The names of what is saved."""
    settings = _adapted(model)
    adapters = [f"{name}.lora_{part}.weight" for name in settings["names"] for part in "AB"]
    return adapters + list(settings["also"])


def _matching(names: list[str], targets: list[str]) -> list[str]:
    """The names that any target means, in their order."""
    found = set()
    for target in targets:
        matching = {name for name in names if fnmatch.fnmatch(name, target) or name.endswith(f".{target}")}
        if not matching:
            raise ValueError(
                f"targets must match linear layers, got {target!r}; there are {some_names(names)}"
            )
        found |= matching
    return [name for name in names if name in found]
