"""Storage URLs: what is taken and refused, and that no password is shown, kept or passed on."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.engine import URL, make_url

from mnet_search.studies.urls import (
    StorageError,
    UrlError,
    database_path,
    hide_password,
    normalise_url,
    parse_url,
    secrets_to_environment,
    split_password,
    timeout_s,
    where,
    without_passwords,
)

SERVER = "postgresql+psycopg://ann:pw7@db.example:5433/nets"


def test_a_path_is_sqlite_and_postgresql_means_psycopg() -> None:
    assert normalise_url("a/b.db") == "sqlite:///a/b.db"
    assert str(database_path("a/b.db")) == "a/b.db"
    assert normalise_url("postgresql://ann:pw7@db.example:5433/nets") == SERVER
    assert database_path(SERVER) is None
    assert where(SERVER) == "postgresql+psycopg://ann:***@db.example:5433/nets"


@pytest.mark.parametrize(
    ("url", "text"),
    [
        (
            "mysql://ann:pw7@h/d",
            r"mysql://ann:\*\*\*@h/d: studies are not stored in 'mysql'; write sqlite:///FILE.db, or",
        ),
        ("postgresql+asyncpg://ann:pw7@h/d", r"the driver for PostgreSQL is psycopg"),
        ("postgresql://ann:pw7@h", r"names no database; write postgresql\+psycopg://USER@HOST/DATABASE"),
        ("sqlite:///x.db?timeout=abc", "timeout=abc is no number of seconds; write timeout=5"),
        ("postgresql://ann:pw7@h/d?connect_timeout=0", "connect_timeout=0 is no number of seconds"),
        ("sqlite://", "names no file, and a study in memory could not be resumed"),
        ("sqlite:///:memory:", "names no file"),
        ("://ann:pw7@h", r"is not a storage URL; write sqlite:///FILE.db"),
    ],
)
def test_what_no_study_can_be_stored_in_is_bad_input(url: str, text: str) -> None:
    with pytest.raises(UrlError, match=text) as caught:
        parse_url(url)
    assert caught.value.exit_code == 2
    assert "pw7" not in str(caught.value)
    assert StorageError.exit_code == 3


def test_a_url_may_name_its_timeout() -> None:
    assert timeout_s(parse_url("x.db")) == 30
    assert timeout_s(parse_url("sqlite:///x.db?timeout=2")) == 2
    assert timeout_s(parse_url(SERVER)) == 10
    assert timeout_s(parse_url(SERVER + "?connect_timeout=3")) == 3


@given(st.text(min_size=1, max_size=20), st.text(min_size=1, max_size=10))
def test_a_password_is_split_from_its_url_whatever_it_is(password: str, user: str) -> None:
    url = URL.create("postgresql+psycopg", user, password, "h", 5432, "d").render_as_string(hide_password=False)
    bare, found = split_password(url)
    assert found == make_url(url).password
    assert make_url(bare).password is None
    assert make_url(bare).username == make_url(url).username
    assert split_password(bare) == (bare, None)


def test_a_password_in_the_query_is_taken_out_too() -> None:
    assert split_password("postgresql://ann@h/d?password=pw7") == ("postgresql://ann@h/d", "pw7")


def test_a_command_line_and_an_environment_lose_their_passwords() -> None:
    command = ["mnet-search", "run", "x.yaml", "--storage", SERVER, "--runs-dir=s3://bucket/runs"]
    kept, password = without_passwords(command)
    assert password == "pw7"
    assert kept == [*command[:4], "postgresql+psycopg://ann@db.example:5433/nets", command[5]]
    assert without_passwords(["--runs-dir", "sftp://u:other@h/x"]) == (["--runs-dir", "sftp://u:other@h/x"], None)
    kept, password = without_passwords([f"--storage={SERVER}"])
    assert (kept, password) == (["--storage=postgresql+psycopg://ann@db.example:5433/nets"], "pw7")
    assert secrets_to_environment({"MNET_STORAGE": SERVER}) == {
        "MNET_STORAGE": "postgresql+psycopg://ann@db.example:5433/nets",
        "PGPASSWORD": "pw7",
    }
    assert secrets_to_environment({"MNET_STORAGE": "x.db"}) == {}


def test_words_that_may_be_urls_are_shown_without_a_password() -> None:
    assert hide_password("anything://ann:p@w7@h/d") == "anything://ann:***@h/d"
    assert hide_password("x.db") == "x.db"
    assert hide_password("s3://bucket/a") == "s3://bucket/a"
