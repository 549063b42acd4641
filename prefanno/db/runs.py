"""Queries on runs."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Run


async def latest(session: AsyncSession) -> Run | None:
    """The run that started last."""
    return (await session.scalars(select(Run).order_by(Run.id.desc()).limit(1))).one_or_none()


async def latest_of(session: AsyncSession, started: Mapping[int, datetime]) -> Run | None:
    """The last of the runs of these ids that began at just these times."""
    found = await session.scalars(select(Run).where(Run.id.in_(started)).order_by(Run.id.desc()))
    return next((run for run in found if run.started_at == started[run.id]), None)


async def adapters(session: AsyncSession, character: str) -> Sequence[str]:
    """The names of all adapters that the character's runs made or are making, also of those deleted since."""
    made = Run.state.in_(("succeeded", "running"))
    query = select(Run.adapter).where(Run.character == character, Run.adapter.is_not(None), made)
    return [name for name in (await session.scalars(query)).all() if name]
