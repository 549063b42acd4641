"""Erasing for good: the one exception to the history that only grows."""

from collections.abc import Sequence
from dataclasses import dataclass

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import history
from prefanno.db import annotations, comparisons, generations, idempotency, prompts, search, steps
from prefanno.db.models import Annotation


@dataclass(frozen=True)
class Erased:
    """What was removed; `kept` are generations that later turns go on from or that have another choice."""

    annotations: int
    events: int
    generations: int
    kept: int


async def erase(session: AsyncSession, numbers: Sequence[int]) -> Erased:
    """Remove these annotations, their history and the candidates they were chosen from. Raises NotFound."""
    turns: list[int] = []
    said: set[tuple[str, str]] = set()  # characters and digests of what was asked: it may be queued up, too
    erased = events_erased = 0
    async for part in annotations.parts(session, numbers):
        turns += [annotation.generation_id for annotation in part if annotation.generation_id is not None]
        said |= {(one.character, prompts.digest(one.human_input, one.context)) for one in part}
        turns += await generations.of_texts(session, await _texts(session, part))
        events_erased += await _erase_part(session, part)
        erased += len(part)
    said |= {
        (turn.character, prompts.digest(turn.message, turn.context))
        for turn in await generations.of_ids(session, turns)
    }
    await steps.forget_empty_steps(session)
    removed = await generations.remove(session, turns)
    await prompts.forget(session, said)
    await comparisons.forget_asked(session, said)
    await search.merge(session)
    return Erased(erased, events_erased, len(removed), len(set(turns) - removed))


async def _texts(session: AsyncSession, part: Sequence[Annotation]) -> list[generations.Texts]:
    """What annotations that came as texts say and said: whose, the questions, the replies."""
    found = {
        one.id: (one.character, {one.human_input}, {reply["content"] for reply in one.replies})
        for one in part
        if one.generation_id is None
    }
    for number, before in await steps.replaced(session, list(found)):
        _, questions, contents = found[number]
        questions |= {before["human_input"]} if "human_input" in before else set()
        contents |= {reply["content"] for reply in before.get("replies", [])}
    return list(found.values())


async def _erase_part(session: AsyncSession, found: Sequence[Annotation]) -> int:
    ids = [annotation.id for annotation in found]
    await search.take(session, {annotation.id: search.words(annotation) for annotation in found})
    await history.keep_counts(session, [(annotation, -int(annotation.listed)) for annotation in found])
    forgotten = await steps.forget(session, ids)
    await idempotency.forget(session, ids)
    await comparisons.forget(session, ids)
    await annotations.remove(session, ids)
    return forgotten
