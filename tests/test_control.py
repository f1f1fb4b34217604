"""What a search says while it runs and to those who ask from elsewhere: JSON lines, `status`, `stop`."""

from __future__ import annotations

import json
from pathlib import Path

from processes import TINY, call, mnet, write_space


def test_events_and_log_messages_are_json_lines_on_request(tmp_path: Path) -> None:
    space = write_space(tmp_path, TINY)
    done = mnet(tmp_path, "run", space, "--executor", "local", "--n-trials", 1, "--log-json", "--json")
    assert done.returncode == 0, done.stderr
    records = [json.loads(line) for line in done.stderr.splitlines()]
    events = [record["message"] for record in records]
    ours = ["search begins", "trial started", "epoch", "epoch", "trial finished"]
    assert [event for event in events if event in ours] == ours
    last = next(record for record in records if record["message"] == "trial finished")
    assert (last["level"], last["trial"]) == ("INFO", 0)
    assert set(last["values"]) >= {"accuracy", "latency_ms", "params"}
    assert json.loads(done.stdout)["n_new"] == 1  # data alone on stdout

    found = json.loads(call(tmp_path, "status", "tiny", "--storage", "study.db", "--json").stdout)
    assert (found["summary"]["n_finished"], found["drivers"], found["running"], found["failed"]) == (1, [], [], [])
    assert found["seconds_left"] is None
    shown = call(tmp_path, "status", "tiny", "--storage", "study.db").stdout
    assert "Study tiny (space tiny): 1 of 1 finished" in shown
    assert "no driver is at work" in shown
    assert "logs: runs/tiny/*/trial.log" in shown
    stopped = call(tmp_path, "stop", "tiny", "--storage", "study.db")
    assert (stopped.returncode, stopped.stdout) == (
        0,
        "no driver is at work on study tiny; there is nothing to stop\n",
    )
