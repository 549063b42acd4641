"""Annotations → files, from one snapshot of the database, through an exporter."""

import asyncio
from pathlib import Path

from prefanno.annotation.dataset import to_row
from prefanno.db import annotations
from prefanno.db.engine import Database
from prefanno.db.models import DEFAULT_CHARACTER
from prefanno.rows import Exporter


async def export(database: Database, exporter: Exporter, folder: Path) -> dict[Path, int]:
    """Write the files; return the number of rows in each. The folder is created where it is missing."""
    await asyncio.to_thread(folder.mkdir, parents=True, exist_ok=True)
    with exporter.writing(folder, DEFAULT_CHARACTER) as writer:
        async with database.read() as session:
            async for batch in annotations.oldest_first(session, DEFAULT_CHARACTER):
                await asyncio.to_thread(writer.write, [to_row(annotation) for annotation in batch])
    return writer.counts
