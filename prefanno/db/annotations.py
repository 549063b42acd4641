"""Queries on annotations."""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Annotation


async def count(session: AsyncSession, character: str, mode: str) -> int:
    """How many annotations of this mode the character has."""
    query = select(func.count()).where(Annotation.character == character, Annotation.mode == mode)
    return (await session.execute(query)).scalar_one()


async def newest(session: AsyncSession, character: str, mode: str, limit: int) -> Sequence[Annotation]:
    """The last `limit` annotations of this mode, newest first."""
    query = (
        select(Annotation)
        .where(Annotation.character == character, Annotation.mode == mode)
        .order_by(Annotation.id.desc())
        .limit(limit)
    )
    return (await session.scalars(query)).all()


async def oldest_first(session: AsyncSession, character: str, batch: int = 500) -> AsyncIterator[Sequence[Annotation]]:
    """All annotations of the character in the order they were made, in batches of one snapshot."""
    query = select(Annotation).where(Annotation.character == character).order_by(Annotation.id)
    stream = await session.stream_scalars(query.execution_options(yield_per=batch))
    async for partition in stream.partitions():
        yield partition
