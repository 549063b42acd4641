"""Queries on generations and their candidates."""

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Candidate, Generation

RECENT = 200  # generations back; a choice follows its generation within minutes


async def thinking_of(session: AsyncSession, character: str, content: str) -> str | None:
    """The thinking of the most recent candidate with exactly this content; None if there is none."""
    newest = select(func.max(Generation.id)).scalar_subquery()
    query = (
        select(Candidate.thinking)
        .join(Generation, Generation.id == Candidate.generation_id)
        .where(Generation.character == character, Candidate.content == content, Generation.id > newest - RECENT)
        .order_by(Candidate.id.desc())
        .limit(1)
    )
    return (await session.execute(query)).scalar_one_or_none()
