"""Files → annotations, through an exporter's reader, in one transaction: all rows of all files or none."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import get_args

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import text
from prefanno.annotation import export, history
from prefanno.annotation.dataset import to_annotation
from prefanno.db import annotations
from prefanno.db.engine import Database
from prefanno.rows import Exporter, Mode, Row


@dataclass(frozen=True)
class Imported:
    """How many rows were added, and how many left out because they were there already, or twice, word for word."""

    added: int
    duplicates: int


async def load(
    database: Database, exporter: Exporter, files: Iterable[Path], character: str, system_prompt: str
) -> Imported:
    """Add the rows that are not there yet, as one step. `system_prompt` is the persona of rows that name none.

    Raises ValueError, naming the file and the row, before anything is stored.
    """
    rows = [row for file in files for row in _checked(exporter, file, system_prompt)]

    async def work(session: AsyncSession) -> Imported:
        known: set[object] = set()
        async for batch in annotations.oldest_first(session, character):
            known.update(_key(row) for row in await export.rows(session, batch))
        new = []
        for row in rows:
            if _key(row) not in known:
                known.add(_key(row))
                new.append(to_annotation(character, row))
        if new:
            await history.add(session, new, "import")
        return Imported(len(new), len(rows) - len(new))

    return await database.write(work)


def _checked(exporter: Exporter, file: Path, system_prompt: str) -> Iterator[Row]:
    for number, row in enumerate(exporter.reading(file), 1):
        if fault := _fault(row):
            raise ValueError(f"{file}, row {number}: {fault}")
        yield row if row.system_prompt else replace(row, system_prompt=system_prompt)


def _fault(row: Row) -> str | None:
    """What keeps the row from being stored: a file may hold anything."""
    if row.mode not in get_args(Mode):
        return f"mode must be one of {', '.join(get_args(Mode))}, not {row.mode!r}"
    if not (math.isfinite(row.weight) and row.weight > 0):
        return f"weight must be a number above 0, not {row.weight}"
    if row.chosen is None and (row.mode == "multi" or row.rejected is None):
        return "there is no reply to learn from"
    required: dict[str, object] = {"human_input": row.human_input}
    required |= {f"context.{i}": turn["content"] for i, turn in enumerate(row.context)}
    optional = ("chosen", "chosen_thinking", "rejected", "rejected_thinking")
    required |= {name: value for name in optional if (value := getattr(row, name)) is not None}
    required |= {"system": row.system_prompt} if row.system_prompt else {}
    for name, value in required.items():
        fault = text.fault(value) if isinstance(value, str) else "必须是字符串"
        if fault:
            return f"{name} {value!r:.60}: {fault}"
    return None


def _key(row: Row) -> Sequence[object]:
    context = tuple((turn["role"], turn["content"]) for turn in row.context)
    sides = (row.chosen, row.chosen_thinking, row.rejected, row.rejected_thinking)
    return (row.mode, row.system_prompt, context, row.human_input, *sides)
