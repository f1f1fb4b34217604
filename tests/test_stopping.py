"""Reasons to end a run before its time, and the clock that they go by."""

from __future__ import annotations

import os
import signal
import time

import pytest

from mnet_search.models.arch import MnetError
from mnet_search.search.cli_options import seconds_of
from mnet_search.search.stopping import StopNow, Stopping


def test_nothing_is_a_reason_until_there_is_one() -> None:
    stop = Stopping()
    stop.look()
    assert (stop.wanted, stop.now, stop.signal, stop.requested) == (False, False, None, False)


def test_a_time_limit_goes_by_the_monotonic_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    stop = Stopping(timeout_s=0.2)
    monkeypatch.setattr(time, "time", lambda: 4e9)  # somebody sets the machine's clock far ahead
    stop.look()
    assert not stop.wanted
    time.sleep(0.21)
    stop.look()
    assert stop.reason == "the time limit of 0.2 s is over"
    assert not stop.now


def test_a_request_is_asked_for_about_once_a_second() -> None:
    asked: list[None] = []
    answers: list[str | None] = [None, "finish"]

    def ask() -> str | None:
        asked.append(None)
        return answers[min(len(asked), len(answers)) - 1]

    stop = Stopping(asked=ask)
    for _ in range(100):
        stop.look()
    assert len(asked) == 1
    time.sleep(1.01)
    stop.look()
    assert (stop.wanted, stop.requested, stop.now, stop.reason) == (True, True, False, "asked to by mnet-search stop")


def test_a_request_to_stop_now() -> None:
    stop = Stopping(asked=lambda: "now")
    stop.look()
    assert stop.now


def test_the_first_signal_is_noted_and_the_second_ends_what_runs() -> None:
    stop = Stopping()
    before = signal.getsignal(signal.SIGTERM)
    with stop.signals():
        os.kill(os.getpid(), signal.SIGTERM)
        assert (stop.signal, stop.reason, stop.now) == (signal.SIGTERM, "SIGTERM", False)
        with pytest.raises(StopNow):
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(1)
    assert (stop.signal, stop.now) == (signal.SIGTERM, True)
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.parametrize(
    ("text", "seconds"), [("90", 90), ("90s", 90), ("1.5m", 90), ("2h", 7200), ("1D", 86400), (None, None)]
)
def test_durations(text: str | None, seconds: float | None) -> None:
    assert seconds_of("--timeout", text) == seconds


@pytest.mark.parametrize("text", ["0", "-3", "soon", "3w", "", "nan", "inf", "m"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    with pytest.raises(MnetError, match=r"--timeout .*: write a time above 0, such as 90 \(seconds\), 30m, 2h or 1d"):
        seconds_of("--timeout", text)
