"""What happens while an import is under way: it is stopped, others add, its file changes, the disk fills up."""

import asyncio
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Iterator, Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TypeVar, cast

import psutil
import pytest
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from sqlalchemy import select

from prefanno.annotation import dataset, duplicates, history, imports
from prefanno.annotation.imports import Options, Report, Source
from prefanno.db import upgrade
from prefanno.db.engine import Database, Work
from prefanno.db.models import Step
from prefanno.errors import ImportStopped
from prefanno.rows import Found, Reads, Row, reader, writer
from tests import postgres
from tests.annotation.importing import READS, entry, lined, load, written
from tests.annotation.model import contexts, modes, thoughts, words
from tests.annotation.test_dataset import SINGLE, add, counts, rows
from tests.properties import unhurried

T = TypeVar("T")
MANY = 1200  # rows: three parts of the survey, and three of the store


async def _untouched(database: Database) -> None:
    """Nothing is stored, not even a step or a count."""
    assert await rows(database) == [] and await counts(database) == {"single": 0, "multi": 0}
    assert await _steps(database) == []


@pytest.mark.parametrize("told", [1, 2, 3, 4, 5, 6])
async def test_a_stopped_import_stores_nothing(database: Database, tmp_path: Path, told: int) -> None:
    """Stopped while it looks through the rows, or while it stores them: all is as before, and it can be done again."""
    file = lined(tmp_path, *(entry(str(number)) for number in range(MANY)))
    times = iter(range(1, 7))

    def stop(_rows: int) -> None:
        if next(times) == told:
            raise ImportStopped

    with pytest.raises(ImportStopped, match="nothing was stored"):
        await load(database, file, tell=stop)
    await _untouched(database)
    assert await load(database, file) == Report(added=MANY)


@pytest.mark.parametrize("told", [1, 4])
@pytest.mark.parametrize("form", ["csv", "trl-parquet"])
async def test_a_stopped_import_lets_go_of_its_file(database: Database, tmp_path: Path, form: str, told: int) -> None:
    """Neither the file nor the process that reads parquet stays open, in either reading, while the error is known."""
    with writer(form).writing(tmp_path, "li") as writing:
        writing.write([replace(SINGLE, human_input=str(number)) for number in range(MANY)])
    (file,) = [tmp_path / name for name, count in writing.counts.items() if count]
    times, held = iter(range(1, 7)), []

    def stop(_rows: int) -> None:
        held.append(_held(file))
        if next(times) == told:
            raise ImportStopped

    with pytest.raises(ImportStopped) as stopped:
        await imports.load(database, Source(reader(form), [file], "li", "unused"), Options(), stop)
    assert held[-1]  # control: it was open
    assert not _held(file) and stopped.tb is not None


def _held(file: Path) -> bool:
    """Whether this process, or a child of it, has the file open."""
    processes = [psutil.Process(), *psutil.Process().children()]
    return any(str(file) == opened.path for process in processes for opened in process.open_files())


@pytest.mark.postgresql_only
async def test_the_transaction_is_never_idle_for_long(database: Database, database_url: str, tmp_path: Path) -> None:
    """PostgreSQL would cut it off: also where nothing is added, each part of the rows asks something, and is told."""
    await load(database, lined(tmp_path, *(entry(str(number)) for number in range(MANY))))
    file = lined(tmp_path, *(entry(str(number)) for number in range(MANY + 1)))
    asked: list[tuple[datetime]] = []
    with postgres.asking(database_url) as asker:

        def tell(_rows: int) -> None:
            asked.extend(asker.fetch(postgres.LAST_ASKED))

        assert await load(database, file, tell=tell) == Report(added=1, duplicates=MANY)
    assert len(set(asked)) == len(asked) == 3


class _Overtaken:
    """A database to which somebody else writes first, as another server on a PostgreSQL may."""

    def __init__(self, database: Database, first: Callable[[], Awaitable[object]]) -> None:
        self.read, self._database, self._first = database.read, database, first

    async def write(self, work: Work[T]) -> T:
        await self._first()
        return await self._database.write(work)


async def test_what_somebody_else_adds_meanwhile_is_not_doubled(database: Database, tmp_path: Path) -> None:
    """A row that is added after the survey, before the store, is there once; of the file only the others are added."""
    (preference, *_) = written(tmp_path, [SINGLE, replace(SINGLE, human_input="2")])
    overtaken = cast(Database, _Overtaken(database, lambda: add(database, SINGLE)))
    assert await load(overtaken, preference) == Report(added=1, duplicates=1)
    assert [row.human_input for row in await rows(database)] == [SINGLE.human_input, "2"]


def _restore(database: Database) -> Awaitable[object]:
    return database.write(partial(dataset.set_deleted, numbers=[1, 2], deleted=False))


def _undo(database: Database) -> Awaitable[object]:
    return database.write(lambda session: history.undo(session, "li"))


@pytest.mark.parametrize("returns", [_restore, _undo])
async def test_what_comes_back_meanwhile_is_not_doubled(
    database: Database, tmp_path: Path, returns: Callable[[Database], Awaitable[object]]
) -> None:
    """Deleted rows that are restored, or whose deletion is undone, are older than the survey, and yet not in it."""
    file = lined(tmp_path, *(entry(text) for text in "123"))
    await load(database, lined(tmp_path, *(entry(text) for text in "12x"), name="earlier.json"))
    await database.write(partial(dataset.set_deleted, numbers=[1, 2], deleted=True))
    overtaken = cast(Database, _Overtaken(database, lambda: returns(database)))
    assert await load(overtaken, file) == Report(added=1, duplicates=2)
    assert sorted(row.human_input for row in await rows(database)) == ["1", "2", "3", "x"]


async def test_what_is_edited_meanwhile_to_say_the_same_is_not_doubled(database: Database, tmp_path: Path) -> None:
    """An older row that was edited after the survey is compared as it is now."""
    await add(database, replace(SINGLE, human_input="old"))
    (preference, *_) = written(tmp_path, [SINGLE])
    edit = partial(dataset.edit, number=1, fields={"human_input": SINGLE.human_input})
    overtaken = cast(Database, _Overtaken(database, lambda: database.write(edit)))
    assert await load(overtaken, preference) == Report(duplicates=1)
    assert len(await rows(database)) == 1


async def test_where_somebody_else_adds_all_of_it_nothing_is_left_to_add(database: Database, tmp_path: Path) -> None:
    """The same file, imported by somebody else after the survey: there is one step, and none without an annotation."""
    file = lined(tmp_path, *(entry(str(number)) for number in range(MANY)))
    overtaken = cast(Database, _Overtaken(database, lambda: load(database, file)))
    assert await load(overtaken, file) == Report(duplicates=MANY)
    assert await counts(database) == {"single": MANY, "multi": 0}
    assert len(await _steps(database)) == 1


async def test_imports_of_the_same_file_at_once_store_it_once(database: Database, tmp_path: Path) -> None:
    """Of several imports at once each row is added by one."""
    file = lined(tmp_path, *(entry(str(number)) for number in range(MANY)))
    reports = await asyncio.gather(*(load(database, file) for _ in range(4)))
    assert sum(report.added for report in reports) == MANY
    assert await counts(database) == {"single": MANY, "multi": 0}


class _Interrupted:
    """ShareGPT, with something that happens to the file before it is read for the second time."""

    def __init__(self, happens: Callable[[Path], object]) -> None:
        self._happens, self._first = happens, True

    def reading(self, file: Path) -> Iterator[Found]:
        if not self._first:
            self._happens(file)
        self._first = False
        yield from READS.reading(file)


def _rewritten(*said: str) -> Callable[[Path], object]:
    return lambda file: lined(file.parent, *(entry(text) for text in said), name=file.name)


CHANGED = {
    "another row": _rewritten("1", "x", "3"),
    "fewer rows": _rewritten("1", "2"),
    "none": _rewritten(),
    "more rows": _rewritten("1", "2", "3", "4"),
    "another order": _rewritten("3", "2", "1"),
    "one row twice": _rewritten("1", "2", "2"),
    "cut off": lambda file: file.write_text(file.read_text()[:-3]),
    "a bad row": lambda file: file.write_text(file.read_text().replace('"2"', "2")),
    "no text": lambda file: file.write_bytes(b"\xff"),
}


@pytest.mark.parametrize("happens", CHANGED.values(), ids=CHANGED)
async def test_a_file_that_changes_meanwhile_is_not_stored(
    database: Database, tmp_path: Path, happens: Callable[[Path], object]
) -> None:
    """What is stored is what was looked through: a file that says something else then stores nothing."""
    file = lined(tmp_path, *(entry(text) for text in "123"))
    reads: Reads = _Interrupted(happens)
    with pytest.raises(ImportStopped, match="changed while it was imported"):
        await imports.load(database, Source(reads, [file], "li", "unused"), Options())
    await _untouched(database)


async def test_a_file_that_goes_away_meanwhile_is_not_stored(database: Database, tmp_path: Path) -> None:
    """A file that is deleted after it was looked through is named, and nothing is stored."""
    file = lined(tmp_path, entry("1"))
    reads: Reads = _Interrupted(Path.unlink)
    with pytest.raises(FileNotFoundError, match=file.name):
        await imports.load(database, Source(reads, [file], "li", "unused"), Options())
    await _untouched(database)


async def test_a_file_that_is_written_anew_with_the_same_rows_is_stored(database: Database, tmp_path: Path) -> None:
    """Control: only what the rows say counts, not the file's time or white space."""
    file = lined(tmp_path, *(entry(text) for text in "123"))
    reads: Reads = _Interrupted(lambda file: file.write_text(file.read_text().replace("\n", "\n\n")))
    assert await imports.load(database, Source(reads, [file], "li", "unused"), Options()) == Report(added=3)


async def _steps(database: Database) -> Sequence[Step]:
    async with database.read() as session:
        return (await session.scalars(select(Step))).all()


@pytest.fixture(scope="module")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A new database, to be copied."""
    path = tmp_path_factory.mktemp("migrated") / "prefanno.db"
    upgrade.upgrade(path)
    return path


ROWS = st.builds(
    Row,
    mode=modes,
    system_prompt=st.sampled_from(["You are Li.", "你是离。"]),
    context=contexts,
    human_input=words,
    chosen=words,
    chosen_thinking=thoughts,
    rejected=words,
    rejected_thinking=thoughts,
    created_at=st.just(SINGLE.created_at),
    weight=st.sampled_from([1.0, 0.5]),
)


@examples(unhurried, max_examples=40)
@given(first=st.lists(ROWS, max_size=6), second=st.lists(ROWS, max_size=6), skip_near=st.booleans())
def test_importing_twice_adds_nothing(migrated: Path, first: list[Row], second: list[Row], skip_near: bool) -> None:
    """Whatever is in the files and was there before: after an import, the same import finds nothing new."""

    async def imported_twice(folder: Path) -> None:
        one, two = written(folder / "one", first), written(folder / "two", second)
        async with Database.open(Path(shutil.copy(migrated, folder))) as database:
            await load(database, *one)
            done = await load(database, *two, options=Options(skip_near=skip_near))
            before = await rows(database)
            again = await load(database, *two, options=Options(skip_near=skip_near))
            assert again.added == 0 and await rows(database) == before
            if not skip_near:
                assert again == Report(duplicates=done.added + done.duplicates)
                said = {duplicates.exact(row) for row in [*first, *second]}
                assert len(before) == len(said) == len({duplicates.exact(row) for row in before})

    with tempfile.TemporaryDirectory() as folder:
        asyncio.run(imported_twice(Path(folder)))
