"""The engine: a small state machine around the one thread that owns the model, and the jobs that wait for it.

    unloaded ──load──▶ loading ──▶ loaded ──unload──▶ unloaded        any ──(the GPU broke)──▶ failed
                          └─(error)─▶ unloaded

    submit ─▶ Job ─▶ Schedule ─▶ Decoding: a batch of the jobs that wait ─▶ the thread, step by step ─▶ the job's events

Coroutines send work to the thread and await it. A load or an unload cancels all jobs; each ends at its next token with
GenerationCancelled. Loading again with the adapter in use changes the settings only.
"""

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Literal, TypeVar

from prefanno.db.models import DEFAULT_CHARACTER
from prefanno.errors import (
    EngineBroken,
    EngineFailed,
    GenerationCancelled,
    InvalidInput,
    ModelLoading,
    ModelNotLoaded,
    NotFound,
    PrefannoError,
)
from prefanno.generation import base_model
from prefanno.generation.config import GenerationConfig, Request
from prefanno.generation.containment import contained
from prefanno.generation.decoding import Decoding
from prefanno.generation.job import Job
from prefanno.generation.model import LocalModel
from prefanno.generation.progress import Progress
from prefanno.generation.schedule import Queue, Schedule
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
        self._schedule = Schedule()
        self._serving: asyncio.Task[None] | None = None
        self.state: State = "unloaded"
        self.failure: EngineBroken | None = None
        self.loaded: Loaded | None = None
        self.progress: Progress | None = None  # of a load

    async def load(self, config: GenerationConfig, adapter: str | None, character: str = DEFAULT_CHARACTER) -> Loaded:
        """Load, or set what is loaded to this configuration. Raises ModelLoading during a load, EngineFailed."""
        self._refuse_broken()
        if self.state == "loading":
            raise ModelLoading
        self.state, self.progress = "loading", Progress()
        self._schedule.cancel(GenerationCancelled())
        try:
            async with self._changing:
                self.loaded = await self._run(partial(self._load, config, adapter, character, self.progress))
        except BaseException as error:
            if isinstance(error, EngineBroken):
                self._break(error)
            try:
                async with self._changing:
                    await self._release()
            finally:
                self._become("unloaded")
            raise
        finally:
            self.progress = None
        self._become("loaded")
        return self.loaded

    async def unload(self) -> None:
        """Free the model's memory; waits for the end of a load. With nothing loaded: nothing."""
        self._schedule.cancel(GenerationCancelled())
        async with self._changing:
            if self.loaded is None:
                return
            try:
                await self._release()
            finally:
                if self.state == "loaded":  # else the next load waits already
                    self._become("unloaded")

    def submit(self, request: Request) -> Job:
        """Queue up a request. Raises ModelNotLoaded, ModelLoading, EngineBroken, QueueFull or Conflict."""
        self._refuse_broken()
        if self.loaded is None:
            raise ModelNotLoaded
        if self.state == "loading":
            raise ModelLoading
        job = Job(request)
        self._schedule.add(job)
        if self._serving is None:
            self._serving = asyncio.create_task(self._serve())
        return job

    def hurry(self, job: Job, client: str, streams: bool) -> None:
        """Somebody waits now for a job that was submitted ahead of time: it counts as this client's from now on."""
        self._schedule.hurry(job, client, streams)

    def cancel(self, request_id: str) -> None:
        """End a request, within a step. Raises NotFound."""
        job = self._schedule.find(request_id)
        if job is None:
            raise NotFound(
                f"no request {request_id!r} waits or is written", f"未找到：没有等待或正在生成的请求 {request_id}"
            )
        job.fail(GenerationCancelled("the generation was cancelled by a request", "生成已取消：已按请求取消"))

    @property
    def queue(self) -> Queue:
        """How many requests wait and are written."""
        return self._schedule.queue

    @property
    def is_idle(self) -> bool:
        """Whether nothing is written, and nothing waits."""
        return self._serving is None

    async def base_model(self) -> str:
        """What another process can load the base model from; converts the demo model where that was not done yet."""
        if (found := base_model.known(self._settings)) is not None:
            return found  # without waiting for what is written now
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
            while self._schedule:
                async with self._changing:
                    await self._write()
        finally:
            self._serving = None
            self._schedule.cancel(EngineFailed())  # there are none, but for a bug above

    async def _write(self) -> None:
        """Write a batch, until it has ended or lets somebody go first."""
        decoding, started = self._schedule.begin(), time.monotonic()
        try:
            while (job := self._schedule.take()) is not None:
                await self._read(decoding, job)
            has_ended = await self._run(lambda: decoding.write(self._schedule.shall_pause))
        except PrefannoError as error:
            self._schedule.failed(error)
            if isinstance(error, EngineBroken):
                self._break(error)
            return
        decoding.seconds += time.monotonic() - started
        if has_ended:
            self._schedule.ended()
        else:
            self._schedule.paused()

    async def _read(self, decoding: Decoding, job: Job) -> None:
        try:
            await self._run(lambda: decoding.read(self._model, job))
        except InvalidInput as error:  # its client asks for what cannot be answered; its neighbours go on
            job.fail(error)

    def _break(self, error: EngineBroken) -> None:
        self.failure, self.state = error, "failed"
        self._schedule.cancel(error)

    def _refuse_broken(self) -> None:
        if self.failure is not None:
            raise EngineBroken(self.failure.reason)

    def _become(self, state: State) -> None:
        self.state = "failed" if self.failure is not None else state

    def _load(self, config: GenerationConfig, adapter: str | None, character: str, progress: Progress) -> Loaded:
        if self._model is None:
            progress.begin("converting")
            base = base_model.resolve(self._settings)
            progress.begin("reading weights")
            with progress.counted():
                self._model = LocalModel(base)
        progress.begin("adapter")
        self._model.use(adapter)
        return Loaded(config, adapter, character, self._model.device, self._model.context_length)

    def _free(self) -> None:
        model, self._model = self._model, None
        if model is not None:
            model.free()

    async def _release(self) -> None:
        self.loaded = None
        self._schedule.cancel(GenerationCancelled())  # what was submitted while this waited for its turn
        try:
            await self._run(self._free)
        except EngineBroken as error:  # the weights are let go of all the same
            self._break(error)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, contained, work)
