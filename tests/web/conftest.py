"""What the tests of `web` share: what answers and refusals look like, a standing server, a trainer of a few lines."""

import asyncio
import contextlib
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from aiohttp import ClientResponse
from aiohttp.test_utils import TestClient, TestServer
from marshmallow import Schema

from prefanno.app import create_app
from prefanno.keys import LOOP
from prefanno.settings import Settings
from tests.conftest import Client, MakeClient, MakeDatabase

WAIT_S = 60.0  # for what takes a moment; on a busy machine also long
CHINESE = re.compile("[\u4e00-\u9fff]")
PAIR: dict[str, Any] = {"mode": "single", "human_input": "你是谁？", "chosen": "我叫离~", "rejected": "我是 AI 助手。"}
TALK: dict[str, Any] = {"mode": "multi", "human_input": "你是谁？", "chosen": "我叫离~"}
LASTING = "echo hello; sleep 1000"

MakeTrainer = Callable[[str], Awaitable[Client]]
shared = pytest.mark.asyncio(loop_scope="module")  # a test that uses `standing` runs on its loop


def address(path: str) -> str:
    """A route's path with something in each of its places."""
    places = {"id": "1", "slug": "li", "name": "start.js"}
    return re.sub(r"\{(\w+)[^}]*\}", lambda place: places[place[1]], path)


async def accepted(answer: ClientResponse, schema: type[Schema]) -> Any:
    """The body of a success, as its schema declares it."""
    body = await answer.json()
    assert answer.status == 200, body
    assert schema().validate(body) == {}, body
    return body


async def refused(answer: ClientResponse, status: int, begins: str = "") -> dict[str, Any]:
    """The body of a refusal: of the one shape, in Chinese."""
    body: dict[str, Any] = await answer.json()
    assert answer.status == status, body
    assert set(body) <= {"detail", "errors", "incident", "error"}
    assert CHINESE.search(body["detail"]) and body["detail"].startswith(begins), body
    for texts in body.get("errors", {}).values():
        assert texts and all(CHINESE.search(text) for text in texts), body
    return body


async def faults(answer: ClientResponse) -> set[str]:
    """The fields that a 400 names."""
    return set((await refused(answer, 400, "请求参数错误"))["errors"])


async def counts(client: Client) -> tuple[int, int]:
    """How many preferences and conversations are stored."""
    data = (await (await client.get("/api/dataset/stats")).json())["data"]
    return data["preference"]["count"], data["roleplay"]["count"]


async def until(true: Callable[[], object]) -> None:
    """Wait for it."""
    async with asyncio.timeout(WAIT_S):
        while not true():  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def busy(client: Client) -> Iterator[None]:
    """Keep the engine's one thread busy for the block: what it is asked meanwhile waits, in order."""
    release = threading.Event()
    client.app[LOOP].engine._thread.submit(release.wait)
    try:
        yield
    finally:
        release.set()


def waiting(client: Client) -> int:
    """How many calls wait for the engine's thread."""
    return client.app[LOOP].engine._thread._work_queue.qsize()


@contextlib.asynccontextmanager
async def never_reading(client: Client) -> AsyncIterator[None]:
    """A WebSocket whose client takes the first byte of the handshake and nothing more."""
    reader, writer = await asyncio.open_connection("127.0.0.1", client.port, limit=1)
    writer.write(
        b"GET /ws/train/logs HTTP/1.1\r\nHost: localhost:8000\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
    )
    await reader.read(1)
    try:
        yield
    finally:
        writer.transport.abort()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def standing(
    tmp_path_factory: pytest.TempPathFactory, tiny_model: Path, own_database: str, make_database: MakeDatabase
) -> AsyncIterator[Client]:
    """One server for a whole file, with the tiny model; for tests that leave it as they found it."""
    folder = tmp_path_factory.mktemp("standing")
    settings = Settings(home=folder, model=str(tiny_model), cache=folder / "cache", database_url=own_database)
    for needed in (settings.data, settings.outputs, settings.runs):
        needed.mkdir()
    make_database(settings)
    client = TestClient(TestServer(create_app(settings)))
    await client.start_server()
    yield client
    await client.close()


@pytest.fixture
async def make_trainer(make_client: MakeClient, settings: Settings, tmp_path: Path) -> AsyncIterator[MakeTrainer]:
    """Makes servers with one annotation, whose train.sh is the text given; a run that lasts is stopped at the end."""
    clients: list[Client] = []

    async def make(script: str) -> Client:
        file = tmp_path / "train.sh"
        file.write_text(script)
        clients.append(await make_client(replace(settings, train_script=str(file))))
        await clients[-1].post("/api/dataset/add", json=PAIR)
        return clients[-1]

    yield make
    for client in clients:
        if not client.server.closed:
            await client.post("/api/train/stop")
