"""Files that appear whole or not at all, and folders in which they are made."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from prefanno import files

WAIT_S = 60.0
WRITER = """\
import sys, time
from pathlib import Path
from prefanno import files

with files.staging(Path(sys.argv[1])) as stage:
    files.write(stage / "half", b"x" * 1000)
    print(stage.name, flush=True)
    time.sleep(1000)
"""


def _writer(folder: Path) -> tuple[subprocess.Popen[str], Path]:
    """A process that writes files in this folder for ever, and where it writes them."""
    command = [sys.executable, "-c", WRITER, str(folder)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True)
    assert process.stdout is not None
    return process, folder / process.stdout.readline().strip()


def _end(process: subprocess.Popen[str], number: signal.Signals) -> None:
    process.send_signal(number)
    process.communicate(timeout=WAIT_S)


def _write_twice(path: Path) -> None:
    files.write(path, b"")
    files.write(path, b"")


def test_a_stage_is_a_new_folder_and_gone_afterwards(tmp_path: Path) -> None:
    """The folder is made where it is missing; what was not placed is gone, also where the block raised."""
    folder = tmp_path / "new" / "folder"
    with files.staging(folder) as stage:
        assert stage.parent == folder and list(stage.iterdir()) == []
        files.write(stage / "left", b"")
        (stage / "below").mkdir()
    assert list(folder.iterdir()) == []
    with pytest.raises(FileExistsError), files.staging(folder) as stage:
        _write_twice(stage / "left")
    assert list(folder.iterdir()) == []


def test_stages_beside_each_other(tmp_path: Path) -> None:
    """A second stage in the same folder neither waits for the first nor clears it."""
    with files.staging(tmp_path) as one:
        files.write(one / "a", b"1")
        with files.staging(tmp_path) as two:
            assert two != one and list(two.iterdir()) == []
            files.write(two / "a", b"2")
            files.place(two, tmp_path, last="a")
        assert (one / "a").read_bytes() == b"1"
        files.place(one, tmp_path, last="a")
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == {"a": b"1"}


def test_what_a_killed_process_left_is_cleared_by_the_next(tmp_path: Path) -> None:
    """The stage of a killed process stays until the next one; that of a living process is left alone."""
    killed, left = _writer(tmp_path)
    _end(killed, signal.SIGKILL)
    assert (left / "half").stat().st_size == 1000
    living, used = _writer(tmp_path)
    try:
        assert not left.exists() and (used / "half").exists()
        with files.staging(tmp_path):
            assert (used / "half").exists()
    finally:
        _end(living, signal.SIGINT)
    assert list(tmp_path.iterdir()) == []


def test_only_stages_are_cleared(tmp_path: Path) -> None:
    """Whatever else is in the folder stays, also where its name is like that of a stage."""
    (tmp_path / ".export-abcdefgh").write_text("a file")
    for name in (".export-", ".export-a", ".export-abcdefghi", ".exports", "export-abcdefgh"):
        (tmp_path / name).mkdir()
    before = sorted(tmp_path.iterdir())
    (tmp_path / ".export-01234567").mkdir()  # control
    with files.staging(tmp_path):
        pass
    assert sorted(tmp_path.iterdir()) == before


def test_place_moves_all_and_replaces_what_is_there(tmp_path: Path) -> None:
    """Every file has its new content afterwards, whatever is there beside them stays."""
    for name in ("a", "other"):
        (tmp_path / name).write_text("before")
    with files.staging(tmp_path) as stage:
        for name in ("manifest", "a", "z"):
            files.write(stage / name, name.encode())
        files.place(stage, tmp_path, last="manifest")
        assert list(stage.iterdir()) == []
    found = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert found == {"a": "a", "manifest": "manifest", "other": "before", "z": "z"}


@pytest.mark.parametrize("obstacle", ["a", "z", "manifest"])
def test_one_that_cannot_be_placed_keeps_all_back(tmp_path: Path, obstacle: str) -> None:
    """A folder in a file's place is named, and none of the new files is there."""
    (tmp_path / obstacle).mkdir()
    with files.staging(tmp_path) as stage:
        for name in ("manifest", "a", "z"):
            files.write(stage / name, b"")
        with pytest.raises(OSError, match=f"cannot write to {tmp_path}: {obstacle} is a folder"):
            files.place(stage, tmp_path, last="manifest")
    assert [path.name for path in tmp_path.iterdir()] == [obstacle]


def test_the_last_is_moved_last(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every file takes its place before the last one does."""
    moved: list[str] = []
    replace = Path.replace

    def noting(path: Path, target: Path) -> Path:
        moved.append(target.name)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", noting)
    with files.staging(tmp_path) as stage:
        for name in ("manifest", "a", "z"):
            files.write(stage / name, b"")
        files.place(stage, tmp_path, last="manifest")
    assert moved == ["a", "z", "manifest"]


def test_a_folder_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    """It is named itself, not the stage in it, of which nobody knows; the kind of the error stays."""
    (tmp_path / "file").write_text("in the way")
    below = tmp_path / "file" / "below"
    with pytest.raises(NotADirectoryError, match=f"cannot write to {below}: "), files.staging(below):
        pass


def test_write_makes_new_files_only(tmp_path: Path) -> None:
    """A file that is there is not overwritten."""
    files.write(tmp_path / "a", b"\x00\r\n")
    with pytest.raises(FileExistsError):
        files.write(tmp_path / "a", b"")
    assert (tmp_path / "a").read_bytes() == b"\x00\r\n"


def test_a_lock_is_for_one_and_ends_with_its_block(tmp_path: Path) -> None:
    """While somebody has the folder, nobody else gets it; afterwards the next one does, also after an error."""
    with files.locked(tmp_path):
        with pytest.raises(BlockingIOError), files.locked(tmp_path, wait=False):
            pass
        with files.locked(tmp_path.parent, wait=False):  # control: another folder
            pass
    with pytest.raises(KeyError), files.locked(tmp_path, wait=False):
        raise KeyError
    with files.locked(tmp_path, wait=False):
        pass
