"""Packages that only some of the features need."""

import importlib
from types import ModuleType


def require_package(name: str, *, extra: str, purpose: str) -> ModuleType:
    """The module of that name, or an ImportError that says how to get it.

    Called inside the function that needs it, so that importing blasformer imports NumPy alone.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(
            f"{purpose} needs the package {package}: pip install 'blasformer[{extra}]'"
        ) from error
