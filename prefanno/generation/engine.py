"""The engine: a small state machine around the one thread that owns the model, and the jobs that wait for it.

    unloaded ──load──▶ loading ──▶ loaded ──unload──▶ unloaded        any ──(the GPU broke)──▶ failed
                          └─(error)─▶ unloaded

    submit ─▶ Job ─▶ turns ─▶ Decoding: a batch of the jobs that wait ─▶ the thread, step by step ─▶ the job's events

Coroutines send work to the thread and await it. A load or an unload cancels all jobs; each ends at its next token with
GenerationCancelled. Loading again with the adapter in use changes the settings only. A job of a client interrupts, at
the next step, what is written ahead of time; that goes on afterwards.
"""

import asyncio
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from prefanno.db.models import DEFAULT_CHARACTER
from prefanno.errors import (
    EngineBroken,
    EngineFailed,
    GenerationCancelled,
    ModelLoading,
    ModelNotLoaded,
    OutOfMemory,
    PrefannoError,
    QueueFull,
)
from prefanno.generation import base_model
from prefanno.generation.config import GenerationConfig, Queued, Request
from prefanno.generation.containment import contained
from prefanno.generation.decoding import Decoding
from prefanno.generation.job import Job
from prefanno.generation.model import LocalModel
from prefanno.generation.turns import Turns
from prefanno.settings import Settings

T = TypeVar("T")
State = Literal["unloaded", "loading", "loaded", "failed"]


@dataclass(frozen=True)
class Loaded:
    """What is loaded: its settings, the adapter's folder, whose it is, and where it runs."""

    config: GenerationConfig
    adapter: str | None
    character: str
    device: str
    context_length: int


class Engine:
    """The local engine. `load` and `unload` are called by one coroutine at a time as far as `state` allows it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._changing = asyncio.Lock()
        self._model: LocalModel | None = None  # belongs to the thread, but for whether there is one
        self._jobs: set[Job] = set()
        self._turns, self._ahead = Turns(), Turns()
        self._paused: Decoding | None = None
        self._serving: asyncio.Task[None] | None = None
        self._pace = Pace()
        self.state: State = "unloaded"
        self.failure: EngineBroken | None = None
        self.loaded: Loaded | None = None

    async def load(self, config: GenerationConfig, adapter: str | None, character: str = DEFAULT_CHARACTER) -> Loaded:
        """Load, or set what is loaded to this configuration. Raises ModelLoading during a load, EngineFailed."""
        if self.failure is not None:
            raise self.failure
        if self.state == "loading":
            raise ModelLoading
        self.state = "loading"
        self._cancel_all(GenerationCancelled())
        try:
            async with self._changing:
                self.loaded = await self._run(lambda: self._load(config, adapter, character))
        except BaseException:
            async with self._changing:
                await self._release()
            self._become("unloaded")
            raise
        self._become("loaded")
        return self.loaded

    async def unload(self) -> None:
        """Free the model's memory; waits for the end of a load. With nothing loaded: nothing."""
        self._cancel_all(GenerationCancelled())
        async with self._changing:
            if self.loaded is not None:
                await self._release()
                if self.state == "loaded":  # else the next load waits already
                    self._become("unloaded")

    def submit(self, request: Request) -> Job:
        """Queue up a request. Raises ModelNotLoaded, ModelLoading, EngineBroken or QueueFull."""
        if self.failure is not None:
            raise self.failure
        if self.loaded is None:
            raise ModelNotLoaded
        if self.state == "loading":
            raise ModelLoading
        turns = self._ahead if request.client is None else self._turns
        if turns.is_full:
            full = QueueFull()
            full.retry_after_s = self._pace.wait_s(len(turns)) or full.retry_after_s
            raise full
        job = Job(request)
        turns.add(job)
        self._jobs.add(job)
        position = turns.position(job) + (self._serving is not None)
        job.put(Queued(position, self._pace.wait_s(position)))
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return job

    @property
    def is_idle(self) -> bool:
        """Whether nothing is written, and nothing waits."""
        return self._serving is None

    async def base_model(self) -> str:
        """What another process can load the base model from; converts the demo model where that was not done yet."""
        return await self._run(lambda: base_model.resolve(self._settings))

    async def close(self) -> None:
        """End the thread, within one token of a generation."""
        await self.unload()
        if self._serving is not None:
            await self._serving
        self._thread.shutdown(wait=True)

    async def _serve(self) -> None:
        """Write batch after batch until nobody waits and nothing is left to write ahead of time."""
        try:
            while self._turns or self._paused or self._ahead:
                async with self._changing:
                    await self._write()
        finally:
            self._serving = None
            self._cancel_all(EngineFailed())  # there are none, but for a bug above

    async def _write(self) -> None:
        """Write what was paused, or a batch of the jobs that wait, and see to what is left of each job."""
        if self._paused and not self._turns:
            decoding, self._paused = self._paused, None
        else:
            decoding = Decoding(ahead=not self._turns)
        turns = self._ahead if decoding.ahead else self._turns
        started = time.monotonic()
        try:
            await self._fill(decoding, turns)
            ended = await self._run(lambda: decoding.write(lambda: decoding.ahead and bool(self._turns)))
        except PrefannoError as error:
            decoding.drop()
            self._failed(decoding.jobs, error, turns)
            return
        if not ended:
            self._paused = decoding
            return
        self._pace.took(time.monotonic() - started, len(decoding.jobs))
        for job in decoding.jobs:
            if not job.is_over:  # a candidate has to be drawn again
                turns.add_again(job)

    async def _fill(self, decoding: Decoding, turns: Turns) -> None:
        while decoding.takes_more and (job := turns.take()) is not None:
            decoding.jobs.append(job)
            await self._run(partial(decoding.read, self._model, job))

    def _failed(self, jobs: Sequence[Job], error: PrefannoError, turns: Turns) -> None:
        if isinstance(error, EngineBroken):
            self.failure, self.state = error, "failed"
            self._cancel_all(error)
        for job in jobs:
            if isinstance(error, OutOfMemory) and job.ask_less():
                turns.add_again(job)
            elif not job.is_over:
                job.fail(error)

    def _become(self, state: State) -> None:
        self.state = "failed" if self.failure is not None else state

    def _cancel_all(self, error: PrefannoError) -> None:
        for job in self._jobs:
            if not job.is_over:
                job.cancel()
                job.fail(error)
        self._jobs.clear()
        self._paused = None

    def _load(self, config: GenerationConfig, adapter: str | None, character: str) -> Loaded:
        if self._model is None:
            self._model = LocalModel(base_model.resolve(self._settings))
        self._model.use(adapter)
        return Loaded(config, adapter, character, self._model.device, self._model.context_length)

    def _free(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.free()

    async def _release(self) -> None:
        self.loaded = None
        await self._run(self._free)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, contained, work)


class Pace:
    """How long batches take, from those that were: what a waiting person is told."""

    def __init__(self) -> None:
        self._batch_s: float | None = None
        self._jobs = 1.0

    def took(self, seconds: float, jobs: int) -> None:
        """Learn from a batch; recent ones count most."""
        share = 1.0 if self._batch_s is None else 0.3
        self._batch_s = (self._batch_s or 0.0) * (1 - share) + seconds * share
        self._jobs = self._jobs * (1 - share) + jobs * share

    def wait_s(self, position: int) -> float | None:
        """About how long until a job is written that has so many before it; None before any was."""
        return None if self._batch_s is None else round(self._batch_s * (1 + position / max(self._jobs, 1.0)), 1)
