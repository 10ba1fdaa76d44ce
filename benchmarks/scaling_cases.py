"""What scaling.py times: along each axis more and more of the same work, and pairs that should not differ."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from cases import Attention, Case, EncoderLayer, Function

LENGTHS = [2**i for i in range(7, 17)]
# The largest length of each axis with --quick.
QUICK_LENGTH = 4096
# Of forward and backward: longer ones take minutes.
LONGEST_BACKWARD = 32768
HEAD_DIMS = (16, 32, 48, 64, 65, 80, 96, 112, 128, 129, 160, 192, 256)
WIDTHS = (64, 128, 256, 496, 512, 528, 1008, 1024, 1040, 2032, 2048, 2064)
BATCHES = (1, 2, 4, 8, 16, 32, 64)

# How much longer a unit of work of the second of a pair may take than one of the first.
ONE_ABOVE_A_TILE = 1.25
# 65 numbers take the registers of 80: a quarter more work than the figures say.
ONE_ABOVE_A_REGISTER = 1.5
POWER_OF_TWO = 1.25
NEXT_ON_AXIS = 1.25


@dataclass(frozen=True)
class Point:
    axis: str
    x: int
    case: Case


@dataclass(frozen=True)
class Pair:
    """`second` is compared with `first`, of the same axis."""

    axis: str
    first: int
    second: int
    limit: float


def attention(axis: str, x: int, shape: tuple[int, int, int, int], **options) -> Point:
    return Point(axis, x, Attention(f"{axis} {x}", "scaling", *shape, **options))


def encoder_layer(axis: str, x: int, batch: int, length: int, width: int) -> Point:
    layer = EncoderLayer(f"{axis} {x}", batch, length, width, width // 16, 4 * width)
    return Point(axis, x, layer)


def _points() -> list[Point]:
    above = [length + 1 for length in LENGTHS if length <= QUICK_LENGTH]
    points = [attention("length", length, (1, 1, length, 64)) for length in sorted([*LENGTHS, *above])]
    points += [
        attention("length, causal", length, (1, 1, length, 64), causal=True)
        for length in sorted([*LENGTHS, *above])
    ]
    points += [
        attention("length, fwd+bwd", length, (1, 1, length, 64), backward=True)
        for length in sorted([*LENGTHS, *above])
        if length <= LONGEST_BACKWARD
    ]
    points += [encoder_layer("layer: length", length, 1, length, 256) for length in LENGTHS if length <= 8192]
    points += [encoder_layer("layer: batch", batch, batch, 128, 256) for batch in BATCHES]
    points += [encoder_layer("layer: width", width, 1, 128, width) for width in WIDTHS]
    points += [attention("head dim", dim, (1, 8, 512, dim)) for dim in HEAD_DIMS]
    points += [attention("head dim, fwd+bwd", dim, (1, 8, 512, dim), backward=True) for dim in HEAD_DIMS]
    # Rows of 4096 bytes are read with that distance in the second layout, densely in the first.
    points += [
        attention("rows of 4096 bytes", x, (1, 8, 1024, 128), layout=layout)
        for x, layout in ((0, "heads first"), (1, "length first"))
    ]
    points += [
        Point("linear: width", width, Function(f"linear: width {width}", "linear", (256, width), width))
        for width in WIDTHS
    ]
    return points


def _pairs() -> list[Pair]:
    pairs = [
        Pair(axis, length, length + 1, ONE_ABOVE_A_TILE)
        for axis in ("length", "length, causal", "length, fwd+bwd")
        for length in LENGTHS
        if length <= QUICK_LENGTH
    ]
    pairs += [
        Pair(axis, dim, dim + 1, ONE_ABOVE_A_REGISTER)
        for axis in ("head dim", "head dim, fwd+bwd")
        for dim in (64, 128)
    ]
    pairs += [
        Pair(axis, width + away, width, POWER_OF_TWO)
        for axis in ("layer: width", "linear: width")
        for width in (512, 1024, 2048)
        for away in (-16, 16)
    ]
    pairs.append(Pair("rows of 4096 bytes", 0, 1, POWER_OF_TWO))
    for axis, places in (
        *((axis, LENGTHS) for axis in ("length", "length, causal", "length, fwd+bwd")),
        ("layer: length", [length for length in LENGTHS if length <= 8192]),
        ("layer: batch", BATCHES),
    ):
        pairs += [Pair(axis, a, b, NEXT_ON_AXIS) for a, b in pairwise(places)]
    return pairs


POINTS = _points()
PAIRS = _pairs()
SCALING_BY_NAME = {point.case.name: point.case for point in POINTS}
