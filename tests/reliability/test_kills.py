"""A server that is killed again and again, while many clients add: what was acknowledged is there, once."""

import asyncio
import contextlib
import random
import shutil
import socket
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.serving import free_port
from prefanno.settings import Postgres, Settings
from tests.looking import execute, looking
from tests.postgres import Postgres as PostgreSQL
from tests.reliability import clients
from tests.reliability.checking import faults
from tests.reliability.conftest import Say

LATEST_S = 1.0  # of a kill during start-up, after exec
RESTART_S = 3.0


@dataclass
class Fire:
    """A server on one home and port, and the SIGKILLs it got."""

    home: Path
    url: str = ""
    port: int = field(default_factory=free_port)
    kills: int = 0
    unheard: int = 0  # kills before the server listened
    restarts: list[float] = field(default_factory=list)  # seconds from exec to the first 200
    process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path | Postgres:
        """Where the server stores."""
        return Settings(home=self.home, database_url=self.url).database

    async def up(self) -> None:
        """Start the server and wait until it serves."""
        log, begun = self.home / "server.log", time.monotonic()
        self.process = clients.start(self.home, self.port, log, url=self.url)
        await clients.healthy(self.process, self.port, log)
        self.restarts.append(time.monotonic() - begun)

    async def killed_starting(self) -> None:
        """Start the server and kill it at a random moment of its first second."""
        self.process = clients.start(self.home, self.port, self.home / "server.log", url=self.url)
        await asyncio.sleep(random.uniform(0, LATEST_S))
        try:
            socket.create_connection(("127.0.0.1", self.port)).close()
        except ConnectionRefusedError:
            self.unheard += 1
        self.kill()

    def kill(self) -> None:
        """SIGKILL, to a server that still runs."""
        assert self.process is not None and self.process.poll() is None, (self.home / "server.log").read_text()
        clients.kill(self.process)
        self.kills += 1

    async def rage(self, kills: int, adds: int, told: dict[str, int]) -> None:
        """About half of the kills come at random numbers of acknowledged adds, the others during start-up."""
        serving = kills // 2
        moments = sorted(random.sample(range(adds * 9 // 10), serving))
        starting = [random.randrange(serving + 1) for _ in range(kills - serving)]  # after which restart
        for ordinal, moment in enumerate([*moments, None]):
            for _ in range(starting.count(ordinal)):
                await self.killed_starting()
            await self.up()
            if moment is not None:
                while len(told) < moment:  # noqa: ASYNC110 - what is waited for knows no events
                    await asyncio.sleep(0.001)
                await asyncio.sleep(random.uniform(0, 0.02))
                self.kill()


@contextlib.contextmanager
def _fire(home: Path, url: str) -> Iterator[Fire]:
    home.mkdir()
    fire = Fire(home, url)
    try:
        yield fire
    finally:
        if fire.process is not None:
            clients.kill(fire.process)


async def _told(fire: Fire, adds: int, kills: int = 0, *, keys: bool = True, lost: float = 0.0) -> dict[str, int]:
    """What 20 clients were told in the end; the server is gone then, killed like all before it."""
    adders = clients.Adders(fire.port, keys, lost)
    wanted = clients.texts(adds)
    async with asyncio.timeout(60 + kills * 30), asyncio.TaskGroup() as tasks:
        tasks.create_task(fire.rage(kills, adds, adders.told))
        tasks.create_task(adders.add(wanted, 20))
    assert set(adders.told) == set(wanted)
    fire.kill()
    return adders.told


@pytest.mark.parametrize(("adds", "kills"), [(300, 3), pytest.param(10_000, 60, marks=pytest.mark.long)])
async def test_every_acknowledged_add_is_there_once(
    adds: int, kills: int, tmp_path: Path, database_url: str, say: Say
) -> None:
    """Wherever the server is killed, also starting, clients that retry with their keys lose and double none."""
    with _fire(tmp_path / "home", database_url) as fire:
        told = await _told(fire, adds, kills, lost=0.02)
        median, longest = statistics.median(fire.restarts), max(fire.restarts)
        say(
            f"{adds} adds, {fire.kills} kills, {fire.unheard} of them before the server listened; "
            f"exec to the first 200: median {median:.2f} s, max {longest:.2f} s of {len(fire.restarts)}"
        )
        assert faults(fire.database, told) == []
    assert fire.kills == kills + 1
    assert adds < 10_000 or (fire.unheard > 0 and longest <= RESTART_S)


async def test_without_keys_the_check_finds_doubles(tmp_path: Path, database_url: str) -> None:
    """Control: clients whose answers are lost and that retry with a new key double what they add, and it is seen."""
    with _fire(tmp_path / "home", database_url) as fire:
        told = await _told(fire, 200, keys=False, lost=0.2)
        found = faults(fire.database, told, keys=False)
    assert found and all("times: add-" in fault for fault in found)


TAMPERED = {
    "DELETE FROM annotations WHERE id = 7": "missing: add-",
    "UPDATE annotations SET human_input = 'other' WHERE id = 7": "missing: add-",
    "UPDATE annotations SET id = 1000 WHERE id = 7": "told id 7, is 1000: add-",
    "UPDATE annotations SET listed = false WHERE id = 7": "a count that is no count",
    "UPDATE counts SET count = count + 1": "a count that is no count",
    "DELETE FROM idempotency_keys WHERE key = (SELECT max(key) FROM idempotency_keys)": "key add-",
    "DELETE FROM events WHERE id = 7": "not one event",
}
INDEXED = {
    "sqlite": "INSERT INTO annotation_search (rowid, tokens) VALUES (1000, 'x')",
    "postgresql": "INSERT INTO annotation_search VALUES (1000, '{}', '{}')",
}


async def test_the_check_finds_what_was_changed_behind_its_back(
    tmp_path: Path, database_url: str, database_kind: str
) -> None:
    """Control: one row deleted, changed, moved or miscounted is named."""
    with _fire(tmp_path / "home", database_url) as fire:
        told = await _told(fire, 20)
        assert faults(fire.database, told) == []
    for change, begins in (TAMPERED | {INDEXED[database_kind]: "in the search index only"}).items():
        with _changed(fire.database, change) as changed:
            assert any(fault.startswith(begins) for fault in faults(changed, told)), change
        assert faults(fire.database, told) == []


@contextlib.contextmanager
def _changed(where: Path | Postgres, change: str) -> Iterator[Path | Postgres]:
    """A copy of the file, or the database for the block, changed past every rule."""
    if isinstance(where, Path):
        execute(where, "PRAGMA wal_checkpoint(TRUNCATE)")
        copy = Path(shutil.copy(where, where.with_name("copy.db")))
        execute(copy, change)
        yield copy
        return
    tables = ("annotations", "counts", "idempotency_keys", "events", "annotation_search")
    with looking(where) as look:
        look.execute("".join(f"CREATE TEMP TABLE whole_{name} AS SELECT * FROM {name};" for name in tables))
        look.execute(f"SET session_replication_role = replica; {change}")
        yield where
        look.execute("".join(f"DELETE FROM {name}; INSERT INTO {name} TABLE whole_{name};" for name in tables))


@pytest.fixture
def durable() -> Iterator[PostgreSQL]:
    """A PostgreSQL that syncs, as it does by default."""
    server = PostgreSQL(options=())
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.mark.needs("PostgreSQL")
@pytest.mark.parametrize(("adds", "kills"), [(400, 2), pytest.param(10_000, 30, marks=pytest.mark.long)])
async def test_a_killed_postgresql_loses_nothing(
    adds: int, kills: int, tmp_path: Path, durable: PostgreSQL, say: Say
) -> None:
    """SIGKILL to PostgreSQL under load: the server answers 503 until it is up again, and loses and doubles nothing."""
    with _fire(tmp_path / "home", durable.make()) as fire:
        adders = clients.Adders(fire.port, patient=True)
        wanted = clients.texts(adds)
        await fire.up()

        async def rage() -> None:
            for moment in sorted(random.sample(range(adds * 9 // 10), kills)):
                while len(adders.told) < moment:  # noqa: ASYNC110 - what is waited for knows no events
                    await asyncio.sleep(0.001)
                await asyncio.to_thread(durable.kill)
                await asyncio.to_thread(durable.start)

        async with asyncio.timeout(60 + kills * 30), asyncio.TaskGroup() as tasks:
            tasks.create_task(rage())
            tasks.create_task(adders.add(wanted, 20))
        assert set(adders.told) == set(wanted)
        fire.kill()
        say(f"{adds} adds, PostgreSQL killed {kills} times, {adders.unavailable} answers 503")
        assert faults(fire.database, adders.told) == []
    assert adders.unavailable > 0
