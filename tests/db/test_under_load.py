"""Many clients at once: nothing is refused, nothing lost, nothing twice, and nothing stays open."""

import asyncio
import contextlib
import random
import threading
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.pool import QueuePool

from prefanno.annotation import dataset
from prefanno.annotation.export import export
from prefanno.db import annotations, idempotency
from prefanno.db.engine import Database
from prefanno.db.idempotency import Answer
from prefanno.db.models import Annotation
from tests.annotation.test_dataset import SINGLE

WAIT_S = 60.0
READERS = 20
LISTED = 10  # the API's own default
CONNECTIONS = 15  # that readers may have at once: the pool's own default
CUTS = 1_500
FEWER_CUTS = 300  # suffice to show doubles: about one add in ten has one
OTHERS = text(
    "SELECT count(*) FROM pg_stat_activity"
    " WHERE application_name = 'prefanno' AND datname = current_database() AND pid != pg_backend_pid()"
)


@dataclass
class Load:
    """What a load of adds came to."""

    totals: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)  # of each add
    reads: int = 0
    exports: int = 0
    wall: float = 0.0

    def __str__(self) -> str:
        figures = f"{len(self.totals) / self.wall:.0f} adds/s, p50 {self.quantile(0.5) * 1000:.0f} ms"
        return f"{figures}, p99 {self.quantile(0.99) * 1000:.0f} ms, {self.reads} reads, {self.exports} exports"

    def quantile(self, share: float) -> float:
        """The time within which this share of the adds was answered."""
        return sorted(self.seconds)[int(share * (len(self.seconds) - 1))]


async def _add(session: AsyncSession, chosen: str) -> Answer:
    """One annotation more, and how many there are with it: what a client is answered."""
    annotation = await dataset.add(session, "li", replace(SINGLE, chosen=chosen))
    return {"id": annotation.id, "total": (await annotations.counts(session, "li"))["single"]}


async def _chosen(database: Database) -> list[str]:
    """What was chosen in each annotation there is."""
    async with database.read() as session:
        return [replies[0]["content"] for replies in await session.scalars(select(Annotation.replies))]


async def _loaded(database: Database, folder: Path, writers: int, adds: int) -> Load:
    """Writers that add one after another, beside readers that list and count, and one export after another."""
    load = Load()

    async def write(writer: int) -> None:
        for number in range(adds):
            begun = time.perf_counter()
            answer = await database.write(lambda session: _add(session, f"{writer}/{number}"))  # noqa: B023 - awaited
            load.seconds.append(time.perf_counter() - begun)
            load.totals.append(answer["total"])

    async def read() -> None:
        async with database.read() as session:
            listed = await annotations.newest(session, "li", "single", LISTED)
            assert len(listed) == min(LISTED, (await annotations.counts(session, "li"))["single"])
        load.reads += 1

    async def write_files() -> None:
        before = len(load.totals)
        manifest = await export(database, "sharegpt", folder, "li")
        assert before <= manifest.files["li_preference.json"].rows
        load.exports += 1

    begun = time.perf_counter()
    async with _again_and_again([read] * READERS + [write_files]):
        await asyncio.gather(*(write(writer) for writer in range(writers)))
    load.wall = time.perf_counter() - begun
    return load


@contextlib.asynccontextmanager
async def _again_and_again(works: Sequence[Callable[[], Awaitable[None]]]) -> AsyncIterator[None]:
    """Each of these in a loop beside the block; what one of them raises is raised."""
    ending = asyncio.Event()

    async def repeat(work: Callable[[], Awaitable[None]]) -> None:
        while not ending.is_set():
            await work()

    async with asyncio.TaskGroup() as tasks:
        for work in works:
            tasks.create_task(repeat(work))
        yield
        ending.set()


async def _all_there(database: Database, load: Load, writers: int, adds: int) -> None:
    assert sorted(load.totals) == list(range(1, writers * adds + 1))
    assert Counter(await _chosen(database)) == Counter(f"{w}/{n}" for w in range(writers) for n in range(adds))
    assert load.reads >= READERS and load.exports >= 1


async def test_writers_readers_and_an_export_do_not_hinder_each_other(database: Database, tmp_path: Path) -> None:
    """100 writers add beside 20 readers and an export: no error, every add is there, each total is given once."""
    load = await _loaded(database, tmp_path, writers=100, adds=10)
    await _all_there(database, load, writers=100, adds=10)


@pytest.mark.long
async def test_nobody_waits_much_longer_than_the_others(database: Database, tmp_path: Path) -> None:
    """Of 100 writers with 100 adds each, 99 in 100 answers come within twice the time that all writers share."""
    load = await _loaded(database, tmp_path, writers=100, adds=100)
    print(f"100 writers x 100 adds: {load}")  # noqa: T201 - the figures that docs/reliability.md records
    await _all_there(database, load, writers=100, adds=100)
    assert load.quantile(0.99) <= 2 * 100 * load.wall / len(load.totals)


async def test_no_read_modify_write_of_a_note_is_lost(database: Database) -> None:
    """500 concurrent requests, each of which reads a note and writes it with one more mark, leave 500 marks."""
    number = (await database.write(lambda session: _add(session, "离")))["id"]

    async def mark(session: AsyncSession) -> None:
        annotation = await annotations.get(session, number)
        await asyncio.sleep(0)
        await dataset.edit(session, number, {"note": (annotation.note or "") + "|"})

    await asyncio.gather(*(database.write(mark) for _ in range(500)))
    async with database.read() as session:
        assert (await annotations.get(session, number)).note == "|" * 500


async def _cut_off(
    database: Database, chance: random.Random, work: Callable[[AsyncSession], Awaitable[Answer]]
) -> bool:
    """Read and write as a request does, cut off at a random point; whether it was answered before."""

    async def request() -> None:
        async with database.read() as session:
            await annotations.counts(session, "li")
        await database.write(work)
        async with database.read() as session:
            await annotations.newest(session, "li", "single", 10)

    task = asyncio.create_task(request())
    await asyncio.wait([task], timeout=10 ** chance.uniform(-3.5, 0))  # as likely in the first ms as in the last tenths
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return not task.cancelled()


async def _add_with_retry(database: Database, chance: random.Random, name: str, *, key: bool) -> bool:
    """Cut off an add and ask for it again, until it is answered; whether it was cut off at all."""

    async def work(session: AsyncSession) -> Answer:
        return await _add(session, name)

    work_once = idempotency.once(name, name, work) if key else work
    answered = await _cut_off(database, chance, work_once)
    if not answered:
        await database.write(work_once)
    return not answered


async def _add_all(database: Database, adds: int, *, key: bool) -> int:
    """So many adds by 50 clients; how many of them were cut off."""
    names = iter(range(adds))

    async def client(number: int) -> int:
        chance = random.Random(number)
        return sum([await _add_with_retry(database, chance, f"add {name}", key=key) for name in names])

    async with asyncio.timeout(5 * WAIT_S):
        return sum(await asyncio.gather(*(client(number) for number in range(50))))


async def _all_closed(database: Database) -> None:
    """No reader's connection is in use, none is open outside the pool, and as many as ever can be had at once."""
    pool = cast(QueuePool, database._read_engine.pool)
    assert pool.checkedout() == 0
    async with asyncio.timeout(WAIT_S):
        while await _connections(database) > pool.checkedin():  # noqa: ASYNC110 - what ends tells nobody
            await asyncio.sleep(0.01)
    all_in = asyncio.Barrier(CONNECTIONS)

    async def read() -> None:
        async with database.read() as session:
            await annotations.counts(session, "li")
            await all_in.wait()

    async with asyncio.timeout(WAIT_S):
        await asyncio.gather(*(read() for _ in range(CONNECTIONS)))
    assert pool.checkedout() == 0


async def _connections(database: Database) -> int:
    """How many readers' connections are open: on SQLite each has a thread of its own, PostgreSQL counts them itself."""
    if database.shared:
        return await database.write(lambda session: session.scalar(OTHERS)) or 0
    return sum("_connection_worker_thread" in thread.name for thread in threading.enumerate())


async def test_an_add_that_was_cut_off_is_done_once_when_it_is_asked_for_again(database: Database) -> None:
    """1,500 adds, cut off at random points and sent again with their key: each is there once, nothing stays open."""
    cut = await _add_all(database, CUTS, key=True)
    assert Counter(await _chosen(database)) == Counter(f"add {number}" for number in range(CUTS))
    assert cut > CUTS / 10
    await _all_closed(database)


async def test_without_a_key_an_add_that_was_cut_off_is_there_twice(database: Database) -> None:
    """Control: the same cutting, with adds that are sent again without a key, leaves doubles."""
    await _add_all(database, FEWER_CUTS, key=False)
    found = Counter(await _chosen(database))
    assert len(found) == FEWER_CUTS and max(found.values()) == 2


async def test_a_connection_in_use_is_seen(database: Database) -> None:
    """Control: where a reader has not given back its connection, looking for it fails."""
    async with database.read() as session:
        await annotations.counts(session, "li")
        with pytest.raises(AssertionError):
            await _all_closed(database)
    await _all_closed(database)
