"""What needs two stations, with a real database."""

import dataclasses
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prefanno import persona
from prefanno.db.models import Candidate, Character, Generation
from prefanno.errors import EngineFailed
from prefanno.generation.config import SEEDS, GenerationConfig, Reply
from prefanno.loop import Loop
from prefanno.prompting import Message
from prefanno.recording import Answered
from tests.annotation.test_dataset import SINGLE, add, rows
from tests.looping import CONFIG, OPTIONS, Voice, everything, put_adapter

LI = Character(slug="li", name="离")
CONTEXT: list[Message] = [{"role": "assistant", "content": "欢迎~"}]


async def test_the_persona_is_the_loaded_one_else_the_default(loop: Loop, voice: Voice) -> None:
    """The persona in force is that of the loaded model; without one it is the operator's or the default."""
    assert loop.persona(LI) == persona.CHINESE
    await loop.load(OPTIONS)
    assert loop.persona(LI) == "You are Mia."
    await voice.unload()
    loop.settings = replace(loop.settings, system_prompt="Be brief.")
    assert loop.persona(LI) == "Be brief."


async def test_a_load_takes_the_newest_adapter_of_this_base(loop: Loop) -> None:
    """Of the adapters in outputs/ the newest one that was trained on this base model is loaded, with its full path."""
    assert (await loop.load(OPTIONS)).adapter is None
    expected = put_adapter(loop.settings, "li-simpo-2", "base")
    put_adapter(loop.settings, "li-sft-1", "base")
    put_adapter(loop.settings, "li-simpo-3", "another base")
    (loop.settings.outputs / "li-simpo-4").mkdir()  # half-written
    assert (await loop.load(OPTIONS)).adapter == expected
    assert Path(expected).is_absolute()


async def _ask(loop: Loop, message: str = "hello", context: Sequence[Message] = (), seed: int | None = 7) -> Answered:
    *_, answered = [event async for event in loop.generate(message, list(context), seed)]
    assert isinstance(answered, Answered)
    return answered


async def test_a_generation_is_stored_with_all_it_was_made_with(loop: Loop) -> None:
    """Message, context, settings, base model, adapter and seed are stored, and every candidate in its place."""
    put_adapter(loop.settings, "li-simpo-2", "base")
    await loop.load(OPTIONS)
    answered = await _ask(loop, "你是谁？", CONTEXT)
    generation_id, seed = answered.generation.id, answered.generation.seed
    assert (seed, len(answered.replies)) == (7, 2)
    (stored,) = await everything(loop.database, Generation)
    assert (stored.id, stored.message, stored.context, stored.seed) == (generation_id, "你是谁？", CONTEXT, 7)
    assert (stored.base_model, stored.adapter, stored.character) == ("base", "li-simpo-2", "li")
    assert GenerationConfig(**stored.settings) == CONFIG
    fields = [each.name for each in dataclasses.fields(Reply)]
    candidates = [
        [getattr(row, name) for name in ("generation_id", "ordinal", *fields)]
        for row in await everything(loop.database, Candidate)
    ]
    assert candidates == [
        [generation_id, 1, "hm", "你是谁？ 7", "stop", 5, 2**62, -1.5],
        [generation_id, 2, None, "……", "length", 64, 1, None],
    ]


async def test_the_thinking_of_a_choice_is_found_among_what_was_generated(loop: Loop) -> None:
    """An annotation that chooses a candidate by its text gets the thinking of that candidate."""
    await loop.load(OPTIONS)
    await _ask(loop)
    await add(loop.database, replace(SINGLE, chosen="hello 7"))
    (row,) = await rows(loop.database)
    assert row.chosen_thinking == "hm"


async def test_without_a_seed_each_generation_has_its_own(loop: Loop) -> None:
    """Seeds are drawn from the whole range, stored and told; 0 is a seed like any other."""
    await loop.load(OPTIONS)
    seeds = [(await _ask(loop, seed=None)).generation.seed for _ in range(5)]
    assert len(set(seeds)) > 1 and all(0 <= seed < SEEDS for seed in seeds)
    assert (await _ask(loop, seed=0)).generation.seed == 0
    assert [row.seed for row in await everything(loop.database, Generation)] == [*seeds, 0]


async def test_a_generation_that_fails_is_not_stored(loop: Loop, voice: Voice) -> None:
    """What the engine raises reaches the caller, and the database stays as it was."""
    await loop.load(OPTIONS)
    voice.fault = EngineFailed("no")
    with pytest.raises(EngineFailed):
        await _ask(loop)
    assert await everything(loop.database, Generation) == []
