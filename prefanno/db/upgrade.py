"""The database as a whole, be it a file or on a server; above all its schema. Blocks, as alembic does."""

from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING

from prefanno.db import file, remote
from prefanno.db.backup import back_up, place
from prefanno.db.file import HEAD
from prefanno.errors import DatabaseUnavailable, PrefannoError
from prefanno.settings import Postgres

if TYPE_CHECKING:
    from alembic.config import Config
    from sqlalchemy import Connection


@dataclass(frozen=True)
class Upgraded:
    """What an upgrade did: the schema before, None of a new database, and the backup of a file that was there."""

    before: str | None
    backup: Path | None


def upgrade(where: Path | Postgres) -> Upgraded | None:
    """Upgrade the database, making a file or tables where they are missing. None: nothing to do.

    A file is backed up first. Raises DatabaseUnavailable where it is no database of prefanno's, or newer than this
    program; StorageFull. The database is then what it was.
    """
    before = revision(where)
    if before == HEAD:
        return None
    if before is not None and before > HEAD:
        raise DatabaseUnavailable(f"{where} was written by a newer prefanno (schema {before}); upgrade prefanno")
    backup = None
    if isinstance(where, Path) and before is not None:
        backup = place(where, f"before-{HEAD}")
        back_up(where, backup)
    # Importing alembic takes a third of a second, which a server at the newest schema need not wait for.
    from alembic import command

    try:
        alembic(where, command.upgrade, "head")
    except Exception as error:
        raise _explain(where, error) from error
    return Upgraded(before, backup)


def revision(where: Path | Postgres) -> str | None:
    """The schema revision of the database, None where it has none. Raises DatabaseUnavailable."""
    return file.revision(where) if isinstance(where, Path) else remote.revision(where)


def rewrite(where: Path | Postgres) -> None:
    """Write the database anew, without a byte of what was removed. Raises DatabaseUnavailable or StorageFull."""
    file.rewrite(where) if isinstance(where, Path) else remote.rewrite(where)


def alembic(where: Path | Postgres, command: Callable[..., object], *arguments: str) -> None:
    """Run one of alembic's commands on the database; on PostgreSQL while no server writes, and no other migrates."""
    configuration = config(where)
    if isinstance(where, Path):
        command(configuration, *arguments)
        return

    def run(connection: "Connection") -> None:
        configuration.attributes["connection"] = connection
        command(configuration, *arguments)

    remote.alone(where, run)


def config(where: Path | Postgres) -> "Config":
    """The alembic configuration; `migrations/env.py` reads what it says of a file."""
    from alembic.config import Config
    from sqlalchemy import URL

    configuration = Config()
    configuration.set_main_option("script_location", str(files("prefanno.migrations")))
    if isinstance(where, Path):
        configuration.attributes["url"] = URL.create("sqlite", database=str(where))
    return configuration


def _explain(where: Path | Postgres, error: Exception) -> PrefannoError:
    return file.explain(where, error) if isinstance(where, Path) else remote.explain(where, error)
