"""A server that is killed again and again, while many clients add: what was acknowledged is there, once."""

import asyncio
import contextlib
import random
import shutil
import socket
import sqlite3
import statistics
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from benchmarks.serving import free_port
from tests.reliability import clients
from tests.reliability.checking import faults
from tests.reliability.conftest import Say

LATEST_S = 1.0  # of a kill during start-up, after exec
RESTART_S = 3.0


@dataclass
class Fire:
    """A server on one home and port, and the SIGKILLs it got."""

    home: Path
    port: int = field(default_factory=free_port)
    kills: int = 0
    unheard: int = 0  # kills before the server listened
    restarts: list[float] = field(default_factory=list)  # seconds from exec to the first 200
    process: subprocess.Popen[bytes] | None = None

    @property
    def database(self) -> Path:
        """The server's file."""
        return self.home / "data" / "prefanno.db"

    async def up(self) -> None:
        """Start the server and wait until it serves."""
        log, begun = self.home / "server.log", time.monotonic()
        self.process = clients.start(self.home, self.port, log)
        await clients.healthy(self.process, self.port, log)
        self.restarts.append(time.monotonic() - begun)

    async def killed_starting(self) -> None:
        """Start the server and kill it at a random moment of its first second."""
        self.process = clients.start(self.home, self.port, self.home / "server.log")
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
def _fire(home: Path) -> Iterator[Fire]:
    home.mkdir()
    fire = Fire(home)
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
async def test_every_acknowledged_add_is_there_once(adds: int, kills: int, tmp_path: Path, say: Say) -> None:
    """Wherever the server is killed, also starting, clients that retry with their keys lose and double none."""
    with _fire(tmp_path / "home") as fire:
        told = await _told(fire, adds, kills, lost=0.02)
        median, longest = statistics.median(fire.restarts), max(fire.restarts)
        say(
            f"{adds} adds, {fire.kills} kills, {fire.unheard} of them before the server listened; "
            f"exec to the first 200: median {median:.2f} s, max {longest:.2f} s of {len(fire.restarts)}"
        )
        assert faults(fire.database, told) == []
    assert fire.kills == kills + 1
    assert adds < 10_000 or (fire.unheard > 0 and longest <= RESTART_S)


async def test_without_keys_the_check_finds_doubles(tmp_path: Path) -> None:
    """Control: clients whose answers are lost and that retry with a new key double what they add, and it is seen."""
    with _fire(tmp_path / "home") as fire:
        told = await _told(fire, 200, keys=False, lost=0.2)
        found = faults(fire.database, told, keys=False)
    assert found and all("times: add-" in fault for fault in found)


TAMPERED = {
    "DELETE FROM annotations WHERE id = 7": "missing: add-",
    "UPDATE annotations SET human_input = 'other' WHERE id = 7": "missing: add-",
    "UPDATE annotations SET id = 1000 WHERE id = 7": "told id 7, is 1000: add-",
    "UPDATE annotations SET listed = 0 WHERE id = 7": "a count that is no count",
    "UPDATE counts SET count = count + 1": "a count that is no count",
    "DELETE FROM idempotency_keys WHERE rowid = 7": "key add-",
    "DELETE FROM events WHERE id = 7": "not one event",
    "INSERT INTO annotation_search (rowid, tokens) VALUES (1000, 'x')": "in the search index only",
}


async def test_the_check_finds_what_was_changed_behind_its_back(tmp_path: Path) -> None:
    """Control: one row deleted, changed, moved or miscounted is named."""
    with _fire(tmp_path / "home") as fire:
        told = await _told(fire, 20)
        assert faults(fire.database, told) == []
    with contextlib.closing(sqlite3.connect(fire.database)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    for change, begins in TAMPERED.items():
        copy = Path(shutil.copy(fire.database, tmp_path / "copy.db"))
        with contextlib.closing(sqlite3.connect(copy, isolation_level=None)) as connection:
            connection.execute(change)
        assert any(fault.startswith(begins) for fault in faults(copy, told)), change
