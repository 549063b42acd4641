"""An export that is killed leaves every file as a whole one, old or new; the manifest tells which belong together."""

import asyncio
import contextlib
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest

from prefanno import home, snapshot
from prefanno.annotation import history
from prefanno.annotation.dataset import to_annotation
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.errors import SnapshotDamaged
from prefanno.files import STAGE
from prefanno.rows import Row
from prefanno.settings import Settings
from tests.annotation.test_dataset import MULTI, SINGLE
from tests.reliability import clients
from tests.reliability.conftest import Say

DATA = ("li_preference.json", "li_roleplay.json", "li_unpaired.json")
MANIFEST = "li.sharegpt.manifest.json"  # the last to be replaced
NAMES = (*DATA, "dataset_info.json", MANIFEST)
TRIES = 50
FIRST_TO_BE_REPLACED = "dataset_info.json"
ROWS = 1_000  # of each dataset: writing them takes a good part of the command's time
WAIT_S = 60.0

Contents = Mapping[str, bytes]


def _contents(folder: Path) -> Contents:
    return {name: (folder / name).read_bytes() for name in NAMES}


def faults(folder: Path, complete: Mapping[str, Contents]) -> list[str]:
    """The files that are none of the complete ones."""
    found = _contents(folder)
    return [name for name in NAMES if found[name] not in [contents[name] for contents in complete.values()]]


def mixed(folder: Path, complete: Mapping[str, Contents]) -> bool:
    """Whether the files are of more than one export; that the manifest says the same is asserted."""
    found = _contents(folder)
    whole = any(all(found[name] == contents[name] for name in (*DATA, MANIFEST)) for contents in complete.values())
    try:
        snapshot.verified(folder)
    except SnapshotDamaged:
        assert not whole
    else:
        assert whole
    return not whole


def _export(of: Path, to: Path) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "prefanno", "export", "--to", str(to)],
        env=clients.environment(of, 8000),
        stdout=subprocess.DEVNULL,
    )


@dataclass
class Exports:
    """Two homes with other annotations, what a whole export of each is, and a folder that both are exported to."""

    homes: Mapping[str, Path]
    folder: Path
    complete: dict[str, Contents] = field(default_factory=dict)
    takes: float = 0.0  # seconds, from exec to the end
    writes: float = 0.0  # seconds, from the first temporary file to the end

    def measure(self) -> None:
        """Export each once, to compare with; the folder has the last."""
        for name, of in self.homes.items():
            begun = time.monotonic()
            process = _export(of, self.folder)
            self._wait(process, self._has_temporary(frozenset(self.temporary())))
            writing = time.monotonic()
            assert process.wait(timeout=WAIT_S) == 0
            self.takes, self.writes = time.monotonic() - begun, time.monotonic() - writing
            self.complete[name] = _contents(self.folder)

    def temporary(self) -> list[str]:
        """What is in the folder beside the four files and their manifest."""
        return [path.name for path in self.folder.iterdir() if path.name not in NAMES]

    def kill_one(self, of: str, where: str) -> bool:
        """Begin an export, kill it at a random moment of this part; return whether it was not at its end before."""
        known, inode = frozenset(self.temporary()), self._inode()
        process = _export(self.homes[of], self.folder)
        if where == "anywhere":
            time.sleep(random.uniform(0, self.takes))
        elif where == "writing":
            self._wait(process, self._has_temporary(known))
            time.sleep(random.uniform(0, self.writes))
        else:
            self._wait(process, lambda: self._inode() != inode)
            time.sleep(random.uniform(0, 0.01))
        clients.kill(process)
        return process.returncode != 0

    def _has_temporary(self, known: frozenset[str]) -> Callable[[], bool]:
        return lambda: bool(set(self.temporary()) - known)

    def _inode(self) -> int:
        return (self.folder / FIRST_TO_BE_REPLACED).stat().st_ino

    @staticmethod
    def _wait(process: subprocess.Popen[bytes], true: Callable[[], bool]) -> None:
        while process.poll() is None:
            with contextlib.suppress(FileNotFoundError):  # a temporary file that took its name just now
                if true():
                    return
            time.sleep(0.0005)


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> Exports:
    """Exports of two homes, each done once."""
    folder = tmp_path_factory.mktemp("homes")
    made = Exports({name: folder / name for name in ("one", "two")}, folder / "exported")
    made.folder.mkdir()
    for name, of in made.homes.items():
        asyncio.run(_filled(Settings(home=of), name))
    made.measure()
    return made


@pytest.fixture
def exports(measured: Exports, tmp_path: Path) -> Exports:
    """The same, with a folder of the test's own that holds a whole export."""
    folder = Path(shutil.copytree(measured.folder, tmp_path / "exported"))
    return replace(measured, folder=folder)


def _rows(name: str) -> Iterator[Row]:
    for number in range(ROWS):
        yield replace(SINGLE, human_input=f"{name} {number}")
        yield replace(MULTI, human_input=f"{name} {number}")
        yield replace(SINGLE, human_input=f"{name} {number}", rejected=None)


async def _filled(settings: Settings, name: str) -> None:
    with home.owned(settings):
        upgrade.upgrade(settings.database)
        async with Database.open(settings.database) as database:
            added = [to_annotation("li", row) for row in _rows(name)]
            await database.write(lambda session: history.add(session, added, "import"))


@pytest.mark.parametrize("kills", [15, pytest.param(200, marks=pytest.mark.long)])
def test_a_killed_export_leaves_whole_files(kills: int, exports: Exports, say: Say) -> None:
    """Wherever SIGKILL comes, each file is a complete one, of this export or of one before.

    Where they are of both, which only a kill between two renames can leave, the manifest does not fit them.
    """
    one, two = exports.complete.values()
    assert all(one[name] != two[name] for name in (*DATA, MANIFEST)) and all(len(one[name]) > 100_000 for name in DATA)
    halfway = 0
    in_time: dict[str, int] = dict.fromkeys(("anywhere", "writing", "replacing"), 0)
    for ordinal in range(kills):
        where = list(in_time)[ordinal % 3]
        in_time[where] += exports.kill_one(("one", "two")[ordinal % 2], where)
        assert faults(exports.folder, exports.complete) == []
        halfway += mixed(exports.folder, exports.complete)
    left = exports.temporary()
    say(f"killed before its end, of {kills // 3} each: {in_time}; {halfway} times between two renames")
    assert in_time["writing"] > 0 and len(left) <= 1 and all(name.startswith(STAGE) for name in left)


def test_a_later_export_clears_what_killed_ones_left(exports: Exports) -> None:
    """Whatever killed exports left, after the next whole one the folder has the four files and no other."""
    tries = 0
    while not exports.temporary() and tries < TRIES:  # each one clears what the one before left
        exports.kill_one("one", "writing")
        tries += 1
    assert exports.temporary()
    assert _export(exports.homes["one"], exports.folder).wait(timeout=WAIT_S) == 0
    assert _contents(exports.folder) == exports.complete["one"]
    assert exports.temporary() == [] and not mixed(exports.folder, exports.complete)


def test_exports_beside_each_other_do_not_disturb_each_other(exports: Exports) -> None:
    """Of several exports to one folder at once each ends well, and each file is a complete one."""
    processes = [_export(of, exports.folder) for of in exports.homes.values() for _ in range(2)]
    assert [process.wait(timeout=WAIT_S) for process in processes] == [0] * 4
    assert faults(exports.folder, exports.complete) == []
    assert exports.temporary() == [] and not mixed(exports.folder, exports.complete)


@pytest.mark.parametrize("name", DATA)
def test_files_of_two_exports_do_not_fit_one_manifest(name: str, exports: Exports) -> None:
    """Control: one file of the other export beside the rest is found."""
    assert not mixed(exports.folder, exports.complete)
    (exports.folder / name).write_bytes(exports.complete["one"][name])  # the folder has those of two
    assert faults(exports.folder, exports.complete) == []
    assert mixed(exports.folder, exports.complete)


IN_PLACE = """\
import pathlib, sys, time
file = pathlib.Path(sys.argv[1])
content = file.read_bytes()
with file.open("wb", buffering=0) as out:
    out.write(content[: len(content) // 2])
    print("half", flush=True)
    time.sleep(1000)
"""


@pytest.mark.parametrize("name", NAMES)
def test_the_check_catches_a_writer_in_place(name: str, exports: Exports) -> None:
    """Control: a writer that writes a file under its own name and is killed on the way is found."""
    assert faults(exports.folder, exports.complete) == []
    command = [sys.executable, "-c", IN_PLACE, str(exports.folder / name)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as writer:
        assert writer.stdout is not None and writer.stdout.readline() == b"half\n"
        clients.kill(writer)
    assert faults(exports.folder, exports.complete) == [name]
