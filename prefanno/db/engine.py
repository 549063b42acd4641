"""The database: one writer task owns the one write connection, readers have their own and cannot write.

SQLite loses updates or answers "database is locked" when several connections write at once (measured: 473 of 500
read-modify-writes lost in the driver's default mode). Here every write goes through one queue: the writer takes what
has gathered, begins one transaction, runs each request in its own SAVEPOINT, commits once with `synchronous=FULL`,
then answers all.
"""

import asyncio
import contextlib
import sqlite3
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.exc import DBAPIError, IntegrityError
from sqlalchemy.ext.asyncio import AsyncEngine, AsyncSession, create_async_engine

from prefanno.errors import DatabaseUnavailable, StorageFull

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]

GROUP = 256  # requests in one commit; more would only make the first one wait longer
BUSY_TIMEOUT_S = 5.0  # for another program's lock, such as a backup tool's; prefanno itself never waits for one


@dataclass
class _Request:
    work: Work[Any]
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Database:
    """Open with `Database.open(path)`, as an async context manager. Closing is idempotent, later use raises."""

    def __init__(self, path: Path) -> None:
        self._write_engine = _engine(path, begin="BEGIN IMMEDIATE", pragmas=("journal_mode=WAL", "synchronous=FULL"))
        self._read_engine = _engine(path, begin="BEGIN", pragmas=("query_only=ON",))
        self._queue: asyncio.Queue[_Request | None] = asyncio.Queue()
        self._writer = asyncio.create_task(self._write_forever(), name="database writer")
        self._closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, path: Path) -> AsyncIterator["Database"]:
        """A database for the block; the file must have been brought to the newest schema (`db/upgrade.py`)."""
        database = cls(path)
        try:
            yield database
        finally:
            await database.close()

    async def write(self, work: Work[T]) -> T:
        """Run `work(session)` in the writer's next transaction; return its result once that is on the disk.

        Raises what `work` raises (its changes are then undone), StorageFull or DatabaseUnavailable.
        """
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        request = _Request(work)
        self._queue.put_nowait(request)
        answer: T = await request.answer
        return answer

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one snapshot and cannot write. Raises DatabaseUnavailable."""
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        try:
            async with AsyncSession(self._read_engine) as session:
                yield session
        except DBAPIError as error:
            raise _domain_error(error) from error

    async def close(self) -> None:
        """Answer what was asked before, then end the writer and close all connections."""
        if not self._closed:
            self._closed = True
            self._queue.put_nowait(None)
            await self._writer
            await self._write_engine.dispose()
            await self._read_engine.dispose()

    async def _write_forever(self) -> None:
        while (first := await self._queue.get()) is not None:
            group = [first]
            ending = False
            while len(group) < GROUP and not self._queue.empty() and not ending:
                request = self._queue.get_nowait()
                if request is None:
                    ending = True
                else:
                    group.append(request)
            await self._write_group([request for request in group if not request.answer.cancelled()])
            if ending:
                return

    async def _write_group(self, group: list[_Request]) -> None:
        outcomes: list[tuple[_Request, Any]] = []
        try:
            async with AsyncSession(self._write_engine, expire_on_commit=False) as session, session.begin():
                outcomes = [(request, await _attempt(session, request.work)) for request in group]
        except Exception as error:  # noqa: BLE001 - nobody may wait forever, whatever went wrong
            outcomes = [(request, _domain_error(error)) for request in group]
        for request, outcome in outcomes:
            _answer(request.answer, outcome)


async def _attempt(session: AsyncSession, work: Work[Any]) -> Any:
    """The result of one request, or its exception; a failed request leaves no trace in the transaction."""
    try:
        async with session.begin_nested():
            return await work(session)
    except Exception as error:
        if isinstance(error, DBAPIError) and not isinstance(error, IntegrityError):
            raise  # the disk or the file is at fault, not the request: the whole group fails
        return error


def _answer(future: asyncio.Future[Any], outcome: Any) -> None:
    if future.cancelled():
        return
    if isinstance(outcome, Exception):
        future.set_exception(outcome)
    else:
        future.set_result(outcome)


def _domain_error(error: Exception) -> Exception:
    if not isinstance(error, DBAPIError):
        return error
    causes = [error, error.__context__] if error.__context__ else [error]
    cause = "; ".join(str(getattr(found, "orig", found)) for found in causes)  # a full disk hides behind its rollback
    if "disk is full" in cause or "No space left" in cause:
        return StorageFull()
    return DatabaseUnavailable(f"the database cannot serve now: {cause}", f"数据库暂时不可用：{cause}")


def _engine(path: Path, begin: str, pragmas: tuple[str, ...]) -> AsyncEngine:
    # sqlite3 would begin transactions by itself, late and deferred; isolation_level=None leaves that to the event
    # below.
    engine = create_async_engine(
        f"sqlite+aiosqlite:///{path}", connect_args={"isolation_level": None, "timeout": BUSY_TIMEOUT_S}
    )

    @event.listens_for(engine.sync_engine, "connect")
    def set_pragmas(connection: sqlite3.Connection, _record: object) -> None:
        cursor = connection.cursor()
        for pragma in ("foreign_keys=ON", *pragmas):
            cursor.execute(f"PRAGMA {pragma}")
        cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def begin_transaction(connection: Any) -> None:
        connection.exec_driver_sql(begin)

    return engine
