"""Candidates for queued prompts, written while nobody waits for the engine.

wake ──▶ the next prompts ──▶ the engine, as jobs of nobody ──▶ stored: the prompt is ready
                                   └── a person takes the prompt meanwhile: the job is theirs
"""

import asyncio
import contextlib
import logging
import secrets
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from functools import partial
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import prompts
from prefanno.db.engine import Database
from prefanno.db.models import Prompt
from prefanno.db.prompts import Order
from prefanno.errors import EngineBroken, GenerationCancelled, PrefannoError
from prefanno.generation.config import SEEDS, Finished, Reply, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.generation.job import Job
from prefanno.prompting import Message
from prefanno.prompts import refresh
from prefanno.recording import Origin, record
from prefanno.settings import Settings

ROWS = 16  # in one batch, half of what people get: who takes a prompt that is being written waits for its neighbours
AGAIN_S = 10.0  # after which the queue is looked at anyway: another server may have added to it

log = logging.getLogger(__name__)


class Ahead:
    """Opened by `Ahead.running`. `order` is the one that the next prompts are expected to be taken in."""

    def __init__(self, settings: Settings, database: Database, engine: Engine) -> None:
        self.order: Order = "given"
        self._settings, self._database, self._engine = settings, database, engine
        self._jobs: dict[int, Job] = {}  # by prompt
        self._tasks: set[asyncio.Task[None]] = set()
        self._woken = asyncio.Event()
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
        job = self._jobs.pop(prompt, None)
        if job is not None:
            self._engine.hurry(job, client, streams)
        return job

    def _begin(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _run(self) -> None:
        while True:
            self._woken.clear()
            try:
                await self._submit_next()
            except PrefannoError as error:
                log.warning("no candidates can be written ahead of time: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._woken.wait(), AGAIN_S)

    async def _submit_next(self) -> None:
        loaded = self._engine.loaded
        if loaded is None or self._engine.state != "loaded":
            return
        origin = Origin(self._settings.model, loaded)
        if loaded is not self._fresh:  # what was written ahead for another is dropped
            await self._database.write(lambda session: refresh(session, loaded.character, origin.made))
            self._fresh = loaded
        most = max(1, ROWS // loaded.config.num_responses)
        async with self._database.read() as session:
            ready = (await prompts.counts(session, loaded.character))["ready"]
            found = await prompts.following(session, loaded.character, "waiting", self.order, most + len(self._jobs))
        if self._engine.loaded is not loaded:
            return
        room = min(most, self._settings.prompts_ahead - ready) - len(self._jobs)
        for prompt in [prompt for prompt in found if prompt.id not in self._jobs][: max(0, room)]:
            request = Request(
                prompt.message,
                cast(list[Message], prompt.context),
                secrets.randbelow(SEEDS),
                loaded.config,
                client=None,
            )
            self._jobs[prompt.id] = self._engine.submit(request)
            self._begin(self._settle(replace(origin, prompt=prompt.id), self._jobs[prompt.id]))

    async def _settle(self, origin: Origin, job: Job) -> None:
        """Store what was written, or why nothing could be, unless a person has taken the prompt."""
        assert origin.prompt is not None  # noqa: S101 - that is what it is for
        await job.ended.wait()
        if self._jobs.get(origin.prompt) is not job:
            return
        del self._jobs[origin.prompt]
        try:
            replies = {event.ordinal: event.reply async for event in job.events() if isinstance(event, Finished)}
            work = partial(_ready, origin, job.request, replies)
        except (GenerationCancelled, EngineBroken):
            return  # the prompt waits on
        except PrefannoError as error:
            work = partial(_failed, origin, error.detail)
        try:
            await self._database.write(work)
        except PrefannoError as error:
            log.warning("candidates that were written ahead of time are lost: %s", error)
        else:
            self.wake()


async def _ready(origin: Origin, request: Request, replies: dict[int, Reply], session: AsyncSession) -> None:
    if (prompt := await _waiting(session, origin)) is not None:
        await record(session, origin, request, replies)
        prompt.state = "ready"


async def _failed(origin: Origin, reason: str, session: AsyncSession) -> None:
    if (prompt := await _waiting(session, origin)) is not None:
        prompt.state, prompt.reason = "failed", reason


async def _waiting(session: AsyncSession, origin: Origin) -> Prompt | None:
    """The prompt, unless it was removed or taken meanwhile, or another server was faster."""
    prompt = await session.get(Prompt, origin.prompt)
    return prompt if prompt is not None and prompt.state == "waiting" else None
