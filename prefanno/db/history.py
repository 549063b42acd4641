"""Queries on steps and events."""

from collections.abc import AsyncIterator, Sequence

from sqlalchemy import delete, exists, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.annotations import PART
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


async def forget(session: AsyncSession, numbers: Sequence[int]) -> int:
    """Remove what happened to these annotations; return how many events. `forget_empty_steps` comes afterwards."""
    gone = await session.execute(delete(Event).where(Event.annotation_id.in_(numbers)).returning(Event.id))
    return len(gone.all())


async def forget_empty_steps(session: AsyncSession) -> None:
    """Remove the steps whose events are all gone."""
    await session.execute(delete(Step).where(~exists().where(Event.step_id == Step.id)))


async def _first(session: AsyncSession, character: str, state: str, *, newest: bool) -> Step | None:
    query = select(Step).where(Step.character == character, Step.state == state)
    return (await session.scalars(query.order_by(Step.id.desc() if newest else Step.id).limit(1))).one_or_none()
