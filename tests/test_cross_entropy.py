"""Cross-entropy and its gradient: as PyTorch defines them, for every option, dtype and hard input."""

import tracemalloc

import blasformer
import numpy as np
import pytest
import reference
from reference import assert_as_accurate_as_numpy, assert_rounded_once
from row_cases import HALF_DTYPES, nearly_the_same, normal, same_bits

REDUCTIONS = ["mean", "sum", "none"]


def random_targets(shape, classes, seed=0, ignored=0.2):
    random = np.random.default_rng(seed)
    targets = random.integers(0, classes, shape)
    return np.where(random.random(shape) < ignored, -100, targets)


def class_weights(classes, dtype=np.float32):
    """Some of them 0."""
    return np.abs(normal(classes, dtype, 7)) * (np.arange(classes) % 5 != 3)


def as_arrays(loss, d_logits):
    """The loss as an array, as the formula has it."""
    return np.asarray(loss, d_logits.dtype), d_logits


# ----------------------------------------------------------------------------------------------------------
# The formula
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_in_the_formula_is_the_derivative_of_the_loss(reduction, label_smoothing, weighted):
    logits, targets = normal((6, 9), np.float64), random_targets(6, 9)
    arguments = {"label_smoothing": label_smoothing, "reduction": reduction}
    if weighted:
        arguments["weight"] = class_weights(9, np.float64)
    d_logits = reference.cross_entropy(logits, targets, **arguments).d_logits
    for seed in range(3):
        direction = normal(logits.shape, np.float64, 10 + seed)
        slope = reference.numerical_derivative(
            lambda x: reference.cross_entropy(x, targets, **arguments).loss.sum(), logits, direction
        )
        assert (d_logits * direction).sum() == pytest.approx(slope, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1, 1.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_loss_and_gradient_are_as_accurate_as_numpys(
    ignore_index, weighted, label_smoothing, reduction, dtype, isa
):
    arguments = {
        "ignore_index": ignore_index,
        "label_smoothing": label_smoothing,
        "reduction": reduction,
    }
    for shape in ((1, 1), (5, 2), (7, 17), (3, 4, 67), (2, 1003)):
        logits, targets = normal(shape, dtype), random_targets(shape[:-1], shape[-1])
        targets[targets == -100] = ignore_index
        if weighted:
            arguments["weight"] = class_weights(shape[-1], dtype)
        if ignore_index == 2 and shape[-1] <= 2:
            continue
        actual = as_arrays(*blasformer.cross_entropy(logits, targets, **arguments))
        assert_as_accurate_as_numpy(
            actual, reference.cross_entropy, logits, targets, **arguments, factor=3, terms=(1.0, 1.0)
        )


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_it_is_the_function_of_pytorch(reduction, label_smoothing, weighted):
    torch = pytest.importorskip("torch", reason="PyTorch is an optional cross-check")
    logits, targets = normal((50, 30), np.float64), random_targets(50, 30)
    weight = class_weights(30, np.float64) if weighted else None
    tensor = torch.tensor(logits, requires_grad=True)
    expected = torch.nn.functional.cross_entropy(
        tensor,
        torch.tensor(targets),
        weight=torch.tensor(weight) if weighted else None,
        label_smoothing=label_smoothing,
        reduction=reduction,
    )
    expected.sum().backward()
    arguments = {"weight": weight, "label_smoothing": label_smoothing, "reduction": reduction}
    loss, d_logits = blasformer.cross_entropy(logits, targets, **arguments)
    np.testing.assert_allclose(loss, expected.detach().numpy(), rtol=1e-12)
    np.testing.assert_allclose(d_logits, tensor.grad.numpy(), atol=1e-14)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "logits",
    [
        [[1e30, 1e30, -1e30]],
        [[3e38, -3e38, 0.0]],
        [[1e4, 1e4 + 1, 1e4 + 2]],
        [[-1e4, 0.0, 1e4]],
        [[1e-40, 0.0, -1e-40]],
        [[0.0, -np.inf, 0.0]],
        [[-np.inf, -np.inf, 5.0]],
    ],
    ids=str,
)
def test_hard_logits_have_the_loss_and_gradient_of_the_formula(logits, dtype, isa):
    logits = np.array(logits, dtype)
    for target in (0, 2):
        loss, d_logits = blasformer.cross_entropy(logits, [target])
        with np.errstate(invalid="ignore"):
            exact = reference.cross_entropy(logits, [target])
        assert loss == pytest.approx(exact.loss, rel=1e-6)
        np.testing.assert_allclose(d_logits, exact.d_logits, atol=2e-7)


def test_a_sure_and_right_answer_has_a_loss_near_zero_and_a_wrong_one_its_full_size(isa):
    loss, d_logits = blasformer.cross_entropy(np.array([[50.0, 0.0]]), [0])
    assert 0 <= loss < 1e-15
    loss, d_logits = blasformer.cross_entropy(np.array([[50.0, 0.0]]), [1])
    assert loss == 50
    assert d_logits.tolist() == [[1.0, -1.0]]


@pytest.mark.parametrize("label_smoothing", [0.0, 0.3])
def test_nan_and_infinity_stay_in_their_row(label_smoothing, isa):
    logits, targets = normal((5, 40)), [1, 2, 3, 4, 5]
    arguments = {"label_smoothing": label_smoothing, "reduction": "none"}
    clean, clean_d = blasformer.cross_entropy(logits, targets, **arguments)
    for value in (np.nan, np.inf):
        wrong = logits.copy()
        wrong[2, 7] = value
        losses, d_logits = blasformer.cross_entropy(wrong, targets, **arguments)
        assert np.isnan(losses[2])
        assert np.isnan(d_logits[2]).any()
        others = [0, 1, 3, 4]
        assert same_bits(losses[others], clean[others])
        assert same_bits(d_logits[others], clean_d[others])


def test_what_an_ignored_row_holds_has_no_influence(isa):
    logits, targets = normal((6, 40)), [1, -100, 3, 4, -100, 5]
    loss, d_logits = blasformer.cross_entropy(logits, targets, label_smoothing=0.1)
    for value in (np.nan, np.inf, -np.inf):
        logits[[1, 4]] = value
        other_loss, other_d_logits = blasformer.cross_entropy(logits, targets, label_smoothing=0.1)
        assert other_loss == loss
        assert same_bits(other_d_logits, d_logits)
    assert (d_logits[[1, 4]] == 0).all()


@pytest.mark.parametrize("label_smoothing", [0.0, 0.1])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_where_nothing_counts_the_loss_is_zero_and_so_is_the_gradient(reduction, label_smoothing, isa):
    arguments = {"reduction": reduction, "label_smoothing": label_smoothing}
    for logits, targets in (
        (normal((3, 7)), [-100, -100, -100]),
        (np.full((2, 3), np.nan, np.float32), [-100, -100]),
        (normal((0, 7)), []),
    ):
        loss, d_logits = blasformer.cross_entropy(logits, np.array(targets, np.int64), **arguments)
        assert loss == 0.0
        assert isinstance(loss, float)
        assert d_logits.shape == logits.shape
        assert (d_logits == 0).all()
    weight = np.array([0, 1, 1], np.float32)
    loss, d_logits = blasformer.cross_entropy(normal((2, 3)), [0, 0], weight=weight)
    assert loss == 0.0
    assert (d_logits == 0).all()


def test_a_class_of_weight_zero_may_be_impossible_under_label_smoothing(isa):
    logits = np.array([[1.0, -np.inf, 2.0, 0.5]])
    loss, d_logits = blasformer.cross_entropy(
        logits, [0], weight=np.array([1.0, 0.0, 1.0, 1.0]), label_smoothing=0.1
    )
    assert np.isfinite(loss)
    assert np.isfinite(d_logits).all()


def test_the_mean_is_that_of_the_losses_of_rows_that_count():
    logits, targets = normal((40, 11), np.float64), random_targets(40, 11)
    losses, _ = blasformer.cross_entropy(logits, targets, reduction="none")
    total, d_sum = blasformer.cross_entropy(logits, targets, reduction="sum")
    mean, d_mean = blasformer.cross_entropy(logits, targets)
    count = (targets != -100).sum()
    assert total == pytest.approx(losses.sum(), rel=1e-14)
    assert mean == pytest.approx(losses.sum() / count, rel=1e-14)
    np.testing.assert_allclose(d_mean * count, d_sum, atol=1e-15)
    assert (losses[targets == -100] == 0).all()


def test_each_row_of_a_gradient_adds_up_to_nothing(isa):
    logits, targets = normal((9, 300), np.float64), random_targets(9, 300)
    for label_smoothing in (0.0, 0.2):
        _, d_logits = blasformer.cross_entropy(logits, targets, label_smoothing=label_smoothing)
        np.testing.assert_allclose(d_logits.sum(-1), 0, atol=1e-15)


# ----------------------------------------------------------------------------------------------------------
# Arrays
# ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES], ids=str)
@pytest.mark.parametrize("target_dtype", [np.int8, np.uint8, np.int16, np.uint32, np.int64, np.uint64])
def test_targets_are_of_any_integer_type_and_layout(target_dtype, dtype, isa):
    logits = normal((4, 5, 30)).astype(dtype)
    targets = np.random.default_rng(1).integers(0, 30, (4, 5)).astype(target_dtype)
    loss, d_logits = blasformer.cross_entropy(logits, targets)
    other = blasformer.cross_entropy(np.asfortranarray(logits), np.repeat(targets, 2, 1)[:, ::2])
    assert other[0] == loss
    assert nearly_the_same(other[1], d_logits)
    assert d_logits.dtype == dtype
    swapped = blasformer.cross_entropy(logits.swapaxes(0, 1), targets.T)
    assert swapped[0] == pytest.approx(loss, rel=1e-14)
    assert same_bits(np.ascontiguousarray(swapped[1].swapaxes(0, 1)), d_logits)


def test_a_single_row_has_a_single_target():
    logits = normal(9)
    loss, d_logits = blasformer.cross_entropy(logits, 4)
    assert d_logits.shape == (9,)
    assert loss == pytest.approx(float(reference.cross_entropy(logits, 4).loss), rel=1e-6)
    losses, _ = blasformer.cross_entropy(logits, 4, reduction="none")
    assert losses.shape == ()


@pytest.mark.parametrize("dtype", HALF_DTYPES, ids=str)
@pytest.mark.parametrize("weighted", [False, True])
def test_half_types_are_computed_in_float32_and_rounded_once(weighted, dtype, isa):
    logits, targets = normal((6, 50)).astype(dtype), random_targets(6, 50)
    arguments = {"label_smoothing": 0.1, "weight": class_weights(50).astype(dtype) if weighted else None}
    for reduction in REDUCTIONS:
        loss, d_logits = blasformer.cross_entropy(logits, targets, reduction=reduction, **arguments)
        exact = reference.cross_entropy(logits, targets, reduction=reduction, **arguments)
        assert_rounded_once(d_logits, exact.d_logits)
        if reduction == "none":
            assert_rounded_once(loss, exact.loss)
        else:
            assert loss == pytest.approx(float(exact.loss), rel=1e-6)


@pytest.mark.parametrize("dtype", [np.float32, np.float64, *HALF_DTYPES], ids=str)
def test_out_receives_the_gradient_and_may_be_the_logits(dtype, isa):
    logits, targets = normal((6, 34)).astype(dtype), random_targets(6, 34)
    loss, expected = blasformer.cross_entropy(logits, targets, label_smoothing=0.1)
    in_place = logits.copy()
    for out in (np.empty_like(logits), np.empty((12, 70), dtype)[::-2, 1:69:2], in_place):
        source = in_place if out is in_place else logits
        other_loss, d_logits = blasformer.cross_entropy(source, targets, label_smoothing=0.1, out=out)
        assert d_logits is out
        assert other_loss == loss
        assert nearly_the_same(out, expected)


def test_no_array_is_made_beside_d_logits_which_may_be_the_logits():
    logits, targets = normal((500, 2000)), random_targets(500, 2000)
    for out, most in ((None, 1.1 * logits.nbytes), (logits, 0.1 * logits.nbytes)):
        tracemalloc.start()
        blasformer.cross_entropy(logits, targets, out=out)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert peak < most


def test_every_number_of_threads_gives_the_same_bits():
    logits, targets = normal((300, 700)), random_targets(300, 700)
    results = []
    for threads in (1, 2, 3):
        with blasformer.num_threads(threads):
            results.append(blasformer.cross_entropy(logits, targets, label_smoothing=0.1))
    for loss, d_logits in results[1:]:
        assert loss == results[0][0]
        assert same_bits(d_logits, results[0][1])


def test_nothing_given_is_changed():
    logits, targets, weight = normal((5, 9)), random_targets(5, 9), class_weights(9)
    copies = [array.copy() for array in (logits, targets, weight)]
    blasformer.cross_entropy(logits, targets, weight=weight)
    for array, copy in zip((logits, targets, weight), copies, strict=True):
        assert same_bits(array, copy)


# ----------------------------------------------------------------------------------------------------------
# Errors
# ----------------------------------------------------------------------------------------------------------

LOGITS = np.zeros((2, 3, 4), np.float32)
TARGETS = np.zeros((2, 3), int)


def changed(position, value):
    targets = TARGETS.copy()
    targets.flat[position] = value
    return targets


ERRORS = [
    (
        lambda: blasformer.cross_entropy(LOGITS, changed(4, 7)),
        IndexError,
        "targets must be classes in [0, 4) or ignore_index -100, got 7 at position 4",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, changed(0, -1), ignore_index=0),
        IndexError,
        "targets must be classes in [0, 4) or ignore_index 0, got -1 at position 0",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS[:, :2]),
        ValueError,
        "targets must have the shape of logits without its last axis, (2, 3), got (2, 2)",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, LOGITS),
        TypeError,
        "targets must be integers, got float32",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS == 0),
        TypeError,
        "targets must be integers, got bool",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS.astype(int), TARGETS),
        TypeError,
        "logits must be a NumPy array of float32, float64, float16 or bfloat16, got int64",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS[..., :0], TARGETS),
        ValueError,
        "logits must have the shape (..., classes) with at least one class, got (2, 3, 0)",
    ),
    (
        lambda: blasformer.cross_entropy(np.zeros((), np.float32), TARGETS),
        ValueError,
        "logits must have the shape (..., classes) with at least one class, got ()",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, label_smoothing=1.5),
        ValueError,
        "label_smoothing must lie between 0 and 1, got 1.5",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, label_smoothing=np.nan),
        ValueError,
        "label_smoothing must lie between 0 and 1, got nan",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, weight=np.ones(3, np.float32)),
        ValueError,
        "weight must have the shape (4,), one for each class of logits (2, 3, 4), got (3,)",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, weight=np.ones(4)),
        TypeError,
        "weight must have the dtype of logits, float32, got float64",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, weight=np.array([1, 1, -1, 1], np.float32)),
        ValueError,
        "weight must be finite and at least 0, got -1 for class 2",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, reduction="average"),
        ValueError,
        'reduction must be "mean", "sum" or "none", got "average"',
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, ignore_index=1.0),
        TypeError,
        "ignore_index must be an integer, got float",
    ),
    (
        lambda: blasformer.cross_entropy(LOGITS, TARGETS, out=np.zeros((2, 3, 4))),
        TypeError,
        "out must have the dtype of logits, float32, got float64",
    ),
]


@pytest.mark.parametrize(("call", "error", "text"), ERRORS, ids=[text for _, _, text in ERRORS])
def test_an_error_names_the_argument_what_it_must_be_and_what_it_was(call, error, text):
    with pytest.raises(error) as caught:
        call()
    assert text in str(caught.value)


def test_a_wrong_target_changes_nothing():
    logits = normal((3, 4))
    before = logits.copy()
    with pytest.raises(IndexError):
        blasformer.cross_entropy(logits, [0, 1, 4], out=logits)
    assert same_bits(logits, before)
