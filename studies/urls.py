"""Storage URLs: what a study can be stored in, and how a URL is shown without its password."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import ArgumentError

from mnet_search.models.arch import MnetError

BUSY_TIMEOUT_S = 30.0  # how long SQLite waits for another process' lock
CONNECT_TIMEOUT_S = 10  # how long a connection to PostgreSQL may take
DIALECTS = "sqlite:///FILE.db, or postgresql+psycopg://USER@HOST/DATABASE for several machines"


class StorageError(MnetError):
    """The database cannot be opened, read or written; the text says which one, why, and what to try."""

    exit_code = 3


class UrlError(StorageError):
    """A storage URL that says nothing that this version can use: bad input."""

    exit_code = 2


def parse_url(url: str) -> URL:
    """A storage URL; a plain path means SQLite, `postgresql://` the psycopg driver. Raises UrlError for what this
    version cannot use.
    """
    full = url if "://" in url else f"sqlite:///{url}"
    try:
        parsed = make_url(full)
    except (ArgumentError, ValueError):
        raise UrlError(f"{hide_password(url)!r} is not a storage URL; write {DIALECTS}") from None
    backend = parsed.get_backend_name()
    for name in ("timeout", "connect_timeout"):
        value = str(parsed.query.get(name, "1"))
        if not re.fullmatch(r"\d+(\.\d+)?" if name == "timeout" else r"\d+", value) or float(value) == 0:
            raise UrlError(f"{shown(parsed)}: {name}={value} is no number of seconds; write {name}=5")
    if backend == "postgresql":
        if parsed.drivername not in ("postgresql", "postgresql+psycopg"):
            raise UrlError(f"{shown(parsed)}: the driver for PostgreSQL is psycopg; write postgresql+psycopg://...")
        if not parsed.database:
            raise UrlError(f"{shown(parsed)} names no database; write postgresql+psycopg://USER@HOST/DATABASE")
        return parsed.set(drivername="postgresql+psycopg")
    if backend != "sqlite":
        raise UrlError(f"{shown(parsed)}: studies are not stored in {backend!r}; write {DIALECTS}")
    if not parsed.database or parsed.database == ":memory:":
        raise UrlError(f"{url!r} names no file, and a study in memory could not be resumed; write sqlite:///FILE.db")
    return parsed


def normalise_url(url: str) -> str:
    """A storage URL as SQLAlchemy takes it, its password included. Raises UrlError."""
    return parse_url(url).render_as_string(hide_password=False)


def shown(url: URL) -> str:
    """A URL for people, files and logs: without its password, wherever it stands."""
    hidden = url.update_query_dict({"password": "***"}) if "password" in url.query else url
    return hidden.render_as_string(hide_password=True).replace("password=%2A%2A%2A", "password=***")


def where(url: str) -> str:
    """What messages call a database: the file of SQLite, else the URL without its password."""
    parsed = parse_url(url)
    return str(Path(str(parsed.database))) if parsed.get_backend_name() == "sqlite" else shown(parsed)


def database_path(url: str) -> Path | None:
    """The file behind a SQLite URL; None for a server."""
    parsed = parse_url(url)
    return Path(str(parsed.database)) if parsed.get_backend_name() == "sqlite" else None


def connect_options(url: URL) -> dict[str, Any]:
    """How engines on this database are made: timeouts, unless the URL says otherwise (`?timeout=5` of SQLite,
    `?connect_timeout=5` of PostgreSQL, in seconds), and connections that a restarted server has closed made anew.
    """
    if url.get_backend_name() == "sqlite":
        return {"connect_args": {} if "timeout" in url.query else {"timeout": BUSY_TIMEOUT_S}}
    given = {} if "connect_timeout" in url.query else {"connect_timeout": CONNECT_TIMEOUT_S}
    return {"connect_args": {**given, "application_name": "mnet-search"}, "pool_pre_ping": True}


def timeout_s(url: URL) -> float:
    """How long SQLite waits for another process' lock, or PostgreSQL may take to answer, in seconds."""
    if url.get_backend_name() == "sqlite":
        return float(str(url.query.get("timeout", BUSY_TIMEOUT_S)))
    return float(str(url.query.get("connect_timeout", CONNECT_TIMEOUT_S)))


# ---------------------------------------------------------------- passwords


def split_password(url: str) -> tuple[str, str | None]:
    """A URL without its password, and the password; what is no URL stays as it is."""
    if "://" not in url:
        return url, None
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url, None
    password = parsed.password if parsed.password is not None else parsed.query.get("password")
    if password is None:
        return url, None
    query = parsed.difference_update_query(["password"]).query
    stripped = URL.create(  # URL.set(password=None) would leave it as it is
        parsed.drivername, parsed.username, None, parsed.host, parsed.port, parsed.database, query
    )
    return stripped.render_as_string(hide_password=False), str(password)


def hide_password(text: str) -> str:
    """A word that may be a URL, for a message or a file: *** where its password is."""
    head, separator, tail = text.partition("://")
    credentials, at, rest = tail.rpartition("@")
    if not separator or not at or ":" not in credentials:
        return text
    return f"{head}://{credentials.partition(':')[0]}:***@{rest}"


def without_passwords(arguments: list[str]) -> tuple[list[str], str | None]:
    """Command line arguments with the password of a PostgreSQL URL taken out, and that password."""
    password, kept = None, []
    for argument in arguments:
        option, equals, value = argument.partition("=")
        whole = option.startswith("--") and "://" in value and "://" not in option
        url = value if whole else argument
        stripped, found = split_password(url) if url.startswith("postgresql") else (url, None)
        kept.append(f"{option}{equals}{stripped}" if whole else stripped)
        password = found if found is not None else password
    return kept, password


def secrets_to_environment(environment: Mapping[str, str] | None = None) -> dict[str, str]:
    """What to set so that no URL holds a password any more: MNET_STORAGE without it, and PGPASSWORD, from which
    PostgreSQL's own library reads it.
    """
    given = os.environ if environment is None else environment
    stripped, password = split_password(given.get("MNET_STORAGE", ""))
    return {} if password is None else {"MNET_STORAGE": stripped, "PGPASSWORD": password}
