"""Bringing the parts up and down."""

import asyncio
import threading
from collections.abc import AsyncIterator

import pytest
from aiohttp import ClientSession, ClientWebSocketResponse, WSCloseCode, WSMsgType
from aiohttp.test_utils import TestServer

from prefanno import app
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.errors import DatabaseUnavailable
from prefanno.files import STAGE
from prefanno.generation.engine import Engine
from prefanno.keys import LOOP, SOCKETS
from prefanno.settings import Settings
from prefanno.training.supervisor import Supervisor
from tests.conftest import Client
from tests.web.conftest import counts, never_reading, refused, until
from tests.web.transferring import posted, table

LOGS = "/ws/train/logs"
QUICK_S = 10


@pytest.fixture
def prepared(settings: Settings) -> Settings:
    """Settings whose home has a database at the newest schema."""
    for folder in (settings.data, settings.outputs, settings.runs):
        folder.mkdir(parents=True)
    upgrade.upgrade(settings.database)
    return settings


def _threads() -> set[threading.Thread]:
    return {thread for thread in threading.enumerate() if thread.name != "MainThread"}


async def test_open_sockets_do_not_keep_the_server(client: Client) -> None:
    """A shutdown says goodbye to each open WebSocket, whether its client reads or not, and then ends."""
    async with ClientSession() as session, asyncio.TaskGroup() as group:
        reading = await session.ws_connect(client.make_url(LOGS))
        goodbye = group.create_task(_until_closed(reading))
        idle = [await session.ws_connect(client.make_url(LOGS)) for _ in range(3)]
        await until(lambda: len(client.app[SOCKETS]) == 4)
        async with asyncio.timeout(QUICK_S):
            await client.server.close()
        assert await goodbye == WSCloseCode.GOING_AWAY
        assert not client.app[SOCKETS]
        for socket in idle:
            await socket.close()


async def test_an_import_does_not_keep_the_server(client: Client) -> None:
    """A shutdown stops an import that is sent or stored, whose client is told so, and nothing is stored."""
    many = table(*((str(number), "Ho", "No") for number in range(20_000)))
    endless = client.post("/api/import", params={"format": "csv"}, data=_slowly(many))
    imports = [asyncio.create_task(asking) for asking in (endless, posted(client, many))]
    await until(lambda: len(list(client.app[LOOP].settings.data.glob(f"{STAGE}*/import"))) == 2)
    await client.app.shutdown()
    for answer in await asyncio.gather(*imports):
        await refused(answer, 503, "导入已停止，未保存任何内容")
    assert await counts(client) == (0, 0)


async def _slowly(body: bytes) -> AsyncIterator[bytes]:
    while True:
        yield body
        await asyncio.sleep(0.1)


async def _until_closed(socket: ClientWebSocketResponse[bool]) -> int | None:
    async for message in socket:
        assert message.type is WSMsgType.TEXT
    return socket.close_code


async def test_a_client_that_never_reads_does_not_keep_the_server(client: Client) -> None:
    """A shutdown ends also while a client has taken nothing of megabytes that wait for it."""
    async with never_reading(client):
        await until(lambda: client.app[SOCKETS])
        [socket] = client.app[SOCKETS]
        sending = asyncio.create_task(socket.send_str("x" * (32 << 20)))
        await asyncio.sleep(0)
        async with asyncio.timeout(QUICK_S):
            await client.server.close()
        await asyncio.gather(sending, return_exceptions=True)


async def test_parts_end_with_the_app(prepared: Settings) -> None:
    """When the block ends, the database refuses, and no thread is left."""
    before = _threads()
    async with app.opened(prepared) as loop:
        database = loop.database
        assert _threads() > before
    with pytest.raises(DatabaseUnavailable):
        await database.write(lambda session: session.flush())
    await until(lambda: _threads() <= before)


@pytest.mark.parametrize("part", [Engine, Supervisor])
async def test_a_part_that_cannot_be_made_leaves_none_open(
    prepared: Settings, part: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When a part cannot be made, those before it are closed, and the start fails with its error."""
    before = _threads()

    def broken(*_: object) -> None:
        raise RuntimeError("no such part")

    monkeypatch.setattr(part, "__init__", broken)
    with pytest.raises(RuntimeError, match="no such part"):
        await TestServer(app.create_app(prepared)).start_server()
    await until(lambda: _threads() <= before)


async def test_a_run_that_cannot_be_adopted_leaves_nothing_open(
    prepared: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When adopting fails, engine, training and database are closed, in the reverse order of their making."""
    closed: list[str] = []

    async def broken(_: Supervisor) -> None:
        raise RuntimeError("cannot adopt")

    for part in (Database, Engine, Supervisor):
        _note_close(part, closed, monkeypatch)
    monkeypatch.setattr(Supervisor, "adopt", broken)
    before = _threads()
    with pytest.raises(RuntimeError, match="cannot adopt"):
        await TestServer(app.create_app(prepared)).start_server()
    assert closed == ["Supervisor", "Engine", "Database"]
    await until(lambda: _threads() <= before)


@pytest.mark.parametrize("part", [Engine, Supervisor])
async def test_a_part_that_cannot_be_closed_does_not_keep_the_others(
    prepared: Settings, part: type, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When closing a part fails, the other parts are closed all the same."""
    closed: list[str] = []
    for other in {Database, Engine, Supervisor}:
        _note_close(other, closed, monkeypatch)
    close = part.close  # type: ignore[attr-defined] # both have it

    async def broken(self: object) -> None:
        await close(self)
        raise RuntimeError("cannot close")

    monkeypatch.setattr(part, "close", broken)
    with pytest.raises(RuntimeError, match="cannot close"):
        async with app.opened(prepared):
            pass
    assert sorted(closed) == ["Database", "Engine", "Supervisor"]


def _note_close(part: type, closed: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    close = part.close  # type: ignore[attr-defined] # all of them have it

    async def noted(self: object) -> None:
        closed.append(part.__name__)
        await close(self)

    monkeypatch.setattr(part, "close", noted)


async def test_a_home_without_a_database_does_not_start(unmade: Settings) -> None:
    """A server whose database has no tables fails at start, not at its first request."""
    unmade.data.mkdir(parents=True)
    with pytest.raises(DatabaseUnavailable):
        async with app.opened(unmade):
            pass
