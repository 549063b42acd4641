"""Starts, stops and resumes by several clients while the server is killed and started again: one trainer at most."""

import contextlib
import json
import random
import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import psutil
import pytest
import requests

from benchmarks.serving import Server, running
from prefanno.training import process, run_folder
from prefanno.training.config import SAVED
from tests.reliability.conftest import Say
from tests.training.running import GOOD

pytestmark = pytest.mark.sqlite_only  # it is about processes

PAIR = {"mode": "single", "human_input": "Hi.", "chosen": "Hello.", "rejected": "No."}
PEOPLE, BUSY_S = 3, 2.0
# Saves at once, then ends well or badly by itself, or goes on until it is told to save or to end; it has a child.
SCRIPT = f"""
echo $$ >> trainers
mkdir -p checkpoints/1/checkpoint-1; touch checkpoints/1/checkpoint-1/complete
setsid sleep 1000 &
case $((RANDOM % 4)) in
    0) sleep 0.3{GOOD}exit 0;;
    1) sleep 0.1; exit 1;;
esac
while [ ! -e save ]; do sleep 0.05; done
exit {SAVED}
"""


class _Watch:
    """Looks all the time how many runs have a living script; `most` is what it saw."""

    def __init__(self, runs: Path) -> None:
        self._runs, self._over = runs, threading.Event()
        self.most, self.looks = 0, 0
        self._thread = threading.Thread(target=self._look)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_error: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.02):
            self.looks += 1
            self.most = max(self.most, len(_trainers(self._runs)))


def _trainers(runs: Path) -> set[int]:
    """The scripts that run now."""
    pids = {int(pid) for file in runs.glob("*/trainers") for pid in file.read_text().split()}
    return {pid for pid in pids if _is_script(pid)}


def _is_script(pid: int) -> bool:
    try:
        one = psutil.Process(pid)
        return one.status() != psutil.STATUS_ZOMBIE and any("stub.sh" in word for word in one.cmdline())
    except psutil.Error:
        return False


@contextmanager
def _people(server: Server, seed: int) -> Iterator[list[int]]:
    """Clients that do what they like until the block ends; the statuses that they got."""
    over, got = threading.Event(), list[int]()

    def person(dice: random.Random) -> None:
        while not over.wait(dice.uniform(0, 0.2)):
            path, body = dice.choice(
                [
                    ("start", None),
                    ("start", {"resume": dice.randint(1, 8)}),
                    ("stop", None),
                    ("stop", {"save": True}),
                ]
            )
            try:
                got.append(server.ask("POST", f"/api/train/{path}", body).status_code)
            except requests.ConnectionError:
                return  # the server was killed

    threads = [threading.Thread(target=person, args=[random.Random(seed + one)]) for one in range(PEOPLE)]
    for thread in threads:
        thread.start()
    try:
        yield got
    finally:
        over.set()
        for thread in threads:
            thread.join()


def _as_the_files_say(home: Path) -> None:
    with contextlib.closing(sqlite3.connect(home / "data" / "prefanno.db")) as database:
        stored = database.execute("SELECT id, state, exit_code FROM runs").fetchall()
    assert stored
    for number, state, code in stored:
        folder = home / "runs" / str(number)
        if not folder.exists():  # it is old
            continue
        if (file := folder / run_folder.EXIT).exists():
            ended = json.loads(file.read_text())
            stopped = ended["stopped"] or ended["exit_code"] == SAVED
            assert (state, code) == (
                "stopped" if stopped else "succeeded" if code == 0 else "failed",
                ended["exit_code"],
            )
        else:  # its server was killed before there was a keeper
            assert (state, code) == ("failed", None)


@pytest.mark.parametrize("restarts", [3, pytest.param(30, marks=pytest.mark.long)])
def test_whatever_happens_at_once_and_to_the_server_one_trainer_runs(restarts: int, tmp_path: Path, say: Say) -> None:
    """Over all kills and ends of the server no two trainers run, none is left, and each run is what its files say."""
    home, got = tmp_path / "home", list[int]()
    (tmp_path / "stub.sh").write_text(SCRIPT)
    home.mkdir()
    with _Watch(home / "runs") as watch:
        for restart in range(restarts + 1):
            with running(home, TRAIN_SCRIPT=str(tmp_path / "stub.sh"), MODEL="base") as server:
                if restart == 0:
                    server.call("POST", "/api/dataset/add", PAIR)
                with _people(server, restart * PEOPLE) as statuses:
                    time.sleep(random.uniform(0.2, BUSY_S))
                    if restart % 2 and restart < restarts:
                        server.process.kill()
                got += statuses
                if restart == restarts:
                    server.ask("POST", "/api/train/stop")
                    assert not server.call("GET", "/api/train/status")["data"]["running"]
    assert set(got) <= {200, 400, 404, 409} and got.count(200) > restarts
    assert watch.most == 1, f"{watch.most} trainers at once"
    assert not any(process.living(folder) for folder in (home / "runs").iterdir())
    _as_the_files_say(home)
    say(f"{restarts} restarts, {len(got)} answers, {watch.looks} looks: one trainer at most")
