"""The run under way: started, resumed, watched, stopped, and adopted after a restart of the server.

    idle ──start, resume──▶ running ──▶ succeeded | failed | stopped ──▶ idle

The files in the run's folder are the truth: the log and exit.json. The watcher reads them until the keeper is gone,
tells each follower every line, then settles the run: the adapter gets its name, the row in the database its end, and
old runs make room.
"""

import asyncio
import contextlib
import errno
import json
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import runs
from prefanno.db.engine import Database
from prefanno.db.models import Run, now
from prefanno.errors import NoTraining, PrefannoError, StopFailed, StorageFull, TrainingRunning
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import adapters, process, pruning, run_folder
from prefanno.training.config import SAVE, RunConfig
from prefanno.training.keepers import Keepers, train_script
from prefanno.training.log import Line, RunLog
from prefanno.training.news import Channel, Follower, Status

TICK_S = 0.02  # between two looks at the log: what a line waits for at most
LOOK_S = 0.1  # between two looks at the keeper, which cost more
AGAIN_S = 2.0  # after which what could not be followed is tried again
SAVE_S = 300.0  # that a step, and the checkpoint after it, may take when a run is to stop after saving
STOP_S = 30.0  # after which a stop says what still lives: the keeper needs its time of grace, and the system some

log = logging.getLogger(__name__)


class Supervisor:
    """At most one run at a time. `adopt` comes first, `close` last; a run outlives `close`."""

    def __init__(self, settings: Settings, database: Database, keepers: Keepers | None = None) -> None:
        self._settings, self._database = settings, database
        self._keepers = keepers or Keepers(train_script(settings))
        self._watcher: asyncio.Task[Run] | None = None
        self._beginning: asyncio.Task[Run] | None = None
        self._changing = asyncio.Lock()  # a run begins, or old ones are removed
        self._kept_by: process.Identity | None = None  # of the run under way, once it is known
        self.running = False
        self.last_run: Run | None = None
        self.news = Channel()

    async def adopt(self) -> None:
        """Take up the last run where the server before this one left it.

        On a database that others use, too, that is the last run of this home: it alone has the run's files.
        """
        here = run_folder.started(self._settings.runs) if self._database.shared else None
        async with self._database.read() as session:
            self.last_run = await (runs.latest(session) if here is None else runs.latest_of(session, here))
        if self.last_run is not None:
            self.running = self.last_run.state == "running"
            await self._show(self.last_run, ended=not self.running)
            if self.running:
                self._watch(self.last_run)
        await self._prune()

    async def start(self, config: RunConfig, exported: Path, manifest: Manifest) -> Run:
        """Start a run on a copy of the snapshot in `exported`. Raises TrainingRunning, SnapshotDamaged, StorageFull."""

        def prepare(folder: Path, run: Run) -> None:
            run_folder.prepare(folder, config, exported, manifest, run.started_at)

        return await self._beginning_of(partial(_insert, config=config), prepare)

    async def resume(self, number: int, config: RunConfig) -> Run:
        """Let a run go on from its last checkpoint. Raises TrainingRunning or StorageFull."""

        def prepare(folder: Path, _run: Run) -> None:
            run_folder.reopen(folder, config)

        return await self._beginning_of(partial(_reopen, number=number, config=config), prepare)

    async def stop(self, *, save: bool = False) -> Run:
        """End the run, with `save` after its next checkpoint; returns when no process of it is alive.

        A run that has not saved within `SAVE_S` ends without. Raises NoTraining, StorageFull, and StopFailed where the
        system does not end a process: the run goes on counting as running until it is gone.
        """
        await self._begun()
        if not self.running or self._watcher is None or self.last_run is None:
            raise NoTraining
        watcher, folder = self._watcher, self._folder(self.last_run.id)
        keeper = await self._keeper(folder)
        if save:
            _ask_to_save(folder)
        if not (save and await _done(watcher, SAVE_S)):
            if keeper:
                self._keepers.terminate(keeper, folder)
            if not await _done(watcher, STOP_S):
                raise _alive(await asyncio.to_thread(process.living, folder))
        return watcher.result()

    def follow(self, follower: Follower) -> tuple[list[Line], bool]:
        """Call `follower` with all news from now on; return the lines until now, and whether a run is under way."""
        self.news.followers.add(follower)
        return list(self.news.log.lines), self.running

    def leave(self, follower: Follower) -> None:
        """Follow no longer."""
        self.news.followers.discard(follower)

    async def wait(self) -> None:
        """Until the run under way has been settled."""
        if self._watcher is not None:
            await asyncio.shield(self._watcher)

    async def close(self) -> None:
        """Stop watching; a run under way goes on and is adopted at the next start."""
        await self._begun()  # what is being started shall have a keeper that says who it is
        if self._watcher is not None and not self._watcher.done():
            self._watcher.cancel()
            await asyncio.gather(self._watcher, return_exceptions=True)
            if self.running and self.last_run is not None:
                log.warning("run %d goes on; it is taken up at the next start", self.last_run.id)

    def _folder(self, run: int) -> Path:
        return self._settings.runs / str(run)

    async def _beginning_of(
        self, store: Callable[[AsyncSession], Awaitable[Run]], prepare: Callable[[Path, Run], None]
    ) -> Run:
        if self.running:
            raise TrainingRunning
        self.running = True
        self._beginning = asyncio.create_task(self._begin(store, prepare), name="begin a run")
        return await asyncio.shield(self._beginning)  # who leaves meanwhile leaves a run that is watched, or none

    async def _begun(self) -> None:
        """When no run is just beginning."""
        if self._beginning is not None:
            await asyncio.wait({self._beginning})

    async def _begin(
        self, store: Callable[[AsyncSession], Awaitable[Run]], prepare: Callable[[Path, Run], None]
    ) -> Run:
        async with self._changing:
            try:
                run = await self._database.write(store)
            except BaseException:
                self.running = False
                self.news.tell(Status(running=False))  # who came meanwhile was told that there is a run
                raise
            self.last_run, folder = run, self._folder(run.id)
            try:
                await asyncio.to_thread(prepare, folder, run)
                await self._show(run, ended=True)
                await self._keepers.start(folder)
            except Exception as error:
                await self._keepers.end_rest(folder)
                await self._settled(run, {"state": "failed", "exit_code": None, "reason": f"could not start: {error}"})
                if isinstance(error, OSError) and error.errno == errno.ENOSPC:
                    raise StorageFull from error
                raise
            self.news.tell(Status(running=True))
            self._watch(run)
            return run

    async def _show(self, run: Run, *, ended: bool) -> None:
        """The run's log until now; whatever is in it, the server starts."""
        try:
            await self.news.show(RunLog(self._folder(run.id)), ended=ended)
        except OSError:
            log.exception("the log of run %d cannot be read", run.id)

    async def _keeper(self, folder: Path) -> process.Identity | None:
        """Who keeps the run, as it was said first: what train.sh writes into run.json later names nobody."""
        self._kept_by = self._kept_by or await self._keepers.find(folder)
        return self._kept_by

    def _watch(self, run: Run) -> None:
        self._kept_by = None
        self._watcher = asyncio.create_task(self._follow_run(run), name=f"run {run.id}")

    async def _follow_run(self, run: Run) -> Run:
        """The run as it has ended, and nothing that is old is left."""
        ended = await self._settled(run, await self._end_of(run))
        await self._prune()
        return ended

    async def _end_of(self, run: Run) -> dict[str, Any]:
        """Whatever goes wrong on the way: a run that is not settled would keep all others from starting."""
        folder = self._folder(run.id)
        while True:
            try:
                await self._follow_to_end(folder)
                return await asyncio.to_thread(self._outcome, folder)
            except Exception as error:
                log.exception("run %d could not be followed", run.id)
                if not run_folder.may_go_on(folder):
                    reason = f"its end could not be followed: {error}"
                    return {"state": "failed", "exit_code": None, "reason": reason}
            await asyncio.sleep(AGAIN_S)

    async def _follow_to_end(self, folder: Path) -> None:
        keeper = await self._keeper(folder)
        while keeper is not None and await asyncio.to_thread(self._keepers.alive, keeper, folder):
            await self._publish_a_while()
        await self._keepers.end_rest(folder)
        await self.news.publish_rest()

    async def _publish_a_while(self) -> None:
        """Tell what comes, until it is time to look at the keeper again."""
        end = time.monotonic() + LOOK_S
        while time.monotonic() < end:
            await self.news.publish()
            if self.news.log.at_end:
                await asyncio.sleep(TICK_S)

    async def _settled(self, run: Run, outcome: dict[str, Any]) -> Run:
        """Write down how the run ended; only then is there room for the next."""
        ended = {"ended_at": now(), **outcome}
        try:
            run = await self._database.write(lambda session: _end(session, run.id, ended))
        except Exception as error:  # the files hold the truth: the next start of the server settles the row again
            known = isinstance(error, PrefannoError)  # a full disk needs no traceback
            log.warning("the end of run %d could not be stored: %s", run.id, error, exc_info=not known)
            _change(run, ended)
        self.last_run, self.running = run, False
        self.news.tell(Status(running=False))
        return run

    async def _prune(self) -> None:
        """Nothing depends on it, so nothing ends by it."""
        async with self._changing:
            try:
                async with self._database.read() as session:
                    ended = await runs.ended(session)
                if ended:
                    await asyncio.to_thread(pruning.prune, self._settings, ended)
            except Exception:
                log.exception("what is old could not be removed")

    def _outcome(self, folder: Path) -> dict[str, Any]:
        """How the run ended; the adapter of one that ended well gets its name here."""
        outcome = run_folder.outcome(folder, self.news.log)
        if outcome["state"] == "succeeded":
            try:
                config = RunConfig(**json.loads((folder / run_folder.CONFIG).read_text()))
                adapters.publish(int(folder.name), folder, self._settings.outputs, config)
            except OSError as error:
                outcome |= {"state": "failed", "reason": str(error)}
            except (ValueError, TypeError, KeyError) as error:  # train.sh is the user's to change; so is what it writes
                outcome |= {"state": "failed", "reason": f"config.json is not what the run was given: {error}"}
        return outcome


async def _done(watcher: asyncio.Task[Run], within_s: float) -> bool:
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(within_s):
            await asyncio.shield(watcher)
    return watcher.done()


def _alive(processes: Sequence[psutil.Process]) -> StopFailed:
    alive = ", ".join(str(one.pid) for one in processes)
    return StopFailed(f"{StopFailed.english}: {alive}", f"{StopFailed.detail}；进程号 {alive}")


def _ask_to_save(folder: Path) -> None:
    try:
        (folder / SAVE).touch()
    except OSError as error:
        raise StorageFull from error


async def _insert(session: AsyncSession, config: RunConfig) -> Run:
    run = Run(character=config.character, base_model=config.base_model, adapter=config.adapter)
    session.add(run)
    await session.flush()
    return run


async def _reopen(session: AsyncSession, number: int, config: RunConfig) -> Run:
    again = {"state": "running", "adapter": config.adapter, "resumed_at": now()}
    return await _end(session, number, {**again, "ended_at": None, "exit_code": None, "reason": None})


async def _end(session: AsyncSession, run_id: int, values: dict[str, Any]) -> Run:
    run = await session.get_one(Run, run_id)
    _change(run, values)
    return run


def _change(run: Run, values: dict[str, Any]) -> None:
    for name, value in values.items():
        setattr(run, name, value)
