"""Every released schema, filled, brought to the newest: nothing is lost, also where the migration is killed midway."""

import contextlib
import hashlib
import json
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from sqlalchemy import select

from prefanno.annotation import dataset
from prefanno.annotation.choices import best, pairs
from prefanno.annotation.history import replies
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.db.file import HEAD, revision, verify
from prefanno.db.models import Annotation
from prefanno.errors import DatabaseUnavailable
from prefanno.settings import Settings
from tests import looking
from tests.annotation.test_dataset import SINGLE

RELEASED = ("0001",)  # every schema that people may have; the newest is not among them
MIGRATE = "import sys, pathlib; from prefanno.db import upgrade; upgrade.upgrade(pathlib.Path(sys.argv[1]))"
TIME = "2026-01-27 12:00:00.000001"
OLD_CHOICE = ("id", "mode", "context", "human_input", "chosen", "chosen_thinking", "rejected", "rejected_thinking")


def fill_0001(file: Path, rows: int) -> None:
    """As many annotations, generations with two candidates each, and a run, of two characters."""
    words = random.Random(0)
    with _open(file) as db:
        db.execute("PRAGMA foreign_keys=ON")
        db.execute("INSERT INTO characters VALUES ('mia', '2026-01-27 12:00:00.000001')")
        db.execute(
            "INSERT INTO runs (character, state, base_model, started_at) VALUES ('li', 'failed', 'b', ?)", (TIME,)
        )
        for number in range(1, rows + 1):
            text = "".join(chr(words.randrange(0x4E00, 0x4F00)) for _ in range(words.randrange(5, 60)))
            context = json.dumps([{"role": "assistant", "content": text[::-1]}] if number % 3 == 0 else [])
            owner, mode = ("li", "mia")[number % 7 == 0], ("single", "multi")[number % 2]
            rejected = None if mode == "multi" and number % 4 == 1 else f"{text} rejected\n</think>"
            choice = (number, owner, mode, "persona", context, f"{text}?", f"{text}!", None, rejected, None, TIME)
            db.execute(f"INSERT INTO annotations VALUES ({', '.join('?' * 11)})", choice)
            generation = (number, owner, text, context, "{}", "base", None, number, TIME)
            db.execute("INSERT INTO generations VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", generation)
            for ordinal in (1, 2):
                candidate = (number, ordinal, None, f"{text} {ordinal}", "stop", 5)
                columns = "generation_id, ordinal, thinking, content, finish_reason, tokens"
                db.execute(f"INSERT INTO candidates ({columns}) VALUES (?, ?, ?, ?, ?, ?)", candidate)


@contextlib.contextmanager
def _open(file: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        yield connection


def checksums(file: Path) -> dict[str, str]:
    """Of each table of the first schema, over all of its columns that the newest one still has as they were."""
    kept = {
        "characters": "slug, created_at",
        "generations": "id, character, message, context, settings, base_model, adapter, seed, created_at",
        "candidates": "id, generation_id, ordinal, thinking, content, finish_reason, tokens",
        "runs": "id, character, state, base_model, adapter, started_at, ended_at, exit_code, reason",
        "annotations": "id, character, mode, system_prompt, context, human_input, created_at",
    }
    with _open(file) as db:
        found = {table: db.execute(f"SELECT {columns} FROM {table} ORDER BY 1") for table, columns in kept.items()}
        return {table: hashlib.sha256(repr(rows.fetchall()).encode()).hexdigest() for table, rows in found.items()}


def choices_0001(file: Path) -> list[tuple[Any, ...]]:
    """The old choices, as they were stored."""
    with _open(file) as db:
        rows = db.execute(f"SELECT {', '.join(OLD_CHOICE)} FROM annotations ORDER BY id").fetchall()
    return [(*row[:2], json.loads(row[2]), *row[3:]) for row in rows]


async def choices_now(file: Path) -> list[tuple[Any, ...]]:
    """The same facts, read by the program of today."""
    found: list[tuple[Any, ...]] = []
    async with Database.open(file) as database, database.read() as session:
        for one in await session.scalars(select(Annotation).order_by(Annotation.id)):
            chosen = best(one.verdict, replies(one))
            worse = next((pair.rejected for pair in pairs(one.verdict, replies(one))), None)
            assert chosen is not None
            sides = (chosen.content, chosen.thinking, *((worse.content, worse.thinking) if worse else (None, None)))
            found.append((one.id, one.mode, one.context, one.human_input, *sides))
    return found


@pytest.fixture(scope="module", params=RELEASED)
def old(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database of a released schema with 10,000 rows, as a server leaves it: with a write-ahead log."""
    file = tmp_path_factory.mktemp("old") / "prefanno.db"
    command.upgrade(upgrade.config(file), request.param)
    fill_0001(file, 10_000)
    with _open(file) as db:
        db.execute("PRAGMA journal_mode=WAL")
    return file


def _copy(old: Path, folder: Path) -> Path:
    return Path(shutil.copy(old, folder / "prefanno.db"))


async def test_every_row_arrives(old: Path, tmp_path: Path) -> None:
    """All rows of all tables are there, word for word; choices, counts, search and references are right."""
    file = _copy(old, tmp_path)
    done = upgrade.upgrade(file)
    assert done is not None and done.backup is not None
    assert checksums(file) == checksums(old) == checksums(done.backup)
    assert await choices_now(file) == choices_0001(old) == choices_0001(done.backup)
    with _open(file) as db:
        counted = db.execute("SELECT character, mode, count(*) FROM annotations GROUP BY 1, 2 ORDER BY 1, 2")
        counted_rows = counted.fetchall()
        assert db.execute("SELECT character, mode, count FROM counts ORDER BY 1, 2").fetchall() == counted_rows
        assert db.execute("SELECT count(*) FROM annotation_search").fetchone() == (10_000,)


async def test_a_lost_word_is_noticed(old: Path, tmp_path: Path) -> None:
    """The control: one character less in one row changes what is compared."""
    file = _copy(old, tmp_path)
    with _open(file) as db:
        db.execute("UPDATE annotations SET chosen = substr(chosen, 2) WHERE id = 5000")
        db.execute("DELETE FROM candidates WHERE id = 5000")
    assert checksums(file) != checksums(old)
    upgrade.upgrade(file)
    assert await choices_now(file) != choices_0001(old)


def _seconds(file: Path) -> float:
    """How long a whole migration takes."""
    started = time.monotonic()
    subprocess.run([sys.executable, "-P", "-c", MIGRATE, str(file)], check=True)
    return time.monotonic() - started


def _killed(file: Path, after: float) -> None:
    process = subprocess.Popen([sys.executable, "-P", "-c", MIGRATE, str(file)], stderr=subprocess.DEVNULL)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


@pytest.mark.parametrize("kills", [2, pytest.param(60, marks=pytest.mark.long)])
async def test_a_killed_migration_leaves_the_old_or_the_new(old: Path, tmp_path: Path, kills: int) -> None:
    """Killed at any point, the file is the old one, untouched, or the new one, whole; the next start finishes it."""
    whole, found = _seconds(_copy(old, tmp_path)), set()
    for kill in range(kills):
        folder = tmp_path / str(kill)
        folder.mkdir()
        file = _copy(old, folder)
        _killed(file, whole * (kill + 1) / (kills + 1))
        found.add(state := revision(file))
        assert state in (*RELEASED, HEAD)
        verify(file)
        assert checksums(file) == checksums(old)
        assert state == HEAD or choices_0001(file) == choices_0001(old)
        upgrade.upgrade(file)
        assert await choices_now(file) == choices_0001(old)
    assert found & set(RELEASED), "no kill came in time; the test shows nothing"


def test_a_migration_that_breaks_a_reference_is_undone(old: Path, tmp_path: Path) -> None:
    """A row that refers to a missing one is refused before anything is committed, and the file stays what it was."""
    file = _copy(old, tmp_path)
    with _open(file) as db:
        db.execute("DELETE FROM characters WHERE slug = 'mia'")
    with pytest.raises(DatabaseUnavailable, match="refers to a missing row"):
        upgrade.upgrade(file)
    assert revision(file) in RELEASED


@pytest.mark.parametrize("left", [3, 0])
async def test_no_id_is_given_again(unmade: Settings, left: int) -> None:
    """The ids of annotations that were gone before the migration stay gone: clients and exports may hold them."""
    unmade.data.mkdir(parents=True)
    upgrade.alembic(unmade.database, command.upgrade, "0001")
    columns = "character, mode, system_prompt, context, human_input, chosen, created_at"
    row = f"INSERT INTO annotations ({columns}) VALUES ('li', 'multi', 'p', '[]', 'q', 'a', '{TIME}');"
    looking.execute(unmade.database, f"{5 * row} DELETE FROM annotations WHERE id > {left}")
    upgrade.upgrade(unmade.database)
    async with Database.open(unmade.database) as database:
        added = await database.write(lambda session: dataset.add(session, "li", SINGLE))
        assert added.id == 6
