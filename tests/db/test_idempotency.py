"""Safe retry: work is done once for each key, and its answer is stored with it or not at all."""

import asyncio
from typing import Any

import pytest
from sqlalchemy import func, select, text
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import idempotency
from prefanno.db.engine import Database
from prefanno.db.idempotency import Answer, Work, once
from prefanno.db.models import IdempotencyKey, Run
from prefanno.errors import KeyReused, PrefannoError
from prefanno.settings import Postgres, Settings
from tests import looking


async def _add(session: AsyncSession) -> Answer:
    """One run more; the answer is its id."""
    run = Run(base_model="base")
    session.add(run)
    await session.flush()
    return {"id": run.id, "说": "离", "nested": [{"a": None}, 0.1, True]}


async def _fail(session: AsyncSession) -> Answer:
    """A run more, and then a fault."""
    await _add(session)
    raise ValueError("a fault of the request's own")


async def _stored(database: Database) -> tuple[int, int]:
    """How many runs there are, and how many keys."""
    async with database.read() as session:
        sizes = [await session.scalar(select(func.count()).select_from(model)) for model in (Run, IdempotencyKey)]
    return sizes[0] or 0, sizes[1] or 0


async def test_the_first_answer_comes_again(database: Database) -> None:
    """The same key and fingerprint: the work is done once, and each time the answer is the first, value by value."""
    first = await database.write(once("key", "f", _add))
    for work in (_add, _fail):  # control: what would fail is not done
        assert await database.write(once("key", "f", work)) == first
    assert await _stored(database) == (1, 1)


async def test_the_answer_outlives_the_process(settings: Settings, database: Database) -> None:
    """Opened again, the database still knows the key."""
    first = await database.write(once("key", "f", _add))
    await database.close()
    async with Database.open(settings.database) as again:
        assert await again.write(once("key", "f", _fail)) == first
        assert await _stored(again) == (1, 1)


async def test_each_key_is_work_of_its_own(database: Database) -> None:
    """Other keys with the same fingerprint do the work again; keys differ by case and by every character."""
    keys = ["key", "Key", "key ", "ke", "k%", "'; DROP TABLE runs; --", "!" * 200]
    answers = [await database.write(once(key, "f", _add)) for key in keys]
    assert len({answer["id"] for answer in answers}) == len(keys)
    assert await _stored(database) == (len(keys), len(keys))


async def test_a_key_stands_for_one_request(database: Database) -> None:
    """Another fingerprint under a known key is refused, does nothing, and leaves the first answer as it is."""
    first = await database.write(once("key", "f", _add))
    with pytest.raises(KeyReused):
        await database.write(once("key", "g", _add))
    assert await database.write(once("key", "f", _add)) == first
    assert await _stored(database) == (1, 1)


async def test_failed_work_stores_no_key(database: Database) -> None:
    """After a fault the key is free, also for another request: nothing was done under it."""
    with pytest.raises(ValueError, match="own"):
        await database.write(once("key", "f", _fail))
    assert await _stored(database) == (0, 0)
    await database.write(once("key", "g", _add))
    assert await _stored(database) == (1, 1)


async def test_work_that_the_tables_refuse_stores_no_key(database: Database) -> None:
    """Where the fault shows only when the changes are flushed, the key goes with them."""

    async def nobody(session: AsyncSession) -> Answer:
        session.add(Run(character="nobody", base_model="base"))
        return {"id": 1}

    with pytest.raises(IntegrityError):
        await database.write(once("key", "f", nobody))
    assert await _stored(database) == (0, 0)


async def test_an_answer_that_cannot_be_stored_undoes_the_work(database: Database) -> None:
    """An answer that is no JSON fails the request as a whole: no work without its answer."""

    async def unanswerable(session: AsyncSession) -> Answer:
        return await _add(session) | {"set": {1}}

    results = await asyncio.gather(
        *(database.write(work) for work in (_add, once("key", "f", unanswerable), _add)), return_exceptions=True
    )
    assert isinstance(results[1], Exception)
    assert (await _stored(database))[1] == 0
    assert await _stored(database) == (sum(isinstance(result, dict) for result in results), 0)


async def test_fifty_at_once_are_one(database: Database) -> None:
    """The same request sent 50 times at once is done once and answered 50 times; control: without a key, 50 times."""
    answers = await asyncio.gather(*(database.write(once("key", "f", _add)) for _ in range(50)))
    assert all(answer == answers[0] for answer in answers)
    assert await _stored(database) == (1, 1)
    await asyncio.gather(*(database.write(_add) for _ in range(50)))
    assert await _stored(database) == (51, 1)


async def test_of_many_at_once_the_first_that_works_counts(database: Database) -> None:
    """In one group: a fault frees the key, the next request does the work, one with another body is refused."""
    asked = [("f", _fail), ("f", _fail), ("g", _add), ("f", _add), ("g", _fail)]
    results = await asyncio.gather(
        *(database.write(once("key", fingerprint, work)) for fingerprint, work in asked), return_exceptions=True
    )
    assert [type(result) for result in results] == [ValueError, ValueError, dict, KeyReused, dict]
    assert results[2] == results[4] and await _stored(database) == (1, 1)


async def test_key_and_work_are_in_one_transaction(settings: Settings, database: Database) -> None:
    """Another connection sees neither before the commit and both after it; and when the commit fails, neither."""
    seen: list[tuple[Any, ...]] = []

    def look() -> None:
        query = "SELECT (SELECT count(*) FROM runs), count(*) FROM idempotency_keys"
        seen.extend(looking.fetch(settings.database, query))

    def watched(work: Work) -> Work:
        async def watch(session: AsyncSession) -> Answer:
            answer = await work(session)
            await session.flush()
            look()
            return answer

        return watch

    await database.write(watched(once("key", "f", _add)))
    look()
    assert seen == [(0, 0), (1, 1)]

    deferred = "PRAGMA defer_foreign_keys = ON"
    if isinstance(settings.database, Postgres):
        deferred = "ALTER TABLE runs ALTER CONSTRAINT fk_runs_character_characters DEFERRABLE INITIALLY DEFERRED"

    async def spoilt(session: AsyncSession) -> Answer:
        await session.execute(text(deferred))
        session.add(Run(character="nobody", base_model="base"))  # refused at the commit
        return await _add(session)

    with pytest.raises((PrefannoError, IntegrityError)):
        await database.write(once("other", "f", spoilt))
    assert await _stored(database) == (1, 1)
    await database.write(once("other", "f", _add))
    assert await _stored(database) == (2, 2)


async def test_answers_about_an_annotation_can_be_forgotten(database: Database) -> None:
    """Keys whose answers name one of the ids lose them and take no retry; others, and answers without an id, stay."""
    answers: list[Answer] = [{"id": 1}, {"id": 2}, {"id": 12}, {"changed": 1}, {"nested": {"id": 1}}, {}]
    for number, answer in enumerate(answers):

        async def work(_session: AsyncSession, answer: Answer = answer) -> Answer:
            return answer

        await database.write(once(str(number), "f", work))
    await database.write(lambda session: idempotency.forget(session, [1, 2, 3]))
    async with database.read() as session:
        left = {one.key: one.answer for one in await session.scalars(select(IdempotencyKey))}
    assert left == {str(number): answer if number > 1 else {} for number, answer in enumerate(answers)}
    with pytest.raises(KeyReused, match="was erased"):
        await database.write(once("0", "f", work))
    assert await database.write(once("4", "f", work)) == answers[4]
