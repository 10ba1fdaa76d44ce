"""Exact attention and Transformer layers for NumPy arrays, on a CPU."""

from ._core import __version__

__all__ = ["__version__"]
