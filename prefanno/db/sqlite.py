"""How SQLite is reached: one connection that writes, in the writer's own thread, and others that cannot."""

from pathlib import Path
from typing import Any

from sqlalchemy import URL, event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from prefanno.db import direct, stored_json
from prefanno.db.fts5 import tokens

DURABILITY = "FULL"  # a WAL sync for each commit, before its answers; NORMAL would lose the last in a power cut
BUSY_TIMEOUT_S = 5.0  # for another program's lock, such as a backup tool's; prefanno itself never waits for one


def readers(file: Path) -> AsyncEngine:
    """Connections of which each transaction sees one snapshot."""
    return _engine(file, "sqlite+aiosqlite", begin="BEGIN", pragmas=("query_only=ON",))


def writer(file: Path) -> AsyncEngine:
    """The one connection that writes; its calls block, since its thread may."""
    durable = ("journal_mode=WAL", f"synchronous={DURABILITY}", "secure_delete=ON")
    return _engine(file, direct.DRIVER, begin="BEGIN IMMEDIATE", pragmas=durable)


def _engine(file: Path, driver: str, begin: str, pragmas: tuple[str, ...]) -> AsyncEngine:
    # sqlite3 would begin transactions by itself, late and deferred; isolation_level=None leaves that to the event
    # below.
    engine = create_async_engine(
        URL.create(driver, database=str(file)),  # not as text: a path may hold `?` and `%`
        connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S},
        json_serializer=stored_json.dumps,
        json_deserializer=stored_json.loads,
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_up(connection: Any, _record: object) -> None:
        connection.create_function("tokens", 1, tokens, deterministic=True)
        cursor = connection.cursor()
        for pragma in ("foreign_keys=ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
