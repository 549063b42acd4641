"""An SQLite file → an empty PostgreSQL: every row, id, time and text, compared before the one transaction is committed.

    source, one snapshot ──▶ rows, batch by batch ──▶ target, one transaction
                                    └──▶ count and sha256 of each table  ══  those of what is there now ──▶ commit

Killed or failed at any point, the target is as empty as it was.
"""

import contextlib
import hashlib
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson
from sqlalchemy import ColumnElement, RowMapping, String, Table, func, select, text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, AsyncSession

from prefanno.db import postgresql, remote, search, sqlite
from prefanno.db.file import explain
from prefanno.db.models import DEFAULT_CHARACTER, Annotation, Base, Run
from prefanno.errors import Conflict, DatabaseUnavailable
from prefanno.settings import Postgres

BATCH = 1000
TABLES = Base.metadata.sorted_tables
SEEDED = ("characters", "counts")  # what a migration leaves rows in


@dataclass(frozen=True)
class Sum:
    """What a table holds: how many rows, and the sha256 of all of them in the order of their keys."""

    rows: int
    sha256: str


class _Digest:
    def __init__(self) -> None:
        self._rows, self._sha256 = 0, hashlib.sha256()

    def add(self, rows: Sequence[RowMapping]) -> None:
        for row in rows:
            self._sha256.update(orjson.dumps(tuple(row.values())))
        self._rows += len(rows)

    def sum(self) -> Sum:
        return Sum(self._rows, self._sha256.hexdigest())


async def copy(file: Path, server: Postgres, tell: Callable[[int], None]) -> dict[str, Sum]:
    """Copy all tables; return what each holds. `tell` hears how many rows more have been copied or compared.

    Both have the newest schema. Raises Conflict where the target holds what a person made, or a run is under way;
    DatabaseUnavailable or StorageFull. The target is then what it was.
    """
    with _explained(file, server):
        async with _begun(sqlite.readers(file)) as source, _begun(postgresql.writer(server)) as target:
            await _check(source, target, server)
            await _clear(target)
            copied = {table.name: await _copy_table(source, target, table, tell) for table in TABLES}
            await _index(target)
            await _move_sequences(source, target)
            for table in TABLES:
                await _compare(target, table, copied[table.name], tell)
    return copied


async def size(file: Path) -> int:
    """How many rows `tell` will hear of: each is copied, and read again. Raises DatabaseUnavailable."""
    try:
        async with _begun(sqlite.readers(file)) as source:
            return 2 * sum([await _count(source, table) for table in TABLES])
    except DBAPIError as error:
        raise explain(file, error) from error


@contextlib.contextmanager
def _explained(file: Path, server: Postgres) -> Iterator[None]:
    """An error is of one of the two sides: of the file where SQLite raised it."""
    try:
        yield
    except DBAPIError as error:
        of_the_file = isinstance(error.orig, sqlite3.Error)
        raise (explain(file, error) if of_the_file else remote.explain(server, error)) from error


@contextlib.asynccontextmanager
async def _begun(engine: AsyncEngine) -> AsyncIterator[AsyncConnection]:
    """A connection with a transaction that is committed where the block ends well."""
    try:
        async with engine.begin() as connection:
            yield connection
    finally:
        await engine.dispose()


async def _check(source: AsyncConnection, target: AsyncConnection, server: Postgres) -> None:
    running = select(Run.id).where(Run.state == "running").limit(1)
    if (run := (await source.execute(running)).scalar()) is not None:
        raise Conflict(f"run {run} is under way, or its end was not noted: start the server on the file once, first")
    held = {table.name: await _count(target, table) for table in TABLES if table.name not in SEEDED}
    characters = Base.metadata.tables["characters"].c
    seeded = characters.slug == DEFAULT_CHARACTER, characters.system_prompt.is_(None)
    held["characters"] = (await target.execute(select(func.count()).where(~(seeded[0] & seeded[1])))).scalar_one()
    if full := [f"{count} {name}" for name, count in held.items() if count]:
        raise Conflict(f"{server} is not empty ({', '.join(full)}): name a new database")


async def _clear(target: AsyncConnection) -> None:
    for name in reversed(SEEDED):
        await target.execute(Base.metadata.tables[name].delete())


async def _copy_table(
    source: AsyncConnection, target: AsyncConnection, table: Table, tell: Callable[[int], None]
) -> Sum:
    """What was read is summed as it passes: read by itself, it would leave the target's transaction idle for long."""
    digest = _Digest()
    async for rows in _batches(source, table):
        digest.add(rows)
        await target.execute(table.insert(), [dict(row) for row in rows])
        tell(len(rows))
    return digest.sum()


async def _index(target: AsyncConnection) -> None:
    """Annotations must be findable there, too."""
    session = AsyncSession(target)
    async for rows in _batches(target, Base.metadata.tables["annotations"]):
        await search.put(session, {row["id"]: search.words(Annotation(**row)) for row in rows})


async def _move_sequences(source: AsyncConnection, target: AsyncConnection) -> None:
    """An id that the file gave, and whose row is gone, is not given again."""
    for name, last in await source.execute(text("SELECT name, seq FROM sqlite_sequence")):
        if name in Base.metadata.tables and last:
            move = text("SELECT setval(pg_get_serial_sequence(:name, 'id'), :last)")
            await target.execute(move, {"name": name, "last": last})


async def _compare(target: AsyncConnection, table: Table, was: Sum, tell: Callable[[int], None]) -> None:
    if (is_now := await _sum(target, table, tell)) != was:
        raise DatabaseUnavailable(f"the copy of {table.name} differs: {is_now}, not {was}; nothing was copied")


async def _sum(connection: AsyncConnection, table: Table, tell: Callable[[int], None]) -> Sum:
    digest = _Digest()
    async for rows in _batches(connection, table):
        digest.add(rows)
        tell(len(rows))
    return digest.sum()


async def _batches(connection: AsyncConnection, table: Table) -> AsyncIterator[Sequence[RowMapping]]:
    """All rows in the order of their keys, which both databases must mean in the same way."""
    keys = [_by_bytes(column, connection) for column in table.primary_key]
    query = select(table).order_by(*keys).execution_options(yield_per=BATCH)
    async with connection.stream(query) as result:
        async for rows in result.mappings().partitions():
            yield rows


def _by_bytes(column: ColumnElement[Any], connection: AsyncConnection) -> ColumnElement[Any]:
    if isinstance(column.type, String) and connection.dialect.name == "postgresql":
        return column.collate("C")
    return column


async def _count(connection: AsyncConnection, table: Table) -> int:
    return (await connection.execute(select(func.count()).select_from(table))).scalar_one()
