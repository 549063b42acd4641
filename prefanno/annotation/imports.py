"""Files → annotations, through an exporter's reader: looked through first, then stored as one step, or not at all.

survey: every row is checked and compared with what is there ─▶ Report, and a mark for each row
store:  the files are read again, the marked rows added, in one transaction

No row is held in between, so the size of a file costs a byte for each row, and two digests for each that is new.
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import text
from prefanno.annotation import duplicates, export, history
from prefanno.annotation.dataset import to_annotation
from prefanno.db import annotations
from prefanno.db.annotations import PART
from prefanno.db.engine import Database
from prefanno.db.models import Step
from prefanno.errors import ImportStopped
from prefanno.rows import Fault, Reads, Row

LISTED = 1000  # rows that a report names one by one; it counts all

TEXTS = ("system_prompt", "human_input", "chosen", "chosen_thinking", "rejected", "rejected_thinking")

Tell = Callable[[int], object]  # how many rows more are done; may raise ImportStopped


class Place(NamedTuple):
    """A row of a file."""

    file: Path
    line: int


@dataclass(frozen=True)
class Source:
    """What is imported, and whose it becomes; `system_prompt` is the persona of rows that name none."""

    reads: Reads
    files: Sequence[Path]
    character: str
    system_prompt: str


@dataclass(frozen=True)
class Options:
    """dry_run: store nothing. skip_bad: store the good rows of files with bad ones. skip_near: no near duplicates."""

    dry_run: bool = False
    skip_bad: bool = False
    skip_near: bool = False


@dataclass
class Report:
    """What an import found, and how many rows it added, or would add in a dry run.

    `duplicates` were there already, or earlier in the files, word for word; `near` but for case, punctuation and white
    space. Of bad rows and near duplicates the first `LISTED` are named.
    """

    added: int = 0
    duplicates: int = 0
    near: int = 0
    bad: int = 0
    near_rows: list[Place] = field(default_factory=list)
    bad_rows: list[tuple[Place, Fault]] = field(default_factory=list)

    def note_bad(self, place: Place, fault: Fault) -> None:
        """Count a bad row."""
        self.bad += 1
        if self.bad <= LISTED:
            self.bad_rows.append((place, fault))

    def note_near(self, place: Place) -> None:
        """Count a near duplicate."""
        self.near += 1
        if self.near <= LISTED:
            self.near_rows.append(place)


async def load(database: Database, source: Source, options: Options, tell: Tell | None = None) -> Report:
    """Add the rows that are not there yet, as one step. With a bad row nothing is stored, unless they are skipped.

    Raises ImportStopped, DatabaseUnavailable or StorageFull; nothing is stored then.
    """
    tell = tell or (lambda _rows: None)
    known = _Known()
    async with database.read() as session:
        await known.add_all(session, source.character)
    report, wanted = await _survey(source, options, known, tell)
    if options.dry_run:
        report.added = wanted.count(1)
    elif wanted.count(1) and (options.skip_bad or not report.bad):
        report.added = await database.write(lambda session: _store(session, source, wanted, known, tell))
    return report


class _Known:
    """The digests of all rows that there are, up to the annotation `last`."""

    def __init__(self) -> None:
        self.exact: set[bytes] = set()
        self.near: set[bytes] = set()
        self.last = 0

    async def add_all(self, session: AsyncSession, character: str) -> None:
        """Add what was made since the last time."""
        async for batch in annotations.oldest_first(session, character, after=self.last):
            rows = await export.rows(session, batch)
            await asyncio.to_thread(self._add, rows)
            self.last = batch[-1].id

    def _add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.exact.add(duplicates.exact(row))
            self.near.add(duplicates.near(row))


async def _survey(source: Source, options: Options, known: _Known, tell: Tell) -> tuple[Report, bytearray]:
    """What is in the files, and a 1 for each row to be added, in their order."""
    report, wanted = Report(), bytearray()
    async for batch in _batches(source):
        await asyncio.to_thread(_look_at, batch, options, known, report, wanted)
        tell(len(batch))
    return report, wanted


def _look_at(
    batch: Sequence[tuple[Place, Row | Fault]], options: Options, known: _Known, report: Report, wanted: bytearray
) -> None:
    for place, row in batch:
        if isinstance(row, Fault):
            report.note_bad(place, row)
            wanted.append(0)
        else:
            wanted.append(_is_wanted(place, row, options, known, report))


def _is_wanted(place: Place, row: Row, options: Options, known: _Known, report: Report) -> bool:
    exact, near = duplicates.exact(row), duplicates.near(row)
    if exact in known.exact:
        report.duplicates += 1
        return False
    is_near = near in known.near
    known.exact.add(exact)
    known.near.add(near)
    if is_near:
        report.note_near(place)
    return not (is_near and options.skip_near)


async def _store(session: AsyncSession, source: Source, wanted: bytearray, known: _Known, tell: Tell) -> int:
    """Add the wanted rows, but for those that somebody else added since they were compared; return how many."""
    late = _Known()
    late.last = known.last
    await late.add_all(session, source.character)
    step, added, rows = Step(character=source.character, kind="import"), 0, _wanted(source, wanted)
    while part := list(islice(rows, PART)):
        new = [to_annotation(source.character, row) for row in part if duplicates.exact(row) not in late.exact]
        if new:
            await history.extend(session, step, new)
        added += len(new)
        tell(len(part))
    return added


def _wanted(source: Source, wanted: bytearray) -> Iterator[Row]:
    """The rows that the survey marked. Raises ImportStopped where the files are no longer what it saw."""
    marks = iter(wanted)
    for place, row in _found(source):
        mark = next(marks, None)
        if mark is None or (mark and isinstance(row, Fault)):
            raise ImportStopped(f"{place.file} was changed while it was imported", "文件在导入过程中被修改")
        if mark and isinstance(row, Row):
            yield row


async def _batches(source: Source) -> AsyncIterator[Sequence[tuple[Place, Row | Fault]]]:
    found = _found(source)
    while batch := await asyncio.to_thread(lambda: list(islice(found, PART))):
        yield batch


def _found(source: Source) -> Iterator[tuple[Place, Row | Fault]]:
    """Every row of the files; one that cannot be stored is a fault."""
    for file in source.files:
        line = 0
        try:
            for line, row in source.reads.reading(file):
                yield Place(file, line), row if isinstance(row, Fault) else _checked(row, source.system_prompt)
        except ValueError as error:  # of a reader that does not go on after a bad row
            yield Place(file, line + 1), Fault(str(error))


def _checked(row: Row, system_prompt: str) -> Row | Fault:
    """The row with a persona, or what keeps it from being stored: a file may hold anything."""
    if row.chosen is None and (row.mode == "multi" or row.rejected is None):
        return Fault("there is no reply to learn from", "没有可学习的回复")
    row = row if row.system_prompt else replace(row, system_prompt=system_prompt)
    texts: dict[str, str | None] = {f"context.{i}": turn["content"] for i, turn in enumerate(row.context)}
    texts |= {name: getattr(row, name) for name in TEXTS}
    for name, value in texts.items():
        if value is not None and (fault := text.fault(value)):
            return Fault(f"{name} {fault}", f"{name} {fault.detail}")
    return row
