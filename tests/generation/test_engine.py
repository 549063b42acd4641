"""The engine's states and its one thread, with a model that does what a test tells it to."""

import asyncio
import gc
import threading
import weakref
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest

from prefanno.errors import EngineFailed, GenerationCancelled, InvalidInput, ModelLoading, ModelNotLoaded
from prefanno.generation import engine as module
from prefanno.generation import schedule
from prefanno.generation.config import Finished, GenerationConfig, Reply, Request
from prefanno.generation.decoding import Decoding
from prefanno.generation.engine import Engine, Loaded
from prefanno.generation.job import Job
from prefanno.settings import Settings

pytestmark = pytest.mark.sqlite_only  # no database is opened

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


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """The stage on which the engine's models stand."""
    stage = Stage()
    monkeypatch.setattr(module, "LocalModel", lambda base: Model(stage, base))
    monkeypatch.setattr(schedule, "Decoding", Written)
    monkeypatch.setattr(Written, "stage", stage, raising=False)
    yield stage
    stage.gate.set()


@pytest.fixture
async def engine(stage: Stage, settings: Settings) -> AsyncIterator[Engine]:
    """An engine for a model named `base`."""
    engine = Engine(replace(settings, model="base"))
    yield engine
    stage.gate.set()
    async with asyncio.timeout(WAIT_S):
        await engine.close()


def _state(engine: Engine) -> str:
    return engine.state


async def _generate(engine: Engine, message: str = "hi") -> list[Reply]:
    config = engine.loaded.config if engine.loaded else CONFIG
    return await engine.submit(Request(message, [], 7, config)).replies()


async def _replies(engine: Engine) -> list[str]:
    return [reply.content for reply in await _generate(engine)]


async def test_at_first_nothing_is_loaded(engine: Engine, stage: Stage) -> None:
    """Before a load there is no model to generate with, and unloading is harmless."""
    assert (engine.state, engine.loaded) == ("unloaded", None)
    with pytest.raises(ModelNotLoaded):
        await _generate(engine)
    await engine.unload()
    assert stage.events == []


async def test_loading_leads_to_loaded(engine: Engine, stage: Stage) -> None:
    """A load is "loading" until the weights and the adapter are there, then "loaded"."""
    stage.close()
    loading = asyncio.create_task(engine.load(CONFIG, "/outputs/li-simpo-1"))
    await stage.taken()
    assert (engine.state, engine.loaded) == ("loading", None)
    stage.gate.set()
    loaded = await loading
    assert loaded == engine.loaded == Loaded(CONFIG, "/outputs/li-simpo-1", "li", "cpu", 512)
    assert engine.state == "loaded"
    assert stage.events == ["read base", "use /outputs/li-simpo-1"]
    assert await _replies(engine) == ["/outputs/li-simpo-1 0.85 hi 7"]


async def test_a_load_during_a_load_is_refused(engine: Engine, stage: Stage) -> None:
    """While a model is being loaded, another load is refused, and the first goes on."""
    stage.close()
    loading = asyncio.create_task(engine.load(CONFIG, None))
    await stage.taken()
    with pytest.raises(ModelLoading):
        await engine.load(OTHER, None)
    stage.gate.set()
    assert (await loading).config == CONFIG


async def test_a_second_load_changes_the_settings_only(engine: Engine, stage: Stage) -> None:
    """With the same adapter no weights are read and none are moved: the model stays the same object."""
    await engine.load(CONFIG, "a")
    model, done = engine._model, list(stage.events)
    assert (await engine.load(OTHER, "a")).config == OTHER
    assert engine._model is model and stage.events == done
    assert await _replies(engine) == ["a 0.5 hi 7"]


async def test_another_adapter_is_put_on_the_same_weights(engine: Engine, stage: Stage) -> None:
    """A new adapter replaces the old one, and the base model is not read again."""
    await engine.load(CONFIG, "a")
    for adapter in ("b", None):
        await engine.load(CONFIG, adapter)
        assert await _replies(engine) == [f"{adapter or 'bare'} 0.85 hi 7"]
    assert [event for event in stage.events if "hi" not in event] == ["read base", "use a", "use b", "use None"]


async def test_unload_frees(engine: Engine, stage: Stage) -> None:
    """When unload answers, the model has been freed; the next load reads it anew."""
    await engine.load(CONFIG, None)
    await engine.unload()
    assert (engine.state, engine.loaded, engine._model) == ("unloaded", None, None)
    assert stage.events[-1] == "free"
    await engine.unload()
    assert stage.events.count("free") == 1
    await engine.load(CONFIG, None)
    assert stage.events.count("read base") == 2


async def test_unload_waits_for_the_end_of_a_load(engine: Engine, stage: Stage) -> None:
    """An unload during a load lets it end, and then frees what it has loaded."""
    stage.close()
    loading = asyncio.create_task(engine.load(CONFIG, None))
    await stage.taken()
    unloading = asyncio.create_task(engine.unload())
    await asyncio.sleep(0.01)
    assert not unloading.done()
    stage.gate.set()
    await asyncio.gather(loading, unloading)
    assert (engine.state, stage.events[-1]) == ("unloaded", "free")


async def test_a_load_during_an_unload_is_loading_all_the_time(engine: Engine, stage: Stage) -> None:
    """A load that comes while memory is being freed is "loading" from its first to its last moment."""
    await engine.load(CONFIG, None)
    stage.close()
    unloading = asyncio.create_task(engine.unload())
    await stage.taken()
    loading = asyncio.create_task(engine.load(OTHER, None))
    await asyncio.sleep(0)
    assert _state(engine) == "loading"
    stage.gate.set()
    states = set()
    while not loading.done():
        states.add(engine.state)
        await asyncio.sleep(0)
    await unloading
    assert states - {"loaded"} == {"loading"}
    assert await loading == engine.loaded and _state(engine) == "loaded"


@pytest.mark.parametrize("action", ["unload", "load", "load another"])
async def test_unload_and_load_cancel_generations(engine: Engine, stage: Stage, action: str) -> None:
    """A generation under way, and those that wait behind it, end with GenerationCancelled; the next one works."""
    await engine.load(CONFIG, "a")
    stage.close()
    generating = [asyncio.create_task(_generate(engine, f"message {number}")) for number in range(3)]
    await stage.taken()
    ending = engine.unload() if action == "unload" else engine.load(OTHER, "a" if action == "load" else "b")
    ended = asyncio.ensure_future(ending)
    await asyncio.sleep(0)
    stage.gate.set()
    results = await asyncio.gather(*generating, return_exceptions=True)
    assert [type(result) for result in results] == [GenerationCancelled] * 3
    await ended
    assert [event for event in stage.events if "message" in event] == ["generate message 0"]
    if action == "unload":
        await engine.load(OTHER, "b")
    assert (await _replies(engine))[0].endswith("0.5 hi 7")


async def test_a_generation_during_a_load_is_refused(engine: Engine, stage: Stage) -> None:
    """A generation asked for while an adapter is exchanged is refused, not filed under the wrong one."""
    await engine.load(CONFIG, "a")
    stage.close()
    loading = asyncio.create_task(engine.load(OTHER, "b"))
    await stage.taken()
    generating = asyncio.create_task(_generate(engine))
    await asyncio.sleep(0)
    stage.gate.set()
    await loading
    with pytest.raises(ModelLoading):
        await generating


async def test_everything_runs_in_one_thread(engine: Engine, stage: Stage) -> None:
    """Reading, adapting, generating and freeing happen in the engine's one thread, which is not the loop's."""
    await engine.load(CONFIG, "a")
    await asyncio.gather(*(_generate(engine, str(number)) for number in range(5)))
    await engine.unload()
    (thread,) = stage.threads
    assert thread.startswith("engine") and thread != threading.current_thread().name


async def test_a_fault_while_generating_is_told_and_survived(
    engine: Engine, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the thread reaches who waits, as EngineFailed; the log has the traceback; the next call works."""
    await engine.load(CONFIG, None)
    stage.fault = RuntimeError("no kernel")
    with pytest.raises(EngineFailed) as failed:
        await _generate(engine)
    assert str(failed.value) == "the engine failed: RuntimeError: no kernel"
    assert failed.value.detail == "推理引擎出错：RuntimeError: no kernel"
    assert "in write" in caplog.text and "no kernel" in caplog.text
    assert engine.state == "loaded"
    assert await _replies(engine) == ["bare 0.85 hi 7"]


@pytest.mark.parametrize("kind", [RuntimeError, GenerationCancelled])
async def test_a_fault_keeps_nothing_of_the_thread_alive(engine: Engine, stage: Stage, kind: type[Exception]) -> None:
    """While somebody still holds the error, the tensors of the frames in which it arose are gone."""
    await engine.load(CONFIG, None)
    stage.fault = kind()
    stage.things.clear()
    with pytest.raises((EngineFailed, GenerationCancelled)) as failed:
        await _generate(engine)
    gc.collect()
    assert failed.value is not None
    assert len(stage.things) == 1 and stage.things[0]() is None


async def test_an_error_of_ours_stays_what_it_is(engine: Engine, stage: Stage) -> None:
    """What the model itself refuses, such as a message that is too long, is not a failure of the engine."""
    await engine.load(CONFIG, None)
    stage.fault = InvalidInput({"message": ["太长"]})
    with pytest.raises(InvalidInput) as refused:
        await _generate(engine)
    assert refused.value.fields == {"message": ["太长"]}


async def test_a_load_that_fails_leaves_nothing_loaded(engine: Engine, stage: Stage) -> None:
    """After a failed load the state is "unloaded", nothing is held, and the next load works."""
    stage.fault = OSError("no such model")
    with pytest.raises(EngineFailed, match="OSError: no such model"):
        await engine.load(CONFIG, None)
    assert (engine.state, engine.loaded, engine._model) == ("unloaded", None, None)
    with pytest.raises(ModelNotLoaded):
        await _generate(engine)
    await engine.load(CONFIG, None)
    assert engine.state == "loaded"


async def test_an_adapter_that_fails_leaves_nothing_loaded(engine: Engine, stage: Stage) -> None:
    """When another adapter cannot be put on, the model is freed: a half-changed one is never generated with."""
    await engine.load(CONFIG, "a")
    stage.fault = ValueError("broken adapter")
    with pytest.raises(EngineFailed, match="broken adapter"):
        await engine.load(CONFIG, "b")
    assert (engine.state, engine.loaded, stage.events[-1]) == ("unloaded", None, "free")
    await engine.load(CONFIG, "a")
    assert await _replies(engine) == ["a 0.85 hi 7"]


async def test_a_load_whose_caller_leaves_is_taken_back(engine: Engine, stage: Stage) -> None:
    """A load that is cancelled ends as "unloaded", with nothing held, and the next one works."""
    stage.close()
    loading = asyncio.create_task(engine.load(CONFIG, None))
    await stage.taken()
    loading.cancel()
    await asyncio.sleep(0)
    stage.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert (engine.state, engine._model) == ("unloaded", None)
    await engine.load(CONFIG, None)


async def test_close_ends_the_thread(stage: Stage, settings: Settings) -> None:
    """After close the model is freed and the thread is gone; closing again is harmless."""
    engine = Engine(replace(settings, model="base"))
    await engine.load(CONFIG, None)
    (thread,) = [thread for thread in threading.enumerate() if thread.name in stage.threads]
    await engine.close()
    assert not thread.is_alive() and stage.events[-1] == "free"
    await engine.close()


async def test_the_base_model_can_be_asked_for_without_loading(engine: Engine, stage: Stage) -> None:
    """A run needs the base model's place, not its weights."""
    assert await engine.base_model() == "base"
    assert stage.events == [] and engine.state == "unloaded"
