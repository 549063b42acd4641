"""The keeper of one run: starts train.sh, keeps its log, ends its whole process tree, says how it ended.

    python -P -m prefanno.training.keeper [--detach] TRAIN_SCRIPT          (in the run's folder)

With --detach it leaves its parent at once: asyncio kills a child that it still knows when its loop ends, and the run
is to outlive the server. It has a session of its own, so neither the server's end nor a Ctrl-C in its terminal
reaches it. It is a subreaper (Linux): a process that leaves its parent, even by setsid, becomes the keeper's child,
so the tree can always be found. SIGTERM ends the run: every process gets SIGTERM, and after `GRACE_S` seconds
SIGKILL, until none is left. The same happens to what train.sh leaves behind. Where NVIDIA's tool is installed it then
waits, for `FREED_S` seconds at most, until the GPUs' memory is free again.

    run.json      pid, start time and boot id of the keeper, written first
    train.log     every byte that the run printed; one that is resumed goes on in it
    train.times   "<offset> <unix seconds>", the time from which the log grew beyond the offset
    exit.json     exit code, whether it was stopped, error of the keeper, GPU memory that is not free (MiB), end time;
                  written last, when no other process of the run is alive; its place on the disk is reserved before

It does not know the database, the server, or what is being trained.
"""

import contextlib
import ctypes
import json
import os
import selectors
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import FrameType
from typing import IO, Any

import psutil

from prefanno.training.process import identity

GRACE_S = 5.0
TICK_S = 0.1
CHUNK = 1 << 16
PR_SET_CHILD_SUBREAPER = 36
RESERVE, RESERVED = Path(".reserve"), 1 << 12  # bytes on the disk that exit.json, and the folder's entry, will need
QUERY = ("nvidia-smi", "--query-gpu=memory.used", "--format=csv,noheader,nounits")
QUERY_S, FREED_S = 10.0, 10.0
SLACK_MIB = 256  # that other programs may have taken meanwhile


def main() -> None:
    """Keep one run, from start to end."""
    if "--detach" in sys.argv:
        if os.fork():
            os._exit(0)
        os.setsid()
    stop = _Stop()
    _become_subreaper()
    _write("run.json", identity(os.getpid()))
    RESERVE.write_bytes(bytes(RESERVED))
    used = gpu_memory()
    child = subprocess.Popen(
        ["bash", sys.argv[-1]],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "PYTHON": sys.executable},
    )
    with Path("train.log").open("ab", buffering=0) as log, Path("train.times").open("ab", buffering=0) as times:
        kept = _Log(child, log, times)
        exit_code = _keep(child, stop, kept)
    held = _held(used)
    RESERVE.unlink()  # the run may have filled the disk
    ended = {"exit_code": exit_code, "stopped": stop.asked, "error": kept.error, "held_mib": held, "ended": time.time()}
    _write("exit.json", ended)


class _Stop:
    """Notes that the run shall end."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(number, self._ask)

    def _ask(self, _number: int, _frame: FrameType | None) -> None:
        self.asked = True


class _Log:
    """Moves what the run prints to its log, in chunks, and notes when each second's first byte came."""

    def __init__(self, child: "subprocess.Popen[bytes]", log: IO[bytes], times: IO[bytes]) -> None:
        assert child.stdout is not None  # noqa: S101 - it was started with a pipe
        self._pipe, self._log, self._times = child.stdout.fileno(), log, times
        self._offset, self._second = os.fstat(log.fileno()).st_size, 0
        self.error: str | None = None
        os.set_blocking(self._pipe, False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._pipe, selectors.EVENT_READ)

    def move(self, wait_s: float) -> None:
        """Move what there is, waiting up to `wait_s` for the first byte."""
        if not self._selector.get_map():
            time.sleep(wait_s)
        elif self._selector.select(wait_s):
            self._read()

    def drain(self) -> None:
        """Move all that is left in the pipe; nobody writes to it any more."""
        while self._selector.get_map() and self._read():
            pass

    def _read(self) -> bool:
        try:
            chunk = os.read(self._pipe, CHUNK)
        except BlockingIOError:
            return False
        if not chunk:
            self._selector.unregister(self._pipe)
            return False
        if self.error is None:
            try:
                self._keep(chunk)
            except OSError as error:  # the disk is full; the pipe must be emptied all the same, or the run never ends
                self.error = f"the log could not be written: {error.strerror}"
        return True

    def _keep(self, chunk: bytes) -> None:
        if int(time.time()) != self._second:
            self._second = int(time.time())
            self._times.write(b"%d %d\n" % (self._offset, self._second))
        self._log.write(chunk)
        self._offset += len(chunk)


def _keep(child: "subprocess.Popen[bytes]", stop: _Stop, log: _Log) -> int:
    """Until train.sh has ended, a stop was asked for, or the log cannot be kept; then end what is left of the tree."""
    try:
        while child.poll() is None and not stop.asked and not log.error:
            log.move(TICK_S)
    finally:
        _end_tree(child, log)
    log.drain()
    return child.wait()


def _end_tree(child: "subprocess.Popen[bytes]", log: _Log) -> None:
    deadline = time.monotonic() + GRACE_S
    told: set[psutil.Process] = set()
    while tree := _living(child):
        number = signal.SIGTERM if time.monotonic() < deadline else signal.SIGKILL
        for process in tree:
            if process not in told or number == signal.SIGKILL:
                told.add(process)
                with contextlib.suppress(psutil.NoSuchProcess):
                    process.send_signal(number)
        log.move(TICK_S)


def _living(child: "subprocess.Popen[bytes]") -> list[psutil.Process]:
    """The run's processes that are alive. The dead are reaped: train.sh by its handle, its orphans by psutil."""
    child.poll()
    living = []
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if process.status() != psutil.STATUS_ZOMBIE:
                living.append(process)
            elif process.pid != child.pid and process.ppid() == os.getpid():
                with contextlib.suppress(psutil.TimeoutExpired):
                    process.wait(0)
    return living


def gpu_memory() -> int | None:
    """The MiB that are in use on all GPUs, whoever has them; None where NVIDIA's tool does not say."""
    with contextlib.suppress(OSError, ValueError, subprocess.SubprocessError):
        said = subprocess.run(QUERY, stdin=subprocess.DEVNULL, capture_output=True, timeout=QUERY_S, check=True)
        return sum(map(int, said.stdout.split()))
    return None


def _held(before: int | None) -> int:
    """The MiB that are still in use, beyond what was before the run, when all time for it is over."""
    deadline = time.monotonic() + FREED_S
    held = 0
    while before is not None and (now := gpu_memory()) is not None:
        held = max(0, now - before)
        if held <= SLACK_MIB or time.monotonic() > deadline:
            return held if held > SLACK_MIB else 0
        time.sleep(TICK_S)
    return 0


def _become_subreaper() -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def _write(name: str, content: Mapping[str, Any]) -> None:
    """Complete or not at all: the server may read it at any moment."""
    temporary = Path(f".{name}")
    temporary.write_text(json.dumps(content))
    temporary.replace(name)


if __name__ == "__main__":
    main()
