"""The command line: parses, calls, prints. Everything heavy is imported inside the command that needs it, so that
`--help` stays instant.

Data goes to stdout, logs and progress to stderr. Exit codes: 0 done, 1 failed, 2 usage or bad input, 3 storage or lock,
4 failure budget exceeded, 130/143 on signals.
"""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from mnet_search.models.arch import MnetError
from mnet_search.search import (
    cli_compare,
    cli_database,
    cli_export,
    cli_fit,
    cli_iso,
    cli_networks,
    cli_plot,
    cli_search,
    cli_studies,
    cli_tables,
)

app = typer.Typer(
    help="Find small image networks for a budget: search, watch, resume, export.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)


@app.callback()
def _global(
    verbose: Annotated[bool, typer.Option("-v", "--verbose", help="show log messages")] = False,
    debug: Annotated[bool, typer.Option("--debug", help="show tracebacks")] = False,
) -> None:
    logging.basicConfig(
        stream=sys.stderr,
        level=logging.INFO if verbose or debug else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )


for _part in (cli_search, cli_networks, cli_studies, cli_export, cli_iso, cli_compare, cli_fit, cli_plot, cli_tables):
    app.registered_commands.extend(_part.app.registered_commands)
app.add_typer(cli_database.app, name="db", help="Upgrade a database, or back it up while searches go on.")


def main(arguments: list[str] | None = None) -> None:
    """Entry point: runs a command and turns every expected error into one line on stderr and its exit code."""
    if arguments is None:
        _hide_passwords()
        arguments = sys.argv[1:]
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # torch reads it at import; trials side by side must not fight for cores
    sys.path.append(str(Path.cwd()))  # for package.module:name of the user's own; last, so that it can shadow nothing
    sys.exit(run_command(arguments))


def _hide_passwords() -> None:
    """Begin again without the password of a storage URL on the command line, where every user of the machine sees it.
    From then on it is in PGPASSWORD, which PostgreSQL's own library reads, and in nothing that we write.
    """
    if not any("://" in text for text in (*sys.argv, os.environ.get("MNET_STORAGE", ""))):
        return
    from mnet_search.studies.urls import secrets_to_environment, without_passwords

    os.environ.update(secrets_to_environment())
    command, password = without_passwords(sys.orig_argv)
    if password is not None:
        os.environ["PGPASSWORD"] = password
    if command != sys.orig_argv:
        os.execv(sys.executable, command)


def run_command(arguments: list[str]) -> int:
    """Run a command line in this process and return its exit code."""
    # -v and --debug may stand anywhere, though they belong to the whole command
    everywhere = [a for a in arguments if a in ("-v", "--verbose", "--debug")]
    arguments = everywhere + [a for a in arguments if a not in everywhere]
    try:
        code: Any = app(arguments, standalone_mode=False)
    except MnetError as error:
        return _fail(str(error), error.exit_code, debug="--debug" in arguments)
    except typer.Abort:
        return _fail("stopped", 130)
    except typer.TyperException as error:
        _show_usage(error)
        return 2
    except KeyboardInterrupt:
        return _fail("stopped; run the same command again to continue", 130)
    except BrokenPipeError:
        sys.stdout = open(os.devnull, "w")  # noqa: PTH123, SIM115  # the reader has left; the interpreter flushes once more at exit
        return 0
    except Exception as error:  # noqa: BLE001  # the last line of defence: no traceback without --debug
        return _fail(
            f"internal error, {type(error).__name__}: {error} (--debug shows the traceback)",
            1,
            debug="--debug" in arguments,
        )
    return code if isinstance(code, int) else 0


def _fail(message: str, code: int, *, debug: bool = False) -> int:
    if debug:
        import traceback

        traceback.print_exc()
    print(f"mnet-search: {' '.join(message.split())}", file=sys.stderr)
    return code


def _show_usage(error: Any) -> None:
    message = error.format_message() if hasattr(error, "format_message") else str(error)
    context = getattr(error, "ctx", None)
    command = context.command_path if context else "mnet-search"
    print(f"mnet-search: {message} (see {command} --help)", file=sys.stderr)


if __name__ == "__main__":
    main()
