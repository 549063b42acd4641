"""The PostgreSQL database as a whole, as `db/file.py` has it of a file: its schema revision, what is wrong. Blocks.

asyncpg speaks asyncio only. Each call has a thread with an event loop of its own, so it can be made anywhere.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from typing import Any, TypeVar

from sqlalchemy import Connection
from sqlalchemy.pool import NullPool

from prefanno.db import postgresql
from prefanno.db.models import Base
from prefanno.errors import DatabaseUnavailable, PrefannoError, StorageFull
from prefanno.settings import Postgres

T = TypeVar("T")

HAS_REVISION = "SELECT to_regclass('alembic_version') IS NOT NULL"


def revision(server: Postgres) -> str | None:
    """The schema revision, None where there is none yet. Raises DatabaseUnavailable."""
    return _run(_revision(server))


def alone(server: Postgres, work: Callable[[Connection], T]) -> T:
    """What `work` returns, called with a connection while no server writes. Raises what it raises."""
    return _run(_alone(server, work))


def rewrite(server: Postgres) -> None:
    """Write every table anew, without a byte of what was removed. Raises DatabaseUnavailable or StorageFull."""
    _run(_rewrite(server))


def explain(server: Postgres, error: Exception) -> PrefannoError:
    """What an error of PostgreSQL or of alembic means for who has this database."""
    if isinstance(error, PrefannoError):
        return error
    cause = getattr(error, "orig", None) or error
    if getattr(cause, "sqlstate", None) == postgresql.DISK_FULL:
        return StorageFull()
    return DatabaseUnavailable(f"cannot use {server}: {cause}")


def _run(work: Coroutine[Any, Any, T]) -> T:
    with ThreadPoolExecutor(1, thread_name_prefix="database") as thread:
        return thread.submit(asyncio.run, work).result()


async def _revision(server: Postgres) -> str | None:
    async with _connected(server) as connection:
        if not await connection.fetchval(HAS_REVISION):
            return None
        found: str | None = await connection.fetchval("SELECT version_num FROM alembic_version")
        return found


async def _rewrite(server: Postgres) -> None:
    async with _connected(server) as connection:
        for table in (*Base.metadata.tables, "annotation_search"):
            await connection.execute(f"VACUUM (FULL) {table}")


@contextlib.asynccontextmanager
async def _connected(server: Postgres) -> AsyncIterator[Any]:
    import asyncpg

    connection = await postgresql.connect(server, postgresql.WAITS)
    try:
        yield connection
    except (OSError, asyncpg.PostgresError, asyncpg.InterfaceError) as error:
        raise explain(server, error) from error
    finally:
        await connection.close()


async def _alone(server: Postgres, work: Callable[[Connection], T]) -> T:
    engine = postgresql.engine(server, postgresql.WAITS, poolclass=NullPool)
    try:
        async with engine.connect() as connection:
            await connection.exec_driver_sql(f"SELECT pg_advisory_lock({postgresql.WRITING})")
            encoding = (await connection.exec_driver_sql("SHOW server_encoding")).scalar_one()
            await connection.commit()  # the lock stays: it is the session's
            if encoding != "UTF8":
                raise DatabaseUnavailable(f"{server} has the encoding {encoding}; make one with ENCODING 'UTF8'")
            return await connection.run_sync(work)
    finally:
        await engine.dispose()
