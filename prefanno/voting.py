"""A vote, the pair that follows from it, in one transaction, and the promotion that may."""

import asyncio
import logging
from functools import partial

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset, history
from prefanno.arena import comparisons as arena
from prefanno.db import comparisons
from prefanno.db.engine import Database
from prefanno.db.models import Annotation, Comparison, Round, now
from prefanno.errors import InvalidInput, RegistryDamaged
from prefanno.prompting import Message
from prefanno.rows import Row
from prefanno.settings import Settings
from prefanno.training import registry

log = logging.getLogger(__name__)


async def vote(session: AsyncSession, number: int, asked: int, choice: str, annotator: str | None) -> int | None:
    """Vote on this round of the comparison; the id of the pair, None of a tie. Raises NotFound or Conflict."""
    comparison = await comparisons.get(session, number)
    one = await comparisons.round_of(session, number, asked)
    await arena.vote(session, number, one, choice, annotator)
    annotation = _pair(comparison, one, choice, annotator)
    if annotation is None:
        return None
    await history.add(session, [annotation], annotator=annotator)
    one.annotation_id = annotation.id
    return annotation.id


async def promote_due(settings: Settings, database: Database, number: int) -> str | None:
    """Promote the comparison's adapter where that is due; how its promotion stands now. Raises RegistryDamaged.

    It stays due where the registry cannot be read, or the adapter may be another server's; one that is gone has failed.
    Killed in between, it is promoted at the next start.
    """
    async with database.read() as session:
        comparison = await comparisons.get(session, number)
    if comparison.promotion != "due":
        return comparison.promotion
    where = (settings.outputs, comparison.character, comparison.base_model)
    try:
        await asyncio.to_thread(registry.promote, *where, comparison.adapter)
        outcome = "done"
    except InvalidInput:
        if database.shared:  # it may be in another server's home
            return comparison.promotion
        log.warning("%s is to be promoted, and is gone", comparison.adapter)
        outcome = "failed"
    await database.write(partial(_promoted, number=number, outcome=outcome))
    return outcome


async def promote_all_due(settings: Settings, database: Database) -> None:
    """What was due when the server ended."""
    async with database.read() as session:
        due = await comparisons.due(session)
    for comparison in due:
        try:
            await promote_due(settings, database, comparison.id)
        except RegistryDamaged:
            log.exception("%s is to be promoted, and cannot be", comparison.adapter)


def _pair(comparison: Comparison, one: Round, choice: str, annotator: str | None) -> Annotation | None:
    """What the vote says as a preference; the adapter is left out: it would tell whose replies these are."""
    preferred = arena.sides(one, choice)
    if preferred is None:
        return None
    chosen, rejected = (arena.replies(one)[side] for side in preferred)
    context: list[Message] = [{"role": turn["role"], "content": turn["content"]} for turn in one.context]  # type: ignore[typeddict-item]
    said = (one.system_prompt, context, one.message)
    row = Row("single", *said, chosen.content, chosen.thinking, rejected.content, rejected.thinking, now())
    annotation = dataset.to_annotation(comparison.character, row)
    annotation.annotator = annotator
    return annotation


async def _promoted(session: AsyncSession, number: int, outcome: str) -> None:
    (await comparisons.get(session, number)).promotion = outcome
