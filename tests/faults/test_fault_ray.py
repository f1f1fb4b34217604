"""kill -9 of what belongs to Ray: an actor, and the raylet, without which nothing of Ray works on."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from drills import OWN, again, assert_nothing_lost, finished, going, trials, until, write_own
from processes import children, ray_actors, start, write_space

pytestmark = [pytest.mark.faults, pytest.mark.ray, pytest.mark.xdist_group("ray")]

EPOCHS = """\
for epoch in range(1, 41):
    if (HERE / "slow").exists():
        time.sleep(0.2)
    trial.report(epoch, accuracy=0.5)
return 0.5
"""


def raylets(pid: int) -> list[int]:
    """The raylet below a driver: there is one on a machine."""
    found = []
    for child in children(pid):
        if b"/raylet" in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0")[0]:
            found.append(child)
        found += raylets(child)
    return found


@pytest.mark.timeout(600)
def test_kill_9_of_an_actor_and_of_the_raylet(tmp_path: Path) -> None:
    write_own(tmp_path, EPOCHS)
    (tmp_path / "slow").touch()
    arguments = ("run", write_space(tmp_path, OWN), "--executor", "ray", "--n-trials", 2)
    with going(start(tmp_path, *arguments)) as process:
        until(lambda: trials(tmp_path, "RUNNING")[0]["epochs"] >= 2, timeout=180)
        (actor,) = ray_actors(process.pid)
        os.kill(actor, signal.SIGKILL)
        until(lambda: trials(tmp_path, "RUNNING")[0]["attempts"] == 2, timeout=120)  # it goes on with another
        log = Path(trials(tmp_path)[0]["folder"]) / "trial.log"
        until(lambda: log.read_text().count("trial 0 begins") == 2, timeout=120)
        (raylet,) = raylets(process.pid)
        os.kill(raylet, signal.SIGKILL)
        code = process.wait(120)
    said = (tmp_path / "log.txt").read_text()
    assert code == 3, said
    assert "Traceback" not in said
    assert "mnet-search: " in said  # one sentence
    before = finished(tmp_path)  # an actor may outlive the raylet until its trial is done
    (tmp_path / "slow").unlink()
    again(tmp_path, *arguments, timeout=240)
    found = assert_nothing_lost(tmp_path, 2, 40, before=before, with_checkpoints=False)
    assert {row["state"] for row in found} == {"COMPLETE"}
