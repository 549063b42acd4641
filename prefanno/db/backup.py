"""Backups of the database file: taken while a server writes, verified before they get their name, restored. Blocks.

A backup is one file without a write-ahead log beside it, so it can be copied and kept anywhere. `restore` first backs
up what it replaces; what is too damaged for that is kept as it is.
"""

import contextlib
import fcntl
import os
import secrets
import sqlite3
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

from prefanno import files
from prefanno.db.file import HEAD, Contents, contents, explain, reading, verify
from prefanno.db.models import Base
from prefanno.errors import DatabaseDamaged, DatabaseUnavailable

FOLDER = "backups"  # beside the database
PARTIAL = ".partial"  # ends the name of a file that is being written
FIRST = "0001"
FIRST_TABLES = {"annotations", "candidates", "characters", "generations", "runs"}  # of every schema


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
    if target.name in {f"{database.name}-{kind}" for kind in ("wal", "shm", "journal")}:
        raise DatabaseUnavailable(f"SQLite takes {target.name} for a part of the database; name another file")
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
    _check_ours(backup, found)
    with _new(database) as temporary:
        _copy(backup, temporary)
        replaced = _keep(database)
    return found, replaced


def _check_ours(backup: Path, found: Contents) -> None:
    """Refuse what would be restored and could then not serve."""
    revision = found.revision or ""
    if revision.isdigit() and revision > HEAD:
        raise DatabaseUnavailable(f"{backup} was written by a newer prefanno; upgrade prefanno")
    needed = set(Base.metadata.tables) if revision == HEAD else FIRST_TABLES
    with reading(backup) as connection:
        foreign = connection.execute("SELECT name FROM sqlite_master WHERE type IN ('trigger', 'view')").fetchone()
    if not (revision.isdigit() and revision >= FIRST) or foreign or needed - set(found.rows):
        raise DatabaseUnavailable(f"{backup} is no database of prefanno's")


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
    if not database.exists():
        return _keep_damaged(database)
    kept = place(database, "before-restore")
    try:
        back_up(database, kept)
    except DatabaseDamaged:
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


def clear(folder: Path) -> None:
    """Remove what killed commands left half written in this folder: nobody holds its lock any more."""
    for left in folder.glob(f".*{PARTIAL}"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), left.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _remove(left)


@contextlib.contextmanager
def _new(path: Path) -> Iterator[Path]:
    """A file that gets its name only when the block has ended well and its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}{PARTIAL}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        clear(path.parent)
        with temporary.open("x") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)  # until it is closed: that says that somebody still writes it
            yield temporary
            os.fsync(lock.fileno())
            temporary.replace(path)
        files.sync(path.parent)
    except (OSError, sqlite3.Error) as error:
        raise explain(path, error) from error
    finally:
        _remove(temporary)


def _remove(partial: Path) -> None:
    for ending in ("", "-journal", "-wal", "-shm"):
        partial.with_name(partial.name + ending).unlink(missing_ok=True)
