"""The database: one writer thread owns the one write connection, readers have their own and cannot write.

SQLite loses updates or answers "database is locked" when several connections write at once (measured: 473 of 500
read-modify-writes lost in the driver's default mode). Here every write goes through one queue: the writer takes what
has gathered, begins one transaction, runs each request in its own SAVEPOINT, commits once to the disk, then answers
all. Requests run in the writer's thread, in an event loop of its own: they use their session, and nothing that belongs
to another loop. A file's connections come from `db/sqlite.py`, a PostgreSQL's from `db/postgresql.py`; all else is the
same.
"""

import asyncio
import contextlib
import queue
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from sqlalchemy import event
from sqlalchemy.engine import ExceptionContext
from sqlalchemy.exc import DataError, DBAPIError, IntegrityError, InterfaceError, ProgrammingError
from sqlalchemy.exc import TimeoutError as PoolTimeout
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import postgresql, sqlite
from prefanno.errors import DatabaseUnavailable, StorageFull
from prefanno.settings import Postgres

T = TypeVar("T")
Work = Callable[[AsyncSession], Awaitable[T]]

GROUP = 256  # requests in one commit; more would only make the first one wait longer
FAULTS_OF_A_REQUEST = (IntegrityError, ProgrammingError, DataError, InterfaceError)
WRONG_DATA = "22"  # PostgreSQL's class of errors of a value


@dataclass
class _Request:
    work: Work[Any]
    answer: asyncio.Future[Any] = field(default_factory=lambda: asyncio.get_running_loop().create_future())


class Database:
    """Opened by `Database.open`, as an async context manager. Closing is idempotent, later use raises."""

    def __init__(self, where: Path | Postgres) -> None:
        if isinstance(where, Path):
            self._read_engine, self._write_engine = sqlite.readers(where), sqlite.writer(where)
        else:
            self._read_engine, self._write_engine = postgresql.readers(where), postgresql.writer(where)
        self._faults: list[BaseException] = []  # all that went wrong in the writer's transaction, in order
        event.listen(self._write_engine.sync_engine, "handle_error", self._note)
        self._training = None if isinstance(where, Path) else postgresql.TrainingLock(where)
        self._loop = asyncio.get_running_loop()
        self._asked: list[_Request] = []  # in this step of the loop
        self._queue: queue.SimpleQueue[list[_Request] | None] = queue.SimpleQueue()
        self._ended = self._loop.create_future()
        # A daemon: where nobody closes the database, as at the third Ctrl-C, the process ends all the same.
        self._writer = threading.Thread(target=self._run_writer, name="database writer", daemon=True)
        self._writer.start()
        self._closed = False

    @classmethod
    @contextlib.asynccontextmanager
    async def open(cls, where: Path | Postgres) -> AsyncIterator["Database"]:
        """A database for the block; it must have been brought to the newest schema (`db/upgrade.py`)."""
        database = cls(where)
        try:
            yield database
        finally:
            await database.close()

    async def write(self, work: Work[T]) -> T:
        """Run `work(session)` in the writer's next transaction; return its result once that is on the disk.

        A row that `work` returns may have been changed since by others in the same transaction; values have not.
        Raises what `work` raises (its changes are then undone), StorageFull or DatabaseUnavailable.
        """
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        request = _Request(work)
        if not self._asked:
            self._loop.call_soon(self._hand_over)
        self._asked.append(request)
        answer: T = await request.answer
        return answer

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[AsyncSession]:
        """A session that sees one snapshot and cannot write. Raises DatabaseUnavailable."""
        if self._closed:
            raise DatabaseUnavailable("the database is closed")
        try:
            async with AsyncSession(self._read_engine) as session:
                await _reach(session)
                yield session
        except (DBAPIError, PoolTimeout) as error:
            raise _domain_error(error) from error

    @property
    def shared(self) -> bool:
        """Whether other servers may use it, too."""
        return self._training is not None

    async def may_train(self) -> bool:
        """Whether this server has the right to train. Of several servers one has it; a file is one server's anyway."""
        return self._training is None or await self._training.held()

    async def take_training(self) -> bool:
        """Have the right to train, where no other server has it; whether that is so. Raises DatabaseUnavailable."""
        return self._training is None or await self._training.take()

    async def close(self) -> None:
        """Answer what was asked before, then end the writer and close all connections."""
        if not self._closed:
            self._closed = True
            self._hand_over()
            self._queue.put(None)
            await self._ended
            self._writer.join()
            await self._read_engine.dispose()
            if self._training is not None:
                await self._training.release()

    def _hand_over(self) -> None:
        """What was asked in one step of the loop goes to the writer at once."""
        asked, self._asked = self._asked, []
        self._queue.put(asked)

    def _run_writer(self) -> None:
        try:
            asyncio.run(self._write_forever())
        finally:
            self._loop.call_soon_threadsafe(self._ended.set_result, None)

    async def _write_forever(self) -> None:
        """In the writer's thread: as many requests at a time as have gathered, at most `GROUP`."""
        waiting: list[_Request] = []
        ending = False
        while waiting or not ending:
            while (not waiting and not ending) or not self._queue.empty():
                asked = self._queue.get()
                waiting += asked or []
                ending = ending or asked is None
            group, waiting = waiting[:GROUP], waiting[GROUP:]
            await self._write_group([request for request in group if not request.answer.cancelled()])
            asked, group = None, []  # and what the requests hold: the next may be long in coming
        await self._write_engine.dispose()

    def _note(self, context: ExceptionContext) -> None:
        self._faults.append(context.original_exception)

    async def _write_group(self, group: Sequence[_Request]) -> None:
        outcomes: list[tuple[_Request, Any]] = []
        self._faults.clear()
        try:
            async with AsyncSession(self._write_engine, expire_on_commit=False) as session, session.begin():
                await _reach(session)
                outcomes = [(request, await _attempt(session, request.work)) for request in group]
        except Exception as error:  # noqa: BLE001 - nobody may wait forever, whatever went wrong
            full = any(_is_full(fault) for fault in self._faults)  # which fails what comes after it, in other words
            outcomes = [(request, StorageFull() if full else _domain_error(error)) for request in group]
        self._loop.call_soon_threadsafe(_answer, outcomes)


async def _attempt(session: AsyncSession, work: Work[Any]) -> Any:
    """The result of one request, or its exception; a failed request leaves no trace in the transaction."""
    try:
        async with session.begin_nested():
            return await work(session)
    except DatabaseUnavailable:
        raise  # the connection was lost
    except Exception as error:
        if isinstance(error, DBAPIError) and not _is_of_the_request(error):
            raise  # the disk or the file is at fault, not the request: the whole group fails
        return error


def _is_of_the_request(error: DBAPIError) -> bool:
    if error.connection_invalidated:
        return False
    return isinstance(error, FAULTS_OF_A_REQUEST) or _sqlstate(error).startswith(WRONG_DATA)


def _sqlstate(error: BaseException) -> str:
    return getattr(getattr(error, "orig", error), "sqlstate", None) or ""


async def _reach(session: AsyncSession) -> None:
    """Begin, so that an error of the connection is not taken for one of what follows."""
    try:
        _ = await session.connection()
    except OSError as error:
        raise DatabaseUnavailable(f"the database cannot be reached: {error}") from error


def _answer(outcomes: Sequence[tuple[_Request, Any]]) -> None:
    for request, outcome in outcomes:
        if request.answer.cancelled():
            continue
        if isinstance(outcome, Exception):
            request.answer.set_exception(outcome)
        else:
            request.answer.set_result(outcome)


def _domain_error(error: Exception) -> Exception:
    if not isinstance(error, DBAPIError | PoolTimeout):
        return error
    if _is_full(error):
        return StorageFull()
    cause = getattr(error, "orig", error)
    return DatabaseUnavailable(f"the database cannot serve now: {cause}", f"数据库暂时不可用：{cause}")


def _is_full(fault: BaseException) -> bool:
    text = str(fault)
    return _sqlstate(fault) == postgresql.DISK_FULL or "disk is full" in text or "No space left" in text
