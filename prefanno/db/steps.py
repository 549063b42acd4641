"""Queries on steps and events."""

from collections.abc import AsyncIterator, Iterable, Sequence
from typing import Any

from sqlalchemy import delete, exists, func, insert, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.annotations import PART
from prefanno.db.models import Annotation, Event, Step

Fields = dict[str, Any]
INSERT_EVENT = insert(Event.metadata.tables[Event.__tablename__])  # every add does this; without the ORM it is cheaper


async def last_done(session: AsyncSession, character: str) -> Step | None:
    """What undo takes back."""
    query = select(Step).where(Step.character == character, Step.state == "done")
    return (await session.scalars(query.order_by(Step.id.desc()).limit(1))).one_or_none()


async def first_undone(session: AsyncSession, character: str) -> Step | None:
    """What redo does again: after something new, nothing."""
    newest = select(func.max(Step.id)).where(Step.character == character, Step.state == "done").scalar_subquery()
    query = select(Step).where(Step.character == character, Step.state == "undone", Step.id > func.coalesce(newest, 0))
    return (await session.scalars(query.order_by(Step.id).limit(1))).one_or_none()


async def set_undone(session: AsyncSession, step: Step) -> None:
    """Mark the step; what was undone before it was done cannot be redone any more, now that it is undone itself."""
    step.state = "undone"
    older = update(Step).where(Step.character == step.character, Step.state == "undone", Step.id < step.id)
    await session.execute(older.values(state="dropped"), execution_options={"synchronize_session": False})


async def record(session: AsyncSession, step: Step, changes: Iterable[tuple[Annotation, Fields, Fields]]) -> None:
    """Store what the step changes: each annotation with its changed fields before and after."""
    events = [
        {"step_id": step.id, "annotation_id": one.id, "before": before, "after": after}
        for one, before, after in changes
    ]
    await session.execute(INSERT_EVENT, events)


async def changed(session: AsyncSession, step: Step) -> AsyncIterator[Sequence[tuple[Event, Annotation]]]:
    """The events of the step with their annotations, in the order they happened, part by part."""
    query = select(Event, Annotation).join(Annotation, Annotation.id == Event.annotation_id)
    query, last = query.where(Event.step_id == step.id).order_by(Event.id).limit(PART), 0
    while part := (await session.execute(query.where(Event.id > last))).all():
        yield part
        last = part[-1][0].id


async def of_annotation(session: AsyncSession, annotation: int) -> Sequence[tuple[Event, Step]]:
    """All that happened to the annotation, oldest first."""
    query = select(Event, Step).join(Step, Step.id == Event.step_id)
    return (await session.execute(query.where(Event.annotation_id == annotation).order_by(Event.id))).all()


async def last_event(session: AsyncSession, character: str) -> int | None:
    """The newest event of the character's annotations."""
    newest = select(Step.id).where(Step.character == character).order_by(Step.id.desc()).limit(1).scalar_subquery()
    return (await session.execute(select(func.max(Event.id)).where(Event.step_id == newest))).scalar_one()


async def replaced(session: AsyncSession, numbers: Sequence[int]) -> Sequence[tuple[int, Fields]]:
    """What each change of these annotations replaced."""
    query = select(Event.annotation_id, Event.before).where(Event.annotation_id.in_(numbers))
    return (await session.execute(query)).all()


async def forget(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Remove what happened to these annotations; return how many events. `forget_empty_steps` comes afterwards."""
    gone = await session.execute(delete(Event).where(Event.annotation_id.in_(numbers)).returning(Event.id))
    return len(gone.all())


async def forget_empty_steps(session: AsyncSession) -> None:
    """Remove the steps whose events are all gone."""
    await session.execute(delete(Step).where(~exists().where(Event.step_id == Step.id)))
