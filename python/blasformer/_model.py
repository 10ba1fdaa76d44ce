"""What models that are trained here have in common: one call for a step, and a folder to lie in."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ._arguments import checked_path
from ._attention import Array
from ._dtypes import FLOATING, float_dtype
from .io import Checkpoint, PathLike, existing_folder, read_json, save_tensors, some_names, write_file
from .nn import Layer

Self = TypeVar("Self", bound="Model")


class Model(Layer, ABC):
    """A layer with a loss, that is saved in a folder: config.json, its arguments, and model.safetensors."""

    _model_types: ClassVar[tuple[str, ...]]  # what config.json calls it; what is written here the first
    _adds_in_place: ClassVar[bool] = True  # whether gradients can be added to arrays while they are computed

    @abstractmethod
    def _allocate(self, arguments: dict[str, Any], seed: int | None) -> None:
        """Makes the model with these arguments; without a seed its weights are undefined."""

    # ---- Gradients

    def _accumulated(
        self, compute: Callable[[dict[str, Array] | None], tuple[float, dict[str, Array]]], accumulate: Any
    ) -> tuple[float, dict[str, Array]]:
        """compute(arrays to add to, or None), whose gradients are added to `accumulate` if that is given."""
        if accumulate is None:
            return compute(None)
        self._check_gradients(accumulate)
        dense = all(array.flags.c_contiguous and array.flags.aligned for array in accumulate.values())
        if dense and self._adds_in_place:
            return compute(dict(accumulate))
        loss, grads = compute(None)
        for name, gradient in grads.items():
            np.add(accumulate[name], gradient, out=accumulate[name])
        return loss, dict(accumulate)

    # ---- Folders

    def _config(self) -> dict[str, Any]:
        """What config.json says."""
        arguments = {name: value for name, value in self._arguments.items() if name != "dtype"}
        return {"model_type": self._model_types[0], **arguments}

    @classmethod
    def _arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the constructor that config.json means."""
        return {name: value for name, value in config.items() if name != "model_type"}

    def _names_in(self, checkpoint: Checkpoint, names: list[str]) -> dict[str, str]:
        """What a file calls the parameters, {name: stored name}, and what it holds besides."""
        known = {self._stored_name(name): name for name in names}
        return {known.get(stored, stored): stored for stored in checkpoint.shapes}

    def save(self, folder: PathLike) -> None:
        """Writes config.json and model.safetensors into a folder, which is made if need be.

        Each file appears as a whole or not at all: what was there stays until the new one is complete.
        Adapters are saved by blasformer.lora; merge them first if they are to be part of the weights.

        Raises OSError if the folder cannot be written to.
        """
        save_folder(self, folder, self._config())

    @classmethod
    def from_pretrained(
        cls: type[Self],
        folder: PathLike,
        *,
        dtype: npt.DTypeLike | None = None,
        weights_dtype: npt.DTypeLike | None = None,
    ) -> Self:
        """The model in a folder: config.json and model.safetensors, or its shards.

        dtype: float32 or float64; None computes in float64 if the weights are stored so, else in float32
            (float16 and bfloat16 are widened exactly)
        weights_dtype: "bfloat16" holds the weights of linear layers so, as `hold_weights` does, for inference
            with half the memory

        Raises FileNotFoundError for a missing file; ValueError for a damaged one (see `io.Checkpoint`), for
        another kind of model, and for missing, unexpected or misshapen tensors, all of which it names.
        """
        folder = existing_folder(folder)
        file = folder / "config.json"
        config = read_json(file, dict)
        kind = cls._kind_of(file, config.get("model_type"))
        with Checkpoint(folder) as checkpoint:
            if dtype is None:
                dtype = np.float64 if "float64" in checkpoint.dtypes.values() else np.float32
            model = kind.__new__(kind)
            try:
                arguments = kind._arguments_of(config)
                model._allocate({**arguments, "dtype": float_dtype(dtype).name}, None)
            except MemoryError:
                raise MemoryError(f"{folder}: not enough memory for the sizes in config.json") from None
            except KeyError as error:
                raise ValueError(f"{file} lacks {error.args[0]}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file}: {error}") from error
            if weights_dtype is not None:
                model.hold_weights(weights_dtype)
            read_parameters(model, checkpoint, model._names_in(checkpoint, list(model.parameters())))
        return model

    @classmethod
    def _kind_of(cls: type[Self], file: Path, model_type: Any) -> type[Self]:
        """This class, or the one under it, that config.json is of."""
        kinds = {name: kind for kind in (*cls.__subclasses__(), cls) for name in kind._model_types}
        if not isinstance(model_type, str) or model_type not in kinds:
            names = f"one of {', '.join(sorted(kinds))}" if len(kinds) > 1 else repr(next(iter(kinds)))
            raise ValueError(f"{file}: model_type must be {names} for {cls.__name__}, got {model_type!r}")
        return kinds[model_type]


def save_folder(model: Layer, folder: PathLike, config: Mapping[str, Any]) -> None:
    """Writes config.json, and model.safetensors with all parameters but those of adapters."""
    folder = checked_path("folder", folder)
    folder.mkdir(parents=True, exist_ok=True)
    arrays = {
        model._stored_name(name): array.T if model._is_stored_transposed(name) else array
        for name, array in model.parameters().items()
        if ".lora_" not in name
    }
    save_tensors(folder / "model.safetensors", arrays)
    write_file(folder / "config.json", json.dumps(config, indent=2).encode() + b"\n")


def read_parameters(
    model: Layer,
    checkpoint: Checkpoint,
    stored_names: Mapping[str, str],
    *,
    strict: bool = True,
    new: Collection[str] = (),
) -> None:
    """Loads the parameters of a model that nobody else has yet.

    stored_names: what the checkpoint calls them, and what it holds besides, which strict refuses
    new: parameters that stay as they are

    Raises ValueError that names all that is missing, unexpected, of another shape or no weights at all.
    """
    parameters = model.parameters()
    wanted = {
        name: array.shape[::-1] if model._is_stored_transposed(name) else array.shape
        for name, array in parameters.items()
        if name not in new
    }
    found = {name: checkpoint.shapes[stored] for name, stored in stored_names.items()}
    common = wanted.keys() & found.keys()
    faults = {
        "missing": wanted.keys() - found.keys(),
        "unexpected": found.keys() - wanted.keys() if strict else set(),
        "misshapen": {f"{n} {found[n]} instead of {wanted[n]}" for n in common if found[n] != wanted[n]},
        "not floating point": {n for n in common if checkpoint.dtypes[stored_names[n]] not in FLOATING},
    }
    text = "; ".join(f"{fault}: {some_names(names)}" for fault, names in faults.items() if names)
    if text:
        raise ValueError(f"{checkpoint.path}: the tensors are not those of the model; {text}")
    # One at a time: a model and its file need not both fit into memory.
    for name in wanted:
        array = checkpoint.read(stored_names[name], model.dtype).astype(parameters[name].dtype, copy=False)
        model._held.load({name: array.T if model._is_stored_transposed(name) else array}, None)
