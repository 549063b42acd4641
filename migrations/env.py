"""How alembic reaches the database: `prefanno.db.upgrade.alembic` hands it the SQLite file's URL, or a connection."""

from typing import Any

from alembic import context
from sqlalchemy import Connection, Engine, create_engine, event
from sqlalchemy.pool import NullPool

from prefanno.db.models import Base


def sqlite() -> Engine:
    """An engine for the file.

    With foreign keys on, SQLite's "rename, copy, drop" of a parent table deletes its children by ON DELETE CASCADE,
    silently. So they are off while a migration runs, and checked before it is committed. The command line (`alembic
    revision`) hands over no URL: it works on a file in the current folder.
    """
    engine = create_engine(context.config.attributes.get("url", "sqlite:///data/prefanno.db"), poolclass=NullPool)

    @event.listens_for(engine, "connect")
    def leave_transactions_to_alembic(connection: Any, _record: object) -> None:
        """By itself, sqlite3 runs CREATE and ALTER outside any transaction: what fails would stay half done."""
        connection.isolation_level = None
        connection.execute("PRAGMA foreign_keys=OFF")

    @event.listens_for(engine, "begin")
    def begin(connection: Any) -> None:
        """One transaction for all migrations: what is killed or fails leaves the schema it found."""
        connection.exec_driver_sql("BEGIN IMMEDIATE")

    return engine


def check_references(ctx: Any, *_unused: Any, **_also: Any) -> None:
    """Called at the end of each migration: one that leaves a broken reference is undone, and all before it."""
    broken = ctx.connection.exec_driver_sql("PRAGMA foreign_key_check").first()
    if broken:
        raise ValueError(f"row {broken[1]} of {broken[0]} refers to a missing row")


def ours(_thing: object, name: str | None, _kind: str, _reflected: bool, _other: object) -> bool:
    """The search index is no table of the models: the first migration that has it writes its SQL."""
    return not (name or "").startswith("annotation_search")


def migrate(connection: Connection) -> None:
    """Run what alembic was asked for."""
    context.configure(
        connection=connection,
        target_metadata=Base.metadata,
        render_as_batch=True,
        transactional_ddl=True,
        compare_server_default=True,
        include_object=ours,
        on_version_apply=check_references if connection.dialect.name == "sqlite" else None,
    )
    with context.begin_transaction():
        context.run_migrations()


if (given := context.config.attributes.get("connection")) is not None:
    migrate(given)
else:
    with sqlite().connect() as opened:
        migrate(opened)
