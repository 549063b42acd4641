"""Queries on runs."""

from collections.abc import Mapping, Sequence
from datetime import datetime

from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Run

LAST_FIRST = (
    (Run.state == "running").desc(),
    func.coalesce(Run.resumed_at, Run.started_at).desc(),
    Run.id.desc(),
)


async def latest(session: AsyncSession) -> Run | None:
    """The run that is under way, else the one that was started or resumed last."""
    return (await session.scalars(select(Run).order_by(*LAST_FIRST).limit(1))).one_or_none()


async def latest_of(session: AsyncSession, started: Mapping[int, datetime]) -> Run | None:
    """The last of the runs of these ids that began at just these times."""
    found = await session.scalars(select(Run).where(Run.id.in_(started)).order_by(*LAST_FIRST))
    return next((run for run in found if run.started_at == started[run.id]), None)


async def of_character(session: AsyncSession, character: str, limit: int) -> Sequence[Run]:
    """The character's runs, the last first."""
    return (
        await session.scalars(select(Run).where(Run.character == character).order_by(*LAST_FIRST).limit(limit))
    ).all()


async def ended(session: AsyncSession) -> Sequence[Run]:
    """All runs that are not under way, the last first."""
    return (await session.scalars(select(Run).where(Run.state != "running").order_by(*LAST_FIRST))).all()


async def adapters(session: AsyncSession, character: str) -> Sequence[str]:
    """The names of all adapters that the character's runs made or are making, also of those deleted since."""
    made = Run.state.in_(("succeeded", "running"))
    query = select(Run.adapter).where(Run.character == character, Run.adapter.is_not(None), made)
    return [name for name in (await session.scalars(query)).all() if name]
