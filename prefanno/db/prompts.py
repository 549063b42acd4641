"""Queries on the queue of prompts."""

from collections.abc import Collection, Sequence
from typing import Literal, get_args

from sqlalchemy import Select, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.annotations import PART
from prefanno.db.models import Annotation, Generation, Prompt
from prefanno.errors import NotFound

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
    """The first of the character's prompts in this state."""
    query = select(Prompt).where(Prompt.character == character, Prompt.state == state)
    return (await session.scalars(query.order_by(*BY[order]).limit(limit))).all()


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


async def queued(session: AsyncSession, character: str, messages: Collection[str]) -> Sequence[Prompt]:
    """The character's prompts with one of these messages that nobody has taken yet."""
    wanted, found = sorted(messages), list[Prompt]()
    for start in range(0, len(wanted), PART):
        query = select(Prompt).where(Prompt.character == character, Prompt.state != "taken")
        found += await session.scalars(query.where(Prompt.message.in_(wanted[start : start + PART])))
    return found


async def of_ids(session: AsyncSession, numbers: Sequence[int]) -> Sequence[tuple[Prompt, bool]]:
    """The prompts of these ids, each with whether a choice was made. Raises NotFound where one is not there."""
    found: list[tuple[Prompt, bool]] = []
    for start in range(0, len(numbers), PART):
        part = await session.execute(_with_choice().where(Prompt.id.in_(numbers[start : start + PART])))
        found += [(prompt, choice is not None) for prompt, choice in part]
    if missing := set(numbers) - {prompt.id for prompt, _ in found}:
        raise NotFound(f"there is no prompt {min(missing)}", f"未找到提示 {min(missing)}")
    return found


async def undecided(session: AsyncSession, character: str) -> Sequence[int]:
    """The character's prompts that were taken, and that no choice was made at."""
    query = _with_choice().with_only_columns(Prompt.id).where(Prompt.character == character, Prompt.state == "taken")
    return (await session.scalars(query.where(Annotation.id.is_(None)).order_by(Prompt.id))).all()


async def with_candidates(session: AsyncSession, character: str) -> Sequence[tuple[Prompt, Generation]]:
    """The character's prompts that are ready, with what they are answered by."""
    query = select(Prompt, Generation).join(Generation, Generation.id == Prompt.generation_id)
    return (await session.execute(query.where(Prompt.character == character, Prompt.state == "ready"))).all()


async def forgive(session: AsyncSession, character: str) -> None:
    """Let those that failed wait again: with other settings they may not."""
    failed = update(Prompt).where(Prompt.character == character, Prompt.state == "failed")
    await session.execute(failed.values(state="waiting", reason=None))


def _with_choice() -> Select[Prompt, Annotation]:
    made = (Annotation.generation_id == Prompt.generation_id) & Annotation.deleted_at.is_(None)
    return select(Prompt, Annotation).outerjoin(Annotation, made)
