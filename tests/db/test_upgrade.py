"""The schema: upgraded, taken back, checked against the tables, and refused where it cannot be read."""

import contextlib
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest
from alembic import command
from alembic.script import ScriptDirectory
from alembic.util import CommandError

from prefanno.db import upgrade
from prefanno.db.file import HEAD, explain, revision
from prefanno.errors import DatabaseUnavailable, StorageFull


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Where a database will be."""
    return tmp_path / "prefanno.db"


def _query(file: Path, query: str) -> list[tuple[object, ...]]:
    with contextlib.closing(sqlite3.connect(file)) as connection, connection:
        return connection.execute(query).fetchall()


def _schema(file: Path) -> list[tuple[object, ...]]:
    """All but the search index, whose tables SQLite makes."""
    query = "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name != 'alembic_version' ORDER BY name"
    return [row for row in _query(file, query) if not str(row[2]).startswith("annotation_search")]


def test_a_missing_file_is_made(file: Path) -> None:
    """From nothing, the newest schema comes, with the first character; a second time there is nothing to do."""
    assert revision(file) is None
    assert upgrade.upgrade(file)
    assert revision(file) == HEAD
    assert _query(file, "SELECT slug FROM characters") == [("li",)]
    assert upgrade.upgrade(file) is None


def test_an_empty_file_is_like_none(file: Path) -> None:
    """A file of no bytes, which is an empty database to SQLite, is filled."""
    file.touch()
    assert revision(file) is None
    assert upgrade.upgrade(file)


def test_head_is_the_newest_revision(file: Path) -> None:
    """The constant that spares the server alembic's import names the one newest migration."""
    assert ScriptDirectory.from_config(upgrade.config(file)).get_heads() == [HEAD]


def test_the_first_migration_can_be_taken_back(file: Path) -> None:
    """Down to nothing and up again is the same schema as up at once."""
    upgrade.upgrade(file)
    schema = _schema(file)
    file.unlink()
    command.upgrade(upgrade.config(file), "0001")
    command.downgrade(upgrade.config(file), "base")
    assert [name for _, name, _, _ in _schema(file) if not str(name).startswith("sqlite_")] == []
    assert upgrade.upgrade(file)
    assert _schema(file) == schema


def test_a_migration_that_would_lose_choices_is_not_taken_back(file: Path) -> None:
    """The second one names the cure, a backup, and leaves the file as it is."""
    upgrade.upgrade(file)
    command.downgrade(upgrade.config(file), "0002")
    schema = _schema(file)
    with pytest.raises(NotImplementedError, match="prefanno db restore"):
        command.downgrade(upgrade.config(file), "0001")
    assert _schema(file) == schema and revision(file) == "0002"


def test_later_migrations_can_be_taken_back(file: Path) -> None:
    """Down and up again, the tables are the same."""
    upgrade.upgrade(file)
    schema = _schema(file)
    command.downgrade(upgrade.config(file), "0002")
    assert _schema(file) != schema
    upgrade.upgrade(file)
    assert _schema(file) == schema and revision(file) == HEAD


def test_migrations_and_tables_agree(file: Path) -> None:
    """`alembic check` finds nothing to migrate; control: of a table that lacks a column it says so."""
    upgrade.upgrade(file)
    command.check(upgrade.config(file))
    _query(file, "ALTER TABLE runs DROP COLUMN reason")
    with pytest.raises(CommandError, match="reason"):
        command.check(upgrade.config(file))


def test_every_constraint_has_a_name(file: Path) -> None:
    """A later migration can only change what it can name."""
    upgrade.upgrade(file)
    for _, table, _, sql in _schema(file):
        unnamed = re.findall(r"(?<!\S)(?:CHECK|FOREIGN KEY|UNIQUE|PRIMARY KEY) ?\(", str(sql))
        named = re.findall(r"CONSTRAINT \w+ (?:CHECK|FOREIGN KEY|UNIQUE|PRIMARY KEY) ?\(", str(sql))
        assert len(unnamed) == len(named), table


def test_migrating_keeps_what_is_there(file: Path) -> None:
    """Calling upgrade again and again changes no row."""
    upgrade.upgrade(file)
    _query(file, "INSERT INTO runs (character, state, base_model, started_at) VALUES ('li', 'running', 'b', '2026')")
    before = _query(file, "SELECT * FROM runs")
    upgrade.upgrade(file)
    assert _query(file, "SELECT * FROM runs") == before != []


def test_a_file_that_is_no_database_is_one_clear_error(file: Path) -> None:
    """Something else under the database's name is left as it is, and the error names it and the cure."""
    file.write_bytes(b"no database" * 1000)
    with pytest.raises(DatabaseUnavailable) as refused:
        upgrade.upgrade(file)
    assert str(file) in str(refused.value) and "Restore a backup, or move the file away" in str(refused.value)
    assert file.read_bytes() == b"no database" * 1000


def test_a_folder_in_the_way_is_one_clear_error(file: Path) -> None:
    """A folder under the database's name is refused likewise."""
    file.mkdir()
    with pytest.raises(DatabaseUnavailable, match="cannot use the database"):
        upgrade.upgrade(file)


def test_somebody_elses_database_is_one_clear_error(file: Path) -> None:
    """A database whose tables are not prefanno's is not migrated over."""
    _query(file, "CREATE TABLE runs (something TEXT)")
    with pytest.raises(DatabaseUnavailable, match="cannot use the database"):
        upgrade.upgrade(file)
    assert _query(file, "SELECT sql FROM sqlite_master WHERE name = 'runs'") == [
        ("CREATE TABLE runs (something TEXT)",)
    ]


def test_a_migration_that_fails_leaves_nothing(file: Path) -> None:
    """A migration that breaks off half-way is undone as a whole; with the cause gone, the next one succeeds."""
    _query(file, "CREATE TABLE runs (something TEXT)")  # in the way of the fourth table that the migration makes
    with pytest.raises(DatabaseUnavailable):
        upgrade.upgrade(file)
    assert [name for _, name, _, _ in _schema(file) if not str(name).startswith("sqlite_")] == ["runs"]
    _query(file, "DROP TABLE runs")
    assert upgrade.upgrade(file)


def test_a_newer_schema_is_one_clear_error(file: Path) -> None:
    """A database that a newer prefanno has written is refused with the cure, and not touched."""
    upgrade.upgrade(file)
    _query(file, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match=r"was written by a newer prefanno \(schema 9999\); upgrade prefanno"):
        upgrade.upgrade(file)
    assert revision(file) == "9999"


def test_a_full_disk_is_said_to_be_one(file: Path) -> None:
    """SQLite's "disk is full" is StorageFull, any other trouble DatabaseUnavailable."""
    full = explain(file, sqlite3.OperationalError("database or disk is full"))
    assert isinstance(full, StorageFull)
    assert isinstance(explain(file, sqlite3.OperationalError("disk I/O error")), DatabaseUnavailable)


def test_a_file_that_is_up_to_date_needs_no_alembic(file: Path) -> None:
    """A server whose database has the newest schema does not wait for alembic's import; control: a new file does."""
    script = (
        "import sys; from pathlib import Path; from prefanno.db import upgrade\n"
        "upgrade.upgrade(Path(sys.argv[1])); print('alembic' in sys.modules)"
    )
    command_line = [sys.executable, "-P", "-c", script, str(file)]
    printed = [subprocess.run(command_line, capture_output=True, text=True, check=True).stdout for _ in range(2)]
    assert printed == ["True\n", "False\n"]
