"""Ctrl-C at the right moment: between two steps, never inside one."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Any


class DeferredInterrupt:
    """While this context lasts, Ctrl-C is only noted; what it usually does is done at the end of it.

    Elsewhere than in the main thread, which alone receives it, nothing happens.
    """

    _noted: bool
    _frame: FrameType | None  # where Ctrl-C came
    _previous: Callable[[int, FrameType | None], Any] | None

    def __enter__(self) -> DeferredInterrupt:
        self._noted, self._frame, self._previous = False, None, None
        if threading.current_thread() is threading.main_thread():
            previous = signal.getsignal(signal.SIGINT)
            if callable(previous):
                self._previous = previous
                signal.signal(signal.SIGINT, self._note)
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        self._noted, self._frame = True, frame

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._previous is not None:
            signal.signal(signal.SIGINT, self._previous)
            if self._noted:
                self._previous(signal.SIGINT, self._frame)


class StopRequest:
    """While this context lasts, the first Ctrl-C sets `made`, for a loop to look at; the second raises
    KeyboardInterrupt, as it would without.

    Elsewhere than in the main thread, or where somebody else handles Ctrl-C, nothing happens.
    """

    made = False
    _installed = False

    def __enter__(self) -> StopRequest:
        if (
            threading.current_thread() is threading.main_thread()
            and signal.getsignal(signal.SIGINT) is signal.default_int_handler
        ):
            signal.signal(signal.SIGINT, self._note)
            self._installed = True
        return self

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.made:
            signal.default_int_handler(number, frame)
        self.made = True

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._installed:
            signal.signal(signal.SIGINT, signal.default_int_handler)
