from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from typing import Any, Literal, overload

from . import _core
from ._arguments import checked_name
from ._threads import get_num_threads


def use_isa(name: str) -> AbstractContextManager[object]:
    """Take the kernels for one instruction set in the whole process.

    "baseline", "avx2" and "avx512" name the vectors of all kernels; "amx" takes those of AVX-512, and tiles
    for the matrix products of layers and within attention; "amx_reference" computes these products as AMX
    would, slowly, on any CPU, and all else with the newest vectors there are.

    For tests and measurements: otherwise the newest one that CPU and operating system support is taken, or
    that of the environment variable BLASFORMER_ISA. It takes effect at once; as a context manager it puts
    back, at the end of the block, what was in use. Raises ValueError for an unknown name and for one that
    this CPU does not support. It does not change which kernels OpenBLAS uses.

    >>> with use_isa("baseline"):
    ...     show_config(mode="dicts")["instruction sets"]["in use"]
    'baseline'
    """
    previous = _core.active_isa()
    _core.use_isa(checked_name("name", name))
    scope = ExitStack()
    scope.callback(_core.use_isa, previous)
    return scope


@overload
def show_config(mode: Literal["stdout"] = "stdout") -> None: ...


@overload
def show_config(mode: Literal["dicts"]) -> dict[str, Any]: ...


def show_config(mode: str = "stdout") -> dict[str, Any] | None:
    """What this copy of blasformer is and uses: version, BLAS, instruction sets, threads.

    mode="stdout" prints it, mode="dicts" returns it, as numpy.show_config does. What cannot be found out,
    such as the version of a BLAS that cannot be loaded, is replaced by the reason. Raises ValueError for
    another mode.

    >>> show_config(mode="dicts")["version"] == __import__("blasformer").__version__
    True
    """
    if mode not in ("stdout", "dicts"):
        raise ValueError(f'mode must be "stdout" or "dicts", got {mode!r}')
    config = {
        "version": _core.__version__,
        "blas": {
            "version": _or_reason(_core.blas_config),
            "kernels": _or_reason(_core.blas_core_name),
            "file": _or_reason(_core.blas_path),
        },
        "instruction sets": {
            "built": _core.built_isas(),
            "detected": _core.detected_isas(),
            "in use": _or_reason(_core.active_isa),
        },
        "threads": {
            "in use": get_num_threads(),
            "available cores": _core.available_cores(),
        },
    }
    if mode == "dicts":
        return config
    for topic, facts in config.items():
        if isinstance(facts, dict):
            print(f"{topic}:")
            for name, value in facts.items():
                print(f"  {name}: {', '.join(value) if isinstance(value, list) else value}")
        else:
            print(f"{topic}: {facts}")
    return None


def _or_reason(ask: Callable[[], str]) -> str:
    try:
        return ask()
    except (RuntimeError, ValueError, MemoryError) as error:
        return f"unknown ({error})"
