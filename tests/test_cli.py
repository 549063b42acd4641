"""The command line, mostly as real processes: what it prints, how it ends, and that no error is a traceback."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from prefanno import __version__, home
from prefanno.cli import cli
from prefanno.db import upgrade
from prefanno.db.file import HEAD
from prefanno.settings import PREFIX, Settings, describe

WAIT_S = 120.0
PROGRAM = (sys.executable, "-P", "-m", "prefanno")
PAIR = {
    "conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Ho"},
    "rejected": {"from": "gpt", "value": "No"},
}

Done = subprocess.CompletedProcess[str]


def _environment(settings: Settings, **changes: str) -> dict[str, str]:
    """This process's variables, with the home and the model of the test in place of any PREFANNO_ settings."""
    others = {name: value for name, value in os.environ.items() if not name.startswith(PREFIX)}
    mine = {"HOME": str(settings.home), "MODEL": settings.model, "DATABASE_URL": settings.database_url}
    return {**others, **{PREFIX + name: value for name, value in mine.items()}, **changes}


def _run(settings: Settings, *arguments: str, **changes: str) -> Done:
    return subprocess.run(
        [*PROGRAM, *arguments],
        env=_environment(settings, **changes),
        cwd=settings.home.parent,
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )


def _refusal(done: Done) -> str:
    """The one line on stderr of a command that was refused."""
    assert done.returncode == 1, done
    assert done.stdout == ""
    (line,) = done.stderr.splitlines()
    assert "Traceback" not in line and not re.search("[\u3000-\u9fff\uff00-\uffef]", line), "English"
    return line


def _add(settings: Settings, *entries: object) -> Done:
    """Import these entries."""
    file = settings.home.parent / "rows.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return _run(settings, "import", str(file))


def _here(settings: Settings, *arguments: str) -> Result:
    """As `_run`, in this process and well ended, where a test only needs it done: that takes a tenth of the time."""
    result = CliRunner().invoke(cli, arguments, env=_environment(settings))
    assert result.exit_code == 0, result.output
    return result


def _given(settings: Settings, *entries: object) -> None:
    """These entries are there."""
    file = settings.home.parent / "given.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    _here(settings, "import", str(file))


def test_help_names_commands_and_settings(settings: Settings) -> None:
    """`prefanno --help` lists every command and every setting, and `--version` the version."""
    shown = _run(settings, "--help")
    assert shown.returncode == 0
    words = shown.stdout.split()
    assert {"serve", "export", "import", "db", "train", "doctor"} <= set(words)
    text = " ".join(words)
    assert all(name in text for name, _, _ in describe())
    assert __version__ in _run(settings, "--version").stdout


@pytest.mark.parametrize("command", [("export",), ("db", "upgrade"), ("train",), ("doctor",), ("serve",)])
def test_an_unknown_setting_is_refused_by_name(settings: Settings, command: tuple[str, ...]) -> None:
    """A misspelt variable stops every command, in one line that names it; nothing is made."""
    line = _refusal(_run(settings, *command, PREFANNO_MODLE="demo"))
    assert line.startswith("prefanno: unknown setting PREFANNO_MODLE; the settings are: ")
    assert not settings.home.exists()


def test_an_error_leaves_the_terminal_as_it_is(settings: Settings) -> None:
    """Signs that a terminal would obey are not repeated."""
    line = _refusal(_run(settings, "doctor", **{"PREFANNO_\x1b[2J\u202e": "x"}))
    assert line.startswith("prefanno: unknown setting PREFANNO_\ufffd[2J\ufffd;")


@pytest.mark.parametrize("arguments", [("nonsense",), ("import",), ("import", "/nowhere.json"), ("export", "--colour")])
def test_wrong_usage_says_what_is_wrong(settings: Settings, arguments: tuple[str, ...]) -> None:
    """An unknown command, option or file ends with click's code 2 and a hint, without a traceback."""
    done = _run(settings, *arguments)
    assert done.returncode == 2
    assert "Error: " in done.stderr and "Traceback" not in done.stderr


def test_db_upgrade_makes_the_database_once(unmade: Settings) -> None:
    """The first call makes the database, the second finds it up to date; both say which schema it has."""
    first, second = _run(unmade, "db", "upgrade"), _run(unmade, "db", "upgrade")
    assert (first.returncode, second.returncode) == (0, 0)
    assert first.stdout == f"{unmade.database}: upgraded to schema {HEAD}\n"
    assert second.stdout == f"{unmade.database}: is at schema {HEAD}\n"
    assert first.stderr == second.stderr == ""


@pytest.mark.sqlite_only
def test_a_broken_database_is_one_line(settings: Settings) -> None:
    """A file that is no database is named, with the cure."""
    settings.data.mkdir(parents=True)
    settings.database_file.write_bytes(b"no database" * 1000)
    for command in (("db", "upgrade"), ("export",)):
        line = _refusal(_run(settings, *command))
        assert str(settings.database) in line and "Restore a backup, or move the file away" in line


@pytest.mark.parametrize("command", ["db", "import", "train"])
def test_a_second_owner_is_refused(settings: Settings, tmp_path: Path, command: str) -> None:
    """What writes to a home that another process owns is refused in one line; `export`, which reads, is not."""
    (tmp_path / "rows.json").write_text(json.dumps([PAIR]))
    arguments = {"db": ("db", "upgrade"), "import": ("import", "rows.json"), "train": ("train",)}
    with home.owned(settings):
        upgrade.upgrade(settings.database)
        if command == "import" and settings.database_url:  # it writes to no file of the home
            assert _run(settings, *arguments[command]).returncode == 0
        else:
            line = _refusal(_run(settings, *arguments[command]))
            assert line.startswith(f"prefanno: another prefanno uses {settings.home}; stop it, or set PREFANNO_HOME")
        if command == "import":
            assert _run(settings, "export").returncode == 0


def test_a_home_that_cannot_be_made_is_one_line(settings: Settings) -> None:
    """A file where the home should be is named, with the setting to change."""
    settings.home.write_text("a file")
    line = _refusal(_run(settings, "db", "upgrade"))
    assert line.startswith(f"prefanno: cannot write to {settings.home}: ") and "set PREFANNO_HOME" in line


@pytest.fixture
def clean_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """No PREFANNO_ variable of the machine's own."""
    for name in list(os.environ):
        if name.startswith(PREFIX):
            monkeypatch.delenv(name)


def _doctor(settings: Settings, **changes: str) -> tuple[Result, dict[str, str]]:
    """What the doctor finds, by the name of the check. In this process, which has loaded torch already."""
    result = CliRunner().invoke(cli, ["doctor"], env=_environment(settings, **changes))
    lines = result.stdout.splitlines()
    return result, {line[6:].partition(":")[0]: line for line in lines}


@pytest.mark.usefixtures("clean_environment")
def test_doctor_looks_at_everything(unmade: Settings) -> None:
    """The doctor says of each part whether it is well; a fresh home lacks nothing that the home itself holds."""
    result, found = _doctor(unmade)
    expected = {"python", "home", "disk", "database", "base model", "device", "train script", "API page"}
    assert set(found) == expected
    assert found["database"] == "ok    database: none yet; `prefanno serve` makes it"
    assert all(found[name].startswith("ok    ") for name in expected - {"API page", "disk"})
    assert result.exit_code == (1 if "FAIL" in result.stdout else 0)


@pytest.mark.sqlite_only
@pytest.mark.usefixtures("clean_environment")
def test_doctor_names_what_is_wrong_and_its_cure(settings: Settings) -> None:
    """A missing script and a broken database are two findings, each with its cure; the rest is still looked at."""
    settings.data.mkdir(parents=True)
    settings.database_file.write_bytes(b"no database" * 1000)
    result, found = _doctor(settings, PREFANNO_TRAIN_SCRIPT="/nowhere/train.sh")
    assert result.exit_code == 1
    assert found["train script"] == "FAIL  train script: /nowhere/train.sh is missing; set PREFANNO_TRAIN_SCRIPT"
    assert found["database"].startswith(f"FAIL  database: cannot use the database {settings.database}")
    assert found["home"].startswith("ok")


@pytest.mark.usefixtures("clean_environment")
def test_doctor_may_be_called_beside_a_server(settings: Settings) -> None:
    """A home in use and a database at the newest schema are well."""
    with home.owned(settings):
        upgrade.upgrade(settings.database)
        _, found = _doctor(settings)
    assert found["home"] == f"ok    home: {settings.home} is in use by a running prefanno"
    state = settings.database if settings.database_url else "sound"
    assert found["database"] == f"ok    database: schema {HEAD}, {state}"


@pytest.mark.usefixtures("clean_environment")
@pytest.mark.needs("PostgreSQL")
def test_doctor_names_a_postgresql_that_is_not_there(tmp_path: Path) -> None:
    """The finding says where it looked and what came of it, without the password; the rest is still looked at."""
    url = "postgresql://you:hush@127.0.0.1:1/prefanno"
    result, found = _doctor(Settings(home=tmp_path, database_url=url))
    assert result.exit_code == 1
    assert found["database"].startswith("FAIL  database: cannot use PostgreSQL 127.0.0.1:1/prefanno: ")
    assert found["train script"].startswith("ok") and "hush" not in result.output
