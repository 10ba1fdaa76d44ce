"""Optimisers: how parameters follow their gradients; and schedules: how the learning rate follows the steps.

    optimizer = optim.AdamW(layer, lr=1e-3, clip_norm=1.0)
    schedule = optim.cosine_schedule(1e-3, steps=1000, warmup=100)
    for step, (x, d_y) in enumerate(batches):
        y, saved = layer.forward(x)
        _, grads = layer.backward(saved, d_y)
        optimizer.lr = schedule(step)
        optimizer.step(grads)

An optimiser takes one layer or several, ours or any that follow `blasformer.nn.Module`. A step is one call
into C++: one pass over the gradients for their norm, and one over parameters, gradients and the optimiser's
memory. A step happens or it does not: gradients that are missing, foreign, misshapen or of another type, NaN
and Inf are found before anything changes, and Ctrl-C waits for its end. A parameter with two names (tied
weights) is updated once, with the sum of its gradients. Results are the same bits for any number of threads.

Definitions and defaults are PyTorch's, except that clipping divides by the norm and not by the norm + 1e-6.
"""

from __future__ import annotations

import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple, TypeAlias

import numpy as np

from . import _core
from ._arguments import checked_flag, checked_integer, checked_number
from ._attention import Array
from ._interrupts import DeferredInterrupt
from ._module import leaves
from ._state_dicts import Wanted, array_kind, is_array_of, require_fitting, require_mapping

__all__ = [
    "SGD",
    "Adam",
    "AdamW",
    "Lion",
    "Optimizer",
    "biases_and_norms",
    "clip_grad_norm",
    "constant_schedule",
    "cosine_schedule",
    "global_norm",
    "inverse_sqrt_schedule",
    "linear_schedule",
]

Gradients: TypeAlias = Mapping[str, Array] | Sequence[Mapping[str, Array]]
Schedule: TypeAlias = Callable[[int], float]


def biases_and_norms(name: str, parameter: Array) -> bool:
    """Whether a parameter is a bias or the weight of a norm, which are vectors: usually not decayed.

    What "match" of a group may be; it raises nothing for the parameters that an optimiser asks about.

    >>> from blasformer import nn
    >>> groups = [{"match": biases_and_norms, "weight_decay": 0.0}]
    >>> optimizer = AdamW(nn.Linear(3, 4), groups=groups)
    """
    return parameter.ndim < 2


class _Place(NamedTuple):
    """Where a parameter is found."""

    layer: int  # which of the layers the optimiser was given
    name: str  # as this layer calls it
    leaf: int  # which of the modules that hold parameters
    leaf_name: str  # as that one calls it


@dataclass(slots=True)
class _Parameter:
    """What is updated: an array, in all the places where it is found. And what is remembered of it."""

    name: str  # the first of its names
    places: tuple[_Place, ...]
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    group: int
    memory: list[Array] | None = None  # from its first step on
    steps: int = 0  # fewer than the optimiser's if it was frozen once


class Optimizer(ABC):
    """What all optimisers have in common. See SGD, Adam, AdamW and Lion.

    Parameters
    ----------
    layers : one layer, or a sequence of them; ours, or any that follow `blasformer.nn.Module`
    lr : learning rate >= 0; may be set at any time: `optimizer.lr = 1e-4`
    groups : sequence of dicts, each of which gives parameters values of their own: "match" says which, as a
        name with wildcards ("*.bias"), several of these, or a function of (name, parameter); the other keys
        are arguments of the constructor (lr, weight_decay, ...), or "frozen": True for parameters that stay
        as they are, need no gradient and no memory. The first group that matches counts. Setting
        `optimizer.lr` later keeps the ratio of a group's lr to it. With several layers names begin with the
        layer's index: "0.weight".
    clip_norm : scale all gradients down by one factor if the norm of all of them together is larger
    nonfinite : what to do with gradients that hold NaN or Inf: "error" raises ValueError, "skip" leaves
        everything as it was and returns the norm, which then is not finite

    Raises TypeError or ValueError for what these cannot be, and for groups that match nothing.
    """

    _memory_names: tuple[str, ...]  # PyTorch's names of what is remembered for each parameter

    def __init__(
        self,
        layers: Any,
        lr: float,
        groups: Sequence[Mapping[str, Any]],
        clip_norm: float | None,
        nonfinite: str,
        **values: Any,
    ) -> None:
        if not isinstance(nonfinite, str) or nonfinite not in ("error", "skip"):
            raise ValueError(f"nonfinite must be 'error' or 'skip', got {nonfinite!r}")
        if clip_norm is not None and _number("clip_norm", clip_norm) == 0:
            raise ValueError("clip_norm must be > 0 or None, got 0")
        self._check(values)
        self._lr = _number("lr", lr)
        self._clip_norm = math.inf if clip_norm is None else float(clip_norm)
        self._nonfinite = nonfinite
        self._layers = list(layers) if isinstance(layers, (list, tuple)) else [layers]
        self._several = isinstance(layers, (list, tuple))
        if not self._layers:
            raise ValueError("layers must not be empty")
        self._values, self._lr_ratios, self._frozen = [values], [1.0], [False]
        for group in _groups(groups):
            self._add_group(group, values)
        self._leaves = [
            (index, prefix, leaf)
            for index, layer in enumerate(self._layers)
            for prefix, leaf in leaves(layer)
        ]
        self._parameters = self._find_parameters(groups)
        self._steps = 0
        self._in_use = threading.Lock()

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("clip_norm", "groups", "layers", *vars(self).get("_values", [{}])[0]):
            raise AttributeError(
                f"{name} must be given to {type(self).__name__}(), got an attribute, which is never read"
            )
        super().__setattr__(name, value)

    def _add_group(self, group: Mapping[str, Any], defaults: dict[str, Any]) -> None:
        """The values of a group: its own, and the constructor's for the rest."""
        known = ("match", "frozen", "lr", *defaults)
        if unknown := [str(key) for key in group if key not in known]:
            raise ValueError(f"a group may have the keys {', '.join(known)}, got {', '.join(unknown)}")
        if "match" not in group:
            raise ValueError("a group must have the key 'match', which says which parameters belong to it")
        values = {name: group.get(name, default) for name, default in defaults.items()}
        self._check(values)
        ratio = 1.0
        if "lr" in group:
            lr = _number("lr of a group", group["lr"])
            if self._lr == 0:
                raise ValueError("lr must be > 0 where a group has its own, got 0")
            ratio = lr / self._lr
        self._values.append(values)
        self._lr_ratios.append(ratio)
        self._frozen.append(checked_flag("frozen of a group", group.get("frozen", False)))

    def _find_parameters(self, groups: Sequence[Mapping[str, Any]]) -> list[_Parameter]:
        arrays = {
            _Place(index, prefix + name, number, name): array
            for number, (index, prefix, leaf) in enumerate(self._leaves)
            for name, array in _parameters_of(leaf).items()
        }
        tied: dict[Any, list[_Place]] = {}
        for place, array in arrays.items():
            memory = (_address(array), array.shape, array.strides) if array.size else place
            tied.setdefault(memory, []).append(place)
        matches = [_matcher(group["match"]) for group in groups]
        used, parameters = set(), []
        for places in tied.values():
            array = arrays[places[0]]
            matching = [
                number
                for number, match in enumerate(matches, 1)
                if any(match(self._label(place), array) for place in places)
            ]
            used.update(matching)
            group = matching[0] if matching else 0
            parameters.append(
                _Parameter(self._label(places[0]), tuple(places), array.shape, array.dtype, group)
            )
        for number, group_values in enumerate(groups, 1):
            if number not in used:
                raise ValueError(
                    f"match must match a parameter, but {group_values['match']!r} matches none of "
                    f"{', '.join(map(self._label, arrays))}"
                )
        return parameters

    def _label(self, place: _Place) -> str:
        return f"{place.layer}.{place.name}" if self._several else place.name

    @abstractmethod
    def _check(self, values: dict[str, Any]) -> None:
        """Raises ValueError or TypeError unless these values of a group make sense."""

    @abstractmethod
    def _rule(self, lr: float, values: dict[str, Any], step: int) -> tuple[Any, ...]:
        """The numbers that C++ wants to know for the step of that number of a parameter."""

    @abstractmethod
    def _update(
        self, rules: list[tuple[Any, ...]], sources: list[Any], updates: list[tuple[Any, ...]]
    ) -> float:
        """The step itself, in C++: returns the norm of the gradients; if it is not finite nothing changes."""

    @property
    def lr(self) -> float:
        """The learning rate."""
        return self._lr

    @lr.setter
    def lr(self, lr: float) -> None:
        self._lr = _number("lr", lr)

    @property
    def steps(self) -> int:
        """The number of steps made so far."""
        return self._steps

    @property
    def nonfinite(self) -> str:
        """What happens to gradients that hold NaN or Inf: "error" or "skip"."""
        return self._nonfinite

    def step(self, grads: Gradients) -> float:
        """Update all parameters.

        grads: {name: array} as `layer.backward` returns them, or for several layers a sequence of these

        Returns the norm of all gradients together, before clipping.

        Raises ValueError that lists all gradients that are missing, foreign, misshapen or of the wrong type
        (TypeError if only types are wrong), or that hold NaN or Inf (see nonfinite); RuntimeError if another
        thread is making a step with this optimiser. Then nothing has changed.
        """
        if not self._in_use.acquire(blocking=False):
            raise RuntimeError("an optimiser can make one step at a time")
        try:
            active = self._active()
            gradients = self._gradients(grads, active)
            with DeferredInterrupt(), ExitStack() as stack:
                live = [_source(leaf, stack) for _, _, leaf in self._leaves]
                sources = [self._dense_source(number, source) for number, source in enumerate(live)]
                rules, updates = self._rules_and_updates(active, gradients)
                norm = self._update(rules, sources, updates)
                if not math.isfinite(norm):
                    return self._refuse(norm, active, gradients)
                for source, dense in zip(live, sources, strict=True):
                    _write_back(source, dense)
                self._steps += 1
                for parameter in active:
                    parameter.steps += 1
            return norm
        finally:
            self._in_use.release()

    def _active(self) -> list[_Parameter]:
        """The parameters that are not frozen, neither by a group nor now by their layer."""
        frozen = [getattr(leaf, "frozen", ()) for _, _, leaf in self._leaves]
        if not any(frozen) and not any(self._frozen):
            return self._parameters
        return [
            parameter
            for parameter in self._parameters
            if not self._frozen[parameter.group]
            and not all(place.leaf_name in frozen[place.leaf] for place in parameter.places)
        ]

    def _gradients(self, grads: Gradients, active: Sequence[_Parameter]) -> list[Array]:
        """The gradient of each active parameter, dense."""
        given = _mappings(grads)
        if isinstance(grads, Mapping) == self._several or len(given) != len(self._layers):
            wanted = f"a sequence of {len(self._layers)} mappings" if self._several else "one mapping"
            raise ValueError(f"grads must be {wanted}, as the optimiser was given layers, got {len(given)}")
        gradients, places, fitting = [], 0, True
        for parameter in active:
            uses = [_array_of(given[place.layer].get(place.name)) for place in parameter.places]
            places += len(uses)
            for array in uses:
                fitting = fitting and is_array_of(parameter.dtype, array) and array.shape == parameter.shape
            gradients.append(uses)
        if not fitting or sum(map(len, given)) != places:
            self._require_fitting(given, active)
        return [_dense(uses[0] if len(uses) == 1 else _sum_of_uses(uses)) for uses in gradients]

    def _require_fitting(self, given: Sequence[Mapping[str, Array]], active: Sequence[_Parameter]) -> None:
        wanted = {
            place[:2]: (self._label(place), Wanted(parameter.shape, parameter.dtype))
            for parameter in self._parameters
            for place in parameter.places
        }
        needed = {place[:2] for parameter in active for place in parameter.places}
        label = {place: name for place, (name, _) in wanted.items()}
        require_fitting(
            "grads must hold the gradient of every parameter that is not frozen",
            {
                label.get((index, name), f"{index}.{name}" if self._several else name): array
                for index, arrays in enumerate(given)
                for name, array in arrays.items()
            },
            {name: want for place, (name, want) in wanted.items() if place in needed},
            {name: want for place, (name, want) in wanted.items() if place not in needed},
        )

    def _dense_source(self, number: int, source: Any) -> Any:
        """A layer of ours, or the arrays of another that are to be updated, dense."""
        if isinstance(source, _core.Layer):
            return source
        dense = {}
        for parameter in self._parameters:
            place = parameter.places[0]
            if place.leaf == number:
                array = source.get(place.leaf_name)
                if array is None or array.shape != parameter.shape or array.dtype != parameter.dtype:
                    got = "none" if array is None else f"{array.dtype} {array.shape}"
                    raise ValueError(
                        f"parameter {parameter.name} must stay {parameter.dtype} {parameter.shape}, "
                        f"as it was when the optimiser was made, got {got}"
                    )
                dense[place.leaf_name] = _dense(array)
        return dense

    def _rules_and_updates(
        self, active: Sequence[_Parameter], gradients: Sequence[Array]
    ) -> tuple[list[tuple[Any, ...]], list[tuple[Any, ...]]]:
        """What C++ takes: rules, and (rule, source, name, gradient, memory) of each parameter."""
        numbers: dict[tuple[int, int], int] = {}
        updates = []
        for parameter, gradient in zip(active, gradients, strict=True):
            rule = numbers.setdefault((parameter.group, parameter.steps), len(numbers))
            place = parameter.places[0]
            updates.append((rule, place.leaf, place.leaf_name, gradient, self._memory_of(parameter)))
        rules = [
            self._rule(self._lr * self._lr_ratios[group], self._values[group], steps + 1)
            for group, steps in numbers
        ]
        return rules, updates

    def _memory_of(self, parameter: _Parameter) -> list[Array]:
        """What is remembered of a parameter, at first zeros."""
        if parameter.memory is None:
            parameter.memory = [np.zeros(parameter.shape, parameter.dtype) for _ in self._memory_names]
        return parameter.memory

    def _refuse(self, norm: float, active: Sequence[_Parameter], gradients: Sequence[Array]) -> float:
        if self._nonfinite == "error":
            bad = [
                parameter.name
                for parameter, gradient in zip(active, gradients, strict=True)
                if not np.isfinite(gradient).all()
            ]
            raise ValueError(
                f"gradients must be finite; NaN or Inf in: {', '.join(bad)}"
                if bad
                else f"gradients must have a finite norm, got {norm}"
            )
        return norm

    def _is_made_for(self, model: Any) -> bool:
        """Whether it updates a parameter of this model, as far as that can be seen."""
        if any(layer is model for layer in self._layers) or not hasattr(model, "parameters"):
            return True
        own = {_address(array) for _, _, leaf in self._leaves for array in leaf.parameters().values()}
        return any(_address(array) in own for array in model.parameters().values())

    def state_dict(self) -> dict[str, Any]:
        """What the optimiser remembers: numbers ("step", "lr", "step.NAME" of each parameter) and copies of
        arrays ("exp_avg.NAME", ...).

        A flat dict, which can be saved as it is: `numpy.savez(path, **optimizer.state_dict())`.
        """
        state: dict[str, Any] = {"step": self._steps, "lr": self._lr}
        active = {parameter.name for parameter in self._active()}
        for parameter in self._parameters:
            if parameter.name in active or parameter.memory is not None:
                state[f"step.{parameter.name}"] = parameter.steps
                for name, array in zip(self._memory_names, self._memory_of(parameter), strict=True):
                    state[f"{name}.{parameter.name}"] = array.copy()
        return state

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what state_dict returned, of an optimiser of the same kind for the same parameters.

        Raises ValueError or TypeError that lists everything that does not fit; then nothing has changed.
        """
        steps, lr, memory, counts = self._read(state)
        with DeferredInterrupt():
            self._steps, self._lr = steps, lr
            for parameter in self._parameters:
                parameter.memory = memory.get(parameter.name)
                parameter.steps = counts.get(parameter.name, 0)

    def _read(self, state: Mapping[str, Any]) -> tuple[int, float, dict[str, list[Array]], dict[str, int]]:
        """Steps, learning rate, memory and steps of the parameters that a state dict holds."""
        kind = f"state must be a state dict of {type(self).__name__}"
        require_mapping("state", state, of="numbers and arrays")
        number = Wanted((), np.dtype(np.float64))
        needed, optional = {"step": number, "lr": number}, dict[str, Wanted]()
        active = {parameter.name for parameter in self._active()}
        for parameter in self._parameters:
            array = Wanted(parameter.shape, parameter.dtype)
            wanted = {f"{name}.{parameter.name}": array for name in self._memory_names}
            target = needed if parameter.name in active else optional
            target.update({f"step.{parameter.name}": number} | wanted)
        known = needed | optional
        given = {
            name: _number_of(name, value) if known.get(name) is number else value
            for name, value in state.items()
        }
        require_fitting(kind, given, needed, optional)
        numbers = {name: _number(name, float(given[name])) for name in given if known[name] is number}
        memory, counts = {}, {}
        for parameter in self._parameters:
            names = [f"{name}.{parameter.name}" for name in self._memory_names]
            if f"step.{parameter.name}" in given:
                if missing := [name for name in names if name not in given]:
                    raise ValueError(f"{kind}; missing: {', '.join(missing)}")
                memory[parameter.name] = [given[name].copy(order="C") for name in names]
                counts[parameter.name] = int(numbers[f"step.{parameter.name}"])
        return int(numbers["step"]), numbers["lr"], memory, counts

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "_in_use"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        vars(self).update(state, _in_use=threading.Lock())

    def __repr__(self) -> str:
        values = ", ".join(f"{name}={value}" for name, value in self._values[0].items())
        count = sum(math.prod(parameter.shape) for parameter in self._parameters)
        return f"{type(self).__name__}(lr={self._lr}, {values})  # {count:,} parameters, {self._steps} steps"


def _groups(groups: Any) -> Sequence[Mapping[str, Any]]:
    if not isinstance(groups, (list, tuple)):
        raise TypeError(f"groups must be a list of dicts, got {type(groups).__name__}")
    for group in groups:
        require_mapping("a group", group, of="values")
    return groups


def _number_of(name: str, value: Any) -> Array:
    """A number of a state dict, also as an array, which files hold."""
    try:
        return np.asarray(value, np.float64)
    except (TypeError, ValueError):
        raise TypeError(f"state[{name!r}] must be a number, got {type(value).__name__}") from None


def _address(array: Array) -> int:
    address: int = array.__array_interface__["data"][0]
    return address


def _parameters_of(layer: Any) -> dict[str, Array]:
    """The parameters of a layer, after a check that an optimiser can write them."""
    if not callable(getattr(layer, "parameters", None)):
        raise TypeError(
            f"layers must have parameters(), as blasformer.nn.Module says, got {type(layer).__name__}"
        )
    arrays: dict[str, Array] = layer.parameters()
    for name, array in arrays.items():
        if not (is_array_of(np.float32, array) or is_array_of(np.float64, array)):
            raise TypeError(
                f"parameter {name} of {type(layer).__name__} must be a NumPy array of float32 or float64, "
                f"got {array_kind(array)}"
            )
        if not hasattr(layer, "edit") and not array.flags.writeable:
            raise ValueError(
                f"parameter {name} of {type(layer).__name__} must be writeable, or the layer must have edit()"
            )
    return arrays


def _source(leaf: Any, stack: ExitStack) -> _core.Layer | Mapping[str, Array]:
    """Where the parameters of a module are written: C++ writes those of our layers itself."""
    held = getattr(leaf, "_held", None)
    if isinstance(held, _core.Layer):
        return held
    if hasattr(leaf, "edit"):
        arrays: Mapping[str, Array] = stack.enter_context(leaf.edit())
        return arrays
    live: Mapping[str, Array] = leaf.parameters()
    return live


def _write_back(source: Any, dense: Any) -> None:
    """Brings what was updated in dense copies to where it belongs."""
    if isinstance(dense, dict):
        for name, array in dense.items():
            if source[name] is not array:
                source[name][...] = array


def _mappings(grads: Gradients) -> list[Mapping[str, Array]]:
    mappings: list[Any] = list(grads) if isinstance(grads, (list, tuple)) else [grads]
    for mapping in mappings:
        require_mapping("grads", mapping)
    return mappings


def _array_of(gradient: Any) -> Any:
    """A NumPy scalar, such as the sum of an array, is an array without axes."""
    return np.asarray(gradient) if isinstance(gradient, np.generic) else gradient


def _dense(array: Array) -> Array:
    """The array itself if its elements lie in row-major order, otherwise a copy."""
    flags = array.flags
    return array if flags.c_contiguous and flags.aligned else array.copy(order="C")


def _sum_of_uses(gradients: list[Array]) -> Array:
    """The gradient of a parameter with several names: each has its own, or all have the same array."""
    distinct = list({id(gradient): gradient for gradient in gradients}.values())
    total = distinct[0]
    for gradient in distinct[1:]:
        total = total + gradient
    return total


def _matcher(match: Any) -> Callable[[str, Array], bool]:
    if callable(match):
        return lambda name, array: bool(match(name, array))
    patterns = [match] if isinstance(match, str) else match
    if not isinstance(patterns, (list, tuple)) or not all(isinstance(pattern, str) for pattern in patterns):
        raise TypeError(f"match must be a name with wildcards, a list of them, or a function, got {match!r}")
    return lambda name, array: any(fnmatchcase(name, pattern) for pattern in patterns)


def _number(name: str, value: float, below: float = math.inf) -> float:
    """value as a float >= 0, and finite."""
    number = checked_number(name, value)
    if not 0 <= number < below:
        limit = f" and < {below:g}" if math.isfinite(below) else " and finite"
        raise ValueError(f"{name} must be >= 0{limit}, got {value}")
    return number


def _pair(name: str, values: tuple[float, float]) -> None:
    if not isinstance(values, (tuple, list)) or len(values) != 2:
        raise TypeError(f"{name} must be a pair of numbers, got {values!r}")
    for value in values:
        _number(name, value, below=1)


class SGD(Optimizer):
    """Gradient descent, with momentum or without.

    g += weight_decay p;  m = momentum m + g;  p -= lr (g + momentum m if nesterov else m)

    Parameters
    ----------
    momentum : 0 for plain gradient descent, which needs no memory
    weight_decay : added to the gradient, times the parameter
    nesterov : look ahead along the momentum
    layers, lr, groups, clip_norm, nonfinite : see Optimizer, and what it raises

    References
    ----------
    Sutskever et al. 2013, "On the importance of initialization and momentum in deep learning".

    Examples
    --------
    >>> from blasformer import nn
    >>> layer = nn.LayerNorm(2)
    >>> optimizer = SGD(layer, lr=0.5)
    >>> optimizer.step({"weight": np.array([3, 4], np.float32), "bias": np.zeros(2, np.float32)})
    5.0
    >>> layer.parameters()["weight"]
    array([-0.5, -1. ], dtype=float32)
    """

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-3,
        *,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        groups: Sequence[Mapping[str, Any]] = (),
        clip_norm: float | None = None,
        nonfinite: str = "error",
    ) -> None:
        momenta = [momentum, *(group["momentum"] for group in _groups(groups) if "momentum" in group)]
        self._with_momentum = any(_number("momentum", value) != 0 for value in momenta)
        self._memory_names = ("momentum_buffer",) if self._with_momentum else ()
        values = {"momentum": momentum, "weight_decay": weight_decay, "nesterov": nesterov}
        super().__init__(layers, lr, groups, clip_norm, nonfinite, **values)

    def _check(self, values: dict[str, Any]) -> None:
        momentum = _number("momentum", values["momentum"])
        _number("weight_decay", values["weight_decay"])
        if checked_flag("nesterov", values["nesterov"]) and momentum == 0:
            raise ValueError("nesterov must have a momentum > 0, got 0")

    def _rule(self, lr: float, values: dict[str, Any], step: int) -> tuple[Any, ...]:
        return lr, values["momentum"], values["weight_decay"], values["nesterov"]

    def _update(
        self, rules: list[tuple[Any, ...]], sources: list[Any], updates: list[tuple[Any, ...]]
    ) -> float:
        return _core.sgd_step(rules, sources, updates, self._with_momentum, self._clip_norm)


class _AdamLike(Optimizer):
    _memory_names = ("exp_avg", "exp_avg_sq")
    _decoupled_decay: bool

    def __init__(
        self,
        layers: Any,
        lr: float,
        betas: tuple[float, float],
        eps: float,
        weight_decay: float,
        groups: Sequence[Mapping[str, Any]],
        clip_norm: float | None,
        nonfinite: str,
    ) -> None:
        values = {"betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(layers, lr, groups, clip_norm, nonfinite, **values)

    def _check(self, values: dict[str, Any]) -> None:
        _pair("betas", values["betas"])
        _number("eps", values["eps"])
        _number("weight_decay", values["weight_decay"])

    def _rule(self, lr: float, values: dict[str, Any], step: int) -> tuple[Any, ...]:
        return lr, *values["betas"], values["eps"], values["weight_decay"], self._decoupled_decay, step

    def _update(
        self, rules: list[tuple[Any, ...]], sources: list[Any], updates: list[tuple[Any, ...]]
    ) -> float:
        return _core.adam_step(rules, sources, updates, self._clip_norm)


class Adam(_AdamLike):
    """Steps of about lr, whatever the size of the gradients.

    g += weight_decay p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g**2
    p -= lr (m / (1 - beta1**step)) / (sqrt(v / (1 - beta2**step)) + eps)

    Parameters
    ----------
    betas : (beta1, beta2), how slowly the means of the gradient and of its square change
    eps : added to the root
    weight_decay : added to the gradient, times the parameter; AdamW is usually better
    layers, lr, groups, clip_norm, nonfinite : see Optimizer, and what it raises

    References
    ----------
    Kingma and Ba 2015, "Adam: A Method for Stochastic Optimization".

    Examples
    --------
    >>> from blasformer import nn
    >>> layer = nn.LayerNorm(2)
    >>> optimizer = Adam(layer, lr=0.5)
    >>> norm = optimizer.step({"weight": np.array([3, -4], np.float32), "bias": np.zeros(2, np.float32)})
    >>> layer.parameters()["weight"]
    array([0.5, 1.5], dtype=float32)
    """

    _decoupled_decay = False

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        groups: Sequence[Mapping[str, Any]] = (),
        clip_norm: float | None = None,
        nonfinite: str = "error",
    ) -> None:
        super().__init__(layers, lr, betas, eps, weight_decay, groups, clip_norm, nonfinite)


class AdamW(_AdamLike):
    """Adam, with parameters that decay by themselves rather than through the gradient.

    p -= lr weight_decay p;  m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g**2
    p -= lr (m / (1 - beta1**step)) / (sqrt(v / (1 - beta2**step)) + eps)

    Parameters
    ----------
    betas : (beta1, beta2), how slowly the means of the gradient and of its square change
    eps : added to the root
    weight_decay : the share, times lr, that a parameter loses in each step
    layers, lr, groups, clip_norm, nonfinite : see Optimizer, and what it raises

    References
    ----------
    Loshchilov and Hutter 2019, "Decoupled Weight Decay Regularization".

    Examples
    --------
    >>> from blasformer import nn
    >>> layer = nn.Linear(3, 4, rng=0)
    >>> no_decay = {"match": biases_and_norms, "weight_decay": 0.0}
    >>> optimizer = AdamW(layer, lr=1e-3, weight_decay=0.1, groups=[no_decay], clip_norm=1.0)
    >>> y, saved = layer.forward(np.ones((2, 3), np.float32))
    >>> norm = optimizer.step({"weight": np.ones((4, 3), np.float32), "bias": np.ones(4, np.float32)})
    >>> norm
    4.0
    """

    _decoupled_decay = True

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-3,
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        groups: Sequence[Mapping[str, Any]] = (),
        clip_norm: float | None = None,
        nonfinite: str = "error",
    ) -> None:
        super().__init__(layers, lr, betas, eps, weight_decay, groups, clip_norm, nonfinite)


class Lion(Optimizer):
    """Steps of lr in every element, with half of Adam's memory; it wants a third to a tenth of Adam's lr.

    p -= lr (sign(beta1 m + (1 - beta1) g) + weight_decay p);  m = beta2 m + (1 - beta2) g

    Parameters
    ----------
    betas : (beta1, beta2), how much of the momentum is in the direction, and how slowly it changes
    weight_decay : the share, times lr, that a parameter loses in each step
    layers, lr, groups, clip_norm, nonfinite : see Optimizer, and what it raises

    References
    ----------
    Chen et al. 2023, "Symbolic Discovery of Optimization Algorithms".

    Examples
    --------
    >>> from blasformer import nn
    >>> layer = nn.LayerNorm(2)
    >>> optimizer = Lion(layer, lr=0.25)
    >>> norm = optimizer.step({"weight": np.array([3, -4], np.float32), "bias": np.zeros(2, np.float32)})
    >>> layer.parameters()["weight"], layer.parameters()["bias"]
    (array([0.75, 1.25], dtype=float32), array([0., 0.], dtype=float32))
    """

    _memory_names = ("exp_avg",)

    def __init__(
        self,
        layers: Any,
        lr: float = 1e-4,
        *,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        groups: Sequence[Mapping[str, Any]] = (),
        clip_norm: float | None = None,
        nonfinite: str = "error",
    ) -> None:
        values = {"betas": betas, "weight_decay": weight_decay}
        super().__init__(layers, lr, groups, clip_norm, nonfinite, **values)

    def _check(self, values: dict[str, Any]) -> None:
        _pair("betas", values["betas"])
        _number("weight_decay", values["weight_decay"])

    def _rule(self, lr: float, values: dict[str, Any], step: int) -> tuple[Any, ...]:
        return lr, *values["betas"], values["weight_decay"]

    def _update(
        self, rules: list[tuple[Any, ...]], sources: list[Any], updates: list[tuple[Any, ...]]
    ) -> float:
        return _core.lion_step(rules, sources, updates, self._clip_norm)


def global_norm(grads: Gradients) -> float:
    """sqrt(sum of the squares of all elements of all gradients), summed in float64.

    grads: {name: array} of float32 or float64, or a sequence of these. NaN or Inf if an element is.
    Raises TypeError for other dtypes.

    >>> global_norm({"weight": np.array([[3.0]]), "bias": np.array([4.0])})
    5.0
    """
    arrays = []
    for mapping in _mappings(grads):
        for name, array in mapping.items():
            if not (is_array_of(np.float32, array) or is_array_of(np.float64, array)):
                raise TypeError(
                    f"gradient {name} must be a NumPy array of float32 or float64, got {array_kind(array)}"
                )
            arrays.append(_dense(array))
    return _core.gradient_norm(arrays)


def clip_grad_norm(grads: Mapping[str, Array], max_norm: float) -> tuple[dict[str, Array], float]:
    """Gradients scaled by one factor, so that their norm together is at most max_norm, and the norm they had.

    grads: {name: array}; unlike PyTorch's clip_grad_norm_ this leaves them as they are. What is not larger is
    returned without a copy. Optimisers do the same at no cost with clip_norm.

    Raises ValueError if the norm is not finite.

    >>> clipped, norm = clip_grad_norm({"weight": np.array([3.0, 4.0])}, max_norm=1.0)
    >>> clipped["weight"], norm
    (array([0.6, 0.8]), 5.0)
    """
    if _number("max_norm", max_norm) == 0:
        raise ValueError("max_norm must be > 0, got 0")
    norm = global_norm(grads)
    if not math.isfinite(norm):
        raise ValueError(f"gradients must be finite, but their norm is {norm}")
    if norm <= max_norm:
        return dict(grads), norm
    return {name: array * array.dtype.type(max_norm / norm) for name, array in grads.items()}, norm


def constant_schedule(lr: float, *, warmup: int = 0) -> Schedule:
    """lr, after it has grown linearly over the first `warmup` steps.

    Returns a function of the number of steps made so far, as all schedules: the first step has number 0.
    Raises ValueError or TypeError for an lr or warmup below 0 and for what are no numbers.

    >>> schedule = constant_schedule(1.0, warmup=4)
    >>> [schedule(step) for step in (0, 1, 3, 4, 100)]
    [0.25, 0.5, 1.0, 1.0, 1.0]
    """
    lr, warmup = _number("lr", lr), checked_integer("warmup", warmup, least=0)
    return lambda step: lr * _warmed_up(step, warmup)


def _warmed_up(step: int, warmup: int) -> float:
    return (step + 1) / warmup if step < warmup else 1.0


def _progress(step: int, warmup: int, steps: int) -> float:
    """From 0 at the end of the warm-up to 1 after all steps."""
    return min(max((step - warmup) / (steps - warmup), 0.0), 1.0)


def linear_schedule(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """A linear rise to lr over `warmup` steps, then a linear fall that reaches `final` after `steps` steps.

    Raises ValueError or TypeError unless steps > warmup >= 0, and lr and final are numbers >= 0.

    >>> schedule = linear_schedule(1.0, steps=6, warmup=2)
    >>> [schedule(step) for step in (0, 1, 2, 3, 5, 6, 7)]
    [0.5, 1.0, 1.0, 0.75, 0.25, 0.0, 0.0]
    """
    lr, final = _number("lr", lr), _number("final", final)
    warmup = checked_integer("warmup", warmup, least=0)
    steps = checked_integer("steps", steps, least=warmup + 1)

    def schedule(step: int) -> float:
        fallen = final + (lr - final) * (1 - _progress(step, warmup, steps))
        return lr * _warmed_up(step, warmup) if step < warmup else fallen

    return schedule


def cosine_schedule(lr: float, *, steps: int, warmup: int = 0, final: float = 0.0) -> Schedule:
    """A linear rise to lr over `warmup` steps, then half a cosine down to `final` after `steps` steps.

    Loshchilov and Hutter 2017, "SGDR: Stochastic Gradient Descent with Warm Restarts", without restarts.

    Raises ValueError or TypeError unless steps > warmup >= 0, and lr and final are numbers >= 0.

    >>> schedule = cosine_schedule(1.0, steps=10, warmup=2)
    >>> [round(schedule(step), 3) for step in (0, 1, 2, 6, 10)]
    [0.5, 1.0, 1.0, 0.5, 0.0]
    """
    lr, final = _number("lr", lr), _number("final", final)
    warmup = checked_integer("warmup", warmup, least=0)
    steps = checked_integer("steps", steps, least=warmup + 1)

    def schedule(step: int) -> float:
        fallen = final + (lr - final) * (1 + math.cos(math.pi * _progress(step, warmup, steps))) / 2
        return lr * _warmed_up(step, warmup) if step < warmup else fallen

    return schedule


def inverse_sqrt_schedule(lr: float, *, warmup: int) -> Schedule:
    """A linear rise to lr over `warmup` steps, then lr sqrt(warmup / steps).

    Vaswani et al. 2017, "Attention Is All You Need", section 5.3, where lr = 1 / sqrt(d_model warmup).

    Raises ValueError or TypeError unless lr is a number >= 0 and warmup an integer >= 1.

    >>> schedule = inverse_sqrt_schedule(1.0, warmup=4)
    >>> [schedule(step) for step in (0, 1, 3, 15)]
    [0.25, 0.5, 1.0, 0.5]
    """
    lr, warmup = _number("lr", lr), checked_integer("warmup", warmup, least=1)
    return lambda step: lr * min((step + 1) / warmup, math.sqrt(warmup / (step + 1)))
