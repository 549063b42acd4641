"""An engine with a model that does what a test tells it to, and waits where a test wants it to."""

import asyncio
import threading
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from prefanno.generation.config import Finished, GenerationConfig, Reply, Request
from prefanno.generation.decoding import Decoding
from prefanno.generation.engine import Engine
from prefanno.generation.job import Job

WAIT_S = 30.0
CONFIG = GenerationConfig("You are Li.")
OTHER = replace(CONFIG, temperature=0.5)


class Thing:
    """Something that is big in memory."""


class Stage:
    """What the models of one test do, and what was done with them."""

    def __init__(self) -> None:
        self.events: list[str] = []
        self.threads: set[str] = set()
        self.reached = threading.Event()  # somebody stands at the gate
        self.gate = threading.Event()
        self.gate.set()
        self.fault: Exception | None = None
        self.things: list[weakref.ref[Thing]] = []

    def note(self, event: str) -> None:
        """Note it; then wait at the gate, then fail if that was asked for."""
        self.events.append(event)
        self.threads.add(threading.current_thread().name)
        self.reached.set()
        assert self.gate.wait(WAIT_S)
        thing = Thing()
        self.things.append(weakref.ref(thing))
        if self.fault:
            fault, self.fault = self.fault, None
            raise fault

    def close(self) -> None:
        """Keep the next work waiting."""
        self.reached.clear()
        self.gate.clear()

    async def taken(self) -> None:
        """Until some work waits at the gate."""
        assert await asyncio.to_thread(self.reached.wait, WAIT_S)


class Model:
    """Stands in for LocalModel."""

    device, context_length = "cpu", 512

    def __init__(self, stage: Stage, base: str) -> None:
        self.stage, self.adapter = stage, ""
        stage.note(f"read {base}")

    def use(self, adapter: str | None) -> None:
        """Put the adapter on, unless it is."""
        if (adapter or "bare") == self.adapter:
            return
        self.stage.note(f"use {adapter}")
        self.adapter = adapter or "bare"

    def free(self) -> None:
        """Let go."""
        self.stage.note("free")


class Written(Decoding):
    """Stands in for a batch: it takes one job, and writes one reply that says what it was made with."""

    stage: Stage
    model: Model | None = None

    @property
    def takes_more(self) -> bool:
        """For one job."""
        return not self.jobs

    def read(self, model: Any, job: Job) -> None:
        """Note by which model it will be written."""
        self.model = None if job.cancelled else model

    def write(self, _shall_pause: Callable[[], bool]) -> bool:
        """Write."""
        (job,) = self.jobs
        if self.model is not None:
            request = job.request
            self.stage.note(f"generate {request.message}")
            reply = f"{self.model.adapter} {request.config.temperature} {request.message} {request.seed}"
            job.is_over = True
            for event in (Finished(1, Reply(None, reply, "stop", 1, 0, None)), None):
                self._loop.call_soon_threadsafe(job.put, event)
        return True


def state(engine: Engine) -> str:
    """Its state, which a type checker does not take for what it was."""
    return engine.state


async def generate(engine: Engine, message: str = "hi") -> list[Reply]:
    """What the model as it is now replies."""
    config = engine.loaded.config if engine.loaded else CONFIG
    return await engine.submit(Request(message, [], 7, config)).replies()


async def replies(engine: Engine) -> list[str]:
    """Only the texts."""
    return [reply.content for reply in await generate(engine)]
