"""Groups of cases in a line each: how much faster this package is than the best of some libraries."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from cases import Attention, Case, EncoderLayer, Function, MultiheadAttention
from sentence_cases import Sentences
from training_cases import TrainingCase

OURS = "blasformer"
PYTORCH = ("pytorch", "torch.compile")


@dataclass(frozen=True)
class Line:
    name: str
    against: tuple[str, ...]  # the fastest of them in each case
    contains: Callable[[Case | TrainingCase], bool]


def is_attention(case, dtype: str = "float32") -> bool:
    return isinstance(case, Attention) and case.dtype == dtype and case.group != "tiny"


def is_decode(case) -> bool:
    return isinstance(case, Attention) and case.group == "decode"


def is_tiny_attention(case) -> bool:
    return isinstance(case, Attention) and case.group == "tiny"


def is_tiny(case) -> bool:
    return isinstance(case, MultiheadAttention) or case.name.split()[0] == "tiny"


LINES = [
    Line(
        "attention forward, float32",
        ("pytorch",),
        lambda case: is_attention(case) and not case.backward and case.pytorch_fuses and not is_decode(case),
    ),
    Line(
        "attention forward + backward, float32",
        ("pytorch",),
        lambda case: is_attention(case) and case.backward and case.pytorch_fuses,
    ),
    Line(
        "attention that PyTorch computes without a fused kernel",
        PYTORCH,
        lambda case: is_attention(case) and not case.pytorch_fuses,
    ),
    Line("attention, bfloat16", ("pytorch",), lambda case: is_attention(case, "bfloat16")),
    Line("attention, float64", ("pytorch",), lambda case: is_attention(case, "float64")),
    Line(
        "encoder layers forward, float32",
        PYTORCH,
        lambda case: (
            isinstance(case, EncoderLayer)
            and case.dtype == "float32"
            and case.precision == "highest"
            and not is_tiny(case)
        ),
    ),
    Line(
        'encoder layers forward at precision "medium"',
        PYTORCH,
        lambda case: isinstance(case, EncoderLayer) and case.precision == "medium" and not is_tiny(case),
    ),
    Line(
        "encoder layers forward + backward, training steps",
        PYTORCH,
        lambda case: isinstance(case, TrainingCase) and not is_tiny(case),
    ),
    Line("attention at lengths 1 to 32, where the call takes the time", PYTORCH, is_tiny_attention),
    Line("tiny models, MultiheadAttention at lengths 1 to 6", PYTORCH, is_tiny),
    Line("the same", ("onnxruntime",), is_tiny),
    Line(
        "grouped decode",
        ("pytorch",),
        lambda case: is_decode(case) and case.key_heads < case.heads,
    ),
    Line(
        "decode, a key head per head",
        ("pytorch",),
        lambda case: is_decode(case) and case.key_heads == case.heads,
    ),
    Line("functions", PYTORCH, lambda case: isinstance(case, Function)),
    Line("sentences, MiniLM", ("pytorch",), lambda case: isinstance(case, Sentences)),
    Line("the same", ("onnxruntime", "ctranslate2"), lambda case: isinstance(case, Sentences)),
    Line(
        "attention and layers forward, float32",
        ("onnxruntime",),
        lambda case: isinstance(case, Attention | EncoderLayer) and not is_tiny(case),
    ),
    Line("what batch_invariant() costs: with it / without", ("batch invariant",), lambda case: True),
]


def summarised(lines: Iterable[Line], measured: list[tuple[Case | TrainingCase, dict]]) -> list[dict]:
    """Of each line that has cases: how many, the ratios by rounds and by the least times, and the errors.

    `measured`: each case with its Timing of every library.
    """
    result = []
    for line in lines:
        rows = []
        for case, timings in measured:
            ours = timings.get(OURS)
            others = [timings[name] for name in line.against if name in timings]
            others = [timing for timing in others if not timing.unsupported and timing.turns]
            if line.contains(case) and others and ours is not None and not ours.unsupported:
                best = min(others, key=lambda timing: timing.over(ours))
                error = ours.error / best.error if ours.error and best.error else None
                rows.append((best.over(ours), best.least / ours.least, error, case.name))
        if rows:
            least, _, _, slowest = min(rows)
            errors = [error for _, _, error, _ in rows if error is not None]
            result.append(
                {
                    "group": line.name,
                    "against": " or ".join(line.against),
                    "cases": len(rows),
                    "geometric mean": statistics.geometric_mean(row[0] for row in rows),
                    "geometric mean of least times": statistics.geometric_mean(row[1] for row in rows),
                    "least": least,
                    "least case": slowest,
                    "below 1": {name: ratio for ratio, _, _, name in rows if ratio < 1},
                    "largest error / theirs": max(errors) if errors else None,
                }
            )
    return result


def summary_rows(summary: list[dict]) -> list[list[str]]:
    return [
        [
            line["group"],
            line["against"],
            str(line["cases"]),
            f"{line['geometric mean']:.2f}",
            f"{line['geometric mean of least times']:.2f}",
            f"{line['least']:.2f} ({line['least case']})",
            str(len(line["below 1"])),
            "-" if line["largest error / theirs"] is None else f"{line['largest error / theirs']:.2g}",
        ]
        for line in summary
    ]


SUMMARY_HEADER = [
    "theirs / ours",
    "against",
    "cases",
    "geometric mean",
    "of least times",
    "least",
    "below 1",
    "largest error / theirs",
]
