"""Queries on generations, their candidates, and the conversations that they form."""

from collections.abc import Collection, Sequence

from sqlalchemy import bindparam, delete, func, select, union_all
from sqlalchemy.ext.asyncio import AsyncSession
from sqlalchemy.orm import aliased

from prefanno.db.annotations import PART
from prefanno.db.models import Annotation, Candidate, Generation, Prompt
from prefanno.errors import NotFound

Texts = tuple[str, set[str], set[str]]  # whose, questions, replies
RECENT = 200  # generations back, and prompts taken; a choice follows within minutes

# Else each delete compares with every object of the session: three thousand took half a minute.
UNSEEN = {"synchronize_session": False}

_newest = select(Generation.id).where(Generation.id > select(func.max(Generation.id)).scalar_subquery() - RECENT)
_taken = select(Prompt.generation_id).where(Prompt.character == bindparam("owner"), Prompt.taken_at.is_not(None))
_taken = select(_taken.order_by(Prompt.taken_at.desc()).limit(RECENT).subquery())
THINKING = (  # built once: every add asks this
    select(Candidate.content, Candidate.thinking)
    .join(Generation, Generation.id == Candidate.generation_id)
    .where(Generation.character == bindparam("owner"), Candidate.content.in_(bindparam("contents", expanding=True)))
    .where(Generation.id.in_(union_all(_newest, _taken)))
    .order_by(Candidate.id)
)


async def get(session: AsyncSession, number: int) -> Generation:
    """The generation of this id. Raises NotFound."""
    found = await session.get(Generation, number)
    if found is None:
        raise NotFound(f"there is no generation {number}", f"未找到生成记录 {number}")
    return found


async def of_ids(session: AsyncSession, numbers: Collection[int]) -> Sequence[Generation]:
    """The generations of these ids, of those that there are."""
    wanted, found = sorted(set(numbers)), list[Generation]()
    for start in range(0, len(wanted), PART):
        found += await session.scalars(select(Generation).where(Generation.id.in_(wanted[start : start + PART])))
    return found


async def candidates(session: AsyncSession, generations: Collection[int]) -> Sequence[Candidate]:
    """The candidates of these generations, in their order."""
    query = select(Candidate).where(Candidate.generation_id.in_(generations))
    return (await session.scalars(query.order_by(Candidate.generation_id, Candidate.ordinal))).all()


async def thinking_of(session: AsyncSession, character: str, contents: Collection[str]) -> dict[str, str]:
    """The thinking of the most recent candidate with exactly each of these contents, where there is one."""
    found = await session.execute(THINKING, {"owner": character, "contents": list(contents)})
    newest = dict(found.all())  # of the same content the last one stays
    return {content: thinking for content, thinking in newest.items() if thinking}


async def of_texts(session: AsyncSession, texts: Sequence[Texts]) -> set[int]:
    """The generations of these characters that have one of the questions and one of the replies beside it."""
    questions = sorted({question for _, asked, _ in texts for question in asked})
    found: set[int] = set()
    for start in range(0, len(questions), PART):
        query = (
            select(Generation.id, Generation.character, Generation.message, Candidate.content)
            .join(Candidate, Candidate.generation_id == Generation.id)
            .where(Generation.message.in_(questions[start : start + PART]))
        )
        for number, character, message, content in await session.execute(query):
            if any(whose == character and message in asked and content in said for whose, asked, said in texts):
                found.add(number)
    return found


async def remove(session: AsyncSession, numbers: Sequence[int]) -> set[int]:
    """Remove these generations with their candidates and the prompt they answer, last turns first; return which.

    One that a later turn goes on from stays, since the tree would fall apart, and goes when the last of these goes.
    """
    removed: set[int] = set()
    for number in sorted(numbers, reverse=True):
        at: int | None = number
        while at is not None and await _is_free(session, at):
            removed.add(at)
            await session.execute(delete(Candidate).where(Candidate.generation_id == at), execution_options=UNSEEN)
            await session.execute(delete(Prompt).where(Prompt.generation_id == at), execution_options=UNSEEN)
            gone = await session.execute(
                delete(Generation).where(Generation.id == at).returning(Generation.parent_id), execution_options=UNSEEN
            )
            at = gone.scalar_one_or_none()
    return removed


async def _is_free(session: AsyncSession, number: int) -> bool:
    """Whether no choice names it and no later turn goes on from it."""
    choice = select(Annotation.id).where(Annotation.generation_id == number)
    later = select(Generation.id).where(Generation.parent_id == number)
    return (await session.execute(choice.union_all(later).limit(1))).first() is None


async def conversations(
    session: AsyncSession, character: str, before: int | None, limit: int
) -> Sequence[tuple[Generation, int]]:
    """The first turns of the character's conversations, newest first, with the number of turns of each."""
    turn = aliased(Generation)
    size = select(func.count()).where(turn.conversation_id == Generation.id).scalar_subquery()
    query = select(Generation, size).where(Generation.character == character)
    unseen = select(Prompt.id).where(Prompt.generation_id == Generation.id, Prompt.taken_at.is_(None))
    query = query.where(Generation.conversation_id == Generation.id, ~unseen.exists())
    if before is not None:
        query = query.where(Generation.id < before)
    return (await session.execute(query.order_by(Generation.id.desc()).limit(limit))).all()


async def turns(session: AsyncSession, conversation: int) -> Sequence[tuple[Generation, Annotation | None]]:
    """All turns of the conversation with the choice at each, oldest first."""
    query = select(Generation, Annotation).outerjoin(Annotation, Annotation.generation_id == Generation.id)
    found = await session.execute(query.where(Generation.conversation_id == conversation).order_by(Generation.id))
    return found.all()


async def conversations_of(session: AsyncSession, generations: Collection[int]) -> dict[int, int]:
    """The conversation of each of these that is a turn of one."""
    query = select(Generation.id, Generation.conversation_id).where(Generation.id.in_(generations))
    found = await session.execute(query.where(Generation.conversation_id.is_not(None)))
    return {turn: conversation for turn, conversation in found if conversation is not None}


async def contexts(session: AsyncSession, conversations: Collection[int]) -> Sequence[tuple[int, list[dict[str, str]]]]:
    """The earlier turns of each decided turn, as its choice has them, with its conversation."""
    query = select(Generation.conversation_id, Annotation.context).join(
        Annotation, Annotation.generation_id == Generation.id
    )
    found = await session.execute(
        query.where(Generation.conversation_id.in_(conversations), Annotation.listed.is_(True))
    )
    return [(conversation, context) for conversation, context in found if conversation is not None]
