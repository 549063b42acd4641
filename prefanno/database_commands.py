"""`prefanno db`: the commands about the database; each is a few lines over one call."""

from pathlib import Path

import click

from prefanno import home, settings
from prefanno.db import backup, file, upgrade
from prefanno.errors import InvalidSetting


@click.group()
def db() -> None:
    """The database."""


@db.command("upgrade")
def db_upgrade() -> None:
    """Bring the database to the newest schema."""
    current = settings.read()
    with home.owned(current):
        done = upgrade.upgrade(current.database)
    click.echo(f"{current.database}: {'upgraded to' if done else 'is at'} schema {file.HEAD}")
    if done and done.backup:
        click.echo(f"backup of schema {done.before}: {done.backup}")


@db.command("backup")
@click.option("--to", type=click.Path(path_type=Path, dir_okay=False), help="A new file; default: data/backups/.")
def db_backup(to: Path | None) -> None:
    """Copy the database to one file and verify it; works while the server runs."""
    current = settings.read()
    file_path = _file(current, "pg_dump")
    target = to or backup.place(file_path)
    _tell(backup.back_up(file_path, target.absolute()))
    click.echo(f"backup: {target}")


@db.command("restore")
@click.argument("source", metavar="FILE", type=click.Path(path_type=Path, exists=True, dir_okay=False))
def db_restore(source: Path) -> None:
    """Put a backup in the place of the database, which is backed up first."""
    current = settings.read()
    file_path = _file(current, "pg_restore")
    with home.owned(current):
        restored, replaced = backup.restore(source.absolute(), file_path)
    _tell(restored)
    click.echo(f"restored: {file_path}")
    if replaced:
        click.echo(f"what it replaced: {replaced}")


@db.command("copy")
def db_copy() -> None:
    """Copy the home's SQLite file to the empty PostgreSQL of PREFANNO_DATABASE_URL, and compare both."""
    from prefanno import terminal

    current = settings.read()
    if not isinstance(current.database, settings.Postgres):
        raise InvalidSetting("set PREFANNO_DATABASE_URL to the PostgreSQL that the SQLite file is copied to")
    with home.owned(current):
        terminal.copy(current, current.database)


def _file(current: settings.Settings, instead: str) -> Path:
    """The SQLite file. Raises InvalidSetting where the database is a PostgreSQL."""
    if isinstance(current.database, settings.Postgres):
        raise InvalidSetting(f"the database is {current.database}: use PostgreSQL's own {instead}")
    return current.database


def _tell(contents: file.Contents) -> None:
    rows = ", ".join(f"{count} {table}" for table, count in contents.rows.items() if count)
    click.echo(f"schema {contents.revision}, sound: {rows}")
