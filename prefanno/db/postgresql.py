"""How PostgreSQL is reached: one writer at a time among all servers, readers that cannot write, the right to train.

Every transaction of a writer begins by taking one lock, so all that holds of SQLite's one writer holds of the writers
of many servers. asyncpg is imported inside functions: who uses a file need not have it.
"""

import asyncio
import contextlib
from collections.abc import Mapping
from typing import Any

from sqlalchemy import event
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from prefanno.db import stored_json
from prefanno.errors import DatabaseUnavailable
from prefanno.settings import Postgres

# Advisory locks share one space of numbers with all other programs on the database: "prefanno" as a number.
WRITING = 0x70726566616E6E6F
TRAINING = WRITING + 1

DISK_FULL = "53100"  # PostgreSQL's code of the error

CONNECT_S = 10.0
READ_S = 60.0  # for one statement
WRITE_S = 300.0  # for one statement; an import indexes a hundred thousand rows in one
LOCK_WAIT_S = 30  # for the writer of another server; a large import takes that long
IDLE_S = 60  # amid a transaction: then the server that hangs there loses its lock
# A server whose machine went down says no goodbye; PostgreSQL shall notice within a minute.
SOON_GONE = {"tcp_keepalives_idle": "20", "tcp_keepalives_interval": "10", "tcp_keepalives_count": "3"}
READS = {"default_transaction_isolation": "repeatable read", "default_transaction_read_only": "on"}
WAITS = {"lock_timeout": f"{LOCK_WAIT_S}s"}
WRITES = SOON_GONE | WAITS | {"synchronous_commit": "on", "idle_in_transaction_session_timeout": f"{IDLE_S}s"}


def readers(server: Postgres) -> AsyncEngine:
    """Connections of which each transaction sees one snapshot, and that cannot write."""
    return engine(server, READS, READ_S)


def writer(server: Postgres) -> AsyncEngine:
    """The one connection of this server that writes."""
    writing = engine(server, WRITES, WRITE_S, pool_size=1, max_overflow=0)

    @event.listens_for(writing.sync_engine, "begin")
    def one_writer(connection: Any) -> None:
        connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({WRITING})")

    return writing


def engine(server: Postgres, options: Mapping[str, str], statement_s: float | None = None, **pool: Any) -> AsyncEngine:
    """Connections with these options of PostgreSQL, each looked at before it is used again."""

    async def creator() -> Any:
        return await connect(server, options, statement_s)

    made = create_async_engine(
        "postgresql+asyncpg://",
        async_creator=creator,
        json_serializer=stored_json.dumps,
        json_deserializer=stored_json.loads,
        **({} if "poolclass" in pool else {"pool_pre_ping": True}),
        **pool,
    )

    @event.listens_for(made.sync_engine, "handle_error")
    def lost(context: Any) -> None:
        """The driver gives a lost connection as what the network said."""
        if isinstance(context.original_exception, OSError):
            context.is_disconnect = True
            raise unreachable(server, context.original_exception)

    return made


async def connect(server: Postgres, options: Mapping[str, str], statement_s: float | None = None) -> Any:
    """A connection of asyncpg's. Raises DatabaseUnavailable."""
    import asyncpg

    settings = {"application_name": "prefanno", "jit": "off", "client_encoding": "utf8", **options}
    try:
        return await asyncpg.connect(
            server.url, timeout=CONNECT_S, command_timeout=statement_s, server_settings=settings
        )
    except (OSError, ValueError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise unreachable(server, error) from error


def unreachable(server: Postgres, error: Exception) -> DatabaseUnavailable:
    """There is no connection, and why."""
    cause = str(error) or type(error).__name__
    return DatabaseUnavailable(f"cannot use {server}: {cause}", f"数据库暂时不可用，无法连接 PostgreSQL：{cause}")


class TrainingLock:
    """The right to train, which one server on a database has: for as long as this connection lives."""

    def __init__(self, server: Postgres) -> None:
        self._server = server
        self._connection: Any = None
        self._one_at_a_time = asyncio.Lock()

    async def held(self) -> bool:
        """Whether this server has the right."""
        async with self._one_at_a_time:
            return await self._alive()

    async def take(self) -> bool:
        """Have it, where nobody else does; whether that is so. Raises DatabaseUnavailable."""
        async with self._one_at_a_time:
            if await self._alive():
                return True
            connection = await connect(self._server, SOON_GONE, CONNECT_S)
            try:
                granted = await _answers(connection, "SELECT pg_try_advisory_lock($1)", TRAINING)
            except BaseException:  # cancelled, above all: who may have the right, and does not know, must not keep it
                connection.terminate()
                raise
            if granted:
                self._connection = connection
            else:
                await _close(connection)
            return granted

    async def release(self) -> None:
        """Let another server have it."""
        async with self._one_at_a_time:
            await self._leave()

    async def _alive(self) -> bool:
        if self._connection is None:
            return False
        if await _answers(self._connection, "SELECT true"):
            return True
        await self._leave()
        return False

    async def _leave(self) -> None:
        """Close the connection, and with it give the right back."""
        connection, self._connection = self._connection, None
        if connection is not None:
            await _close(connection)


async def _answers(connection: Any, query: str, *values: int) -> bool:
    """Whether PostgreSQL says yes; a connection that is lost says no."""
    import asyncpg

    try:
        return bool(await connection.fetchval(query, *values))
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError):
        connection.terminate()
        return False


async def _close(connection: Any) -> None:
    with contextlib.suppress(TimeoutError):  # it is cut off then
        await connection.close(timeout=CONNECT_S)
