"""The one writer and its many readers, on real databases."""

import asyncio
import gc
import sqlite3
import weakref
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import event, func, select, text
from sqlalchemy.exc import DBAPIError, IntegrityError, OperationalError
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import engine, runs
from prefanno.db.engine import Database
from prefanno.db.models import Annotation, Candidate, Generation, Run
from prefanno.errors import DatabaseUnavailable, StorageFull
from prefanno.settings import Settings
from tests import looking

WAIT_S = 60.0


def _run(reason: str | None = None) -> Run:
    return Run(base_model="base", adapter="li-simpo-1", reason=reason)


async def _add(session: AsyncSession) -> int:
    """One run more."""
    run = _run()
    session.add(run)
    await session.flush()
    return run.id


async def _hold(session: AsyncSession, held: Run) -> None:
    _ = held
    await _fail(session)


async def _fail(session: AsyncSession) -> None:
    """A run more, and then a fault."""
    await _add(session)
    raise ValueError("a fault of the request's own")


async def _count(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(func.count()).select_from(Run))).scalar_one()


async def test_what_a_request_holds_is_let_go_of(database: Database) -> None:
    """Once it is answered, not only when the next one comes; also where it failed."""

    async def ask() -> weakref.ref[Any]:
        held = Run()
        with pytest.raises(ValueError, match="own"):
            await database.write(partial(_hold, held=held))
        return weakref.ref(held)

    gone = await ask()
    async with asyncio.timeout(WAIT_S):
        while gone() is not None:
            gc.collect()  # what is in a cycle is no matter here
            await asyncio.sleep(0.01)


async def test_no_read_modify_write_is_lost(database: Database) -> None:
    """500 concurrent requests, each of which reads a number and writes it plus one, add 500."""

    async def begin(session: AsyncSession) -> None:
        session.add(_run("0"))

    async def add_one(session: AsyncSession) -> None:
        run = await runs.latest(session)
        assert run is not None
        await asyncio.sleep(0)
        run.reason = str(int(run.reason or 0) + 1)

    await database.write(begin)
    await asyncio.gather(*(database.write(add_one) for _ in range(500)))
    async with database.read() as session:
        run = await runs.latest(session)
    assert run is not None and run.reason == "500"


async def test_a_write_is_seen_by_the_next_read(settings: Settings, database: Database) -> None:
    """What `write` has answered, a read that begins afterwards sees, and so does another program."""
    run_id = await database.write(_add)
    async with database.read() as session:
        assert (await session.get_one(Run, run_id)).state == "running"
    assert looking.fetch(settings.database, "SELECT count(*) FROM runs") == [(1,)]


async def test_a_group_is_committed_once(database: Database) -> None:
    """Requests that wait together share one commit: hundreds of writes do not cost hundreds of syncs."""
    commits = 0

    def count(_connection: object) -> None:
        nonlocal commits
        commits += 1

    event.listen(database._write_engine.sync_engine, "commit", count)
    await asyncio.gather(*(database.write(_add) for _ in range(2 * engine.GROUP)))
    assert 2 <= commits <= 3
    assert await _count(database) == 2 * engine.GROUP


async def test_a_failing_request_leaves_no_trace_and_harms_nobody(database: Database) -> None:
    """In one group a request that fails is undone and gets its own error; its neighbours are stored."""
    results = await asyncio.gather(
        *(database.write(work) for work in (_add, _fail, _add, _fail, _add)), return_exceptions=True
    )
    assert [type(result) for result in results] == [int, ValueError, int, ValueError, int]
    assert await _count(database) == 3


async def test_a_broken_constraint_is_the_fault_of_one_request(database: Database) -> None:
    """A request that the tables refuse, only at its end even, does not take its neighbours with it."""

    async def nobody(session: AsyncSession) -> None:
        session.add(Run(character="nobody", base_model="base"))  # refused when the request's changes are flushed

    results = await asyncio.gather(*(database.write(work) for work in (_add, nobody, _add)), return_exceptions=True)
    assert [type(result) for result in results] == [int, IntegrityError, int]
    assert await _count(database) == 2


async def test_a_bug_in_one_request_is_its_own(database: Database) -> None:
    """A value that the database cannot take fails the request that gave it, and no other."""

    async def nonsense(session: AsyncSession) -> None:
        await session.execute(text("SELECT :value"), {"value": object()})

    results = await asyncio.gather(*(database.write(work) for work in (_add, nonsense, _add)), return_exceptions=True)
    assert [isinstance(result, int) for result in results] == [True, False, True]
    assert isinstance(results[1], DBAPIError)
    assert await _count(database) == 2


async def test_the_writer_goes_on_after_a_group_that_failed(database: Database) -> None:
    """A fault of the database fails the whole group with one clear error, and the next write works."""

    async def locked(_session: AsyncSession) -> None:
        raise OperationalError("", {}, sqlite3.OperationalError("database is locked"))

    results = await asyncio.gather(*(database.write(work) for work in (_add, locked, _add)), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    assert "database is locked" in str(results[0])
    assert await _count(database) == 0
    await database.write(_add)
    assert await _count(database) == 1


@pytest.mark.sqlite_only
async def test_a_full_disk_stores_nothing_and_says_so(settings: Settings, database: Database) -> None:
    """When SQLite finds the disk full, the request raises StorageFull; with room again, the next is stored."""
    before = settings.database_file.stat().st_size

    async def without_room(session: AsyncSession) -> None:
        (pages,) = (await session.execute(text("PRAGMA page_count"))).one()
        await session.execute(text(f"PRAGMA max_page_count = {pages}"))
        session.add(_run("x" * 100_000))

    async def with_room(session: AsyncSession) -> int:
        await session.execute(text("PRAGMA max_page_count = 1000000"))
        return await _add(session)

    with pytest.raises(StorageFull):
        await database.write(without_room)
    assert before > 0 and await _count(database) == 0
    await database.write(with_room)
    assert await _count(database) == 1


async def test_readers_cannot_write(database: Database) -> None:
    """A write through a reader's session is refused and changes nothing; control: the same write by the writer."""

    async def rename(session: AsyncSession) -> None:
        await session.execute(text("UPDATE runs SET base_model = 'other'"))
        await session.commit()

    await database.write(_add)
    with pytest.raises(DatabaseUnavailable, match=r"readonly|read-only"):
        async with database.read() as session:
            await rename(session)
    async with database.read() as session:
        assert (await session.execute(select(Run.base_model))).scalar_one() == "base"
    await database.write(lambda session: session.execute(text("UPDATE runs SET base_model = 'other'")))
    async with database.read() as session:
        assert (await session.execute(select(Run.base_model))).scalar_one() == "other"


async def test_a_reader_sees_one_snapshot(database: Database) -> None:
    """What is written during a read is not seen by that read, however often it looks."""
    await database.write(_add)
    async with database.read() as session:
        first = (await session.execute(select(func.count()).select_from(Run))).scalar_one()
        await database.write(_add)
        second = (await session.execute(select(func.count()).select_from(Run))).scalar_one()
    assert (first, second) == (1, 1)
    assert await _count(database) == 2


async def test_many_readers_read_while_the_writer_writes(database: Database) -> None:
    """Readers and the writer do not wait for each other, let alone for ever."""

    async def read() -> int:
        async with database.read() as session:
            await asyncio.sleep(0)
            return (await session.execute(select(func.count()).select_from(Run))).scalar_one()

    async with asyncio.timeout(WAIT_S):
        results = await asyncio.gather(*(read() for _ in range(50)), *(database.write(_add) for _ in range(50)))
    assert len(results) == 100 and await _count(database) == 50


@pytest.mark.sqlite_only
@pytest.mark.parametrize(
    ("pragma", "writer", "reader"),
    [("journal_mode", "wal", "wal"), ("foreign_keys", 1, 1), ("query_only", 0, 1)],
)
async def test_pragmas_are_in_force(database: Database, pragma: str, writer: object, reader: object) -> None:
    """Every connection checks foreign keys and reads from the write-ahead log; only readers are query-only."""
    assert await database.write(lambda session: session.scalar(text(f"PRAGMA {pragma}"))) == writer
    async with database.read() as session:
        assert await session.scalar(text(f"PRAGMA {pragma}")) == reader


@pytest.mark.sqlite_only
async def test_commits_are_synced(database: Database) -> None:
    """The writer's commits are on the disk when they are answered: synchronous is FULL (2)."""
    assert await database.write(lambda session: session.scalar(text("PRAGMA synchronous"))) == 2


@pytest.mark.parametrize(
    "row",
    [
        Annotation(mode="other", system_prompt="s", context=[], human_input="h", verdict="skip", replies=[]),
        Annotation(mode="single", system_prompt="s", context=[], human_input="h", verdict="fine", replies=[]),
        Run(base_model="base", state="resting"),
        Run(base_model="base", character="nobody"),
        Candidate(generation_id=1, ordinal=1, content="c", finish_reason="stop", tokens=1),
    ],
    ids=["mode", "verdict", "state", "character", "generation"],
)
async def test_the_tables_refuse_what_must_not_be(database: Database, row: object) -> None:
    """Each CHECK and foreign key holds in the database itself."""

    async def store(session: AsyncSession) -> None:
        session.add(row)

    with pytest.raises(IntegrityError):
        await database.write(store)


async def test_ids_are_never_used_again(database: Database) -> None:
    """The id of a deleted row is not given to another, so a reference can never mean something else."""
    first = await database.write(_add)
    await database.write(lambda session: session.execute(text("DELETE FROM runs")))
    assert await database.write(_add) > first


async def test_two_candidates_of_a_generation_have_different_places(database: Database) -> None:
    """An ordinal comes once in a generation."""

    async def store(session: AsyncSession) -> None:
        generation = Generation(message="m", context=[], settings={}, base_model="base", seed=1)
        session.add(generation)
        await session.flush()
        for content in ("a", "b"):
            session.add(
                Candidate(generation_id=generation.id, ordinal=1, content=content, finish_reason="stop", tokens=1)
            )

    with pytest.raises(IntegrityError):
        await database.write(store)


async def test_use_after_close_is_refused(settings: Settings, database: Database) -> None:
    """After close, writing and reading raise at once; closing again is harmless."""
    async with Database.open(settings.database) as other:
        await other.close()
        with pytest.raises(DatabaseUnavailable, match="closed"):
            await other.write(_add)
        with pytest.raises(DatabaseUnavailable, match="closed"):
            async with other.read():
                raise AssertionError
    await other.close()
    assert await _count(database) == 0


async def test_close_answers_what_was_asked_before(settings: Settings, database: Database) -> None:
    """Requests that wait when close comes are still stored and answered, however many they are."""
    async with Database.open(settings.database) as other:
        asked = [asyncio.create_task(other.write(_add)) for _ in range(2 * engine.GROUP + 3)]
        await asyncio.sleep(0)
        async with asyncio.timeout(WAIT_S):
            await other.close()
            assert len(set(await asyncio.gather(*asked))) == len(asked)
    assert await _count(database) == len(asked)


async def test_a_cancelled_waiter_harms_nobody(database: Database) -> None:
    """A request whose caller left before its turn is not carried out; its neighbours are."""
    waiting = [asyncio.create_task(database.write(_add)) for _ in range(5)]
    await asyncio.sleep(0)
    waiting[1].cancel()
    waiting[3].cancel()
    results = await asyncio.gather(*waiting, return_exceptions=True)
    assert [type(result) for result in results] == [int, asyncio.CancelledError] * 2 + [int]
    assert await _count(database) == 3


async def test_a_waiter_cancelled_in_its_turn_harms_nobody(database: Database) -> None:
    """A caller that leaves while its request is carried out does not break the group or the writer."""
    begun = asyncio.Event()

    async def slow(session: AsyncSession) -> int:
        begun.set()
        await asyncio.sleep(0.05)
        return await _add(session)

    leaving = asyncio.create_task(database.write(slow))
    await begun.wait()
    neighbour = asyncio.create_task(database.write(_add))
    leaving.cancel()
    async with asyncio.timeout(WAIT_S):
        assert await neighbour
        await database.write(_add)
    assert leaving.cancelled() and await _count(database) == 3


async def test_a_file_that_is_no_database_is_one_clear_error(tmp_path: Path) -> None:
    """Reading and writing a file that SQLite does not know raise DatabaseUnavailable, naming the cause."""
    file = tmp_path / "garbage.db"
    file.write_bytes(b"no database" * 1000)
    async with Database.open(file) as broken:
        with pytest.raises(DatabaseUnavailable, match="not a database"):
            await broken.write(_add)
        with pytest.raises(DatabaseUnavailable, match="not a database"):
            async with broken.read() as session:
                await session.execute(select(Run))
