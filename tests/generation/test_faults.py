"""What happens when a step fails, at any step and whoever is written: nobody is left waiting; with the tiny model."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any

import pytest

from prefanno.errors import EngineBroken, EngineFailed, OutOfMemory
from prefanno.generation.engine import Engine
from prefanno.generation.job import Job
from tests.generation.watching import CONFIG, Watched, ask, texts, until_idle

pytestmark = pytest.mark.sqlite_only  # no database is opened

CUDA = "CUDA error: device-side assert triggered"
Begin = Callable[[Engine, type[Watched]], list[Job]]


def _live(engine: Engine, _watched: type[Watched]) -> list[Job]:
    return [ask(engine, str(number), str(number)) for number in range(2)]


def _ahead(engine: Engine, _watched: type[Watched]) -> list[Job]:
    return [ask(engine, str(number), None, max_new_tokens=32) for number in range(2)]


def _paused(engine: Engine, watched: type[Watched]) -> list[Job]:
    """One that is written ahead, and somebody who comes at its tenth step."""
    jobs = [ask(engine, "ahead", None, max_new_tokens=32)]
    watched.meanwhile = {10: lambda: jobs.append(ask(engine, "live", max_new_tokens=16))}
    return jobs


def _taken(engine: Engine, watched: type[Watched]) -> list[Job]:
    """One that is written ahead, paused for somebody, and then waited for itself."""
    jobs = _paused(engine, watched)
    watched.meanwhile[15] = lambda: engine.hurry(jobs[0], "b", streams=True)
    return jobs


EACH = pytest.mark.parametrize("begin", [_live, _ahead, _paused, _taken])


async def _ended(begin: Begin, engine: Engine, watched: type[Watched]) -> list[Any]:
    """What each request that `begin` makes comes to: candidates or an error."""
    watched.steps.clear()
    jobs = begin(engine, watched)
    async with asyncio.timeout(30):
        await jobs[0].ended.wait()
        await until_idle(engine)
        watched.meanwhile.clear()
        return await asyncio.gather(*(job.replies() for job in jobs), return_exceptions=True)


async def _at_each_step(
    fault: Callable[[], Exception], begin: Begin, engine: Engine, watched: type[Watched]
) -> AsyncIterator[tuple[list[Any], list[Any]]]:
    """What the requests come to when the fault comes before step 0, 1, 2, … up to the last; and without it."""
    well = await _ended(begin, engine, watched)
    for step in range(len(watched.steps)):
        watched.faults = {step: fault()}
        ended = await _ended(begin, engine, watched)
        assert watched.faults == {}
        yield ended, well


@EACH
async def test_memory_that_does_not_suffice_is_not_noticed(
    engine: Engine, watched: type[Watched], begin: Begin
) -> None:
    """After an out-of-memory at any step each request has what it would have without."""
    steps = 0
    async for ended, well in _at_each_step(MemoryError, begin, engine, watched):
        assert [texts(replies) for replies in ended] == [texts(replies) for replies in well]
        steps += 1
    assert steps > 30


@EACH
async def test_a_fault_is_told_to_its_batch(engine: Engine, watched: type[Watched], begin: Begin) -> None:
    """Each who waits has an error or all candidates, none hangs, and the next request works."""
    steps = 0
    async for ended, well in _at_each_step(lambda: RuntimeError("injected"), begin, engine, watched):
        assert any(isinstance(each, EngineFailed) for each in ended)
        for each, expected in zip(ended, well, strict=False):
            assert isinstance(each, EngineFailed) or texts(each) == texts(expected)
        assert len(await ask(engine, max_new_tokens=2).replies()) == 2
        steps += 1
    assert steps > 30


@EACH
async def test_a_broken_gpu_is_told_to_all(engine: Engine, watched: type[Watched], begin: Begin) -> None:
    """Each who waits is told or was answered before; the engine has failed, and says so until the server is restarted.

    A test sets it right for the next step, as a restart would.
    """
    steps = 0
    async for ended, well in _at_each_step(lambda: RuntimeError(CUDA), begin, engine, watched):
        assert any(isinstance(each, EngineBroken) for each in ended)
        for each, expected in zip(ended, well, strict=False):
            assert isinstance(each, EngineBroken) or texts(each) == texts(expected)
        assert engine.state == "failed"
        with pytest.raises(EngineBroken):
            ask(engine)
        engine.failure, engine.state = None, "loaded"
        steps += 1
    assert steps > 30


async def test_a_broken_gpu_is_a_state(engine: Engine, watched: type[Watched]) -> None:
    """Everybody who waits is told; the engine is failed, and refuses to load and to generate until a restart."""
    watched.faults = {3: RuntimeError(CUDA)}
    jobs = [ask(engine, str(number), max_new_tokens=400, num_responses=10) for number in range(6)]
    ended = await asyncio.gather(*(job.replies() for job in jobs), return_exceptions=True)
    assert [type(error) for error in ended] == [EngineBroken] * 6
    with pytest.raises(EngineBroken):
        ask(engine)
    with pytest.raises(EngineBroken):
        await engine.load(CONFIG, None)
    await engine.unload()
    assert engine.state == "failed"


async def test_a_request_that_is_too_large_is_written_in_parts(
    engine: Engine, watched: type[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory has room for two rows, eight come two at a time; where it has none, only that request fails."""
    monkeypatch.setattr(watched, "rows_at_most", 2)
    assert len(await ask(engine, num_responses=8).replies()) == 8
    monkeypatch.setattr(watched, "rows_at_most", 0)
    with pytest.raises(OutOfMemory):
        await ask(engine).replies()
    monkeypatch.setattr(watched, "rows_at_most", 1000)
    assert len(await ask(engine).replies()) == 2


@pytest.mark.parametrize("step", [0, 5, 30])
async def test_three_who_do_not_fit_are_written_one_by_one(engine: Engine, watched: type[Watched], step: int) -> None:
    """After an out-of-memory each request of the batch is written alone, and nobody sees a difference."""
    watched.faults = {step: MemoryError()}
    jobs = [ask(engine, str(number)) for number in range(3)]
    found = [texts(await job.replies()) for job in jobs]
    assert max(watched.steps[step + 1 :]) == 2
    assert found == [texts(await engine.submit(job.request).replies()) for job in jobs]
