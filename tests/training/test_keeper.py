"""The keeper, as a real process, on small bash scripts."""

import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from prefanno.training import keeper, process

WAIT_S = 60.0  # for what takes a moment; on a busy machine also long
KEEPER = (sys.executable, "-P", "-m", "prefanno.training.keeper")
# The same keeper, which loses its patience sooner.
IMPATIENT = (
    *(sys.executable, "-P", "-c"),
    "from prefanno.training import keeper; keeper.GRACE_S = 0.3; keeper.main()",
)
STUBBORN = "trap '' TERM; echo $$ >> pids; exec sleep 1000"  # what is ignored stays ignored across exec

linux_only = pytest.mark.skipif(sys.platform != "linux", reason="only Linux has subreapers")


def _start(folder: Path, script: str, command: tuple[str, ...] = KEEPER) -> "subprocess.Popen[bytes]":
    file = folder / "script.sh"
    file.write_text(script)
    return subprocess.Popen([*command, str(file)], cwd=folder, start_new_session=True)


def _ended(folder: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "exit.json").read_text())
    return content


def _run(folder: Path, script: str, command: tuple[str, ...] = KEEPER) -> dict[str, Any]:
    """Keep the script from start to end; return what exit.json says."""
    assert _start(folder, script, command).wait(WAIT_S) == 0
    return _ended(folder)


def _until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + WAIT_S
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def _pids(folder: Path, count: int) -> list[int]:
    """The pids that the script's processes have written, as soon as there are so many."""
    file = folder / "pids"
    _until(lambda: file.exists() and file.read_text().count("\n") >= count)
    return [int(pid) for pid in file.read_text().split()]


def _lives(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


@pytest.fixture(autouse=True)
def no_survivors(tmp_path: Path) -> Iterator[None]:
    """Also where a test fails, none of its stubborn processes outlives it."""
    yield
    file = tmp_path / "pids"
    for pid in file.read_text().split() if file.exists() else []:
        with contextlib.suppress(psutil.NoSuchProcess):
            survivor = psutil.Process(int(pid))
            if survivor.cwd() == str(tmp_path):
                survivor.kill()


@pytest.mark.parametrize("code", [0, 1, 42])
def test_the_exit_code_is_recorded(tmp_path: Path, code: int) -> None:
    """exit.json holds train.sh's own exit code, and says that nobody stopped it."""
    before = time.time()
    ended = _run(tmp_path, f"echo hello; echo trouble >&2; exit {code}")
    assert (ended["exit_code"], ended["stopped"], ended["error"]) == (code, False, None)
    assert before - 1 <= ended["ended"] <= time.time() + 1
    assert (tmp_path / "train.log").read_text() == "hello\ntrouble\n"


def test_run_json_says_who_keeps_the_run(tmp_path: Path) -> None:
    """run.json identifies the keeper while it runs, and nobody afterwards."""
    kept = _start(tmp_path, "while [ ! -e go ]; do sleep 0.05; done")
    _until((tmp_path / "run.json").exists)
    identity: process.Identity = json.loads((tmp_path / "run.json").read_text())
    assert identity["pid"] == kept.pid
    assert process.alive(identity, tmp_path)
    (tmp_path / "go").touch()
    assert kept.wait(WAIT_S) == 0
    assert not process.alive(identity, tmp_path)


def test_a_detached_keeper_belongs_to_nobody(tmp_path: Path) -> None:
    """With --detach the launcher ends at once, and the run goes on in a session and under a parent of its own."""
    (tmp_path / "script.sh").write_text("while [ ! -e go ]; do sleep 0.05; done; exit 4")
    assert subprocess.run([*KEEPER, "--detach", "script.sh"], cwd=tmp_path, timeout=WAIT_S, check=False).returncode == 0
    _until((tmp_path / "run.json").exists)
    identity: process.Identity = json.loads((tmp_path / "run.json").read_text())
    kept = psutil.Process(identity["pid"])
    assert kept.ppid() != os.getpid() and os.getsid(kept.pid) == kept.pid
    assert not (tmp_path / "exit.json").exists()
    (tmp_path / "go").touch()
    _until((tmp_path / "exit.json").exists)
    assert _ended(tmp_path)["exit_code"] == 4
    _until(lambda: not process.alive(identity, tmp_path))


def test_the_script_runs_in_the_runs_folder_with_our_python_and_no_input(tmp_path: Path) -> None:
    """train.sh gets PYTHON, the run's folder and an empty input, so it can neither miss prefanno nor wait for keys."""
    ended = _run(tmp_path, 'echo "$PYTHON"; pwd; read -r line || echo no input')
    assert ended["exit_code"] == 0
    assert (tmp_path / "train.log").read_text().splitlines() == [sys.executable, str(tmp_path.resolve()), "no input"]


def test_every_byte_of_the_output_is_kept(tmp_path: Path) -> None:
    """Three megabytes without a newline and with invalid UTF-8 arrive byte for byte, and so do the last bytes."""
    printed = random.Random(0).randbytes(3_000_000).replace(b"\n", b"\xff") + "没有换行".encode()[:-1]
    (tmp_path / "bytes").write_bytes(printed)
    assert _run(tmp_path, "cat bytes")["exit_code"] == 0
    assert (tmp_path / "train.log").read_bytes() == printed


def test_times_say_from_when_the_log_grew_beyond_an_offset(tmp_path: Path) -> None:
    """train.times starts at offset 0, and both its offsets and its seconds only grow."""
    before = int(time.time())
    _run(tmp_path, "echo one; sleep 1.2; echo two")
    entries = [tuple(map(int, line.split())) for line in (tmp_path / "train.times").read_text().splitlines()]
    assert entries[0][0] == 0 and entries[-1][0] == len("one\n")
    assert entries == sorted(entries)
    assert before <= entries[0][1] < entries[-1][1] <= time.time()


def test_a_missing_script_is_a_failed_run(tmp_path: Path) -> None:
    """A script that is not there ends as bash ends, and the log says why."""
    assert subprocess.run([*KEEPER, "nowhere.sh"], cwd=tmp_path, timeout=WAIT_S, check=False).returncode == 0
    assert _ended(tmp_path)["exit_code"] == 127
    assert "nowhere.sh" in (tmp_path / "train.log").read_text()


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_stop_lets_the_script_clean_up(tmp_path: Path, number: signal.Signals) -> None:
    """A stop reaches train.sh as SIGTERM; what it does and prints then still counts."""
    kept = _start(tmp_path, "trap 'echo cleaned; exit 3' TERM; echo $$ >> pids; sleep 1000 & wait")
    script = _pids(tmp_path, 1)[0]
    assert _lives(script)
    kept.send_signal(number)
    assert kept.wait(WAIT_S) == 0
    ended = _ended(tmp_path)
    assert (ended["exit_code"], ended["stopped"], ended["error"]) == (3, True, None)
    assert (tmp_path / "train.log").read_text() == "cleaned\n"
    assert not _lives(script)


@linux_only
def test_a_stop_ends_the_whole_tree(tmp_path: Path) -> None:
    """A stop ends children that ignore SIGTERM, that have a session of their own, and orphans of both kinds."""
    (tmp_path / "stubborn.sh").write_text(STUBBORN)
    script = """
        bash stubborn.sh &
        setsid bash stubborn.sh &
        ( bash stubborn.sh & )
        ( setsid bash stubborn.sh & )
        exec bash stubborn.sh
    """
    kept = _start(tmp_path, script, IMPATIENT)
    pids = _pids(tmp_path, 5)
    assert all(_lives(pid) for pid in pids)
    assert not (tmp_path / "exit.json").exists()
    kept.terminate()
    assert kept.wait(WAIT_S) == 0
    assert [pid for pid in pids if _lives(pid)] == []
    ended = _ended(tmp_path)
    assert (ended["exit_code"], ended["stopped"]) == (-signal.SIGKILL, True)


@linux_only
def test_without_a_keeper_the_same_processes_survive(tmp_path: Path) -> None:
    """Control: what ignores SIGTERM in a session of its own outlives its parent where nobody keeps it."""
    (tmp_path / "stubborn.sh").write_text(STUBBORN)
    script = "( setsid bash stubborn.sh & ); while [ ! -s pids ]; do sleep 0.05; done"
    subprocess.run(["bash", "-c", script], cwd=tmp_path, timeout=WAIT_S, check=True)
    (orphan,) = _pids(tmp_path, 1)
    os.kill(orphan, signal.SIGTERM)
    assert _lives(orphan)
    os.kill(orphan, signal.SIGKILL)
    _until(lambda: not _lives(orphan))


@linux_only
def test_what_the_script_leaves_behind_is_ended(tmp_path: Path) -> None:
    """A background process that still writes when train.sh has ended well is ended; the run has succeeded."""
    ended = _run(
        tmp_path,
        """
        (while :; do echo tick; sleep 0.05; done) &
        echo $! >> pids
        echo done
        """,
        IMPATIENT,
    )
    assert (ended["exit_code"], ended["stopped"]) == (0, False)
    assert not _lives(_pids(tmp_path, 1)[0])
    assert "done" in (tmp_path / "train.log").read_text().splitlines()


@linux_only
def test_a_log_that_cannot_grow_ends_the_run(tmp_path: Path) -> None:
    """When the log cannot be written, the run is ended, exit.json says why, and what was kept stays."""
    limited = ("bash", "-c", 'ulimit -f 8; exec "$0" "$@"', *IMPATIENT)  # files of at most 8 KiB
    ended = _run(tmp_path, "echo $$ >> pids; head -c 1000000 /dev/zero | tr '\\0' x; sleep 1000", limited)
    assert ended["error"] == "the log could not be written: File too large"
    assert not _lives(_pids(tmp_path, 1)[0])
    assert set((tmp_path / "train.log").read_text()) <= {"x"}


def test_a_log_goes_on(tmp_path: Path) -> None:
    """A second keeper in the folder appends to the log, and its times go on from there."""
    for word in ("one", "two"):
        _run(tmp_path, f"echo {word}")
    assert (tmp_path / "train.log").read_text() == "one\ntwo\n"
    offsets = [int(line.split()[0]) for line in (tmp_path / "train.times").read_text().splitlines()]
    assert offsets == [0, 4]


@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """NVIDIA's tool, as a script that says what stands in the file `used`; the file's folder."""
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat {tmp_path}/used\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}:{os.environ['PATH']}")
    (tmp_path / "used").write_text("100\n300\n")
    return tmp_path


def test_a_run_has_ended_when_its_gpu_memory_is_free(gpu: Path) -> None:
    """exit.json is written only when the GPUs have no more in use than before the run."""
    kept = _start(gpu, "echo '9000\n300' > used")
    _until(lambda: "9000" in (gpu / "used").read_text())
    time.sleep(1.0)
    assert not (gpu / "exit.json").exists()
    (gpu / "used").write_text("120\n310\n")
    assert kept.wait(WAIT_S) == 0
    assert _ended(gpu)["held_mib"] == 0


def test_gpu_memory_that_stays_in_use_is_told(gpu: Path) -> None:
    """Where it is not free after all the time for it, exit.json says how much is missing."""
    hasty = (*IMPATIENT[:-1], f"from prefanno.training import keeper; keeper.FREED_S = 0.2; {IMPATIENT[-1]}")
    assert _run(gpu, "echo '5000\n300' > used", hasty)["held_mib"] == 4900


@pytest.mark.parametrize("said", ["no devices were found", "", "[N/A]"])
def test_a_gpu_that_says_nothing_holds_nothing(gpu: Path, said: str) -> None:
    """Where NVIDIA's tool gives no figure nobody waits for it."""
    (gpu / "used").write_text(said)
    assert _run(gpu, "exit 2")["held_mib"] == 0


def test_the_keeper_is_patient_by_default() -> None:
    """A trainer that was asked to end has seconds to save what it has."""
    assert keeper.GRACE_S >= 5
