"""How a generation ends early over HTTP: by its id, or because its client has left."""

import asyncio
import json
import logging
import random
from collections.abc import AsyncIterator
from typing import Any

import pytest
from aiohttp import ClientSession, web

from prefanno import server
from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.generation import decoding
from prefanno.generation.job import Job
from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web import answers
from tests.conftest import Client
from tests.generation.watching import Watched
from tests.looking import fetch
from tests.web.conftest import WAIT_S, accepted, faults, refused, until

LOAD, GENERATE, CANCEL = "/api/model/load", "/api/generate", "/api/generate/cancel"
LONG = {"system_prompt": "你是离。", "enable_thinking": False, "max_new_tokens": 400, "num_responses": 10}
DISCONNECTS = 100


async def _loaded(client: Client) -> Client:
    await accepted(await client.post(LOAD, json=LONG), answers.Loaded)
    return client


async def test_a_stream_can_be_cancelled_by_the_id_of_its_first_event(client: Client, settings: Settings) -> None:
    """It ends with an event that says so, within a step, and nothing is stored."""
    answer = await (await _loaded(client)).post(f"{GENERATE}/stream", json={"message": "?"})
    assert await answer.content.readline() == b"event: queued\n"
    request_id = json.loads((await answer.content.readline()).removeprefix(b"data: "))["request_id"]
    await accepted(await client.post(CANCEL, json={"request_id": request_id}), answers.Done)
    last = (await answer.content.read()).decode().rstrip().rpartition("event: ")[2]
    name, _, data = last.partition("\ndata: ")
    assert name == "error" and json.loads(data)["detail"] == "生成已取消：已按请求取消"
    await until(lambda: client.app[LOOP].engine.is_idle)
    assert fetch(settings.database, "SELECT id FROM generations") == []
    await refused(await client.post(CANCEL, json={"request_id": request_id}), 404, "未找到")


async def test_a_generation_can_be_cancelled_by_the_id_that_its_client_chose(client: Client) -> None:
    """Also while it waits; its neighbours go on. Once it has ended the id may be used again."""
    engine = (await _loaded(client)).app[LOOP].engine
    first, second = (
        asyncio.ensure_future(client.post(GENERATE, json={"message": "?", "request_id": name}))
        for name in ("甲 1", "b")
    )
    await until(lambda: engine.queue.waiting + engine.queue.writing == 2)
    await refused(await client.post(GENERATE, json={"message": "?", "request_id": "b"}), 409, "与当前状态冲突")
    await accepted(await client.post(CANCEL, json={"request_id": "b"}), answers.Done)
    await refused(await second, 503, "生成已取消：已按请求取消")
    again = asyncio.ensure_future(client.post(GENERATE, json={"message": "?", "request_id": "b"}))
    for answer in (await first, await again):
        await accepted(answer, answers.Generated)


@pytest.mark.sqlite_only
@pytest.mark.parametrize("request_id", ["", " ", "a\n", "x" * 101, None, 7, "\u200b"])
async def test_an_id_that_cannot_be_shown_is_refused(client: Client, request_id: Any) -> None:
    """An id is a text of 1 to 100 printable characters."""
    assert await faults(await client.post(CANCEL, json={"request_id": request_id})) == {"request_id"}
    body = {"message": "?", "request_id": request_id}
    assert await faults(await client.post(GENERATE, json=body)) == {"request_id"}


@pytest.fixture
async def address(settings: Settings) -> AsyncIterator[tuple[web.Application, str, int]]:
    """A server as `prefanno serve` runs it: unlike a test server, it does not cancel the handler of who has left."""
    for folder in (settings.data, settings.outputs, settings.runs):
        folder.mkdir(parents=True, exist_ok=True)
    upgrade.upgrade(settings.database)
    (socket, *others) = server.listening(Settings(home=settings.home, port=0))
    for other in others:
        other.close()
    app = create_app(settings)
    runner = web.AppRunner(app, access_log=None, shutdown_timeout=5.0)
    await runner.setup()
    await web.SockSite(runner, socket).start()
    yield app, *socket.getsockname()[:2]
    await runner.cleanup()


@pytest.fixture
async def cancelled(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """After how many steps, of all batches, each job was cancelled."""
    found: list[int] = []
    cancel = Job.cancel

    def noted(self: Job) -> None:
        if not self.cancelled:
            found.append(len(Watched.steps))
        cancel(self)

    monkeypatch.setattr(decoding, "Batch", Watched)
    for name, empty in (("steps", list[int]()), ("faults", dict[int, Exception]()), ("meanwhile", dict[int, Any]())):
        monkeypatch.setattr(Watched, name, empty, raising=False)
    monkeypatch.setattr(Job, "cancel", noted)
    return found


@pytest.mark.sqlite_only
async def test_clients_that_leave_at_any_moment_leave_nothing_behind(
    address: tuple[web.Application, str, int], cancelled: list[int], caplog: pytest.LogCaptureFixture
) -> None:
    """A hundred times: the engine is idle within a step, no request hangs, and the next one is answered."""
    app, host, port = address
    engine = app[LOOP].engine
    caplog.set_level(logging.INFO, "prefanno.web.middlewares")
    chance = random.Random(7)
    async with ClientSession(f"http://{host}:{port}") as session, asyncio.timeout(WAIT_S):
        await accepted(await session.post(LOAD, json=LONG), answers.Loaded)
        for number in range(DISCONNECTS):
            await _leave(host, port, GENERATE + ("/stream" if number % 2 else ""), chance.uniform(0.0, 0.03))
            await until(lambda: len(cancelled) == number + 1)  # noqa: B023 - called within this turn
            await until(lambda: engine.is_idle)
            assert len(Watched.steps) <= cancelled[-1] + 2  # one under way, one that finds no row
        await accepted(await session.post(GENERATE, json={"message": "?"}), answers.Generated)
    assert len(cancelled) == DISCONNECTS + 1
    assert "the model was unloaded" not in caplog.text
    assert {record.levelname for record in caplog.records} <= {"INFO"}


async def _leave(host: str, port: int, path: str, after_s: float) -> None:
    """Ask, and be gone after so many seconds."""
    _, writer = await asyncio.open_connection(host, port)
    body = json.dumps({"message": "?"}).encode()
    head = f"POST {path} HTTP/1.1\r\nHost: {host}:{port}\r\nContent-Type: application/json\r\n"
    writer.write(head.encode() + f"Content-Length: {len(body)}\r\n\r\n".encode() + body)
    await writer.drain()
    await asyncio.sleep(after_s)
    writer.transport.abort()
