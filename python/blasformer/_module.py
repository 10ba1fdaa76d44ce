"""The protocol that layers follow, and how those who change weights write them."""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable, Mapping
from typing import Any, Protocol, runtime_checkable

import numpy as np

from ._attention import Array


@runtime_checkable
class Module(Protocol):
    """What a layer is: anything with these three methods, ours and yours.

    Such a layer goes into `nn.Sequential`, is trained by `optim` and `train.fit`, and its backward is checked
    by `testing.check_gradients`. No base class is needed:

    >>> class Scale:  # y = x * weight
    ...     def __init__(self, features):
    ...         self.weight = np.ones(features, np.float32)
    ...
    ...     def parameters(self):
    ...         return {"weight": self.weight}
    ...
    ...     def forward(self, x, *, rng=None):
    ...         return x * self.weight, x
    ...
    ...     def backward(self, saved, d_y):
    ...         return d_y * self.weight, {"weight": (d_y * saved).sum(axis=tuple(range(d_y.ndim - 1)))}
    >>> from blasformer import nn, optim
    >>> isinstance(Scale(4), nn.Module)
    True
    >>> model = nn.Sequential(nn.Linear(3, 4, rng=0), Scale(4))
    >>> optimizer = optim.AdamW(model)

    Optional methods: `__call__(x)` for inference, otherwise the output of `forward` without rng is taken;
    `edit()`, a context that yields arrays to write and makes them the weights at its end, for layers that
    keep something else than what `parameters()` returns.
    """

    def parameters(self) -> dict[str, Array]:
        """{name: array} of float32 or float64: the live weights. They are written in place, and so must be
        writeable, unless the layer has edit()."""

    def forward(self, x: Any, /, *, rng: Any = None) -> tuple[Any, Any]:
        """(y, saved): the output, and whatever backward needs. rng: numpy.random.Generator or int, the only
        source of randomness; without it nothing is dropped out. Further inputs and arguments may follow."""

    def backward(self, saved: Any, d_y: Any, /) -> tuple[Any, dict[str, Array]]:
        """(d_x, grads): the gradient of the input (a tuple in the order of the inputs if there are several,
        None for integers), and that of each parameter, by name, in its shape and dtype: new arrays, which may
        be added to."""


def infer(module: Any, *inputs: Any, **arguments: Any) -> Any:
    """The output alone, without dropout."""
    return module(*inputs, **arguments) if callable(module) else module.forward(*inputs, **arguments)[0]


def leaves(module: Any) -> list[tuple[str, Any]]:
    """The modules that hold the parameters of this one, each with the prefix of its names here."""
    if hasattr(module, "_leaves"):
        parts: list[tuple[str, Any]] = module._leaves()
        return parts
    return [("", module)]


def matching(names: Iterable[str], patterns: tuple[str, ...]) -> set[str]:
    """The names that shell-style patterns match; without patterns, all. Each must match something."""
    known = list(names)
    found: set[str] = set()
    for pattern in patterns or ("*",):
        if not isinstance(pattern, str):
            raise TypeError(f"patterns must be strings, one by one, got {pattern!r}")
        fitting = fnmatch.filter(known, pattern)
        if not fitting:
            raise ValueError(f"patterns must match parameters, got {pattern!r}; there are {', '.join(known)}")
        found.update(fitting)
    return found


def frozen_parameters(module: Any) -> set[str]:
    """The names of the parameters that are not trained and get no gradient."""
    return {prefix + name for prefix, leaf in leaves(module) for name in getattr(leaf, "frozen", ()) or ()}


SETTING = "edit, as in `with layer.edit() as p: p[name] = array`, or load_state_dict"


def refuse_stray_weight(module: Any, name: str, value: Any) -> None:
    """Raises AttributeError for an array that a layer of ours is to have as a new attribute, which its code
    knows nothing of: what is meant is a parameter."""
    is_ours = type(module).__module__.split(".")[0] == __package__
    if is_ours and isinstance(value, np.ndarray) and value.dtype.kind == "f" and not hasattr(module, name):
        raise AttributeError(
            f"{name} must be a parameter of {type(module).__name__}, of which there are "
            f"{', '.join(module.parameters()) or 'none'}, and set by {SETTING}, got an attribute"
        )


def write_parameters(module: Any, arrays: Mapping[str, Array]) -> None:
    """Copies arrays, which fit, into the parameters of those names."""
    if hasattr(module, "edit"):
        with module.edit() as target:
            for name, array in arrays.items():
                target[name][...] = array
    else:
        live = module.parameters()
        for name, array in arrays.items():
            live[name][...] = array


def add_gradients(total: Mapping[str, Array], grads: Mapping[str, Array]) -> dict[str, Array]:
    """The sum, which lies in the arrays of `total`, and in those of `grads` that it lacks."""
    result = dict(total)
    for name, gradient in grads.items():
        if name in result:
            result[name] += gradient
        else:
            result[name] = gradient
    return result
