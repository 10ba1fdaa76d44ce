"""What models that are trained here have in common: one call for a step, and a folder to lie in."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import numpy as np
import numpy.typing as npt

from ._attention import Array
from .io import FLOATING, Checkpoint, PathLike, float_dtype, read_json, save_tensors, some_names, write_file
from .nn import Layer

Self = TypeVar("Self", bound="Model")


class Model(Layer):
    """A layer with a loss, that is saved in a folder: config.json, its arguments, and model.safetensors."""

    _model_type: ClassVar[str]  # what config.json calls it

    def _allocate(self, arguments: dict[str, Any], seed: int | None) -> None:
        """Makes the model with these arguments; without a seed its weights are undefined."""
        raise NotImplementedError

    # ---- Gradients

    def _accumulated(
        self, compute: Callable[[dict[str, Array] | None], tuple[float, dict[str, Array]]], accumulate: Any
    ) -> tuple[float, dict[str, Array]]:
        """compute(arrays to add to, or None), whose gradients are added to `accumulate` if that is given."""
        if accumulate is None:
            return compute(None)
        self._check_gradients(accumulate)
        if all(array.flags.c_contiguous and array.flags.aligned for array in accumulate.values()):
            return compute(dict(accumulate))
        loss, grads = compute(None)
        for name, gradient in grads.items():
            np.add(accumulate[name], gradient, out=accumulate[name])
        return loss, dict(accumulate)

    # ---- Folders

    def _config(self) -> dict[str, Any]:
        """What config.json says."""
        arguments = {name: value for name, value in self._arguments.items() if name != "dtype"}
        return {"model_type": self._model_type, **arguments}

    @classmethod
    def _arguments_of(cls, config: Mapping[str, Any]) -> dict[str, Any]:
        """The arguments of the constructor that config.json means."""
        return {name: value for name, value in config.items() if name != "model_type"}

    @classmethod
    def _stored_name(cls, name: str) -> str:
        """What a parameter is called in the file."""
        return name

    @classmethod
    def _is_stored_transposed(cls, name: str) -> bool:
        return False

    @classmethod
    def _names_in(cls, checkpoint: Checkpoint, names: list[str]) -> dict[str, str]:
        """What a file calls the parameters, {name: stored name}, and what it holds besides."""
        known = {cls._stored_name(name): name for name in names}
        return {known.get(stored, stored): stored for stored in checkpoint.shapes}

    def save(self, folder: PathLike) -> None:
        """Writes config.json and model.safetensors into a folder, which is made if need be.

        Each file appears as a whole or not at all: what was there stays until the new one is complete.
        Adapters are saved by blasformer.lora; merge them first if they are to be part of the weights.

        Raises OSError if the folder cannot be written to.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            self._stored_name(name): np.ascontiguousarray(
                array.T if self._is_stored_transposed(name) else array
            )
            for name, array in self.parameters().items()
            if ".lora_" not in name
        }
        save_tensors(folder / "model.safetensors", arrays)
        write_file(folder / "config.json", json.dumps(self._config(), indent=2).encode() + b"\n")

    @classmethod
    def from_pretrained(cls: type[Self], folder: PathLike, *, dtype: npt.DTypeLike | None = None) -> Self:
        """The model in a folder: config.json and model.safetensors, or its shards.

        dtype: float32 or float64; None computes in float64 if the weights are stored so, else in float32
            (float16 and bfloat16 are widened exactly)

        Raises FileNotFoundError for a missing file; ValueError for a damaged one (see `io.Checkpoint`), for
        another kind of model, and for missing, unexpected or misshapen tensors, all of which it names.
        """
        folder = Path(folder)
        if not folder.is_dir():
            raise FileNotFoundError(f"{folder} is not a folder")
        file = folder / "config.json"
        config = read_json(file, dict)
        if config.get("model_type") != cls._model_type:
            raise ValueError(
                f"{file}: model_type must be {cls._model_type!r} for {cls.__name__}, "
                f"got {config.get('model_type')!r}"
            )
        with Checkpoint(folder) as checkpoint:
            if dtype is None:
                dtype = np.float64 if "float64" in checkpoint.dtypes.values() else np.float32
            model = cls.__new__(cls)
            try:
                model._allocate({**cls._arguments_of(config), "dtype": float_dtype(dtype).name}, None)
            except MemoryError:
                raise MemoryError(f"{folder}: not enough memory for the sizes in config.json") from None
            except KeyError as error:
                raise ValueError(f"{file} lacks {error.args[0]}") from None
            except (TypeError, ValueError) as error:
                raise ValueError(f"{file}: {error}") from error
            model._read(checkpoint)
        return model

    def _read(self, checkpoint: Checkpoint) -> None:
        """Loads all parameters."""
        live = self.parameters()
        stored = self._names_in(checkpoint, list(live))
        wanted = {
            name: array.shape[::-1] if self._is_stored_transposed(name) else array.shape
            for name, array in live.items()
        }
        found = {name: checkpoint.shapes[stored[name]] for name in stored}
        common = wanted.keys() & found.keys()
        faults = {
            "missing": wanted.keys() - found.keys(),
            "unexpected": found.keys() - wanted.keys(),
            "misshapen": {f"{n} {found[n]} instead of {wanted[n]}" for n in common if found[n] != wanted[n]},
            "not floating point": {n for n in common if checkpoint.dtypes[stored[n]] not in FLOATING},
        }
        text = "; ".join(f"{fault}: {some_names(names)}" for fault, names in faults.items() if names)
        if text:
            raise ValueError(f"{checkpoint.path}: the tensors are not those of the model; {text}")
        self.load_state_dict(
            {
                name: array.T if self._is_stored_transposed(name) else array
                for name, array in ((name, checkpoint.read(stored[name], self.dtype)) for name in live)
            }
        )
