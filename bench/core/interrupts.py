"""Ctrl-C and SIGTERM end a process in one way: a KeyboardInterrupt, until its end is said."""

from __future__ import annotations

import signal
import threading
import time
from types import FrameType

__all__ = ["listen", "no_more"]

SIGNALS = (signal.SIGINT, signal.SIGTERM)

SAME_MOMENT = 1.0
"""Seconds within which signals are one: ``timeout``, a terminal and schedulers send theirs to a
process and to its group, and the second must not strike what the first one set off."""

_last: float | None = None
_listening = False


def listen() -> None:
    """Let either signal raise KeyboardInterrupt in the main thread from now on.

    One that this process was started to ignore, as ``nohup`` and ``&`` in a script do, stays so.
    """
    global _listening
    if threading.current_thread() is not threading.main_thread():  # which alone hears of it
        return
    _listening = True
    for number in SIGNALS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _interrupted)


def no_more() -> None:
    """Ignore both signals from now on: how this process ends is decided, and it is ending.

    Nothing happens in a process that doesn't listen, such as one that calls a command's function.
    """
    global _listening
    if not _listening:
        return
    for number in SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    _listening = False
    # CPython ends by SIGINT, whatever the exit code, if a KeyboardInterrupt has gone through the
    # execution of a string, as the making of a dataclass is one; the next execution forgets it.
    exec("")


def _interrupted(number: int, frame: FrameType | None) -> None:
    global _last
    now = time.monotonic()
    if _last is not None and now - _last < SAME_MOMENT:
        return
    _last = now
    raise KeyboardInterrupt
