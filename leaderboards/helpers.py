"""Work on many items by as many processes as there are cores, where that is worth it."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
import sys
import warnings
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from multiprocessing.pool import AsyncResult
from typing import Any, TypeVar

from threadpoolctl import threadpool_limits

__all__ = ["mapped", "one_thread", "uncollected"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_IT = 400
_AT_ONCE = 16
_MOST = 8
_AHEAD = 8

_ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command."""

_work: Callable[[Sequence[Any]], Iterable[Any]] | None = None


def mapped(
    work: Callable[[Sequence[Item]], Iterable[Result]],
    items: Sequence[Item],
    *,
    weight: int | None = None,
    alone: bool = False,
) -> Iterator[Result]:
    """What `work` makes of each item, in order.

    Helpers are copies of this process, so that `work` may be any function, and nothing of the
    caller's is imported again; where processes can't be copied, or for few items, there are none.

    Args:
        work: Called with some items, gives a result of each; those must survive pickling.
        items: What to work on.
        weight: How much there is to do, in records; None: one an item.
        alone: Whether this process must do it all.
    """
    global _work
    count = min(_MOST, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    step = max(1, min(_AT_ONCE, len(items) // (8 * count)))
    portions = [items[start : start + step] for start in range(0, len(items), step)]
    if alone or (len(items) if weight is None else weight) < _WORTH_IT or count < 2:
        for portion in portions:
            yield from work(portion)
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
        asked: deque[AsyncResult[list[Any]]] = deque()
        for portion in portions:
            asked.append(pool.apply_async(_called, (portion,)))
            if len(asked) == _AHEAD * count:  # results that nobody asks for yet would pile up
                yield from asked.popleft().get()
        while asked:
            yield from asked.popleft().get()


@contextmanager
def one_thread() -> Iterator[None]:
    """Linear algebra by a single thread meanwhile, in helpers too.

    Matrices of rows are small, and threads that wait for each other take the helpers' cores.
    """
    with threadpool_limits(1):
        yield


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


def _called(items: Sequence[Any]) -> list[Any]:
    assert _work is not None
    return list(_work(items))
