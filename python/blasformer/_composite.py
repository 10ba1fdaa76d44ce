"""Layers made of layers: their parameters."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from ._attention import Array
from ._module import frozen_parameters, leaves, matching, refuse_stray_weight, write_parameters
from ._state_dicts import IncompatibleKeys, Wanted, select_fitting


def require_module(name: str, module: Any) -> None:
    """Raises TypeError unless this can be a part."""
    for method in ("parameters", "forward", "backward"):
        if not callable(getattr(module, method, None)):
            raise TypeError(f"{name} must have {method}(), as nn.Module says, got {type(module).__name__}")


class Composite(ABC):
    """Modules by name, whose parameters are its own, behind that name."""

    @abstractmethod
    def _parts(self) -> dict[str, Any]:
        """Every module once, by its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        refuse_stray_weight(self, name, value)
        super().__setattr__(name, value)

    def _leaves(self) -> list[tuple[str, Any]]:
        return [
            (f"{name}.{prefix}", leaf)
            for name, part in self._parts().items()
            for prefix, leaf in leaves(part)
        ]

    def parameters(self) -> dict[str, Array]:
        """The live weights of all layers, by name."""
        return {
            prefix + name: array
            for prefix, leaf in self._leaves()
            for name, array in leaf.parameters().items()
        }

    @property
    def frozen(self) -> frozenset[str]:
        """The names of the parameters that are not trained: those that are frozen in their layer."""
        return frozenset(frozen_parameters(self))

    def freeze(self, *patterns: str) -> None:
        """Exclude parameters from training.

        patterns: names, or shell-style patterns of names such as "encoder.*"; without any, all parameters.
        Raises ValueError for a pattern that matches nothing, TypeError for a parameter of a layer without
        freeze().
        """
        self._pass_on("freeze", patterns)

    def unfreeze(self, *patterns: str) -> None:
        """Include parameters in training again: the opposite of `freeze`."""
        self._pass_on("unfreeze", patterns)

    def _pass_on(self, method: str, patterns: tuple[str, ...]) -> None:
        chosen = matching(self.parameters(), patterns)
        by_leaf = [
            (leaf, [name.removeprefix(prefix) for name in chosen if name.startswith(prefix)])
            for prefix, leaf in self._leaves()
        ]
        concerned = [(leaf, names) for leaf, names in by_leaf if names]
        for leaf, names in concerned:
            if not hasattr(leaf, method):
                raise TypeError(f"{names[0]} must be of a layer with {method}(), got {type(leaf).__name__}")
        for leaf, names in concerned:
            getattr(leaf, method)(*names)

    def state_dict(self) -> dict[str, Array]:
        """A copy of every parameter, by name."""
        return {name: array.copy() for name, array in self.parameters().items()}

    def load_state_dict(self, arrays: Mapping[str, Array], strict: bool = True) -> IncompatibleKeys:
        """Replace the parameters by copies of `arrays`: all of them, or on an error none.

        strict, and what is raised and returned: as for `Linear.load_state_dict`.
        """
        wanted = {name: Wanted(array.shape, array.dtype) for name, array in self.parameters().items()}
        subject = f"arrays must be a state dict of this {type(self).__name__}"
        given, incompatible = select_fitting(subject, arrays, wanted, strict)
        given = {name: array.copy() for name, array in given.items()}  # some may be weights written before
        for prefix, leaf in self._leaves():
            own = {
                name.removeprefix(prefix): array for name, array in given.items() if name.startswith(prefix)
            }
            write_parameters(leaf, own)
        return incompatible

    @contextmanager
    def edit(self) -> Iterator[dict[str, Array]]:
        """Change weights: `with model.edit() as p: p["0.weight"] *= 0.5`.

        Yields copies of the parameters, to be written into or replaced, which become the weights at the end
        of the block; writing to them afterwards is an error. A block that raises changes nothing.
        """
        arrays = self.state_dict()
        copies = list(arrays.values())
        try:
            yield arrays
        finally:
            for array in copies:
                array.flags.writeable = False
        self.load_state_dict(arrays)
