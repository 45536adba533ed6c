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

__all__ = ["mapped", "one_thread", "uncollected", "worth_it"]

Item = TypeVar("Item")
Result = TypeVar("Result")

_WORTH_IT = 400
_AT_ONCE = 16
_MOST = 8
_AHEAD = 8
_PATIENCE = 2.0  # seconds after which it is looked whether all helpers are there

_ENDING = (signal.SIGINT, signal.SIGTERM)
"""Signals that end a command."""

_work: Callable[[Sequence[Any]], Iterable[Any]] | None = None
"""What this process does, if it is a helper."""


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
    What a helper had at hand that was ended from outside, this process works out itself.

    Args:
        work: Called with some items, gives a result of each; those must survive pickling.
        items: What to work on.
        weight: How much there is to do, in records; None: one an item.
        alone: Whether this process must do it all.
    """
    count = min(_MOST, len(os.sched_getaffinity(0)) if sys.platform == "linux" else 1)
    step = max(1, min(_AT_ONCE, len(items) // (8 * count)))
    portions = [items[start : start + step] for start in range(0, len(items), step)]
    if alone or not worth_it(len(items) if weight is None else weight) or count < 2:
        for portion in portions:
            yield from work(portion)
        return
    # A helper must not hear what this process does on a signal before it is one.
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _ENDING)
    try:
        with warnings.catch_warnings():
            # Python can't know that no thread of ours holds a lock here.
            warnings.simplefilter("ignore", DeprecationWarning)
            context = multiprocessing.get_context("fork")
            pool = context.Pool(count, initializer=_begin, initargs=(work,))
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
    with pool:
        crew = _alive()
        asked: deque[tuple[Sequence[Item], AsyncResult[list[Result]]]] = deque()

        def next_results() -> Iterable[Result]:
            portion, result = asked.popleft()
            while True:
                try:
                    return result.get(timeout=_PATIENCE)
                except multiprocessing.TimeoutError:
                    if not crew <= _alive():  # for want of memory, say
                        return work(portion)

        for portion in portions:
            asked.append((portion, pool.apply_async(_called, (portion,))))
            if len(asked) == _AHEAD * count:  # results that nobody asks for yet would pile up
                yield from next_results()
        while asked:
            yield from next_results()


def worth_it(weight: int) -> bool:
    """Whether there is enough to do, in records, for helpers."""
    return weight >= _WORTH_IT


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


def _alive() -> set[int | None]:
    return {child.pid for child in multiprocessing.active_children()}


def _begin(work: Callable[[Sequence[Any]], Iterable[Any]]) -> None:
    """Make this process a helper: it ends when the one that it helps has it end, without a word.

    A terminal sends Ctrl-C to every process of a command, and each would tell it at length.
    """
    global _work
    _work = work
    gc.disable()
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _ENDING)


def _called(items: Sequence[Any]) -> list[Any]:
    assert _work is not None
    return list(_work(items))
