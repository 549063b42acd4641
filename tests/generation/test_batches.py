"""Who is written with whom, who comes first, and what happens when something fails; with the real tiny model."""

import asyncio
import gc
import weakref
from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import pytest

from prefanno.errors import EngineBroken, EngineFailed, OutOfMemory, QueueFull
from prefanno.generation import decoding, model
from prefanno.generation.batch import Batch
from prefanno.generation.config import GenerationConfig, Queued, Reply, Request
from prefanno.generation.engine import Engine
from prefanno.generation.job import Job
from prefanno.generation.turns import LIMIT, Turns
from prefanno.settings import Settings

pytestmark = pytest.mark.sqlite_only  # no database is opened

CONFIG = GenerationConfig("You are Li.", enable_thinking=False, max_new_tokens=64, num_responses=2)


class Watched(Batch):
    """A batch that notes which rows each step had, and fails where a test says so."""

    steps: list[int]
    faults: dict[int, Exception]  # by the number of the step
    rows_at_most = 1000

    def step(self) -> None:
        """Note and fail."""
        number = len(self.steps)
        self.steps.append(len(self.rows) or sum(len(read.rows) for read in self._read))
        if self.steps[-1] > self.rows_at_most:
            raise MemoryError
        if number in self.faults:
            raise self.faults.pop(number)
        super().step()


@pytest.fixture
def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """What the batches of a test did."""
    monkeypatch.setattr(decoding, "Batch", Watched)
    monkeypatch.setattr(Watched, "steps", [], raising=False)
    monkeypatch.setattr(Watched, "faults", {}, raising=False)
    return Watched


@pytest.fixture
async def engine(watched: type[Watched], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    """An engine with the tiny model loaded, in float32, where company changes no text."""
    import torch

    del watched
    monkeypatch.setattr(model, "_dtype", lambda: torch.float32)
    engine = Engine(settings)
    await engine.load(CONFIG, None)
    yield engine
    await engine.close()


def _ask(engine: Engine, message: str = "hi", client: str | None = "a", **settings: Any) -> Job:
    return engine.submit(Request(message, [], 7, replace(CONFIG, **settings), client))


async def _same(engine: Engine, jobs: list[Job]) -> bool:
    """Whether each has what it would have alone."""
    found = [await job.replies() for job in jobs]
    alone = [await engine.submit(job.request).replies() for job in jobs]
    return [_texts(replies) for replies in found] == [_texts(replies) for replies in alone]


def _texts(replies: list[Reply]) -> list[tuple[str, int]]:
    return [(reply.content, reply.tokens) for reply in replies]


async def test_those_who_wait_are_written_together(engine: Engine, watched: type[Watched]) -> None:
    """Eight requests at once are one batch of all their rows, and each reads as if it were alone."""
    jobs = [_ask(engine, "x" * number, str(number), max_new_tokens=64 + number) for number in range(8)]
    assert await _same(engine, jobs)
    assert watched.steps[0] == 16


async def test_a_batch_has_its_bound(engine: Engine, watched: type[Watched]) -> None:
    """Those for whom there is no room wait for the next batch."""
    jobs = [_ask(engine, str(number), num_responses=10) for number in range(6)]
    for job in jobs:
        await job.replies()
    assert max(watched.steps) == 40


async def test_clients_take_turns() -> None:
    """Of a client that asks for much and one that asks for little, each has every second turn; positions say so."""
    turns = Turns()
    much = [Job(Request(str(number), [], 7, CONFIG, "much")) for number in range(3)]
    little = Job(Request("little", [], 7, CONFIG, "little"))
    for job in (*much, little):
        turns.add(job)
    assert [turns.position(job) for job in (*much, little)] == [0, 2, 3, 1]
    assert [turns.take() for _ in range(5)] == [much[0], little, much[1], much[2], None]


async def test_a_cancelled_job_has_no_turn() -> None:
    """It is passed over, and takes no place."""
    turns = Turns()
    jobs = [Job(Request("?", [], 7, CONFIG)) for _ in range(LIMIT)]
    for job in jobs:
        turns.add(job)
    full = [turns.is_full]
    jobs[0].cancel()
    assert [*full, turns.is_full] == [True, False]
    assert turns.take() is jobs[1]


async def test_a_full_queue_refuses_and_says_when(engine: Engine) -> None:
    """One more than may wait is refused; before that each is told its place. All that were taken are answered."""
    jobs = [_ask(engine, num_responses=2) for _ in range(LIMIT)]
    with pytest.raises(QueueFull) as full:
        _ask(engine)
    assert full.value.retry_after_s >= 1
    first = [await anext(job.events()) for job in jobs[:3]]
    assert first == [Queued(0, None), Queued(1, None), Queued(2, None)]
    for job in jobs:
        job.cancel()
    await _until_idle(engine)
    assert len(await _ask(engine).replies()) == 2
    await _until_idle(engine)
    queued = await anext(_ask(engine).events())
    assert isinstance(queued, Queued) and queued.wait_s is not None


async def test_somebody_who_waits_comes_before_what_is_written_ahead(engine: Engine, watched: type[Watched]) -> None:
    """At the next step; afterwards what was begun goes on where it was, and reads the same."""
    ahead = _ask(engine, "ahead", None, max_new_tokens=400, num_responses=10)
    while len(watched.steps) < 5:  # noqa: ASYNC110 - a thread has no events
        await asyncio.sleep(0.001)
    await _ask(engine, "live").replies()
    assert not ahead.is_over
    paused = len(watched.steps)
    assert 2 in watched.steps and watched.steps[0] == 10
    assert await _same(engine, [ahead])
    assert paused < len(watched.steps)


async def test_cancelling_ends_within_one_step(engine: Engine, watched: type[Watched]) -> None:
    """A hundred times, at any moment: at most one more step, and the engine is idle."""
    for number in range(100):
        job = _ask(engine, max_new_tokens=400)
        await asyncio.sleep(number % 10 / 1000)
        job.cancel()
        before = len(watched.steps)
        await _until_idle(engine)
        assert len(watched.steps) <= before + 2  # one under way, one that finds no row
    assert len(await _ask(engine).replies()) == 2


@pytest.mark.parametrize("step", [0, 1, 5, 30])
async def test_memory_that_does_not_suffice_makes_batches_smaller(
    engine: Engine, watched: type[Watched], step: int
) -> None:
    """After an out-of-memory at any step each request is written alone, and nobody sees a difference."""
    watched.faults = {step: MemoryError()}
    assert await _same(engine, [_ask(engine, str(number)) for number in range(3)])


async def test_a_request_that_is_too_large_is_written_in_parts(
    engine: Engine, watched: type[Watched], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where memory has room for two rows, eight come two at a time; where it has none, only that request fails."""
    monkeypatch.setattr(watched, "rows_at_most", 2)
    assert len(await _ask(engine, num_responses=8).replies()) == 8
    monkeypatch.setattr(watched, "rows_at_most", 0)
    with pytest.raises(OutOfMemory):
        await _ask(engine).replies()
    monkeypatch.setattr(watched, "rows_at_most", 1000)
    assert len(await _ask(engine).replies()) == 2


@pytest.mark.parametrize("step", [0, 1, 5, 30])
async def test_a_fault_at_any_step_is_told_to_all_of_its_batch(
    engine: Engine, watched: type[Watched], step: int
) -> None:
    """Each who waits gets the error, none hangs, and the next request works."""
    watched.faults = {step: RuntimeError("injected")}
    jobs = [_ask(engine, str(number)) for number in range(3)]
    ended = await asyncio.gather(*(job.replies() for job in jobs), return_exceptions=True)
    assert [type(error) for error in ended] == [EngineFailed] * 3
    assert len(await _ask(engine).replies()) == 2


async def test_a_broken_gpu_is_a_state(engine: Engine, watched: type[Watched]) -> None:
    """Everybody who waits is told; the engine is failed, and refuses to load and to generate until a restart."""
    watched.faults = {3: RuntimeError("CUDA error: device-side assert triggered")}
    jobs = [_ask(engine, str(number), max_new_tokens=400, num_responses=10) for number in range(6)]
    ended = await asyncio.gather(*(job.replies() for job in jobs), return_exceptions=True)
    assert [type(error) for error in ended] == [EngineBroken] * 6
    assert engine.state == "failed"
    with pytest.raises(EngineBroken):
        _ask(engine)
    with pytest.raises(EngineBroken):
        await engine.load(CONFIG, None)
    await engine.unload()
    assert engine.state == "failed"


@pytest.mark.parametrize("running", [False, True], ids=["idle", "in a generation"])
async def test_unload_lets_go_of_the_weights(engine: Engine, watched: type[Watched], running: bool) -> None:
    """When it answers, nothing holds the weights, also where it ended a generation; before, they live."""
    assert len(await _ask(engine).replies()) == 2
    assert engine._model is not None
    weights = weakref.ref(next(engine._model.weights.parameters()))
    gc.collect()
    assert weights() is not None
    if running:
        steps = len(watched.steps)
        _ask(engine, max_new_tokens=400)
        while len(watched.steps) < steps + 3:  # noqa: ASYNC110 - a thread has no events
            await asyncio.sleep(0.001)
    await engine.unload()
    assert weights() is None


async def _until_idle(engine: Engine) -> None:
    async with asyncio.timeout(30):
        while not engine.is_idle:  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.001)
