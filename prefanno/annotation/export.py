"""Annotations → files, from one snapshot of the database, through an exporter."""

import asyncio
from collections.abc import Sequence
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation.dataset import sides, to_rows
from prefanno.db import annotations, generations
from prefanno.db.engine import Database
from prefanno.db.models import Annotation
from prefanno.rows import Exporter, Row


async def export(database: Database, exporter: Exporter, folder: Path, character: str) -> dict[Path, int]:
    """Write the character's files; return the number of rows in each. The folder is created where it is missing."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with exporter.writing(folder, character) as writer:
        async with database.read() as session:
            async for batch in annotations.oldest_first(session, character):
                await asyncio.to_thread(writer.write, await rows(session, batch))
    return writer.counts


async def rows(session: AsyncSession, batch: Sequence[Annotation]) -> list[Row]:
    """What training gets from a batch; a turn that a decided one goes on from is part of that one's conversation."""
    turns = [one.generation_id for one in batch if one.mode == "multi" and one.generation_id is not None]
    conversation = await generations.conversations_of(session, turns) if turns else {}
    inside = _inside(await generations.contexts(session, set(conversation.values()))) if conversation else set()
    return [
        row
        for one in batch
        for row in to_rows(one, (conversation.get(one.generation_id or 0), *_words(one)) not in inside)
    ]


def _inside(contexts: Sequence[tuple[int, list[dict[str, str]]]]) -> set[tuple[int | str | None, ...]]:
    """Each conversation with the words that a decided turn has before it, and all beginnings of these."""
    return {
        (conversation, *(turn["content"] for turn in context[:length]))
        for conversation, context in contexts
        for length in range(1, len(context) + 1)
    }


def _words(annotation: Annotation) -> tuple[str, ...]:
    """The words before a turn that goes on from here."""
    best, _ = sides(annotation)
    earlier = tuple(turn["content"] for turn in annotation.context)
    return (*earlier, annotation.human_input, best.content) if best else ()
