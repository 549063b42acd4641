"""Queries on runs."""

from collections.abc import Sequence

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Run


async def latest(session: AsyncSession) -> Run | None:
    """The run that started last."""
    return (await session.scalars(select(Run).order_by(Run.id.desc()).limit(1))).one_or_none()


async def adapters(session: AsyncSession, character: str) -> Sequence[str]:
    """The names of all adapters that the character's runs made, also of those deleted since."""
    query = select(Run.adapter).where(Run.character == character, Run.adapter.is_not(None), Run.state == "succeeded")
    return [name for name in (await session.scalars(query)).all() if name]
