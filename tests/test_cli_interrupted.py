"""`prefanno import` that is stopped or killed on its way, and what goes in and out beside a server."""

import asyncio
import contextlib
import json
import os
import signal
import socket
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from prefanno.settings import Settings
from tests.annotation.importing import entry
from tests.reliability import clients
from tests.test_cli import PROGRAM, WAIT_S, _environment, _refusal, _run

ROWS = 20_000
CONTENT = ("[\n" + ",\n".join(json.dumps(entry(str(number))) for number in range(ROWS)) + "\n]\n").encode()
HALF = len(CONTENT) // 2

Stop = Callable[[subprocess.Popen[str]], None]


def _interrupt(process: subprocess.Popen[str]) -> None:
    process.send_signal(signal.SIGINT)


def _kill(process: subprocess.Popen[str]) -> None:
    process.kill()


@pytest.fixture
def made(settings: Settings) -> Settings:
    """A home with a database."""
    assert _run(settings, "db", "upgrade").returncode == 0
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


def _feed(pipe: Path, process: subprocess.Popen[str], stop: Stop | None) -> None:
    """Give the process all of the file when it opens it; in the middle of it, stop the process.

    What it opens next under this name is another pipe, so that there it waits for the next call.
    """
    with contextlib.suppress(BrokenPipeError), pipe.open("wb", buffering=0) as file:
        os.mkfifo(following := pipe.with_suffix(".next"))
        following.replace(pipe)
        file.write(CONTENT[:HALF])
        if stop:
            stop(process)
        file.write(CONTENT[HALF:])


def _stored(settings: Settings, folder: Path) -> int:
    """How many pairs there are."""
    assert _run(settings, "export", "--to", str(folder)).returncode == 0
    return len(json.loads((folder / "li_preference.json").read_bytes()))


@pytest.mark.parametrize("stored", [False, True], ids=["while it looks", "while it stores"])
def test_ctrl_c_stops_an_import(made: Settings, tmp_path: Path, stored: bool) -> None:
    """Stopped in the middle of either reading of its file, it says so in one line, and nothing is stored."""
    os.mkfifo(pipe := tmp_path / "pipe.json")
    with _importing(made, pipe) as process:
        if stored:
            _feed(pipe, process, None)
        _feed(pipe, process, _interrupt)
        printed, said = process.communicate(timeout=WAIT_S)
    assert (process.returncode, printed) == (1, "")
    assert said == "prefanno: the import was stopped; nothing was stored\n"
    assert _stored(made, tmp_path / "out") == 0
    assert _run(made, "db", "upgrade").returncode == 0  # control: the home is free again


def test_a_killed_import_stores_nothing(made: Settings, tmp_path: Path) -> None:
    """Killed while it stores, it leaves the database as it was; the same import then stores all."""
    os.mkfifo(pipe := tmp_path / "pipe.json")
    with _importing(made, pipe) as process:
        _feed(pipe, process, None)
        _feed(pipe, process, _kill)
        process.communicate(timeout=WAIT_S)
    assert process.returncode == -signal.SIGKILL
    assert _stored(made, tmp_path / "out") == 0
    (tmp_path / "rows.json").write_bytes(CONTENT)
    done = _run(made, "import", str(tmp_path / "rows.json"))
    assert done.stdout == f"{ROWS} annotations added, 0 were there already, or twice in the files\n"
    assert _stored(made, tmp_path / "out") == ROWS


def test_an_import_that_nobody_stops_stores_all(made: Settings, tmp_path: Path) -> None:
    """Control: the same pipe, read twice to its end."""
    os.mkfifo(pipe := tmp_path / "pipe.json")
    with _importing(made, pipe) as process:
        _feed(pipe, process, None)
        _feed(pipe, process, None)
        printed, said = process.communicate(timeout=WAIT_S)
    assert (process.returncode, said) == (0, "")
    assert printed == f"{ROWS} annotations added, 0 were there already, or twice in the files\n"


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
