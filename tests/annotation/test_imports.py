"""Files read back: equal, once, all or none, as one step, with a report of what is in them."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from prefanno.annotation import history, imports
from prefanno.annotation.export import export
from prefanno.annotation.imports import HELD, LISTED, TURN, Options, Place, Report
from prefanno.db import characters, upgrade
from prefanno.db.engine import Database
from prefanno.db.models import Step
from prefanno.errors import InvalidInput
from tests.annotation.importing import GOOD, PERSONA, entry, lined, load, written
from tests.annotation.test_dataset import MULTI, SINGLE, add, counts, rows

ROWS = [
    SINGLE,
    replace(SINGLE, context=[], chosen_thinking="一\n二", rejected_thinking='</think> "quoted"'),
    replace(SINGLE, context=[], chosen="<think>\nnot mine\n</think>\n\nbut said", chosen_thinking=None),
    MULTI,
    replace(MULTI, rejected="nein", chosen_thinking="hm", system_prompt="Sei kurz. 🦊"),
    replace(SINGLE, rejected=None, chosen="good by itself"),
    replace(SINGLE, chosen=None, rejected="bad by itself", weight=0.25),
]
BAD: dict[str, list[str]] = {"conversations": []}


async def _steps(database: Database) -> list[str]:
    async with database.read() as session:
        return list((await session.scalars(select(Step.kind).order_by(Step.id))).all())


async def test_what_was_exported_comes_back_equal(database: Database, tmp_path: Path) -> None:
    """All files, read into an empty database, give the same rows with the same times and weights, each once."""
    for row in ROWS:
        await add(database, row)
    manifest = await export(database, "sharegpt", tmp_path, "li")
    upgrade.upgrade(tmp_path / "other.db")
    async with Database.open(tmp_path / "other.db") as other:
        # The conversation with a rejected reply is in two files.
        report = await load(other, *(tmp_path / name for name in manifest.files))
        assert report == Report(added=len(ROWS), duplicates=1)
        assert sorted(await rows(other), key=repr) == sorted(ROWS, key=repr)
        assert await rows(database) == ROWS


async def test_what_is_there_already_is_left_out(database: Database, tmp_path: Path) -> None:
    """Importing twice adds nothing; a row that differs in one word, or in its thinking, is another one."""
    await add(database, SINGLE)
    changed = [
        replace(SINGLE, chosen="我叫离，你呢"),
        replace(SINGLE, chosen_thinking="hm"),
        replace(SINGLE, system_prompt="Be Li."),
        replace(SINGLE, context=[]),
        replace(SINGLE, mode="multi"),
    ]
    files = written(tmp_path, [SINGLE, *changed])
    report = await load(database, *files)
    # The last one, a conversation with a rejected reply, is in two files.
    assert (report.added, report.duplicates, report.bad) == (len(changed), 2, 0)
    assert sorted(await rows(database), key=repr) == sorted([SINGLE, *changed], key=repr)
    assert await load(database, *files) == Report(duplicates=len(changed) + 2)


async def test_another_character_has_rows_of_its_own(database: Database, tmp_path: Path) -> None:
    """The same row is no duplicate where another character has it."""
    await database.write(lambda session: characters.create(session, "mei", "Mei", None))
    await add(database, SINGLE, "mei")
    assert await load(database, *written(tmp_path, [SINGLE])) == Report(added=1)
    assert await rows(database) == await rows(database, "mei") == [SINGLE]


async def test_what_was_deleted_can_be_imported_again(database: Database, tmp_path: Path) -> None:
    """A row of an annotation that is deleted is not there."""
    files = written(tmp_path, [SINGLE])
    await load(database, *files)
    await database.write(lambda session: history.undo(session, "li"))
    assert await load(database, *files) == Report(added=1)


async def test_rows_without_a_persona_get_the_default(database: Database, tmp_path: Path) -> None:
    """A file that names no system prompt is read under the persona in force; one that does keeps its own."""
    await load(database, lined(tmp_path, GOOD, {**GOOD, "system": "Be brief."}))
    assert [row.system_prompt for row in await rows(database)] == [PERSONA, "Be brief."]


async def test_an_exact_duplicate_is_counted_wherever_it_stands(database: Database, tmp_path: Path) -> None:
    """In the database, earlier in the file, in another file: each is left out and counted, and the first is kept."""
    await load(database, lined(tmp_path, entry("there")))
    one = lined(tmp_path, entry("new"), entry("there"), entry("new"), name="one.json")
    two = lined(tmp_path, entry("new"), entry("newer"), name="two.json")
    assert await load(database, one, two) == Report(added=2, duplicates=3)
    assert [row.human_input for row in await rows(database)] == ["there", "new", "newer"]


async def test_a_near_duplicate_is_named_and_stored(database: Database, tmp_path: Path) -> None:
    """Near one in the database, in the file or in another file: each is named by file and line, and added."""
    await load(database, lined(tmp_path, entry("Who are you?")))
    one = lined(tmp_path, entry("who are you"), entry("Hi"), entry("hi!"), name="one.json")
    two = lined(tmp_path, entry("HI"), entry("Hi"), name="two.json")
    report = await load(database, one, two)
    near = [Place(one, 2), Place(one, 4), Place(two, 2)]
    assert report == Report(added=4, duplicates=1, near=3, near_rows=near)
    assert len(await rows(database)) == 5


async def test_near_duplicates_can_be_left_out(database: Database, tmp_path: Path) -> None:
    """With `skip_near` the first of those that are near each other is stored, the others are named."""
    await load(database, lined(tmp_path, entry("Who are you?")))
    file = lined(tmp_path, entry("who are you"), entry("Hi"), entry("hi!"), entry("hi!"), name="one.json")
    report = await load(database, file, options=Options(skip_near=True))
    assert report == Report(added=1, duplicates=1, near=2, near_rows=[Place(file, 2), Place(file, 4)])
    assert [row.human_input for row in await rows(database)] == ["Who are you?", "Hi"]


async def test_a_bad_row_keeps_all_of_all_files_out(database: Database, tmp_path: Path) -> None:
    """Of several files one has bad rows: each is named, all else is counted, and none of any file is stored."""
    good = lined(tmp_path, entry("1"), entry("1"), name="good.json")
    bad = lined(tmp_path, BAD, entry("2"), BAD, name="bad.json")
    report = await load(database, good, bad)
    assert (report.added, report.duplicates, report.bad) == (0, 1, 2)
    assert [place for place, _ in report.bad_rows] == [Place(bad, 2), Place(bad, 4)]
    assert await rows(database) == [] and await _steps(database) == []
    assert (await load(database, good)).added == 1  # control


async def test_bad_rows_can_be_skipped(database: Database, tmp_path: Path) -> None:
    """With `skip_bad` the good rows are stored, and the bad ones are named all the same."""
    file = lined(tmp_path, BAD, entry("1"), "text", entry("2"))
    report = await load(database, file, options=Options(skip_bad=True))
    assert (report.added, report.bad) == (2, 2)
    assert [place.line for place, _ in report.bad_rows] == [2, 4]
    assert [row.human_input for row in await rows(database)] == ["1", "2"]


@pytest.mark.parametrize("options", [Options(dry_run=True), Options(dry_run=True, skip_near=True, skip_bad=True)])
async def test_a_dry_run_says_what_would_be(database: Database, tmp_path: Path, options: Options) -> None:
    """It stores nothing, not even a step, and reports what the same import then reports."""
    await load(database, lined(tmp_path, entry("there")))
    before = await rows(database), await _steps(database)
    file = lined(tmp_path, entry("there"), entry("There"), entry("1"), entry("1!"), entry("1"), name="some.json")
    said = await load(database, file, options=options)
    assert (await rows(database), await _steps(database)) == before
    assert said == await load(database, file, options=replace(options, dry_run=False))
    assert said.added == (1 if options.skip_near else 3)
    assert len(await rows(database)) == 1 + said.added


async def test_a_dry_run_with_bad_rows_adds_what_the_import_would(database: Database, tmp_path: Path) -> None:
    """Nothing, unless the bad rows are skipped."""
    file = lined(tmp_path, BAD, entry("1"))
    for skip_bad in (False, True):
        said = await load(database, file, options=Options(dry_run=True, skip_bad=skip_bad))
        assert (said.added, said.bad) == (int(skip_bad), 1)
        assert (await load(database, file, options=Options(skip_bad=skip_bad))).added == said.added


async def test_what_is_named_is_bounded_and_what_is_counted_is_not(database: Database, tmp_path: Path) -> None:
    """Of thousands of bad rows and near duplicates the first thousand are named, and all are counted."""
    near = [entry("hi" + "!" * number) for number in range(LISTED + 6)]
    report = await load(
        database, lined(tmp_path, *[BAD] * (LISTED + 5), *near), options=Options(dry_run=True, skip_bad=True)
    )
    assert (report.bad, report.near, report.added) == (LISTED + 5, LISTED + 5, LISTED + 6)
    assert [place.line for place, _ in report.bad_rows] == list(range(2, LISTED + 2))
    assert [place.line for place in report.near_rows] == list(range(LISTED + 8, 2 * LISTED + 8))


async def test_an_import_is_one_step(database: Database, tmp_path: Path) -> None:
    """However many rows and files, one undo takes back all of it and nothing else; nothing new is no step."""
    await add(database, SINGLE)
    one = lined(tmp_path, *(entry(f"1/{number}") for number in range(700)), name="one.json")
    two = lined(tmp_path, *(entry(f"2/{number}") for number in range(5)), name="two.json")
    assert (await load(database, one, two)).added == 705
    assert await _steps(database) == ["add", "import"]
    assert await counts(database) == {"single": 706, "multi": 0}
    await load(database, one, two)
    assert await _steps(database) == ["add", "import"]
    _, changed = await database.write(lambda session: history.undo(session, "li"))
    assert changed == 705 and await rows(database) == [SINGLE]
    assert await counts(database) == {"single": 1, "multi": 0}


@pytest.mark.parametrize("place", ["chosen", "context"])
async def test_few_long_rows_are_held_at_once(database: Database, tmp_path: Path, place: str) -> None:
    """A small file may hold rows of megabytes: they are looked at, and stored, a few at a time."""
    size = HELD // 4
    turns: list[Any] = [{"role": role, "content": "a"} for role in ("user", "assistant")] * (HELD // 8 // TURN)
    long = replace(SINGLE, context=turns) if place == "context" else replace(SINGLE, chosen="a" * size)
    files = written(tmp_path, [replace(long, human_input=str(number)) for number in range(12)])
    told: list[int] = []
    assert (await load(database, *files, tell=told.append)).added == 12
    assert sum(told) == 24 and max(told) <= 5


async def test_how_far_it_is_can_be_told(database: Database, tmp_path: Path) -> None:
    """Every row is told once when it was looked at, and once when it was read again to be stored."""
    file = lined(tmp_path, *(entry(str(number)) for number in range(1200)), entry("1"))
    told: list[int] = []
    await load(database, file, tell=told.append)
    assert sum(told) == 2 * 1201 and len(told) > 4


async def test_an_import_without_end_is_refused(
    database: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """More rows than memory is meant for are refused with the cure, also where they are tiny; so many are taken."""
    monkeypatch.setattr(imports, "MOST", 3)
    with pytest.raises(InvalidInput, match="3 rows at most; split the file"):
        await load(database, lined(tmp_path, *[BAD] * 4))
    assert (await load(database, *written(tmp_path, [SINGLE, MULTI, replace(SINGLE, human_input="3")]))).added == 3
