"""Makes a Python whose ONNX Runtime takes the CPU for one without AVX-512: it has no setting for that.

    python benchmarks/held_to_avx2.py ~/venv-torch/bin/python ~/held-to-avx2
    python benchmarks/against.py --isa avx2 --libraries blasformer,pytorch,onnxruntime,ctranslate2 \\
        --torch-python ~/venv-torch/bin/python --peers-python ~/held-to-avx2/python

ONNX Runtime chooses its kernels by the instruction CPUID, which not every machine can keep from a program.
So the folder gets a copy of the package in which each CPUID is an undefined instruction, a library that
answers in its place (held_to_avx2.c), and a script `python` that starts the interpreter with both. Needs
objdump and readelf (binutils) and a C compiler.
"""

from __future__ import annotations

import argparse
import re
import shlex
import shutil
import subprocess
from pathlib import Path

SOURCE = Path(__file__).with_suffix(".c")
CPUID, UNDEFINED = b"\x0f\xa2", b"\x0f\x0b"


def output_of(*command: str) -> str:
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def replace_cpuid(library: Path) -> int:
    """How many there were."""
    sections = [
        tuple(int(number, 16) for number in match)
        for match in re.findall(
            r"PROGBITS\s+([0-9a-f]+)\s+([0-9a-f]+)\s+([0-9a-f]+)", output_of("readelf", "-SW", str(library))
        )
    ]
    code = bytearray(library.read_bytes())
    listing = output_of("objdump", "-d", "--no-show-raw-insn", str(library))
    places = [int(place, 16) for place in re.findall(r"^\s*([0-9a-f]+):\s+cpuid", listing, re.MULTILINE)]
    for place in places:
        address, offset, _ = next(s for s in sections if s[0] <= place < s[0] + s[2])
        begin = place - address + offset
        if code[begin : begin + 2] != CPUID:
            raise ValueError(f"{library} must have CPUID at {place:#x}, got {code[begin : begin + 2].hex()}")
        code[begin : begin + 2] = UNDEFINED
    library.write_bytes(code)
    return len(places)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("python", help="an interpreter with onnxruntime")
    parser.add_argument("folder", type=Path, help="to be made")
    arguments = parser.parse_args()
    folder = arguments.folder.resolve()
    code = "import pathlib, onnxruntime; print(pathlib.Path(onnxruntime.__file__).parent)"
    package = output_of(arguments.python, "-c", code).strip()
    shutil.copytree(package, folder / "onnxruntime")
    for library in sorted((folder / "onnxruntime" / "capi").glob("*.so*")):
        print(f"{library.name}: {replace_cpuid(library)} times CPUID")
    answers = folder / "held_to_avx2.so"
    subprocess.run(["cc", "-O2", "-shared", "-fPIC", "-o", str(answers), str(SOURCE)], check=True)
    script = folder / "python"
    preload = f'LD_PRELOAD={shlex.quote(str(answers))}"${{LD_PRELOAD:+ $LD_PRELOAD}}"'
    path = f'PYTHONPATH={shlex.quote(str(folder))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    script.write_text(
        f'#!/bin/sh\nHELD_TO_AVX2=1 {path} {preload} exec {shlex.quote(arguments.python)} "$@"\n'
    )
    script.chmod(0o755)


if __name__ == "__main__":
    main()
