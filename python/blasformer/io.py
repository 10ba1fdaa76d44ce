"""Checkpoints as they are published: safetensors files, without PyTorch and without a network.

Files are untrusted: they are parsed by the `safetensors` package and the standard library, checked before
anything is allocated, and read into memory of our own. Pickled checkpoints (.bin, .pt) are refused, because
unpickling a file runs the code in it. What is written appears as a whole or not at all. Needs `pip install
"blasformer[io]"`.
"""

from __future__ import annotations

import json
import os
import secrets
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from types import TracebackType
from typing import Any, TypeAlias, TypeVar

import numpy as np
import numpy.typing as npt

from ._arguments import checked_path, is_masked
from ._dtypes import FLOATING, float_dtype
from ._optional import require_package
from ._state_dicts import array_kind, require_mapping

__all__ = ["Checkpoint", "load_tensors", "save_tensors"]

PathLike: TypeAlias = str | os.PathLike[str]
FloatDType: TypeAlias = npt.DTypeLike
Json = TypeVar("Json", dict[str, Any], list[Any])

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
PICKLED_SUFFIXES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")

# What no honest checkpoint comes near: beyond these, a file is refused before its tensors are looked at.
MAX_TENSORS = 100_000
MAX_RANK = 8
MAX_NAME_LENGTH = 512
MAX_JSON_BYTES = 32 * 2**20

# NumPy's names of the dtypes of the format; what is missing here (8 bits and less, complex) is refused.
DTYPES = {"F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool"}
DTYPES |= {
    f"{letter}{bits}": f"{kind}{bits}"
    for letter, kind in (("I", "int"), ("U", "uint"))
    for bits in (8, 16, 32, 64)
}


class Checkpoint:
    """The tensors of a checkpoint on disk: names, shapes and dtypes at once, values when asked for.

    path: a folder that holds model.safetensors or model.safetensors.index.json, or one of these files itself.

    Opening reads and checks the headers only. `shapes` maps each name to its shape, `dtypes` to the name of
    its dtype in the file, `metadata` names to texts. Use it as a context manager, or `close()` it.

    Raises FileNotFoundError if there is no such file, and ValueError, naming the file and what is wrong with
    it, for a file that is damaged, truncated, hostile or pickled. The shards that an index names must lie in
    its folder (or, in a Hugging Face cache, among the blobs that its snapshot links to).

    >>> from safetensors.numpy import save_file
    >>> save_file({"weight": np.ones((2, 3), np.float16)}, "model.safetensors")
    >>> with Checkpoint("model.safetensors") as checkpoint:
    ...     checkpoint.shapes, checkpoint.dtypes, checkpoint.read("weight", dtype=np.float32).sum()
    ({'weight': (2, 3)}, {'weight': 'float16'}, np.float32(6.0))
    """

    def __init__(self, path: PathLike) -> None:
        self.path = checked_path("path", path)
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = {}
        self._file_of: dict[str, _TensorFile] = {}
        self._files: list[_TensorFile] = []
        try:
            file = _checkpoint_file(self.path)
            if file.suffix == ".json":
                self._open_shards(file)
            else:
                self._open_file(file)
        except BaseException:
            self.close()
            raise

    def _open_file(self, path: Path) -> _TensorFile:
        file = _TensorFile(path)
        self._files.append(file)
        self.metadata.update(file.metadata)
        for name, shape in file.shapes.items():
            if name in self._file_of:
                raise ValueError(f"{path}: tensor {name!r} is also in {self._file_of[name].path.name}")
            self.shapes[name], self.dtypes[name] = shape, file.dtypes[name]
            self._file_of[name] = file
        return file

    def _open_shards(self, index: Path) -> None:
        """Opens the files an index names, and holds them to what it says of them."""
        names_of = _read_index(index)
        for shard in names_of:
            if Path(shard).suffix in PICKLED_SUFFIXES:
                raise ValueError(_pickle_text(index.parent / shard))
        shards = {shard: path_inside(index.parent, shard, named_by=index) for shard in names_of}
        for shard, path in shards.items():
            found = self._open_file(path).shapes.keys()
            if absent := names_of[shard] - found:
                raise ValueError(f"{path}: lacks {some_names(absent)}, which {index.name} says it holds")
            if unlisted := found - names_of[shard]:
                raise ValueError(f"{path}: holds {some_names(unlisted)}, which {index.name} does not say")

    def __repr__(self) -> str:
        return f"Checkpoint({str(self.path)!r}, {len(self.shapes)} tensors)"

    def read(self, name: str, dtype: FloatDType | None = None) -> npt.NDArray[Any]:
        """The tensor of that name, in memory of its own.

        dtype: float32 or float64 to convert floating-point tensors to; None leaves all as they are stored
        (bfloat16 as ml_dtypes.bfloat16). Widening is exact, narrowing rounds once, and a finite value beyond
        the range of dtype is a ValueError. Integer tensors are never converted.
        """
        file = self._file_of.get(name)
        if file is None:
            raise KeyError(f"{self.path} has no tensor {name!r}")
        array = file.read(name)
        if dtype is None or self.dtypes[name] not in FLOATING:
            return array
        target = float_dtype(dtype)
        if array.dtype == target:
            return array
        try:
            with np.errstate(over="raise", under="ignore", invalid="ignore"):
                return array.astype(target)
        except FloatingPointError as error:
            raise ValueError(
                f"{file.path}: tensor {name!r} holds values beyond the range of {target}; read it as float64"
            ) from error

    def close(self) -> None:
        """Closes the files. What has been read stays valid."""
        for file in self._files:
            file.close()
        self._files.clear()
        self._file_of.clear()

    def __enter__(self) -> Checkpoint:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def load_tensors(path: PathLike, *, dtype: FloatDType | None = None) -> dict[str, npt.NDArray[Any]]:
    """All tensors of a checkpoint, by name: what `load_state_dict` of a layer takes.

    path and dtype are those of `Checkpoint` and `Checkpoint.read`. Raises what these raise.

    >>> from safetensors.numpy import save_file
    >>> save_file({"weight": np.ones((2, 3), np.float16)}, "model.safetensors")
    >>> load_tensors("model.safetensors", dtype=np.float32)["weight"].dtype
    dtype('float32')
    """
    with Checkpoint(path) as checkpoint:
        return {name: checkpoint.read(name, dtype) for name in checkpoint.shapes}


def save_tensors(
    path: PathLike, arrays: Mapping[str, npt.NDArray[Any]], *, metadata: Mapping[str, str] | None = None
) -> None:
    """Writes arrays by name into one safetensors file, which PyTorch and transformers read as well.

    metadata: texts by name that the file is to hold besides

    The file appears as a whole or not at all: whoever reads `path` meanwhile, or after a crash, finds what
    was there before or all of the new.

    Raises OSError if it cannot be written, TypeError for arrays of a dtype that the format does not have,
    ValueError for names that could not be read again: longer than 512 characters, or not printable.

    >>> save_tensors("model.safetensors", {"weight": np.ones((2, 3), np.float32)})
    >>> load_tensors("model.safetensors")["weight"].shape
    (2, 3)
    """
    safetensors = require_package("safetensors", extra="io", purpose="writing checkpoints")
    numpy_format = require_package("safetensors.numpy", extra="io", purpose="writing checkpoints")
    file = checked_path("path", path)
    require_mapping("arrays", arrays)
    for name, array in arrays.items():
        if not isinstance(name, str):
            raise TypeError(f"arrays must have names that are strings, got {name!r}")
        if name == "__metadata__":
            raise ValueError(
                "arrays must not have the name '__metadata__', which the format keeps for itself"
            )
        _require_readable_name(file, name)
        known = isinstance(array, np.ndarray) and array.dtype.name in DTYPES.values()
        if not known or is_masked(array):
            wanted = ", ".join(DTYPES.values())
            raise TypeError(f"arrays[{name!r}] must be a NumPy array of {wanted}, got {array_kind(array)}")
    if metadata is not None:
        require_mapping("metadata", metadata, of="texts")
    dense = {  # the package writes the memory of an array from its first element on, whatever its strides are
        name: array if array.flags.c_contiguous else array.copy(order="C") for name, array in arrays.items()
    }

    def write(file: Path) -> None:
        try:  # transformers refuses files that do not say what framework they are of
            numpy_format.save_file(dense, file, metadata={"format": "pt", **(metadata or {})})
        except safetensors.SafetensorError as error:
            raise OSError(f"{path} cannot be written: {error}") from error

    _write_whole(file, write)


def write_file(path: Path, content: bytes) -> None:
    """Writes a file that appears as a whole or not at all."""
    _write_whole(path, lambda file: file.write_bytes(content))


def _write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Calls write(a file beside `path`), which then takes the place of `path`."""
    scratch = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        write(scratch)
        _flush(scratch)
        os.replace(scratch, path)
    except BaseException:
        scratch.unlink(missing_ok=True)
        raise
    _flush(path.parent)


def _flush(path: Path) -> None:
    """Brings a file, or the names in a folder, from the caches of the system onto the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def some_names(names: Collection[str], limit: int = 20) -> str:
    """Names for an error text, sorted: all of them, unless there are more than anybody reads."""
    text = ", ".join(sorted(names)[:limit])
    return text if len(names) <= limit else f"{text} and {len(names) - limit} more"


def read_json(path: Path, kind: type[Json]) -> Json:
    """The JSON object (kind=dict) or array (kind=list) in a file; ValueError, naming the file, otherwise."""
    require_regular_file(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise ValueError(f"{path} must have at most {MAX_JSON_BYTES} bytes, got {path.stat().st_size}")
    try:
        value = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}") from error
    if not isinstance(value, kind):
        wanted = {dict: "object", list: "array"}[kind]
        raise ValueError(f"{path} must hold a JSON {wanted}, got {type(value).__name__}")
    return value


def existing_folder(folder: PathLike) -> Path:
    """That of a model, which some know by a name that other packages would fetch it by."""
    path = checked_path("folder", folder)
    if not path.is_dir():
        raise FileNotFoundError(
            f"{path} is not a folder: models are read from where they lie, none is fetched"
        )
    return path


def require_regular_file(path: Path) -> None:
    """A pipe would block, a device would never end."""
    if not path.exists():
        raise FileNotFoundError(f"{path} does not exist")
    if not path.is_file():
        raise ValueError(f"{path} must be a regular file")


def path_inside(folder: Path, relative: str, named_by: Path) -> Path:
    """Where the file `relative` lies that `named_by` names; it may name nothing outside its folder."""
    shown = relative[:MAX_NAME_LENGTH]
    if Path(relative).is_absolute() or ".." in Path(relative).parts:
        raise ValueError(f"{named_by}: {shown!r} must be the name of a file in the same folder")
    folder = folder.resolve()
    allowed = [folder]
    if folder.parent.name == "snapshots":  # a Hugging Face cache: snapshots/<revision>/ links to blobs/
        allowed.append(folder.parent.parent / "blobs")
    try:
        path = (folder / relative).resolve(strict=True)
    except FileNotFoundError:
        raise FileNotFoundError(f"{folder / relative} does not exist, but {named_by.name} names it") from None
    except (
        OSError,
        RuntimeError,
        ValueError,
    ) as error:  # a loop of links, a name the file system cannot have
        raise ValueError(f"{named_by}: {shown!r} cannot be opened: {error}") from error
    if not any(path.is_relative_to(root) for root in allowed):
        raise ValueError(f"{named_by}: {shown!r} is a link that leaves the folder")
    return folder / relative


class _TensorFile:
    """One open safetensors file."""

    def __init__(self, path: Path) -> None:
        require_regular_file(path)
        safetensors = require_package("safetensors", extra="io", purpose="reading checkpoints")
        self.path = path
        self._error = safetensors.SafetensorError
        try:
            # "pread" reads into memory of our own: a file that shrinks while mapped would kill the process.
            self._handle = safetensors.safe_open(path, framework="np", backend="pread")
        except self._error as error:
            raise ValueError(
                f"{path} is not a valid safetensors file, or is damaged or truncated: {error}"
            ) from error
        self.shapes: dict[str, tuple[int, ...]] = {}
        self.dtypes: dict[str, str] = {}
        self.metadata: dict[str, str] = self._handle.metadata() or {}
        self._read_header()

    def _read_header(self) -> None:
        names = list(self._handle.keys())
        if len(names) > MAX_TENSORS:
            raise ValueError(f"{self.path} must hold at most {MAX_TENSORS} tensors, got {len(names)}")
        for name in names:
            _require_readable_name(self.path, name)
            header = self._handle.get_slice(name)
            shape, stored = tuple(header.get_shape()), header.get_dtype()
            if len(shape) > MAX_RANK:
                raise ValueError(
                    f"{self.path}: tensor {name!r} must have at most {MAX_RANK} dimensions, got {len(shape)}"
                )
            if stored not in DTYPES:
                raise ValueError(
                    f"{self.path}: tensor {name!r} is stored as {stored}, which is not read; "
                    f"only {', '.join(DTYPES)} are"
                )
            self.shapes[name], self.dtypes[name] = shape, DTYPES[stored]

    def read(self, name: str) -> npt.NDArray[Any]:
        if self.dtypes[name] == "bfloat16":
            require_package("ml_dtypes", extra="io", purpose="reading bfloat16 tensors")
        try:
            array: npt.NDArray[Any] = self._handle.get_tensor(name)
        except (self._error, OSError, ValueError) as error:
            raise ValueError(f"{self.path}: tensor {name!r} cannot be read: {error}") from error
        return array

    def close(self) -> None:
        self._handle.__exit__(None, None, None)


def _checkpoint_file(path: Path) -> Path:
    """The file that `path` means: itself, or the checkpoint in that folder."""
    if not path.is_dir():
        if path.suffix in PICKLED_SUFFIXES:
            raise ValueError(_pickle_text(path))
        if not path.exists():
            raise FileNotFoundError(f"{path} does not exist")
        return path
    for name in (SINGLE_FILE, INDEX_FILE):
        if (path / name).exists():
            return path / name
    pickled = sorted(file for file in path.iterdir() if file.suffix in PICKLED_SUFFIXES)
    if pickled:
        raise ValueError(_pickle_text(pickled[0]))
    raise FileNotFoundError(f"{path} holds neither {SINGLE_FILE} nor {INDEX_FILE}")


def _pickle_text(path: Path) -> str:
    return (
        f"{path} is a pickled checkpoint, which can run any code when it is opened: it is not read. "
        f"Convert it to {SINGLE_FILE} where you trust it."
    )


def _require_readable_name(path: Path, name: str) -> None:
    if len(name) > MAX_NAME_LENGTH or not name.isprintable():
        raise ValueError(
            f"{path}: the name of a tensor must be at most {MAX_NAME_LENGTH} printable characters, "
            f"got {len(name)}: {name[:40]!r}"
        )


def _read_index(index: Path) -> dict[str, set[str]]:
    """The tensor names that an index assigns to each of its files."""
    weight_map = read_json(index, dict).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ValueError(f"{index} must hold a JSON object 'weight_map' of tensor names and file names")
    if len(weight_map) > MAX_TENSORS:
        raise ValueError(f"{index} must name at most {MAX_TENSORS} tensors, got {len(weight_map)}")
    names_of: dict[str, set[str]] = {}
    for name, shard in weight_map.items():
        _require_readable_name(index, name)
        if not isinstance(shard, str):
            raise ValueError(f"{index}: the file of tensor {name!r} must be a string, got {shard!r}")
        names_of.setdefault(shard, set()).add(name)
    return names_of
