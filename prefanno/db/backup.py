"""Backups of the database file: taken while a server writes, verified before they get their name, restored. Blocks.

A backup is one file without a write-ahead log beside it, so it can be copied and kept anywhere. `restore` first backs
up what it replaces; what is too damaged for that is kept as it is.
"""

import contextlib
import os
import secrets
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prefanno.db.file import HEAD, Contents, contents, explain, reading, verify
from prefanno.errors import DatabaseUnavailable

FOLDER = "backups"  # beside the database


def place(database: Path, why: str = "") -> Path:
    """A new name for a backup of this database: `backups/prefanno-<time, UTC>[-<why>].db`."""
    moment = f"{datetime.now(UTC):%Y%m%dT%H%M%S%f}Z"
    return database.parent / FOLDER / ("-".join(filter(None, (database.stem, moment, why))) + ".db")


def back_up(database: Path, target: Path) -> Contents:
    """Copy the database, as it is at one moment, to a new file; return what is in it.

    Raises DatabaseUnavailable where the database is missing or damaged, or `target` is there already; StorageFull.
    """
    if target.exists():
        raise DatabaseUnavailable(f"{target} is there already; name another file")
    if not database.exists():
        raise DatabaseUnavailable(f"there is no database {database} yet")
    with _new(target) as temporary:
        return _copy(database, temporary)


def restore(backup: Path, database: Path) -> tuple[Contents, Path | None]:
    """Put a backup in the place of the database; return what is in it, and where the replaced one is kept.

    Nobody else may use the database. A backup of an older schema is brought to the newest by the next start. Raises
    DatabaseUnavailable where the backup is missing, damaged, newer than this program or none of prefanno's, or
    somebody uses the database; StorageFull. The database is then what it was.
    """
    found = verify(backup)
    if found.revision is None:
        raise DatabaseUnavailable(f"{backup} is no database of prefanno's")
    if found.revision > HEAD:
        raise DatabaseUnavailable(f"{backup} was written by a newer prefanno; upgrade prefanno")
    with _new(database) as temporary:
        _copy(backup, temporary)
        replaced = _keep(database)
    return found, replaced


def _copy(source: Path, target: Path) -> Contents:
    """Copy one snapshot of the source, and verify the copy against it."""
    with reading(source) as connection, contextlib.closing(sqlite3.connect(target)) as copy:
        connection.execute("BEGIN")  # the counts and the copy are of one snapshot
        expected = contents(connection)
        connection.backup(copy)
        copy.execute("PRAGMA journal_mode=DELETE")  # one file, which nobody has to write to in order to read it
    found = verify(target)
    if found != expected:
        raise DatabaseUnavailable(f"the copy of {source} differs from it: {found.rows}, not {expected.rows}")
    return found


def _keep(database: Path) -> Path | None:
    """Keep what will be replaced, and see to it that no log of its is applied to what comes in its place."""
    kept = place(database, "before-restore")
    try:
        back_up(database, kept)
    except DatabaseUnavailable:
        return _keep_damaged(database)
    try:
        with contextlib.closing(sqlite3.connect(database, timeout=1.0)) as connection:
            connection.execute("PRAGMA journal_mode=DELETE")
    except sqlite3.Error as error:
        raise DatabaseUnavailable(f"somebody uses {database} ({error}); end that program and try again") from error
    return kept


def _keep_damaged(database: Path) -> Path | None:
    """Too damaged to be read, or missing: every byte there is keeps existing, under another name."""
    kept = place(database, "damaged")
    kept.parent.mkdir(parents=True, exist_ok=True)
    if database.exists():
        os.link(database, kept)
    for log in ("-wal", "-shm"):
        with contextlib.suppress(FileNotFoundError):
            database.with_name(database.name + log).rename(kept.with_name(kept.name + log))
    return kept if kept.exists() else None


@contextlib.contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A file that gets its name only when the block has ended well and its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        _sync(temporary)
        temporary.replace(path)
        _sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise explain(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
