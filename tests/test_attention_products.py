"""Attention from tiles of bfloat16 parts: how accurate it is beside multiply-adds, and who decides."""

from typing import Any

import blasformer
import ml_dtypes
import numpy as np
import pytest
import reference
from blasformer import _core, attention_backward, attention_forward, attention_plan
from blasformer import scaled_dot_product_attention as attend

Arrays = tuple[np.ndarray, ...]

KINDS = ["random", "large logits", "one-hot", "shifted means", "uniform", "positive", "values of many sizes"]


def operands(kind: str, heads: int) -> Arrays:
    """query, key, value and the gradient of the output; every key occurs twice."""
    random = np.random.default_rng(len(kind))
    query, d_output = random.standard_normal((2, heads, 33, 40), np.float32)
    key, value = (
        np.concatenate([x, x[:, ::-1]], 1) for x in random.standard_normal((2, heads, 33, 40), np.float32)
    )
    match kind:
        case "large logits":
            query *= 30
        case "one-hot":
            query = 1000 * key[:, random.integers(0, 66, 33)]
        case "shifted means":
            query, key, value = query + 10, key + 10, value + 1000
        case "uniform":
            key = np.zeros_like(key)
        case "positive":
            query, key, value = np.abs(query), np.abs(key), np.abs(value)
        case "values of many sizes":
            value = np.ldexp(value, random.integers(-12, 12, value.shape))
    return query, key, value, d_output


def exact(query: np.ndarray, key: np.ndarray, value: np.ndarray, d_output: np.ndarray) -> Arrays:
    """Output, d_query, d_key and d_value in float64."""
    query, key, value, d_output = (x.astype(np.float64) for x in (query, key, value, d_output))
    scale = 1 / np.sqrt(query.shape[-1])
    scores = scale * query @ key.swapaxes(-1, -2)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    output = weights @ value
    d_weights = d_output @ value.swapaxes(-1, -2)
    d_scores = scale * weights * (d_weights - (output * d_output).sum(-1, keepdims=True))
    return output, d_scores @ key, d_scores.swapaxes(-1, -2) @ query, weights.swapaxes(-1, -2) @ d_output


def computed(
    query: np.ndarray, key: np.ndarray, value: np.ndarray, d_output: np.ndarray, **keywords: Any
) -> Arrays:
    output, saved = attention_forward(query, key, value, **keywords)
    return (output, *attention_backward(saved, d_output)[:3])


def errors(results: Arrays, truth: Arrays) -> np.ndarray:
    """The largest error in each head of each result."""
    return np.array([np.abs(x - true).max((-1, -2)) for x, true in zip(results, truth, strict=True)])


@pytest.mark.parametrize("kind", KINDS)
def test_parts_are_no_less_accurate_than_multiply_adds(kind: str) -> None:
    inputs = operands(kind, heads=120)
    truth = exact(*inputs)
    with blasformer.use_isa("amx_reference"):
        assert attention_plan(inputs[0].shape, inputs[1].shape).kernel == "amx_reference"
        split = errors(computed(*inputs), truth)
        plain = errors(computed(*inputs, precision="ieee"), truth)
    # Of all heads: which of the two rounds a single one worse is luck.
    assert (split.mean(-1) <= plain.mean(-1)).all()
    assert (np.quantile(split, 0.9, axis=-1) <= np.quantile(plain, 0.9, axis=-1)).all()


def scaled(x: np.ndarray, random: np.random.Generator, lowest: int, highest: int) -> np.ndarray:
    return np.ldexp(x, random.integers(lowest, highest, x.shape))


@pytest.mark.parametrize("operand", ["query", "key", "value", "d_output"])
@pytest.mark.parametrize("exponents", [(-126, -90), (-126, -60), (-126, 30), (40, 70), (90, 120)])
def test_numbers_that_parts_cannot_represent_are_computed_as_before(
    operand: str, exponents: tuple[int, int]
) -> None:
    """Too small, too large, and both, in some rows of one operand; in the formula nothing overflows."""
    random = np.random.default_rng(2)
    inputs = dict(zip(["query", "key", "value", "d_output"], operands("random", 1), strict=True))
    rows = inputs[operand][:, ::5]
    rows[:] = scaled(rows, random, *exponents)
    if operand in ("query", "key"):
        other = "key" if operand == "query" else "query"
        inputs[other] = np.ldexp(inputs[other], -max(exponents[1], 0)).astype(np.float32)
    truth = exact(**inputs)
    with blasformer.use_isa("amx_reference"):
        split = errors(computed(**inputs), truth)
        plain = errors(computed(**inputs, precision="ieee"), truth)
    assert (split <= 2 * plain).all()


@pytest.mark.parametrize("special", [np.inf, -np.inf, np.nan])
@pytest.mark.parametrize("operand", [0, 1, 2, 3])
def test_infinite_numbers_and_nan_reach_what_they_reach_in_the_plain_kernel(
    operand: int, special: float
) -> None:
    inputs = operands("random", 2)
    inputs[operand][1, 17, 3] = special
    with blasformer.use_isa("amx_reference"):
        split = computed(*inputs, causal="upper_left")
        plain = computed(*inputs, causal="upper_left", precision="ieee")
    for a, b in zip(split, plain, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_precision_decides_how_many_parts_are_multiplied() -> None:
    inputs = operands("random", 4)
    truth = exact(*inputs)
    with blasformer.use_isa("amx_reference"):
        for argument in (True, False):
            worst = {}
            for mode in ("highest", "high", "medium"):
                with blasformer.precision("ieee" if argument else mode):
                    results = computed(*inputs, **({"precision": mode} if argument else {}))
                worst[mode] = errors(results, truth).max(-1)
            assert (worst["highest"] < 2e-6).all()
            assert (worst["highest"] < worst["high"]).all()
            assert (worst["high"] < 1e-4).all()
            assert (worst["high"] < worst["medium"]).all()
            assert (worst["medium"] < 5e-2).all()
        ieee = computed(*inputs, precision="ieee")
    with blasformer.use_isa(_core.detected_isas()[-1]):
        for a, b in zip(ieee, computed(*inputs, precision="ieee"), strict=True):
            assert a.tobytes() == b.tobytes()


def test_backward_computes_scores_as_forward_did() -> None:
    """With the precision of forward, whatever the context is by then."""
    query, key, value, d_output = operands("large logits", 2)
    with blasformer.use_isa("amx_reference"):
        within = computed(query, key, value, d_output, precision="medium")
        _, saved = attention_forward(query, key, value, precision="medium")
        with blasformer.precision("ieee"):
            after = attention_backward(saved, d_output)[:3]
    for a, b in zip(within[1:], after, strict=True):
        assert a.tobytes() == b.tobytes()


def test_bfloat16_numbers_are_multiplied_as_exactly_in_every_precision() -> None:
    """Scores are: the products of bfloat16 numbers are exact."""
    query, key, _, _ = (x.astype(ml_dtypes.bfloat16) for x in operands("large logits", 2))
    identity = np.broadcast_to(np.eye(66, dtype=ml_dtypes.bfloat16), (2, 66, 66))
    with blasformer.use_isa("amx_reference"):
        outputs = [attend(query, key, identity, precision=mode) for mode in ("highest", "medium", "ieee")]
    for output in outputs[:2]:
        np.testing.assert_allclose(output.astype("f4"), outputs[2].astype("f4"), rtol=2**-7, atol=1e-30)


@pytest.mark.parametrize("queries", [1, 3, 33])
@pytest.mark.parametrize("power", [-100, -40, 0, 40, 100])
def test_scores_of_bfloat16_numbers_are_right_whatever_their_size(
    power: int, queries: int, product_isa: str
) -> None:
    query, key, value, d_output = (x.astype(ml_dtypes.bfloat16) for x in operands("random", 2))
    query, key = query * ml_dtypes.bfloat16(2.0**power), key * ml_dtypes.bfloat16(2.0**-power)
    output = attend(query[:, :queries], key, value)
    truth = exact(query, key, value, d_output)[0][:, :queries]
    reference.assert_rounded_once(output, truth)


@pytest.mark.parametrize("dim", [16, 39, 64])
@pytest.mark.parametrize("queries", [2, 33])
def test_bfloat16_numbers_that_are_not_finite_concern_only_who_sees_them(
    queries: int, dim: int, product_isa: str
) -> None:
    random = np.random.default_rng(dim)
    query, key, value = (
        random.standard_normal((2, length, dim)).astype(ml_dtypes.bfloat16) for length in (queries, 50, 50)
    )
    mask = random.random((queries, 50)) < 0.7
    mask[:, 20], mask[1, 30] = False, True
    expected = attend(query, key, value, mask=mask)
    query[:, 1, 3], key[:, 20, 5], value[:, 20, 6] = np.inf, np.nan, np.nan
    output = attend(query, key, value, mask=mask)
    assert np.isnan(output[:, 1].astype("f4")).all()
    others = np.arange(queries) != 1
    np.testing.assert_array_equal(output[:, others].view(np.uint16), expected[:, others].view(np.uint16))


def test_a_layer_and_its_gradient_follow_the_precision() -> None:
    layer = blasformer.nn.MultiheadAttention(64, 2, rng=0)
    x = np.random.default_rng(3).standard_normal((2, 40, 64), np.float32)
    with blasformer.use_isa("amx_reference"):
        results = []
        for mode in ("highest", "medium"):
            with blasformer.precision(mode):
                y, saved = layer.forward(x, x, x)
                results.append([y, layer.backward(saved, y)[0][0]])
    for highest, medium in zip(*results, strict=True):
        assert 1e-5 < np.abs(highest - medium).max() / np.abs(highest).max() < 3e-2
