from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal, ParamSpec, TypeVar, get_args

from . import _core

Precision = Literal["highest", "high", "medium", "ieee"]

P = ParamSpec("P")
T = TypeVar("T")

_current: ContextVar[Precision] = _core.precision_variable


def precision(mode: Precision) -> AbstractContextManager[None]:
    """How exactly float32 work is computed within a `with` block, unless a call says it by its own argument.

    "highest"  never less accurate than plain float32 arithmetic, whatever instructions are used; the default
    "high"     relative errors of about 1e-5 in matrix products
    "medium"   products of bfloat16 numbers, added up in float32
    "ieee"     float32 multiply-adds only

    A mode that this CPU cannot speed up runs as the next more accurate one. With AMX all but "ieee" take its
    tiles: a float32 number is the exact sum of three bfloat16 numbers, and "highest" adds up the six largest
    products of such parts, "high" three, "medium" one. With AVX512_BF16 alone "medium" takes its dot
    products, in layers, and attention between bfloat16 arrays takes them for its scores unless the mode is
    "ieee": products of bfloat16 numbers are exact. Numbers that parts cannot represent (infinite, near the
    largest or the smallest there are) are computed with float32 multiply-adds. It concerns the matrix
    products of layers and those within attention, forward and backward (but for few queries, as in decoding,
    and batch_invariant()); the softmax, sums and all else are float32 arithmetic in every mode. float64 work
    is always done in float64.

    The mode belongs to the current context, as with decimal.localcontext: other threads and asyncio tasks
    have their own. Raises ValueError for another mode.

    >>> with precision("high"):
    ...     pass
    """
    return _within(checked_precision(mode))


def checked_precision(mode: Precision | None) -> Precision:
    """The mode that a `precision` argument asks for: None is that of the context."""
    if mode is None:
        return _current.get()
    if not isinstance(mode, str) or mode not in get_args(Precision):
        raise ValueError(f'precision must be "highest", "high", "medium" or "ieee", got {mode!r}')
    return mode


def at_precision(mode: Precision, function: Callable[P, T]) -> Callable[P, T]:
    """The function, called in a context of that mode."""
    mode = checked_precision(mode)

    def call(*args: P.args, **kwargs: P.kwargs) -> T:
        with _within(mode):
            return function(*args, **kwargs)

    return call


@contextmanager
def _within(mode: Precision) -> Iterator[None]:
    token = _current.set(mode)
    try:
        yield
    finally:
        _current.reset(token)
