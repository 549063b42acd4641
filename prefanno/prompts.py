"""The queue of prompts: what a person is to be asked next. Each function takes the session of one transaction.

    add ──▶ waiting ──(candidates written ahead of time)──▶ ready ──┐
               │  └──────────────(answered while one waits)─────────┴──take──▶ taken ──put_back──▶ ready or waiting
               └──(cannot be answered)──▶ failed ──put_back, or other settings──▶ waiting

Candidates that were written ahead are dropped when they are not what the model would write now.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import generations, prompts
from prefanno.db.models import Candidate, Generation, Prompt, now
from prefanno.db.prompts import Order
from prefanno.errors import EngineBroken, EngineFailed, InvalidInput, NoPrompts
from prefanno.prompting import Message

MOST = 100_000  # that wait for one character; a person who takes one every ten seconds is busy for a month

Key = tuple[object, ...]
IsCurrent = Callable[[Generation], bool]  # whether these candidates are what the model would write now


class Asked(NamedTuple):
    """A message after earlier turns."""

    message: str
    context: Sequence[Message] = ()


class Added(NamedTuple):
    """The ids of new prompts, and how many were in the queue already, or twice among the new ones."""

    ids: list[int]
    duplicates: int


class Taken(NamedTuple):
    """The next prompt, with its candidates where they were written ahead of time."""

    prompt: Prompt
    generation: Generation | None
    candidates: Sequence[Candidate]


async def add(session: AsyncSession, character: str, asked: Sequence[Asked]) -> Added:
    """Queue up what is not in the queue yet, in this order. Raises InvalidInput where the queue is full."""
    known = {_key(one) for one in await prompts.queued(session, character, {one.message for one in asked})}
    new: dict[Key, Asked] = {}
    for one in asked:
        if (key := _key(one)) not in known:
            new.setdefault(key, one)
    counts = await prompts.counts(session, character)
    if sum(counts.values()) - counts["taken"] + len(new) > MOST:
        text, english = f"每个角色的队列最多 {MOST} 条提示", f"a character's queue holds {MOST:,} prompts at most"
        raise InvalidInput({"prompts": [text]}, english=english)
    added = [
        Prompt(character=character, message=one.message, context=[dict(turn) for turn in one.context])
        for one in new.values()
    ]
    session.add_all(added)
    await session.flush()
    return Added([prompt.id for prompt in added], len(asked) - len(added))


async def take(session: AsyncSession, character: str, order: Order, is_current: IsCurrent) -> Taken:
    """Give the next prompt to a person: one that is ready, else one that waits. Raises NoPrompts."""
    while ready := await prompts.following(session, character, "ready", order):
        generation = await generations.get(session, ready[0].generation_id or 0)
        if is_current(generation):
            ready[0].state, ready[0].taken_at = "taken", now()
            return Taken(ready[0], generation, await generations.candidates(session, [generation.id]))
        await drop(session, character, is_current)
    waiting = await prompts.following(session, character, "waiting", order)
    if not waiting:
        raise NoPrompts
    waiting[0].state, waiting[0].taken_at = "taken", now()
    return Taken(waiting[0], None, [])


async def put_back(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Queue up taken and failed prompts again; return how many. Raises NotFound.

    What a person saw and did not decide on is shown again; after a choice there will be new candidates.
    """
    changed = [each for each in await prompts.of_ids(session, numbers) if each[0].state in ("taken", "failed")]
    for prompt, decided in changed:
        if decided or prompt.generation_id is None:
            prompt.state, prompt.reason, prompt.generation_id, prompt.disagreement = "waiting", None, None, None
        else:
            prompt.state = "ready"
    return len(changed)


async def give_up(session: AsyncSession, number: int, error: BaseException) -> None:
    """Queue up a prompt again that a person was to get; one that cannot be answered has failed. None is no error."""
    prompt = await session.get(Prompt, number)
    if prompt is None:
        return
    if isinstance(error, InvalidInput | EngineFailed) and not isinstance(error, EngineBroken):
        prompt.state, prompt.reason = "failed", error.detail
    else:
        prompt.state = "waiting" if prompt.generation_id is None else "ready"


async def remove(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Remove prompts, with the candidates that nobody has seen; return how many. Raises NotFound."""
    found = [prompt for prompt, _ in await prompts.of_ids(session, numbers)]
    unseen = [prompt.generation_id for prompt in found if prompt.state == "ready"]
    for prompt in found:
        await session.delete(prompt)
    await session.flush()
    await generations.remove(session, [number for number in unseen if number is not None])
    return len(found)


async def refresh(session: AsyncSession, character: str, is_current: IsCurrent) -> None:
    """With a model loaded: what was written for another is dropped, and what failed there may not fail here."""
    await drop(session, character, is_current)
    await prompts.forgive(session, character)


async def drop(session: AsyncSession, character: str, is_current: IsCurrent) -> int:
    """Drop what was written ahead and is not current; return for how many prompts."""
    stale = [pair for pair in await prompts.with_candidates(session, character) if not is_current(pair[1])]
    for prompt, _ in stale:
        prompt.state, prompt.generation_id, prompt.disagreement = "waiting", None, None
    await session.flush()
    await generations.remove(session, [generation.id for _, generation in stale])
    return len(stale)


def _key(prompt: Prompt | Asked) -> Key:
    return prompt.message, *((turn["role"], turn["content"]) for turn in prompt.context)
