"""One library in a process of its own: answers the requests of against.py, one JSON object per line."""

from __future__ import annotations

import dataclasses
import itertools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cases import BY_NAME
from formulas import Arrays
from libraries import LIBRARIES, Unsupported
from peers import PEERS
from scaling_cases import SCALING_BY_NAME
from training_cases import BATCHES, TRAINING_BY_NAME, TrainingCase
from training_libraries import TRAINERS, Trainer

CLOCKS = {"wall": time.perf_counter, "cpu": time.process_time}

# A sample spans at least this long, so that reading the clock does not count: several calls of a tiny case.
SHORTEST_SAMPLE = 50e-6
# Steps after which the memory of training does not grow any more.
STEPS_FOR_MEMORY = 3


class Worker:
    def __init__(self, library: str) -> None:
        self.name = library
        self.timed = (LIBRARIES | PEERS)[library]()
        self.case = None
        self.call: Callable[[], tuple] = lambda: ()

    def describe(self) -> dict:
        return {"version": self.timed.version()}

    def truth(self, name: str, results: str) -> dict:
        np.savez(results, **BY_NAME[name].truth())
        return {}

    def prepare(self, name: str, results: str) -> dict:
        """Makes the inputs, calls once, and writes the compared sample of the results into a file."""
        self.case = (BY_NAME | SCALING_BY_NAME)[name]
        self.call = lambda: ()  # the arrays of the case before go
        try:
            prepared = getattr(self.timed, self.case.kind, None)
            if prepared is None:
                raise Unsupported(f"no {self.case.kind.replace('_', ' ')}")
            self.timed.check(self.case)
            self.call = prepared(self.case, self.case.inputs())
            with self.timed.context(self.case):
                start = time.perf_counter()
                arrays = self.call()
                seconds = time.perf_counter() - start
        except Unsupported as reason:
            return {"unsupported": str(reason)}
        if self.case.comparable():
            results_of_call = map(self.timed.array, arrays)
            named = dict(zip(self.case.results, results_of_call, strict=True))
            np.savez(results, **self.case.sample(named))
        return {"first_call": seconds}

    def peak_memory_of_call(self, name: str) -> dict:
        """Bytes that the first call takes at most, result included, above what the library has after a tiny
        one, the inputs and the weights. To be asked of a process that has done nothing else."""
        case = SCALING_BY_NAME[name]
        with self.timed.context(case):
            tiny = dataclasses.replace(case, batch=1, length=2)
            getattr(self.timed, case.kind)(tiny, tiny.inputs())()
            call = getattr(self.timed, case.kind)(case, case.inputs())
            base = memory("VmRSS")
            forget_peak_memory()
            call()
        return {"bytes": memory("VmHWM") - base}

    def measure(self, seconds: float, least_samples: int, clock: str) -> dict:
        """Calls for that long after one untimed call; returns the seconds per call of each sample."""
        now = CLOCKS[clock]
        with self.timed.context(self.case):
            self.call()
            start = now()
            self.call()
            taken = now() - start
            repeats = max(1, int(SHORTEST_SAMPLE / max(taken, 1e-7)))
            samples = [taken] if repeats == 1 else []
            end = time.perf_counter() + seconds
            while len(samples) < least_samples or time.perf_counter() < end:
                start = now()
                for _ in range(repeats):
                    self.call()
                samples.append((now() - start) / repeats)
        return {"samples": samples}

    # ---- Training

    def trainer(self, case: TrainingCase, state: Arrays | None, **options: str) -> Trainer:
        return TRAINERS[self.name][case.kind](case, state, **options)

    def true_gradients(self, name: str, results: str) -> dict:
        """Writes the gradients of the first batch, in float64."""
        case = TRAINING_BY_NAME[name]
        trainer = self.trainer(case, case.state(), dtype="float64")
        np.savez(results, **trainer.gradients(case.batches(1)[0]))
        return {}

    def prepare_training(self, name: str, results: str) -> dict:
        """Writes the gradients of the first batch; from now on a call is a step."""
        self.case = case = TRAINING_BY_NAME[name]
        trainer = self.trainer(case, case.state())
        batches = case.batches(BATCHES)
        if not case.dropout:
            np.savez(results, **trainer.gradients(batches[0]))
        turns = itertools.cycle(batches)
        self.call = lambda: trainer.step(next(turns))
        return {}

    def losses(self, name: str, steps: int) -> dict:
        case = TRAINING_BY_NAME[name]
        trainer = self.trainer(case, case.state())
        return {"losses": [trainer.step(batch) for batch in case.batches(steps)]}

    def peak_memory(self, name: str) -> dict:
        """Bytes that weights, optimiser and some steps take at most, above what the library has at work on
        something tiny. To be asked of a process that has done nothing else."""
        case = TRAINING_BY_NAME[name]
        smallest = case.smallest()
        trainer = self.trainer(smallest, None)
        for batch in smallest.batches(STEPS_FOR_MEMORY):
            trainer.step(batch)
        batches = case.batches(STEPS_FOR_MEMORY)
        base = memory("VmRSS")
        forget_peak_memory()
        trainer = self.trainer(case, None)
        for batch in batches:
            trainer.step(batch)
        return {"bytes": memory("VmHWM") - base}


def memory(name: str) -> int:
    return 1024 * int(re.search(rf"{name}:\s*(\d+) kB", Path("/proc/self/status").read_text())[1])


def forget_peak_memory() -> None:
    Path("/proc/self/clear_refs").write_text("5")


def main() -> None:
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    sys.stdout = sys.stderr  # whatever a library prints is not an answer
    worker = Worker(sys.argv[1])
    for line in sys.stdin:
        request = json.loads(line)
        try:
            answer = getattr(worker, request.pop("request"))(**request)
        except Exception:
            answer = {"error": traceback.format_exc()}
        print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
