"""Work on many items by as many processes as there are cores, where that is worth it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

__all__ = ["mapped", "uncollected"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_IT = 400
_AT_ONCE = 16
_MOST = 8

_ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command."""

_work: Callable[[Any], Any] | None = None


def mapped(
    work: Callable[[Item], Result],
    items: Sequence[Item],
    *,
    alone: bool = False,
) -> Iterator[Result]:
    """What `work` makes of each item, in order.

    Helpers are copies of this process, so that `work` may be any function, and nothing of the
    caller's is imported again; where processes can't be copied, or for few items, there are none.

    Args:
        work: Called with one item; what it gives must survive pickling.
        items: What to work on.
        alone: Whether this process must do it all.
    """
    global _work
    count = min(_MOST, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    if alone or len(items) < _WORTH_IT or count < 2:
        yield from map(work, items)
        return
    _work = work
    # A helper must not hear what this process does on a signal before it is one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with warnings.catch_warnings():
            # Python can't know that no thread of ours holds a lock here.
            warnings.simplefilter("ignore", DeprecationWarning)
            pool = multiprocessing.get_context("fork").Pool(count, initializer=_begin)
    finally:
        _work = None
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pool:
        for start in range(0, len(items), 64 * _AT_ONCE * count):
            # In portions: results that nobody has asked for yet would pile up.
            portion = items[start : start + 64 * _AT_ONCE * count]
            yield from pool.imap(_called, portion, _AT_ONCE)


@contextmanager
def uncollected() -> Iterator[None]:
    """No search for cycles meanwhile: records and rows are many, and none holds one."""
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _begin() -> None:
    """Make this process a helper: it ends when the one that it helps has it end, without a word.

    A terminal sends Ctrl-C to every process of a command, and each would tell it at length.
    """
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _called(item: Any) -> Any:
    assert _work is not None
    return _work(item)
