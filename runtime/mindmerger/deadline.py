"""The time that an answer may take: when it is over, native code is stopped in the middle, as by `cancel`."""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from time import perf_counter


class Deadline:
    """A context in which `stop` is called after `seconds` (None: never), from another thread, and never afterwards."""

    def __init__(self, seconds: float | None, stop: Callable[[], None]) -> None:
        self._stop = stop
        self._seconds = math.inf if seconds is None else seconds
        self._end = math.inf
        self._lock = threading.Lock()
        self._over = False
        self.expired = False
        self._timer = None if seconds is None else threading.Timer(seconds, self._expire)

    def _expire(self) -> None:
        # under the lock: whoever comes after this answer must not be stopped by its clock
        with self._lock:
            if not self._over and not self.expired:
                self.expired = True
                self._stop()

    def look(self) -> None:
        """Expire now if it is time: on a busy machine the other thread may wake long after that."""
        if perf_counter() > self._end:
            self._expire()

    def __enter__(self) -> Deadline:
        self._end = perf_counter() + self._seconds
        if self._timer is not None:
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            with self._lock:
                self._over = True
            self._timer.cancel()
