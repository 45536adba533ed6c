"""What a sweep keeps beside the records: claims on steps, and why steps failed.

Both lie in ``.sweep/`` of the results, a small file a step. A claim saves work and is never needed
for correctness: two workers on one step write the same under the same key. Times are those of the
store's own clock, so machines' clocks may differ by hours.
"""

from __future__ import annotations

import contextlib
import errno
import json
import os
import socket
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from fairbench.core.documents import from_json
from fairbench.core.errors import FairbenchError
from fairbench.runs.times import now
from fairbench.storage.files import FREE
from fairbench.storage.objects import Objects

__all__ = ["BEAT", "EXPIRY", "ROOT", "Failure", "State"]

BEAT = 30.0
"""Seconds between signs of life of a worker."""

EXPIRY = 150.0
"""Seconds after which a claim without one is another's to take."""

ROOT = ".sweep"


@dataclass(frozen=True)
class Failure:
    """Why a step failed last.

    Attributes:
        line: In one line.
        created: When, UTC.
        host: Where.
    """

    line: str
    created: str = ""
    host: str = ""

    @property
    def passing(self) -> bool:
        """Whether it failed of what isn't its own, a full disk: the next sweep tries it again."""
        return FREE in self.line or os.strerror(errno.ENOSPC) in self.line


class State:
    """Claims and notes of failure of a store.

    Args:
        objects: The store of the results.
        expiry: Seconds after which a claim without a sign of life is gone.
    """

    def __init__(self, objects: Objects, expiry: float = EXPIRY) -> None:
        self.objects, self._expiry = objects, expiry

    def claim(self, key: str, holder: str) -> bool:
        """Claim a step; whether it is this holder's now.

        Args:
            key: Of the step.
            holder: Equal for attempts of one sweep at one step, of which at most one is alive:
                the next needn't wait until the claim of the one that died is forgotten.
        """
        content = json.dumps({"holder": holder, "beat": 0}).encode()
        name = _claim(key)
        if self.objects.create(name, content):
            return True
        if self._holder(name) != holder and self.held(key):
            return False
        # Left by a worker that died. Of two that take it over the later one has it; the other
        # does the same work once more, which changes nothing.
        self.objects.write(name, content)
        return self._holder(name) == holder

    def held(self, key: str) -> bool:
        """Whether a living worker has a step."""
        entry = self.objects.entry(_claim(key))
        return entry is not None and self.objects.clock() - entry.modified < self._expiry

    def beat(self, key: str, holder: str, count: int) -> None:
        """Give a sign of life."""
        content = json.dumps({"holder": holder, "beat": count}).encode()
        self.objects.write(_claim(key), content)

    def release(self, key: str, holder: str) -> None:
        """Let go of a step, unless another took it over meanwhile."""
        if self._holder(_claim(key)) == holder:
            self.objects.remove(_claim(key))

    @contextmanager
    def alive(self, key: str, holder: str, every: float = BEAT) -> Iterator[None]:
        """Give signs of life while the block runs, and let go of the step when it ends.

        A store that can't be reached for a while, or is full, stops no work.
        """
        ended = threading.Event()

        def beats() -> None:
            count = 0
            while not ended.wait(every):
                count += 1
                with contextlib.suppress(FairbenchError, OSError):
                    self.beat(key, holder, count)

        thread = threading.Thread(target=beats, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join(timeout=every)
            with contextlib.suppress(FairbenchError, OSError):
                self.release(key, holder)

    def fail(self, key: str, line: str) -> None:
        """Keep why a step failed."""
        note = {"error": line, "created": now(), "host": socket.gethostname()}
        self.objects.write(_failure(key), json.dumps(note, ensure_ascii=False).encode())

    def forget(self, key: str) -> None:
        """Remove the note of a step's failure."""
        self.objects.remove(_failure(key))

    def failures(self) -> Mapping[str, Failure]:
        """Step -> why it failed last."""
        names = list(self.objects.list(f"{ROOT}/failed"))
        return {_key(name): _read(text) for name, text in self.objects.read(names).items()}

    def failure(self, key: str) -> Failure | None:
        """Why a step failed last; None if there is no note."""
        text = self.objects.read([_failure(key)]).get(_failure(key))
        return None if text is None else _read(text)

    def noted(self) -> Mapping[str, str]:
        """Step that failed -> what changes when it fails again."""
        found = self.objects.list(f"{ROOT}/failed")
        return {_key(name): entry.tag for name, entry in found.items()}

    def note(self, key: str) -> str | None:
        """As `noted`, of one step; None if it didn't fail."""
        entry = self.objects.entry(_failure(key))
        return None if entry is None else entry.tag

    def running(self) -> set[str]:
        """Steps that living workers have."""
        claims = self.objects.list(f"{ROOT}/claims")
        if not claims:
            return set()
        clock = self.objects.clock()
        return {
            _key(name) for name, entry in claims.items() if clock - entry.modified < self._expiry
        }

    def _holder(self, name: str) -> str | None:
        text = self.objects.read([name]).get(name)
        with contextlib.suppress(ValueError, AttributeError):
            return None if text is None else str(from_json(text).get("holder"))
        return None


def _claim(key: str) -> str:
    return f"{ROOT}/claims/{key}.json"


def _failure(key: str) -> str:
    return f"{ROOT}/failed/{key}.json"


def _key(name: str) -> str:
    return name.rpartition("/")[2].removesuffix(".json")


def _read(text: bytes) -> Failure:
    told: Any = None
    with contextlib.suppress(ValueError):
        told = from_json(text)
    if not isinstance(told, dict):
        return Failure("failed; the note that says why is damaged")
    return Failure(
        str(told.get("error", "failed")), str(told.get("created", "")), str(told.get("host", ""))
    )
