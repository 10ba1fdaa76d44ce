import sys
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType
from typing import Any

from . import _core
from ._arguments import checked_integer


def get_num_threads() -> int:
    """How many threads a call from this Python thread may use.

    That is what `num_threads` or `set_num_threads` asked for. Before that it is BLASFORMER_NUM_THREADS, then
    OMP_NUM_THREADS (the first number of a list such as "4,2"), then the cores this process may use: those of
    its CPU affinity, or the CPU quota of its control groups if that is less. The cores also limit the two
    variables, whose values are often meant for another machine.

    Results have the same bits for any number of threads. A variable that does not begin with a positive
    number is ignored, with one RuntimeWarning.

    >>> get_num_threads() >= 1
    True
    """
    return _core.num_threads()


def set_num_threads(n: int) -> None:
    """Let every call in this process use up to n threads, 1 <= n <= 256, even if there are fewer cores.

    Raises ValueError for other numbers and TypeError unless n is an int.

    >>> set_num_threads(2)
    >>> get_num_threads()
    2
    """
    _core.set_num_threads(_checked(n))


def num_threads(n: int) -> AbstractContextManager[None]:
    """Let calls from this Python thread use up to n threads, 1 <= n <= 256, within a `with` block.

    Other Python threads keep what they have. Raises ValueError for other numbers and TypeError unless n is
    an int.

    >>> with num_threads(1):
    ...     get_num_threads()
    1
    """
    return _overridden(_checked(n))


@contextmanager
def _overridden(n: int) -> Iterator[None]:
    previous = _core.override_num_threads(n)
    try:
        yield
    finally:
        _core.override_num_threads(previous)


def _checked(n: int) -> int:
    count = checked_integer("n", n)
    if not 1 <= count <= 256:
        raise ValueError(f"the number of threads must be from 1 to 256, got {count}")
    return count


class _TellThreadpoolctl:
    """Makes the thread pool known to threadpoolctl as soon as somebody imports that.

    threadpoolctl finds BLAS libraries by itself, but of others only those that registered with it. Importing
    it for that would cost everybody time, and few programs need it; so this waits in sys.meta_path.
    """

    def find_spec(self, name: str, path: Any = None, target: ModuleType | None = None) -> Any:
        if name != "threadpoolctl":
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        found: Any = next(filter(None, (finder.find_spec(name, path, target) for finder in others)), None)
        if found is not None:
            found.loader.exec_module = self._then_register(found.loader.exec_module)
        return found

    def _then_register(self, execute: Callable[[ModuleType], None]) -> Callable[[ModuleType], None]:
        def execute_and_register(module: ModuleType) -> None:
            execute(module)
            register_with_threadpoolctl(module)

        return execute_and_register


def register_with_threadpoolctl(threadpoolctl: Any) -> None:
    if not hasattr(threadpoolctl, "register"):  # before version 3.2 it knew no libraries but its own
        return

    # The ignored error: it has no types, so that the base class is anything.
    class BlasformerController(threadpoolctl.LibController):  # type: ignore[misc]
        user_api = "blas"
        internal_api = "blasformer"
        filename_prefixes = ("_core",)
        check_symbols = ("blasformer_num_threads",)

        def get_num_threads(self) -> int:
            return get_num_threads()

        def set_num_threads(self, num_threads: int) -> None:
            # Within `with num_threads(n)` the number of the process does not count: its own is changed.
            previous = _core.override_num_threads(None)
            if previous is None:
                set_num_threads(num_threads)
            else:
                _core.override_num_threads(num_threads)

        def get_version(self) -> str:
            return _core.__version__

    threadpoolctl.register(BlasformerController)


if "threadpoolctl" in sys.modules:
    register_with_threadpoolctl(sys.modules["threadpoolctl"])
else:
    sys.meta_path.insert(0, _TellThreadpoolctl())
