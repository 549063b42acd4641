"""The home: one owner, its folders, and errors that say what to do."""

import errno
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from prefanno import home
from prefanno.errors import HomeInUse, InvalidSetting, StorageFull
from prefanno.settings import Settings

pytestmark = pytest.mark.sqlite_only  # no database is opened


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A home that is not there yet."""
    return Settings(home=tmp_path / "deep" / "home")


def _owned_by_another(settings: Settings) -> "subprocess.CompletedProcess[str]":
    """Another process tries to own the home."""
    script = (
        "import sys; from pathlib import Path; from prefanno import home; from prefanno.settings import Settings\n"
        "from prefanno.errors import HomeInUse\n"
        "try:\n    with home.owned(Settings(home=Path(sys.argv[1]))): print('mine')\n"
        "except HomeInUse as error:\n    print(error)"
    )
    command = [sys.executable, "-P", "-c", script, str(settings.home)]
    return subprocess.run(command, capture_output=True, text=True, check=True)


def test_the_folders_are_made(settings: Settings) -> None:
    """Owning a home that is not there makes it; what is there stays."""
    for _ in range(2):
        with home.owned(settings):
            assert settings.data.is_dir() and settings.outputs.is_dir() and settings.runs.is_dir()
            (settings.outputs / "kept").mkdir(exist_ok=True)
    assert (settings.outputs / "kept").is_dir()


def test_a_second_owner_is_refused_in_one_line(settings: Settings) -> None:
    """While a home is owned, neither this process nor another can own it; the error names it and the cure."""
    with home.owned(settings):
        with pytest.raises(HomeInUse) as refused, home.owned(settings):
            pass
        refusal = f"another prefanno uses {settings.home}; stop it, or set PREFANNO_HOME to another folder"
        assert str(refused.value) == refusal
        assert _owned_by_another(settings).stdout == f"{refusal}\n"
    assert _owned_by_another(settings).stdout == "mine\n"  # control: it was the owner that stood in the way


def test_an_owner_that_fails_gives_the_home_back(settings: Settings) -> None:
    """After a block that raised, the home can be owned again."""
    with pytest.raises(ZeroDivisionError), home.owned(settings):
        raise ZeroDivisionError
    with home.owned(settings):
        pass


def test_two_homes_have_two_owners(settings: Settings) -> None:
    """Owning one home does not keep anybody from another."""
    with home.owned(settings), home.owned(replace(settings, home=settings.home / "other")):
        pass


@pytest.mark.parametrize("way", ["deep", "deep/home", "deep/home/data", "deep/home/runs"])
def test_a_file_in_the_way_is_one_clear_error(settings: Settings, tmp_path: Path, way: str) -> None:
    """Where a folder cannot be made, the error names the home, the reason and the setting to change."""
    (tmp_path / way).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / way).write_text("a file")
    with pytest.raises(InvalidSetting) as refused, home.owned(settings):
        pass
    assert str(refused.value).startswith(f"cannot write to {settings.home}: ")
    assert str(refused.value).endswith("; set PREFANNO_HOME to a folder of yours")


def test_a_read_only_folder_is_one_clear_error(settings: Settings, tmp_path: Path) -> None:
    """A home that may not be written is refused with the same line."""
    (tmp_path / "deep").mkdir(mode=0o555)
    if os.access(tmp_path / "deep", os.W_OK):
        pytest.skip("this user can write everywhere; a file in the way is tested above")
    with pytest.raises(InvalidSetting, match="Permission denied; set PREFANNO_HOME"), home.owned(settings):
        pass


def test_a_full_disk_is_said_to_be_one(settings: Settings) -> None:
    """A disk without room is another error than a folder that belongs to somebody else."""
    full = home._explain(settings, OSError(errno.ENOSPC, "No space left on device"))
    foreign = home._explain(settings, OSError(errno.EACCES, "Permission denied"))
    assert isinstance(full, StorageFull)
    assert isinstance(foreign, InvalidSetting)
