"""A piece of work that runs in a thread of its own and hands over what it makes, one thing at a time: so that it can be
watched by a clock, and stopped between two things.
"""

from __future__ import annotations

import contextlib
import contextvars
import queue
import threading
import time
from collections.abc import Callable, Generator
from typing import Any, TypeVar

from mnet_search.search.training import TrialFailed

T = TypeVar("T")
_END = object()
JOIN_S = 5.0  # for work that ends where it hands something over: what it holds is free afterwards


class TrialTimeout(TrialFailed):
    """A trial that took too long. Its thread cannot be ended: whoever runs trials here starts another process."""


class Ended(BaseException):  # not an error, and not to be caught by `except Exception` in user code
    """Raised where the work hands something over, once nobody wants more of it."""


def in_thread(work: Callable[[Callable[[T], None]], None], timeout_s: float | None) -> Generator[T, None, None]:
    """What `work(emit)` emits. It goes on after an emit only when the next thing is asked for.

    Raises what `work` raises, and TrialTimeout where it is not done after `timeout_s` seconds of its own time.
    """
    made: queue.Queue[Any] = queue.Queue(1)
    wanted: queue.Queue[bool] = queue.Queue(1)

    over = threading.Event()

    def emit(thing: T) -> None:
        if over.is_set():  # somebody caught what was raised at the last one
            raise Ended
        made.put(thing)
        if not wanted.get():
            over.set()
            raise Ended

    def run() -> None:
        try:
            if wanted.get():
                work(emit)
            made.put(_END)
        except Ended:
            pass
        except KeyboardInterrupt:  # of the work's own making: Ctrl-C comes to the main thread
            made.put(TrialFailed("the trial raised KeyboardInterrupt"))
        except BaseException as error:  # noqa: BLE001  # raised again in the thread that waits
            made.put(error)

    context = contextvars.copy_context()
    thread = threading.Thread(target=context.run, args=(run,), daemon=True, name="trial")
    thread.start()
    left = timeout_s
    try:
        while True:
            began = time.monotonic()
            wanted.put(True)
            try:
                thing = made.get(timeout=left)
            except queue.Empty:
                raise TrialTimeout(
                    f"the trial was not done after search.trial_timeout_s = {timeout_s:g} s; raise it, or look for "
                    "what hangs"
                ) from None
            if left is not None:
                left = max(left - (time.monotonic() - began), 0.001)
            if thing is _END:
                return
            if isinstance(thing, BaseException):
                raise thing
            yield thing
    except GeneratorExit:
        wanted.put(False)
        thread.join(JOIN_S)
        raise
    finally:
        with contextlib.suppress(queue.Full):  # what was left behind ends where it next hands something over
            wanted.put_nowait(False)
