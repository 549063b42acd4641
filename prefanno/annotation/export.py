"""Annotations → files, from one snapshot of the database, through an exporter.

annotations.oldest_first ─▶ rows ─▶ writer, in a folder of its own ─▶ manifest ─▶ all moved to their place
"""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import files, snapshot
from prefanno.annotation.dataset import sides, to_rows
from prefanno.db import annotations, generations, steps
from prefanno.db.annotations import Choice
from prefanno.db.engine import Database
from prefanno.db.file import HEAD
from prefanno.errors import Conflict
from prefanno.rows import Fault, Row, Writes, writer
from prefanno.snapshot import Manifest

Tell = Callable[[int], object]  # how many annotations more are done


async def export(  # noqa: PLR0913 - the last two are for a progress bar and for fakes
    database: Database,
    form: str,
    folder: Path,
    character: str,
    *,
    tell: Tell | None = None,
    writes: Writes | None = None,
) -> Manifest:
    """Write the character's files and their manifest; the folder is created where it is missing.

    The files are those of before until all are written. `writes` stands for the installed format `form`. Raises
    InvalidInput where there is none, Conflict where a file to be added to cannot be read.
    """
    writes = writes or writer(form)
    async with files.staged(folder) as stage:
        async with database.read() as session:
            last_event = await steps.last_event(session, character)
            counts, losses = await _write(session, writes, stage, character, tell)
        described = await asyncio.to_thread(snapshot.described, stage, counts)
        manifest = Manifest(form, character, HEAD, last_event, described, losses)
        await asyncio.to_thread(_place, stage, folder, manifest, writes)
    return manifest


async def _write(
    session: AsyncSession, writes: Writes, stage: Path, character: str, tell: Tell | None
) -> tuple[Mapping[str, int], Mapping[str, int]]:
    with writes.writing(stage, character) as writing:
        async for batch in annotations.oldest_first(session, character):
            await asyncio.to_thread(writing.write, await rows(session, batch))
            if tell:
                tell(len(batch))
    return writing.counts, dict(writing.losses)


def _place(stage: Path, folder: Path, manifest: Manifest, writes: Writes) -> None:
    files.write(stage / manifest.name, manifest.encode())
    with files.locked(folder):  # another character's export may be at the same files, too
        beside = getattr(writes, "beside", None)
        try:
            for name, content in (beside(folder, manifest.character) if beside else {}).items():
                files.write(stage / name, content)
        except Fault as fault:
            raise Conflict(str(fault), fault.detail) from fault
        files.place(stage, folder, last=manifest.name)


async def rows(session: AsyncSession, batch: Sequence[Choice]) -> list[Row]:
    """What training gets from a batch; a turn that a decided one goes on from is part of that one's conversation."""
    turns = [one.generation_id for one in batch if one.mode == "multi" and one.generation_id is not None]
    conversation = await generations.conversations_of(session, turns) if turns else {}
    inside = _inside(await generations.contexts(session, set(conversation.values()))) if conversation else set()
    return [row for one in batch for row in to_rows(one, not inside or _key(one, conversation) not in inside)]


def _key(one: Choice, conversation: Mapping[int, int]) -> tuple[int | str | None, ...]:
    return (conversation.get(one.generation_id or 0), *_words(one))


def _inside(contexts: Sequence[tuple[int, list[dict[str, str]]]]) -> set[tuple[int | str | None, ...]]:
    """Each conversation with the words that a decided turn has before it, and all beginnings of these."""
    return {
        (conversation, *(turn["content"] for turn in context[:length]))
        for conversation, context in contexts
        for length in range(1, len(context) + 1)
    }


def _words(one: Choice) -> tuple[str, ...]:
    """The words before a turn that goes on from here."""
    best, _ = sides(one)
    earlier = tuple(turn["content"] for turn in one.context)
    return (*earlier, one.human_input, best.content) if best else ()
