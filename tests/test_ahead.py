"""Candidates that are written while nobody waits, with a real engine and a real database."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import select

from prefanno import ahead as module
from prefanno import prompts
from prefanno.ahead import Ahead
from prefanno.db.engine import Database
from prefanno.db.models import Generation, Prompt
from prefanno.db.prompts import Order
from prefanno.errors import DatabaseUnavailable
from prefanno.generation.batch import Batch
from prefanno.generation.config import GenerationConfig
from prefanno.generation.engine import Engine
from prefanno.prompts import NewPrompt
from prefanno.settings import Settings

WAIT_S = 60.0
CONFIG = GenerationConfig("You are Li.", enable_thinking=False, num_responses=2, max_new_tokens=64)


@contextlib.asynccontextmanager
async def writing(settings: Settings, database: Database, order: Order = "given") -> AsyncIterator[Ahead]:
    """A loaded engine that writes ahead for the block."""
    engine = Engine(settings)
    async with Ahead.running(settings, database, engine) as ahead:
        ahead.order = order
        await engine.load(CONFIG, None)
        ahead.wake()
        yield ahead
    await engine.close()


async def _add(database: Database, *messages: str) -> list[int]:
    added = await database.write(lambda session: prompts.add(session, "li", [NewPrompt(one) for one in messages]))
    return added.ids


async def _ready(database: Database) -> list[str]:
    async with database.read() as session:
        query = select(Prompt.message).where(Prompt.state == "ready").order_by(Prompt.id)
        return list(await session.scalars(query))


async def _until_ready(database: Database, number: int) -> list[str]:
    async with asyncio.timeout(WAIT_S):
        while len(found := await _ready(database)) < number:  # noqa: ASYNC110 - it knows no events
            await asyncio.sleep(0.02)
    return found


async def test_no_more_is_written_than_is_wanted(settings: Settings, database: Database) -> None:
    """As many prompts are kept ready as the setting says; one that is taken makes room for the next."""
    await _add(database, "one", "two", "three", "four")
    async with writing(replace(settings, prompts_ahead=2), database) as ahead:
        assert await _until_ready(database, 2) == ["one", "two"]
        await asyncio.sleep(0.3)
        assert await _ready(database) == ["one", "two"]
        await database.write(lambda session: prompts.take(session, "li", "given", lambda _: True))
        ahead.wake()
        assert await _until_ready(database, 2) == ["two", "three"]


async def test_it_can_be_turned_off(settings: Settings, database: Database) -> None:
    """With 0 nothing is written ahead."""
    await _add(database, "one")
    async with writing(replace(settings, prompts_ahead=0), database) as ahead:
        await asyncio.sleep(0.3)
        assert ahead._engine.is_idle
    assert await _ready(database) == []


@pytest.mark.parametrize("steps", range(4))
async def test_it_ends_though_it_was_just_woken(settings: Settings, database: Database, steps: int) -> None:
    """However the last wake and the end of the server meet, it ends."""
    engine = Engine(settings)
    async with asyncio.timeout(WAIT_S), Ahead.running(settings, database, engine) as ahead:
        await asyncio.sleep(0.1)  # it waits
        ahead.wake()
        for _ in range(steps):
            await asyncio.sleep(0)
    await engine.close()


async def test_the_prompts_that_come_next_are_written_first(settings: Settings, database: Database) -> None:
    """In random order, those that are drawn first."""
    await _add(database, *(str(number) for number in range(20)))
    async with database.read() as session:
        first = list(await session.scalars(select(Prompt.message).order_by(Prompt.lot).limit(2)))
    async with writing(replace(settings, prompts_ahead=2), database, "random"):
        assert sorted(await _until_ready(database, 2)) == sorted(first)


async def test_nothing_is_stored_for_a_prompt_that_went(settings: Settings, database: Database) -> None:
    """A prompt that is removed while its candidates are written takes these along."""
    numbers = await _add(database, "one", "two")
    async with writing(settings, database) as ahead:
        async with asyncio.timeout(WAIT_S):
            while not ahead._jobs:  # noqa: ASYNC110 - it knows no events
                await asyncio.sleep(0)
        await database.write(lambda session: prompts.remove(session, numbers[:1]))
        assert await _until_ready(database, 1) == ["two"]
    async with database.read() as session:
        assert list(await session.scalars(select(Generation.message))) == ["two"]


async def test_it_goes_on_when_the_database_serves_again(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """A database that cannot serve is told in the log, and asked again."""
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    await _add(database, "one")
    faulty = Faulty(database)
    async with writing(settings, faulty):  # type: ignore[arg-type]
        assert await _until_ready(database, 1) == ["one"]
    assert faulty.faults == 0
    assert "DatabaseUnavailable" in caplog.text


async def test_an_engine_that_fails_gets_a_pause_and_then_one_prompt_at_a_time(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What fails with others waits on; alone it has failed; afterwards the others are written as ever."""
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    faults = iter([RuntimeError("a kernel failed")] * 2)
    step = Batch.step

    def failing(batch: Batch) -> None:
        if (fault := next(faults, None)) is not None:
            raise fault
        step(batch)

    monkeypatch.setattr(Batch, "step", failing)
    await _add(database, "one", "two", "three")
    async with writing(settings, database):
        assert await _until_ready(database, 2) == ["two", "three"]
    async with database.read() as session:
        (failed,) = await session.scalars(select(Prompt).where(Prompt.state == "failed"))
    assert failed.message == "one"
    assert "a kernel failed" in str(failed.reason)


async def test_one_failure_of_the_engine_fails_no_prompt(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a prompt has a batch to itself, it is tried again before it is blamed."""
    monkeypatch.setattr(module, "AGAIN_S", 0.05)
    monkeypatch.setattr(module, "ROWS_AHEAD", 1)
    faults = iter([RuntimeError("a kernel failed")])
    step = Batch.step

    def failing(batch: Batch) -> None:
        if (fault := next(faults, None)) is not None:
            raise fault
        step(batch)

    monkeypatch.setattr(Batch, "step", failing)
    await _add(database, "one")
    async with writing(settings, database):
        assert await _until_ready(database, 1) == ["one"]
    assert next(faults, None) is None


class Faulty:
    """A database whose first reads fail."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self.shared = database.shared
        self.faults = 3

    @contextlib.asynccontextmanager
    async def read(self) -> AsyncIterator[Any]:
        """Fail, or read."""
        if self.faults:
            self.faults -= 1
            raise DatabaseUnavailable
        async with self._database.read() as session:
            yield session

    async def write(self, work: Any) -> Any:
        """Write."""
        return await self._database.write(work)
