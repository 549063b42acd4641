"""Steps: recorded, counted, undone and redone as wholes; the record only grows."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy import func, select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset, history, imports
from prefanno.annotation.imports import Options, Report, Source
from prefanno.db import annotations, characters
from prefanno.db.annotations import Filters
from prefanno.db.engine import Database
from prefanno.db.models import Annotation, Event, Step
from prefanno.errors import InvalidInput, NothingToUndo, PrefannoError
from prefanno.rows import reader, writer
from tests.annotation.test_conversations import choose, turn
from tests.annotation.test_dataset import MULTI, SINGLE, counts
from tests.properties import unhurried

Table = dict[int, dict[str, Any]]  # every field of every annotation; of a deletion only whether, since a redo is later
Act = tuple[str, int, int]  # what, at which place, and with what
Record = list[tuple[Any, ...]]

SAID: dict[str, dict[str, Any]] = {"best": {"chosen": 1}, "ranking": {"ranking": [[2], [1]]}, "good": {"chosen": 2}}
SAID |= {"bad": {}, "skip": {}, "edit": {"chosen": 1, "content": "mine"}}


async def add(database: Database, *inputs: str, of: str = "li") -> list[int]:
    """An annotation for each of these inputs, each a step."""
    rows = [replace(SINGLE, human_input=text) for text in inputs]
    return [(await database.write(partial(dataset.add, character=of, row=row))).id for row in rows]


async def set_deleted(database: Database, *numbers: int, deleted: bool = True) -> int:
    """Delete or restore these in one step."""
    return await database.write(lambda session: dataset.set_deleted(session, numbers, deleted))


async def edit(database: Database, number: int, **fields: Any) -> Annotation:
    """Change these fields in one step."""
    return await database.write(lambda session: dataset.edit(session, number, fields))


async def undo(database: Database, of: str = "li") -> tuple[str, int]:
    """Undo; the kind of the step and how many annotations it touched."""
    step, changed = await database.write(lambda session: history.undo(session, of))
    return step.kind, changed


async def redo(database: Database, of: str = "li") -> tuple[str, int]:
    """Redo; the kind of the step and how many annotations it touched."""
    step, changed = await database.write(lambda session: history.redo(session, of))
    return step.kind, changed


async def table(database: Database, of: str = "li") -> Table:
    """All annotations of a character, field by field."""
    columns = [column.key for column in Annotation.__table__.columns if column.key != "deleted_at"]
    async with database.read() as session:
        found = (await session.scalars(select(Annotation).where(Annotation.character == of))).all()
    return {
        one.id: {name: getattr(one, name) for name in columns} | {"deleted": one.deleted_at is not None}
        for one in found
    }


async def record(database: Database, of: str = "li") -> Record:
    """Every event of the character's, with what does not change in its step."""
    columns = (Event.id, Event.step_id, Event.annotation_id, Event.before, Event.after)
    query = select(*columns, Step.kind, Step.annotator, Step.created_at).join(Step, Step.id == Event.step_id)
    async with database.read() as session:
        found = await session.execute(query.where(Step.character == of).order_by(Event.id))
    return [tuple(row) for row in found]


async def _states(database: Database) -> list[tuple[str, str]]:
    async with database.read() as session:
        found = await session.execute(select(Step.kind, Step.state).order_by(Step.id))
    return [(kind, state) for kind, state in found]


def _restored(now: Table, then: Table) -> bool:
    """Whether everything is as it was then; what was added since stays, deleted."""
    return all(now[number] == then[number] if number in then else now[number]["deleted"] for number in now)


async def _assert_consistent(database: Database, of: str, now: Table) -> None:
    """What is listed is not deleted and of use in its dataset; the counts count just that; a filter finds all."""
    for row in now.values():
        ranks = {reply["rank"] for reply in row["replies"] if reply["rank"] is not None}
        needed = 1 if row["mode"] == "multi" else 2
        useful = row["verdict"] not in ("bad", "skip") and len(ranks) >= needed
        assert row["listed"] == (not row["deleted"] and useful)
    async with database.read() as session:
        counted = await annotations.counts(session, of)
        shown = await annotations.ids(session, Filters(of))
    for mode, count in counted.items():
        assert count == sum(row["listed"] for row in now.values() if row["mode"] == mode)
    assert set(shown) == {number for number, row in now.items() if not row["deleted"]}


async def _newcomer(database: Database) -> tuple[str, list[int]]:
    """A character without history, with two generations to choose among."""
    async with database.read() as session:
        of = f"c{len(await characters.everyone(session))}"
    await database.write(lambda session: characters.create(session, of, of, None))
    return of, [await turn(database, "?", of=of, mode=mode) for mode in ("single", "multi")]


async def _do(database: Database, of: str, turns: Sequence[int], act: Act) -> None:
    """One act of a person; what is refused is refused."""
    name, place, value = act
    numbers = sorted(await table(database, of))
    one = numbers[place % len(numbers)] if numbers else 0
    try:
        if name == "add":
            await add(database, f"text {value}", of=of)
        elif name == "choose":
            verdict = sorted(SAID)[value % len(SAID)]
            await choose(database, turns[place % 2], verdict, **SAID[verdict])
        elif name == "edit":
            await edit(database, one, **EDITS[value % len(EDITS)])
        elif name in ("delete", "restore"):
            some = [number for number in numbers if value >> (number % 4) & 1]
            await set_deleted(database, *some, deleted=name == "delete")
        else:
            await (undo if name == "undo" else redo)(database, of)
    except PrefannoError:
        pass


EDITS: list[dict[str, Any]] = [
    {"note": "hm"},
    {"note": None, "reasons": ["warm", "离"]},
    {"human_input": "你是谁？🦊", "annotator": "Ann"},
    {"verdict": "skip", "replies": [{"content": "a", "thinking": None, "rank": None, "candidate": None}]},
    {"verdict": "good", "replies": [{"content": "b", "thinking": "t", "rank": 1, "candidate": 7}]},
    {"context": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]},
]
WHAT = ["add", "add", "choose", "edit", "edit", "delete", "restore", *["undo"] * 5, *["redo"] * 4]
ACTS = st.tuples(st.sampled_from(WHAT), st.integers(0, 5), st.integers(0, 15))


@settings(  # a character of its own for each example
    unhurried, max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(ACTS, min_size=5, max_size=25))
async def test_undo_and_redo_restore_every_field(database: Database, acts: list[Act]) -> None:
    """Whatever was done, undo and redo walk along the states there were; the record grows, counts are right."""
    of, turns = await _newcomer(database)
    now, recorded = await table(database, of), await record(database, of)
    states, at = [now], 0
    for act in acts:
        await _do(database, of, turns, act)
        last, now = now, await table(database, of)
        if act[0] in ("undo", "redo"):
            at = max(at - 1, 0) if act[0] == "undo" else min(at + 1, len(states) - 1)
            assert _restored(now, states[at])
        elif now != last:
            states[at + 1 :] = [now]
            at += 1
        before, recorded = recorded, await record(database, of)
        assert recorded[: len(before)] == before
        await _assert_consistent(database, of, now)


async def test_a_field_that_is_not_restored_is_found_out(database: Database) -> None:
    """Control: where one field differs, or something added since is not deleted, the check of the property says so."""
    (number,) = await add(database, "Hi")
    then = await table(database)
    assert _restored(then, then)
    assert not _restored({number: then[number] | {"note": "other"}}, then)
    assert not _restored(then, {})


async def test_something_new_leaves_nothing_to_redo(database: Database) -> None:
    """After an undo, a new step drops what was undone; undo goes on before it, and the record keeps all."""
    await add(database, "1", "2")
    await undo(database)
    (third,) = await add(database, "3")
    with pytest.raises(NothingToUndo):
        await redo(database)
    assert await _states(database) == [("add", "done"), ("add", "undone"), ("undo", "final"), ("add", "done")]
    assert [await undo(database), await undo(database)] == [("add", 1), ("add", 1)]
    with pytest.raises(NothingToUndo):
        await undo(database)
    assert all(row["deleted"] for row in (await table(database)).values())
    for deleted in (True, False):  # redo goes forwards: the first step comes first
        assert await redo(database) == ("add", 1)
        assert (await table(database))[third]["deleted"] == deleted


async def test_a_bulk_delete_is_one_step(database: Database) -> None:
    """Any number are deleted at once and come back at once; those that were deleted before stay so."""
    numbers = await add(database, "1", "2", "3", "4")
    await set_deleted(database, numbers[1])
    before = await table(database)
    assert await set_deleted(database, *numbers, numbers[0]) == 3
    assert await counts(database) == {"single": 0, "multi": 0}
    assert await undo(database) == ("delete", 3)
    assert await table(database) == before
    assert await counts(database) == {"single": 3, "multi": 0}


async def test_an_import_is_taken_back_as_a_whole(database: Database, tmp_path: Path) -> None:
    """Undo takes back each row of the import, and nothing else; redo gives all of them again."""
    with writer("sharegpt").writing(tmp_path, "li") as writing:
        writing.write([replace(SINGLE, human_input=str(number)) for number in range(600)])
        writing.write([replace(MULTI, human_input=str(number)) for number in range(5)])
    await add(database, "mine")
    source = Source(reader("sharegpt"), [tmp_path / name for name in writing.counts], "li", "unused")
    assert await imports.load(database, source, Options()) == Report(added=605)
    assert await undo(database) == ("import", 605)
    assert [row["human_input"] for row in (await table(database)).values() if not row["deleted"]] == ["mine"]
    assert await counts(database) == {"single": 1, "multi": 0}
    assert await redo(database) == ("import", 605)
    assert await counts(database) == {"single": 601, "multi": 5}


async def test_a_change_that_changes_nothing_is_no_step(database: Database) -> None:
    """An edit to the same, deleting what is deleted, the same choice again: no step, and redo stays possible."""
    (number,) = await add(database, "Hi")
    generation = await turn(database, "?")
    await choose(database, generation, "best", chosen=1)
    await edit(database, number, note="hm")
    await undo(database)
    before = await record(database), await _states(database)
    await edit(database, number, human_input="Hi", note=None)
    assert await set_deleted(database, number, deleted=False) == 0
    await choose(database, generation, "best", chosen=1)
    assert (await record(database), await _states(database)) == before
    assert await redo(database) == ("edit", 1)


async def test_each_character_has_a_stack_of_its_own(database: Database) -> None:
    """Undo takes back the character's own last step, and something new of another's drops nothing of it."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    await add(database, "li's")
    await add(database, "mia's", of="mia")
    assert await undo(database) == ("add", 1)
    await add(database, "mia's too", of="mia")
    assert await redo(database) == ("add", 1)
    with pytest.raises(NothingToUndo):
        await redo(database, "mia")
    assert await undo(database, "mia") == ("add", 1)
    assert [row["deleted"] for row in (await table(database)).values()] == [False]
    assert [row["deleted"] for row in (await table(database, "mia")).values()] == [False, True]


async def test_annotations_of_two_characters_are_not_changed_at_once(database: Database) -> None:
    """One step belongs to one history: a mixed deletion is refused, naming the field, and changes nothing."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    rows = [dataset.to_annotation("li", SINGLE) for _ in range(annotations.PART)]
    await database.write(lambda session: history.add(session, rows))
    numbers = [*(await table(database)), *await add(database, "mia's", of="mia")]
    before = await table(database), await record(database)
    with pytest.raises(InvalidInput) as refused:
        await set_deleted(database, *numbers)
    assert list(refused.value.fields) == ["ids"]
    assert (await table(database), await record(database)) == before


async def test_choosing_again_edits_the_first_choice(database: Database) -> None:
    """One generation has one annotation; undo gives back the first choice with its reasons, note and annotator."""
    generation = await turn(database, "?")
    first = await choose(database, generation, "best", chosen=2, reasons=["warm"], note="hm", annotator="Ann")
    before = await table(database)
    second = await choose(database, generation, "bad", annotator="Bob")
    assert second == first and await counts(database) == {"single": 0, "multi": 0}
    assert await undo(database) == ("choose", 1)
    assert await table(database) == before and await counts(database) == {"single": 0, "multi": 1}
    assert await redo(database) == ("choose", 1)
    row = (await table(database))[first]
    assert (row["verdict"], row["reasons"], row["note"], row["annotator"]) == ("bad", [], None, "Bob")


async def test_choosing_again_brings_a_deleted_choice_back(database: Database) -> None:
    """A new choice at a generation whose choice was deleted is listed; undo deletes it again, as it was."""
    generation = await turn(database, "?")
    number = await choose(database, generation, "best", chosen=2)
    await set_deleted(database, number)
    before = await table(database)
    await choose(database, generation, "best", chosen=1)
    assert await counts(database) == {"single": 0, "multi": 1}
    await undo(database)
    assert await table(database) == before and await counts(database) == {"single": 0, "multi": 0}


async def test_steps_in_one_transaction_are_as_one_by_one(database: Database) -> None:
    """Steps that are asked for at once, refused ones among them, happen in their order, as if alone."""

    async def fail(session: AsyncSession) -> None:
        await dataset.edit(session, 1, {"note": "lost"})
        await history.undo(session, "li")
        raise ValueError("a fault of the request's own")

    acts = [undo(database), database.write(fail), add(database, "4"), redo(database), edit(database, 2, note="kept")]
    await add(database, "1", "2", "3")
    results = await asyncio.gather(*acts, undo(database), database.write(fail), redo(database), return_exceptions=True)
    assert [type(result) for result in results[1:4]] == [ValueError, list, NothingToUndo]
    assert results[0] == ("add", 1) and results[5] == results[7] == ("edit", 1)
    rows = await table(database)
    assert [(row["note"], row["deleted"]) for row in rows.values()] == [
        (None, False),
        ("kept", False),
        (None, True),
        (None, False),
    ]
    await _assert_consistent(database, "li", rows)


async def test_many_choices_at_once_are_one_annotation(database: Database) -> None:
    """Twenty different choices among the same candidates edit one annotation, each in a step of its own."""
    generation = await turn(database, "?")
    asked = [choose(database, generation, "best", chosen=1, note=str(number)) for number in range(20)]
    assert len(set(await asyncio.gather(*asked))) == 1
    async with database.read() as session:
        assert await session.scalar(select(func.count()).select_from(Step)) == 20
    assert await counts(database) == {"single": 0, "multi": 1}
