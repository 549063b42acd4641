"""The database file as a whole: its schema revision, whether it is sound, what is wrong with it. Blocks."""

import contextlib
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from prefanno.errors import DatabaseDamaged, DatabaseUnavailable, PrefannoError, StorageFull

HEAD = "0006"  # the newest of the numbers in migrations/versions; tests/db/test_upgrade.py holds it to that
DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB)
TABLES = (
    "SELECT name FROM sqlite_master WHERE type = 'table' AND name NOT LIKE 'sqlite_%' AND name != 'alembic_version'"
    " AND name NOT LIKE 'annotation_search%' ORDER BY name"
)


@dataclass(frozen=True)
class Contents:
    """What a sound file holds: its schema revision, None before the first, and the rows of each table."""

    revision: str | None
    rows: dict[str, int]


def revision(path: Path) -> str | None:
    """The schema revision of the file, None where it has none. Raises DatabaseUnavailable."""
    if not path.exists():
        return None
    with reading(path) as connection:
        return _revision(connection)


def verify(path: Path) -> Contents:
    """Read every page and every reference. Raises DatabaseDamaged, saying what is; DatabaseUnavailable, StorageFull."""
    with reading(path) as connection:
        connection.execute("BEGIN")
        (fault,) = connection.execute("PRAGMA integrity_check(1)").fetchone()
        if fault != "ok":
            raise DatabaseDamaged(f"{path} is damaged: {fault}. Restore a backup: prefanno db restore")
        if broken := connection.execute("PRAGMA foreign_key_check").fetchone():
            raise DatabaseDamaged(f"{path} is damaged: row {broken[1]} of {broken[0]} refers to a missing row")
        return contents(connection)


def contents(connection: sqlite3.Connection) -> Contents:
    """What the connection's snapshot holds."""
    tables = [name.replace('"', '""') for (name,) in connection.execute(TABLES)]
    counted = {name: connection.execute(f'SELECT count(*) FROM "{name}"').fetchone()[0] for name in tables}  # noqa: S608
    return Contents(_revision(connection), counted)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[sqlite3.Connection]:
    """A connection that cannot write; other processes may. Raises DatabaseUnavailable or StorageFull."""
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True, isolation_level=None)) as opened:
            yield opened
    except sqlite3.Error as error:
        raise explain(path, error) from error


def rewrite(path: Path) -> None:
    """Write the file anew, without a byte of what was removed. Raises DatabaseUnavailable or StorageFull."""
    try:
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
            connection.execute("VACUUM")
            (busy, *_) = connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    except sqlite3.Error as error:
        raise explain(path, error) from error
    if busy:
        raise DatabaseUnavailable(f"another program reads {path}, which keeps what was removed; end it and try again")


def explain(path: Path, error: Exception) -> PrefannoError:
    """What an error of SQLite or of alembic means for who has this file."""
    error = getattr(error, "orig", error)
    cause = str(error)
    if "disk is full" in cause or "No space left" in cause:
        return StorageFull()
    kind = DatabaseDamaged if getattr(error, "sqlite_errorcode", 0) & 0xFF in DAMAGE else DatabaseUnavailable
    return kind(f"cannot use the database {path}: {cause}. Restore a backup, or move the file away")


def _revision(connection: sqlite3.Connection) -> str | None:
    if not connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'alembic_version'").fetchone():
        return None
    row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
    return str(row[0]) if row else None
