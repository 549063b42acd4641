"""Files → annotations, through an exporter's reader: looked through first, then stored as one step, or not at all.

survey: every row is checked and compared with what is there ─▶ Report, and a mark for each row
store:  the files are read again, the marked rows added, in one transaction

No row is held in between, so the size of a file costs a byte for each row, and two digests for each that is new.
"""

import asyncio
import contextlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from hashlib import blake2b
from itertools import islice
from pathlib import Path
from typing import NamedTuple, TypeVar

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import text
from prefanno.annotation import duplicates, export, history
from prefanno.annotation.dataset import to_annotation
from prefanno.db import annotations, steps
from prefanno.db.annotations import PART
from prefanno.db.engine import Database
from prefanno.db.models import Step
from prefanno.errors import ImportStopped, InvalidInput
from prefanno.rows import Fault, Line, Reads, Row

T = TypeVar("T")

ALIVE = select(1)  # between rows of which none is added: PostgreSQL ends a transaction that asks nothing for long
HELD = 4 << 20  # characters of the rows that are in memory at once: 500 of the longest would take gigabytes
TURN = 300  # bytes that a turn takes beside its characters
MOST = 2_000_000  # rows of an import: each new one takes 225 bytes of memory to be compared with
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
    """What an import found, and how many rows it added, or would add in a dry run: none beside bad ones.

    `duplicates` were there already, or earlier in the files, word for word; `near` but for case, punctuation and white
    space. `good` rows could be read, whatever became of them. Of bad rows and near duplicates the first `LISTED` are
    named.
    """

    added: int = 0
    duplicates: int = 0
    near: int = 0
    bad: int = 0
    good: int = field(default=0, compare=False)
    near_rows: list[Place] = field(default_factory=list)
    bad_rows: list[tuple[Place, Fault]] = field(default_factory=list)

    def note_bad(self, place: Place, fault: Fault) -> None:
        """Count a bad row. The frames that the fault was raised in are left behind: they may hold the row."""
        self.bad += 1
        if self.bad <= LISTED:
            self.bad_rows.append((place, Fault(str(fault), fault.detail)))

    def note_near(self, place: Place) -> None:
        """Count a near duplicate."""
        self.near += 1
        if self.near <= LISTED:
            self.near_rows.append(place)


async def load(database: Database, source: Source, options: Options, tell: Tell | None = None) -> Report:
    """Add the rows that are not there yet, as one step. With a bad row nothing is stored, unless they are skipped.

    Raises InvalidInput where there are more than `MOST`, ImportStopped, DatabaseUnavailable or StorageFull; nothing is
    stored then.
    """
    tell = tell or (lambda _rows: None)
    survey = _Survey(options)
    async with database.read() as session:
        await survey.known.add_all(session, source.character, tell)
    with _closing(_found(source)) as found:
        while batch := await asyncio.to_thread(lambda: _part(found, lambda one: one[1])):
            await asyncio.to_thread(survey.look_at, batch)
            if len(survey.marks) > MOST:
                raise InvalidInput(
                    {"file": [f"一次最多导入 {MOST} 行，请分成几个文件导入"]},
                    english=f"an import takes {MOST:,} rows at most; split the file",
                )
            tell(len(batch))
    report, wanted = survey.report, survey.marks.count(1)
    if report.bad and not options.skip_bad:
        return report
    if options.dry_run:
        report.added = wanted
    elif wanted:
        report.added = await database.write(lambda session: _store(session, source, survey, tell))
    return report


class _Known:
    """The digests of all rows that there are, or of those that came or changed after the event `since`."""

    def __init__(self, since: int | None = None) -> None:
        self.exact: set[bytes] = set()
        self.near: set[bytes] = set()
        self.since, self.last = since, 0

    async def add_all(self, session: AsyncSession, character: str, tell: Tell) -> None:
        """Add them, up to the newest event, which is then the `last`."""
        self.last = await steps.last_event(session, character) or 0
        async for batch in annotations.oldest_first(session, character, since=self.since):
            rows = await export.rows(session, batch)
            await asyncio.to_thread(self._add, rows)
            tell(len(batch))

    def _add(self, rows: Sequence[Row]) -> None:
        for row in rows:
            self.exact.add(duplicates.exact(row))
            self.near.add(duplicates.near(row))


class _Survey:
    """What is in the files: a report, and a mark for each row, 1 where it is to be added.

    `said` is what the marked rows say together, by which it is seen whether they still do when they are stored.
    """

    def __init__(self, options: Options) -> None:
        self.known, self.report, self.marks, self.said = _Known(), Report(), bytearray(), blake2b()
        self._options = options

    def look_at(self, batch: Sequence[tuple[Place, Row | Fault]]) -> None:
        """Take up the next rows."""
        for place, row in batch:
            if isinstance(row, Fault):
                self.report.note_bad(place, row)
                self.marks.append(0)
            else:
                self.report.good += 1
                self.marks.append(self._wants(place, row))

    def _wants(self, place: Place, row: Row) -> bool:
        known, exact, near = self.known, duplicates.exact(row), duplicates.near(row)
        if exact in known.exact:
            self.report.duplicates += 1
            return False
        is_near = near in known.near
        known.exact.add(exact)
        known.near.add(near)
        if is_near:
            self.report.note_near(place)
            if self._options.skip_near:
                return False
        self.said.update(exact)
        return True


async def _store(session: AsyncSession, source: Source, survey: _Survey, tell: Tell) -> int:
    """Add the wanted rows, but for those that came back or changed to be there since; return how many."""
    late = _Known(survey.known.last)
    await late.add_all(session, source.character, tell)
    step, added = Step(character=source.character, kind="import"), 0
    with _closing(_found(source)) as found:
        rows = _again(found, survey)
        while part := _part(rows, lambda one: one and one[1]):
            wanted = [marked for marked in part if marked]
            new = [to_annotation(source.character, row) for exact, row in wanted if exact not in late.exact]
            if new:
                await history.extend(session, step, new)
            else:
                await session.execute(ALIVE)
            added += len(new)
            tell(len(part))
    survey.report.duplicates += survey.marks.count(1) - added
    return added


def _again(found: Iterator[tuple[Place, Row | Fault]], survey: _Survey) -> Iterator[tuple[bytes, Row] | None]:
    """Each row once more: with its digest where the survey marked it, else None.

    Raises ImportStopped where the marked ones say something else now.
    """
    marks, said = iter(survey.marks), blake2b()
    for _, row in found:
        if not next(marks, 1):
            yield None
            continue
        if isinstance(row, Fault):
            said.update(b"a bad row")
            break
        exact = duplicates.exact(row)
        said.update(exact)
        yield exact, row
    if said.digest() != survey.said.digest():
        raise ImportStopped(
            "a file was changed while it was imported; nothing was stored", "文件在导入过程中被修改，未保存任何内容"
        )


def _part(found: Iterator[T], row: Callable[[T], object]) -> list[T]:
    """The next rows, as many as are held at once: up to `PART`, fewer where they are long."""
    part, length = [], 0
    for one in islice(found, PART):
        part.append(one)
        length += _length(row(one))
        if length > HELD:
            break
    return part


def _length(row: object) -> int:
    if not isinstance(row, Row):
        return 0
    texts = [getattr(row, name) or "" for name in TEXTS]
    return sum(map(len, texts)) + sum(TURN + len(turn["content"]) for turn in row.context)


@contextlib.contextmanager
def _closing(found: Generator[T, None, None]) -> Iterator[Iterator[T]]:
    """The file that is read, and the process that reads it, are let go of at once, whatever a traceback holds."""
    try:
        yield found
    finally:
        with contextlib.suppress(ValueError):  # a thread is in it, of a task that was cancelled: it lets go then
            found.close()


def _found(source: Source) -> Generator[tuple[Place, Row | Fault], None, None]:
    """Every row of the files; one that cannot be stored is a fault."""
    for file in source.files:
        line = 0
        try:
            for line, row in source.reads.reading(file):
                found = row if isinstance(row, Fault) else _checked(row, source.system_prompt)
                yield Place(file, line), _numbered(found, line) if isinstance(found, Fault) else found
        except ValueError as error:  # of a reader that does not go on after a bad row
            yield Place(file, line + 1), error if isinstance(error, Fault) else Fault(str(error))


def _numbered(fault: Fault, line: int) -> Fault:
    """The fault, with the number of its row where the line does not tell which it is."""
    if not isinstance(line, Line):
        return fault
    return Fault(f"row {line.row}: {fault}", f"第 {line.row} 行数据：{fault.detail}")


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
