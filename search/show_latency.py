"""What the latency commands do and print: a network measured, a network predicted from a table, tables built and
listed.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.table import Table

from mnet_search.models.arch import Arch, MnetError
from mnet_search.search.printing import echo, print_json, print_table
from mnet_search.search.show import find_arch

if TYPE_CHECKING:
    from mnet_search.models.latency import Latency, Protocol
    from mnet_search.models.latency_table import LatencyTable

PROGRESS_EVERY = 20  # measurements between two lines of progress
LIMIT_ERROR, LIMIT_SPEARMAN = 0.10, 0.95  # beyond which a table is called rough


def protocols(name: str, batches: Sequence[int], changes: dict[str, Any]) -> list[Protocol]:
    """A protocol by name with what the command line changes, once for every batch size asked for. Raises MnetError."""
    from dataclasses import replace

    from mnet_search.models.latency import PROTOCOLS
    from mnet_search.models.tables import nearest

    if name not in PROTOCOLS:
        raise MnetError(f"unknown protocol {name!r}{nearest(name, PROTOCOLS)} (known: {', '.join(PROTOCOLS)})")
    chosen = replace(PROTOCOLS[name], **{key: value for key, value in changes.items() if value is not None})
    return [replace(chosen, batch=batch) for batch in batches] if batches else [chosen]


def measured(target: str, overrides: list[str], wanted: Sequence[Protocol], *, as_json: bool) -> None:
    """Measured latency of an untrained network, once for each protocol."""
    from mnet_search.models.factory import build
    from mnet_search.models.latency import measure
    from mnet_search.search.trial import latency_lock

    arch, found = _network(target, overrides), []
    for protocol in wanted:
        _refuse_what_cannot_fit(arch, protocol)
    module = build(arch)
    with latency_lock():
        for protocol in wanted:
            found.append(measure(module, arch.input, protocol))
            if not as_json:
                _print_measured(arch, found[-1])
    if as_json:
        rows = [asdict(latency) | {"latency_ms": latency.latency_ms} for latency in found]
        print_json({"arch_id": arch.id} | (rows[0] if len(rows) == 1 else {"measurements": rows}))


def _print_measured(arch: Arch, found: Latency) -> None:
    echo(f"{arch.family} {arch.id}  input {arch.input}, {_conditions(asdict(found))}, {found.device}")
    runs = f"n = {found.n} after {found.warmup} warm-up runs"
    if found.statistic == "mean":
        echo(f"latency      {found.mean_ms:.3g} ms  (mean; sd {found.sd_ms:.2g}, {runs})")
    else:
        echo(
            f"latency      {found.median_ms:.3g} ms  (median; quartiles {found.q1_ms:.3g} to {found.q3_ms:.3g}, {runs})"
        )
    echo(
        f"reference    {found.reference_ms:.3g} ms  "
        f"(drifted {100 * found.drift:.0f} %, bound {100 * found.drift_bound:.0f} %; "
        f"the network takes {found.ratio:.3g} times as long)"
    )
    if found.warning:
        echo(found.warning)


def predicted(
    storage: str, target: str, overrides: list[str], space: str, wanted: Sequence[Protocol], *, as_json: bool
) -> None:
    """Latency of a network from a stored table, without running it."""
    from mnet_search.models.layer_timing import fingerprint
    from mnet_search.studies.latency_tables import find
    from mnet_search.studies.store import Store

    arch, rows = _network(target, overrides), []
    with Store(storage) as store:
        for protocol in wanted:
            table = find(store, _space_name(space), fingerprint(protocol)).table
            prediction = table.predict(arch)
            error = asdict(table.error) if table.error else None
            row = {"batch": protocol.batch, "table": table.space, "reference_ms": table.reference_ms}
            rows.append(row | asdict(prediction) | {"table_error": error})
            if not as_json:
                echo(f"{arch.family} {arch.id}  input {arch.input}, {_conditions(dict(table.fingerprint))}, predicted")
                echo(f"latency      {prediction.latency_ms:.3g} ms  (table of {table.space}; {_error_text(table)})")
                echo(f"reference    {table.reference_ms:.3g} ms  (when the table was built; times go with it)")
                if prediction.estimated:
                    echo(f"estimated    {_estimated_text(prediction.estimated, prediction.n_layers)}")
    if as_json:
        print_json({"arch_id": arch.id} | (rows[0] if len(rows) == 1 else {"predictions": rows}))


def built(
    storage: str, path: Path, overrides: list[str], wanted: Sequence[Protocol], *, quiet: bool, as_json: bool
) -> None:
    """Build, judge and store the table of a space, once for each protocol."""
    from mnet_search.models.latency_table import select
    from mnet_search.models.layer_timing import build_table
    from mnet_search.search.run import open_space
    from mnet_search.search.trial import latency_lock
    from mnet_search.spaces.survey import survey
    from mnet_search.studies.latency_tables import save
    from mnet_search.studies.store import Store

    space = open_space(path, overrides)
    seen = survey(space)
    networks = seen.distinct(feasible=True)
    selection = select([space.arch(params) for params in networks.values()])
    if not quiet:
        _progress(
            f"{space.name}: {selection.n_layers:,} distinct layers in {len(networks):,} networks; timing them in "
            f"{len(selection.cover)} networks, judging by {len(selection.held_out)} others"
        )

    def on_measured(done: int, total: int) -> None:
        if not quiet and (done % PROGRESS_EVERY == 0 or done == total):
            _progress(f"{done} of {total} measurements")

    tables = []
    with Store(storage, create=True) as store:
        for protocol in wanted:
            with latency_lock():
                table = build_table(space.name, selection, protocol, on_measured)
            save(store, table)
            tables.append(table)
            if not as_json:
                _print_built(table, storage)
    if as_json:
        rows = [summary(table) for table in tables]
        print_json(rows[0] if len(rows) == 1 else {"tables": rows})


def _print_built(table: LatencyTable, storage: str) -> None:
    echo(
        f"latency table of {table.space}: {len(table.layers):,} layers, timed in {table.n_networks} networks in "
        f"{table.seconds:.0f} s; stored in {storage}"
    )
    echo(f"conditions   {', '.join(f'{name} {value}' for name, value in table.fingerprint.items())}")
    echo(f"error        {_error_text(table)}")
    echo(f"reference    {table.reference_ms:.3g} ms  (drifted {100 * table.drift:.0f} %; every time is divided by it)")
    if table.error and (table.error.median > LIMIT_ERROR or table.error.spearman < LIMIT_SPEARMAN):
        echo(
            f"a rough table: its median error should be at most {100 * LIMIT_ERROR:.0f} % and Spearman's correlation "
            f"at least {LIMIT_SPEARMAN}; close other programs and build it again"
        )


def listed(storage: str, *, as_json: bool) -> None:
    """Every stored table in a line."""
    from mnet_search.studies.latency_tables import stored
    from mnet_search.studies.store import Store

    with Store(storage) as store:
        found, path = stored(store), store.where
    if as_json:
        print_json([summary(s.table) | {"created": s.created.isoformat(timespec="seconds")} for s in found])
        return
    if not found:
        echo(f"no latency table in {path} yet; build one with: mnet-search latency table --build SPACE")
        return
    table = Table(
        "space", "device", "conditions", "layers", "error", "Spearman", "n", "built", box=None, pad_edge=False
    )
    for s in found:
        facts, error = dict(s.table.fingerprint), s.table.error
        figures = [f"{100 * error.median:.1f} %", f"{error.spearman:.3f}", str(error.n)] if error else ["", "", "0"]
        device = str(facts.get("gpu", facts.get("processor", "")))
        when = s.created.isoformat(sep=" ", timespec="seconds")
        table.add_row(s.table.space, device, _conditions(facts), str(len(s.table.layers)), *figures, when)
    print_table(table)


def summary(table: LatencyTable) -> dict[str, Any]:
    """A table for JSON, with the number of its layers in their place."""
    return table.to_json() | {"layers": len(table.layers)}


def _network(target: str, overrides: list[str]) -> Arch:
    arch = find_arch(target, overrides)
    if arch is None:
        raise MnetError(f"{target} is a space; latency measures one network: a family (with -s) or an exported config")
    return arch


def _refuse_what_cannot_fit(arch: Arch, protocol: Protocol) -> None:
    """Before the system grants memory that it does not have and then kills the process: input and output of the
    largest layer against the machine's memory. Raises MnetError.
    """
    from mnet_search.models.complexity import layers
    from mnet_search.models.latency import DTYPES, too_large

    largest = max((layer.input.elements + layer.output.elements for layer in layers(arch)), default=0)
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if protocol.device == "cpu" and largest * protocol.batch * DTYPES[protocol.dtype].itemsize > memory:
        raise too_large(arch.input, protocol)


def _space_name(space: str) -> str:
    """`--table` takes a space's name or its file."""
    return Path(space).stem if space.endswith((".yaml", ".yml")) else space


def _conditions(facts: dict[str, Any]) -> str:
    """Batch, threads, dtype and the rest in words."""
    threads = facts.get("threads")
    words = [f"batch {facts.get('batch')}"]
    if threads is not None and "gpu" not in facts:
        words.append(f"{threads} thread{'s' * (threads > 1)}")
    words += [str(facts.get("dtype")), "channels_last" if facts.get("channels_last") else "NCHW"]
    words.append("norms folded" if facts.get("fold_norm") else "norms not folded")
    return ", ".join([*words, *["CUDA graph"] * bool(facts.get("graph"))])


def _error_text(table: LatencyTable) -> str:
    error = table.error
    if error is None:
        return "not judged: the space has too few networks to hold any out"
    estimated = f"; {error.n_estimated} of them with layers estimated" if error.n_estimated else ""
    return (
        f"median {100 * error.median:.1f} %, 90th percentile {100 * error.p90:.1f} %, Spearman {error.spearman:.3f} "
        f"on {error.n} networks that it had not seen{estimated}"
    )


def _estimated_text(keys: Sequence[str], n_layers: int) -> str:
    shown = ", ".join(keys[:3]) + (f" and {len(keys) - 3} more" if len(keys) > 3 else "")
    return (
        f"{len(keys)} of {n_layers} layers are not in the table and were taken from their nearest neighbours: {shown}"
    )


def _progress(text: str) -> None:
    print(text, file=sys.stderr)
