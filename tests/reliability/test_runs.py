"""Runs under servers that are killed, logs that are no text, and clients that come back: nothing of a run is lost."""

import asyncio
import hashlib
import json
import random
import shlex
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiohttp
import psutil
import pytest

from benchmarks.serving import Server, running
from prefanno.training import process
from prefanno.training.keeper import GRACE_S
from tests.reliability.conftest import Disk, Say
from tests.reliability.printing import KINDS, MEGABYTE

pytestmark = pytest.mark.sqlite_only  # it is about files and processes

ROOT = Path(__file__).parents[2]
PAIR = {"mode": "single", "human_input": "Hi.", "chosen": "Hello.", "rejected": "No."}
ADOPTED_S, WAIT_S = 5.0, 60.0
GROWTH_MB = 150  # that a server's memory may grow by, whatever a run prints
COUNTING = 'number=0; while [ ! -e enough ]; do echo "line $number"; number=$((number + 1)); sleep 0.005; done; exit 5'


@contextmanager
def _serving(home: Path, script: str, *, first: bool = False) -> Iterator[Server]:
    """A server whose train.sh is this; with one annotation, the first time."""
    file = home.parent / "stub.sh"
    file.write_text(script)
    with running(home, TRAIN_SCRIPT=str(file), MODEL="base") as server:
        if first:
            server.call("POST", "/api/dataset/add", PAIR)
        yield server


def _keeper(home: Path, run: int) -> psutil.Process:
    return psutil.Process(json.loads((home / "runs" / str(run) / "run.json").read_text())["pid"])


@pytest.mark.parametrize("kills", [4, pytest.param(100, marks=pytest.mark.long)])
def test_a_run_survives_every_kill_of_its_server(kills: int, tmp_path: Path, say: Say) -> None:
    """After SIGKILL the next server has the run in time, knows its end, also one meanwhile, and every byte is there."""
    home, adopted, ends = tmp_path / "home", list[float](), 0
    with _serving(home, COUNTING, first=True) as server:
        server.call("POST", "/api/train/start")
        run = 1
        server.process.kill()
    for kill in range(kills):
        folder = home / "runs" / str(run)
        ends_meanwhile = kill % 2 == 1
        if ends_meanwhile:
            while not (folder / "run.json").exists():
                time.sleep(0.01)
            (folder / "enough").touch()
            while not (folder / "exit.json").exists():
                time.sleep(0.01)
        begun = time.monotonic()
        with _serving(home, COUNTING) as server:
            while (status := server.call("GET", "/api/train/status")["data"])["running"] == ends_meanwhile:
                assert time.monotonic() < begun + WAIT_S
            adopted.append(time.monotonic() - begun)
            assert status["last_run"]["id"] == run
            if ends_meanwhile:
                assert (status["last_run"]["state"], status["last_run"]["exit_code"]) == ("failed", 5)
                _whole(folder)
                ends += 1
                server.call("POST", "/api/train/start")
                run += 1
            time.sleep(random.uniform(0, 0.2))
            server.process.kill()
    with _serving(home, COUNTING) as server:
        (home / "runs" / str(run) / "enough").touch()
        assert server.wait_for_training()["exit_code"] == 5
        _whole(home / "runs" / str(run))
    say(f"{kills + 1} kills, {ends} ends meanwhile; adopted after at most {max(adopted):.2f} s, starting included")
    assert kills < 100 or max(adopted) <= ADOPTED_S


def _whole(folder: Path) -> None:
    """Every line that the script printed is in the log, once."""
    lines = (folder / "train.log").read_bytes().splitlines(keepends=True)
    assert lines == [b"line %d\n" % number for number in range(len(lines))]


@pytest.mark.long
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_a_run_prints_is_kept_and_costs_no_memory(kind: str, tmp_path: Path, say: Say) -> None:
    """The log has every byte, the server and the keeper stay small, and the run ends as its script does."""
    script = (
        f'cd "$OLDPWD" 2>/dev/null; PYTHONPATH={ROOT} exec "$PYTHON" -m tests.reliability.printing {shlex.quote(kind)}'
    )
    expected = hashlib.sha256()
    for piece in KINDS[kind]():
        expected.update(piece)
    with _serving(tmp_path / "home", script, first=True) as server:
        process = psutil.Process(server.process.pid)
        before, most, keepers = process.memory_info().rss, 0, 0
        server.call("POST", "/api/train/start")
        while server.call("GET", "/api/train/status")["data"]["running"]:
            most = max(most, process.memory_info().rss)
            try:
                keepers = max(keepers, _keeper(server.home, 1).memory_info().rss)
            except (OSError, psutil.NoSuchProcess):
                continue
            time.sleep(0.05)
        run = server.call("GET", "/api/train/status")["data"]["last_run"]
        assert (run["exit_code"], run["reason"]) == (0, "train.sh ended well, but wrote no adapter/adapter_config.json")
        with (server.home / "runs" / "1" / "train.log").open("rb") as log:
            assert hashlib.file_digest(log, "sha256").digest() == expected.digest()
        assert "Traceback" not in (server.home / "server.log").read_text()
    say(f"the server grew by {(most - before) / MEGABYTE:.0f} MB, the keeper had {keepers / MEGABYTE:.0f} MB")
    assert (most - before) / MEGABYTE < GROWTH_MB and keepers / MEGABYTE < GROWTH_MB


@pytest.mark.long
def test_no_process_outlives_a_stop(tmp_path: Path, say: Say) -> None:
    """Children that ignore SIGTERM, have their own sessions or lost their parent are gone soon after the grace time."""
    stubborn = "bash -c 'trap \"\" TERM; echo up; exec sleep 1000'"
    script = f"{stubborn} & setsid {stubborn} & ({stubborn} &); (setsid {stubborn} &); trap '' TERM; wait; wait; wait"
    with _serving(tmp_path / "home", script, first=True) as server:
        server.call("POST", "/api/train/start")
        while server.call("GET", "/api/train/status")["data"]["log_count"] < 4:
            time.sleep(0.05)
        folder = server.home / "runs" / "1"
        lived, begun = len(process.living(folder)), time.monotonic()
        server.call("POST", "/api/train/stop")
        taken = time.monotonic() - begun
        assert lived >= 6 and process.living(folder) == []
    say(f"{lived} processes, none alive {taken:.1f} s after the stop, {taken - GRACE_S:.1f} s after the time of grace")
    assert taken <= GRACE_S + ADOPTED_S


@pytest.mark.needs("mount")
@pytest.mark.parametrize(
    "script",
    ["cat /dev/zero > big; echo no room; exit 3", "yes $(head -c 900 /dev/zero | tr '\\0' x)"],
    ids=["files", "log"],
)
def test_a_run_that_fills_the_disk_ends(script: str, disk: Disk) -> None:
    """A run that fills the disk with files or with its log has failed, and says so; with room, the next one starts."""
    with _serving(disk.path / "home", script, first=True) as server:
        server.call("POST", "/api/train/start")
        run = server.wait_for_training()
        assert run["state"] == "failed" and "No space left on device" in run["reason"]
        assert process.living(server.home / "runs" / "1") == []
        assert server.ask("POST", "/api/train/start").status_code == 507
        shutil.rmtree(server.home / "runs" / "1")
        server.call("POST", "/api/train/start")
        assert server.wait_for_training()["state"] == "failed"
    assert "Traceback" not in (disk.path / "home" / "server.log").read_text()


@pytest.mark.parametrize("connections", [10, pytest.param(100, marks=pytest.mark.long)])
async def test_who_connects_again_and_again_has_the_file(connections: int, tmp_path: Path) -> None:
    """Over many connections, a restart and a kill of the server between them, a client has the log to the byte."""
    home, got, after, ended = tmp_path / "home", bytearray(), 0, False
    restarts = {connections // 3: False, 2 * connections // 3: True}
    with _serving(home, COUNTING, first=True) as server:
        await asyncio.to_thread(server.call, "POST", "/api/train/start")
        server.process.kill()
    made = 0
    while not ended:
        with _serving(home, COUNTING) as server:
            while not ended and made not in restarts:
                made += 1
                if made == connections:
                    (home / "runs" / "1" / "enough").touch()
                pieces, after, ended = await _some(server.url, after, last=made >= connections)
                got += pieces
            if restarts.pop(made, False):
                server.process.kill()
            made += 1
    assert bytes(got) == (home / "runs" / "1" / "train.log").read_bytes()
    _whole(home / "runs" / "1")


async def _some(url: str, after: int, *, last: bool) -> tuple[bytes, int, bool]:
    """Some lines from the offset on, as they were printed, the next offset, and whether the run has ended."""
    got, wanted = bytearray(), random.randint(0, 60)
    async with (
        aiohttp.ClientSession() as session,
        session.ws_connect(f"{url}/ws/train/logs?run=1&after={after}") as socket,
    ):
        async for message in socket:
            said = message.json()
            if said == {"type": "status", "running": False}:
                return bytes(got), after, True
            for line in said["logs"] if said["type"] == "history" else [said] if said["type"] == "log" else []:
                got += line["message"].encode() + b"\n"
                after = line["next"]
            if len(got) > 10 * wanted and not last:
                break
    return bytes(got), after, False
