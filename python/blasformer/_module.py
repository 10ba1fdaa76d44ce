"""The protocol that layers follow, and how those who change weights write them."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol, runtime_checkable

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
        None for integers), and that of each parameter, by name, in its shape and dtype."""


def infer(module: Any, x: Any, **arguments: Any) -> Any:
    """The output alone, without dropout."""
    return module(x, **arguments) if callable(module) else module.forward(x, **arguments)[0]


def writing(module: Any) -> AbstractContextManager[Mapping[str, Array]]:
    """A context that yields the arrays of a module to be written in place. At its end they are the weights;
    if it ends with an error and the module is one of ours, they are not."""
    if hasattr(module, "_writing"):
        context: AbstractContextManager[Mapping[str, Array]] = module._writing()
    elif hasattr(module, "edit"):
        context = module.edit()
    else:
        context = nullcontext(module.parameters())
    return context


def add_gradients(total: dict[str, Array], grads: Mapping[str, Array]) -> None:
    """Adds into the arrays of `total`, which takes over what it does not have yet."""
    for name, gradient in grads.items():
        if name in total:
            total[name] += gradient
        else:
            total[name] = gradient
