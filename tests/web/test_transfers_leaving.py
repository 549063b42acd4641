"""Clients that leave in the middle of an export or an import: nothing is stored, nothing is left, and it is no bug."""

import asyncio
import contextlib
import io
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestClient, TestServer
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.files import STAGE
from prefanno.keys import LOOP
from prefanno.settings import Settings
from tests.conftest import Client
from tests.web.choosing import add
from tests.web.conftest import counts, until
from tests.web.transferring import found, imported, left_over, table

ROWS = 1200
BODY = table(*((str(number), "离" * 1000, "No") for number in range(ROWS)))
HEAD = b"POST /api/import?format=csv HTTP/1.1\r\nHost: localhost\r\nContent-Length: %d\r\n\r\n"


class _AsServed(TestServer):
    """Lets a handler go on when its client has left, as the real server does; aiohttp's own for tests cancels it."""

    async def _make_runner(self, **kwargs: Any) -> web.AppRunner:
        return web.AppRunner(self.app, **(kwargs | {"handler_cancellation": False}))


@pytest.fixture
async def served(settings: Settings) -> AsyncIterator[Client]:
    """A client of such a server."""
    for folder in (settings.data, settings.outputs, settings.runs):
        folder.mkdir(parents=True)
    upgrade.upgrade(settings.database)
    async with TestClient(_AsServed(create_app(settings))) as client:
        yield client


@contextlib.asynccontextmanager
async def _writing_held(client: Client) -> AsyncIterator[None]:
    """For the block, the writer works on something else: what is to be stored waits."""
    release = threading.Event()

    async def held(_session: AsyncSession) -> None:
        release.wait()

    writing = asyncio.ensure_future(client.app[LOOP].database.write(held))
    try:
        yield
    finally:
        release.set()
        await writing


def _received(client: Client) -> list[int]:
    """The sizes of the bodies that lie in stages."""
    return [file.stat().st_size for file in client.app[LOOP].settings.data.glob(f"{STAGE}*/import")]


async def _send(client: Client, content: bytes) -> asyncio.StreamWriter:
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(HEAD % len(BODY) + content)
    await writer.drain()
    return writer


@pytest.mark.parametrize("politely", [True, False])
async def test_leaving_in_the_middle_of_an_upload(
    served: Client, caplog: pytest.LogCaptureFixture, politely: bool
) -> None:
    """Half a file is not imported, though its rows are whole."""
    half = BODY[: BODY.index(b"600,")]
    writer = await _send(served, half)
    await until(lambda: _received(served) == [len(half)])
    if politely:
        writer.close()
    else:
        writer.transport.abort()
    assert await left_over(served) == [] and await counts(served) == (0, 0)
    assert "incident" not in caplog.text and "Traceback" not in caplog.text
    assert "the import was stopped; nothing was stored" in caplog.text


async def test_leaving_before_it_is_stored(served: Client, caplog: pytest.LogCaptureFixture) -> None:
    """Whoever has sent all of the file and leaves before the answer finds nothing stored; sent again, it is stored."""
    async with _writing_held(served):
        writer = await _send(served, BODY)
        await until(lambda: _received(served) == [len(BODY)])
        writer.transport.abort()
        await asyncio.sleep(0.05)  # the server's loop takes notice while the writer is held
    assert await left_over(served) == [] and await counts(served) == (0, 0)
    assert "incident" not in caplog.text
    assert await imported(served, io.BytesIO(BODY)) == found(added=ROWS)


async def test_staying_until_it_is_stored(served: Client) -> None:
    """Control: the same client, who stays, is answered, and all is stored."""
    async with _writing_held(served):
        writer = await _send(served, BODY)
        await until(lambda: _received(served) == [len(BODY)])
    async with asyncio.timeout(60):
        while await counts(served) != (ROWS, 0):  # noqa: ASYNC110 - another connection stores it
            await asyncio.sleep(0.05)
    writer.close()
    assert await left_over(served) == []


async def test_leaving_in_the_middle_of_a_download(served: Client, caplog: pytest.LogCaptureFixture) -> None:
    """An archive that nobody takes to its end is removed, and that is no bug; the next client gets all of it."""
    for number in range(20):
        await add(served, human_input=str(number), chosen="离" * 100_000)
    reader, writer = await asyncio.open_connection("127.0.0.1", served.port, limit=1)
    writer.write(b"GET /api/export HTTP/1.1\r\nHost: localhost\r\n\r\n")
    await reader.read(1)
    assert _archives(served)  # control: it is being sent
    writer.transport.abort()
    assert await left_over(served) == []
    assert "incident" not in caplog.text and "Traceback" not in caplog.text
    assert len(await (await served.get("/api/export")).read()) > 20 * 300_000


def _archives(client: Client) -> list[Path]:
    return list(client.app[LOOP].settings.data.glob(f"{STAGE}*/archive.zip"))
