"""Backups: taken while others write, verified, restored, and nothing lost on the way."""

import contextlib
import fcntl
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset
from prefanno.db import backup, file, upgrade
from prefanno.db.engine import Database
from prefanno.errors import DatabaseUnavailable
from prefanno.settings import Settings
from tests.annotation.test_dataset import SINGLE

SCHEMA = (file.HEAD, {"characters": 1, "counts": 2})  # of a new database: its revision and its rows


SPOILED = {
    "newer": "UPDATE alembic_version SET version_num = '9999'",
    "older than all": "UPDATE alembic_version SET version_num = '0000'",
    "no revision": "DELETE FROM alembic_version",
    "no word": "UPDATE alembic_version SET version_num = 'head'",
    "a table less": "DROP TABLE counts",
    "a trigger": "CREATE TRIGGER spoil AFTER INSERT ON annotations BEGIN DELETE FROM annotations; END",
    "a view": "CREATE VIEW spoil AS SELECT 1",
}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A new database."""
    made = tmp_path / "data" / "prefanno.db"
    made.parent.mkdir()
    upgrade.upgrade(made)
    return made


@contextlib.contextmanager
def _open(path: Path) -> Iterator[sqlite3.Connection]:
    with contextlib.closing(sqlite3.connect(path)) as connection, connection:
        yield connection


def _named(path: Path, name: str) -> None:
    """Give the first character a name, by which one state of a database is told from another."""
    with _open(path) as connection:
        connection.execute("UPDATE characters SET name = ?", (name,))


def _name(path: Path) -> str:
    with _open(path) as connection:
        return str(connection.execute("SELECT name FROM characters").fetchone()[0])


def _rows(contents: file.Contents) -> tuple[str | None, dict[str, int]]:
    return contents.revision, {table: count for table, count in contents.rows.items() if count}


def _files(folder: Path) -> set[str]:
    return {found.name for found in folder.iterdir()}


def test_a_backup_is_one_whole_file(path: Path, tmp_path: Path) -> None:
    """It holds what the database holds, needs no second file, and nothing else is left in its folder."""
    _named(path, "Li")
    target = tmp_path / "kept" / "backup.db"
    assert _rows(backup.back_up(path, target)) == SCHEMA
    assert _files(target.parent) == {"backup.db"}
    assert _name(target) == "Li" and file.verify(target) == file.verify(path)


@pytest.mark.sqlite_only
async def test_a_backup_while_others_write_is_of_one_moment(database: Database, settings: Settings) -> None:
    """With a writer at work, each annotation in the backup has its event, and the counts fit."""

    async def add(session: AsyncSession) -> None:
        await dataset.add(session, "li", SINGLE)

    for number in range(5):
        for _ in range(20):
            await database.write(add)
        target = settings.data / f"{number}.db"
        found = backup.back_up(settings.database_file, target)
        assert found.rows["annotations"] == found.rows["events"] == 20 * (number + 1)
        with _open(target) as connection:
            assert connection.execute("SELECT max(count) FROM counts").fetchone() == (20 * (number + 1),)


def test_a_backup_never_overwrites(path: Path, tmp_path: Path) -> None:
    """A file of that name is left as it is."""
    (tmp_path / "there.db").write_text("mine")
    with pytest.raises(DatabaseUnavailable, match="is there already"):
        backup.back_up(path, tmp_path / "there.db")
    assert (tmp_path / "there.db").read_text() == "mine"


def test_nothing_to_back_up_is_said(tmp_path: Path) -> None:
    """Where there is no database, no file is made."""
    with pytest.raises(DatabaseUnavailable, match="there is no database"):
        backup.back_up(tmp_path / "prefanno.db", tmp_path / "backup.db")
    assert _files(tmp_path) == set()


def _damage(path: Path) -> None:
    """Overwrite a page in the middle."""
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 // 4096 * 4096
    content[middle : middle + 4096] = b"\xa5" * 4096
    path.write_bytes(content)


def test_a_damaged_database_gives_no_backup(path: Path, tmp_path: Path) -> None:
    """A copy that is not sound does not get the name of a backup."""
    _damage(path)
    with pytest.raises(DatabaseUnavailable, match=r"damaged|malformed"):
        backup.back_up(path, tmp_path / "kept" / "backup.db")
    assert _files(tmp_path / "kept") == set()


def test_a_broken_reference_is_damage(path: Path) -> None:
    """A row that refers to one that is not there is found, and named by its table."""
    with _open(path) as connection:
        connection.execute("INSERT INTO counts VALUES ('nobody', 'single', 1)")
    with pytest.raises(DatabaseUnavailable, match="of counts refers to a missing row"):
        file.verify(path)


def test_restoring_brings_back_what_was(path: Path) -> None:
    """The backup's state is the database's again, and the state it replaced is kept as a backup."""
    _named(path, "old")
    old = backup.place(path)
    backup.back_up(path, old)
    _named(path, "new")
    found, replaced = backup.restore(old, path)
    assert _rows(found) == SCHEMA
    assert replaced is not None and (_name(path), _name(replaced)) == ("old", "new")
    backup.restore(replaced, path)
    assert _name(path) == "new"


def test_a_log_of_the_replaced_database_is_not_applied(path: Path) -> None:
    """What only the write-ahead log of a killed server holds is kept in the backup, and not written over what comes."""
    old = backup.place(path)
    backup.back_up(path, old)
    killed = path.with_name("killed.db")
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("PRAGMA wal_autocheckpoint=0")
        connection.execute("UPDATE characters SET name = 'only in the log'")
        connection.commit()
        for ending in ("", "-wal"):  # a killed server leaves both
            source = path.with_name(path.name + ending)
            killed.with_name(killed.name + ending).write_bytes(source.read_bytes())
    _, replaced = backup.restore(old, killed)
    assert replaced is not None and _name(replaced) == "only in the log"
    assert _name(killed) != "only in the log"


def test_restoring_over_a_damaged_database_keeps_its_bytes(path: Path) -> None:
    """Where the database cannot be read, its file is kept as it is, and the backup takes its place."""
    _named(path, "sound")
    old = backup.place(path)
    backup.back_up(path, old)
    _damage(path)
    damaged = path.read_bytes()
    _, replaced = backup.restore(old, path)
    assert replaced is not None and "damaged" in replaced.name and replaced.read_bytes() == damaged
    assert _name(path) == "sound"


def test_restoring_where_there_is_nothing(path: Path, tmp_path: Path) -> None:
    """A backup can begin a new home; nothing is kept, since nothing was there."""
    old = backup.place(path)
    backup.back_up(path, old)
    fresh = tmp_path / "other" / "prefanno.db"
    fresh.parent.mkdir()
    assert backup.restore(old, fresh)[1] is None
    assert file.verify(fresh) == file.verify(path)


@pytest.mark.parametrize("fault", [*SPOILED, "damaged", "no database"])
def test_a_bad_backup_is_refused_and_nothing_is_touched(path: Path, tmp_path: Path, fault: str) -> None:
    """A file that is damaged, newer, or could not serve is refused; the database stays, byte for byte."""
    bad = tmp_path / "bad.db"
    backup.back_up(path, bad)
    if fault == "damaged":
        _damage(bad)
    elif fault == "no database":
        bad.write_text("my diary " * 1000)
    else:
        with _open(bad) as connection:
            connection.execute(SPOILED[fault])
    before = path.read_bytes()
    with pytest.raises(DatabaseUnavailable):
        backup.restore(bad, path)
    assert path.read_bytes() == before and _files(path.parent) == {"prefanno.db"}


def test_a_database_in_use_is_not_replaced(path: Path) -> None:
    """While another program holds the database open in the middle of something, restoring is refused and says so."""
    old = backup.place(path)
    backup.back_up(path, old)
    with contextlib.closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=WAL")
        connection.execute("BEGIN")
        connection.execute("SELECT * FROM characters").fetchall()
        _named(path, "in use")
        with pytest.raises(DatabaseUnavailable, match="somebody uses"):
            backup.restore(old, path)
    assert _name(path) == "in use"


def test_a_locked_database_is_not_called_damaged(path: Path) -> None:
    """Where another program locks the database, restoring is refused, and nothing is moved aside."""
    old = backup.place(path)
    backup.back_up(path, old)
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        connection.execute("BEGIN EXCLUSIVE")
        connection.execute("UPDATE characters SET name = 'locked'")
        connection.execute("COMMIT")
        with pytest.raises(DatabaseUnavailable, match="locked"):
            backup.restore(old, path)
    assert _name(path) == "locked" and not any("damaged" in name for name in _files(path.parent / backup.FOLDER))


@pytest.mark.parametrize("name", ["prefanno.db-wal", "prefanno.db-journal", "prefanno.db-shm"])
def test_a_backup_does_not_take_the_name_of_a_part(path: Path, name: str) -> None:
    """A file that SQLite would take for a part of the database is refused."""
    with pytest.raises(DatabaseUnavailable, match="name another file"):
        backup.back_up(path, path.with_name(name))
    assert _files(path.parent) == {"prefanno.db"}


def test_what_killed_commands_left_is_cleared(path: Path, tmp_path: Path) -> None:
    """Half-written files go with the next backup into the folder; one that is being written stays."""
    folder = tmp_path / "kept"
    folder.mkdir()
    for name in (".a.db-0000.partial", ".a.db-0000.partial-journal", ".b.db-0000.partial"):
        (folder / name).write_text("half")
    with (folder / ".b.db-0000.partial").open() as writing:
        fcntl.flock(writing, fcntl.LOCK_EX)
        backup.back_up(path, folder / "c.db")
        assert _files(folder) == {".b.db-0000.partial", "c.db"}


@pytest.mark.parametrize("name", ["what?", "100%20", "a b", "x?1", "#1"])
async def test_any_folder_can_be_a_home(tmp_path: Path, name: str) -> None:
    """A path with `?` or `%` in it is that path: the file is there, and holds what is stored."""
    file_path = tmp_path / name / "prefanno.db"
    file_path.parent.mkdir()
    upgrade.upgrade(file_path)
    async with Database.open(file_path) as database:
        await database.write(lambda session: dataset.add(session, "li", SINGLE))
    assert file.verify(file_path).rows["annotations"] == 1 and _files(tmp_path) == {name}
    assert backup.back_up(file_path, tmp_path / name / "backup.db").rows["annotations"] == 1


def test_what_a_reader_keeps_is_not_said_to_be_gone(path: Path) -> None:
    """While another program still reads the old state, writing the file anew says so; afterwards it succeeds."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as reader:
        reader.execute("PRAGMA journal_mode=WAL")
        reader.execute("BEGIN")
        reader.execute("SELECT * FROM characters").fetchall()
        with pytest.raises(DatabaseUnavailable, match="another program reads"):
            file.rewrite(path)
        reader.execute("COMMIT")
        file.rewrite(path)
