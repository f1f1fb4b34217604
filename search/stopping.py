"""Why a run ends before its time: Ctrl-C and SIGTERM, a time limit, somebody's `mnet-search stop`."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Callable, Iterator
from types import FrameType

ASK_EVERY_S = 1.0  # the database, whether somebody wants the run to stop


class StopNow(KeyboardInterrupt):
    """The second Ctrl-C or SIGTERM: nothing is waited for."""


class Stopping:
    """Watches for reasons to stop. At the first one running trials go on to their next checkpoint; at a second signal,
    or a request to stop now, they end at once. Time is that of the monotonic clock: setting the machine's clock changes
    nothing.
    """

    def __init__(self, timeout_s: float | None = None, asked: Callable[[], str | None] = lambda: None):
        """`asked` says `finish` or `now` where somebody wants the run to stop; it is called about once a second."""
        self._ends = None if timeout_s is None else time.monotonic() + timeout_s
        self._timeout_s, self._asked, self._next = timeout_s, asked, 0.0
        self.signal: int | None = None
        self.reason: str | None = None  # in words, for people
        self.now = False
        self.over = False  # what is left to do is done to its end: signals are noted and interrupt nothing
        self.requested = False  # by `mnet-search stop`

    @property
    def wanted(self) -> bool:
        return self.reason is not None

    def look(self) -> None:
        """Look at the clock and, not too often, at what others ask."""
        moment = time.monotonic()
        if self._ends is not None and moment >= self._ends:
            self.reason = self.reason or f"the time limit of {self._timeout_s:g} s is over"
        if moment >= self._next:
            self._next = moment + ASK_EVERY_S
            asked = self._asked()
            if asked is not None:
                self.requested = True
                self.reason, self.now = self.reason or "asked to by mnet-search stop", self.now or asked == "now"

    def note_signal(self, number: int) -> None:
        """Ctrl-C or SIGTERM has come. Raises StopNow at the second, and at no further one."""
        if self.signal is not None:
            first, self.now = not self.now, True
            if first and not self.over:
                raise StopNow
            return
        self.signal = number
        self.reason = "Ctrl-C" if number == signal.SIGINT else signal.Signals(number).name

    @contextlib.contextmanager
    def signals(self) -> Iterator[None]:
        """Ctrl-C and SIGTERM come here while it lasts. Only the main thread may set that; in others nothing changes."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return

        def handle(number: int, _frame: FrameType | None) -> None:
            self.note_signal(number)

        before = {number: signal.signal(number, handle) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)
