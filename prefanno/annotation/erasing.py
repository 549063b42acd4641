"""Erasing for good: the one exception to the history that only grows."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import history
from prefanno.db import annotations, generations, idempotency, search
from prefanno.db import history as events


@dataclass(frozen=True)
class Erased:
    """What was removed; `kept_turns` are generations that later turns go on from, whose words these turns hold."""

    annotations: int
    events: int
    generations: int
    kept_turns: int


async def erase(session: AsyncSession, numbers: Sequence[int]) -> Erased:
    """Remove these annotations, their history and the candidates they were chosen from. Raises NotFound."""
    found = await annotations.some(session, numbers)
    ids = [annotation.id for annotation in found]
    turns = [annotation.generation_id for annotation in found if annotation.generation_id is not None]
    await search.take(session, {annotation.id: search.words(annotation) for annotation in found})
    await history.count(session, [(annotation, -int(annotation.listed)) for annotation in found])
    forgotten = await events.forget(session, ids)
    await idempotency.forget(session, ids)
    for annotation in found:
        await session.delete(annotation)
    await session.flush()
    removed = await generations.remove(session, turns)
    await session.execute(search.MERGE)  # until its parts are merged, the index holds tokens of what was taken out
    return Erased(len(found), forgotten, removed, len(turns) - removed)
