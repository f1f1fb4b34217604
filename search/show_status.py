"""What `status` and `stop` print."""

from __future__ import annotations

import shlex
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from mnet_search.search.printing import echo, print_json, print_table
from mnet_search.search.progress import show_seconds
from mnet_search.search.trial_log import LOG

if TYPE_CHECKING:
    from mnet_search.studies.status import Status, TrialNow
    from mnet_search.studies.store import Store

MOST_FAILURES = 5


def status(store: Store, study: str, *, as_json: bool) -> None:
    """Who works on a study, what runs, the time left, failures with their logs."""
    from mnet_search.studies.status import status as look

    found = look(store, study)
    if as_json:
        print_json(asdict(found))
        return
    _print_head(found)
    name = shlex.quote(study)
    if not found.drivers:
        more = found.summary.n_finished < found.summary.n_total_asked
        echo("no driver is at work" + (f"; go on with: mnet-search resume {name}" if more else ""))
    for driver in found.drivers:
        echo(f"driver: {driver}")
    if found.stop_request:
        echo(f"asked to stop ({found.stop_request})")
    if found.running or found.waiting:
        _print_trials([*found.running, *found.waiting])
    for trial in found.failed[-MOST_FAILURES:]:
        echo(f"trial {trial.number} failed: {trial.reason}")
        if trial.folder:
            echo(f"    log: {trial.folder}/{LOG}")
    if len(found.failed) > MOST_FAILURES:
        echo(f"... and {len(found.failed) - MOST_FAILURES} more failed before (--json lists all)")
    echo(f"logs: {found.runs_dir.rstrip('/')}/{study}/*/{LOG}")


def _print_head(found: Status) -> None:
    s = found.summary
    parts = [f"{s.n_finished} of {s.n_total_asked} finished"]
    parts += [f"{len(found.running)} running"] * bool(found.running)
    parts += [f"{len(found.waiting)} waiting"] * bool(found.waiting)
    parts += [f"{s.n_stopped} stopped early"] * bool(s.n_stopped) + [f"{s.n_failed} failed"] * bool(s.n_failed)
    if found.seconds_left is not None and s.n_finished < s.n_total_asked:
        parts.append(f"about {show_seconds(found.seconds_left)} left")
    echo(f"Study {s.name} (space {s.space}): {', '.join(parts)}")


def _print_trials(trials: list[TrialNow]) -> None:
    table = Table("trial", "state", "epochs", "since", "attempt", "folder", box=None, pad_edge=False)
    for trial in trials:
        cells = [str(trial.number), trial.state, str(trial.epochs), show_seconds(trial.seconds), str(trial.attempts)]
        table.add_row(*cells, trial.folder)
    print_table(table)


def stopped(store: Store, study: str, *, now: bool, as_json: bool) -> None:
    """Ask a study's drivers to stop, and say which ones they are."""
    drivers = store.drivers(study)
    if drivers:
        store.request_stop(study, "now" if now else "finish")
    if as_json:
        print_json({"study": study, "asked": [asdict(driver) for driver in drivers], "now": now})
        return
    if not drivers:
        echo(f"no driver is at work on study {study}; there is nothing to stop")
    for driver in drivers:
        how = "now" if now else "after the running trials' next checkpoints"
        echo(f"asked {driver} to stop {how}")
