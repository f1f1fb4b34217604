"""What `table` and `frame` write of a study, and how `import` takes trials into one."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from mnet_search.models.arch import MnetError
from mnet_search.models.tables import lookup
from mnet_search.search.printing import check_file, echo, print_json, write_file

if TYPE_CHECKING:
    from mnet_search.spaces.space import Space
    from mnet_search.studies.import_writer import Placement
    from mnet_search.studies.importing import Plan
    from mnet_search.studies.store import Store

ENDINGS = (".csv", ".parquet")
STDOUT = "-"
MOST_SHOWN = 5  # warnings of one kind


def results(
    store: Store,
    name: str,
    style: str,
    which: str,
    limits: Mapping[str, float],
    output: str,
    *,
    force: bool,
    as_json: bool,
) -> None:
    """The networks of a study in one of the styles, to a file or to stdout."""
    from mnet_search.dashboards.snapshot import validation_images
    from mnet_search.studies.frame import load
    from mnet_search.studies.result_rows import ResultTable, Which, notes_of, rows_of
    from mnet_search.studies.result_tables import STYLES

    write = lookup(STYLES, style, "style")
    if which not in get_args(Which):
        raise MnetError(f"--rows {which}: write front, all or best")
    if output != STDOUT:
        check_file(Path(output), "-o", force=force)
    images = validation_images(store.provenance(name))
    frame = load(store, name)
    rows = rows_of(frame, store.objectives(name), which, limits, images)  # type: ignore[arg-type]  # checked above
    n_finished = int((frame["state"] == "finished").sum())
    notes = notes_of(rows, name, n_finished, store.row(name)["space"]["data"]["name"], images)
    if as_json:
        print_json({"study": name, "rows": [asdict(row) | {"n": row.n} for row in rows], "notes": notes})
        return
    _deliver(output, write(ResultTable(rows, notes)).encode(), force=force)


def frame(store: Store, name: str, output: str, *, curves: bool, force: bool, as_json: bool) -> None:
    """Every trial of a study (or every epoch) as a row, in the form that the file's ending names."""
    from mnet_search.studies import frame as frames
    from mnet_search.studies.frame_files import to_csv, to_parquet

    if output != STDOUT:
        check_file(Path(output), "-o", force=force, endings=ENDINGS)
    found = frames.curves(store, name) if curves else frames.load(store, name)
    if as_json:
        echo(str(found.to_json(orient="records", date_format="iso")))
        return
    as_csv = output == STDOUT or Path(output).suffix.lower() == ".csv"
    _deliver(output, to_csv(found).encode() if as_csv else to_parquet(found), force=force, endings=ENDINGS)
    if output != STDOUT:
        what = "rows of learning curves" if curves else "trials"
        print(f"{output}: {len(found):,} {what}, {len(found.columns)} columns", file=sys.stderr)


def _deliver(output: str, content: bytes, *, force: bool, endings: Sequence[str] = ()) -> None:
    if output == STDOUT:
        sys.stdout.write(content.decode())
    else:
        write_file(Path(output), content, "-o", force=force, endings=endings)


# ---------------------------------------------------------------- import


@dataclass(frozen=True)
class ImportSource:
    """What the command line says of where trials come from."""

    csv: Path | None
    storage: str | None
    study: str | None
    mapping: tuple[str, ...]

    def check(self, storage: str, study: str) -> None:
        """Raises MnetError unless it names one source that is not the study itself."""
        from mnet_search.studies.urls import normalise_url

        if (self.csv is None) == (self.study is None) or (self.study is None) != (self.storage is None):
            raise MnetError("say where trials come from: --from FILE.csv, or --from-storage URL with --from-study NAME")
        if self.study == study and self.storage and normalise_url(self.storage) == normalise_url(storage):
            raise MnetError(f"--from-study {study}: is the study that takes the trials; name another")


def imported(
    storage: str, name: str, space_file: Path | None, source: ImportSource, *, dry_run: bool, as_json: bool
) -> None:
    """Check every row, then write those that the study does not have yet. Raises MnetError, StorageError; nothing is
    written then.
    """
    from mnet_search.search.run import check_name
    from mnet_search.studies.import_sources import read_csv, read_study
    from mnet_search.studies.import_writer import place
    from mnet_search.studies.importing import parse_mapping, plan
    from mnet_search.studies.store import Store
    from mnet_search.studies.urls import database_path

    check_name("STUDY", name)
    source.check(storage, name)
    asked = parse_mapping(source.mapping)
    space = space_for_import(storage, name, space_file)
    table = read_csv(source.csv) if source.csv is not None else read_study(str(source.storage), str(source.study))
    found = plan(space, table, asked)
    if not dry_run and found.trials:
        placement = _write(storage, name, space, found)
    else:
        path = database_path(storage)
        there = path is None or path.exists()
        if there:
            with Store(storage) as store:
                placement = place(store, name, space, found)
        else:
            placement = place(None, name, space, found)
    _tell(name, table.name, found, placement, dry_run=dry_run, as_json=as_json)


def _write(storage: str, name: str, space: Space, found: Plan) -> Placement:
    from mnet_search.search import provenance
    from mnet_search.search.distributions import distribution
    from mnet_search.studies.import_writer import enter, place
    from mnet_search.studies.store import Store
    from mnet_search.studies.urls import hide_password
    from mnet_search.studies.writer import open_study

    n_trials = space.file.search.n_trials or len(found.trials)
    facts = provenance.collect([hide_password(text) for text in ("mnet-search", *sys.argv[1:])])
    with Store(storage, create=True) as store:
        writer = open_study(store, space, name, n_trials=n_trials, runs_dir="runs", provenance=facts)
        with writer.lock():
            placement = place(store, name, space, found)
            enter(writer, space, placement.new, found.origin, distribution)
    return placement


def space_for_import(storage: str, name: str, space_file: Path | None) -> Space:
    """The space that rows must be of: the file's, else the stored one. Classes and input channels are those of the
    data, and where those are not on this machine, what the study has of them. Raises MnetError.
    """
    from mnet_search.search.data_files import DataError
    from mnet_search.search.run import KNOWN, check_training, fit_to_data
    from mnet_search.spaces.identity import difference
    from mnet_search.spaces.space import load_space, make_space
    from mnet_search.spaces.yamlfile import Source

    row = _stored(storage, name)
    if space_file is None and row is None:
        raise MnetError(f"study {name!r} is new: give the space that its networks are of, with --space SPACE.yaml")
    if space_file is not None:
        space = check_training(load_space(space_file, (), KNOWN))
    else:
        assert row is not None
        space = make_space(row["space_name"], row["space"], Source(f"study {name}"), KNOWN)
    changes = difference(row["identity"], space.identity) if row is not None else []
    if changes:
        raise MnetError(
            f"{space.source.name}: the space differs from the one that study {name!r} was made with "
            f"({'; '.join(changes)}); leave --space out to use the study's own, or import into a new study"
        )
    try:
        return fit_to_data(space)
    except DataError as error:
        if row is not None and row["fixed"] and len(space.data_settings) == 1:
            return replace(space, fixed=row["fixed"])
        raise MnetError(
            f"the networks' classes and input channels are those of the data, which are not here ({error})"
        ) from None


def _stored(storage: str, name: str) -> Mapping[str, Any] | None:
    """The row of a study; None where it is not there yet."""
    from mnet_search.studies.store import Store
    from mnet_search.studies.urls import database_path

    path = database_path(storage)
    if path is not None and not path.exists():
        return None
    with Store(storage, create=True) as store:
        return store.row(name) if name in store.names() else None


def _tell(name: str, source: str, found: Plan, placed: Placement, *, dry_run: bool, as_json: bool) -> None:
    """What was done, or would be: figures on stdout, warnings on stderr."""
    counts = {
        "imported": len(placed.new),
        "already_imported": placed.n_again,
        "changed": len(placed.changed),
        "same_network_and_seed": placed.n_same,
        "over_budget": found.n_over_budget,
        "not_finished": found.n_left_out,
    }
    if as_json:
        print_json(
            {"study": name, "from": source, "dry_run": dry_run, **counts, "notes": [*found.notes, *placed.changed]}
        )
        return
    more = len(placed.changed) - MOST_SHOWN
    for note in (*found.notes, *placed.changed[:MOST_SHOWN]):
        print(f"warning: {note}", file=sys.stderr)
    if more > 0:
        print(f"warning: and {more} more that have other figures now; --json names all", file=sys.stderr)
    words = {
        "already_imported": "imported before",
        "changed": "imported before with other figures",
        "same_network_and_seed": "in the study already, with the same network and seed",
        "over_budget": "over the space's budgets",
        "not_finished": "not finished in the source",
    }
    left = [f"{counts[key]} {text}" for key, text in words.items() if counts[key]]
    verb = "would be imported" if dry_run else "imported"
    echo(
        f"Study {name}: {counts['imported']} trials {verb} from {source}"
        + f"; left out: {', '.join(left)}" * bool(left)
    )
