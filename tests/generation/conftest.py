"""The tiny model in float32, where one seed means one text, alone or in company, by itself and in an engine."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from prefanno.generation import decoding, model, schedule
from prefanno.generation import engine as engines
from prefanno.generation.engine import Engine
from prefanno.settings import Settings
from tests.generation.staging import WAIT_S, Model, Stage, Written
from tests.generation.watching import CONFIG, Watched


@dataclass(frozen=True)
class Weights:
    """A model in memory, and its tokenizer."""

    model: Any
    tokenizer: Any


@pytest.fixture(scope="session")
def weights(tiny_model: Path) -> Weights:
    """The tiny model on the CPU; who changes it copies it."""
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    model: Any = AutoModelForCausalLM.from_pretrained(tiny_model, dtype=torch.float32)
    return Weights(model.eval(), AutoTokenizer.from_pretrained(tiny_model))


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[Stage]:
    """The stage on which the models of `staged` stand."""
    stage = Stage()
    monkeypatch.setattr(engines, "LocalModel", lambda base: Model(stage, base))
    monkeypatch.setattr(schedule, "Decoding", Written)
    monkeypatch.setattr(Written, "stage", stage, raising=False)
    yield stage
    stage.gate.set()


@pytest.fixture
async def staged(stage: Stage, settings: Settings) -> AsyncIterator[Engine]:
    """An engine for a model named `base`, that does what a test tells it to."""
    engine = Engine(replace(settings, model="base"))
    yield engine
    stage.gate.set()
    async with asyncio.timeout(WAIT_S):
        await engine.close()


@pytest.fixture
async def watched(monkeypatch: pytest.MonkeyPatch) -> type[Watched]:
    """What the batches of a test did."""
    monkeypatch.setattr(decoding, "Batch", Watched)
    monkeypatch.setattr(Watched, "loop", asyncio.get_running_loop(), raising=False)
    monkeypatch.setattr(Watched, "steps", [], raising=False)
    for name in ("faults", "meanwhile"):
        monkeypatch.setattr(Watched, name, {}, raising=False)
    return Watched


@pytest.fixture
async def engine(watched: type[Watched], settings: Settings, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Engine]:
    """An engine with the tiny model loaded, in float32, where company changes no text."""
    import torch

    del watched
    monkeypatch.setattr(model, "_dtype", lambda: torch.float32)
    engine = Engine(settings)
    await engine.load(CONFIG, None)
    yield engine
    await engine.close()
