"""Looks into a database from outside, as another program does: past the writer, its rules and its readers."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

from prefanno.db import bigrams, fts5
from prefanno.settings import Postgres
from tests import postgres


class Look(Protocol):
    """A connection of another program's."""

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        """The rows."""

    def execute(self, statements: str) -> None:
        """Run these statements, each committed."""


class _File:
    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection

    def fetch(self, query: str) -> list[tuple[Any, ...]]:
        return self._connection.execute(query).fetchall()

    def execute(self, statements: str) -> None:
        self._connection.executescript(statements)


@contextlib.contextmanager
def looking(where: Path | Postgres) -> Iterator[Look]:
    """A look into this database, for the block."""
    if isinstance(where, Postgres):
        with postgres.asking(where.url) as asker:
            yield asker
    else:
        with contextlib.closing(sqlite3.connect(where, isolation_level=None)) as connection:
            yield _File(connection)


def fetch(where: Path | Postgres, query: str) -> list[tuple[Any, ...]]:
    """The rows of one query."""
    with looking(where) as look:
        return look.fetch(query)


def execute(where: Path | Postgres, statements: str) -> None:
    """Run these statements."""
    with looking(where) as look:
        look.execute(statements)


def dump(where: Path | Postgres) -> list[str]:
    """All rows of all tables."""
    if isinstance(where, Path):
        with contextlib.closing(sqlite3.connect(where)) as connection:
            return list(connection.iterdump())
    with looking(where) as look:
        tables = [name for (name,) in look.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")]
        return [row for name in sorted(tables) for row in sorted(map(str, look.fetch(f"SELECT * FROM {name}")))]


def stored(where: Path | Postgres) -> bytes:
    """Every byte of the database's files, but PostgreSQL's write-ahead log."""
    if isinstance(where, Path):
        files = sorted(where.parent.glob(f"{where.name}*"))
    else:
        with looking(where) as look:
            look.execute("CHECKPOINT")
            ((folder, number),) = look.fetch(
                "SELECT current_setting('data_directory'), oid FROM pg_database WHERE datname = current_database()"
            )
        files = sorted(Path(folder, "base", str(number)).glob("*"))
    return b"".join(file.read_bytes() for file in files)


def indexed(where: Path | Postgres) -> set[Any]:
    """Every token by which something is found, in whatever row, also one that was taken out and is still there."""
    with looking(where) as look:
        if isinstance(where, Postgres):
            return {token for (token,) in look.fetch("SELECT unnest(bigrams) FROM annotation_search")}
        look.execute("CREATE VIRTUAL TABLE temp.held USING fts5vocab('main', 'annotation_search', 'row')")
        return {token for (token,) in look.fetch("SELECT term FROM temp.held")}


def tokens(where: Path | Postgres, words: str) -> set[Any]:
    """What these words should have put there."""
    if isinstance(where, Postgres):
        return set().union(*(bigrams.bigrams(text) for text in words.casefold().split(bigrams.BETWEEN)))
    return set(fts5.tokens(words).split())
