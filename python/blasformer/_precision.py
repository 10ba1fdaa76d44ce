from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from typing import Literal, get_args

Precision = Literal["highest", "high", "medium", "ieee"]

_current: ContextVar[Precision] = ContextVar("blasformer precision", default="highest")


def precision(mode: Precision) -> AbstractContextManager[None]:
    """How exactly float32 work is computed within a `with` block, unless a call says it by its own argument.

    "highest"  never less accurate than plain float32 arithmetic, whatever instructions are used; the default
    "high"     relative errors of about 1e-5 in matrix products
    "medium"   products of bfloat16 numbers, added up in float32
    "ieee"     float32 multiply-adds only

    A mode that this CPU cannot speed up runs as the next more accurate one. In this version that is the
    case on every CPU: all modes compute in float32. float64 work is always done in float64.

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
    if mode not in get_args(Precision):
        raise ValueError(f'precision must be "highest", "high", "medium" or "ieee", got {mode!r}')
    return mode


@contextmanager
def _within(mode: Precision) -> Iterator[None]:
    token = _current.set(mode)
    try:
        yield
    finally:
        _current.reset(token)
