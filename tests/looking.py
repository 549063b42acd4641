"""Looks into a database from outside, as another program does: past the writer, its rules and its readers."""

import contextlib
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

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
