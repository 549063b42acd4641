"""Bring the database file to the newest schema, before the event loop starts: alembic blocks."""

import contextlib
import sqlite3
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prefanno.errors import DatabaseUnavailable, PrefannoError, StorageFull

if TYPE_CHECKING:
    from alembic.config import Config

HEAD = "0002"  # the newest revision in migrations/versions; tests/db/test_upgrade.py holds it to that


def upgrade(path: Path) -> bool:
    """Upgrade the file, creating it where it is missing. Returns whether there was anything to do.

    Raises DatabaseUnavailable where the file is no database of prefanno's, or newer than this program; StorageFull.
    """
    # Importing alembic takes a third of a second, which a server at the newest schema need not wait for.
    if revision(path) == HEAD:
        return False
    from alembic import command
    from alembic.util import CommandError

    try:
        command.upgrade(config(path), "head")
    except CommandError as error:
        raise DatabaseUnavailable(f"{path} was written by a newer prefanno; upgrade prefanno ({error})") from error
    except Exception as error:
        raise _explain(path, error) from error
    return True


def revision(path: Path) -> str | None:
    """The schema revision of the file, None where it has none. Raises DatabaseUnavailable, StorageFull."""
    if not path.exists():
        return None
    try:
        with contextlib.closing(sqlite3.connect(f"{path.as_uri()}?mode=ro", uri=True)) as connection:
            tables = {name for (name,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if "alembic_version" not in tables:
                return None
            row = connection.execute("SELECT version_num FROM alembic_version").fetchone()
            return row[0] if row else None
    except sqlite3.Error as error:
        raise _explain(path, error) from error


def config(path: Path) -> "Config":
    """The alembic configuration for this file."""
    from alembic.config import Config

    configuration = Config()
    configuration.set_main_option("script_location", str(files("prefanno.migrations")))
    configuration.attributes["url"] = f"sqlite:///{path}"
    return configuration


def _explain(path: Path, error: Exception) -> PrefannoError:
    cause = str(getattr(error, "orig", error))
    if "disk is full" in cause or "No space left" in cause:
        return StorageFull()
    return DatabaseUnavailable(f"cannot use the database {path}: {cause}. Restore a backup, or move the file away")
