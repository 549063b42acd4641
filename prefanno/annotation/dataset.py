"""A character's annotations: add, count, list."""

from collections.abc import Sequence
from dataclasses import fields, replace
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import annotations, generations
from prefanno.db.engine import Database
from prefanno.db.models import DEFAULT_CHARACTER, Annotation
from prefanno.rows import Mode, Row


async def add(database: Database, row: Row) -> int:
    """Store the choice; return how many annotations of its mode there are now.

    A thinking that the client left out is looked up among the recent candidates with that text.
    """

    async def work(session: AsyncSession) -> int:
        session.add(to_annotation(await _with_thinking(session, row)))
        await session.flush()
        return await annotations.count(session, DEFAULT_CHARACTER, row.mode)

    return await database.write(work)


def to_annotation(row: Row) -> Annotation:
    """The row as the table holds it."""
    return Annotation(character=DEFAULT_CHARACTER, **vars(row) | {"context": [dict(turn) for turn in row.context]})


def to_row(annotation: Annotation) -> Row:
    """What the table holds, as exporters take it."""
    return Row(**{field.name: getattr(annotation, field.name) for field in fields(Row)})


async def counts(database: Database) -> dict[Mode, int]:
    """How many annotations there are of each mode."""
    async with database.read() as session:
        return {
            "single": await annotations.count(session, DEFAULT_CHARACTER, "single"),
            "multi": await annotations.count(session, DEFAULT_CHARACTER, "multi"),
        }


async def newest(database: Database, mode: Mode, limit: int) -> tuple[int, Sequence[Annotation]]:
    """The count of this mode, and its last `limit` annotations, newest first, from one snapshot."""
    async with database.read() as session:
        total = await annotations.count(session, DEFAULT_CHARACTER, mode)
        return total, await annotations.newest(session, DEFAULT_CHARACTER, mode, limit)


async def _with_thinking(session: AsyncSession, row: Row) -> Row:
    thoughts: dict[str, Any] = {}
    for side in ("chosen", "rejected"):
        content, thinking = getattr(row, side), getattr(row, f"{side}_thinking")
        if content and not thinking:
            thoughts[f"{side}_thinking"] = await generations.thinking_of(session, DEFAULT_CHARACTER, content)
    return replace(row, **thoughts)
