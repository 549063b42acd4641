"""Who a process is: signals reach the one that was meant, or none."""

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from prefanno.training import process
from prefanno.training.process import Identity

WAIT_S = 60.0
HERE = Path.cwd()


@pytest.fixture
def sleeper() -> Iterator["subprocess.Popen[bytes]"]:
    """A process that lives until somebody ends it."""
    with subprocess.Popen(["sleep", "1000"]) as child:
        yield child
        child.kill()


@pytest.fixture
def signals(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """The signals that were sent; none of them is."""
    sent: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "kill", lambda pid, number: sent.append((pid, number)))
    return sent


def test_a_living_process_is_known_again(sleeper: "subprocess.Popen[bytes]") -> None:
    """An identity holds pid, start and boot, stays the same, and is that of a living process."""
    known = process.identity(sleeper.pid)
    assert known == process.identity(sleeper.pid)
    assert (known["pid"], known["start_time"]) == (sleeper.pid, psutil.Process(sleeper.pid).create_time())
    assert known["boot_id"] and process.alive(known, HERE)


def test_the_process_that_was_meant_is_terminated(sleeper: "subprocess.Popen[bytes]") -> None:
    """SIGTERM reaches the process of this identity; afterwards it is not alive, and terminating it is harmless."""
    known = process.identity(sleeper.pid)
    process.terminate(known, HERE)
    assert sleeper.wait(WAIT_S) == -signal.SIGTERM
    assert not process.alive(known, HERE)
    process.terminate(known, HERE)


@pytest.mark.parametrize("change", ["an earlier start", "a later start", "another boot"])
def test_another_process_with_the_pid_gets_no_signal(
    sleeper: "subprocess.Popen[bytes]", signals: list[tuple[int, int]], change: str
) -> None:
    """A pid that was given again, or that is of another boot, is not the process that was meant."""
    known = process.identity(sleeper.pid)
    process.terminate(known, HERE)
    assert signals == [
        (sleeper.pid, signal.SIGTERM),
        (sleeper.pid, signal.SIGCONT),
    ]  # control: the process itself would get it
    signals.clear()
    reused = known.copy()
    if change == "another boot":
        reused["boot_id"] = "00000000-0000-0000-0000-000000000000"
    else:
        reused["start_time"] += -100 if change == "an earlier start" else 100
    assert not process.alive(reused, HERE)
    process.terminate(reused, HERE)
    assert signals == []


@pytest.mark.parametrize("pid", [0, -1, -(2**20), 2**22 + 1])
def test_what_is_no_pid_of_one_process_gets_no_signal(signals: list[tuple[int, int]], pid: int) -> None:
    """0 and negative numbers, which mean whole groups to `kill`, and pids of nobody, are never signalled."""
    known: Identity = {**process.identity(os.getpid()), "pid": pid}
    assert not process.alive(known, HERE)
    process.terminate(known, HERE)
    assert signals == []


def test_the_first_process_gets_no_signal_by_another_start(signals: list[tuple[int, int]]) -> None:
    """A file that names pid 1 with a start that is not its own signals nobody."""
    known: Identity = {**process.identity(os.getpid()), "pid": 1}
    if psutil.Process(1).create_time() == known["start_time"]:
        pytest.skip("these tests are themselves the first process")
    process.terminate(known, HERE)
    assert signals == []


def test_a_process_that_works_elsewhere_gets_no_signal(
    sleeper: "subprocess.Popen[bytes]", signals: list[tuple[int, int]], tmp_path: Path
) -> None:
    """A file that names a stranger, with the right start and boot, signals nobody; nor does one of another user."""
    known = process.identity(sleeper.pid)
    assert not process.alive(known, tmp_path)
    process.terminate(known, tmp_path)
    process.terminate(process.identity(1), tmp_path)
    assert signals == []


def test_a_dead_child_is_not_alive() -> None:
    """A process that has ended is not alive while its parent has not noticed."""
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        known = process.identity(child.pid)
        assert process.alive(known, HERE)
        os.kill(child.pid, signal.SIGKILL)
        os.waitid(os.P_PID, child.pid, os.WEXITED | os.WNOWAIT)  # it is dead, and still has its pid
        assert psutil.Process(child.pid).status() == psutil.STATUS_ZOMBIE
        assert not process.alive(known, HERE)


def test_nobody_has_no_identity() -> None:
    """There is no identity of a pid that no process has."""
    with pytest.raises(psutil.NoSuchProcess):
        process.identity(2**22 + 1)
