"""Two servers, each with a home of its own, on one PostgreSQL: both annotate, one trains."""

import asyncio
import shutil
from collections import Counter
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import text
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Candidate, Generation, Run
from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web import answers, training_answers
from tests import looking
from tests.conftest import Client, MakeClient
from tests.web.choosing import CHOICES, REDO, UNDO, found
from tests.web.conftest import LASTING, PAIR, accepted, refused, until

pytestmark = pytest.mark.postgresql_only

START, STOP, STATUS = "/api/train/start", "/api/train/stop", "/api/train/status"
TRAINED = "mkdir adapter; touch adapter/adapter_config.json adapter/adapter_model.safetensors"
Two = tuple[Client, Client]


def _at(settings: Settings, folder: str, script: str = LASTING) -> Settings:
    """The same database, from another home."""
    home = settings.home.parent / folder
    home.mkdir(exist_ok=True)
    (home / "train.sh").write_text(script)
    return replace(settings, home=home, train_script=str(home / "train.sh"))


@pytest.fixture
async def two(make_client: MakeClient, settings: Settings) -> Two:
    """The first one to start has the right to train."""
    first = await make_client(_at(settings, "first"))
    return first, await make_client(_at(settings, "second"))


async def _post(client: Client, path: str, body: Any = None, key: str | None = None) -> tuple[int, Any]:
    answer = await client.post(path, json=body, headers={"Idempotency-Key": key} if key else {})
    return answer.status, await answer.json()


async def _status(client: Client) -> dict[str, Any]:
    data: dict[str, Any] = (await accepted(await client.get(STATUS), training_answers.TrainStatus))["data"]
    return data


async def _trains(client: Client) -> bool:
    return bool((await accepted(await client.get("/health"), answers.Health))["trains"])


async def test_what_one_adds_the_other_lists(two: Two) -> None:
    """100 adds to each, all at once: each is there once, both list the same, and every total was given once."""
    adds = [_post(two[number % 2], "/api/dataset/add", PAIR) for number in range(200)]
    answered = await asyncio.gather(*adds)
    assert {status for status, _ in answered} == {200}
    assert sorted(answer["data"]["total"] for _, answer in answered) == list(range(1, 201))
    ids = [answer["data"]["id"] for _, answer in answered]
    for client in two:
        assert await found(client, limit=100) == sorted(ids, reverse=True)[:100]
        assert (await (await client.get("/api/dataset/stats")).json())["data"]["preference"]["count"] == 200


async def test_a_key_stands_for_one_request_on_both(two: Two) -> None:
    """The same 50 requests to both at once, with their keys, are done once, and both give the same answer."""
    asked = [(client, str(number)) for number in range(50) for client in two]
    answered = await asyncio.gather(*(_post(client, "/api/dataset/add", PAIR, key) for client, key in asked))
    assert {status for status, _ in answered} == {200}
    assert [first for _, first in answered[::2]] == [second for _, second in answered[1::2]]
    assert len(await found(two[0], limit=100)) == 50


async def test_undo_takes_each_step_back_once(two: Two) -> None:
    """Of 20 steps, 30 undos at once on both take back each once; as many redos bring each back once."""
    for _ in range(20):
        await _post(two[0], "/api/dataset/add", PAIR)
    for path in (UNDO, REDO):
        answered = await asyncio.gather(*(_post(two[number % 2], path) for number in range(30)))
        assert Counter(status for status, _ in answered) == {200: 20, 409: 10}
        assert len(await found(two[1])) == (0 if path == UNDO else 20)


async def test_a_generation_has_one_choice(two: Two) -> None:
    """Ten choices at once among the same candidates, on both, are one annotation: the first, edited by the others."""

    async def generate(session: AsyncSession) -> int:
        settings = {"mode": "single", "system_prompt": "p"}
        generation = Generation(message="m", context=[], settings=settings, base_model="b", seed=1)
        session.add(generation)
        await session.flush()
        for ordinal in (1, 2):
            made = {"ordinal": ordinal, "content": str(ordinal), "finish_reason": "stop", "tokens": 1}
            session.add(Candidate(generation_id=generation.id, **made))
        return generation.id

    number = await two[0].app[LOOP].database.write(generate)
    choices = [{"generation_id": str(number), "verdict": "best", "chosen": one % 2 + 1} for one in range(10)]
    answered = await asyncio.gather(*(_post(two[one // 5], CHOICES, choice) for one, choice in enumerate(choices)))
    assert {status for status, _ in answered} == {200}
    assert await found(two[0]) == await found(two[1]) == [1]


async def test_one_trains_and_the_other_says_so(two: Two) -> None:
    """The second refuses a start with 409 and the cause, and never shows the first one's run as its own."""
    first, second = two
    await _post(second, "/api/dataset/add", PAIR)
    assert (await _trains(first), await _trains(second)) == (True, False)
    await refused(await second.post(START), 409, "训练由连接同一数据库的另一台服务器负责")
    await accepted(await first.post(START), answers.Done)
    await refused(await second.post(START), 409, "训练由连接同一数据库的另一台服务器负责")
    assert (await _status(first))["running"] and not (await _status(second))["running"]
    assert (await _status(second))["last_run"] is None
    await refused(await second.post(STOP), 400, "当前没有训练在运行")
    await accepted(await second.post("/api/model/load"), answers.Loaded)  # its own memory is free
    await accepted(await first.post(STOP), answers.Done)


async def test_when_the_one_ends_the_other_may_train(two: Two, make_client: MakeClient) -> None:
    """With the first one gone, its run goes on, and a start on the second succeeds; an adapter's name comes once."""
    first, second = two
    await _post(first, "/api/dataset/add", PAIR)
    await accepted(await first.post(START), answers.Done)
    await first.close()
    assert not await _trains(second)
    await accepted(await second.post(START), answers.Done)
    assert await _trains(second) and (await _status(second))["last_run"]["id"] == 2
    where = second.app[LOOP].settings.database
    assert looking.fetch(where, "SELECT adapter, state FROM runs ORDER BY id") == [
        ("li-simpo-1", "running"),
        ("li-simpo-2", "running"),
    ]
    again = await make_client(first.app[LOOP].settings)
    for client in (again, second):
        await accepted(await client.post(STOP), answers.Done)


async def test_a_run_is_settled_by_the_server_whose_it_was(make_client: MakeClient, settings: Settings) -> None:
    """Started again, it takes up its run, though by now another server trains; that one left it alone."""
    go = settings.home.parent / "go"
    mine = _at(settings, "first", f"while [ ! -e {go} ]; do sleep 0.05; done; {TRAINED}")
    first = await make_client(mine)
    await _post(first, "/api/dataset/add", PAIR)
    await accepted(await first.post(START), answers.Done)
    await first.close()
    second = await make_client(_at(settings, "second"))
    assert await _trains(second) and not (await _status(second))["running"]
    again = await make_client(mine)
    assert not await _trains(again) and (await _status(again))["running"]
    go.touch()
    await until(lambda: not again.app[LOOP].training.running)
    assert (await _status(again))["last_run"]["state"] == "succeeded"
    assert (mine.outputs / "li-simpo-1").is_dir()
    assert (await _status(second))["last_run"] is None


async def test_a_folder_of_another_database_is_not_taken_for_the_run(
    make_client: MakeClient, settings: Settings
) -> None:
    """A home that has runs/1 of its own does not settle another server's run 1 by it."""
    mine = _at(settings, "first", TRAINED)
    first = await make_client(mine)
    await _post(first, "/api/dataset/add", PAIR)
    await accepted(await first.post(START), answers.Done)
    await until(lambda: not first.app[LOOP].training.running)
    await first.close()
    other = _at(settings, "second")
    shutil.copytree(mine.runs / "1", other.runs / "1")

    async def begun_elsewhere(session: AsyncSession) -> None:
        await session.execute(text("UPDATE runs SET state = 'running', started_at = now() WHERE id = 1"))

    third = await make_client(_at(settings, "third"))
    await third.app[LOOP].database.write(begun_elsewhere)
    second = await make_client(other)
    assert not (await _status(second))["running"] and (await _status(second))["last_run"] is None
    async with third.app[LOOP].database.read() as session:
        assert (await session.get_one(Run, 1)).state == "running"
