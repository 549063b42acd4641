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
    """What training gets from a batch; a turn that a later one goes on from is part of that one's conversation."""
    turns = [one.generation_id for one in batch if one.mode == "multi" and one.generation_id is not None]
    continued = await generations.continued(session, turns) if turns else set()
    found: list[Row] = []
    for annotation in batch:
        best, _ = sides(annotation)
        whole = best is None or (annotation.generation_id, best.content) not in continued
        found += to_rows(annotation, whole)
    return found
