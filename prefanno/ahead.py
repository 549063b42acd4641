"""Candidates for queued prompts, written while nobody waits for the engine.

    wake ──▶ the next prompts ──▶ the engine, as jobs of nobody ──▶ stored: the prompt is ready
                                       └── a person takes the prompt meanwhile: the job is theirs

What was written for another adapter, persona or other settings is dropped when a model is loaded.
"""

import asyncio
import contextlib
import logging
import secrets
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import prompts
from prefanno.db.engine import Database, Work
from prefanno.db.models import Prompt
from prefanno.db.prompts import Order
from prefanno.errors import EngineBroken, EngineFailed, GenerationCancelled, InvalidInput
from prefanno.generation.config import SEEDS, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.generation.job import Job
from prefanno.prompting import Message
from prefanno.prompts import refresh
from prefanno.recording import Origin, record
from prefanno.settings import Settings

ROWS_AHEAD = 16  # in one batch, half of what people get: who takes a prompt that is being written waits for others
AGAIN_S = 10.0  # after which the queue is looked at anyway: another server may have added to it
LONGEST_PAUSE_S = 600.0  # of an engine that fails

log = logging.getLogger(__name__)


class Ahead:
    """Opened by `Ahead.running`. `order` is the one that the next prompts are expected to be taken in."""

    def __init__(self, settings: Settings, database: Database, engine: Engine) -> None:
        self.order: Order = "given"
        self.is_paused = False  # what is loaded is not what people talk to
        self._settings, self._database, self._engine = settings, database, engine
        self._jobs: dict[int, Job] = {}  # by prompt
        self._tasks: set[asyncio.Task[None]] = set()
        self._given: set[int] = set()  # since the queue was read last
        self._woken = asyncio.Event()
        self._trouble = Trouble()
        self._fresh: Loaded | None = None  # for which the queue was looked through

    @classmethod
    @contextlib.asynccontextmanager
    async def running(cls, settings: Settings, database: Database, engine: Engine) -> AsyncIterator["Ahead"]:
        """Write ahead for the block."""
        ahead = cls(settings, database, engine)
        ahead._begin(ahead._run())
        try:
            yield ahead
        finally:
            for task in ahead._tasks:
                task.cancel()
            await asyncio.gather(*ahead._tasks, return_exceptions=True)

    def wake(self) -> None:
        """Look at the queue: a model was loaded, prompts came or went, or there is room."""
        self._woken.set()

    def give(self, prompt: int, client: str, streams: bool) -> Job | None:
        """The job that writes for this prompt, where there is one; it is the client's from now on."""
        self._given.add(prompt)
        job = self._jobs.pop(prompt, None)
        if job is not None:
            self._engine.hurry(job, client, streams)
        return job

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        recovered = self._database.shared  # of several servers nobody knows what the others answer
        while True:
            self._woken.clear()
            try:
                if not recovered:
                    await self._database.write(prompts.recover)
                    recovered = True
                await self._submit_next()
            except Exception as error:  # noqa: BLE001 - whatever it is, it shall not end the writing for good
                log.warning("no candidates can be written ahead of time: %r", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(AGAIN_S):
                    await self._woken.wait()

    async def _submit_next(self) -> None:
        loaded = self._engine.loaded
        if loaded is None or self._engine.state != "loaded" or self._trouble.lasts or self.is_paused:
            return
        origin = Origin(self._settings.model, loaded)
        if loaded is not self._fresh:  # what was written ahead for another is dropped
            await refresh(self._database, loaded.character, origin.made)
            self._fresh = loaded
        alone = self._trouble.was
        most = 1 if alone else max(1, ROWS_AHEAD // loaded.config.num_responses)
        self._given.clear()
        async with self._database.read() as session:
            ready = (await prompts.counts(session, loaded.character))["ready"]
            found = await prompts.following(session, loaded.character, "waiting", self.order, most + len(self._jobs))
        if self._engine.loaded is not loaded:
            return
        room = min(most, self._settings.prompts_ahead - ready) - len(self._jobs)
        free = [prompt for prompt in found if prompt.id not in self._jobs and prompt.id not in self._given]
        for prompt in free[: max(0, room)]:
            self._submit(prompt, replace(origin, prompt=prompt.id), alone)

    def _submit(self, prompt: Prompt, origin: Origin, alone: bool) -> None:
        context, seed = cast(list[Message], prompt.context), secrets.randbelow(SEEDS)
        job = self._engine.submit(Request(prompt.message, context, seed, origin.loaded.config, client=None))
        self._jobs[prompt.id] = job
        self._begin(self._settle(prompt.id, origin, job, alone))

    async def _settle(self, prompt: int, origin: Origin, job: Job, alone: bool) -> None:
        """Store what was written, or why nothing could be, unless a person has taken the prompt."""
        await job.ended.wait()
        if self._jobs.get(prompt) is not job:
            return
        try:
            if (work := self._outcome(origin, job, alone)) is not None:
                await self._database.write(work)
        except Exception as error:  # noqa: BLE001 - a full disk, or a bug: they are written again, after a pause
            self._trouble.began()
            log.warning("candidates that were written ahead of time are lost: %r", error)
        finally:  # until now, who takes the prompt has the job with all that it wrote
            if self._jobs.get(prompt) is job:
                del self._jobs[prompt]
                self.wake()

    def _outcome(self, origin: Origin, job: Job, alone: bool) -> Work[None] | None:
        """What is to be stored. Only what fails again, and alone, is to blame: else it may be others, or the engine."""
        error = job.failure
        if error is None:
            self._trouble.passed()
            return partial(_ready, origin, job)
        if isinstance(error, GenerationCancelled | EngineBroken):
            return None
        if isinstance(error, EngineFailed):
            self._trouble.began()
        return partial(_failed, origin, error.detail) if alone or isinstance(error, InvalidInput) else None


class Trouble:
    """Something fails: from the first time on prompts are tried one by one, after pauses that grow."""

    def __init__(self) -> None:
        self._pause_s = 0.0
        self._until = 0.0

    @property
    def was(self) -> bool:
        """Whether nothing was written since."""
        return self._pause_s > 0

    @property
    def lasts(self) -> bool:
        """Whether it is too early to try again."""
        return time.monotonic() < self._until

    def began(self) -> None:
        """It failed; of several prompts of one batch the first counts."""
        if not self.lasts:
            self._pause_s = min(max(2 * self._pause_s, AGAIN_S), LONGEST_PAUSE_S)
            self._until = time.monotonic() + self._pause_s

    def passed(self) -> None:
        """Something was written."""
        self._pause_s = 0.0


async def _ready(origin: Origin, job: Job, session: AsyncSession) -> None:
    if (prompt := await _waiting(session, origin)) is not None:
        await record(session, origin, job.request, job.written)
        prompt.state = "ready"


async def _failed(origin: Origin, reason: str, session: AsyncSession) -> None:
    if (prompt := await _waiting(session, origin)) is not None:
        prompt.state, prompt.reason = "failed", reason


async def _waiting(session: AsyncSession, origin: Origin) -> Prompt | None:
    """The prompt, unless it was removed or taken meanwhile, or another server was faster."""
    prompt = await session.get(Prompt, origin.prompt)
    return prompt if prompt is not None and prompt.state == "waiting" else None
