"""Queries on the queue of prompts."""

import hashlib
import json
from collections.abc import Collection, Sequence
from typing import Literal, get_args

from sqlalchemy import Select, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.annotations import PART
from prefanno.db.models import Annotation, Generation, Prompt
from prefanno.errors import NotFound
from prefanno.prompting import Message

State = Literal["waiting", "ready", "taken", "failed"]
STATES: tuple[str, ...] = get_args(State)
Order = Literal["given", "random", "useful"]
ORDERS: tuple[str, ...] = get_args(Order)

BY = {
    "given": (Prompt.id,),
    "random": (Prompt.lot, Prompt.id),
    "useful": (Prompt.disagreement.desc().nulls_last(), Prompt.id),
}


async def following(
    session: AsyncSession, character: str, state: State, order: Order, limit: int = 1
) -> Sequence[Prompt]:
    """The first of the character's prompts in this state; what is useful is known of those only that are ready."""
    by = BY["given" if order == "useful" and state != "ready" else order]
    query = select(Prompt).where(Prompt.character == character, Prompt.state == state)
    return (await session.scalars(query.order_by(*by).limit(limit))).all()


async def counts(session: AsyncSession, character: str) -> dict[str, int]:
    """How many of the character's prompts are in each state."""
    query = select(Prompt.state, func.count()).where(Prompt.character == character).group_by(Prompt.state)
    return dict.fromkeys(STATES, 0) | dict(list(await session.execute(query)))


async def page(
    session: AsyncSession, character: str, state: State | None, after: int, limit: int
) -> Sequence[tuple[Prompt, bool]]:
    """The character's prompts beyond the id `after`, in the order given, each with whether a choice was made."""
    query = _with_choice().where(Prompt.character == character, Prompt.id > after).order_by(Prompt.id).limit(limit)
    found = await session.execute(query if state is None else query.where(Prompt.state == state))
    return [(prompt, choice is not None) for prompt, choice in found]


def digest(message: str, context: Sequence[Message] | Sequence[dict[str, str]]) -> str:
    """By which it is seen that a prompt says the same as another one."""
    said = [message, *([turn["role"], turn["content"]] for turn in context)]
    return hashlib.sha256(json.dumps(said).encode()).hexdigest()


async def queued(session: AsyncSession, character: str, digests: Sequence[str]) -> set[str]:
    """Those of these digests that a prompt of the character has which nobody has taken yet."""
    found: set[str] = set()
    for start in range(0, len(digests), PART):
        query = select(Prompt.digest).where(Prompt.character == character, Prompt.state != "taken")
        found.update(await session.scalars(query.where(Prompt.digest.in_(digests[start : start + PART]))))
    return found


async def forget(session: AsyncSession, said: Collection[tuple[str, str]]) -> None:
    """Remove the prompts of these characters that have these digests."""
    for character, same in said:
        await session.execute(delete(Prompt).where(Prompt.character == character, Prompt.digest == same))


async def of_ids(session: AsyncSession, numbers: Sequence[int]) -> Sequence[tuple[Prompt, bool]]:
    """The prompts of these ids, each with whether a choice was made. Raises NotFound where one is not there."""
    found: list[tuple[Prompt, bool]] = []
    wanted = list(dict.fromkeys(numbers))
    for start in range(0, len(wanted), PART):
        part = await session.execute(_with_choice().where(Prompt.id.in_(wanted[start : start + PART])))
        found += [(prompt, choice is not None) for prompt, choice in part]
    if missing := set(numbers) - {prompt.id for prompt, _ in found}:
        raise NotFound(f"there is no prompt {min(missing)}", f"未找到提示 {min(missing)}")
    return found


async def undecided(session: AsyncSession, character: str) -> Sequence[int]:
    """The character's prompts that were taken, and that no choice was made at."""
    query = _with_choice().with_only_columns(Prompt.id).where(Prompt.character == character, Prompt.state == "taken")
    return (await session.scalars(query.where(Annotation.id.is_(None)).order_by(Prompt.id))).all()


async def ready(
    session: AsyncSession, character: str, order: Order, start: int, limit: int
) -> Sequence[tuple[Prompt, Generation]]:
    """A part of the character's prompts that are ready, with what they are answered by."""
    query = select(Prompt, Generation).join(Generation, Generation.id == Prompt.generation_id)
    query = query.where(Prompt.character == character, Prompt.state == "ready").order_by(*BY[order])
    return (await session.execute(query.offset(start).limit(limit))).all()


async def decide(session: AsyncSession, generation: int) -> None:
    """A choice was made at these candidates: a prompt that was put back with them is not given again."""
    put_back = update(Prompt).where(Prompt.generation_id == generation, Prompt.state == "ready")
    await session.execute(put_back.values(state="taken"))


async def recover(session: AsyncSession) -> None:
    """Queue up again what was being answered when the server was killed."""
    lost = update(Prompt).where(Prompt.state == "taken", Prompt.generation_id.is_(None))
    await session.execute(lost.values(state="waiting", taken_at=None))


async def forgive(session: AsyncSession, character: str) -> None:
    """Let those that failed wait again: with other settings they may not."""
    failed = update(Prompt).where(Prompt.character == character, Prompt.state == "failed")
    await session.execute(failed.values(state="waiting", reason=None))


def _with_choice() -> Select[Prompt, Annotation]:
    made = (Annotation.generation_id == Prompt.generation_id) & Annotation.deleted_at.is_(None)
    return select(Prompt, Annotation).outerjoin(Annotation, made)
