"""The elementary functions inside of kernels: how far from exact they are, for every instruction set."""

import math

import blasformer
import ml_dtypes
import numpy as np
import pytest
from blasformer import _core

FLOAT32_PATTERNS = 2**32
CHUNK = 2**20
SIGN = 2**31


def bits(x):
    return int(np.float32(x).view(np.uint32))


def floats(first, last, step=1):
    """All float32 whose bit patterns lie in [first, last), in chunks."""
    for begin in range(first, last, CHUNK * step):
        patterns = np.arange(begin, min(begin + CHUNK * step, last), step, dtype=np.uint32)
        yield patterns.view(np.float32)


def ulp(x):
    """The unit in the last place of float32 or float64 numbers, at least that of the smallest normal one."""
    mantissa, mask = (23, np.uint32(0x7F800000)) if x.dtype == np.float32 else (52, np.uint64(0x7FF << 52))
    power = (x.view(mask.dtype) & mask).view(x.dtype)
    return np.maximum(power, np.finfo(x.dtype).smallest_normal) * x.dtype.type(2.0**-mantissa)


def assert_within(ulps, actual, exact, x, flushed=False):
    """flushed: where the exact result is below the smallest normal number, any such result will do."""
    with np.errstate(over="ignore", invalid="ignore"):
        rounded = exact.astype(actual.dtype)
        good = np.abs(actual - exact) <= ulps * ulp(rounded).astype(exact.dtype)
    good |= actual == rounded  # infinities
    if flushed:
        smallest = np.finfo(actual.dtype).smallest_normal
        good |= (np.abs(actual) <= smallest) & (np.abs(exact) < smallest)
    worst = np.argmin(good)
    assert good.all(), f"f({x[worst]!r}) = {actual[worst]!r}, exactly {exact[worst]!r}"


@pytest.fixture
def elementary(isa):
    def call(name, x):
        return _core._elementary(name, np.ascontiguousarray(x))

    return call


def sigmoid(x):
    decay = np.exp(-np.abs(x))
    return np.where(x >= 0, 1, decay) / (1 + decay)


# ----------------------------------------------------------------------------------------------------------
# float32: every one of the 2**32 bit patterns, where results differ; NumPy's float64 is the truth
# ----------------------------------------------------------------------------------------------------------


def test_exp_is_within_2_ulp_for_every_float32(elementary):
    tiny, largest = bits(2.0**-26), bits(104.0)
    for sign in (0, SIGN):
        for x in floats(sign, sign + tiny):
            assert (elementary("exp", x) == 1).all()
        for x in floats(sign + tiny, sign + largest):
            assert_within(2, elementary("exp", x), np.exp(x.astype(np.float64)), x, flushed=True)
        for x in floats(sign + largest, sign + bits(np.inf) + 1):
            assert (elementary("exp", x) == (0 if sign else np.inf)).all()
        for x in floats(sign + bits(np.inf) + 1, sign + SIGN):
            assert np.isnan(elementary("exp", x)).all()


@pytest.mark.parametrize(
    ("name", "formula", "zero_below"),
    [("exp_nonpositive", np.exp, -87.33655), ("exp2_nonpositive", np.exp2, -126.0)],
)
def test_powers_are_within_2_ulp_for_every_float32_that_is_not_positive(
    name, formula, zero_below, elementary
):
    tiny, lowest = bits(2.0**-26), bits(-zero_below)
    for x in floats(SIGN, SIGN + tiny):
        assert (elementary(name, x) == 1).all()
    for x in floats(SIGN + tiny, SIGN + lowest + 1):
        actual, exact = elementary(name, x), formula(x.astype(np.float64))
        assert_within(2, actual, exact, x, flushed=True)
        assert ((actual == 0) | (actual >= np.finfo(np.float32).smallest_normal)).all()
    for x in floats(SIGN + lowest + 1, SIGN + bits(np.inf) + 1):
        assert (elementary(name, x) == 0).all()
    for x in floats(SIGN + bits(np.inf) + 1, FLOAT32_PATTERNS):
        assert np.isnan(elementary(name, x)).all()
    assert elementary(name, np.zeros(1, np.float32)) == 1


@pytest.mark.parametrize(("name", "formula", "ulps"), [("tanh", np.tanh, 3), ("sigmoid", sigmoid, 4)])
def test_tanh_and_sigmoid_are_within_3_and_4_ulp_for_float32(name, formula, ulps, elementary):
    for sign in (0, SIGN):
        for x in floats(sign, sign + bits(2.0**-14), 509):
            assert_within(ulps, elementary(name, x), formula(x.astype(np.float64)), x)
        for x in floats(sign + bits(2.0**-14), sign + bits(89.0), 7):
            assert_within(ulps, elementary(name, x), formula(x.astype(np.float64)), x, flushed=True)
        for x in floats(sign + bits(89.0), sign + bits(np.inf) + 1, 509):
            assert_within(ulps, elementary(name, x), formula(x.astype(np.float64)), x, flushed=True)


def test_tanh_is_odd_in_every_bit(elementary):
    for x in floats(0, bits(np.inf) + 1, 97):
        assert (elementary("tanh", -x) == -elementary("tanh", x)).all()
    assert np.signbit(elementary("tanh", np.array([-0.0, 0.0]))).tolist() == [True, False]


# ----------------------------------------------------------------------------------------------------------
# float64: dense samples; NumPy's longdouble is the truth
# ----------------------------------------------------------------------------------------------------------


def samples(low, high, count=300_000):
    """Evenly spread numbers, and as many whose magnitudes are spread evenly over the exponents."""
    random = np.random.default_rng(5)
    even = random.uniform(low, high, count)
    magnitudes = 2.0 ** random.uniform(-60, math.log2(max(-low, high)), count)
    signed = magnitudes * random.choice([-1.0, 1.0], count)
    return np.concatenate([even, signed[(signed >= low) & (signed <= high)]])


@pytest.mark.parametrize(
    ("name", "formula", "low", "high", "ulps"),
    [
        ("exp", np.exp, -708.0, 709.7, 2),
        ("exp_nonpositive", np.exp, -760.0, 0.0, 2),
        ("exp2_nonpositive", np.exp2, -1100.0, 0.0, 2),
        ("tanh", np.tanh, -25.0, 25.0, 3),
        ("sigmoid", sigmoid, -708.0, 40.0, 4),
    ],
)
def test_float64_functions_are_within_4_ulp(name, formula, low, high, ulps, elementary):
    x = samples(low, high)
    assert_within(ulps, elementary(name, x), formula(x.astype(np.longdouble)), x, flushed=True)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    ("name", "limits"),
    [
        ("exp", (0, 1, np.inf)),
        ("exp_nonpositive", (0, 1, None)),
        ("exp2_nonpositive", (0, 1, None)),
        ("tanh", (-1, 0, 1)),
        ("sigmoid", (0, 0.5, 1)),
    ],
)
def test_infinities_zero_and_nan_have_their_limits(name, limits, dtype, elementary):
    for x, limit in zip((-np.inf, 0.0, np.inf), limits, strict=True):
        if limit is not None:
            # In every lane, and beyond the last whole vector.
            assert (elementary(name, np.full(37, x, dtype)) == limit).all()
    assert np.isnan(elementary(name, np.full(37, np.nan, dtype))).all()


# ----------------------------------------------------------------------------------------------------------
# GELU: x * Phi(x)
# ----------------------------------------------------------------------------------------------------------


def normal_tail(a):
    """Phi(-a), a >= 0, in longdouble: Phi's Taylor series, and Laplace's continued fraction where a > 2.5."""
    a = a.astype(np.longdouble)
    density = np.exp(-a * a / 2) / np.sqrt(8 * np.arctan(np.longdouble(1)))
    near = np.minimum(a, 2.5)
    series = term = near
    for k in range(3, 160, 2):
        term = term * near * near / k
        series = series + term
    far = np.maximum(a, 2.5)
    fraction = far
    for k in range(160, 0, -1):
        fraction = far + k / fraction
    return np.where(a > 2.5, density / fraction, np.longdouble(0.5) - density * series)


@pytest.mark.parametrize(("dtype", "low", "high"), [(np.float32, -14.0, 14.0), (np.float64, -39.0, 39.0)])
def test_gelu_is_within_6_ulp_even_where_it_is_tiny(dtype, low, high, elementary):
    quarters = np.arange(low, high, 0.25, dtype)  # where polynomials meet
    seams = [np.nextafter(quarters, side, dtype=dtype) for side in (-np.inf, np.inf)]
    x = np.concatenate([samples(low, high, 100_000).astype(dtype), quarters, *seams])
    tail = normal_tail(np.abs(x))
    exact = x.astype(np.longdouble) * np.where(x < 0, tail, 1 - tail)
    assert_within(6, elementary("gelu", x), exact, x, flushed=True)


# ----------------------------------------------------------------------------------------------------------
# Angles
# ----------------------------------------------------------------------------------------------------------


def test_sine_and_cosine_are_within_3_ulp_near_multiples_of_half_pi_too(isa):
    random = np.random.default_rng(1)
    near = (
        np.rint(random.uniform(0, 2**20 / 1.5708, 20_000))
        * (np.pi / 2)
        * (1 + random.normal(0, 1e-12, 20_000))
    )
    for x in (random.uniform(-10, 10, 100_000), random.uniform(0, 2**20, 100_000), near):
        cosine, sine = _core._cosine_sine(1.0, x)
        assert_within(3, cosine, np.cos(x.astype(np.longdouble)), x)
        assert_within(3, sine, np.sin(x.astype(np.longdouble)), x)


def test_angles_of_any_size_have_a_sine_and_a_cosine(isa):
    x = np.array([2.0**20 + 0.1, 1e9, -1e15, 1e300, 0.5, -0.0, 3.0])
    cosine, sine = _core._cosine_sine(1.0, x)
    assert_within(3, cosine, np.cos(x.astype(np.longdouble)), x)
    assert_within(3, sine, np.sin(x.astype(np.longdouble)), x)


# ----------------------------------------------------------------------------------------------------------
# Half types, at the edges of every kernel
# ----------------------------------------------------------------------------------------------------------


def quiet(halves, bit):
    """Their bits, with that of a quiet NaN set in each NaN."""
    with np.errstate(invalid="ignore"):
        nan = np.isnan(halves)
    return np.where(nan, halves.view(np.uint16) | bit, halves.view(np.uint16)).tolist()


def test_every_half_passes_through_relu_as_itself(isa):
    half = np.arange(2**15, dtype=np.uint16).view(np.float16)  # all that are not negative
    assert blasformer.relu(half).view(np.uint16).tolist() == quiet(half, 0x200)
    brain = np.arange(2**15, dtype=np.uint16).view(ml_dtypes.bfloat16)
    assert blasformer.relu(brain).view(np.uint16).tolist() == quiet(brain, 0x40)
