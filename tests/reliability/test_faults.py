"""A full disk, a folder that cannot be written, a damaged or newer file, two servers on one home: refused, not lost."""

import asyncio
import contextlib
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from benchmarks.serving import free_port, running
from tests.reliability import clients
from tests.reliability.checking import faults
from tests.reliability.conftest import Disk

PAGE = 4096
WAIT_S = 120.0  # the engine pauses for ten seconds after each failure
LARGE = "x" * 20_000  # so that a full disk is noticed soon
GETS = (
    "/health",
    "/api/dataset/stats",
    "/api/dataset/list?dataset=preference",
    "/api/annotations",
    "/api/annotations/1",
)


def _refusal(home: Path, *command: str, port: int = 0) -> str:
    """The one line with which a command ends with 1; there is no other line, and no traceback."""
    ended = subprocess.run(
        [sys.executable, "-m", "prefanno", *command],
        env=clients.environment(home, port or free_port()),
        capture_output=True,
        text=True,
        timeout=clients.START_S,
        check=False,
    )
    assert ended.returncode == 1, (ended.stdout, ended.stderr)
    assert ended.stderr.startswith("prefanno: ") and ended.stderr.count("\n") == 1, ended.stderr
    return ended.stderr


def _database(home: Path) -> Path:
    return home / "data" / "prefanno.db"


Left = tuple[Path, dict[str, int]]  # a home that a server left, and what its clients were told


@pytest.fixture(scope="module")
def once_left(tmp_path_factory: pytest.TempPathFactory) -> Left:
    """A home with 100 annotations, left by a server that ended well."""
    home, port = tmp_path_factory.mktemp("left") / "home", free_port()
    log, adders = home.with_suffix(".log"), clients.Adders(port)

    async def add(process: subprocess.Popen[bytes]) -> None:
        await clients.healthy(process, port, log)
        await adders.add(clients.texts(100), 20)

    with clients.ended(clients.start(home, port, log)) as process:
        asyncio.run(add(process))
    return home, adders.told


@pytest.fixture
def left(once_left: Left, tmp_path: Path) -> Left:
    """A copy of that home, of the test's own."""
    home, told = once_left
    return Path(shutil.copytree(home, tmp_path / "home")), dict(told)


class TestFullDisk:
    """Nothing is stored, nothing is lost, and nobody has to start anything again."""

    pytestmark = pytest.mark.needs("mount")

    @staticmethod
    async def _ask(port: int, texts: list[str]) -> list[tuple[int, Any]]:
        """The answers to adds, all sent at once, each with its text for a key."""

        async def ask(text: str) -> tuple[int, Any]:
            with contextlib.closing(clients.Connection(port)) as connection:
                return await connection.ask("POST", clients.ADD, clients.row(text) | {"chosen": LARGE}, text)

        return list(await asyncio.gather(*(ask(text) for text in texts)))

    async def _until_refused(self, port: int, told: dict[str, int]) -> list[str]:
        """Add until something does not fit; those texts. A file may have room of its own on a full disk."""
        while True:
            texts = clients.texts(20)
            answers = dict(zip(texts, await self._ask(port, texts), strict=True))
            told |= {text: answer["data"]["id"] for text, (status, answer) in answers.items() if status == 200}
            refused = {text: answer for text, (status, answer) in answers.items() if status != 200}
            assert {answers[text][0] for text in refused} <= {507}, refused
            assert all(answer["detail"].startswith("磁盘已满") for answer in refused.values())
            if refused:
                return list(refused)

    async def test_a_running_server_refuses_and_goes_on_when_there_is_space(self, disk: Disk, tmp_path: Path) -> None:
        """While the disk is full adds get 507 and GETs 200; with space again the same server stores the same adds."""
        home, log, port = disk.path / "home", tmp_path / "server.log", free_port()
        adders = clients.Adders(port)
        with clients.ended(clients.start(home, port, log)) as process:
            await clients.healthy(process, port, log)
            await adders.add(clients.texts(100), 20)
            for _ in range(3):
                disk.fill()
                refused = await self._until_refused(port, adders.told)
                assert await _statuses(port, GETS) == [200] * len(GETS)
                disk.free()
                answers = await self._ask(port, refused)
                assert {status for status, _ in answers} == {200}, answers
                adders.told |= {text: answer["data"]["id"] for text, (_, answer) in zip(refused, answers, strict=True)}
            await adders.add(clients.texts(20), 20)
            assert process.poll() is None
        assert faults(_database(home), adders.told) == []

    async def test_a_disk_that_fills_up_under_clients_loses_nothing(self, disk: Disk, tmp_path: Path) -> None:
        """Adds until nothing fits any more: what got 200 is there, what got 507 is not."""
        home, log, port = disk.path / "home", tmp_path / "server.log", free_port()
        told: dict[str, int] = {}
        with clients.ended(clients.start(home, port, log)) as process:
            await clients.healthy(process, port, log)
            await self._until_refused(port, told)
        assert len(told) >= 10
        assert faults(_database(home), told) == []

    @pytest.mark.parametrize("ending", [clients.kill, subprocess.Popen.terminate], ids=["SIGKILL", "SIGTERM"])
    async def test_a_server_that_ends_on_a_full_disk_leaves_everything(
        self, ending: Callable[[subprocess.Popen[bytes]], None], disk: Disk, tmp_path: Path
    ) -> None:
        """It may not be able to start while the disk is full, and says so; with space again all is there."""
        home, log, port = disk.path / "home", tmp_path / "server.log", free_port()
        adders = clients.Adders(port)
        with clients.ended(clients.start(home, port, log)) as process:
            await clients.healthy(process, port, log)
            await adders.add(clients.texts(100), 20)
            disk.fill()
            await self._until_refused(port, adders.told)
            ending(process)
        with clients.ended(clients.start(home, port, again := tmp_path / "again.log")) as process:
            await _serves_or_refuses(process, port, again, GETS)
        disk.free()
        with clients.ended(clients.start(home, port, log)) as process:
            await clients.healthy(process, port, log)
            await adders.add(clients.texts(20), 20)
        assert faults(_database(home), adders.told) == []

    @pytest.mark.parametrize(
        "free", [0, 100, 300, *(pytest.param(free, marks=pytest.mark.long) for free in (8, 32, 150, 200, 400, 800))]
    )
    async def test_a_first_start_without_enough_space_is_refused(self, free: int, disk: Disk, tmp_path: Path) -> None:
        """With so many KiB free, `serve` makes its database or says in one line that the disk is full; later it can."""
        home, log, port = disk.path / "home", tmp_path / "first.log", free_port()
        disk.fill()
        ballast = disk.path / "ballast"
        os.truncate(ballast, ballast.stat().st_size - free * 1024)
        with clients.ended(clients.start(home, port, log)) as process:
            if not await _serves_or_refuses(process, port, log, GETS[:4]):
                assert "disk is full" in log.read_text()
        disk.free()
        adders = clients.Adders(port)
        with clients.ended(clients.start(home, port, log)) as process:
            await clients.healthy(process, port, log)
            await adders.add(clients.texts(20), 20)
        assert faults(_database(home), adders.told) == []

    @pytest.mark.long
    def test_candidates_written_ahead_wait_for_space(self, disk: Disk, tiny_model: Path) -> None:
        """What does not fit is written again later: no prompt has failed, and all are ready with space again."""
        lengths = {"num_responses": 10, "max_new_tokens": 400, "enable_thinking": False}
        with running(disk.path / "home", MODEL=str(tiny_model)) as server:
            queued = [{"message": f"message {number}"} for number in range(20)]
            server.call("POST", "/api/prompts", {"prompts": queued})
            disk.fill()
            server.call("POST", "/api/model/load", lengths | {"system_prompt": "You are Li."})
            _until(lambda: "are lost" in (server.home / "server.log").read_text())
            counts = server.call("GET", "/api/prompts")["data"]["counts"]
            assert counts["waiting"] > 0 and counts["failed"] == 0
            disk.free()
            _until(lambda: server.call("GET", "/api/prompts")["data"]["counts"]["ready"] == len(queued))

    def test_an_export_without_space_leaves_the_old_files(self, disk: Disk, left: Left) -> None:
        """`prefanno export` ends with one line, and the files of the last export are as they were, with none beside."""
        home, _ = left
        command = ("export", "--to", str(disk.path / "exported"))
        arguments = [sys.executable, "-m", "prefanno", *command]
        subprocess.run(arguments, env=clients.environment(home, 8000), check=True, capture_output=True)
        before = {path.name: path.read_bytes() for path in (disk.path / "exported").iterdir()}
        disk.fill()
        assert "space" in _refusal(home, *command)
        assert {path.name: path.read_bytes() for path in (disk.path / "exported").iterdir()} == before
        assert len(before) == 5  # four files and their manifest


def _until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.2)


async def _serves_or_refuses(process: subprocess.Popen[bytes], port: int, log: Path, paths: tuple[str, ...]) -> bool:
    """Whether the server came up; then each GET is answered with 200 or 503. Otherwise its log is one line."""
    try:
        await clients.healthy(process, port, log)
    except clients.NotStarted:
        assert process.wait(timeout=clients.START_S) == 1
        _one_line(log)
        return False
    statuses = await _statuses(port, paths)
    assert set(statuses) <= {200, 503}, statuses
    return True


def _one_line(log: Path) -> None:
    lines = [line for line in log.read_text().splitlines() if not line.startswith("prefanno is at")]
    assert len(lines) == 1 and lines[0].startswith("prefanno: "), lines


async def _statuses(port: int, paths: tuple[str, ...]) -> list[int]:
    with contextlib.closing(clients.Connection(port)) as connection:
        return [(await connection.ask("GET", path))[0] for path in paths]


@pytest.mark.needs("mount")
def test_a_folder_that_cannot_be_written_is_refused(disk: Disk, left: Left) -> None:
    """`serve` on a read-only disk names the home in one line; when it can be written again, all is there."""
    home, told = Path(shutil.copytree(left[0], disk.path / "home")), left[1]
    disk.remount("ro")
    for name in (home, disk.path / "new"):
        assert f"cannot write to {name}" in _refusal(name, "serve")
    disk.remount("rw")
    _serves_all(home, told)


def _serves_all(home: Path, told: dict[str, int]) -> None:
    """A server comes up and counts all; the file is as the clients were told."""
    with running(home) as server:
        assert server.call("GET", "/api/dataset/stats")["data"]["preference"]["count"] == len(told)
    assert faults(_database(home), told) == []


def _truncated(file: Path) -> None:
    os.truncate(file, file.stat().st_size // 2 // PAGE * PAGE)


def _cut_to_less_than_a_page(file: Path) -> None:
    os.truncate(file, 1000)


def _garbage_header(file: Path) -> None:
    _overwrite(file, 1, 100)


def _garbage_first_page(file: Path) -> None:
    _overwrite(file, 1, PAGE)


def _other_file(file: Path) -> None:
    file.write_text('[{"human_input": "Hi."}]\n' * 100)


def _newer(file: Path) -> None:
    with contextlib.closing(sqlite3.connect(file, isolation_level=None)) as connection:
        connection.execute("UPDATE alembic_version SET version_num = '9999'")


def _overwrite(file: Path, page: int, size: int = PAGE) -> None:
    with file.open("r+b") as pages:
        pages.seek((page - 1) * PAGE)
        pages.write(random.Random(page).randbytes(size))


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (_truncated, "malformed"),
        (_cut_to_less_than_a_page, "not a database|malformed"),
        (_garbage_header, "not a database"),
        (_garbage_first_page, "not a database"),
        (_other_file, "not a database"),
        (_newer, "newer prefanno"),
    ],
)
def test_a_damaged_or_newer_file_is_refused_and_left_as_it_is(
    damage: Callable[[Path], None], says: str, left: Left
) -> None:
    """`serve` names the file in one line and changes no byte of it; once a whole file is put back it serves all."""
    home, told = left
    whole = _database(home).read_bytes()
    damage(_database(home))
    damaged = _database(home).read_bytes()
    said = _refusal(home, "serve")
    assert str(_database(home)) in said and any(text in said for text in says.split("|")), said
    assert _database(home).read_bytes() == damaged != whole
    _database(home).write_bytes(whole)
    with running(home) as server:
        assert server.call("GET", "/api/dataset/stats")["data"]["preference"]["count"] == len(told)
    assert faults(_database(home), told) == []


TABLES = ("annotations", "counts", "idempotency_keys", "annotation_search_data")
MORE_TABLES = ("characters", "steps", "events", "runs", "annotation_search_docsize", "ix_annotations_character_id")


@pytest.mark.parametrize("table", [*TABLES, *(pytest.param(table, marks=pytest.mark.long) for table in MORE_TABLES)])
async def test_one_page_overwritten_is_told(table: str, left: Left, tmp_path: Path) -> None:
    """Where a table's first page is garbage, the server refuses to start or answers 503, and never 500."""
    home, log, port = left[0], tmp_path / "server.log", free_port()
    with contextlib.closing(sqlite3.connect(_database(home))) as connection:
        (page,) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", [table]).fetchone()
    _overwrite(_database(home), page)
    with clients.ended(clients.start(home, port, log)) as process:
        if not await _serves_or_refuses(process, port, log, (*GETS, "/api/annotations?q=add")):
            return
        with contextlib.closing(clients.Connection(port)) as connection:
            status, answer = await connection.ask("POST", clients.ADD, clients.row("new"), "new")
    assert status == (200 if table == "runs" else 503), answer
    assert status == 200 or "数据库" in answer["detail"], answer


def test_a_second_server_on_a_home_is_refused(left: Left, tmp_path: Path) -> None:
    """The second ends with one line, by whatever name it calls the home; the first goes on as if it had not been."""
    home, told = left
    (tmp_path / "other name").symlink_to(home)
    with running(home) as server:
        for name in (home, tmp_path / "other name"):
            text = f"beside {name.name}"
            assert "another prefanno uses" in _refusal(name, "serve")
            told[text] = server.call("POST", clients.ADD, clients.row(text))["data"]["id"]
    assert faults(_database(home), told, keys=False) == []


async def test_of_servers_started_at_once_on_a_home_one_serves(tmp_path: Path) -> None:
    """Of four that start together on a new home, three end with one line, and the other one serves."""
    home, ports = tmp_path / "home", [free_port() for _ in range(4)]
    logs = [tmp_path / f"{port}.log" for port in ports]
    with contextlib.ExitStack() as stack:
        started = [clients.start(home, port, log) for port, log in zip(ports, logs, strict=True)]
        processes = [stack.enter_context(clients.ended(process)) for process in started]
        tries = zip(processes, ports, logs, strict=True)
        assert sorted([await _serves_or_refuses(*one, GETS[:4]) for one in tries]) == [False] * 3 + [True]
    refusals = [log.read_text() for log in logs if "another prefanno uses" in log.read_text()]
    assert len(refusals) == 3
