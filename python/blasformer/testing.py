"""Testing layers: whether backward returns the derivatives of forward."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from ._arguments import checked_integer, checked_number
from ._attention import Array
from ._composite import require_module
from ._module import frozen_parameters, write_parameters
from ._random import Rng, seed_or_none

__all__ = ["check_gradients"]

STEPS = {"float64": 1e-4, "float32": 1e-2}
TOLERANCES = {"float64": 1e-6, "float32": 2e-2}


def check_gradients(
    layer: Any,
    *inputs: Any,
    rng: Rng | None = None,
    tolerance: float | None = None,
    step: float | None = None,
    elements: int = 50,
    **arguments: Any,
) -> dict[str, float]:
    """Compare what backward returns with numerical derivatives of forward.

    With L = sum(y * d_y) for a random d_y, the derivative with respect to an element e of an input or of a
    parameter is (8 (L(e + h) - L(e - h)) - (L(e + 2h) - L(e - 2h))) / 12h. It is compared element by element,
    and for each array once along a random direction in which all of its elements change.

    Parameters
    ----------
    layer : any layer that follows `nn.Module`; float64 advised, as float32 finds only gross mistakes
    inputs : the arrays that forward takes; floating-point ones are checked
    rng : Generator or int handed to forward, for the same dropout every time; without it there is none
    tolerance : the largest error, relative to the largest element of the gradient; by default 1e-6 for
        float64, 2e-2 for float32
    step : h, by default 1e-4 for float64, 1e-2 for float32. A function with kinks, as relu, may be off where
        one lies nearer than 2h: choose other inputs.
    elements : check so many elements of each array, drawn at random, if it has more
    arguments : further keyword arguments of forward

    Returns {name: error}, of inputs under "input 0", "input 1", ..., relative as for tolerance. The layer is
    left as it was.

    Raises
    ------
    AssertionError that names each wrong gradient, its worst element, what backward gave and what is right; or
    what has the wrong name, shape or dtype.

    Examples
    --------
    >>> class Square:
    ...     def parameters(self):
    ...         return {}
    ...
    ...     def forward(self, x, *, rng=None):
    ...         return x**2, x
    ...
    ...     def backward(self, saved, d_y):
    ...         return saved * d_y, {}  # forgets the 2
    >>> check_gradients(Square(), np.array([1.0, 2.0]))  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    AssertionError: backward of Square is wrong
      input 0: wrong at 2 of 2 elements, worst at [1]: backward gives ..., the derivative is ...
    """
    require_module("layer", layer)
    for name, number in (("step", step), ("tolerance", tolerance)):
        if number is not None and not 0 < checked_number(name, number) < math.inf:
            raise ValueError(f"{name} must be positive and finite, got {number}")
    if elements is not None:
        checked_integer("elements", elements, least=1)
    losses = _Losses(layer, inputs, seed_or_none(rng), step, arguments)
    gradients = losses.gradients()
    allowed = losses.tolerance if tolerance is None else tolerance
    errors, complaints = {}, []
    for name, gradient in gradients.items():
        errors[name], complaint = _compare(losses, name, gradient, allowed, elements)
        if complaint:
            complaints.append(complaint)
    losses.require(not complaints, "\n  ".join(["is wrong", *complaints]))
    return errors


class _Losses:
    """How the loss of one forward pass changes with each array that goes into it."""

    def __init__(
        self,
        layer: Any,
        inputs: tuple[Any, ...],
        seed: int | None,
        step: float | None,
        arguments: Mapping[str, Any],
    ) -> None:
        self.layer, self.seed, self.arguments = layer, seed, arguments
        self.inputs = [x.copy() if isinstance(x, np.ndarray) else x for x in inputs]
        self.parameters = {name: array.copy() for name, array in layer.parameters().items()}
        self.random = np.random.default_rng(0)
        self.y, self.saved = self.forward()
        dtype = str(getattr(self.y, "dtype", type(self.y).__name__))
        if dtype not in STEPS:
            raise TypeError(f"forward must return a NumPy array of float32 or float64 first, got {dtype}")
        self.d_y = self.random.standard_normal(self.y.shape).astype(self.y.dtype)
        self.step, self.tolerance = step or STEPS[dtype], TOLERANCES[dtype]
        # What rounding does to losses, it does to their differences.
        size_of_terms = np.abs(self.y * self.d_y).sum(dtype=np.float64)
        self.noise = 4 * float(np.finfo(dtype).eps * size_of_terms) / self.step

    def require(self, condition: bool, text: str) -> None:
        if not condition:
            raise AssertionError(f"backward of {type(self.layer).__name__} {text}")

    def forward(self) -> tuple[Any, Any]:
        y, saved = self.layer.forward(*self.inputs, rng=self.seed, **self.arguments)
        return y, saved

    def gradients(self) -> dict[str, Array]:
        """What backward returns for inputs and parameters, each of the right shape and dtype."""
        d_inputs, grads = self.layer.backward(self.saved, self.d_y.copy())
        repeated = np.array_equal(self.forward()[0], self.y, equal_nan=True)
        self.require(repeated, "cannot be judged: forward gives something else every time")
        d_inputs = list(d_inputs) if isinstance(d_inputs, tuple) else [d_inputs]
        while len(d_inputs) > len(self.inputs) and d_inputs[-1] is None:  # of inputs that were not given
            d_inputs.pop()
        self.require(
            len(d_inputs) == len(self.inputs),
            f"must return a gradient for each of {len(self.inputs)} inputs, got {len(d_inputs)}",
        )
        frozen = frozen_parameters(self.layer)
        trained = {name: array for name, array in self.parameters.items() if name not in frozen}
        self.require(
            grads.keys() == trained.keys(),
            f"must return gradients of {', '.join(trained) or 'nothing'}, got {', '.join(grads)}",
        )
        arrays = {f"input {index}": x for index, x in enumerate(self.inputs)} | trained
        given = {f"input {index}": d_x for index, d_x in enumerate(d_inputs)} | grads
        checked = {}
        for name, array in arrays.items():
            if isinstance(array, np.ndarray) and array.dtype.kind == "f":
                checked[name] = given[name]
                dtype = getattr(given[name], "dtype", type(given[name]).__name__)
                shape = getattr(given[name], "shape", "")
                self.require(
                    (dtype, shape) == (array.dtype, array.shape),
                    f"must return a gradient of {name} of {array.dtype} {array.shape}, got {dtype} {shape}",
                )
        return checked

    def derivative(self, name: str, direction: Array) -> float:
        """Of the loss, as the array of that name moves in that direction."""
        one, two = (
            self.difference(name, direction, self.step),
            self.difference(name, direction, 2 * self.step),
        )
        return (8 * one - two) / (12 * self.step)

    def difference(self, name: str, direction: Array, step: float) -> float:
        change = direction * direction.dtype.type(step)
        return self.loss_with(name, change) - self.loss_with(name, -change)

    def loss_with(self, name: str, change: Array) -> float:
        """The loss after a change of that array, which is then undone."""
        if name in self.parameters:
            original = self.parameters[name]
            write_parameters(self.layer, {name: original + change})
            try:
                return self.loss()
            finally:
                write_parameters(self.layer, {name: original})
        index = int(name.removeprefix("input "))
        original = self.inputs[index]
        self.inputs[index] = original + change
        try:
            return self.loss()
        finally:
            self.inputs[index] = original

    def loss(self) -> float:
        y = self.forward()[0]
        return float((y.astype(np.float64) * self.d_y).sum())


def _compare(
    losses: _Losses, name: str, gradient: Array, tolerance: float, elements: int
) -> tuple[float, str | None]:
    """The largest relative error of a gradient, and what is wrong with it, if anything is."""
    size = gradient.size
    if size == 0:
        return 0.0, None
    chosen = np.sort(losses.random.permutation(size)[:elements])
    exact = np.array([losses.derivative(name, _unit(gradient, element)) for element in chosen])
    errors = np.abs(gradient.reshape(-1)[chosen].astype(np.float64) - exact)
    magnitude = max(np.abs(exact).max(), np.abs(gradient).max())
    wrong = ~(errors <= tolerance * magnitude + losses.noise)
    if wrong.any():
        worst = int(np.argmax(np.where(np.isnan(errors), np.inf, errors)))
        place = [int(i) for i in np.unravel_index(chosen[worst], gradient.shape)]
        error = float(errors[worst] / magnitude)
        return error, (
            f"{name}: wrong at {wrong.sum()} of {len(chosen)} elements, worst at {place}: backward gives "
            f"{gradient[tuple(place)]:.6g}, the derivative is {exact[worst]:.6g} "
            f"(error {error:.2g}, allowed {tolerance:g})"
        )
    direction = losses.random.standard_normal(gradient.shape).astype(gradient.dtype)
    along = float((gradient.astype(np.float64) * direction).sum())
    off = abs(along - losses.derivative(name, direction))
    if not off <= (tolerance * magnitude + losses.noise) * np.sqrt(size):
        return float(off / magnitude), (
            f"{name}: right at the {len(chosen)} elements that were checked, but off by {off:.3g} along a "
            "direction in which all change: check more elements"
        )
    return (float(errors.max() / magnitude) if magnitude > losses.noise else 0.0), None


def _unit(like: Array, element: int) -> Array:
    """An array of that shape and dtype with a one at that element, and zeros elsewhere."""
    unit = np.zeros(like.size, like.dtype)
    unit[element] = 1
    return unit.reshape(like.shape)
