"""Checkpoints of training: one safetensors file each, which is there as a whole or not at all.

A file step-000001234.safetensors holds named arrays, and one JSON object in its metadata.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from ._arguments import checked_path
from ._attention import Array
from ._optional import require_package
from .io import Checkpoint, PathLike, save_tensors

FORMAT = "blasformer 1"
NAME = re.compile(r"step-(\d{9,})\.safetensors")


class TrainingState(NamedTuple):
    """Everything that training continues from."""

    arrays: dict[str, Array]
    values: dict[str, Any]  # what JSON can hold


class CheckpointFolder:
    """The checkpoints of one training run.

    keep: how many of the newest files stay
    """

    def __init__(self, folder: PathLike, keep: int) -> None:
        require_package("safetensors", extra="io", purpose="writing checkpoints")
        self.folder, self.keep = checked_path("checkpoint", folder), keep

    def prepare(self) -> None:
        """Makes the folder, removes what a killed process left half-written, and finds out at once, not hours
        later, if nothing can be written there."""
        self.folder.mkdir(parents=True, exist_ok=True)
        for remnant in self.folder.glob(".step-*.safetensors.*"):
            remnant.unlink(missing_ok=True)
        trial = self.folder / f".step-trial.safetensors.{os.urandom(8).hex()}"
        trial.touch(exist_ok=False)
        trial.unlink()

    def newest(self) -> Path | None:
        """The file of the latest step."""
        files = _files_of(self.folder)
        return files[-1] if files else None

    def save(self, step: int, state: TrainingState) -> Path:
        """Raises OSError if the file cannot be written; then those of before are still there."""
        path = self.folder / f"step-{step:09d}.safetensors"
        save_tensors(path, state.arrays, metadata={"training": FORMAT, "state": json.dumps(state.values)})
        for old in _files_of(self.folder)[: -self.keep]:
            old.unlink(missing_ok=True)
        return path


def _files_of(folder: Path) -> list[Path]:
    """The checkpoints in a folder, the earliest first."""
    found = {}
    for path in folder.iterdir() if folder.is_dir() else ():
        if match := NAME.fullmatch(path.name):
            found[int(match[1])] = path
    return [found[step] for step in sorted(found)]


def read_training_state(path: PathLike) -> TrainingState:
    """What a file, or the newest one in a folder, holds.

    Raises FileNotFoundError if there is none, ValueError if it is damaged or something else.
    """
    file = checked_path("path", path)
    if file.is_dir():
        files = _files_of(file)
        if not files:
            raise FileNotFoundError(f"{path} holds no checkpoint of training, step-*.safetensors")
        file = files[-1]
    with Checkpoint(file) as checkpoint:
        if checkpoint.metadata.get("training") != FORMAT:
            raise ValueError(f"{file} is not a checkpoint of training that this version can read")
        try:
            values = json.loads(checkpoint.metadata["state"])
        except (KeyError, ValueError, RecursionError) as error:
            raise ValueError(f"{file} is damaged: its state is not valid JSON") from error
        return TrainingState({name: checkpoint.read(name) for name in checkpoint.shapes}, values)


def part(arrays: Mapping[str, Array], prefix: str) -> dict[str, Array]:
    """The arrays whose names begin so, by the rest of their names."""
    return {name.removeprefix(prefix): array for name, array in arrays.items() if name.startswith(prefix)}
