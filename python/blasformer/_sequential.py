"""Layers one after another."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from ._attention import Array
from ._composite import Composite, require_module
from ._module import add_gradients, infer
from ._random import Rng, generator_of
from ._state_dicts import require_mapping

Arguments = Mapping[int, Mapping[str, Any]]


class Sequential(Composite):
    """y = layers[n - 1](... layers[1](layers[0](x))).

    Parameters
    ----------
    layers : ours, and any that follow `nn.Module`; one may stand in several places, and then is one layer
        with one set of parameters

    State: 0.weight, 0.bias, 1.*, ...: the names of each layer behind its index, as in PyTorch; a layer in
    several places has those of the first.

    Calling it
    ----------
    x : what the first layer takes
    arguments : what single layers are to be given besides, by index, as {1: {"key_lengths": lengths}}, or
        {2: {"out": array}} for the last

    Raises
    ------
    What its layers raise; IndexError for arguments of a layer that there is not, TypeError for what is no
    layer.

    Examples
    --------
    >>> from blasformer import nn
    >>> encoder = nn.TransformerEncoderLayer(8, 2, 16, rng=0)
    >>> model = Sequential(nn.Embedding(10, 8, rng=1), encoder, nn.Linear(8, 3, rng=2))
    >>> model(np.array([[1, 2, 3], [4, 5, 0]]), arguments={1: {"key_lengths": [3, 2]}}).shape
    (2, 3, 3)

    Layers that are connected in another way: derive a class, and write `forward` and `backward`, and
    `__call__` for inference. Everything about parameters is inherited; a gradient has the layer's index in
    front of its name.

    >>> class Sum(Sequential):  # y = layers[0](a) + layers[1](b)
    ...     def __call__(self, a, b):
    ...         return self.layers[0](a) + self.layers[1](b)
    ...
    ...     def forward(self, a, b, *, rng=None):
    ...         (y, saved_a), (z, saved_b) = self.layers[0].forward(a), self.layers[1].forward(b)
    ...         return y + z, (saved_a, saved_b)
    ...
    ...     def backward(self, saved, d_y):
    ...         (d_a, of_a), (d_b, of_b) = (x.backward(s, d_y) for x, s in zip(self.layers, saved))
    ...         named = {f"0.{name}": array for name, array in of_a.items()}
    ...         return (d_a, d_b), named | {f"1.{name}": array for name, array in of_b.items()}
    >>> from blasformer.testing import check_gradients
    >>> a, b = np.ones((5, 3)), np.ones((5, 2))
    >>> both = Sum(nn.Linear(3, 4, dtype="float64", rng=0), nn.Linear(2, 4, dtype="float64", rng=1))
    >>> max(check_gradients(both, a, b).values()) < 1e-6
    True
    """

    def __init__(self, *layers: Any) -> None:
        for index, layer in enumerate(layers):
            require_module(f"layer {index}", layer)
        self.layers = layers

    def __len__(self) -> int:
        return len(self.layers)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.layers)

    def __getitem__(self, index: int) -> Any:
        return self.layers[index]

    def _owners(self) -> list[int]:
        """For each layer the index of its first place."""
        first: dict[int, int] = {}
        return [first.setdefault(id(layer), index) for index, layer in enumerate(self.layers)]

    def _parts(self) -> dict[str, Any]:
        return {str(owner): self.layers[owner] for owner in self._owners()}

    def __call__(self, x: Any, *, arguments: Arguments | None = None) -> Any:
        given = self._arguments(arguments)
        for layer, keywords in zip(self.layers, given, strict=True):
            x = infer(layer, x, **keywords)
        return x

    def forward(
        self, x: Any, *, arguments: Arguments | None = None, rng: Rng | None = None
    ) -> tuple[Any, list[Any]]:
        """The output, and what the gradients of all layers need. Dropout acts if there is an rng."""
        given = self._arguments(arguments)
        generator = None if rng is None else generator_of(rng)
        saved = []
        for layer, keywords in zip(self.layers, given, strict=True):
            x, of_layer = layer.forward(x, rng=generator, **keywords)
            saved.append(of_layer)
        return x, saved

    def backward(self, saved: list[Any], d_y: Any) -> tuple[Any, dict[str, Array]]:
        """(d_x, grads), grads by the names of parameters(). What was given as `arguments` is constant."""
        grads: dict[str, Array] = {}
        owners = self._owners()
        for index in reversed(range(len(self.layers))):
            d_x, of_layer = self.layers[index].backward(saved[index], d_y)
            d_y = d_x[0] if isinstance(d_x, tuple) else d_x
            named = {f"{owners[index]}.{name}": array for name, array in of_layer.items()}
            grads = add_gradients(grads, named)
        return d_y, {name: grads[name] for name in self.parameters() if name in grads}

    def _arguments(self, arguments: Arguments | None) -> list[Mapping[str, Any]]:
        """The keyword arguments of each layer."""
        given = {} if arguments is None else arguments
        require_mapping("arguments", given, of="keyword arguments", keys="indices")
        if unknown := [index for index in given if index not in range(len(self.layers))]:
            raise IndexError(
                f"arguments must be given by layer, 0 to {len(self.layers) - 1}, got {unknown[0]}"
            )
        for index, keywords in given.items():
            require_mapping(f"arguments[{index}]", keywords, of="arguments")
        return [given.get(index, {}) for index in range(len(self.layers))]

    def __repr__(self) -> str:
        lines = (f"  {index}: {layer!r}".replace("\n", "\n  ") for index, layer in enumerate(self.layers))
        return "\n".join(["Sequential(", *lines, ")"])
