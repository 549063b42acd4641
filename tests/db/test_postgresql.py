"""What is PostgreSQL's own: connections lost or refused, one writer among several servers, the right to train."""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import postgresql, runs, upgrade
from prefanno.db.engine import Database
from prefanno.db.file import HEAD
from prefanno.db.models import Generation, Run
from prefanno.errors import DatabaseUnavailable, StorageFull
from prefanno.settings import Postgres, Settings
from tests import postgres

pytestmark = pytest.mark.needs("PostgreSQL")

CUT = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'prefanno' AND datname = {!r}"
WAIT_S = 60.0


@pytest.fixture
def server(refilled: postgres.Refilled) -> Postgres:
    """An empty database at the newest schema."""
    refilled.refill()
    return Postgres(refilled.url)


@pytest.fixture
async def database(server: Postgres) -> AsyncIterator[Database]:
    """The first server's."""
    async with Database.open(server) as opened:
        yield opened


@pytest.fixture
async def other(server: Postgres) -> AsyncIterator[Database]:
    """Another server's, on the same database."""
    async with Database.open(server) as opened:
        yield opened


@pytest.fixture
def restarted() -> Iterator[postgres.Postgres]:
    """A PostgreSQL of the test's own, to be stopped and started."""
    own = postgres.Postgres()
    try:
        own.start()
        yield own
    finally:
        own.remove()


async def _add(session: AsyncSession) -> int:
    run = Run(base_model="base", reason="0")
    session.add(run)
    await session.flush()
    return run.id


async def _count(database: Database) -> int:
    async with database.read() as session:
        return (await session.execute(select(func.count()).select_from(Run))).scalar_one()


async def _read(database: Database, between: Callable[[], None]) -> None:
    """Two queries, and something between them."""
    async with database.read() as session:
        await session.execute(select(Run))
        between()
        await session.execute(select(Run))


def _cut(server: Postgres) -> None:
    """End every connection, as a restart does, or an administrator."""
    with postgres.asking(server.url) as asker:
        asker.fetch(CUT.format(postgres.name_of(server.url)))


async def test_no_read_modify_write_of_two_servers_is_lost(database: Database, other: Database) -> None:
    """500 concurrent requests to two servers, each of which reads a number and writes it plus one, add 500."""

    async def add_one(session: AsyncSession) -> None:
        run = await runs.latest(session)
        assert run is not None
        await asyncio.sleep(0)
        run.reason = str(int(run.reason or 0) + 1)

    await database.write(_add)
    await asyncio.gather(*((database, other)[number % 2].write(add_one) for number in range(500)))
    async with other.read() as session:
        run = await runs.latest(session)
    assert run is not None and run.reason == "500"


async def test_lost_connections_are_survived(server: Postgres, database: Database) -> None:
    """With all its connections cut, the server reads and writes on as if nothing had happened."""
    for number in range(1, 4):
        await database.write(_add)
        assert await _count(database) == number
        _cut(server)


async def test_a_connection_lost_in_the_middle_stores_nothing(server: Postgres, database: Database) -> None:
    """Requests whose connection is cut under them get one clear error, all of their group; the next is stored."""

    async def cut_off(session: AsyncSession) -> int:
        number = await _add(session)
        _cut(server)
        await session.execute(text("SELECT 1"))
        return number

    results = await asyncio.gather(*(database.write(work) for work in (_add, cut_off, _add)), return_exceptions=True)
    assert [type(result) for result in results] == [DatabaseUnavailable] * 3
    with pytest.raises(DatabaseUnavailable):
        await _read(database, lambda: _cut(server))
    assert await _count(database) == 0
    await database.write(_add)
    assert await _count(database) == 1


async def test_a_restarted_postgresql_is_survived(restarted: postgres.Postgres) -> None:
    """While it is down every request gets one clear error at once; up again, the same server serves."""
    where = Postgres(restarted.make())
    upgrade.upgrade(where)
    async with Database.open(where) as database:
        await database.write(_add)
        assert await database.take_training()
        restarted.stop()
        for _ in range(2):
            with pytest.raises(DatabaseUnavailable):
                await database.write(_add)
            with pytest.raises(DatabaseUnavailable):
                await _count(database)
            assert not await database.may_train()
        restarted.start()
        await database.write(_add)
        assert await _count(database) == 2
        assert await database.take_training()


@pytest.mark.parametrize("fault", [OSError("mine"), TimeoutError("mine"), ConnectionResetError("mine")])
async def test_an_error_of_the_readers_own_stays_what_it_is(database: Database, fault: OSError) -> None:
    """What a block raises beside its queries is no fault of the database."""

    def fail() -> None:
        raise fault

    with pytest.raises(type(fault), match="mine"):
        await _read(database, fail)


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"port": "1"}, "refused|Connect call failed"),
        ({"name": "nowhere"}, 'database "nowhere" does not exist'),
        ({"host": "no.such.host.invalid"}, "Name or service not known|nodename|Temporary failure"),
    ],
    ids=["port", "name", "host"],
)
async def test_what_cannot_be_reached_is_one_clear_error(server: Postgres, change: dict[str, str], says: str) -> None:
    """A wrong port, name or host is named with its cause, for reading, writing, upgrading; the password never."""
    head, _, name = server.url.rpartition("/")
    port = head.rpartition(":")[2]
    where = {"host": "127.0.0.1", "port": port, "name": name} | change
    wrong = Postgres("postgresql://prefanno:hush@{host}:{port}/{name}".format(**where))
    said: list[str] = []
    async with Database.open(wrong) as database:
        for work in (database.write(_add), _count(database), database.take_training()):
            with pytest.raises(DatabaseUnavailable, match=says) as refused:
                await work
            said += [str(refused.value), refused.value.detail]
    with pytest.raises(DatabaseUnavailable, match=says) as refused:
        upgrade.upgrade(wrong)
    said.append(str(refused.value))
    assert all("PostgreSQL" in one and "hush" not in one for one in said)


async def test_a_full_disk_is_said_to_be_one(database: Database) -> None:
    """PostgreSQL's own code for it becomes StorageFull for the group, and nothing is stored."""
    full = "DO $$BEGIN RAISE EXCEPTION 'could not extend file' USING ERRCODE = '53100'; END$$"
    tried = [database.write(_add), database.write(lambda session: session.execute(text(full)))]
    assert [type(one) for one in await asyncio.gather(*tried, return_exceptions=True)] == [StorageFull] * 2
    assert await _count(database) == 0


async def test_a_value_out_of_range_is_the_fault_of_one_request(database: Database) -> None:
    """What a column cannot hold fails the request that brought it, and none beside it."""

    async def too_large(session: AsyncSession) -> None:
        session.add(Generation(message="m", context=[], settings={}, base_model="b", seed=2**40))

    async def divide(session: AsyncSession) -> None:
        await session.execute(text("SELECT 1/0"))

    works = (_add, too_large, divide, _add)
    results = await asyncio.gather(*(database.write(work) for work in works), return_exceptions=True)
    assert [isinstance(result, int) for result in results] == [True, False, False, True]
    assert not any(isinstance(result, DatabaseUnavailable) for result in results)
    assert await _count(database) == 2


async def test_ids_have_64_bits(server: Postgres, database: Database) -> None:
    """An id of 18 digits, as the API takes it, can be asked for, and be that of a row."""
    with postgres.asking(server.url) as asker:
        asker.execute(f"SELECT setval('runs_id_seq', {10**18 - 2})")
    assert await database.write(_add) == 10**18 - 1
    async with database.read() as session:
        assert await session.get(Run, 10**18 - 1) is not None


async def test_a_writer_that_hangs_hinders_the_others_for_a_time_only(
    server: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who waits for another server's writer too long gets a clear error; when that one is done, all goes on."""
    monkeypatch.setitem(postgresql.WRITES, "lock_timeout", "200ms")
    async with Database.open(server) as database, Database.open(server) as other:
        begun, done = asyncio.Event(), asyncio.Event()
        loop = asyncio.get_running_loop()

        async def hang(session: AsyncSession) -> int:
            loop.call_soon_threadsafe(begun.set)
            while not done.is_set():  # noqa: ASYNC110 - an event of another loop
                await asyncio.sleep(0.01)
            return await _add(session)

        hanging = asyncio.create_task(other.write(hang))
        await begun.wait()
        with pytest.raises(DatabaseUnavailable, match="lock timeout"):
            await database.write(_add)
        assert await _count(database) == 0
        done.set()
        await hanging
        await database.write(_add)
        assert await _count(database) == 2


async def test_one_server_has_the_right_to_train(server: Postgres, database: Database, other: Database) -> None:
    """The first to ask has it until it closes, or until its connection is lost; then another one can have it."""
    assert (await database.may_train(), await other.may_train()) == (False, False)
    assert await asyncio.gather(*(database.take_training() for _ in range(5))) == [True] * 5
    assert not await other.take_training() and not await other.may_train()
    assert await database.may_train()
    _cut(server)
    async with asyncio.timeout(WAIT_S):
        while not await other.take_training():  # noqa: ASYNC110 - PostgreSQL tells nobody
            await asyncio.sleep(0.01)
    assert not await database.may_train() and not await database.take_training()
    await other.close()
    assert await database.take_training()


async def test_who_is_cancelled_while_it_asks_has_no_right_to_train(
    server: Postgres, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where another server has it, nor where it was granted to whom nobody waits for any more."""
    import asyncpg

    asks, asked = asyncpg.Connection.fetchval, asyncio.Event()

    async def hang(connection: asyncpg.Connection, query: str, *values: int) -> None:
        await asks(connection, query, *values)
        asked.set()
        await asyncio.Event().wait()

    async def cancelled(lock: postgresql.TrainingLock) -> None:
        asked.clear()
        with monkeypatch.context() as patched:
            patched.setattr(asyncpg.Connection, "fetchval", hang)
            taking = asyncio.create_task(lock.take())
            await asked.wait()
            taking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await taking
        assert not await lock.held()

    lock = postgresql.TrainingLock(server)
    await cancelled(lock)
    async with asyncio.timeout(WAIT_S):
        while not await database.take_training():  # noqa: ASYNC110 - PostgreSQL tells nobody
            await asyncio.sleep(0.01)
    await cancelled(lock)
    assert await database.may_train() and not await lock.take()


async def test_commits_are_synced(database: Database) -> None:
    """Also where the PostgreSQL is set not to wait for the disk, an answered write is on it."""
    assert "synchronous_commit=off" in postgres.FAST
    assert await database.write(lambda session: session.scalar(text("SHOW synchronous_commit"))) == "on"


async def test_two_servers_that_start_at_once_migrate_once(postgresql: postgres.Postgres) -> None:
    """Both find a new database; one makes the tables, the other waits for it, and both go on."""
    where = Postgres(postgresql.make())
    done = await asyncio.gather(*(asyncio.to_thread(upgrade.upgrade, where) for _ in range(4)))
    assert len(done) == 4 and upgrade.revision(where) == HEAD
    with postgres.asking(where.url) as asker:
        assert asker.fetch("SELECT count(*) FROM characters") == [(1,)]
    postgresql.drop(where.url)


async def test_another_encoding_is_refused(postgresql: postgres.Postgres) -> None:
    """A database that cannot hold every character says so before anything is stored in it."""
    postgresql.execute("postgres", "CREATE DATABASE ascii TEMPLATE template0 ENCODING 'SQL_ASCII' LOCALE 'C'")
    where = Postgres(postgresql.url("ascii"))
    with pytest.raises(DatabaseUnavailable, match="UTF8"):
        upgrade.upgrade(where)
    assert upgrade.revision(where) is None
    postgresql.drop(where.url)


def test_the_text_of_a_server_has_no_password() -> None:
    """Neither its name nor its representation, nor that of the settings, does."""
    settings = Settings(database_url="postgresql://you:hush@db.example:5433/prefanno")
    assert str(settings.database) == "PostgreSQL db.example:5433/prefanno"
    assert "hush" not in repr(settings) + repr(settings.database) + repr(replace(settings, port=1))
