"""Bring the database file to the newest schema, before the event loop starts: alembic blocks."""

from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prefanno.db.backup import back_up, place
from prefanno.db.file import HEAD, explain, revision
from prefanno.errors import DatabaseUnavailable

if TYPE_CHECKING:
    from alembic.config import Config


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did: the schema before, None of a new file, and the backup of what was there."""

    before: str | None
    backup: Path | None


def upgrade(path: Path) -> Upgraded | None:
    """Upgrade the file, creating it where it is missing; what was there is backed up first. None: nothing to do.

    Raises DatabaseUnavailable where the file is no database of prefanno's, or newer than this program; StorageFull.
    The file is then what it was.
    """
    before = revision(path)
    if before == HEAD:
        return None
    if before is not None and before > HEAD:
        raise DatabaseUnavailable(f"{path} was written by a newer prefanno (schema {before}); upgrade prefanno")
    backup = place(path, f"before-{HEAD}") if before is not None else None
    if backup is not None:
        back_up(path, backup)
    # Importing alembic takes a third of a second, which a server at the newest schema need not wait for.
    from alembic import command

    try:
        command.upgrade(config(path), "head")
    except Exception as error:
        raise explain(path, error) from error
    return Upgraded(before, backup)


def config(path: Path) -> "Config":
    """The alembic configuration for this file."""
    from alembic.config import Config
    from sqlalchemy import URL

    configuration = Config()
    configuration.set_main_option("script_location", str(files("prefanno.migrations")))
    configuration.attributes["url"] = URL.create("sqlite", database=str(path))
    return configuration
