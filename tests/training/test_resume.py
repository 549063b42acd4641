"""Runs that save, are stopped and go on, with real keepers on stub scripts; and what of a run must never be left."""

import asyncio
import json
import os
import signal
from pathlib import Path

import pytest

from prefanno.db.engine import Database
from prefanno.errors import StopFailed, TrainingRunning
from prefanno.settings import Settings
from prefanno.training import keepers, process, run_folder, supervisor
from prefanno.training.keepers import Keepers
from prefanno.training.news import News, Status
from tests.training.running import NOTHING, PATIENT, RESUMABLE, SAVES, config_of, run_to_end, supervising, until

pytestmark = pytest.mark.sqlite_only  # it is about files and processes
STUBBORN = "trap '' TERM; setsid sleep 1000 & echo $! >> pids; setsid sleep 1000 & echo $! >> pids; echo up; wait; wait"


async def test_a_run_that_saved_goes_on(settings: Settings, database: Database) -> None:
    """Stopped after saving and resumed, it is the same run, with one log; it ends with its adapter."""
    news: list[News] = []
    async with supervising(settings, database, RESUMABLE) as training:
        run = await training.start(config_of(), *NOTHING)
        stopped = await training.stop(save=True)
        assert (stopped.state, stopped.exit_code, stopped.reason) == ("stopped", 75, "stopped on request, after saving")
        training.follow(news.append)
        resumed = await training.resume(run.id, config_of("li-simpo-2"))
        assert (resumed.id, resumed.state, resumed.ended_at) == (run.id, "running", None)
        await training.wait()
        assert training.last_run is not None
        assert (training.last_run.state, training.last_run.adapter) == ("succeeded", "li-simpo-2")
    said = [entry.running if isinstance(entry, Status) else getattr(entry, "message", "") for entry in news]
    assert said == [True, "goes on", "training", "made it", False]
    log = (settings.runs / str(run.id) / "train.log").read_text()
    assert log == "started\nsaved\ngoes on\ntraining\nmade it\n"
    times = [int(line.split()[0]) for line in (settings.runs / "1" / "train.times").read_text().splitlines()]
    assert times == sorted(times) and times[-1] >= len("started\nsaved\n")
    assert (settings.outputs / "li-simpo-2").is_dir()
    assert not (settings.runs / str(run.id) / "checkpoints").exists()


async def test_a_resumed_run_is_the_last_one(settings: Settings, database: Database) -> None:
    """Also after a restart, though a later run has a greater number; it is adopted where it is under way."""
    async with supervising(settings, database, RESUMABLE) as training:
        run = await training.start(config_of(), *NOTHING)
        await training.stop(save=True)
    async with supervising(settings, database, "exit 1") as training:
        await run_to_end(training)
    async with supervising(settings, database, PATIENT) as training:
        await training.resume(run.id, config_of())
    async with supervising(settings, database) as training:
        assert training.running and training.last_run is not None and training.last_run.id == run.id
        (settings.runs / str(run.id) / "go").touch()
        await training.wait()
        assert training.last_run.state == "succeeded"
    async with supervising(settings, database) as training:
        assert training.last_run is not None and training.last_run.id == run.id


async def test_a_run_that_does_not_save_is_stopped(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that knows nothing of saving ends when the time for it is over, and the reason says so."""
    monkeypatch.setattr(supervisor, "SAVE_S", 0.3)
    async with supervising(settings, database, PATIENT) as training:
        await training.start(config_of(), *NOTHING)
        stopped = await training.stop(save=True)
    assert (stopped.state, stopped.reason) == ("stopped", "stopped on request, before it had saved")


async def test_a_stop_at_once_does_not_wait_for_saving(settings: Settings, database: Database) -> None:
    """A plain stop during one that waits for a checkpoint ends the run, for both."""
    async with supervising(settings, database, PATIENT) as training:
        await training.start(config_of(), *NOTHING)
        saving = asyncio.create_task(training.stop(save=True))
        await until((settings.runs / "1" / "save").exists)
        stopped = await training.stop()
        assert (await saving).state == stopped.state == "stopped"


async def test_an_exit_code_of_75_alone_is_a_failure(settings: Settings, database: Database) -> None:
    """A script that ends so without having been asked to save was not stopped."""
    async with supervising(settings, database, "echo odd; exit 75") as training:
        run = await run_to_end(training)
    assert (run.state, run.reason) == ("failed", "train.sh ended with exit code 75: odd")


async def test_a_resume_during_a_run_is_refused(settings: Settings, database: Database) -> None:
    """Whichever comes first, a start or a resume, the other is refused."""
    async with supervising(settings, database, SAVES) as training:
        run = await training.start(config_of(), *NOTHING)
        with pytest.raises(TrainingRunning):
            await training.resume(run.id, config_of())
        await training.stop(save=True)
        both = training.resume(run.id, config_of()), training.start(config_of(), *NOTHING)
        results = await asyncio.gather(*both, return_exceptions=True)
        assert [isinstance(result, TrainingRunning) for result in results] == [False, True]
        await training.stop()


async def test_who_leaves_during_a_start_leaves_a_run_that_is_watched(settings: Settings, database: Database) -> None:
    """A cancelled start goes on: its run is under way, and can be stopped."""
    async with supervising(settings, database, PATIENT) as training:
        starting = asyncio.create_task(training.start(config_of(), *NOTHING))
        await asyncio.sleep(0)
        starting.cancel()
        assert (await training.stop()).state == "stopped"
        assert process.living(settings.runs / "1") == []


async def test_a_killed_keeper_leaves_no_orphan(settings: Settings, database: Database) -> None:
    """What a killed keeper leaves behind is ended before the run counts as ended, in other sessions, too."""
    async with supervising(settings, database, STUBBORN) as training:
        run = await training.start(config_of(), *NOTHING)
        folder = settings.runs / str(run.id)
        await until((folder / "pids").exists)
        await until(lambda: (folder / "pids").read_text().count("\n") == 2)
        pids = [int(pid) for pid in (folder / "pids").read_text().split()]
        assert set(pids) < {one.pid for one in process.living(folder)}
        os.kill(json.loads((folder / "run.json").read_text())["pid"], signal.SIGKILL)
        await training.wait()
        assert training.last_run is not None and training.last_run.state == "failed"
    assert process.living(folder) == []


class _Unkillable(Keepers):
    """Keepers whose runs do not end while `stuck`."""

    def __init__(self, script: Path) -> None:
        super().__init__(script)
        self.stuck = True

    def terminate(self, keeper: process.Identity, folder: Path) -> None:
        """Nothing, as with a process that waits inside the system."""
        if not self.stuck:
            super().terminate(keeper, folder)


async def test_a_stop_that_fails_says_so(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that does not end is named after the deadline; the run counts as running until it is gone."""
    monkeypatch.setattr(supervisor, "STOP_S", 0.3)
    script = settings.home / "stub.sh"
    script.write_text(PATIENT)
    stuck = _Unkillable(script)
    training = supervisor.Supervisor(settings, database, stuck)
    run = await training.start(config_of(), *NOTHING)
    await until((settings.runs / str(run.id) / "run.json").exists)
    with pytest.raises(StopFailed) as failed:
        await training.stop()
    keeper = json.loads((settings.runs / str(run.id) / "run.json").read_text())["pid"]
    assert str(keeper) in str(failed.value) and training.running
    with pytest.raises(TrainingRunning):
        await training.start(config_of(), *NOTHING)
    stuck.stuck = False
    monkeypatch.setattr(supervisor, "STOP_S", 30.0)
    assert (await training.stop()).state == "stopped"
    await training.close()


async def test_a_halted_keeper_can_be_stopped(settings: Settings, database: Database) -> None:
    """SIGSTOP to the keeper does not keep a stop from ending the run."""
    async with supervising(settings, database, PATIENT) as training:
        run = await training.start(config_of(), *NOTHING)
        await until((settings.runs / str(run.id) / "run.json").exists)
        os.kill(json.loads((settings.runs / str(run.id) / "run.json").read_text())["pid"], signal.SIGSTOP)
        assert (await training.stop()).state == "stopped"


async def test_a_server_killed_while_it_resumes_can_resume_again(settings: Settings, database: Database) -> None:
    """With the folder made ready and no keeper yet, the run still has its checkpoint."""
    async with supervising(settings, database, RESUMABLE) as training:
        run = await training.start(config_of(), *NOTHING)
        await training.stop(save=True)
        folder = settings.runs / str(run.id)
        run_folder.reopen(folder, config_of())
    assert not (folder / "save").exists() and run_folder.has_checkpoint(folder)
    async with supervising(settings, database, RESUMABLE) as training:
        await training.resume(run.id, config_of())
        await training.wait()
        assert training.last_run is not None and training.last_run.state == "succeeded"


async def test_the_rest_of_a_run_is_its_own(settings: Settings, tmp_path: Path) -> None:
    """Only what has exactly this folder in its environment is ended; the control has another's."""
    script = keepers.train_script(settings)
    mine, other = tmp_path / "runs" / "1", tmp_path / "runs" / "10"
    children = [
        await asyncio.create_subprocess_exec("sleep", "1000", env={process.RUN: str(folder)})
        for folder in (mine, other)
    ]
    await Keepers(script).end_rest(mine)
    assert await children[0].wait() == -signal.SIGTERM and children[1].returncode is None
    children[1].kill()
    await children[1].wait()
