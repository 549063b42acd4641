"""The same migrations on PostgreSQL: the tables that the models say, and of old rows the same new ones as on SQLite."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from alembic import command
from alembic.util import CommandError

from prefanno.db import upgrade
from prefanno.db.file import HEAD
from prefanno.errors import DatabaseUnavailable
from prefanno.settings import Postgres
from tests import looking, postgres
from tests.db.test_copying import everything, found
from tests.db.test_migrations import RELEASED, fill_0001

pytestmark = pytest.mark.needs("PostgreSQL")

MIGRATE = (
    "import sys; from prefanno.db import upgrade; from prefanno.settings import Postgres\n"
    "upgrade.upgrade(Postgres(sys.argv[1]))"
)
TABLES = ("characters", "runs", "annotations", "generations", "candidates")


@pytest.fixture
def empty(postgresql: postgres.Postgres) -> Iterator[Postgres]:
    """A new database without a table."""
    url = postgresql.make()
    yield Postgres(url)
    postgresql.drop(url)


def _fill_as(file: Path, where: Postgres) -> None:
    """Rows of the first schema, as they are in the file; ids go on after them."""
    with looking.looking(where) as look:
        look.execute("DELETE FROM characters")
        for table in TABLES:
            rows = looking.fetch(file, f"SELECT * FROM {table}")
            look.execute(";".join(f"INSERT INTO {table} VALUES ({', '.join(map(_literal, row))})" for row in rows))
        for table in TABLES[1:]:
            look.fetch(f"SELECT setval('{table}_id_seq', max(id) + 7) FROM {table}")


def _literal(value: Any) -> str:
    return "NULL" if value is None else "'" + str(value).replace("'", "''") + "'"


@pytest.fixture(params=RELEASED)
def old(request: pytest.FixtureRequest, empty: Postgres, tmp_path: Path) -> tuple[Path, Postgres]:
    """A file and a PostgreSQL of a released schema, with the same 1,000 rows."""
    file = tmp_path / "prefanno.db"
    for where in (file, empty):
        upgrade.alembic(where, command.upgrade, request.param)
    fill_0001(file, 1000)
    _fill_as(file, empty)
    return file, empty


async def test_old_rows_become_the_same_on_both(old: tuple[Path, Postgres]) -> None:
    """Of the same old rows, all tables hold the same new ones; search finds the same; no id is given again."""
    file, where = old
    for one in old:
        assert upgrade.upgrade(one)
    assert await everything(where) == await everything(file)
    ((said,),) = looking.fetch(file, "SELECT human_input FROM annotations WHERE id = 500")
    for q in (said[1:3], "rejected"):
        assert await found(where, q, "li") == await found(file, q, "li") != []
    assert looking.fetch(where, "SELECT nextval('annotations_id_seq')") == [(1008,)]


def _killed(where: Postgres, after: float) -> None:
    process = subprocess.Popen([sys.executable, "-P", "-c", MIGRATE, where.url])
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    process.wait()


async def test_a_killed_migration_leaves_the_old_or_the_new(old: tuple[Path, Postgres]) -> None:
    """Killed at any point, it has the old schema with all its rows, or the new one; the next start finishes it."""
    file, where = old
    before = looking.dump(where)
    midway = set()
    for delay in (0.3, 0.5, 0.55, 0.6):
        _killed(where, delay)
        midway.add(state := upgrade.revision(where))
        assert state == HEAD or looking.dump(where) == before
    assert midway & set(RELEASED)
    for one in old:
        upgrade.upgrade(one)
    assert await everything(where) == await everything(file)


def test_migrations_and_tables_agree(empty: Postgres) -> None:
    """`alembic check` finds nothing to migrate; control: of a table that lacks a column it says so."""
    upgrade.upgrade(empty)
    upgrade.alembic(empty, command.check)
    looking.execute(empty, "ALTER TABLE runs DROP COLUMN reason")
    with pytest.raises(CommandError, match="reason"):
        upgrade.alembic(empty, command.check)


def test_the_first_migration_can_be_taken_back(empty: Postgres) -> None:
    """Down to nothing and up again is the same schema as up at once; the second is not taken back."""
    upgrade.alembic(empty, command.upgrade, "0001")
    upgrade.alembic(empty, command.downgrade, "base")
    assert looking.fetch(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == [("alembic_version",)]
    assert upgrade.upgrade(empty)
    upgrade.alembic(empty, command.check)
    upgrade.alembic(empty, command.downgrade, "0002")
    with pytest.raises(NotImplementedError):
        upgrade.alembic(empty, command.downgrade, "0001")
    assert upgrade.revision(empty) == "0002"
    assert upgrade.upgrade(empty) and upgrade.revision(empty) == HEAD


def test_every_constraint_has_its_name(empty: Postgres) -> None:
    """The names are those of the naming convention, so that a later migration finds them on both databases."""
    upgrade.upgrade(empty)
    names = [name for (name,) in looking.fetch(empty, "SELECT conname FROM pg_constraint WHERE connamespace = 2200")]
    indexes = [name for (name,) in looking.fetch(empty, "SELECT indexname FROM pg_indexes WHERE schemaname = 'public'")]
    ours = [name for name in names + indexes if not name.startswith("alembic_version")]
    assert len(ours) > 40 and [name for name in ours if name[:3] not in ("pk_", "fk_", "ck_", "uq_", "ix_")] == []
    assert [name for name in ours if "0001" in name] == []


def test_somebody_elses_tables_are_left_alone(empty: Postgres) -> None:
    """A database with a table in the way is refused in one line, and nothing is made beside it."""
    looking.execute(empty, "CREATE TABLE runs (something TEXT)")
    with pytest.raises(DatabaseUnavailable, match='relation "runs" already exists'):
        upgrade.upgrade(empty)
    tables = looking.fetch(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert ("runs",) in tables and ("annotations",) not in tables and upgrade.revision(empty) is None


def test_a_newer_schema_is_one_clear_error(empty: Postgres) -> None:
    """A database that a newer prefanno has written is refused with the cure, and not touched."""
    upgrade.upgrade(empty)
    looking.execute(empty, "UPDATE alembic_version SET version_num = '9999'")
    with pytest.raises(DatabaseUnavailable, match=r"was written by a newer prefanno \(schema 9999\); upgrade prefanno"):
        upgrade.upgrade(empty)
    assert upgrade.revision(empty) == "9999"


def test_a_role_that_may_not_make_tables_is_one_clear_error(postgresql: postgres.Postgres, empty: Postgres) -> None:
    """PostgreSQL's own words say what is missing."""
    looking.execute(empty, "DO $$BEGIN CREATE ROLE guest LOGIN; EXCEPTION WHEN duplicate_object THEN END$$")
    guest = Postgres(empty.url.replace(f"{postgres.ROLE}@", "guest@"))
    with pytest.raises(DatabaseUnavailable, match="permission denied for schema public"):
        upgrade.upgrade(guest)
    assert looking.fetch(empty, "SELECT tablename FROM pg_tables WHERE schemaname = 'public'") == []
    postgresql.execute("postgres", "DROP ROLE guest")
