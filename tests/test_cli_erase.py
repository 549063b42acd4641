"""`prefanno erase`, as a real process: what it asks, what it prints, and that the words are gone from the disk."""

import asyncio
import contextlib
import sqlite3
import subprocess
import sys
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import home
from prefanno.annotation import dataset
from prefanno.db import characters, upgrade
from prefanno.db.engine import Database
from prefanno.db.idempotency import once
from prefanno.db.models import Annotation, Candidate, Generation
from prefanno.rows import Row
from prefanno.settings import Settings
from tests import looking
from tests.test_cli import _environment

WAIT_S = 120.0
SECRET = "Zanzibar-7319"  # in every text of what is erased
OTHER = "lighthouse-2046"  # in every text of what stays
LEFT = "not touched: exported files, copies in {}, backups in {}, adapters"
ABOUT: dict[str, Any] = {"reasons": [], "note": None, "annotator": None}

Done = subprocess.CompletedProcess[str]


def _erase(settings: Settings, *arguments: str, answer: str | None = None) -> Done:
    """Run the command, with this typed at its question; with None there is nobody to answer."""
    return subprocess.run(
        [sys.executable, "-P", "-m", "prefanno", "erase", *arguments],
        env=_environment(settings),
        input=answer or "",
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def _row(word: str, **fields: Any) -> Row:
    thoughts = {"chosen_thinking": f"thinking {word}", "rejected_thinking": f"unsure {word}"}
    sides = {"chosen": f"a good {word}", "rejected": f"a bad {word}", **thoughts}
    context: Any = [{"role": "assistant", "content": f"before {word}"}]
    made = {"mode": "single", "system_prompt": "你是离。", "created_at": datetime(2026, 1, 27)}  # noqa: DTZ001 - UTC
    return Row(**{**made, "context": context, "human_input": f"asked {word}", **sides, **fields})


async def _turn(session: AsyncSession, word: str, parent: int | None = None) -> Generation:
    """A turn of a conversation whose texts hold the word; its best reply is the first."""
    settings = {"mode": "multi", "system_prompt": "你是离。"}
    turn = Generation(message=f"asked {word}", context=[], settings=settings, base_model="m", seed=1, parent_id=parent)
    session.add(turn)
    await session.flush()
    turn.conversation_id = parent or turn.id
    for ordinal in (1, 2):
        made = {"content": f"reply {ordinal} {word}", "thinking": word, "finish_reason": "stop", "tokens": 1}
        session.add(Candidate(generation_id=turn.id, ordinal=ordinal, **made))
    await session.flush()
    return turn


async def _fill(session: AsyncSession) -> None:
    """Annotations 1 (plain, edited, deleted), 2 (a choice) and 3 hold the secret, 4 and 5 do not; 5 is Mia's."""
    first = await dataset.add(session, "li", _row(SECRET))
    await dataset.edit(session, first.id, {"note": f"a note {SECRET}"})
    turn = await _turn(session, SECRET)
    await dataset.choose(session, turn.id, "ranking", ranking=[[1], [2]], **ABOUT)
    await dataset.choose(session, turn.id, "edit", chosen=1, content=f"edited {SECRET}", **ABOUT)
    await dataset.add(session, "li", _row(SECRET))
    await dataset.add(session, "li", _row(OTHER))
    await characters.create(session, "mia", "Mia", None)
    await dataset.add(session, "mia", _row(OTHER))
    await dataset.set_deleted(session, [1], deleted=True)


async def _retryable(session: AsyncSession) -> dict[str, Any]:
    """An add with a key, whose stored answer holds the words."""
    annotation = await dataset.add(session, "li", _row(SECRET))
    return {"id": annotation.id, "human_input": annotation.human_input}


def _write(settings: Settings, *works: Any) -> None:
    """Do this in the home's database, which is then closed."""

    async def run() -> None:
        async with Database.open(settings.database) as database:
            for work in works:
                await database.write(work)

    with home.owned(settings):
        upgrade.upgrade(settings.database)
        asyncio.run(run())


@pytest.fixture
def filled(settings: Settings) -> Settings:
    """A home with five annotations."""
    _write(settings, _fill)
    return settings


def _bytes(settings: Settings) -> bytes:
    """All bytes of the database and of what lies beside it."""
    return looking.stored(settings.database)


def _query(settings: Settings, sql: str) -> list[Any]:
    return [row[0] if len(row) == 1 else row for row in looking.fetch(settings.database, sql)]


def _ids(settings: Settings) -> list[int]:
    return _query(settings, "SELECT id FROM annotations ORDER BY id")


def _indexed(settings: Settings, word: str) -> int:
    """How many of the word's tokens the search index knows, in whatever row, also one that was taken out."""
    return len(looking.indexed(settings.database) & looking.tokens(settings.database, word))


def _said(settings: Settings, numbers: Sequence[int]) -> str:
    """What the command prints of annotations, events, generations and kept turns."""
    annotations, events, generations, kept = numbers
    return (
        f"erased {annotations} annotations, {events} events of their history, {generations} generations with their "
        f"candidates; {kept} generations stay: later turns or other choices need them\n"
        f"{LEFT.format(settings.runs, settings.data / 'backups')}\n"
    )


def test_the_words_are_gone_from_the_disk(filled: Settings) -> None:
    """No byte holds a text, thought, note, context, candidate, event or search token of the erased; others stay."""
    unique = "7319"  # no other text has these neighbours
    assert SECRET.encode() in _bytes(filled) and _indexed(filled, unique) > 0  # the control
    done = _erase(filled, "1", "2", "3", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == _said(filled, (3, 6, 1, 0))
    assert SECRET.encode() not in _bytes(filled) and _indexed(filled, unique) == 0
    assert OTHER.encode() in _bytes(filled) and _indexed(filled, "2046") > 0
    assert _ids(filled) == [4, 5]
    assert _query(filled, "SELECT count FROM counts WHERE character = 'li' ORDER BY mode") == [0, 1]
    for table in ("generations", "candidates"):
        assert _query(filled, f"SELECT count(*) FROM {table}") == [0]
    if isinstance(filled.database, Path):
        assert _query(filled, "PRAGMA integrity_check") == ["ok"] and _query(filled, "PRAGMA foreign_key_check") == []


def test_deleting_alone_leaves_the_words(filled: Settings) -> None:
    """The control: what is only deleted is still on the disk, since it can be restored."""
    _write(filled, lambda session: dataset.set_deleted(session, [2, 3], deleted=True))
    assert SECRET.encode() in _bytes(filled)


def test_the_answers_to_safe_retries_are_erased(settings: Settings) -> None:
    """A stored answer may hold the words, so it goes with the annotation; its key and other answers stay."""

    async def other(_session: AsyncSession) -> dict[str, Any]:
        return {"changed": 0}

    _write(settings, once("k-1", "f", _retryable), once("k-2", "f", other))
    assert SECRET.encode() in _bytes(settings)
    assert _erase(settings, "1", "--yes").returncode == 0
    assert SECRET.encode() not in _bytes(settings)
    assert _query(settings, "SELECT answer FROM idempotency_keys ORDER BY key") == ["{}", '{"changed":0}']


def test_the_candidates_of_a_plain_add_are_erased(settings: Settings) -> None:
    """Also where the choice came as texts, what it was chosen from goes with it."""

    async def generated_then_added(session: AsyncSession) -> None:
        turn = await _turn(session, SECRET)
        sides = {"chosen": f"reply 1 {SECRET}", "rejected": f"reply 2 {SECRET}"}
        await dataset.add(session, "li", _row(SECRET, **sides, human_input=turn.message, context=[]))

    _write(settings, generated_then_added)
    assert _erase(settings, "1", "--yes").returncode == 0
    assert SECRET.encode() not in _bytes(settings)


def test_a_turn_that_is_gone_on_from_stays(settings: Settings) -> None:
    """The choice goes, the turn stays with its candidates, and the command says so; it goes with the last later one."""

    async def conversation(session: AsyncSession) -> None:
        first = await _turn(session, OTHER)
        second = await _turn(session, SECRET, first.id)
        for turn in (first, second):
            await dataset.choose(session, turn.id, "best", chosen=1, **ABOUT)

    _write(settings, conversation)
    done = _erase(settings, "1", "--yes")
    assert done.stdout == _said(settings, (1, 1, 0, 1))
    assert (_ids(settings), _query(settings, "SELECT id FROM generations")) == ([2], [1, 2])
    assert OTHER.encode() in _bytes(settings)
    assert _erase(settings, "2", "--yes").stdout == _said(settings, (1, 1, 2, 0))
    assert SECRET.encode() not in _bytes(settings) and OTHER.encode() not in _bytes(settings)
    assert _query(settings, "SELECT id FROM generations") == []


def test_all_deleted_ones_of_a_character_are_erased(filled: Settings) -> None:
    """--deleted is of the current character, or of the one named; where nothing is deleted it says so."""
    _write(filled, lambda session: dataset.set_deleted(session, [5], deleted=True))
    assert _erase(filled, "--deleted", "--yes").stdout == _said(filled, (1, 3, 0, 0))
    assert _ids(filled) == [2, 3, 4, 5]
    again = _erase(filled, "--deleted")
    assert (again.returncode, again.stdout, again.stderr) == (0, "nothing is deleted\n", "")
    assert _erase(filled, "--deleted", "--character", "mia", "--yes").stdout == _said(filled, (1, 2, 0, 0))
    assert _ids(filled) == [2, 3, 4]


@pytest.mark.parametrize("answer", [None, "n\n", "\n", "no\n"], ids=["nobody", "n", "enter", "no"])
def test_without_a_yes_nothing_is_erased(filled: Settings, answer: str | None) -> None:
    """It asks first, naming how many; any answer but yes, or none, leaves every row."""
    before = looking.dump(filled.database)
    done = _erase(filled, "1", "3", answer=answer)
    assert done.returncode != 0 and "Traceback" not in done.stderr
    assert done.stdout.startswith("Erase 2 annotations for good, with their history and candidates? [y/N]: ")
    assert looking.dump(filled.database) == before


def test_a_yes_erases(filled: Settings) -> None:
    """With y the question is followed by what was erased."""
    done = _erase(filled, "3", answer="y\n")
    assert done.returncode == 0 and done.stdout.endswith(_said(filled, (1, 1, 0, 0)))
    assert done.stdout.startswith("Erase 1 annotations for good")
    assert _ids(filled) == [1, 2, 4, 5]


def test_an_annotation_named_twice_is_one(filled: Settings) -> None:
    """The question and the report count it once."""
    done = _erase(filled, "3", "3", answer="y\n")
    assert done.stdout.startswith("Erase 1 annotations for good") and done.stdout.endswith(_said(filled, (1, 1, 0, 0)))


@pytest.mark.parametrize("arguments", [(), ("1", "--deleted"), ("0",), ("-1",), ("x",), ("1", "--all")])
def test_wrong_usage_erases_nothing(filled: Settings, arguments: tuple[str, ...]) -> None:
    """Neither ids nor --deleted, both, or what is no id: code 2 and a hint."""
    before = looking.dump(filled.database)
    done = _erase(filled, *arguments, "--yes")
    assert done.returncode == 2
    assert "Error: " in done.stderr and "Traceback" not in done.stderr
    assert looking.dump(filled.database) == before


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        (("1", "99"), "annotation 99"),
        (("9" * 18,), "annotation 9"),
        (("--deleted", "--character", "nobody"), "nobody"),
        (("3", "--character", "mia"), "--character"),
        (("3", "--character", "nobody"), "--character"),
    ],
    ids=lambda case: " ".join(case)[:40] if isinstance(case, tuple) else case,
)
def test_what_there_is_not_is_refused_whole(filled: Settings, arguments: tuple[str, ...], named: str) -> None:
    """An unknown id or character, or a character beside ids: a refusal that names it, and nothing erased."""
    done = _erase(filled, *arguments, "--yes")
    assert done.returncode in (1, 2) and "Traceback" not in done.stderr
    assert named in done.stderr and _ids(filled) == [1, 2, 3, 4, 5]


@pytest.mark.sqlite_only
def test_a_server_keeps_its_home(filled: Settings) -> None:
    """While a server owns the home, erasing is refused in one line, and every byte stays."""
    before = _bytes(filled)
    with home.owned(filled):
        done = _erase(filled, "1", "--yes")
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.startswith(f"prefanno: another prefanno uses {filled.home}; stop it")
    assert len(done.stderr.splitlines()) == 1 and _bytes(filled) == before


@pytest.mark.sqlite_only
def test_a_file_that_cannot_be_written_anew_is_named_and_the_same_command_ends_it(filled: Settings) -> None:
    """Beside a program that reads on, it says what it erased and what is left to do; the ids are gone by then."""
    with contextlib.closing(sqlite3.connect(filled.database_file, isolation_level=None)) as reader:
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM annotations").fetchone()
        done = _erase(filled, "1", "2", "3", "--yes")
        assert done.returncode == 1 and done.stdout.startswith("erased 3 annotations, 6 events")
        assert "another program reads" in done.stderr and "run the same `prefanno erase` again" in done.stderr
        assert SECRET.encode() in _bytes(filled)
    again = _erase(filled, "1", "2", "3", "--yes")
    assert (again.returncode, again.stderr) == (1, "prefanno: there is no annotation 1\n")
    assert SECRET.encode() not in _bytes(filled) and _ids(filled) == [4, 5]


@pytest.mark.postgresql_only
def test_a_postgresql_is_erased_beside_a_server(filled: Settings) -> None:
    """A server that owns the home is no hindrance there: the words go from the disk while it runs."""
    with home.owned(filled):
        assert _erase(filled, "1", "2", "3", "--yes").returncode == 0
    assert SECRET.encode() not in _bytes(filled)


def test_what_is_left_can_be_undone(filled: Settings) -> None:
    """Erasing some of the annotations that a step touched leaves the step to undo for the others."""

    async def undone(session: AsyncSession) -> None:
        from prefanno.annotation import history

        step, changed = await history.undo(session, "li")
        assert (step.kind, changed) == ("delete", 1)
        found = await session.get(Annotation, 4)
        assert found is not None and found.deleted_at is None

    _write(filled, lambda session: dataset.set_deleted(session, [3, 4], deleted=True))
    assert _erase(filled, "3", "--yes").returncode == 0
    _write(filled, undone)
