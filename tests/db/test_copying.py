"""`prefanno db copy`: an SQLite file arrives in an empty PostgreSQL, whole, or not at all."""

import asyncio
import contextlib
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select, text
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import prompts
from prefanno.annotation import dataset, history
from prefanno.db import annotations, characters, copying, idempotency, postgresql, upgrade
from prefanno.db import prompts as queue
from prefanno.db.annotations import Filters
from prefanno.db.engine import Database
from prefanno.db.models import Annotation, Base, Candidate, Comparison, Generation, Round, Run
from prefanno.errors import Conflict, DatabaseDamaged, DatabaseUnavailable
from prefanno.prompts import NewPrompt
from prefanno.settings import Postgres
from tests import postgres

pytestmark = pytest.mark.needs("PostgreSQL")

MOMENT = datetime.fromisoformat("2026-01-27T12:00:00.000001")
# A copy that kills itself when it tells for the n-th time.
KILLED = """
import asyncio, os, pathlib, sys
from itertools import count
from prefanno.db import copying
from prefanno.settings import Postgres
told = count(1)
kill = lambda _: next(told) == int(sys.argv[3]) and os.kill(os.getpid(), 9)
asyncio.run(copying.copy(pathlib.Path(sys.argv[1]), Postgres(sys.argv[2]), kill))
"""


def _annotation(number: int, **fields: Any) -> Annotation:
    said = f"离你 {number} 🦊 e\u0301 \u202e\n\t\"'\\"
    replies = [{"content": said[::-1], "thinking": None, "rank": 1, "candidate": None}]
    made = {"mode": "multi", "system_prompt": "p", "context": [], "human_input": said, "verdict": "good"}
    return Annotation(**(made | {"character": "li", "replies": replies, "weight": 0.1 + number / 3} | fields))


async def _fill(database: Database, rows: int) -> None:
    """Rows in every table, a deleted annotation, an erased id at the end of two tables, a key with its answer."""

    async def work(session: AsyncSession) -> dict[str, Any]:
        await characters.create(session, "Ä", "Z", "p\n")
        await characters.create(session, "a", "a", None)
        made = [_annotation(number, created_at=MOMENT) for number in range(rows)]
        await history.add(session, made)
        await history.add(session, [_annotation(0, character="Ä", reasons=["离", '"'], note="ÄB straße")])
        turn = Generation(
            message="m", context=[], settings={"mode": "multi", "t": 1e-7}, base_model="b", seed=2**31 - 1
        )
        session.add(turn)
        await session.flush()
        turn.conversation_id = turn.id
        session.add(Generation(message="n", context=[], settings={}, base_model="b", seed=0, parent_id=turn.id))
        session.add(Candidate(generation_id=turn.id, ordinal=1, content="c", finish_reason="stop", tokens=5))
        await prompts.add(session, "li", [NewPrompt(said) for said in ("离 🦊", "waits", "\n\t")])
        taken = (await queue.following(session, "li", "waiting", "given"))[0]
        taken.state, taken.taken_at, taken.generation_id, taken.disagreement = "taken", MOMENT, turn.id, 1 / 3
        session.add(Run(base_model="b", state="failed", exit_code=-9, reason="x" * 2000, ended_at=MOMENT))
        compared = {"adapter": "a", "against": "base", "settings": {"t": 1e-7}, "seed": 2**31 - 1, "promotes": True}
        session.add(comparison := Comparison(character="li", base_model="b", **compared))
        await session.flush()
        asked = {"message": "离 🦊", "context": [], "system_prompt": "p", "digest": "d", "swapped": True, "vote": "tie"}
        session.add(Round(comparison_id=comparison.id, ordinal=1, annotation_id=made[-1].id, voted_at=MOMENT, **asked))
        session.add(gone := Run(base_model="b", state="failed"))
        await session.flush()
        await session.delete(gone)
        return {"id": made[-1].id, "text": "答"}

    await database.write(idempotency.once("key", "f", work))
    await database.write(partial(dataset.set_deleted, numbers=[2], deleted=True))


@pytest.fixture
async def file(tmp_path: Path) -> Path:
    """A filled SQLite file."""
    made = tmp_path / "prefanno.db"
    upgrade.upgrade(made)
    async with Database.open(made) as database:
        await _fill(database, 2500)
    return made


@pytest.fixture
def target(postgresql: postgres.Postgres) -> Iterator[Postgres]:
    """A new database at the newest schema."""
    url = postgresql.make()
    upgrade.upgrade(Postgres(url))
    yield Postgres(url)
    postgresql.drop(url)


async def everything(where: Path | Postgres) -> dict[str, list[Any]]:
    """All rows of all tables, as the program reads them."""
    async with Database.open(where) as database, database.read() as session:
        return {
            table.name: sorted(tuple(row) for row in await session.execute(select(table)))
            if table.name in ("characters", "counts")
            else [tuple(row) for row in await session.execute(select(table).order_by(*table.primary_key))]
            for table in Base.metadata.sorted_tables
        }


async def found(where: Path | Postgres, q: str, of: str) -> list[int]:
    """The ids that a search finds."""
    async with Database.open(where) as database, database.read() as session:
        return [one.id for one in await annotations.page(session, Filters(of, q=q), None, 100)]


async def test_every_row_arrives_as_it_was(file: Path, target: Postgres) -> None:
    """All tables are equal, value by value; search finds the same; the sums are those of what is there."""
    heard: list[int] = []
    copied = await copying.copy(file, target, heard.append)
    held = await everything(file)
    assert await everything(target) == held and all(held.values())
    assert {name: sums.rows for name, sums in copied.items()} == {name: len(rows) for name, rows in held.items()}
    assert sum(heard) == await copying.size(file)
    for q, of in (("你 1999", "li"), ("äb STRASSE", "Ä"), ("nobody", "li")):
        assert await found(target, q, of) == await found(file, q, of)
    assert await found(target, "你 1999", "li")


async def test_what_is_added_afterwards_gets_new_ids(file: Path, target: Postgres) -> None:
    """No id is given again, not even that of a row which was gone before the copy; undo goes on where it was."""
    await copying.copy(file, target, lambda _: None)

    async def add(session: AsyncSession) -> tuple[int, int]:
        run, annotation = Run(base_model="b"), _annotation(0)
        session.add(run)
        await history.add(session, [annotation])
        return run.id, annotation.id

    async with Database.open(target) as database:
        assert await database.write(add) == (3, 2502)
        await database.write(lambda session: history.undo(session, "li"))
        await database.write(lambda session: history.undo(session, "li"))
        async with database.read() as session:
            assert (await annotations.get(session, 2)).deleted_at is None


async def test_the_sum_sees_a_changed_letter(file: Path, target: Postgres) -> None:
    """The control: one letter, one microsecond or one bit of a float changed on one side changes the table's sum."""
    before = await copying.copy(file, target, lambda _: None)
    changes = {
        "annotations": "UPDATE annotations SET human_input = human_input || ' ' WHERE id = 7",
        "characters": "UPDATE characters SET created_at = created_at + interval '1 microsecond' WHERE slug = 'a'",
        "events": "UPDATE events SET after = '{\"deleted\":true}' WHERE id = 7",
    }
    with postgres.asking(target.url) as asker:
        for change in changes.values():
            asker.execute(change)
    async with copying._begun(postgresql.readers(target)) as connection:
        after = {table.name: await copying._sum(connection, table, lambda _: None) for table in copying.TABLES}
    assert {name for name in before if before[name] != after[name]} == set(changes)


async def test_a_copy_that_differs_is_not_committed(file: Path, target: Postgres) -> None:
    """Where the target changes what it is given, nothing of it stays."""
    with postgres.asking(target.url) as asker:
        asker.execute(
            "CREATE FUNCTION spoil() RETURNS trigger LANGUAGE plpgsql AS "
            "$$BEGIN NEW.reason = 'another'; RETURN NEW; END$$;"
            "CREATE TRIGGER spoil BEFORE INSERT ON runs FOR EACH ROW EXECUTE FUNCTION spoil()"
        )
    empty = await everything(target)
    with pytest.raises(DatabaseUnavailable, match="the copy of runs differs"):
        await copying.copy(file, target, lambda _: None)
    assert await everything(target) == empty


@pytest.mark.parametrize(
    ("holds", "named"),
    [
        ("INSERT INTO idempotency_keys VALUES ('k', 'f', '{}', now())", "1 idempotency_keys"),
        ("UPDATE characters SET system_prompt = 'mine'", "1 characters"),
        ("INSERT INTO characters VALUES ('mia', now(), 'Mia')", "1 characters"),
    ],
)
async def test_what_a_person_made_is_not_written_over(file: Path, target: Postgres, holds: str, named: str) -> None:
    """A target that is not as new is refused, naming what it holds, and stays as it is."""
    with postgres.asking(target.url) as asker:
        asker.execute(holds)
    before = await everything(target)
    with pytest.raises(Conflict, match=f"is not empty \\({named}\\)"):
        await copying.copy(file, target, lambda _: None)
    assert await everything(target) == before


async def test_a_run_under_way_is_waited_for(file: Path, target: Postgres) -> None:
    """Its end would be written to the file, and the copy would say for ever that it runs."""
    async with Database.open(file) as database:
        await database.write(lambda session: session.execute(text("UPDATE runs SET state = 'running'")))
    with pytest.raises(Conflict, match="run 1 is under way"):
        await copying.copy(file, target, lambda _: None)


async def test_a_writer_that_does_not_end_is_named(
    file: Path, target: Postgres, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another server holds the writer's lock for too long, the error is the target's."""
    monkeypatch.setitem(postgresql.WRITES, "lock_timeout", "100ms")
    with postgres.asking(target.url) as asker:
        asker.execute(f"SELECT pg_advisory_lock({postgresql.WRITING})")
        with pytest.raises(DatabaseUnavailable, match=f"{target}: .*lock timeout"):
            await copying.copy(file, target, lambda _: None)


async def test_an_error_at_the_commit_is_the_targets(file: Path, target: Postgres) -> None:
    """A check that PostgreSQL leaves for the end."""
    with postgres.asking(target.url) as asker:
        asker.execute(
            "CREATE FUNCTION no() RETURNS trigger LANGUAGE plpgsql AS $$BEGIN RAISE 'late'; END$$;"
            "CREATE CONSTRAINT TRIGGER no AFTER INSERT ON runs DEFERRABLE INITIALLY DEFERRED "
            "FOR EACH ROW EXECUTE FUNCTION no()"
        )
    with pytest.raises(DatabaseUnavailable, match=f"{target}: .*late"):
        await copying.copy(file, target, lambda _: None)


async def test_a_damaged_file_is_named(file: Path, target: Postgres) -> None:
    """What SQLite says is the file's; the target stays as it is."""
    empty = await everything(target)
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'events'").fetchone()
        (size,) = connection.execute("PRAGMA page_size").fetchone()
    with file.open("r+b") as stream:
        stream.seek((page - 1) * size)
        stream.write(bytes(size))
    with pytest.raises(DatabaseDamaged, match=re.escape(str(file))):
        await copying.copy(file, target, lambda _: None)
    assert await everything(target) == empty


def test_a_file_that_cannot_be_counted_is_named(tmp_path: Path) -> None:
    """That is what a copy begins with."""
    file = tmp_path / "prefanno.db"
    file.write_bytes(b"no database at all" * 1000)
    with pytest.raises(DatabaseDamaged, match=re.escape(str(file))):
        asyncio.run(copying.size(file))


async def test_the_target_is_never_idle_for_long(file: Path, target: Postgres) -> None:
    """PostgreSQL would cut it off: between any two batches it has been asked something."""
    asked: list[tuple[datetime]] = []
    with postgres.asking(target.url) as asker:
        await copying.copy(file, target, lambda _: asked.extend(asker.fetch(postgres.LAST_ASKED)))
    assert len(set(asked)) == len(asked) > 2 * len(copying.TABLES)


def _killed(file: Path, target: Postgres, telling: int) -> bool:
    command = [sys.executable, "-P", "-c", KILLED, str(file), target.url, str(telling)]
    return subprocess.run(command, check=False).returncode == -signal.SIGKILL


async def test_a_killed_copy_leaves_nothing(file: Path, target: Postgres) -> None:
    """Killed at its first batch, midway or in its last comparison, it leaves the target empty; then all arrives."""
    empty, tables = await everything(target), len(copying.TABLES)
    batches = 2 * (tables + 2 * 2)  # two tables of more than 2,500 rows, each in three parts
    for telling in (1, batches // 4, 3 * batches // 4, batches):
        assert _killed(file, target, telling)
        assert await everything(target) == empty
    assert not _killed(file, target, batches + 1)
    assert await everything(target) == await everything(file)
