"""Progress bars, where somebody sees them."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from ._arguments import checked_flag
from ._optional import require_package

DELAY = 2.0  # seconds of work before a bar appears that was not asked for


@contextmanager
def progress_bar(
    total: int | None, show: bool | None, *, argument: str, description: str, unit: str, done: int = 0
) -> Iterator[Callable[..., object]]:
    """A function to call with the number of units that were done, and with keywords to show beside the bar.

    show: None shows a bar in terminals and notebooks when the work takes longer than 2 seconds
    argument: what the user called it, for the error if True needs a package that is not there
    done: how many of the total were done before
    """
    if show is not None:
        checked_flag(argument, show)
    interactive = sys.stderr.isatty() or "ipykernel" in sys.modules
    tqdm = None
    if show or (show is None and interactive):
        try:
            with warnings.catch_warnings():  # in notebooks without ipywidgets tqdm complains, and works
                warnings.simplefilter("ignore")
                tqdm = require_package("tqdm.auto", extra="progress", purpose=f"{argument}=True").tqdm
        except ImportError:
            if show:
                raise
    if tqdm is None:
        yield lambda count, **shown: None
        return
    with tqdm(total=total, initial=done, desc=description, unit=unit, delay=0 if show else DELAY) as bar:

        def update(count: int, **shown: object) -> None:
            if shown:
                bar.set_postfix(shown, refresh=False)
            bar.update(count)

        yield update
