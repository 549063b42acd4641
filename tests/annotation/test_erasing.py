"""Erasing for good: what goes, what stays, and what the rest of the history then does."""

import sqlite3
from dataclasses import replace
from typing import Any

import pytest
from sqlalchemy import func, insert, select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset, history
from prefanno.annotation.erasing import Erased, erase
from prefanno.db import annotations, characters, search
from prefanno.db.annotations import Filters
from prefanno.db.engine import Database
from prefanno.db.idempotency import once
from prefanno.db.models import Annotation, Candidate, Event, Generation, IdempotencyKey, Step
from prefanno.errors import NotFound, NothingToUndo
from prefanno.settings import Settings
from tests import looking
from tests.annotation.test_conversations import choose, decided, turn
from tests.annotation.test_dataset import SINGLE, counts
from tests.annotation.test_history import add, edit, record, redo, set_deleted, table, undo

MODELS = (Annotation, Step, Event, Generation, Candidate, IdempotencyKey)
COMMON_LIMIT = 32_766  # variables in one statement, as SQLite has it by default; some builds allow more


async def _erase(database: Database, *numbers: int) -> Erased:
    return await database.write(lambda session: erase(session, numbers))


async def _sizes(database: Database) -> list[int]:
    """How many rows there are of `MODELS`."""
    async with database.read() as session:
        return [await session.scalar(select(func.count()).select_from(model)) or 0 for model in MODELS]


async def _found(database: Database, q: str, of: str = "li") -> list[int]:
    async with database.read() as session:
        return list(await annotations.ids(session, Filters(of, q=q)))


def _blocks(settings: Settings) -> bytes:
    """The search index as it lies in its table: tokens that were only marked as deleted are still in it."""
    return b"".join(block for (block,) in looking.fetch(settings.database, "SELECT block FROM annotation_search_data"))


async def _import(database: Database, number: int) -> list[int]:
    """This many annotations as one step."""
    rows = [replace(SINGLE, human_input=f"row {one}") for one in range(number)]

    async def work(session: AsyncSession) -> list[int]:
        added = [dataset.to_annotation("li", row) for row in rows]
        await history.add(session, added, "import")
        return [annotation.id for annotation in added]

    return await database.write(work)


async def test_nothing_of_a_choice_is_left(database: Database) -> None:
    """The annotation, all its events, its steps and undos, its generation and its candidates go; the report says so."""
    before = await _sizes(database)
    number = await choose(database, await turn(database, "?", "a", "b", "c"), "best", chosen=1, note="hm")
    await edit(database, number, note="other")
    await undo(database)
    await redo(database)
    await set_deleted(database, number)
    assert await _sizes(database) != before
    assert await _erase(database, number) == Erased(annotations=1, events=5, generations=1, kept=0)
    assert await _sizes(database) == before


async def test_everything_else_stays(database: Database) -> None:
    """Other annotations with their events, steps, generations and candidates are untouched, word for word."""
    kept = [*await add(database, "kept"), await choose(database, await turn(database, "?"), "bad")]
    await edit(database, kept[0], note="hm")
    gone = await add(database, "gone")
    expected = await table(database), await record(database), await _sizes(database)
    gone += [await choose(database, await turn(database, "!"), "best", chosen=2)]
    await _erase(database, *gone)
    rows, events, sizes = await table(database), await record(database), await _sizes(database)
    assert list(rows) == kept and rows == {number: expected[0][number] for number in kept}
    assert events == [event for event in expected[1] if event[2] in kept]
    assert sizes == [size - less for size, less in zip(expected[2], (1, 1, 1, 0, 0, 0), strict=True)]


async def test_a_step_that_touched_others_stays(database: Database) -> None:
    """Of an import of three, the two that are left are still one step, which is undone as such."""
    first, second, third = await _import(database, 3)
    await _erase(database, second)
    assert await undo(database) == ("import", 2)
    assert {number: row["deleted"] for number, row in (await table(database)).items()} == {first: True, third: True}
    assert await redo(database) == ("import", 2)
    assert await counts(database) == {"single": 2, "multi": 0}


async def test_a_turn_that_others_go_on_from_stays(database: Database) -> None:
    """Its choice goes; its message and candidates stay for the later turns, whose words they are."""
    first = await decided(database, "Hi")
    await decided(database, "Who?", parent=first)
    number, _ = sorted(await table(database))
    assert await _erase(database, number) == Erased(1, 1, generations=0, kept=1)
    assert await _sizes(database) == [1, 1, 1, 2, 4, 0]


async def test_a_kept_turn_goes_with_the_last_that_goes_on(database: Database) -> None:
    """Nothing else could remove it afterwards: no annotation names it any more."""
    first = await decided(database, "Hi")
    await decided(database, "Who?", parent=first)
    for number in sorted(await table(database)):
        await _erase(database, number)
    assert await _sizes(database) == [0] * len(MODELS)


async def test_a_whole_conversation_is_erased_at_once(database: Database) -> None:
    """Named in any order, all turns of a tree go, the last ones first."""
    first = await decided(database, "Hi")
    second = await decided(database, "Who?", parent=first)
    await decided(database, "Or?", parent=first)
    await decided(database, "And?", parent=second)
    numbers = list(await table(database))
    assert await _erase(database, *numbers) == Erased(4, 4, generations=4, kept=0)
    assert await _sizes(database) == [0] * len(MODELS)


async def test_answers_about_it_are_forgotten(database: Database) -> None:
    """Answers under idempotency keys that hold its words go, their keys stay; other answers stay as they are."""
    one, other = await add(database, "one", "other")
    answers: dict[str, dict[str, Any]] = {
        "one": {"id": one, "note": "secret"},
        "edit": {"id": one},
        "other": {"id": other},
        "none": {"changed": one},
    }
    for key, answer in answers.items():

        async def work(_session: AsyncSession, answer: dict[str, Any] = answer) -> dict[str, Any]:
            return answer

        await database.write(once(key, "f", work))
    await _erase(database, one)
    async with database.read() as session:
        left = {one.key: one.answer for one in await session.scalars(select(IdempotencyKey))}
    assert left == {"one": {}, "edit": {}, "other": answers["other"], "none": answers["none"]}


async def test_its_words_leave_the_search_index(database: Database, settings: Settings) -> None:
    """It is found no more, and no token of its words is in the index, but those that others have, too."""
    await add(database, "shared words")
    gone = await add(database, "shared secret 秘密")
    await edit(database, gone[0], note="another 🦊 note")
    await set_deleted(database, *gone)
    assert looking.tokens(settings.database, "秘密") <= looking.indexed(
        settings.database
    )  # control: it is in it until then
    await _erase(database, *gone)
    assert await _found(database, "秘密") == await _found(database, "secret") == []
    assert len(await _found(database, "shared")) == 1
    async with database.read() as session:
        kept = search.words(await annotations.get(session, 1))
    assert looking.indexed(settings.database) == looking.tokens(settings.database, kept)


@pytest.mark.sqlite_only
async def test_no_token_is_left_in_the_file(database: Database, settings: Settings) -> None:
    """Not even among those that FTS5 only marks as deleted."""
    gone = await add(database, "secret 秘密")
    assert b"x5bc6" in _blocks(settings)  # control
    await _erase(database, *gone)
    assert b"x5bc6" not in _blocks(settings)


@pytest.mark.parametrize("deleted", [False, True])
async def test_the_counts_follow(database: Database, deleted: bool) -> None:
    """What was listed is counted no more; what was not listed changes no count; another character's stay."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    await add(database, "mia's", of="mia")
    one, _ = await add(database, "one", "other")
    talk = await choose(database, await turn(database, "?"), "best", chosen=1)
    skipped = await choose(database, await turn(database, "?"), "skip")
    if deleted:
        await set_deleted(database, one, talk)
    await _erase(database, one, talk, skipped)
    assert await counts(database) == {"single": 1, "multi": 0}
    async with database.read() as session:
        assert await annotations.counts(session, "mia") == {"single": 1, "multi": 0}


@pytest.mark.parametrize("place", [0, 1, 700])
async def test_an_unknown_id_removes_nothing(database: Database, settings: Settings, place: int) -> None:
    """Where one of the ids is unknown, wherever it stands, it is named and all stay, index and counts included."""
    numbers = await _import(database, 700)
    before = await table(database), await record(database), await _sizes(database), looking.indexed(settings.database)
    with pytest.raises(NotFound, match="999999"):
        await _erase(database, *numbers[:place], 999_999, *numbers[place:])
    assert (
        await table(database),
        await record(database),
        await _sizes(database),
        looking.indexed(settings.database),
    ) == before
    assert await counts(database) == {"single": 700, "multi": 0}


async def test_many_are_erased_at_once(database: Database, settings: Settings) -> None:
    """More than one statement takes, one of them named twice, each choice with candidates or without."""
    numbers = await _import(database, 2 * annotations.PART + 1)
    for _ in range(3):
        numbers.append(await choose(database, await turn(database, "?"), "best", chosen=1))
    (kept,) = await add(database, "kept")
    assert await _erase(database, *numbers, numbers[0]) == Erased(1004, 1004, generations=3, kept=0)
    assert list(await table(database)) == [kept]
    assert await _sizes(database) == [1, 1, 1, 0, 0, 0]
    assert await counts(database) == {"single": 1, "multi": 0}
    assert not looking.tokens(settings.database, "row") <= looking.indexed(settings.database)


@pytest.mark.sqlite_only
async def test_a_long_history_is_erased_on_any_build(database: Database) -> None:
    """500 annotations with 41 events each go, also where SQLite takes no more variables than it does by default."""
    numbers = await _import(database, annotations.PART)

    async def work(session: AsyncSession) -> Erased:
        steps = [Step(character="li", kind="restore") for _ in range(40)]
        session.add_all(steps)
        await session.flush()
        events = [(step.id, number) for step in steps for number in numbers]
        rows = [{"step_id": step, "annotation_id": number, "before": {}, "after": {}} for step, number in events]
        await session.execute(insert(Event), rows)
        raw = await (await session.connection()).get_raw_connection()
        connection = raw.driver_connection
        assert isinstance(connection, sqlite3.Connection)
        connection.setlimit(sqlite3.SQLITE_LIMIT_VARIABLE_NUMBER, COMMON_LIMIT)
        return await erase(session, numbers)

    assert await database.write(work) == Erased(500, 20_500, generations=0, kept=0)


async def test_undo_does_not_bring_it_back(database: Database) -> None:
    """Neither the steps before nor those after it fail, and none makes it anew."""
    (kept,) = await add(database, "kept")
    (gone,) = await add(database, "gone")
    await edit(database, gone, note="hm")
    await set_deleted(database, kept, gone)
    await edit(database, (await add(database, "later"))[0], note="later")
    await undo(database)
    await _erase(database, gone)
    assert await redo(database) == ("edit", 1)
    kinds = [await undo(database) for _ in range(4)]
    assert kinds == [("edit", 1), ("add", 1), ("delete", 1), ("add", 1)]
    with pytest.raises(NothingToUndo):
        await undo(database)
    assert gone not in await table(database)
    for _ in kinds:
        await redo(database)
    assert {number: row["deleted"] for number, row in (await table(database)).items()} == {kept: True, gone + 1: False}


async def test_an_erased_row_can_be_imported_again(database: Database) -> None:
    """Its words are unknown afterwards: the same words are a new annotation with a new id."""
    (gone,) = await add(database, "Hi")
    await _erase(database, gone)
    (again,) = await add(database, "Hi")
    assert again > gone
    assert await _found(database, "Hi") == [again]


async def test_what_came_as_texts_takes_its_generation_along(database: Database) -> None:
    """A client that sent texts chose among candidates, too; they go, also where its question was edited since."""
    (number,) = await add(database, "Who are you?")
    await edit(database, number, human_input="Who is it?")
    mine = await turn(database, "Who are you?", str(SINGLE.chosen), "b", mode="single")
    await turn(database, "Who are you?", "something else", mode="single")
    assert (await _erase(database, number)).generations == 1
    async with database.read() as session:
        left = (await session.scalars(select(Generation.id))).all()
    assert left == [mine + 1]
