"""Who is written with whom, and who comes first; with the real tiny model."""

import asyncio
import gc
import weakref

import pytest

from prefanno.errors import QueueFull
from prefanno.generation.config import Queued
from prefanno.generation.engine import Engine
from prefanno.generation.turns import LIMIT
from tests.generation.watching import Watched, ask, same, until_idle

pytestmark = pytest.mark.sqlite_only  # no database is opened


async def test_those_who_wait_are_written_together(engine: Engine, watched: type[Watched]) -> None:
    """Eight requests at once are one batch of all their rows, and each reads as if it were alone."""
    jobs = [ask(engine, "x" * number, str(number), max_new_tokens=64 + number) for number in range(8)]
    assert await same(engine, jobs)
    assert watched.steps[0] == 16


async def test_a_batch_has_its_bound(engine: Engine, watched: type[Watched]) -> None:
    """Those for whom there is no room wait for the next batch."""
    jobs = [ask(engine, str(number), num_responses=10) for number in range(6)]
    for job in jobs:
        await job.replies()
    assert max(watched.steps) == 40


async def test_a_full_queue_refuses_and_says_when(engine: Engine) -> None:
    """One more than may wait is refused; before that each is told its place. All that were taken are answered."""
    jobs = [ask(engine, num_responses=2) for _ in range(LIMIT)]
    with pytest.raises(QueueFull) as full:
        ask(engine)
    assert full.value.retry_after_s >= 1
    first = [await anext(job.events()) for job in jobs[:3]]
    assert first == [Queued(position, None, job.id) for position, job in enumerate(jobs[:3])]
    for job in jobs:
        job.cancel()
    await until_idle(engine)
    assert len(await ask(engine).replies()) == 2
    await until_idle(engine)
    queued = await anext(ask(engine).events())
    assert isinstance(queued, Queued) and queued.wait_s is not None


async def test_somebody_who_waits_comes_before_what_is_written_ahead(engine: Engine, watched: type[Watched]) -> None:
    """At the next step; afterwards what was begun goes on where it was, and reads the same."""
    ahead = ask(engine, "ahead", None, max_new_tokens=400, num_responses=10)
    while len(watched.steps) < 5:  # noqa: ASYNC110 - a thread has no events
        await asyncio.sleep(0.001)
    await ask(engine, "live").replies()
    assert not ahead.is_over
    paused = len(watched.steps)
    assert 2 in watched.steps and watched.steps[0] == 10
    assert await same(engine, [ahead])
    assert paused < len(watched.steps)


async def test_cancelling_ends_within_one_step(engine: Engine, watched: type[Watched]) -> None:
    """A hundred times, at any moment: at most one more step, and the engine is idle."""
    for number in range(100):
        job = ask(engine, max_new_tokens=400)
        await asyncio.sleep(number % 10 / 1000)
        job.cancel()
        before = len(watched.steps)
        await until_idle(engine)
        assert len(watched.steps) <= before + 2  # one under way, one that finds no row
    assert len(await ask(engine).replies()) == 2


@pytest.mark.parametrize("running", [False, True], ids=["idle", "in a generation"])
async def test_unload_lets_go_of_the_weights(engine: Engine, watched: type[Watched], running: bool) -> None:
    """When it answers, nothing holds the weights, also where it ended a generation; before, they live."""
    assert len(await ask(engine).replies()) == 2
    assert engine._model is not None
    weights = weakref.ref(next(engine._model.weights.parameters()))
    gc.collect()
    assert weights() is not None
    if running:
        steps = len(watched.steps)
        ask(engine, max_new_tokens=400)
        while len(watched.steps) < steps + 3:  # noqa: ASYNC110 - a thread has no events
            await asyncio.sleep(0.001)
    await engine.unload()
    assert weights() is None
