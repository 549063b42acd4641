"""Safe retry over HTTP: a request sent again with its `Idempotency-Key` is done once, whatever became of the answer."""

import asyncio
import json
import threading
from typing import Any

import pytest
from aiohttp import ClientResponse
from multidict import CIMultiDict
from sqlalchemy import text

from prefanno.keys import LOOP
from tests.conftest import Client, MakeClient
from tests.web.choosing import changed, stored
from tests.web.conftest import PAIR, WAIT_S, counts, faults, refused, shared, until

ADD, CHOICES, DELETE, UNDO, REDO = (
    "/api/dataset/add",
    "/api/choices",
    "/api/annotations/delete",
    "/api/history/undo",
    "/api/history/redo",
)
HEADER = "Idempotency-Key"
TABLES = ("characters", "annotations", "steps", "events", "counts", "generations", "candidates")

# Every endpoint that writes, with a body that changes something on the home of `prepared`.
WRITES: dict[str, dict[str, Any] | None] = {
    ADD: PAIR,
    CHOICES: {"generation_id": "1", "verdict": "best", "chosen": 2, "note": "好"},
    "/api/annotations/1/edit": {"note": "暖"},
    DELETE: {"ids": [1, 2]},
    "/api/annotations/restore": {"where": {"q": "你是"}},
    UNDO: None,
    REDO: {"character": "li"},
    "/api/characters": {"slug": "mia", "name": "Mia"},
    "/api/characters/li/edit": {"system_prompt": "你是离，店长。"},
    "/api/characters/li/select": None,
}
# What doing it again without a key does: another row, one step more, a refusal, or nothing more.
AGAIN = {ADD: 200, UNDO: 200, REDO: 409, "/api/characters": 400}


@pytest.fixture
async def prepared(client: Client) -> Client:
    """A generation; annotations 1 to 3, of which 3 is deleted; a step to undo and one to redo."""
    await stored(client, "甲", "乙")
    for _ in range(3):
        await client.post(ADD, json=PAIR)
    await changed(client, DELETE, {"ids": [3]})
    await client.post("/api/annotations/2/edit", json={"note": "好"})
    await client.post(UNDO)
    return client


async def _post(client: Client, path: str, body: Any, key: str | None) -> ClientResponse:
    given: dict[str, Any] = {} if body is None else {"json": body}
    return await client.post(path, headers={HEADER: key} if key else {}, **given)


async def _said(answer: ClientResponse) -> tuple[int, bytes]:
    return answer.status, await answer.read()


async def _state(client: Client) -> dict[str, list[Any]]:
    """All rows of all tables but the keys' own."""
    async with client.app[LOOP].database.read() as session:
        return {
            table: [tuple(row) for row in await session.execute(text(f"SELECT * FROM {table}"))] for table in TABLES
        }


@pytest.mark.parametrize("path", WRITES)
async def test_a_request_sent_again_is_done_once(prepared: Client, path: str) -> None:
    """The second time the first answer comes, byte for byte, and nothing changes, also long afterwards."""
    before = await _state(prepared)
    first = await _said(await _post(prepared, path, WRITES[path], "k-1"))
    after = await _state(prepared)
    assert first[0] == 200 and after != before
    assert await _said(await _post(prepared, path, WRITES[path], "k-1")) == first
    assert await _state(prepared) == after
    for other, body in WRITES.items():
        await _post(prepared, other, body, None)
    later = await _state(prepared)
    assert await _said(await _post(prepared, path, WRITES[path], "k-1")) == first
    assert await _state(prepared) == later != after


@pytest.mark.parametrize("path", AGAIN)
async def test_without_a_key_it_is_done_again(prepared: Client, path: str) -> None:
    """The control: without a key, or with a new one, the second request is another one."""
    keys: tuple[tuple[str | None, str | None], ...] = ((None, None), ("k-1", "k-2"))
    first, second = keys[path == REDO]
    assert (await _post(prepared, path, WRITES[path], first)).status == 200
    before = await _state(prepared)
    assert (await _post(prepared, path, WRITES[path], second)).status == AGAIN[path]
    assert (await _state(prepared) != before) == (AGAIN[path] == 200)


async def test_without_a_key_a_row_is_doubled(client: Client) -> None:
    """The control in numbers: two adds make two rows; two with one key make one."""
    for key, expected in ((None, 2), ("k-1", 3)):
        for _ in range(2):
            assert (await _post(client, ADD, PAIR, key)).status == 200
        assert await counts(client) == (expected, 0)


async def test_a_key_is_for_one_request(prepared: Client) -> None:
    """With another body or path a key is refused with 409, and nothing changes; the first one keeps it."""
    first = await _said(await _post(prepared, ADD, PAIR, "k-1"))
    before = await _state(prepared)
    others: list[tuple[str, Any]] = [
        (ADD, PAIR | {"chosen": "我是离~"}),
        (ADD, dict(reversed(PAIR.items()))),
        *((path, body) for path, body in WRITES.items() if path != ADD),
    ]
    for path, body in others:
        await refused(await _post(prepared, path, body, "k-1"), 409, "该 Idempotency-Key 已用于另一个请求")
    assert await _state(prepared) == before
    assert await _said(await _post(prepared, ADD, PAIR, "k-1")) == first


async def test_keys_differ_by_case_and_length(client: Client) -> None:
    """Each visible ASCII character counts, up to two hundred of them."""
    visible = "".join(chr(code) for code in range(0x21, 0x7F))
    keys = ["k", "K", "kk", visible, visible[::-1], "x" * 200, "x" * 199]
    for key in keys * 2:
        assert (await _post(client, ADD, PAIR, key)).status == 200
    assert await counts(client) == (len(keys), 0)


@shared
@pytest.mark.parametrize("path", WRITES)
async def test_a_bad_key_is_refused(standing: Client, path: str) -> None:
    """An empty, too long, spaced, foreign or doubled key is refused by the header's name, before anything is done."""
    before = await _state(standing)
    for keys in ([""], [" "], ["x" * 201], ["a b"], ["a\tb"], ["é"], ["离"], ["k", "k"], ["k", ""], ["k", "l"]):
        headers = CIMultiDict([(HEADER, key) for key in keys])
        given: dict[str, Any] = {} if WRITES[path] is None else {"json": WRITES[path]}
        assert await faults(await standing.post(path, headers=headers, **given)) == {HEADER}
    assert await _state(standing) == before


@pytest.mark.parametrize("path", [ADD, UNDO, "/api/characters"])
async def test_twenty_at_once_are_done_once(prepared: Client, path: str) -> None:
    """Identical requests that arrive together all get the one answer."""
    before = await _state(prepared)
    answered = await asyncio.gather(*[_post(prepared, path, WRITES[path], "k-1") for _ in range(20)])
    said = {await _said(answer) for answer in answered}
    assert len(said) == 1 and {status for status, _ in said} == {200}
    state = await _state(prepared)
    await _post(prepared, path, WRITES[path], "k-1")
    assert state == await _state(prepared) != before
    if path == ADD:
        assert await counts(prepared) == (3, 0)


async def test_of_two_requests_with_one_key_at_once_one_is_done(client: Client) -> None:
    """Different requests under the same key: one is answered, all others are refused."""
    bodies = [PAIR | {"chosen": str(number)} for number in range(10)]
    answered = await asyncio.gather(*[_post(client, ADD, body, "k-1") for body in bodies])
    assert sorted(answer.status for answer in answered) == [200, *[409] * 9]
    assert await counts(client) == (1, 0)


async def test_a_refused_request_keeps_its_key_free(client: Client) -> None:
    """After a 400, 404 or 409 the same request with the same key is done as soon as it can be; so may another be."""
    someone = PAIR | {"character": "mia"}
    choice = {"generation_id": "1", "verdict": "best", "chosen": 1}
    await refused(await _post(client, ADD, someone, "k-400"), 400, "请求参数错误：character")
    await refused(await _post(client, CHOICES, choice, "k-404"), 404, "未找到生成记录 1")
    await refused(await _post(client, UNDO, None, "k-409"), 409, "没有可撤销的操作")
    await refused(await _post(client, ADD, {}, "k-body"), 400, "请求参数错误")
    await client.post("/api/characters", json={"slug": "mia", "name": "Mia"})
    await stored(client, "甲", "乙")
    for path, body, key in ((ADD, someone, "k-400"), (CHOICES, choice, "k-404"), (UNDO, None, "k-409")):
        first = await _said(await _post(client, path, body, key))
        assert first[0] == 200 and await _said(await _post(client, path, body, key)) == first
    assert (await _post(client, ADD, PAIR, "k-body")).status == 200
    assert await counts(client) == (1, 0)


async def test_a_key_outlives_the_server(prepared: Client, make_client: MakeClient) -> None:
    """After a restart on the same home every request still has its first answer, and no other may have its key."""
    first = {path: await _said(await _post(prepared, path, body, path)) for path, body in WRITES.items()}
    await prepared.close()
    again = await make_client(prepared.app[LOOP].settings)
    before = await _state(again)
    for path, body in WRITES.items():
        assert await _said(await _post(again, path, body, path)) == first[path]
    await refused(await _post(again, ADD, PAIR | {"chosen": "我是离~"}, ADD), 409)
    assert await _state(again) == before


def _add_request(key: str | None) -> bytes:
    """An add as it goes over the wire."""
    content = json.dumps(PAIR)
    lines = [f"POST {ADD} HTTP/1.1", "Host: localhost:1", "Content-Type: application/json"]
    lines += [f"Content-Length: {len(content)}", *([f"{HEADER}: {key}"] if key else [])]
    return "\r\n".join([*lines, "", content]).encode()


class Hold:
    """Work that keeps the writer until it is let go."""

    def __init__(self, client: Client) -> None:
        self.reached, self.go = threading.Event(), threading.Event()
        self.task = asyncio.create_task(client.app[LOOP].database.write(self._work))

    async def _work(self, _session: Any) -> None:
        self.reached.set()
        self.go.wait(WAIT_S)


async def _cut_off(client: Client, key: str | None, *, begun: bool) -> None:
    """Send an add, and close the connection while it waits for the writer, or is in the writer's transaction."""
    queue, first = client.app[LOOP].database._queue, Hold(client)
    await until(first.reached.is_set)
    second = Hold(client)
    await until(lambda: queue.qsize() == 1)
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(_add_request(key))
    await until(lambda: queue.qsize() == 2)  # the second hold and the add, which make one transaction
    if begun:
        first.go.set()
        await until(second.reached.is_set)
    writer.transport.abort()
    await asyncio.sleep(0.05)
    for hold in (first, second):
        hold.go.set()
        await hold.task


@pytest.mark.parametrize("begun", [False, True], ids=["waiting", "begun"])
async def test_a_request_that_was_cut_off_is_stored_once(client: Client, begun: bool) -> None:
    """A client that leaves before the answer and sends the same again finds its choice once."""
    await _cut_off(client, "k-1", begun=begun)
    assert (await _post(client, ADD, PAIR, "k-1")).status == 200
    assert await counts(client) == (1, 0)


async def test_without_a_key_a_cut_off_request_is_doubled(client: Client) -> None:
    """The control: what was in the writer's transaction is stored, and the retry without a key stores it again."""
    await _cut_off(client, None, begun=True)
    assert await counts(client) == (1, 0)
    assert (await _post(client, ADD, PAIR, None)).status == 200
    assert await counts(client) == (2, 0)


async def test_a_request_cut_off_in_its_body_is_stored_by_its_retry(client: Client) -> None:
    """Half a body does nothing and leaves the key free."""
    _, writer = await asyncio.open_connection("127.0.0.1", client.port)
    writer.write(_add_request("k-1")[:-9])
    await writer.drain()
    await asyncio.sleep(0.05)
    writer.transport.abort()
    for _ in range(2):
        assert (await _post(client, ADD, PAIR, "k-1")).status == 200
    assert await counts(client) == (1, 0)


@shared
async def test_reading_takes_no_key(standing: Client) -> None:
    """On a GET the header is let through and means nothing."""
    for key in ("k-1", "k-1", "a b"):
        assert (await standing.get("/api/characters", headers={HEADER: key})).status == 200
