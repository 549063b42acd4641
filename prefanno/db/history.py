"""Queries on steps and events."""

from collections.abc import Sequence

from sqlalchemy import delete, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Annotation, Event, Step


async def last_done(session: AsyncSession, character: str) -> Step | None:
    """What undo takes back."""
    return await _first(session, character, "done", newest=True)


async def first_undone(session: AsyncSession, character: str) -> Step | None:
    """What redo does again."""
    return await _first(session, character, "undone", newest=False)


async def drop_undone(session: AsyncSession, character: str) -> None:
    """After something new there is nothing to redo."""
    undone = update(Step).where(Step.character == character, Step.state == "undone")
    await session.execute(undone.values(state="dropped"), execution_options={"synchronize_session": False})


async def changed(session: AsyncSession, step: Step) -> Sequence[tuple[Event, Annotation]]:
    """The events of the step with their annotations, in the order they happened."""
    query = select(Event, Annotation).join(Annotation, Annotation.id == Event.annotation_id)
    return (await session.execute(query.where(Event.step_id == step.id).order_by(Event.id))).all()


async def of_annotation(session: AsyncSession, annotation: int) -> Sequence[tuple[Event, Step]]:
    """All that happened to the annotation, oldest first."""
    query = select(Event, Step).join(Step, Step.id == Event.step_id)
    return (await session.execute(query.where(Event.annotation_id == annotation).order_by(Event.id))).all()


async def forget(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Remove what happened to these annotations, and steps that touched nothing else; return how many events."""
    removed = await session.execute(delete(Event).where(Event.annotation_id.in_(numbers)).returning(Event.step_id))
    steps = removed.scalars().all()
    left = select(Event.step_id).where(Event.step_id.in_(steps))
    await session.execute(delete(Step).where(Step.id.in_(steps), Step.id.not_in(left)))
    return len(steps)


async def _first(session: AsyncSession, character: str, state: str, *, newest: bool) -> Step | None:
    query = select(Step).where(Step.character == character, Step.state == state)
    return (await session.scalars(query.order_by(Step.id.desc() if newest else Step.id).limit(1))).one_or_none()
