"""What an engine does when its model fails, or its caller leaves; with a model that does what a test tells it to."""

import asyncio
import gc

import pytest

from prefanno.errors import EngineFailed, GenerationCancelled, InvalidInput, ModelNotLoaded
from prefanno.generation.engine import Engine
from tests.generation.staging import CONFIG, Stage, generate, replies

pytestmark = pytest.mark.sqlite_only  # no database is opened


async def test_a_fault_while_generating_is_told_and_survived(
    staged: Engine, stage: Stage, caplog: pytest.LogCaptureFixture
) -> None:
    """An exception in the thread reaches who waits, as EngineFailed; the log has the traceback; the next call works."""
    await staged.load(CONFIG, None)
    stage.fault = RuntimeError("no kernel")
    with pytest.raises(EngineFailed) as failed:
        await generate(staged)
    assert str(failed.value) == "the engine failed: RuntimeError: no kernel"
    assert failed.value.detail == "推理引擎出错：RuntimeError: no kernel"
    assert "in write" in caplog.text and "no kernel" in caplog.text
    assert staged.state == "loaded"
    assert await replies(staged) == ["bare 0.85 hi 7"]


@pytest.mark.parametrize("kind", [RuntimeError, GenerationCancelled])
async def test_a_fault_keeps_nothing_of_the_thread_alive(staged: Engine, stage: Stage, kind: type[Exception]) -> None:
    """While somebody still holds the error, the tensors of the frames in which it arose are gone."""
    await staged.load(CONFIG, None)
    stage.fault = kind()
    stage.things.clear()
    with pytest.raises((EngineFailed, GenerationCancelled)) as failed:
        await generate(staged)
    gc.collect()
    assert failed.value is not None
    assert len(stage.things) == 1 and stage.things[0]() is None


async def test_an_error_of_ours_stays_what_it_is(staged: Engine, stage: Stage) -> None:
    """What the model itself refuses, such as a message that is too long, is not a failure of the engine."""
    await staged.load(CONFIG, None)
    stage.fault = InvalidInput({"message": ["太长"]})
    with pytest.raises(InvalidInput) as refused:
        await generate(staged)
    assert refused.value.fields == {"message": ["太长"]}


async def test_a_load_that_fails_leaves_nothing_loaded(staged: Engine, stage: Stage) -> None:
    """After a failed load the state is "unloaded", nothing is held, and the next load works."""
    stage.fault = OSError("no such model")
    with pytest.raises(EngineFailed, match="OSError: no such model"):
        await staged.load(CONFIG, None)
    assert (staged.state, staged.loaded, staged._model) == ("unloaded", None, None)
    with pytest.raises(ModelNotLoaded):
        await generate(staged)
    await staged.load(CONFIG, None)
    assert staged.state == "loaded"


async def test_an_adapter_that_fails_leaves_nothing_loaded(staged: Engine, stage: Stage) -> None:
    """When another adapter cannot be put on, the model is freed: a half-changed one is never generated with."""
    await staged.load(CONFIG, "a")
    stage.fault = ValueError("broken adapter")
    with pytest.raises(EngineFailed, match="broken adapter"):
        await staged.load(CONFIG, "b")
    assert (staged.state, staged.loaded, stage.events[-1]) == ("unloaded", None, "free")
    await staged.load(CONFIG, "a")
    assert await replies(staged) == ["a 0.85 hi 7"]


async def test_a_load_whose_caller_leaves_is_taken_back(staged: Engine, stage: Stage) -> None:
    """A load that is cancelled ends as "unloaded", with nothing held, and the next one works."""
    stage.close()
    loading = asyncio.create_task(staged.load(CONFIG, None))
    await stage.taken()
    loading.cancel()
    await asyncio.sleep(0)
    stage.gate.set()
    with pytest.raises(asyncio.CancelledError):
        await loading
    assert (staged.state, staged._model) == ("unloaded", None)
    await staged.load(CONFIG, None)
