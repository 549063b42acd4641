"""How far a load is, and that the event loop is free all the while."""

import asyncio
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest

from prefanno.generation.engine import Engine
from prefanno.generation.model import LocalModel
from prefanno.generation.progress import BAR, PHASES, Phase, Progress
from prefanno.settings import Settings
from tests.generation.watching import CONFIG, Watched, ask

pytestmark = pytest.mark.sqlite_only  # no database is opened


def test_weights_are_counted_as_transformers_reads_them() -> None:
    """Its bar for weights says how many of them there are; other bars, and bars afterwards, are its own."""
    from transformers.utils import logging

    progress, seen = Progress(), list[float | None]()
    with progress.counted():
        for _ in logging.tqdm({"a": 1, "b": 2, "c": 3, "d": 4}.items(), desc=BAR):
            seen.append(progress.fraction)
        seen.append(progress.fraction)
        assert list(logging.tqdm([1, 2], desc="Something else")) == [1, 2]
    assert seen == [0.0, 0.25, 0.5, 0.75, 1.0]
    progress.begin("adapter")
    assert list(logging.tqdm([1, 2], desc=BAR)) == [1, 2] and progress.fraction is None


def test_transformers_has_its_bar_back_after_a_failure() -> None:
    """A load that fails in the middle leaves no hook behind."""
    from transformers.utils import logging

    with pytest.raises(OSError, match="no weights"), Progress().counted():
        raise OSError("no weights")
    assert logging.set_tqdm_hook(None) is None


def test_a_real_model_is_counted(tiny_model: Path) -> None:
    """The bar that transformers has for weights is the one that is looked for: at the end all were read."""
    progress = Progress()
    with progress.counted():
        LocalModel(str(tiny_model))
    assert progress.fraction == 1.0


async def test_a_load_shows_its_phases(settings: Settings) -> None:
    """The loop sees them while the weights are read, in order; afterwards there is none."""
    engine = Engine(settings)
    loading = asyncio.create_task(engine.load(CONFIG, None))
    phases: list[Phase] = []
    while not loading.done():
        await asyncio.sleep(0)
        if engine.progress is not None:
            phases.append(engine.progress.phase)
    await loading
    await engine.close()
    assert phases == sorted(phases, key=PHASES.index) and "reading weights" in phases
    assert engine.progress is None


async def test_a_load_that_fails_shows_no_progress(settings: Settings) -> None:
    """Nothing is under way any more."""
    engine = Engine(replace(settings, model=str(settings.home / "nothing")))
    with pytest.raises(Exception, match="the engine failed"):
        await engine.load(CONFIG, None)
    await engine.close()
    assert engine.progress is None


async def test_the_event_loop_goes_round_while_something_is_written(engine: Engine, watched: type[Watched]) -> None:
    """Whoever asks for anything else is served between two steps, or a few."""
    job = ask(engine, max_new_tokens=400, num_responses=10)
    at: list[int] = []  # the number of the step, at each turn of the loop
    while not job.is_over:
        at.append(len(watched.steps))
        await asyncio.sleep(0)
    assert len(watched.steps) > 300
    assert max(after - before for before, after in pairwise(at)) < 100
