"""The command `blasformer`, also `python -m blasformer`."""

from __future__ import annotations

import argparse
import json
import math
import os
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeAlias

import numpy as np
from numpy.typing import NDArray

from . import __version__, _core

if TYPE_CHECKING:
    from ._compare import Measurement, Prepare

Array: TypeAlias = NDArray[Any]

# Arrays of the user's own are refused when the float64 formula would hold more than this for their scores.
LARGEST_SCORES = 2**30

# The arguments of scaled_dot_product_attention that have an option of that name.
OWN_ARGUMENTS = ("causal", "query_offset", "window", "key_lengths", "mask", "bias", "scale")


class CommandError(Exception):
    """What the user gave cannot be used. The text is the one line they see; the exit status is 2."""


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, without repeating how the command is called."""

    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} ({self.prog} --help tells more)\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    options = _parser().parse_args(arguments or ["compare"])
    try:
        status: int = options.run(options)
        sys.stdout.flush()
    except CommandError as error:
        print(f"blasformer {options.command}: error: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough: `blasformer compare | head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return 130
    return status


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="blasformer",
        description="Exact attention and Transformer layers for NumPy arrays, on a CPU.",
        epilog="""Without a command: compare. Exit status: 0 all is right, 1 a result is off, 2 the
        command cannot be carried out.""",
    )
    parser.add_argument("--version", action="version", version=f"blasformer {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)

    compare = commands.add_parser(
        "compare",
        usage="""%(prog)s [-h] [--json] [QUERY KEY VALUE [--causal] [--query-offset N]
                          [--window LEFT RIGHT] [--key-lengths N,N,...] [--mask FILE]
                          [--bias FILE] [--scale X]]""",
        help="check every operation against float64 NumPy, time it against float32 NumPy",
        description="""Without arrays: every operation on inputs of realistic shapes, in less than a
        minute. With arrays: attention and its gradients on yours, QUERY (..., heads, length, dim), KEY
        and VALUE (..., key heads, key length, dim), written by numpy.save, in float32, float64 or
        float16.""",
        epilog="""A result is right if its error is at most 2 * NumPy's error (3 * for gradients) + 1e-6.
        An error is the largest difference from the formula in float64 NumPy, relative to the largest
        magnitude; NumPy's error and time are those of the formula in float32. For float64 results: the
        formula in longdouble, in float64, and 2e-15 instead of 1e-6. Exit status: 0 all is right, 1
        something is off, 2 the command cannot be carried out.""",
    )
    compare.add_argument("arrays", nargs="*", metavar="QUERY KEY VALUE", help="three .npy files of your own")
    compare.add_argument(
        "--json",
        action="store_true",
        help="print JSON instead of a table; an error that is not finite is null",
    )
    own = compare.add_argument_group("for arrays of your own")
    own.add_argument("--causal", action="store_true", help="query i sees the keys up to i, its own position")
    own.add_argument(
        "--query-offset", type=int, metavar="N", help="the position of query i among the keys is i + N"
    )
    own.add_argument(
        "--window",
        type=int,
        nargs=2,
        metavar=("LEFT", "RIGHT"),
        help="keys seen on each side of that position",
    )
    own.add_argument(
        "--key-lengths", type=_integers, metavar="N,N,...", help="valid keys of each sequence of the batch"
    )
    own.add_argument(
        "--mask", metavar="FILE", help=".npy of bool, True = may attend; broadcasts to the scores"
    )
    own.add_argument("--bias", metavar="FILE", help=".npy of the arrays' dtype, added to the scaled scores")
    own.add_argument("--scale", type=float, metavar="X", help="of the scores (default: 1 / sqrt(dim))")
    compare.set_defaults(run=_compare)

    info = commands.add_parser(
        "info",
        help="show version, BLAS, instruction sets and threads",
        description="Shows version, BLAS, instruction sets and threads, as blasformer.show_config() does.",
    )
    info.set_defaults(run=_info)

    embed = commands.add_parser(
        "embed",
        help="turn each line of a text file into a vector",
        description="""Turns each line of a text file into a vector and saves them as an array, row i for
        line i, that numpy.load reads. Needs the packages that pip install 'blasformer[text]' adds.""",
    )
    embed.add_argument(
        "folder",
        metavar="FOLDER",
        help="a sentence encoder as published: config.json, model.safetensors, tokenizer.json, ...",
    )
    embed.add_argument("file", metavar="FILE", type=Path, help="UTF-8 text, a sentence or paragraph per line")
    embed.add_argument("-o", "--output", metavar="OUT", type=Path, help="default: FILE with the suffix .npy")
    embed.add_argument(
        "--batch-size", type=int, default=32, metavar="N", help="lines at a time (default: 32)"
    )
    embed.set_defaults(run=_embed)
    return parser


def _integers(text: str) -> list[int]:
    try:
        return [int(part) for part in text.split(",")]
    except ValueError:
        raise argparse.ArgumentTypeError(f"must be integers with commas between them, got {text!r}") from None


def _info(_: argparse.Namespace) -> int:
    from . import show_config

    show_config()
    return 0


def _compare(options: argparse.Namespace) -> int:
    from ._compare import CASES, measure

    start = time.perf_counter()
    if options.arrays:
        groups = _own_cases(options)
    else:
        groups = CASES
        for name in OWN_ARGUMENTS:
            if getattr(options, name) is not None and getattr(options, name) is not False:
                raise CommandError(f"--{name.replace('_', '-')} needs arrays of your own: QUERY KEY VALUE")
    count = sum(len(cases) for cases in groups.values())
    width = max(len(name) for cases in groups.values() for name in cases)
    if not options.json:
        print(_table_head(width))
    results: list[tuple[str, str, Measurement]] = []
    for group, cases in groups.items():
        if not options.json:
            print(group)
        for name, prepare in cases.items():
            _show_progress(f"{len(results) + 1} of {count}: {group}: {name}")
            measurement = measure(prepare(np.random.default_rng(0)))
            _show_progress("")
            results.append((group, name, measurement))
            if not options.json:
                print(_table_row(name, width, measurement), flush=True)
    seconds = time.perf_counter() - start
    measurements = [measurement for _, _, measurement in results]
    print(_as_json(results, seconds) if options.json else _table_foot(measurements, seconds))
    return 0 if all(measurement.ok for measurement in measurements) else 1


def _show_progress(text: str) -> None:
    """Replaces the line at the cursor; only where somebody watches."""
    if sys.stderr.isatty():
        print(f"\r{text}\033[K", end="", file=sys.stderr, flush=True)


def _table_head(width: int) -> str:
    machine = f"{_core.active_isa()}, {_core.num_threads()} threads"
    return (
        f"blasformer {__version__} ({machine}), NumPy {np.__version__}\n"
        f"  {'':{width}}    error  NumPy's       time    NumPy's   speed"
    )


def _table_row(name: str, width: int, m: Measurement) -> str:
    verdict = "ok" if m.ok else "OFF"
    return (
        f"  {name:{width}}  {_error(m.error):>7}  {_error(m.numpy_error):>7}  {_duration(m.seconds):>9}"
        f"  {_duration(m.numpy_seconds):>9}  {m.speed:5.1f}x  {verdict}"
    )


def _table_foot(measurements: Sequence[Measurement], seconds: float) -> str:
    count = len(measurements)
    right = sum(m.ok for m in measurements)
    speeds = [m.speed for m in measurements]
    faster, median = sum(speed > 1 for speed in speeds), statistics.median(speeds)
    return (
        f"\n{right} of {count} right: error <= 2 * NumPy's (gradients: 3 *) + 1e-6, against float64.\n"
        f"{faster} of {count} faster than NumPy, the median {median:.1f} times. {seconds:.0f} s."
    )


def _as_json(results: Sequence[tuple[str, str, Measurement]], seconds: float) -> str:
    def finite(value: float) -> float | None:
        return value if math.isfinite(value) else None

    report = {
        "blasformer": __version__,
        "numpy": np.__version__,
        "instruction_set": _core.active_isa(),
        "threads": _core.num_threads(),
        "ok": all(m.ok for _, _, m in results),
        "seconds": seconds,
        "results": [
            {
                "group": group,
                "name": name,
                "dtype": m.dtype,
                "ok": m.ok,
                "error": finite(m.error),
                "numpy_error": finite(m.numpy_error),
                "allowed_error": finite(m.allowed_error),
                "seconds": m.seconds,
                "numpy_seconds": m.numpy_seconds,
                "speed": m.speed,
            }
            for group, name, m in results
        ],
    }
    return json.dumps(report, indent=2, allow_nan=False)


def _error(value: float) -> str:
    return "0" if value == 0 else f"{value:.1e}"


def _duration(seconds: float) -> str:
    """Three digits, and the unit that suits them."""
    unit, factor = ("us", 1e6) if seconds < 1e-3 else ("ms", 1e3) if seconds < 1 else ("s ", 1)
    value = seconds * factor
    return f"{value:.{max(0, 2 - math.floor(math.log10(max(value, 1))))}f} {unit}"


def _own_cases(options: argparse.Namespace) -> dict[str, dict[str, Prepare]]:
    """Attention on the user's files and, unless they are float16, its gradients."""
    from . import scaled_dot_product_attention
    from ._compare import attention_of, gradients_of

    if len(options.arrays) != 3:
        raise CommandError(f"takes three arrays, QUERY KEY VALUE, or none, got {len(options.arrays)}")
    inputs = [_load(file) for file in options.arrays]
    for file, array in zip(options.arrays, inputs, strict=True):
        if array.size == 0:
            raise CommandError(f"{file} must have elements to compare, got the shape {array.shape}")
        if np.issubdtype(array.dtype, np.floating) and not np.isfinite(array).all():
            raise CommandError(
                f"{file} must be finite: NumPy's formula spreads its NaN or Inf over whole rows"
            )
    arguments: dict[str, Any] = {name: getattr(options, name) for name in OWN_ARGUMENTS}
    for name in ("mask", "bias"):
        arguments[name] = None if arguments[name] is None else _load(arguments[name])
    try:
        output = scaled_dot_product_attention(*inputs, **arguments)
    except (TypeError, ValueError) as error:
        raise CommandError(str(error)) from error
    query, key, value = (array[None] if array.ndim == 2 else array for array in inputs)

    score_bytes = 8 * math.prod(query.shape[:-1]) * key.shape[-2]
    if score_bytes > LARGEST_SCORES:
        raise CommandError(
            f"the scores of these arrays take {score_bytes / 1e9:.1f} GB in float64 NumPy, more than the"
            f" {LARGEST_SCORES / 1e9:.1f} GB allowed here: pass fewer heads or queries"
        )
    rng = np.random.default_rng(0)
    d_output = rng.standard_normal(query.shape[:-1] + value.shape[-1:]).astype(query.dtype)
    arguments["any_size"] = True
    cases: dict[str, Prepare] = {"attention": lambda _: attention_of(query, key, value, **arguments)}
    if output.dtype != np.float16:
        cases["and its gradients"] = lambda _: gradients_of(query, key, value, d_output, **arguments)
    shapes = ", ".join(
        f"{Path(file).name} {array.shape}" for file, array in zip(options.arrays, inputs, strict=True)
    )
    return {f"{shapes}, {output.dtype}": cases}


def _load(file: str) -> Array:
    try:
        array = np.load(file, allow_pickle=False)
    except OSError as error:
        raise CommandError(str(error)) from error
    except (ValueError, EOFError) as error:
        raise CommandError(f"{file} must be an array of numbers as numpy.save writes it") from error
    if not isinstance(array, np.ndarray):
        raise CommandError(f"{file} must hold one array, as numpy.save writes it, got an archive of several")
    return array


def _embed(options: argparse.Namespace) -> int:
    from . import models

    output: Path = options.output or options.file.with_suffix(".npy")
    if not output.parent.is_dir():
        raise CommandError(f"{output.parent} must be an existing folder")
    if options.batch_size < 1:
        raise CommandError(f"--batch-size must be at least 1, got {options.batch_size}")
    try:
        lines = options.file.read_text(encoding="utf-8").split("\n")
        lines = lines[:-1] if lines[-1] == "" else lines
        if not lines:
            raise CommandError(f"{options.file} has no lines")
        encoder = models.SentenceEncoder.from_pretrained(options.folder)
        vectors = encoder.encode(lines, batch_size=options.batch_size)
        with output.open("wb") as file:
            np.save(file, vectors)
    except UnicodeDecodeError as error:
        raise CommandError(f"{options.file} must be UTF-8 text: {error}") from error
    except (ImportError, OSError, ValueError) as error:
        raise CommandError(str(error)) from error
    print(f"{output}: {len(vectors)} lines, {vectors.shape[1]} numbers each, {vectors.dtype}")
    return 0
