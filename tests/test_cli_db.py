"""`prefanno db backup`, `db restore`, and the backup that a migration takes, as real processes."""

import json
from pathlib import Path

from prefanno import home
from prefanno.db.file import HEAD
from prefanno.settings import Settings
from tests.test_cli import PAIR, _refusal, _run


def _import(settings: Settings, said: str) -> None:
    """One annotation more."""
    file = settings.home.parent / f"{said}.json"
    entry = {**PAIR, "conversations": [{"from": "human", "value": said}]}
    file.write_text(json.dumps([entry]), encoding="utf-8")
    assert _run(settings, "import", str(file)).returncode == 0


def _exported(settings: Settings) -> list[str]:
    """What humans said in the exported preferences."""
    assert _run(settings, "export").returncode == 0
    rows = json.loads((settings.data / "li_preference.json").read_text(encoding="utf-8"))
    return [row["conversations"][0]["value"] for row in rows]


def _last_path(stdout: str) -> Path:
    return Path(stdout.splitlines()[-1].partition(": ")[2])


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


def test_a_backup_goes_where_it_is_told_to(settings: Settings) -> None:
    """`--to` names a new file; one that is there already, or a missing database, is refused in one line."""
    target = settings.home.parent / "elsewhere" / "choices.db"
    assert "there is no database" in _refusal(_run(settings, "db", "backup", "--to", str(target)))
    _import(settings, "first")
    assert _run(settings, "db", "backup", "--to", str(target)).returncode == 0 and target.is_file()
    assert "is there already" in _refusal(_run(settings, "db", "backup", "--to", str(target)))


def test_a_home_in_use_is_backed_up_but_not_restored(settings: Settings) -> None:
    """While a server owns the home, a backup works, and a restore is refused in one line."""
    _import(settings, "first")
    with home.owned(settings):
        made = _run(settings, "db", "backup")
        assert made.returncode == 0
        assert "another prefanno uses" in _refusal(_run(settings, "db", "restore", str(_last_path(made.stdout))))
    assert _exported(settings) == ["first"]


def test_what_is_no_backup_is_refused(settings: Settings) -> None:
    """Some other file is named with the cause, and the database stays."""
    _import(settings, "first")
    diary = settings.home.parent / "diary.txt"
    diary.write_text("Dear diary, " * 1000)
    assert str(diary) in _refusal(_run(settings, "db", "restore", str(diary)))
    assert _exported(settings) == ["first"]
