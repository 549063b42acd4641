"""`prefanno db backup`, `db restore`, and the backup that a migration takes, as real processes."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from prefanno import home
from prefanno.db.file import HEAD
from prefanno.settings import Settings
from tests import looking
from tests.test_cli import PAIR, _here, _refusal, _run


def _import(settings: Settings, said: str) -> None:
    """One annotation more."""
    file = settings.home.parent / f"{said}.json"
    entry = {**PAIR, "conversations": [{"from": "human", "value": said}]}
    file.write_text(json.dumps([entry]), encoding="utf-8")
    _here(settings, "import", str(file))


def _exported(settings: Settings) -> list[str]:
    """What humans said in the exported preferences."""
    _here(settings, "export")
    rows = json.loads((settings.data / "li_preference.json").read_text(encoding="utf-8"))
    return [row["conversations"][0]["value"] for row in rows]


def _last_path(stdout: str) -> Path:
    return Path(stdout.splitlines()[-1].partition(": ")[2])


@pytest.mark.sqlite_only
def test_a_backup_brings_back_what_was(settings: Settings) -> None:
    """Backed up with one annotation, restored with two: one is there again, and the state of two is kept, too."""
    _import(settings, "first")
    made = _run(settings, "db", "backup")
    assert made.stdout.startswith(f"schema {HEAD}, sound: 1 annotations, ") and made.returncode == 0
    _import(settings, "second")
    restored = _run(settings, "db", "restore", str(_last_path(made.stdout)))
    assert restored.returncode == 0 and _exported(settings) == ["first"]
    assert _run(settings, "db", "restore", str(_last_path(restored.stdout))).returncode == 0
    assert _exported(settings) == ["first", "second"]


@pytest.mark.sqlite_only
def test_a_backup_goes_where_it_is_told_to(settings: Settings) -> None:
    """`--to` names a new file; one that is there already, or a missing database, is refused in one line."""
    target = settings.home.parent / "elsewhere" / "choices.db"
    assert "there is no database" in _refusal(_run(settings, "db", "backup", "--to", str(target)))
    _import(settings, "first")
    assert _run(settings, "db", "backup", "--to", str(target)).returncode == 0 and target.is_file()
    assert "is there already" in _refusal(_run(settings, "db", "backup", "--to", str(target)))


@pytest.mark.sqlite_only
def test_a_home_in_use_is_backed_up_but_not_restored(settings: Settings) -> None:
    """While a server owns the home, a backup works, and a restore is refused in one line."""
    _import(settings, "first")
    with home.owned(settings):
        made = _run(settings, "db", "backup")
        assert made.returncode == 0
        assert "another prefanno uses" in _refusal(_run(settings, "db", "restore", str(_last_path(made.stdout))))
    assert _exported(settings) == ["first"]


@pytest.mark.sqlite_only
def test_what_is_no_backup_is_refused(settings: Settings) -> None:
    """Some other file is named with the cause, and the database stays."""
    _import(settings, "first")
    diary = settings.home.parent / "diary.txt"
    diary.write_text("Dear diary, " * 1000)
    assert str(diary) in _refusal(_run(settings, "db", "restore", str(diary)))
    assert _exported(settings) == ["first"]


@pytest.mark.postgresql_only
def test_a_postgresql_is_backed_up_by_its_own_tools(settings: Settings) -> None:
    """Both commands say so in one line, and name them."""
    assert "pg_dump" in _refusal(_run(settings, "db", "backup"))
    (settings.home.parent / "some.db").touch()
    assert "pg_restore" in _refusal(_run(settings, "db", "restore", "some.db"))


@pytest.mark.postgresql_only
def test_what_was_in_the_file_is_in_the_postgresql(settings: Settings) -> None:
    """`db copy` prints each table with its rows; the same annotations are exported, and a second copy is refused."""
    file = replace(settings, database_url="")
    assert "there is no database" in _refusal(_run(settings, "db", "copy"))
    for said in ("first", "second"):
        _import(file, said)
    done = _run(settings, "db", "copy")
    assert (done.returncode, done.stderr) == (0, "")
    counted = {line.split()[0]: line.split()[1] for line in done.stdout.splitlines()[1:-1]}
    assert counted["annotations"] == counted["events"] == "2" and counted["runs"] == "0"
    assert done.stdout.splitlines()[-1] == f"copied {file.database} to {settings.database}; the file is left as it is"
    assert _exported(settings) == _exported(file) == ["first", "second"]
    before = looking.dump(settings.database)
    assert "is not empty" in _refusal(_run(settings, "db", "copy"))
    assert looking.dump(settings.database) == before


@pytest.mark.postgresql_only
def test_a_copy_needs_both_ends(settings: Settings) -> None:
    """Without the URL there is nothing to copy to; a home that a server owns is not copied."""
    _import(replace(settings, database_url=""), "first")
    assert "set PREFANNO_DATABASE_URL" in _refusal(_run(replace(settings, database_url=""), "db", "copy"))
    with home.owned(settings):
        assert "another prefanno uses" in _refusal(_run(settings, "db", "copy"))
