"""The machine's clock is set, forward and back, in the middle of a search: nothing but the times in its records shows
it.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from pathlib import Path

import pytest

from drills import (
    OWN,
    WRITER,
    Fault,
    again,
    assert_nothing_lost,
    driver_with,
    ended,
    going,
    rows,
    trials,
    until,
    write_own,
)
from postgres import Server
from processes import start, write_space

pytestmark = pytest.mark.faults

# Run in the driver's own process: from then on its clocks show other times. The monotonic clock cannot be set.
SET_CLOCK = """\
real_time, real_datetime = time.time, datetime.datetime
class Shifted(real_datetime):
    @classmethod
    def now(cls, tz=None):
        return real_datetime.fromtimestamp(time.time(), tz)
shift = {seconds}
time.time = lambda: real_time() + shift
for module in list(sys.modules.values()):
    if module is not None and module.__name__.startswith("mnet_search") and hasattr(module, "datetime"):
        if module.datetime is real_datetime:
            module.datetime = Shifted
"""
EPOCHS = "for epoch in (1, 2):\n    time.sleep(0.2)\n    trial.report(epoch, accuracy=trial.params['width'] / 2)\n"
EPOCHS += "return trial.params['width'] / 2"


@pytest.mark.parametrize("hours", [1, -1])
def test_a_clock_that_is_set_changes_no_result_and_no_time_limit(tmp_path: Path, hours: int) -> None:
    write_own(tmp_path, EPOCHS)
    text = OWN.replace("seed: 0}", "seed: 0, trial_timeout_s: 60}")
    act = SET_CLOCK.format(seconds=3600 * hours)
    script = driver_with(tmp_path, Fault(WRITER, "begin", n=2, act=act))
    arguments = ("run", write_space(tmp_path, text), "--executor", "local", "--n-trials", 5)
    with going(start(tmp_path, *arguments, "--timeout", 300, script=script)) as process:
        log = ended(process, tmp_path, 0)
    assert "time limit" not in log
    found = assert_nothing_lost(tmp_path, 5, 2, with_checkpoints=False)
    ends = [datetime.fromisoformat(row["finished"]) for row in found]
    jump = ends[1] - ends[0] - timedelta(hours=hours)  # the clock was set for real
    assert abs(jump) < timedelta(minutes=2)
    values = [(row["arch_id"], row["seed"], row["metrics"]) for row in found]
    other = tmp_path / "as usual"
    other.mkdir()
    write_own(other, EPOCHS)
    again(other, "run", write_space(other, text), *arguments[2:])
    assert [(row["arch_id"], row["seed"], row["metrics"]) for row in trials(other)] == values


def test_leases_go_by_the_databases_clock(tmp_path: Path, postgres: Server) -> None:
    """A driver whose clock is an hour slow, and one whose clock is an hour fast: both believe in each other."""
    url = postgres.database()
    write_own(tmp_path, EPOCHS)
    space = write_space(tmp_path, OWN)
    arguments = ("run", space, "--executor", "local", "--n-trials", 16, "--join", "--lease", 2, "--storage", url)
    slow, fast = (
        driver_with(
            tmp_path,
            Fault("mnet_search.studies.leases:_LeasedSeat", "enter", act=SET_CLOCK.format(seconds=seconds)),
            name=f"driver_{name}.py",
        )
        for name, seconds in (("slow", -3600), ("fast", 3600))
    )
    with going(start(tmp_path, *arguments, script=slow)) as one, going(start(tmp_path, *arguments, script=fast)) as two:
        both = until(lambda: len(r := rows(url, "SELECT since, expires FROM mnet_drivers")) == 2 and r)
        assert all(abs(row["since"] - datetime.now().timestamp()) < 60 for row in both)
        assert all(0 < row["expires"] - row["since"] < 60 for row in both)
        ended(one, tmp_path, 0)
        ended(two, tmp_path, 0)
    found = assert_nothing_lost(url, 16, 2, with_checkpoints=False)
    assert {row["attempts"] for row in found} == {1}  # nobody took anything from the other
    assert len({row["owner"] for row in found}) == 2
