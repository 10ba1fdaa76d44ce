"""Writing checkpoints as the format describes them, so that reading is tested against the format itself."""

import json
import struct
from pathlib import Path

import numpy as np


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def file_bytes(header, data=b"\0" * 8, length=None):
    """A safetensors file: the length of the header in 8 bytes, the header, the data."""
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def save(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """One safetensors file with these tensors."""
    names = {"float64": "F64", "float32": "F32", "float16": "F16", "bfloat16": "BF16", "int64": "I64"}
    header, data = {}, b""
    for name, array in tensors.items():
        end = len(data) + array.nbytes
        header[name] = entry(names[array.dtype.name], array.shape, (len(data), end))
        data += array.tobytes()
    path.write_bytes(file_bytes(header, data))


def save_sharded(folder: Path, *shards: dict[str, np.ndarray]) -> None:
    """A file for each of the shards, and the index that says which file holds what."""
    weight_map = {}
    for number, tensors in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        save(folder / name, tensors)
        weight_map |= dict.fromkeys(tensors, name)
    (folder / "model.safetensors.index.json").write_text(
        json.dumps({"metadata": {}, "weight_map": weight_map})
    )
