"""`prefanno import` that is stopped or killed on its way, and what goes in and out beside a server."""

import asyncio
import contextlib
import json
import signal
import socket
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from prefanno.settings import Settings
from tests.annotation.importing import entry
from tests.reliability import clients
from tests.test_cli import PROGRAM, WAIT_S, _environment, _here, _refusal, _run

ROWS = 8_000
CONTENT = ("[\n" + ",\n".join(json.dumps(entry(str(number))) for number in range(ROWS)) + "\n]\n").encode()
HALF = len(CONTENT) // 2


@pytest.fixture
def made(settings: Settings) -> Settings:
    """A home with a database."""
    _here(settings, "db", "upgrade")
    return settings


@contextlib.contextmanager
def _importing(settings: Settings, file: Path) -> Iterator[subprocess.Popen[str]]:
    with subprocess.Popen(
        [*PROGRAM, "import", str(file)],
        env=_environment(settings),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _half_read(process: subprocess.Popen[str], file: Path, times: int) -> None:
    """Wait until the process is in the middle of the file, for the first or the second time that it reads it."""
    readings, last = 0, len(CONTENT) + 1
    while process.poll() is None:
        position = _position(process.pid, file)
        if position is not None:
            readings += position < last
            last = position
            if readings == times and position >= HALF:
                return
    raise AssertionError(f"it ended before: {process.communicate()}")


def _position(pid: int, file: Path) -> int | None:
    """How much of the file a process has read; None while it does not have it open."""
    with contextlib.suppress(OSError):
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                if descriptor.readlink() == file:
                    info = Path(f"/proc/{pid}/fdinfo/{descriptor.name}").read_text()
                    return int(info.split()[1])
    return None


def _stored(settings: Settings, folder: Path) -> int:
    """How many pairs there are."""
    assert _run(settings, "export", "--to", str(folder)).returncode == 0
    return len(json.loads((folder / "li_preference.json").read_bytes()))


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    """A file that takes seconds to import."""
    (file := tmp_path / "rows.json").write_bytes(CONTENT)
    return file


@pytest.mark.parametrize("reading", [1, 2], ids=["while it looks", "while it stores"])
def test_ctrl_c_stops_an_import(made: Settings, tmp_path: Path, rows: Path, reading: int) -> None:
    """Stopped in the middle of either reading of its file, it says so in one line, and nothing is stored."""
    with _importing(made, rows) as process:
        _half_read(process, rows, reading)
        process.send_signal(signal.SIGINT)
        printed, said = process.communicate(timeout=WAIT_S)
    assert (process.returncode, printed) == (1, "")
    assert said == "prefanno: the import was stopped; nothing was stored\n"
    assert _stored(made, tmp_path / "out") == 0
    assert _run(made, "db", "upgrade").returncode == 0  # control: the home is free again


def test_a_killed_import_leaves_the_database_as_it_was(made: Settings, tmp_path: Path, rows: Path) -> None:
    """Killed while it stores, it leaves the database as it was; control: left alone, the same import stores all."""
    with _importing(made, rows) as process:
        _half_read(process, rows, 2)
        process.kill()
        process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGKILL
    assert _stored(made, tmp_path / "out") == 0
    done = _run(made, "import", str(rows))
    assert done.stdout == f"{ROWS} annotations added, 0 were there already, or twice in the files\n"
    assert _stored(made, tmp_path / "out") == ROWS


def test_beside_a_server_files_go_out(made: Settings, tmp_path: Path) -> None:
    """While a server runs, an export has what was added there; an import is refused, but for PostgreSQL."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    log = tmp_path / "server.log"
    (tmp_path / "rows.json").write_text(json.dumps([entry("imported")]))
    pair = {"mode": "single", "human_input": "added", "chosen": "Ho", "rejected": "No"}
    with clients.ended(clients.start(made.home, port, log, url=made.database_url)) as server:
        asyncio.run(_added(server, port, log, pair))
        assert _stored(made, tmp_path / "out") == 1
        done = _run(made, "import", str(tmp_path / "rows.json"))
        if made.database_url:
            assert done.returncode == 0 and _stored(made, tmp_path / "out") == 2
        else:
            assert _refusal(done).startswith(f"prefanno: another prefanno uses {made.home}")
            assert _stored(made, tmp_path / "out") == 1


async def _added(server: subprocess.Popen[bytes], port: int, log: Path, pair: dict[str, str]) -> None:
    await clients.healthy(server, port, log)
    with contextlib.closing(clients.Connection(port)) as connection:
        status, body = await connection.ask("POST", clients.ADD, pair)
        assert status == 200, body
