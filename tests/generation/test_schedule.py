"""What is written first where somebody waits and something is written ahead of time; with the real tiny model."""

import asyncio
from typing import Any

import pytest

from prefanno.errors import GenerationCancelled
from prefanno.generation.config import Delta, Finished, Queued
from prefanno.generation.engine import Engine
from prefanno.generation.job import Job
from tests.generation.watching import Watched, ask, same, until_idle

pytestmark = pytest.mark.sqlite_only  # no database is opened

LONG: dict[str, Any] = {"max_new_tokens": 200, "num_responses": 3}


def _later(watched: type[Watched], step: int, engine: Engine, jobs: list[Job], **settings: Any) -> None:
    """Somebody asks before this step."""
    watched.meanwhile[step] = lambda: jobs.append(ask(engine, f"live {step}", f"client {step}", **settings))


async def _over(*jobs: Job) -> None:
    async with asyncio.timeout(30):
        for job in jobs:
            await job.ended.wait()


async def test_a_job_runs_with_nobody_reading(engine: Engine) -> None:
    """Its end can be waited for, and all of its events can be read afterwards."""
    job = ask(engine, client=None)
    await _over(job)
    assert [type(event) for event in [event async for event in job.events()]] == [Queued, Finished, Finished]


async def test_a_short_request_is_answered_before_its_long_neighbours(engine: Engine, watched: type[Watched]) -> None:
    """A request ends with its own last row, not with that of its batch."""
    long, short = ask(engine, "long", "a", **LONG), ask(engine, "short", "b", max_new_tokens=8)
    await short.replies()
    assert watched.steps[0] == 5 and not long.is_over
    await _over(long)
    assert await same(engine, [long])


async def test_what_is_drawn_again_comes_after_its_batch(engine: Engine, watched: type[Watched]) -> None:
    """A candidate that equals another is drawn again when the neighbours have ended; its request is not over before."""
    long, short = ask(engine, "long", "a", **LONG), ask(engine, "short", "b", max_new_tokens=8, top_k=1)
    assert len(await short.replies()) == 2
    assert long.is_over and watched.steps[0] == 5 and watched.steps[-1] == 1


async def test_a_live_request_is_written_at_once_and_alone(engine: Engine, watched: type[Watched]) -> None:
    """Before the next step of what is written ahead, which afterwards goes on where it was; nobody is before it."""
    live: list[Job] = []
    ahead = ask(engine, "ahead", None, **LONG)
    _later(watched, 5, engine, live)
    await _over(ahead, *live)
    assert watched.steps[4:8] == [3, 3, 2, 2] and watched.steps[-1] <= 3
    assert live[0].queued == Queued(0, None, live[0].id)
    assert await same(engine, [ahead, *live])


async def test_what_somebody_waits_for_is_not_paused(engine: Engine, watched: type[Watched]) -> None:
    """Once a client has taken what was begun ahead of time, others that come are written after it."""
    live: list[Job] = []
    ahead = ask(engine, "ahead", None, **LONG)
    watched.meanwhile[3] = lambda: engine.hurry(ahead, "a", streams=False)
    _later(watched, 5, engine, live)
    await _over(ahead)
    assert set(watched.steps) <= {1, 2, 3} and not live[0].is_over
    assert ahead.queued is not None and live[0].queued == Queued(1, None, live[0].id)
    await _over(*live)
    assert await same(engine, [ahead, *live])


async def test_what_was_paused_goes_on_where_somebody_waits_for_it(engine: Engine, watched: type[Watched]) -> None:
    """When it is taken while it is paused, it goes on before another batch begins."""
    live: list[Job] = []
    ahead = ask(engine, "ahead", None, **LONG)
    _later(watched, 5, engine, live)
    watched.meanwhile[8] = lambda: engine.hurry(ahead, "a", streams=False)
    _later(watched, 9, engine, live)
    await _over(ahead)
    assert [job.is_over for job in live] == [True, False]
    await _over(*live)
    assert await same(engine, [ahead, *live])


async def test_what_waits_ahead_can_be_hurried(engine: Engine, watched: type[Watched]) -> None:
    """It comes before what is being written ahead, as if it was asked for now."""
    first = ask(engine, "first", None, **LONG)
    while first.writing == []:  # noqa: ASYNC110 - a thread has no events
        await asyncio.sleep(0)
    second = ask(engine, "second", None)
    watched.meanwhile[max(5, len(watched.steps))] = lambda: engine.hurry(second, "a", streams=True)
    await _over(second)
    assert not first.is_over and second.queued == Queued(0, None, second.id)
    events = [event async for event in second.events()]
    assert {type(event) for event in events} == {Queued, Delta, Finished}
    await _over(first)
    assert await same(engine, [first])


async def test_what_has_ended_can_be_taken(engine: Engine) -> None:
    """Who takes what was written or cancelled a moment before gets what it came to."""
    written = ask(engine, client=None)
    await _over(written)
    engine.hurry(written, "a", streams=True)
    assert len(await written.replies()) == 2
    cancelled = [ask(engine, client=None) for _ in range(2)]
    for job in cancelled:
        engine.cancel(job.id)
        engine.hurry(job, "a", streams=True)
        with pytest.raises(GenerationCancelled):
            await job.replies()
    await until_idle(engine)


async def test_hurried_words_add_up(engine: Engine, watched: type[Watched]) -> None:
    """Who comes in the middle and reads word by word gets the words from the first on."""
    ahead = ask(engine, "ahead", None, **LONG)
    watched.meanwhile[20] = lambda: engine.hurry(ahead, "a", streams=True)
    await _over(ahead)
    events = [event async for event in ahead.events()]
    said = dict.fromkeys((1, 2, 3), "")
    for event in events:
        if isinstance(event, Delta):
            said[event.ordinal] = event.content if event.replaces else said[event.ordinal] + event.content
    finished = {event.ordinal: event.reply.content for event in events if isinstance(event, Finished)}
    assert said == finished


async def test_who_took_it_and_left_holds_nobody_up(engine: Engine, watched: type[Watched]) -> None:
    """A batch whose only taker has gone is written ahead of time again, and lets others go first."""
    live: list[Job] = []
    taken, other = ask(engine, "taken", None, **LONG), ask(engine, "other", None, **LONG)
    watched.meanwhile[3] = lambda: engine.hurry(taken, "a", streams=False)
    watched.meanwhile[5] = taken.cancel
    _later(watched, 8, engine, live)
    await _over(taken, other)
    assert live[0].is_over and watched.steps[8:10] == [3, 2]
    assert await same(engine, [other, *live])


async def test_others_go_first_again_when_what_was_taken_is_there(engine: Engine, watched: type[Watched]) -> None:
    """Of two that are written ahead one is taken and ends: who came meanwhile does not wait for the other."""
    live: list[Job] = []
    taken, other = ask(engine, "taken", None), ask(engine, "other", None, **LONG)
    watched.meanwhile[3] = lambda: engine.hurry(taken, "a", streams=False)
    _later(watched, 5, engine, live)
    await _over(taken)
    await _over(*live)
    assert not other.is_over
    await _over(other)
    assert await same(engine, [taken, other, *live])


async def test_who_leaves_at_once_loses_nothing_that_was_paused(engine: Engine, watched: type[Watched]) -> None:
    """Clients that come and leave while something is paused never take its place."""
    live: list[Job] = []
    ahead = ask(engine, "ahead", None, **LONG)
    _later(watched, 5, engine, live)

    def leave_and_come() -> None:
        live[0].cancel()
        live.append(ask(engine, "again", "b"))

    watched.meanwhile[8] = leave_and_come
    await _over(ahead, *live)
    await until_idle(engine)
    assert await same(engine, [ahead, live[1]])


async def test_who_leaves_takes_nothing_from_its_neighbours(engine: Engine, watched: type[Watched]) -> None:
    """A client that leaves in the middle of a batch: the others read as if it had never been there."""
    gone, *others = [ask(engine, "x" * number, str(number), **LONG) for number in range(3)]
    watched.meanwhile[5] = gone.cancel
    await _over(*others)
    assert watched.steps[5] > 6 >= watched.steps[6]
    assert await same(engine, others)


async def test_memory_is_taken_from_what_was_paused(engine: Engine, watched: type[Watched]) -> None:
    """When memory runs out while something is paused, that begins anew later, and the live requests stay together."""
    live: list[Job] = []
    ahead = ask(engine, "ahead", None, **LONG)
    watched.meanwhile[5] = lambda: live.extend(ask(engine, name, name) for name in ("b", "c"))
    watched.faults[8] = MemoryError()
    await _over(ahead, *live)
    assert watched.steps[6:11] == [4, 4, 4, 4, 4] and not any(job.is_alone for job in (ahead, *live))
    assert await same(engine, [ahead, *live])


async def test_words_that_were_shown_are_not_shown_again(engine: Engine, watched: type[Watched]) -> None:
    """What begins anew for want of memory goes on in its client's eyes where it was."""
    job = ask(engine, max_new_tokens=32)
    job.streams = True
    watched.faults[20] = MemoryError()
    events = [event async for event in job.events()]
    told = [event for event in events if isinstance(event, Delta)]
    said = {ordinal: "".join(event.content for event in told if event.ordinal == ordinal) for ordinal in (1, 2)}
    assert not any(event.replaces for event in told)
    assert said == {event.ordinal: event.reply.content for event in events if isinstance(event, Finished)}
    assert list(said.values()) == [reply.content for reply in await ask(engine, max_new_tokens=32).replies()]
