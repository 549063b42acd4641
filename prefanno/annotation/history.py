"""The one way annotations come and change: in steps that are recorded, counted, searchable and can be undone.

    add, change, undo, redo ─▶ step + one event for each annotation ─▶ the annotation itself, its count, its words

An event holds the changed fields before and after. Being deleted is a field like the others, and adding is leaving
the state of being deleted; so undoing any step is: set every field back to what the event says it was before.
"""

from collections.abc import AsyncIterable, AsyncIterator, Sequence
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import choices
from prefanno.annotation.choices import Reply
from prefanno.db import annotations, search, steps
from prefanno.db.annotations import Choice
from prefanno.db.models import Annotation, Step, now
from prefanno.db.steps import Fields
from prefanno.errors import NothingToUndo

Change = tuple[Annotation, Fields]
DELETED = "deleted"


def replies(annotation: Annotation | Choice) -> list[Reply]:
    """What the choice was among."""
    return [Reply(**reply) for reply in annotation.replies]


def stored(among: Sequence[Reply]) -> list[dict[str, Any]]:
    """Replies as the table holds them."""
    return [reply._asdict() for reply in among]


async def add(
    session: AsyncSession, added: Sequence[Annotation], kind: str = "add", annotator: str | None = None
) -> None:
    """Store these annotations, all of one character, as one step."""
    await extend(session, Step(character=added[0].character, kind=kind, annotator=annotator), added)


async def extend(session: AsyncSession, step: Step, added: Sequence[Annotation]) -> None:
    """Store these annotations as part of the step."""
    for annotation in added:
        annotation.listed = _listed(annotation)
    session.add_all([step, *added])
    await session.flush()
    await steps.record(session, step, [(annotation, {DELETED: True}, {DELETED: False}) for annotation in added])
    await search.put(session, {annotation.id: search.words(annotation) for annotation in added})
    await keep_counts(session, [(annotation, int(annotation.listed)) for annotation in added])


async def change(
    session: AsyncSession, kind: str, parts: AsyncIterable[Sequence[Change]], annotator: str | None = None
) -> int:
    """Set fields of annotations of one character, as one step; return how many there were to change."""
    step, changed = None, 0
    async for part in parts:
        real = [(one, *changed_fields) for one, fields in part if (changed_fields := _changed(one, fields))[1]]
        if real:
            step = step or await _new_step(
                session, Step(character=real[0][0].character, kind=kind, annotator=annotator)
            )
            await _apply(session, step, real)
            changed += len(real)
    return changed


async def change_one(
    session: AsyncSession, kind: str, annotation: Annotation, fields: Fields, annotator: str | None = None
) -> bool:
    """Set fields of one annotation, as one step; return whether there was anything to change."""

    async def alone() -> AsyncIterator[Sequence[Change]]:
        yield [(annotation, fields)]

    return bool(await change(session, kind, alone(), annotator))


async def undo(session: AsyncSession, character: str) -> tuple[Step, int]:
    """Take back the last step; return it and how many annotations it touched. Raises NothingToUndo."""
    step = await steps.last_done(session, character)
    if step is None:
        raise NothingToUndo("there is nothing to undo", "没有可撤销的操作")
    await steps.set_undone(session, step)
    return step, await _again(session, "undo", step)


async def redo(session: AsyncSession, character: str) -> tuple[Step, int]:
    """Do again what was undone last; return it and how many annotations it touched. Raises NothingToUndo."""
    step = await steps.first_undone(session, character)
    if step is None:
        raise NothingToUndo("there is nothing to redo", "没有可重做的操作")
    step.state = "done"
    return step, await _again(session, "redo", step)


async def _again(session: AsyncSession, kind: str, step: Step) -> int:
    """An undo or a redo is a step of the history, too, but not one to undo."""
    record = await _new_step(
        session, Step(character=step.character, kind=kind, state="final", annotator=step.annotator)
    )
    changed = 0
    async for part in steps.changed(session, step):
        events = [(one, event.before, event.after) for event, one in part]
        await _apply(session, record, [(one, b, a) if kind == "redo" else (one, a, b) for one, b, a in events])
        changed += len(events)
    return changed


async def _new_step(session: AsyncSession, step: Step) -> Step:
    session.add(step)
    await session.flush()
    return step


async def _apply(session: AsyncSession, step: Step, changes: Sequence[tuple[Annotation, Fields, Fields]]) -> None:
    """Record each change and set its fields; the index and the counts follow in the same transaction."""
    taken: dict[int, str] = {}
    put: dict[int, str] = {}
    deltas = []
    await steps.record(session, step, changes)
    for annotation, _, after in changes:
        words, listed = search.words(annotation), annotation.listed
        for name, value in after.items():
            _set(annotation, name, value)
        annotation.listed = _listed(annotation)
        deltas.append((annotation, annotation.listed - listed))
        if (changed := search.words(annotation)) != words:
            taken[annotation.id], put[annotation.id] = words, changed
    await session.flush()
    await search.take(session, taken)
    await search.put(session, put)
    await keep_counts(session, deltas)


async def keep_counts(session: AsyncSession, deltas: Sequence[tuple[Annotation, int]]) -> None:
    """Keep the counts with what is listed."""
    sums: dict[tuple[str, str], int] = {}
    for annotation, delta in deltas:
        owner = (annotation.character, annotation.mode)
        sums[owner] = sums.get(owner, 0) + delta
    for (character, mode), delta in sums.items():
        if delta:
            await annotations.change_count(session, character, mode, delta)


def _listed(annotation: Annotation) -> bool:
    return annotation.deleted_at is None and choices.counts(annotation.mode, annotation.verdict, replies(annotation))


def _changed(annotation: Annotation, fields: Fields) -> tuple[Fields, Fields]:
    """The fields that would change: before, after."""
    before = {
        name: annotation.deleted_at is not None if name == DELETED else getattr(annotation, name) for name in fields
    }
    names = [name for name in fields if before[name] != fields[name]]
    return {name: before[name] for name in names}, {name: fields[name] for name in names}


def _set(annotation: Annotation, name: str, value: Any) -> None:
    if name != DELETED:
        setattr(annotation, name, value)
    else:
        annotation.deleted_at = now() if value else None
