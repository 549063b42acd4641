"""The engine's states and its one thread, with a model that does what a test tells it to."""

import asyncio
import threading
from dataclasses import replace

import pytest

from prefanno.errors import GenerationCancelled, ModelLoading, ModelNotLoaded
from prefanno.generation.engine import Engine, Loaded
from prefanno.settings import Settings
from tests.generation.staging import CONFIG, OTHER, WAIT_S, Stage, generate, replies, state

pytestmark = pytest.mark.sqlite_only  # no database is opened


async def test_at_first_nothing_is_loaded(staged: Engine, stage: Stage) -> None:
    """Before a load there is no model to generate with, and unloading is harmless."""
    assert (staged.state, staged.loaded) == ("unloaded", None)
    with pytest.raises(ModelNotLoaded):
        await generate(staged)
    await staged.unload()
    assert stage.events == []


async def test_loading_leads_to_loaded(staged: Engine, stage: Stage) -> None:
    """A load is "loading" until the weights and the adapter are there, then "loaded"."""
    stage.close()
    loading = asyncio.create_task(staged.load(CONFIG, "/outputs/li-simpo-1"))
    await stage.taken()
    assert (staged.state, staged.loaded) == ("loading", None)
    stage.gate.set()
    loaded = await loading
    assert loaded == staged.loaded == Loaded(CONFIG, "/outputs/li-simpo-1", "li", "cpu", 512)
    assert staged.state == "loaded"
    assert stage.events == ["read base", "use /outputs/li-simpo-1"]
    assert await replies(staged) == ["/outputs/li-simpo-1 0.85 hi 7"]


async def test_a_load_during_a_load_is_refused(staged: Engine, stage: Stage) -> None:
    """While a model is being loaded, another load is refused, and the first goes on."""
    stage.close()
    loading = asyncio.create_task(staged.load(CONFIG, None))
    await stage.taken()
    with pytest.raises(ModelLoading):
        await staged.load(OTHER, None)
    stage.gate.set()
    assert (await loading).config == CONFIG


async def test_a_second_load_changes_the_settings_only(staged: Engine, stage: Stage) -> None:
    """With the same adapter no weights are read and none are moved: the model stays the same object."""
    await staged.load(CONFIG, "a")
    model, done = staged._model, list(stage.events)
    assert (await staged.load(OTHER, "a")).config == OTHER
    assert staged._model is model and stage.events == done
    assert await replies(staged) == ["a 0.5 hi 7"]


async def test_another_adapter_is_put_on_the_same_weights(staged: Engine, stage: Stage) -> None:
    """A new adapter replaces the old one, and the base model is not read again."""
    await staged.load(CONFIG, "a")
    for adapter in ("b", None):
        await staged.load(CONFIG, adapter)
        assert await replies(staged) == [f"{adapter or 'bare'} 0.85 hi 7"]
    assert [event for event in stage.events if "hi" not in event] == ["read base", "use a", "use b", "use None"]


async def test_unload_frees(staged: Engine, stage: Stage) -> None:
    """When unload answers, the model has been freed; the next load reads it anew."""
    await staged.load(CONFIG, None)
    await staged.unload()
    assert (staged.state, staged.loaded, staged._model) == ("unloaded", None, None)
    assert stage.events[-1] == "free"
    await staged.unload()
    assert stage.events.count("free") == 1
    await staged.load(CONFIG, None)
    assert stage.events.count("read base") == 2


async def test_unload_waits_for_the_end_of_a_load(staged: Engine, stage: Stage) -> None:
    """An unload during a load lets it end, and then frees what it has loaded."""
    stage.close()
    loading = asyncio.create_task(staged.load(CONFIG, None))
    await stage.taken()
    unloading = asyncio.create_task(staged.unload())
    await asyncio.sleep(0.01)
    assert not unloading.done()
    stage.gate.set()
    await asyncio.gather(loading, unloading)
    assert (staged.state, stage.events[-1]) == ("unloaded", "free")


async def test_a_load_during_an_unload_is_loading_all_the_time(staged: Engine, stage: Stage) -> None:
    """A load that comes while memory is being freed is "loading" from its first to its last moment."""
    await staged.load(CONFIG, None)
    stage.close()
    unloading = asyncio.create_task(staged.unload())
    await stage.taken()
    loading = asyncio.create_task(staged.load(OTHER, None))
    await asyncio.sleep(0)
    assert state(staged) == "loading"
    stage.gate.set()
    states = set()
    while not loading.done():
        states.add(staged.state)
        await asyncio.sleep(0)
    await unloading
    assert states - {"loaded"} == {"loading"}
    assert await loading == staged.loaded and state(staged) == "loaded"


@pytest.mark.parametrize("action", ["unload", "load", "load another"])
async def test_unload_and_load_cancel_generations(staged: Engine, stage: Stage, action: str) -> None:
    """A generation under way, and those that wait behind it, end with GenerationCancelled; the next one works."""
    await staged.load(CONFIG, "a")
    stage.close()
    generating = [asyncio.create_task(generate(staged, f"message {number}")) for number in range(3)]
    await stage.taken()
    ending = staged.unload() if action == "unload" else staged.load(OTHER, "a" if action == "load" else "b")
    ended = asyncio.ensure_future(ending)
    await asyncio.sleep(0)
    stage.gate.set()
    results = await asyncio.gather(*generating, return_exceptions=True)
    assert [type(result) for result in results] == [GenerationCancelled] * 3
    await ended
    assert [event for event in stage.events if "message" in event] == ["generate message 0"]
    if action == "unload":
        await staged.load(OTHER, "b")
    assert (await replies(staged))[0].endswith("0.5 hi 7")


async def test_what_is_asked_for_while_an_unload_waits_is_cancelled(staged: Engine, stage: Stage) -> None:
    """An unload lets the step under way end; a request that comes meanwhile ends, too, and the engine is idle."""
    await staged.load(CONFIG, "a")
    stage.close()
    first = asyncio.create_task(generate(staged, "first"))
    await stage.taken()
    unloading = asyncio.create_task(staged.unload())
    await asyncio.sleep(0)
    late = asyncio.create_task(generate(staged, "late"))
    await asyncio.sleep(0)
    stage.gate.set()
    async with asyncio.timeout(WAIT_S):
        await unloading
        results = await asyncio.gather(first, late, return_exceptions=True)
        while not staged.is_idle:  # noqa: ASYNC110 - it has no event
            await asyncio.sleep(0)
    assert [type(result) for result in results] == [GenerationCancelled] * 2


async def test_a_generation_during_a_load_is_refused(staged: Engine, stage: Stage) -> None:
    """A generation asked for while an adapter is exchanged is refused, not filed under the wrong one."""
    await staged.load(CONFIG, "a")
    stage.close()
    loading = asyncio.create_task(staged.load(OTHER, "b"))
    await stage.taken()
    generating = asyncio.create_task(generate(staged))
    await asyncio.sleep(0)
    stage.gate.set()
    await loading
    with pytest.raises(ModelLoading):
        await generating


async def test_everything_runs_in_one_thread(staged: Engine, stage: Stage) -> None:
    """Reading, adapting, generating and freeing happen in the engine's one thread, which is not the loop's."""
    await staged.load(CONFIG, "a")
    await asyncio.gather(*(generate(staged, str(number)) for number in range(5)))
    await staged.unload()
    (thread,) = stage.threads
    assert thread.startswith("engine") and thread != threading.current_thread().name


async def test_close_ends_the_thread(stage: Stage, settings: Settings) -> None:
    """After close the model is freed and the thread is gone; closing again is harmless."""
    engine = Engine(replace(settings, model="base"))
    await engine.load(CONFIG, None)
    (thread,) = [thread for thread in threading.enumerate() if thread.name in stage.threads]
    await engine.close()
    assert not thread.is_alive() and stage.events[-1] == "free"
    await engine.close()


async def test_the_base_model_can_be_asked_for_without_loading(staged: Engine, stage: Stage) -> None:
    """A run needs the base model's place, not its weights."""
    assert await staged.base_model() == "base"
    assert stage.events == [] and staged.state == "unloaded"
