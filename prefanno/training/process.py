"""Who a process is, beyond its pid, which the system gives again to others."""

import contextlib
import os
import signal
from pathlib import Path
from typing import TypedDict

import psutil

BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


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
    """Send SIGTERM, to this process or to none."""
    if alive(known, folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(known["pid"], signal.SIGTERM)
