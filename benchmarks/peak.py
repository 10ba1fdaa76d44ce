"""The most this machine can do, measured in the same run as the libraries: peak.c, compiled on the spot."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).with_name("peak.c")
# Vectors as wide as the libraries may use.
TARGETS = {"avx2": "x86-64-v3"}


class Peak:
    """`rates`: the largest so far of float32 and float64, in GF/s, and of bandwidth, in GB/s."""

    def __init__(self, program: Path, threads: int) -> None:
        self.command = [str(program), str(threads)]
        self.rates: dict[str, float] = {}
        self.measure()

    def measure(self) -> None:
        done = subprocess.run(self.command, check=True, capture_output=True, text=True)
        for name, rate in json.loads(done.stdout).items():
            self.rates[name] = max(rate, self.rates.get(name, 0))

    def share(self, *, flops: float | None, bytes_read: int | None, dtype: str, seconds: float) -> str:
        """In percent of the bandwidth (b) where reading is the work, else of the multiply-adds of the dtype;
        of float32's for bfloat16."""
        if bytes_read:
            return f"{100 * bytes_read / seconds * 1e-9 / self.rates['bandwidth']:.0f} % b"
        if flops:
            rate = self.rates["float64" if dtype == "float64" else "float32"]
            return f"{100 * flops / seconds * 1e-9 / rate:.0f} %"
        return "-"

    def __str__(self) -> str:
        return "{float32:.0f} GF/s float32, {float64:.0f} GF/s float64, {bandwidth:.0f} GB/s".format(
            **self.rates
        )


@contextlib.contextmanager
def compiled(threads: int, isa: str | None) -> Iterator[Peak | None]:
    """None where no C compiler is, or it cannot compile this."""
    compiler = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    with tempfile.TemporaryDirectory() as folder:
        program = Path(folder, "peak")
        options = ["-O2", f"-march={TARGETS.get(isa or '', 'native')}", "-pthread", "-o", str(program)]
        if compiler is None or subprocess.run([compiler, *options, str(SOURCE)], check=False).returncode != 0:
            yield None
            return
        yield Peak(program, threads)
