"""The one direction of dependencies: core <- kernels <- layers <- models <- bindings."""

import re
from pathlib import Path

import pytest

CPP = Path(__file__).parent.parent / "cpp"
FLOORS = ["core", "kernels", "layers", "models", "bindings"]
SOURCES = sorted(path for suffix in ("h", "cpp") for path in CPP.rglob(f"*.{suffix}"))


def includes(source: Path) -> list[str]:
    return re.findall(r'^#include ["<](.+)[">]', source.read_text(), re.MULTILINE)


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: str(path.relative_to(CPP)))
def test_a_source_includes_only_its_own_floor_and_those_below(source: Path) -> None:
    floor = FLOORS.index(source.relative_to(CPP).parts[0])
    for header in includes(source):
        folder = header.partition("/")[0]
        if (CPP / header).exists():
            assert FLOORS.index(folder) <= floor, header
        if folder in ("pybind11", "Python.h", "numpy"):
            assert FLOORS[floor] == "bindings", header


def test_vector_instructions_are_used_only_where_they_are_compiled_for() -> None:
    users = {source for source in SOURCES if {"immintrin.h", "kernels/isa/simd.h"} & set(includes(source))}
    folders = {source.parent.relative_to(CPP) for source in users if source.name != "denormals.h"}
    assert folders == {Path("kernels/isa"), Path("kernels/tiles")}


def test_the_interpreter_lock_is_released_only_in_the_way_that_survives_its_end() -> None:
    releasing = [source for source in SOURCES if "gil_scoped_release" in source.read_text()]
    assert [source.name for source in releasing] in ([], ["gil.h"])
