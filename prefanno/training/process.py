"""Who a process is, beyond its pid, which the system gives again to others; and whose run it belongs to.

Every process of a run finds `RUN` in its environment: the run's folder. So they are found where the keeper, whose
children they were, is gone.
"""

import contextlib
import os
import signal
from collections.abc import Iterable
from pathlib import Path
from typing import TypedDict

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
RUN = "TRAIN_RUN"


class Identity(TypedDict):
    """A process of this boot: its pid and its start, in seconds since the epoch."""

    pid: int
    start_time: float
    boot_id: str


def identity(pid: int) -> Identity:
    """The identity of a living process. Raises psutil.NoSuchProcess."""
    boot_id = BOOT_ID.read_text().strip() if BOOT_ID.exists() else str(psutil.boot_time())
    return {"pid": pid, "start_time": psutil.Process(pid).create_time(), "boot_id": boot_id}


def alive(known: Identity, folder: Path) -> bool:
    """Whether exactly this process runs, and works in this folder: a file that names a stranger is not believed."""
    try:
        if known["pid"] <= 0 or psutil.Process(known["pid"]).status() == psutil.STATUS_ZOMBIE:
            return False
        now, is_here = identity(known["pid"]), folder.samefile(psutil.Process(known["pid"]).cwd())
    except (psutil.NoSuchProcess, psutil.AccessDenied):  # gone, or another user's
        return False
    except FileNotFoundError:  # it works in a folder that is gone
        return False
    same_start = abs(now["start_time"] - known["start_time"]) < 1.0  # the clock may have been set
    return same_start and now["boot_id"] == known["boot_id"] and is_here


def terminate(known: Identity, folder: Path) -> None:
    """Send SIGTERM, to this process or to none; one that was halted goes on, or it could not obey."""
    if alive(known, folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(known["pid"], signal.SIGTERM)
            os.kill(known["pid"], signal.SIGCONT)


def living(folder: Path) -> list[psutil.Process]:
    """The processes of the run in this folder that are alive, its keeper among them."""
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):  # gone meanwhile, or another user's
            if process.environ().get(RUN) == str(folder) and process.status() != psutil.STATUS_ZOMBIE:
                found.append(process)
    return found


def signal_all(processes: Iterable[psutil.Process], number: signal.Signals) -> None:
    """To each of them that is still the one it was."""
    for process in processes:
        with contextlib.suppress(psutil.Error):
            process.send_signal(number)
