"""The queue of prompts, on each database."""

from collections.abc import Sequence
from functools import partial
from typing import Any

import pytest
from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import prompts
from prefanno.annotation import dataset, erasing
from prefanno.db import characters, generations
from prefanno.db import prompts as queue
from prefanno.db.engine import Database
from prefanno.db.models import Annotation, Candidate, Generation, Prompt
from prefanno.db.prompts import Order
from prefanno.errors import EngineBroken, GenerationCancelled, InvalidInput, NoPrompts, NotFound, OutOfMemory
from prefanno.prompts import NewPrompt

SETTINGS = {"mode": "single", "system_prompt": "You are Li."}
ABOUT: dict[str, Any] = {"reasons": [], "note": None, "annotator": None}
CONTEXT: list[Any] = [{"role": "assistant", "content": "欢迎~"}]


def current(_generation: Generation) -> bool:
    """Whatever was written ahead is what the model would write now."""
    return True


def stale(_generation: Generation) -> bool:
    """Nothing of it is."""
    return False


async def _add(database: Database, *messages: str, character: str = "li") -> list[int]:
    added = await database.write(lambda session: prompts.add(session, character, [NewPrompt(one) for one in messages]))
    return added.ids


async def _take(database: Database, order: Order = "given", is_current: prompts.IsCurrent = current) -> str:
    """The message of the next prompt."""
    taken = await database.write(lambda session: prompts.take(session, "li", order, is_current))
    return taken.prompt.message


async def _answer(database: Database, number: int, disagreement: float | None = None) -> int:
    """Make the prompt ready; return its generation."""

    async def work(session: AsyncSession) -> int:
        prompt = await session.get_one(Prompt, number)
        generation = Generation(
            character="li",
            message=prompt.message,
            context=[],
            settings=SETTINGS,
            base_model="base",
            adapter=None,
            seed=1,
        )
        session.add(generation)
        await session.flush()
        reply = {"thinking": f"thought of {number}", "content": f"reply to {number}", "finish_reason": "stop"}
        session.add(Candidate(generation_id=generation.id, ordinal=1, tokens=3, **reply))
        prompt.state, prompt.generation_id, prompt.disagreement = "ready", generation.id, disagreement
        return generation.id

    return await database.write(work)


async def _states(database: Database) -> list[str]:
    async with database.read() as session:
        return list(await session.scalars(select(Prompt.state).order_by(Prompt.id)))


async def _generations(database: Database) -> list[int]:
    async with database.read() as session:
        return list(await session.scalars(select(Generation.id).order_by(Generation.id)))


async def _choose(database: Database, generation: int) -> None:
    choice = Annotation(
        character="li",
        mode="single",
        system_prompt="",
        context=[],
        human_input="?",
        verdict="skip",
        replies=[],
        generation_id=generation,
    )

    async def work(session: AsyncSession) -> None:
        session.add(choice)

    await database.write(work)


async def test_prompts_come_in_the_order_given(database: Database) -> None:
    """First in, first out; then there are none."""
    await _add(database, "one", "two")
    await _add(database, "three")
    assert [await _take(database) for _ in range(3)] == ["one", "two", "three"]
    with pytest.raises(NoPrompts, match="no prompt of li"):
        await _take(database)


async def test_a_prompt_is_queued_once(database: Database) -> None:
    """The same message after the same turns is a duplicate; after other turns, or once taken, it is not."""

    async def add(*asked: NewPrompt) -> tuple[int, int]:
        ids, duplicates = await database.write(lambda session: prompts.add(session, "li", asked))
        return len(ids), duplicates

    assert await add(NewPrompt("one"), NewPrompt("two"), NewPrompt("one")) == (2, 1)
    assert await add(NewPrompt("two"), NewPrompt("two", CONTEXT)) == (1, 1)
    assert await _take(database) == "one"
    assert await add(NewPrompt("one")) == (1, 0)


async def test_the_first_of_two_equal_prompts_keeps_its_place(database: Database) -> None:
    """A duplicate changes nothing in the order."""
    await _add(database, "one", "two", "one", "three")
    assert [await _take(database) for _ in range(3)] == ["one", "two", "three"]


async def test_the_queue_is_bounded(database: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    """More than `MOST` are refused, all of them; what was taken does not count."""
    monkeypatch.setattr(prompts, "MOST", 2)
    with pytest.raises(InvalidInput):
        await _add(database, "one", "two", "three")
    assert await _states(database) == []
    await _add(database, "one", "two")
    await _take(database)
    await _add(database, "three")
    assert await _states(database) == ["taken", "waiting", "waiting"]


async def test_ready_prompts_come_first(database: Database) -> None:
    """Nobody waits while there is a prompt that needs no waiting."""
    _, two, _ = await _add(database, "one", "two", "three")
    await _answer(database, two)
    assert [await _take(database) for _ in range(3)] == ["two", "one", "three"]


async def test_a_taken_prompt_brings_its_candidates(database: Database) -> None:
    """The generation that was stored for it, with its candidates."""
    (one,) = await _add(database, "one")
    generation = await _answer(database, one)
    taken = await database.write(lambda session: prompts.take(session, "li", "given", current))
    assert taken.generation is not None
    assert taken.generation.id == generation
    assert [candidate.content for candidate in taken.candidates] == [f"reply to {one}"]


async def test_the_most_useful_come_first(database: Database) -> None:
    """Largest disagreement first, unknown ones last, equal ones as given."""
    ids = await _add(database, *"abcde")
    for number, disagreement in zip(ids, (0.1, None, 0.5, 0.3, 0.3), strict=True):
        await _answer(database, number, disagreement)
    assert [await _take(database, "useful") for _ in ids] == ["c", "d", "e", "a", "b"]


async def test_the_random_order_is_drawn_once(database: Database) -> None:
    """All prompts come, not as given, and what is next is what was said to be next."""
    messages = [f"m{number}" for number in range(30)]
    await _add(database, *messages)
    async with database.read() as session:
        expected = [one.message for one in await queue.following(session, "li", "waiting", "random", 30)]
    assert [await _take(database, "random") for _ in messages] == expected
    assert expected != messages
    assert sorted(expected) == sorted(messages)


async def test_of_other_characters_nothing_comes(database: Database) -> None:
    """A character has a queue of its own."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    await _add(database, "hers", character="mia")
    with pytest.raises(NoPrompts):
        await _take(database)


async def test_stale_candidates_are_dropped(database: Database) -> None:
    """What the model would not write now is removed, and the prompts wait again, in their order."""
    ids = await _add(database, "one", "two", "three")
    old, kept = await _answer(database, ids[0]), await _answer(database, ids[1])

    def is_current(generation: Generation) -> bool:
        return generation.id == kept

    await database.write(lambda session: prompts.drop(session, "li", is_current))
    assert await _states(database) == ["waiting", "ready", "waiting"]
    assert old not in await _generations(database)
    assert await _generations(database) == [kept]


async def test_a_stale_prompt_is_not_given(database: Database) -> None:
    """Only what is current is given, wherever it stands among what is ready; else one that waits, else none."""
    messages = [str(number) for number in range(prompts.PART + 2)]
    generated = [await _answer(database, number) for number in await _add(database, *messages)]
    await _add(database, "waits")
    last = generated[-1]
    assert await _take(database, is_current=lambda generation: generation.id == last) == messages[-1]
    assert await _take(database, is_current=stale) == "waits"
    taken = await database.write(lambda session: prompts.take(session, "li", "given", stale))
    assert (taken.prompt.message, taken.generation, taken.prompt.generation_id) == ("0", None, None)
    assert generated[0] not in await _generations(database)


async def test_many_stale_candidates_are_dropped_in_parts(database: Database) -> None:
    """Whatever is current among them stays, and all others go."""
    numbers = await _add(database, *(str(number) for number in range(2 * prompts.PART + 7)))
    kept = {await _answer(database, number) for number in numbers if number % 3 == 0}
    for number in numbers:
        if number % 3:
            await _answer(database, number)
    await prompts.refresh(database, "li", lambda generation: generation.id in kept)
    assert set(await _generations(database)) == kept
    assert (await _states(database)).count("ready") == len(kept)


async def test_what_people_saw_is_not_dropped(database: Database) -> None:
    """A prompt that was put back may still be on a screen: its candidates stay, for a late choice."""
    one, two = await _add(database, "one", "two")
    seen = await _answer(database, one)
    await _take(database)
    await database.write(lambda session: prompts.put_back(session, [one]))
    await _answer(database, two)
    await database.write(lambda session: prompts.drop(session, "li", stale))
    assert await _states(database) == ["waiting", "waiting"]
    assert await _generations(database) == [seen]
    again = await _answer(database, one)
    await database.write(lambda session: prompts.put_back(session, [one]))
    await database.write(lambda session: prompts.remove(session, [one, two]))
    assert await _generations(database) == [seen, again]


async def test_a_choice_at_a_prompt_that_was_put_back_takes_it(database: Database) -> None:
    """Nobody else gets candidates that are decided on."""
    (one,) = await _add(database, "one")
    generation = await _answer(database, one)
    await _take(database)
    await database.write(lambda session: prompts.put_back(session, [one]))
    await database.write(lambda session: dataset.choose(session, generation, "skip", **ABOUT))
    assert await _states(database) == ["taken"]


async def test_what_is_being_answered_stays_whose_it_is(database: Database) -> None:
    """Putting back passes over it; so nobody else gets it meanwhile."""
    one, two = await _add(database, "one", "two")
    await _take(database)
    await _take(database)
    assert await database.write(lambda session: prompts.put_back(session, [one, two], {one})) == 1
    assert await _states(database) == ["taken", "waiting"]


async def test_after_a_kill_what_was_being_answered_waits_again(database: Database) -> None:
    """A prompt that was taken and never answered is given again; one that was answered is not."""
    one, _ = await _add(database, "one", "two")
    await _answer(database, one)
    await _take(database)
    await _take(database)
    await database.write(queue.recover)
    assert await _states(database) == ["taken", "waiting"]


async def test_what_nobody_has_seen_is_no_conversation(database: Database) -> None:
    """A generation in multi mode is listed once a person has it."""
    (one,) = await _add(database, "one")
    generation = await _answer(database, one)

    async def begin(session: AsyncSession) -> None:
        (await session.get_one(Generation, generation)).conversation_id = generation

    async def listed() -> list[int]:
        async with database.read() as session:
            return [turn.id for turn, _ in await generations.conversations(session, "li", None, 10)]

    await database.write(begin)
    assert await listed() == []
    await _take(database)
    assert await listed() == [generation]


async def test_what_was_not_decided_on_can_be_put_back(database: Database) -> None:
    """With the candidates that were seen; a decided one waits for new ones; what waits anyway is not touched."""
    one, two, three, four = await _add(database, "one", "two", "three", "four")
    first, second = await _answer(database, one), await _answer(database, two)
    for _ in range(3):
        await _take(database)
    await _choose(database, second)
    async with database.read() as session:
        assert await queue.undecided(session, "li") == [one, three]
    assert await database.write(lambda session: prompts.put_back(session, [one, two, three, four])) == 3
    assert await _states(database) == ["ready", "waiting", "waiting", "waiting"]
    assert await _generations(database) == [first, second]
    assert await _take(database) == "one"


async def test_a_missing_prompt_is_named(database: Database) -> None:
    """Nothing is put back or removed where one of them is not there."""
    (one,) = await _add(database, "one")
    await _take(database)
    for work in (prompts.put_back, prompts.remove):
        with pytest.raises(NotFound, match=f"no prompt {one + 1}"):
            await database.write(partial(work, numbers=[one, one + 1]))
    assert await _states(database) == ["taken"]


async def test_removing_takes_along_what_nobody_saw(database: Database) -> None:
    """The candidates of a ready prompt go with it; those of a taken one stay."""
    one, two, three = await _add(database, "one", "two", "three")
    seen = await _answer(database, one)
    await _answer(database, two)
    await _take(database)
    assert await database.write(lambda session: prompts.remove(session, [one, two, three])) == 3
    assert await _states(database) == []
    assert await _generations(database) == [seen]


@pytest.mark.parametrize(
    ("error", "state"),
    [
        (GenerationCancelled(), "waiting"),
        (GeneratorExit(), "waiting"),
        (EngineBroken("CUDA error"), "waiting"),
        (OutOfMemory(), "waiting"),
        (InvalidInput({"message": ["太长"]}), "failed"),
    ],
)
async def test_a_prompt_that_was_not_answered_is_not_lost(database: Database, error: BaseException, state: str) -> None:
    """It waits again, or says why it cannot be answered; with other settings it may."""
    (one,) = await _add(database, "one")
    await _take(database)
    await database.write(lambda session: prompts.give_up(session, one, error))
    assert await _states(database) == [state]
    async with database.read() as session:
        ((prompt, _),) = await queue.page(session, "li", None, 0, 10)
    assert prompt.reason == (getattr(error, "detail", None) if state == "failed" else None)
    await prompts.refresh(database, "li", current)
    assert await _states(database) == ["waiting"]


@pytest.mark.parametrize("again", [False, True])
async def test_what_is_erased_is_not_left_in_the_queue(database: Database, again: bool) -> None:
    """Neither the prompt that was decided on, nor the same one when it was put back, or queued up once more."""
    one, _ = await _add(database, "a secret", "another")
    generation = await _answer(database, one)
    await _take(database)
    chosen, _ = await database.write(lambda session: dataset.choose(session, generation, "skip", **ABOUT))
    if again:
        await database.write(lambda session: prompts.put_back(session, [one]))
        await _take(database)
        await _add(database, "a secret")
    await database.write(lambda session: erasing.erase(session, [chosen.id]))
    async with database.read() as session:
        assert list(await session.scalars(select(Prompt.message))) == ["another"]


async def test_a_taken_prompt_is_recent_whatever_was_written_since(database: Database) -> None:
    """A thought is found among the prompts taken last, also where many generations came later."""
    (one, *others) = await _add(database, *(str(number) for number in range(250)))
    await _answer(database, one)
    await _take(database)
    for number in others[:205]:
        await _answer(database, number)
    assert await _thought(database, f"reply to {one}") == f"thought of {one}"
    assert await _thought(database, f"reply to {others[0]}") is None  # control: old, and not taken
    assert await _thought(database, f"reply to {others[204]}") is not None


async def _thought(database: Database, content: str) -> str | None:
    async with database.read() as session:
        return (await generations.thinking_of(session, "li", {content})).get(content)


async def test_pages_go_on_where_the_last_one_ended(database: Database) -> None:
    """In the order given, each prompt once, with the state asked for."""
    ids = await _add(database, "one", "two", "three")
    await _answer(database, ids[1])

    async def page(state: Any, after: int, limit: int) -> Sequence[int]:
        async with database.read() as session:
            return [prompt.id for prompt, _ in await queue.page(session, "li", state, after, limit)]

    assert await page(None, 0, 2) == ids[:2]
    assert await page(None, ids[1], 2) == ids[2:]
    assert await page("waiting", 0, 10) == [ids[0], ids[2]]
