"""An engine with the tiny model, whose steps are watched, and what its tests ask of it."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from prefanno.generation.batch import Batch
from prefanno.generation.config import GenerationConfig, Reply, Request
from prefanno.generation.engine import Engine
from prefanno.generation.job import Job

CONFIG = GenerationConfig("You are Li.", enable_thinking=False, max_new_tokens=64, num_responses=2)


class Watched(Batch):
    """A batch that notes which rows each step had, and does or fails what a test says, before a step."""

    steps: list[int]
    faults: dict[int, Exception]  # by the number of the step
    meanwhile: dict[int, Callable[[], object]]  # likewise; done in the event loop, while the step waits
    loop: asyncio.AbstractEventLoop
    rows_at_most = 1000

    def step(self) -> None:
        """Note and fail."""
        number = len(self.steps)
        self.steps.append(len(self.rows) or sum(len(read.rows) for read in self._read))
        if number in self.meanwhile:
            self._in_loop(self.meanwhile.pop(number))
        if self.steps[-1] > self.rows_at_most:
            raise MemoryError
        if number in self.faults:
            raise self.faults.pop(number)
        super().step()

    def _in_loop(self, work: Callable[[], object]) -> None:
        async def done() -> None:
            work()

        asyncio.run_coroutine_threadsafe(done(), self.loop).result()


def ask(engine: Engine, message: str = "hi", client: str | None = "a", **settings: Any) -> Job:
    """Submit a request."""
    return engine.submit(Request(message, [], 7, replace(CONFIG, **settings), client))


async def same(engine: Engine, jobs: Sequence[Job]) -> bool:
    """Whether each has what it would have alone."""
    found = [await job.replies() for job in jobs]
    alone = [await engine.submit(job.request).replies() for job in jobs]
    return [texts(replies) for replies in found] == [texts(replies) for replies in alone]


def texts(replies: Sequence[Reply]) -> list[tuple[str, int]]:
    """What was written, and how much of it."""
    return [(reply.content, reply.tokens) for reply in replies]


async def until_idle(engine: Engine) -> None:
    """Wait until nothing is written, and nothing waits."""
    async with asyncio.timeout(30):
        while not engine.is_idle:  # noqa: ASYNC110 - what is waited for knows no events
            await asyncio.sleep(0.001)
