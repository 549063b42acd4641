"""The run under way: started, watched, stopped, and adopted after a restart of the server.

    idle ──start──▶ running ──▶ succeeded | failed | stopped ──▶ idle

The files in the run's folder are the truth: the log and exit.json. The watcher reads them until the keeper is gone,
tells each follower every line, then settles the run: the adapter gets its name, the row in the database its end.
"""

import asyncio
import errno
import json
import logging
import os
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import runs
from prefanno.db.engine import Database
from prefanno.db.models import Run, now
from prefanno.errors import NoTraining, StorageFull, TrainingRunning
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import adapters, process, run_folder
from prefanno.training.config import RunConfig
from prefanno.training.log import Line, RunLog

TICK_S = 0.05  # between two looks at the log: what a line waits for at most
BURST = 500  # lines told in one step of the loop
SECRETS = ("PREFANNO_DATABASE_URL", "PGPASSWORD")  # a run prints what it likes to a log that the API shows
AGAIN_S = 2.0  # after which what could not be followed is tried again
KEEPER_START_S = 10.0  # a keeper that has not written run.json by then never started

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Status:
    """A change of `running`; followers get it in its place among the lines."""

    running: bool


@dataclass(frozen=True)
class Progress:
    """What a line says that has not ended yet, as a progress bar's; it is told when it changes."""

    message: str


News = Line | Status | Progress
Follower = Callable[[News], None]


class Supervisor:
    """At most one run at a time. `adopt` comes first, `close` last; a run outlives `close`."""

    def __init__(self, settings: Settings, database: Database) -> None:
        self._settings, self._database = settings, database
        self._watcher: asyncio.Task[None] | None = None
        self._followers: set[Follower] = set()
        self._starting = asyncio.Lock()
        self._kept_by: process.Identity | None = None  # of the run under way, once it is known
        self.running = False
        self.last_run: Run | None = None
        self.log = RunLog(Path())

    async def adopt(self) -> None:
        """Take up the last run where the server before this one left it.

        On a database that others use, too, that is the last run of this home: it alone has the run's files.
        """
        here = run_folder.started(self._settings.runs) if self._database.shared else None
        async with self._database.read() as session:
            self.last_run = await (runs.latest(session) if here is None else runs.latest_of(session, here))
        if self.last_run is not None:
            self.log = RunLog(self._folder(self.last_run.id))
            try:
                await asyncio.to_thread(self.log.skip)  # a long log shall not keep the server from starting
            except OSError:
                log.exception("the log of run %d cannot be read", self.last_run.id)
            if self.last_run.state == "running":
                self.running = True
                self._watch(self.last_run)
            else:
                await self._show_last()

    async def start(self, config: RunConfig, folder: Path, manifest: Manifest) -> Run:
        """Start a run on a copy of the snapshot in `folder`. Raises TrainingRunning, SnapshotDamaged, StorageFull."""
        if self.running:
            raise TrainingRunning
        self.running = True
        async with self._starting:
            try:
                run = await self._database.write(lambda session: _insert(session, config))
            except BaseException:
                self.running = False
                self._tell(Status(running=False))  # who came meanwhile was told that there is a run
                raise
            self.last_run, self.log = run, RunLog(self._folder(run.id))
            try:
                await asyncio.to_thread(run_folder.prepare, self._folder(run.id), config, folder, manifest)
                (self._folder(run.id) / run_folder.STARTED).write_text(run.started_at.isoformat())
                await self._spawn(self._folder(run.id))
            except Exception as error:
                await self._settled({"state": "failed", "exit_code": None, "reason": f"could not start: {error}"})
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise StorageFull from error
                raise
            self._tell(Status(running=True))
            self._watch(run)
            return run

    async def stop(self) -> None:
        """End the run; returns when no process of it is alive. Raises NoTraining."""
        async with self._starting:
            if not self.running or self._watcher is None or self.last_run is None:
                raise NoTraining
            folder = self._folder(self.last_run.id)
            keeper = await self._keeper(folder)
        if keeper:
            process.terminate(keeper, folder)
        await asyncio.shield(self._watcher)

    def follow(self, follower: Follower) -> tuple[list[Line], bool]:
        """Call `follower` with all news from now on; return the lines until now, and whether a run is under way."""
        self._followers.add(follower)
        return list(self.log.lines), self.running

    def leave(self, follower: Follower) -> None:
        """Follow no longer."""
        self._followers.discard(follower)

    async def wait(self) -> None:
        """Until the run under way has been settled."""
        if self._watcher is not None:
            await asyncio.shield(self._watcher)

    async def close(self) -> None:
        """Stop watching; a run under way goes on and is adopted at the next start."""
        if self._watcher is not None and not self._watcher.done():
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            if self.running and self.last_run is not None:
                log.warning("run %d goes on; it is taken up at the next start", self.last_run.id)

    def _folder(self, run: int) -> Path:
        return self._settings.runs / str(run)

    async def _spawn(self, folder: Path) -> None:
        with (folder / "keeper.log").open("wb") as output:
            launcher = await asyncio.create_subprocess_exec(
                *(
                    sys.executable,
                    "-P",
                    "-m",
                    "prefanno.training.keeper",
                    "--detach",
                    str(train_script(self._settings)),
                ),
                cwd=folder,
                env={name: value for name, value in os.environ.items() if name not in SECRETS},
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
            )
            await launcher.wait()

    async def _keeper(self, folder: Path) -> process.Identity | None:
        """Who keeps the run, as it was said first; None where it never came up."""
        deadline = time.monotonic() + KEEPER_START_S
        while self._kept_by is None and not (folder / "run.json").exists():
            if time.monotonic() > deadline:
                return None
            await asyncio.sleep(TICK_S)
        self._kept_by = self._kept_by or run_folder.keeper(folder)
        return self._kept_by

    def _watch(self, run: Run) -> None:
        self._kept_by = None
        self._watcher = asyncio.create_task(self._follow_run(run), name=f"run {run.id}")

    async def _follow_run(self, run: Run) -> None:
        """To its end, whatever goes wrong on the way: what is not settled would keep all others from starting."""
        while True:
            try:
                await self._follow_to_end(self._folder(run.id))
                return
            except Exception as error:
                log.exception("run %d could not be followed", run.id)
                if not run_folder.may_go_on(self._folder(run.id)):
                    reason = f"its end could not be followed: {error}"
                    await self._settled({"state": "failed", "exit_code": None, "reason": reason})
                    return
            await asyncio.sleep(AGAIN_S)

    async def _follow_to_end(self, folder: Path) -> None:
        keeper = await self._keeper(folder)
        while keeper is not None and await asyncio.to_thread(process.alive, keeper, folder):
            await self._publish_lines()
            if self.log.at_end:
                await asyncio.sleep(TICK_S)
        await self._publish_rest()
        await self._settled(await asyncio.to_thread(self._outcome, folder))

    async def _settled(self, outcome: dict[str, Any]) -> None:
        """Write down how the run ended; only then is there room for the next."""
        assert self.last_run is not None  # noqa: S101 - a run is under way
        run_id, ended = self.last_run.id, {"ended_at": now(), **outcome}
        try:
            self.last_run = await self._database.write(lambda session: _end(session, run_id, ended))
        except Exception:  # the files hold the truth: the next start of the server settles the row again
            log.exception("the end of run %d could not be stored", run_id)
            _change(self.last_run, ended)
        self.running = False
        self._tell(Status(running=False))

    async def _publish_lines(self, final: bool = False) -> None:
        before = self.log.progress
        lines = await asyncio.to_thread(self.log.poll, final)
        for start in range(0, len(lines), BURST):
            burst = lines[start : start + BURST]
            self.log.keep(
                burst
            )  # with the telling in one step of the loop: who follows from now on gets each line once
            for line in burst:
                self._tell(line)
            await asyncio.sleep(0)  # who reads well shall not fall behind in a burst
        if (now_says := self.log.progress) not in ("", before):
            self._tell(Progress(now_says))

    async def _publish_rest(self) -> None:
        """All that an ended run printed."""
        await self._publish_lines(final=True)
        while not self.log.at_end:
            await self._publish_lines(final=True)

    async def _show_last(self) -> None:
        """The log of the last run, as far as it can be read: whatever is in it, the server starts."""
        try:
            await self._publish_rest()
        except OSError:
            log.exception("the log of the last run cannot be read")

    def _tell(self, news: News) -> None:
        for follower in list(self._followers):
            follower(news)

    def _outcome(self, folder: Path) -> dict[str, Any]:
        """How the run ended; the adapter of one that ended well gets its name here."""
        outcome = run_folder.outcome(folder, self.log)
        if outcome["state"] == "succeeded":
            try:
                config = RunConfig(**json.loads((folder / "config.json").read_text()))
                adapters.publish(int(folder.name), folder, self._settings.outputs, config)
            except OSError as error:
                outcome |= {"state": "failed", "reason": str(error)}
            except (
                ValueError,
                TypeError,
                KeyError,
            ) as error:  # train.sh is the user's to change, and so is what it writes
                outcome |= {"state": "failed", "reason": f"config.json is not what the run was given: {error}"}
        return outcome


def train_script(settings: Settings) -> Path:
    """The operator's script, else the one that comes with prefanno."""
    return Path(settings.train_script or str(files("prefanno") / "train.sh")).expanduser().absolute()


async def _insert(session: AsyncSession, config: RunConfig) -> Run:
    run = Run(character=config.character, base_model=config.base_model, adapter=config.adapter)
    session.add(run)
    await session.flush()
    return run


async def _end(session: AsyncSession, run_id: int, outcome: dict[str, Any]) -> Run:
    run = await session.get_one(Run, run_id)
    _change(run, outcome)
    return run


def _change(run: Run, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(run, name, value)
