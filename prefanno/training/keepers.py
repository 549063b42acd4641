"""How the server starts the keeper of a run, knows it again, and ends the run."""

import asyncio
import os
import signal
import sys
import time
from importlib.resources import files
from pathlib import Path

import psutil

from prefanno.settings import Settings
from prefanno.training import process, run_folder
from prefanno.training.keeper import GRACE_S

TICK_S = 0.05
SECRETS = ("PREFANNO_DATABASE_URL", "PGPASSWORD")  # a run prints what it likes to a log that the API shows
START_S = 10.0  # a keeper that has not written run.json by then never started


class Keepers:
    """Of the runs of a home, all with this train.sh."""

    def __init__(self, script: Path) -> None:
        self._script = script

    async def start(self, folder: Path) -> None:
        """Start one in the run's folder; it belongs to nobody, so that it outlives the server. Raises OSError."""
        environment = {name: value for name, value in os.environ.items() if name not in SECRETS}
        with (folder / "keeper.log").open("ab") as output:
            launcher = await asyncio.create_subprocess_exec(
                *(sys.executable, "-P", "-m", "prefanno.training.keeper", "--detach", str(self._script)),
                cwd=folder,
                env={**environment, process.RUN: str(folder)},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            await launcher.wait()

    async def find(self, folder: Path) -> process.Identity | None:
        """Who keeps the run, as soon as that is known; None where the keeper never came up. Raises OSError."""
        deadline = time.monotonic() + START_S
        while not (folder / run_folder.KEEPER).exists():
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(TICK_S)
        return run_folder.keeper(folder)

    def alive(self, keeper: process.Identity, folder: Path) -> bool:
        """Whether it still keeps the run. Blocks."""
        return process.alive(keeper, folder)

    def terminate(self, keeper: process.Identity, folder: Path) -> None:
        """Have it end the run."""
        process.terminate(keeper, folder)

    async def end_rest(self, folder: Path) -> None:
        """End what a keeper left behind that was killed itself; returns when nothing of the run is alive."""
        deadline, told = time.monotonic() + GRACE_S, set[psutil.Process]()
        while rest := set(await asyncio.to_thread(process.living, folder)):
            if time.monotonic() < deadline:
                process.signal_all(rest - told, signal.SIGTERM)
            else:
                process.signal_all(rest, signal.SIGKILL)
            told |= rest
            await asyncio.sleep(TICK_S)


def train_script(settings: Settings) -> Path:
    """The operator's script, else the one that comes with prefanno."""
    return Path(settings.train_script or str(files("prefanno") / "train.sh")).expanduser().absolute()
