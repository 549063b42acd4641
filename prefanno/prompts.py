"""The queue of prompts: what a person is to be asked next. All but `refresh` take the session of one transaction.

    add ──▶ waiting ──(candidates written ahead of time)──▶ ready ──┐
               │  └──────────────(answered while one waits)─────────┴──take──▶ taken ──put_back──▶ ready or waiting
               └──(cannot be answered)──▶ failed ──put_back, or other settings──▶ waiting

Candidates that were written ahead are given only while they are what the model would write, and dropped at a load.
"""

from collections.abc import Callable, Collection, Sequence
from functools import partial
from itertools import count
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import generations
from prefanno.db import prompts as queue
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Generation, Prompt, now
from prefanno.db.prompts import Order
from prefanno.errors import InvalidInput, NoPrompts
from prefanno.prompting import Message

PART = 50  # ready prompts that are looked at together; the first is nearly always current
MOST = 100_000  # that wait for one character; a person who takes one every ten seconds is busy for a month

IsCurrent = Callable[[Generation], bool]  # whether these candidates are what the model would write now


class NewPrompt(NamedTuple):
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


async def add(session: AsyncSession, character: str, new: Sequence[NewPrompt]) -> Added:
    """Queue up what is not in the queue yet, in this order. Raises InvalidInput where the queue is full."""
    by_digest: dict[str, NewPrompt] = {}
    for one in new:
        by_digest.setdefault(queue.digest(one.message, one.context), one)
    for known in await queue.queued(session, character, list(by_digest)):
        del by_digest[known]
    counts = await queue.counts(session, character)
    if sum(counts.values()) - counts["taken"] + len(by_digest) > MOST:
        text, english = f"每个角色的队列最多 {MOST} 条提示", f"a character's queue holds {MOST:,} prompts at most"
        raise InvalidInput({"prompts": [text]}, english=english)
    added = [
        Prompt(character=character, message=one.message, context=[dict(turn) for turn in one.context], digest=digest)
        for digest, one in by_digest.items()
    ]
    session.add_all(added)
    await session.flush()
    return Added([prompt.id for prompt in added], len(new) - len(added))


async def take(session: AsyncSession, character: str, order: Order, is_current: IsCurrent) -> Taken:
    """Give the next prompt to a person: one that is ready, with current candidates, else one that waits.

    One whose candidates are not current waits, too, behind the others. Raises NoPrompts.
    """
    stale: list[tuple[Prompt, Generation]] = []
    for start in count(0, PART):
        part = await queue.ready(session, character, order, start, PART)
        for prompt, generation in part:
            if is_current(generation):
                return Taken(_given(prompt), generation, await generations.candidates(session, [generation.id]))
        stale = stale or list(part[:1])
        if len(part) < PART:
            break
    waiting = [*await queue.following(session, character, "waiting", order), *(prompt for prompt, _ in stale)]
    if not waiting:
        raise NoPrompts(
            f"no prompt of {character} is in the queue; add some (POST /api/prompts or prefanno prompts import)",
            f"队列中没有提示：角色 {character} 没有待回答的提示，请先通过 POST /api/prompts 添加",
        )
    await _drop(session, stale if waiting[0].state == "ready" else [])
    return Taken(_given(waiting[0]), None, [])


async def put_back(session: AsyncSession, numbers: Sequence[int], being_answered: Collection[int] = ()) -> int:
    """Queue up taken and failed prompts again; return how many. Raises NotFound.

    What a person saw and did not decide on is shown again; after a choice there will be new candidates. What is being
    answered for a person stays theirs.
    """
    found = [each for each in await queue.of_ids(session, numbers) if each[0].id not in being_answered]
    changed = [each for each in found if each[0].state in ("taken", "failed")]
    for prompt, decided in changed:
        if decided or prompt.generation_id is None:
            prompt.state, prompt.reason, prompt.generation_id, prompt.disagreement = "waiting", None, None, None
        else:
            prompt.state = "ready"
    return len(changed)


async def give_up(session: AsyncSession, number: int, error: BaseException) -> None:
    """Queue up a prompt again that a person was to get; one that can never be answered has failed."""
    prompt = await session.get(Prompt, number)
    if prompt is None:
        return
    if isinstance(error, InvalidInput):
        prompt.state, prompt.reason = "failed", error.detail
    else:
        prompt.state = "waiting" if prompt.generation_id is None else "ready"


async def remove(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Remove prompts, with the candidates that nobody has seen; return how many. Raises NotFound."""
    found = [prompt for prompt, _ in await queue.of_ids(session, numbers)]
    unseen = [prompt.generation_id for prompt in found if prompt.taken_at is None]
    for prompt in found:
        await session.delete(prompt)
    await session.flush()
    await generations.remove(session, [number for number in unseen if number is not None])
    return len(found)


async def refresh(database: Database, character: str, is_current: IsCurrent) -> None:
    """With a model loaded: what was written for another is dropped, and what failed there may not fail here.

    In several transactions, since others wait for each.
    """
    start: int | None = 0
    while start is not None:
        start = await database.write(partial(drop, character=character, is_current=is_current, start=start))
    await database.write(lambda session: queue.forgive(session, character))


async def drop(session: AsyncSession, character: str, is_current: IsCurrent, start: int = 0) -> int | None:
    """Drop those of a part of the ready prompts' candidates that are not current; return where the next part begins."""
    part = await queue.ready(session, character, "given", start, PART)
    stale = [pair for pair in part if not is_current(pair[1])]
    await _drop(session, stale)
    return start + len(part) - len(stale) if len(part) == PART else None


async def _drop(session: AsyncSession, stale: Sequence[tuple[Prompt, Generation]]) -> None:
    """Let these prompts wait again; candidates that people saw stay, for late choices."""
    unseen = [generation.id for prompt, generation in stale if prompt.taken_at is None]
    for prompt, _ in stale:
        prompt.state, prompt.generation_id, prompt.disagreement = "waiting", None, None
    await session.flush()
    await generations.remove(session, unseen)


def _given(prompt: Prompt) -> Prompt:
    prompt.state, prompt.taken_at = "taken", now()
    return prompt
