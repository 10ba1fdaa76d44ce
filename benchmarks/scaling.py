"""Times this package and PyTorch as the work grows, and looks for cliffs; draws and prints what it finds.

    python benchmarks/scaling.py --quick --torch-python ~/venv-torch/bin/python

benchmarks/README.md tells what is checked.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from itertools import pairwise
from pathlib import Path

from against import ISA_VARIABLES, QUICK, Effort, Process, Timing, cpu_name, environment_of, measure, table
from scaling_cases import PAIRS, POINTS, QUICK_LENGTH, Pair, Point

LIBRARIES = ("blasformer", "pytorch")
THOROUGH = Effort(rounds=3, seconds=0.1, least_samples=1)
# How much longer two threads may take than one: what cannot be told from noise.
THREADS_LIMIT = 1.05
# Bytes that a call may take for each byte that a call of half the length takes, from this length on.
MEMORY_LIMIT = 2.2
MEMORY_FROM = 4096
AXES = tuple(dict.fromkeys(point.axis for point in POINTS))

Timings = dict[tuple[str, int], Timing]  # by library and threads


@dataclasses.dataclass(frozen=True)
class Check:
    what: str
    measured: float
    limit: float

    @property
    def passed(self) -> bool:
        return self.measured <= self.limit


def timed(point: Point, processes: dict[tuple[str, int], Process], arguments: argparse.Namespace) -> Timings:
    timings: Timings = {}
    for (library, threads), process in processes.items():
        answer = process.ask("prepare", name=point.case.name, results=os.devnull)
        timings[library, threads] = Timing(first_call=answer["first_call"])
    effort = QUICK if arguments.quick else THOROUGH
    for threads in arguments.threads:
        measure(
            [processes[library, threads] for library in LIBRARIES],
            {library: timings[library, threads] for library in LIBRARIES},
            effort,
            arguments.clock,
        )
    return timings


def measure_memory(
    point: Point, processes: dict[tuple[str, int], Process], timings: Timings, threads: int
) -> None:
    if point.axis.startswith(("length", "layer")):
        for library in LIBRARIES:
            fresh = processes[library, threads].again()
            timings[library, threads].peak_memory = fresh.ask("peak_memory_of_call", name=point.case.name)[
                "bytes"
            ]
            fresh.end()


def cost(measured: dict[tuple[str, int], Timings], axis: str, x: int, who: tuple[str, int]) -> float:
    """Seconds for each floating-point operation."""
    case = next(point.case for point in POINTS if (point.axis, point.x) == (axis, x))
    return measured[axis, x][who].least / case.flops


def checks(measured: dict[tuple[str, int], Timings], threads: list[int]) -> list[Check]:
    """Of ours alone."""
    found = []
    for pair in PAIRS:
        if (pair.axis, pair.first) in measured and (pair.axis, pair.second) in measured:
            for count in threads:
                found.append(check_of_pair(pair, measured, count))
    for (axis, x), timings in measured.items():
        for fewer, more in pairwise(threads):
            ratio = timings["blasformer", more].least / timings["blasformer", fewer].least
            found.append(Check(f"{axis} {x}: time on {more} threads / on {fewer}", ratio, THREADS_LIMIT))
        half = measured.get((axis, x // 2))
        if half is not None and x % 2 == 0 and x // 2 >= MEMORY_FROM and axis.startswith("length"):
            most = "blasformer", max(threads)
            ratio = timings[most].peak_memory / max(half[most].peak_memory, 1)
            found.append(Check(f"{axis} {x}: memory / at {x // 2}", ratio, MEMORY_LIMIT))
    return found


def check_of_pair(pair: Pair, measured: dict[tuple[str, int], Timings], threads: int) -> Check:
    who = "blasformer", threads
    ratio = cost(measured, pair.axis, pair.second, who) / cost(measured, pair.axis, pair.first, who)
    what = f"{pair.axis} {pair.second}: time per operation / at {pair.first}, {threads} threads"
    return Check(what, ratio, pair.limit)


# ---- What is shown


def axis_table(axis: str, measured: dict[tuple[str, int], Timings]) -> str:
    rows = []
    for (at, x), timings in measured.items():
        if at != axis:
            continue
        cells = [str(x), *(f"{timing.least * 1e3:.3g}" for timing in timings.values())]
        cells += [
            "-" if timing.peak_memory is None else f"{timing.peak_memory / 2**20:.1f}"
            for (_, threads), timing in timings.items()
            if threads == max(count for _, count in timings)
        ]
        rows.append(cells)
    some = next(timings for (at, _), timings in measured.items() if at == axis)
    header = [axis, *(f"{library} ms, {threads} thr" for library, threads in some)]
    return table([*header, *(f"{library} MiB" for library in LIBRARIES)], rows)


def draw(axis: str, measured: dict[tuple[str, int], Timings], folder: Path) -> None:
    """Times, and peak memory where it was taken."""
    from matplotlib.figure import Figure

    points = [(x, timings) for (at, x), timings in measured.items() if at == axis]
    has_memory = any(timing.peak_memory is not None for _, timings in points for timing in timings.values())
    figure = Figure(figsize=(9 if has_memory else 4.5, 3.6), layout="constrained")
    panels = figure.subplots(1, 2 if has_memory else 1, squeeze=False)[0]
    styles = {"blasformer": "C0", "pytorch": "C1"}
    for library, threads in points[0][1]:
        panels[0].plot(
            [x for x, _ in points],
            [timings[library, threads].least * 1e3 for _, timings in points],
            color=styles[library],
            linestyle="-" if threads == max(count for _, count in points[0][1]) else "--",
            marker=".",
            markersize=4,
            label=f"{library}, {threads} {'threads' if threads > 1 else 'thread'}",
        )
    panels[0].set(xlabel=axis, ylabel="ms per call", xscale="log", yscale="log")
    panels[0].legend(fontsize="small")
    if has_memory:
        for library in LIBRARIES:
            memory = [
                (x, timing.peak_memory / 2**20)
                for x, timings in points
                for (name, _), timing in timings.items()
                if name == library and timing.peak_memory is not None
            ]
            panels[1].plot(
                *zip(*memory, strict=True), color=styles[library], marker=".", markersize=4, label=library
            )
        panels[1].set(xlabel=axis, ylabel="MiB at most during a call", xscale="log", yscale="symlog")
        panels[1].set_ylim(bottom=0)
        panels[1].legend(fontsize="small")
    for panel in panels:
        panel.grid(alpha=0.3)
    name = axis.replace(":", "").replace(",", "").replace("+", "-").replace(" ", "-")
    figure.savefig(folder / f"{name}.png", dpi=80)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--quick", action="store_true", help=f"lengths to {QUICK_LENGTH}, less exactly")
    parser.add_argument(
        "--axes", type=lambda text: text.split(";"), default=list(AXES), help=f"of {'; '.join(AXES)}"
    )
    parser.add_argument("--threads", type=lambda text: [int(n) for n in text.split(",")], default=[1, 2])
    parser.add_argument("--isa", choices=list(ISA_VARIABLES), help="as for against.py")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: with --threads 1")
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with PyTorch")
    parser.add_argument("--plots", type=Path, default=Path(__file__).with_name("plots"), help="a folder")
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    arguments = parser.parse_args()
    for axis in arguments.axes:
        if axis not in AXES:
            parser.error(f"--axes must be of {'; '.join(AXES)}, got {axis}")
    if arguments.clock == "cpu" and arguments.threads != [1]:
        parser.error("--clock cpu needs --threads 1: it adds up the time of all threads")
    return arguments


def main() -> None:
    arguments = parse_arguments()
    longest = QUICK_LENGTH + 1 if arguments.quick else max(point.x for point in POINTS)
    points = [point for point in POINTS if point.axis in arguments.axes and point.x <= longest]
    pythons = {"blasformer": sys.executable, "pytorch": arguments.torch_python}
    processes: dict[tuple[str, int], Process] = {}
    measured: dict[tuple[str, int], Timings] = {}
    try:
        for threads in arguments.threads:
            for library in LIBRARIES:
                environment = environment_of(threads, arguments.isa)
                processes[library, threads] = Process(library, pythons[library], environment)
        versions = ", ".join(process.version for process in processes.values() if process)
        print(f"- CPU: {cpu_name()}\n- versions: {versions}\n- load before: {os.getloadavg()[0]:.2f}")
        for number, point in enumerate(points, 1):
            print(f"time {number}/{len(points)}: {point.case.name}", file=sys.stderr, flush=True)
            measured[point.axis, point.x] = timed(point, processes, arguments)
        for number, point in enumerate(points, 1):
            print(f"memory {number}/{len(points)}: {point.case.name}", file=sys.stderr, flush=True)
            timings = measured[point.axis, point.x]
            measure_memory(point, processes, timings, max(arguments.threads))
    finally:
        for process in processes.values():
            process.end()
    arguments.plots.mkdir(exist_ok=True)
    for axis in arguments.axes:
        print(f"\n### {axis}\n\n{axis_table(axis, measured)}", flush=True)
        if sum(at == axis for at, _ in measured) > 2:
            draw(axis, measured, arguments.plots)
    found = checks(measured, arguments.threads)
    failed = [check for check in found if not check.passed]
    print(f"\n### checks\n\n{len(found) - len(failed)} of {len(found)} hold.\n")
    for check in failed:
        print(f"- {check.what}: {check.measured:.2f}, more than {check.limit:.2f}")
    if arguments.json:
        content = {
            "CPU": cpu_name(),
            "points": [
                {"axis": axis, "x": x, "library": library, "threads": threads, **vars(timing)}
                for (axis, x), timings in measured.items()
                for (library, threads), timing in timings.items()
            ],
            "checks": [{**vars(check), "passed": check.passed} for check in found],
        }
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
