"""Whether a row has the same bits whatever else is in the call."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar

from . import _core

_current: ContextVar[bool] = _core.batch_invariance_variable


def batch_invariant(invariant: bool = True) -> AbstractContextManager[None]:
    """Within a `with` block, what a sequence gives does not depend on what it shares a call with.

    For every function, layer and model f of a batch x, and every sequence i of it, in every bit:

        f(x)[i] = f(x[i : i + 1])[0]

    alone or in any batch, in any place of it, padded behind (with lengths) or not; a token computed in a
    decoding step with a cache has the bits it has in a pass over the whole text. The same holds for single
    rows of what works on rows, and for gradients of inputs. It holds for float32, float64 and the half types,
    with any number of threads, at one and the same `precision` and instruction set.

    Then every element of a matrix product is one sum over the depth, cut by the depth alone; every score of
    attention is one sum along the head; and the softmax goes through the keys in blocks counted from the
    first key of the sequence, so that what a mask hides adds exactly nothing.

    It does not hold for gradients of parameters, which are sums over the batch; losses, which are means over
    it; dropout, which draws by the place in the batch; a sequence that stands at another place in its row
    (segments behind one another, padding in front), but in BertModel and SentenceEncoder; and the payload of
    a NaN.

    The price: kernels that are faster for few rows, or for many, are not taken where their sums differ, nor
    are a few keys' sums shared among threads. README has it in figures.

    invariant: False for a block within one that asks for it

    The mode belongs to the current context, like `precision`; attention takes it as an argument, too.
    Raises TypeError if invariant is not a bool.
    Source of the idea: He et al. 2025, "Defeating Nondeterminism in LLM Inference".

    >>> from blasformer import linear
    >>> rng = np.random.default_rng(0)
    >>> x, weight = rng.standard_normal((40, 64)), rng.standard_normal((64, 64))
    >>> with batch_invariant():
    ...     np.array_equal(linear(x, weight)[:1], linear(x[:1], weight))
    True
    """
    if not isinstance(invariant, bool):
        raise TypeError(f"invariant must be a bool, got {type(invariant).__name__}")
    return _within(invariant)


def checked_batch_invariance(invariant: bool | None) -> bool | None:
    """The `batch_invariant` argument of a call: None is what the context asks for."""
    if invariant is not None and not isinstance(invariant, bool):
        raise TypeError(f"batch_invariant must be a bool or None, got {type(invariant).__name__}")
    return invariant


@contextmanager
def _within(invariant: bool) -> Iterator[None]:
    token = _current.set(invariant)
    try:
        yield
    finally:
        _current.reset(token)
