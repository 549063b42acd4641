"""Queries on generations, their candidates, and the conversations that they form."""

from collections.abc import Collection, Sequence

from sqlalchemy import delete, func, select
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from prefanno.db.models import Annotation, Candidate, Generation
from prefanno.errors import NotFound

RECENT = 200  # generations back; a choice follows its generation within minutes


async def get(session: AsyncSession, number: int) -> Generation:
    """The generation of this id. Raises NotFound."""
    found = await session.get(Generation, number)
    if found is None:
        raise NotFound(f"there is no generation {number}", f"未找到生成记录 {number}")
    return found


async def candidates(session: AsyncSession, generations: Collection[int]) -> Sequence[Candidate]:
    """The candidates of these generations, in their order."""
    query = select(Candidate).where(Candidate.generation_id.in_(generations))
    return (await session.scalars(query.order_by(Candidate.generation_id, Candidate.ordinal))).all()


async def thinking_of(session: AsyncSession, character: str, contents: Collection[str]) -> dict[str, str]:
    """The thinking of the most recent candidate with exactly each of these contents, where there is one."""
    latest = select(func.max(Generation.id)).scalar_subquery()
    query = (
        select(Candidate.content, Candidate.thinking)
        .join(Generation, Generation.id == Candidate.generation_id)
        .where(Generation.character == character, Candidate.content.in_(contents), Generation.id > latest - RECENT)
        .order_by(Candidate.id)
    )
    newest = dict((await session.execute(query)).all())  # of the same content the last one stays
    return {content: thinking for content, thinking in newest.items() if thinking}


async def remove(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Remove these generations with their candidates, last turns first; return how many.

    One that a later turn goes on from stays: the tree would fall apart.
    """
    removed = 0
    for number in sorted(numbers, reverse=True):
        continuing = select(Generation.id).where(Generation.parent_id == number).limit(1)
        if (await session.execute(continuing)).first() is None:
            await session.execute(delete(Candidate).where(Candidate.generation_id == number))
            await session.execute(delete(Generation).where(Generation.id == number))
            removed += 1
    return removed


async def conversations(
    session: AsyncSession, character: str, before: int | None, limit: int
) -> Sequence[tuple[Generation, int]]:
    """The first turns of the character's conversations, newest first, with the number of turns of each."""
    turn = aliased(Generation)
    size = select(func.count()).where(turn.conversation_id == Generation.id).scalar_subquery()
    query = select(Generation, size).where(Generation.character == character)
    query = query.where(Generation.conversation_id == Generation.id)
    if before is not None:
        query = query.where(Generation.id < before)
    return (await session.execute(query.order_by(Generation.id.desc()).limit(limit))).all()


async def turns(session: AsyncSession, conversation: int) -> Sequence[tuple[Generation, Annotation | None]]:
    """All turns of the conversation with the choice at each, oldest first."""
    query = select(Generation, Annotation).outerjoin(Annotation, Annotation.generation_id == Generation.id)
    found = await session.execute(query.where(Generation.conversation_id == conversation).order_by(Generation.id))
    return found.all()


async def continued(session: AsyncSession, generations: Collection[int]) -> set[tuple[int, str]]:
    """Which of these turns have a later turn that is decided, and with which of their replies it goes on."""
    query = (
        select(Generation.parent_id, Generation.context)
        .join(Annotation, Annotation.generation_id == Generation.id)
        .where(Generation.parent_id.in_(generations), Annotation.listed.is_(True))
    )
    found = await session.execute(query)
    return {(parent, context[-1]["content"]) for parent, context in found if parent is not None}
