"""The supervisor with real keepers, on stub scripts in place of a training."""

import asyncio
import contextlib
import errno
import json
import os
import signal
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import snapshot
from prefanno.db import runs
from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.errors import NoTraining, SnapshotDamaged, StorageFull, TrainingRunning
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import adapters, keepers, process, run_folder, supervisor
from prefanno.training.config import RunConfig
from prefanno.training.log import Line, RunLog
from prefanno.training.news import News, Progress, Status
from tests.training.running import GOOD, NOTHING, PATIENT, config_of, run_to_end, supervising, until


def _exported(settings: Settings) -> tuple[Path, Manifest]:
    """A file in data/, and the manifest of its snapshot."""
    file = settings.data / "li_preference.json"
    file.write_text("[1]")
    return file, replace(NOTHING[1], files=snapshot.described(settings.data, {file.name: 1}))


def _messages(news: list[News]) -> list[str | bool]:
    return [entry.running if isinstance(entry, Status) else entry.message for entry in news]


async def _stored(database: Database) -> Run:
    async with database.read() as session:
        run = await runs.latest(session)
    assert run is not None
    return run


async def test_a_run_that_ends_well_publishes_its_adapter(settings: Settings, database: Database) -> None:
    """A run whose script made an adapter has succeeded; the adapter has its name, the database the run's end."""
    async with supervising(settings, database, GOOD) as training:
        run = await run_to_end(training)
        assert (run.state, run.exit_code, run.reason, run.adapter) == ("succeeded", 0, None, "li-simpo-1")
        assert not training.running
    found = adapters.newest(settings.outputs, "li", "base")
    assert found is not None and (found.name, found.run) == ("li-simpo-1", run.id)
    stored = await _stored(database)
    assert (stored.state, stored.exit_code) == ("succeeded", 0)
    assert stored.ended_at is not None and stored.ended_at >= stored.started_at


async def test_the_run_gets_its_configuration_and_its_own_copy_of_the_data(
    settings: Settings, database: Database
) -> None:
    """The run's folder holds config.json and a copy of the snapshot, which later exports do not touch."""
    data, manifest = _exported(settings)
    async with supervising(settings, database, "cat data/li_preference.json; echo; cat config.json") as training:
        run = await training.start(config_of(), settings.data, manifest)
        data.write_text("[2]")
        await training.wait()
    folder = settings.runs / str(run.id)
    assert (folder / "data" / data.name).read_text() == "[1]"
    assert snapshot.verified(folder / "data") == manifest
    assert RunConfig(**json.loads((folder / "config.json").read_text())) == config_of()
    assert "simpo" in (folder / "train.log").read_text()


async def test_a_run_does_not_know_the_databases_password(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A script that prints its environment puts no password into the log; what else was set is there."""
    monkeypatch.setenv("PREFANNO_DATABASE_URL", "postgresql://you:hush@db.example/prefanno")
    monkeypatch.setenv("PGPASSWORD", "hush")
    monkeypatch.setenv("SOMETHING", "else")
    async with supervising(settings, database, "env") as training:
        await training.start(config_of(), *NOTHING)
        await training.wait()
        printed = [line.message for line in training.news.log.lines]
    assert "SOMETHING=else" in printed
    assert [line for line in printed if "hush" in line or line.startswith(("PREFANNO_DATABASE_URL", "PGPASS"))] == []


async def test_followers_get_every_line_once_between_the_changes_of_state(
    settings: Settings, database: Database
) -> None:
    """A follower gets "running", each line in order, then "ended"; a late one gets as history what it has missed."""
    early: list[News] = []
    late: list[News] = []
    async with supervising(settings, database, PATIENT) as training:
        assert training.follow(early.append) == ([], False)
        run = await training.start(config_of(), *NOTHING)
        await until(lambda: len(early) >= 2)
        history, running = training.follow(late.append)
        assert ([line.message for line in history], running) == (["waiting"], True)
        (settings.runs / str(run.id) / "go").touch()
        await training.wait()
    assert _messages(early) == [True, "waiting", "training", "made it", False]
    assert _messages(late) == ["training", "made it", False]


async def test_what_a_line_says_is_told_before_it_ends(settings: Settings, database: Database) -> None:
    """Each state of a progress bar that is seen is told as progress; its line is told once, when it ends."""
    news: list[News] = []
    async with supervising(settings, database, "printf '10%%'; sleep 1; printf '\\r90%%'; sleep 1; echo") as training:
        training.follow(news.append)
        await training.start(config_of(), *NOTHING)
        await training.wait()
    assert [entry.message for entry in news if isinstance(entry, Progress)] == ["10%", "90%"]
    assert [entry.message for entry in news if isinstance(entry, Line)] == ["90%"]


async def test_who_leaves_gets_no_more_news(settings: Settings, database: Database) -> None:
    """A follower that left hears nothing; leaving twice is harmless."""
    news: list[News] = []
    async with supervising(settings, database, GOOD) as training:
        training.follow(news.append)
        training.leave(news.append)
        training.leave(news.append)
        await run_to_end(training)
    assert news == []


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("echo one; echo 'CUDA out of memory'; echo; exit 3", 3, "train.sh ended with exit code 3: CUDA out of memory"),
        ("exit 7", 7, "train.sh ended with exit code 7: it printed nothing"),
        ("printf 'no newline at the end'; exit 1", 1, "train.sh ended with exit code 1: no newline at the end"),
        ("kill -9 $$", -9, "train.sh ended with exit code -9: it printed nothing"),
        ("echo well", 0, "train.sh ended well, but wrote no adapter/adapter_config.json"),
        (
            "mkdir adapter; echo '{}' > adapter/adapter_config.json",
            0,
            "train.sh ended well, but wrote no adapter/adapter_model.safetensors",
        ),
    ],
)
async def test_a_failed_run_says_why(
    settings: Settings, database: Database, script: str, code: int, reason: str
) -> None:
    """A run that made no adapter has failed: with the last line that it printed, or with what it did not write."""
    async with supervising(settings, database, script) as training:
        run = await run_to_end(training)
    assert (run.state, run.exit_code, run.reason) == ("failed", code, reason)
    assert list(settings.outputs.iterdir()) == []


async def test_a_reason_has_an_end(settings: Settings, database: Database) -> None:
    """A last line of a megabyte does not become a reason of a megabyte."""
    async with supervising(settings, database, "head -c 1000000 /dev/zero | tr '\\0' x; exit 1") as training:
        run = await run_to_end(training)
    assert run.reason is not None and len(run.reason) <= 2000


async def test_a_failed_run_leaves_room_for_the_next(settings: Settings, database: Database) -> None:
    """After a run that failed the next one starts, in a folder of its own."""
    script = f"if [ $(basename $PWD) = 1 ]; then exit 1; fi\n{GOOD}"
    async with supervising(settings, database, script) as training:
        first, second = await run_to_end(training), await run_to_end(training)
    assert [first.state, second.state] == ["failed", "succeeded"]
    assert first.id != second.id


async def test_a_stopped_run_makes_no_adapter(settings: Settings, database: Database) -> None:
    """A stop answers when the run is over; the run is "stopped", has no adapter, and the next one can start."""
    async with supervising(settings, database, f"{GOOD}\nsleep 1000") as training:
        run = await training.start(config_of(), *NOTHING)
        await until((settings.runs / str(run.id) / "adapter" / "adapter_model.safetensors").exists)
        await training.stop()
        assert not training.running
        assert training.last_run is not None
        assert (training.last_run.state, training.last_run.reason) == ("stopped", "stopped on request")
        assert list(settings.outputs.iterdir()) == []
    async with supervising(settings, database, GOOD) as training:
        assert (await run_to_end(training)).state == "succeeded"


async def test_two_stops_at_once_both_wait_for_the_end(settings: Settings, database: Database) -> None:
    """A second stop during a stop waits for the same end."""
    async with supervising(settings, database, PATIENT) as training:
        await training.start(config_of(), *NOTHING)
        await asyncio.gather(training.stop(), training.stop())
        assert training.last_run is not None and training.last_run.state == "stopped"


async def test_a_stop_right_after_the_start_ends_the_run(settings: Settings, database: Database) -> None:
    """A stop that comes while the run is still starting is not lost."""
    async with supervising(settings, database, PATIENT) as training:
        starting = asyncio.create_task(training.start(config_of(), *NOTHING))
        await asyncio.sleep(0)
        await training.stop()
        await starting
        assert training.last_run is not None and training.last_run.state == "stopped"


async def test_a_stop_without_a_run_is_refused(settings: Settings, database: Database) -> None:
    """There is nothing to stop before the first run, nor after its end."""
    async with supervising(settings, database, GOOD) as training:
        with pytest.raises(NoTraining):
            await training.stop()
        await run_to_end(training)
        with pytest.raises(NoTraining):
            await training.stop()


async def test_one_run_at_a_time(settings: Settings, database: Database) -> None:
    """Of two starts at once one is refused, and so is a third while the run goes on; the database knows one run."""
    async with supervising(settings, database, PATIENT) as training:
        results = await asyncio.gather(
            *(training.start(config_of(), *NOTHING) for _ in range(2)), return_exceptions=True
        )
        assert [type(result) for result in results] == [Run, TrainingRunning]
        with pytest.raises(TrainingRunning):
            await training.start(config_of(), *NOTHING)
        assert (await _stored(database)).id == 1
        await training.stop()


async def test_a_run_that_cannot_start_is_a_failed_one(settings: Settings, database: Database) -> None:
    """Without its data file a run is not started; the reason is kept, and the next run starts."""
    data, manifest = _exported(settings)
    data.unlink()
    async with supervising(settings, database, GOOD) as training:
        with pytest.raises(SnapshotDamaged):
            await training.start(config_of(), settings.data, manifest)
        assert not training.running
        stored = await _stored(database)
        assert stored.state == "failed"
        assert (stored.reason or "").startswith("could not start: ") and data.name in (stored.reason or "")
        assert (await run_to_end(training)).state == "succeeded"


async def test_a_run_does_not_start_on_other_data_than_was_exported(settings: Settings, database: Database) -> None:
    """A file that was changed since the export is found before the run; the reason is kept, and the next run starts."""
    data, manifest = _exported(settings)
    data.write_text("[2]")
    async with supervising(settings, database, GOOD) as training:
        with pytest.raises(SnapshotDamaged):
            await training.start(config_of(), settings.data, manifest)
        assert not training.running
        stored = await _stored(database)
        assert stored.state == "failed" and f"{data.name} was changed" in (stored.reason or "")
        assert (await run_to_end(training)).state == "succeeded"


async def test_a_full_disk_at_the_start_is_said_to_be_one(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A disk that is full when the run's folder is made raises StorageFull."""

    def full(*_arguments: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(run_folder, "prepare", full)
    async with supervising(settings, database, GOOD) as training:
        with pytest.raises(StorageFull):
            await training.start(config_of(), *NOTHING)
        assert not training.running


async def test_a_run_that_cannot_be_followed_for_a_moment_is_followed_again(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """When the log cannot be read, as with too many open files, the run goes on, and ends as ever."""
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.05)
    faults = iter([OSError(errno.EMFILE, "Too many open files")] * 3)
    poll = RunLog.poll

    def failing(log: RunLog, final: bool = False) -> list[Line]:
        if (fault := next(faults, None)) is not None:
            raise fault
        return poll(log, final)

    monkeypatch.setattr(RunLog, "poll", failing)
    async with supervising(settings, database, f"sleep 1\n{GOOD}") as training:
        assert (await run_to_end(training)).state == "succeeded"
    assert next(faults, None) is None and "Too many open files" in caplog.text


async def test_a_run_whose_end_cannot_be_followed_gives_way_to_the_next(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever goes wrong at its end, it is over, with the reason."""

    def broken(*_arguments: object) -> None:
        raise RuntimeError("can't start new thread")

    async with supervising(settings, database, GOOD) as training:
        with monkeypatch.context() as patched:
            patched.setattr(adapters, "publish", broken)
            run = await run_to_end(training)
        assert run.state == "failed" and "can't start new thread" in (run.reason or "")
        assert not training.running and (await run_to_end(training)).state == "succeeded"


async def test_a_run_survives_its_supervisor_and_is_adopted(settings: Settings, database: Database) -> None:
    """A second supervisor takes up a running run: no line is missing, its end is settled, its adapter published."""
    async with supervising(settings, database, PATIENT) as first:
        run = await first.start(config_of(), *NOTHING)
        await until(lambda: first.news.log.lines)
    assert (await _stored(database)).state == "running"
    news: list[News] = []
    async with supervising(settings, database) as second:
        history, running = second.follow(news.append)
        assert running and second.last_run is not None and second.last_run.id == run.id
        with pytest.raises(TrainingRunning):
            await second.start(config_of(), *NOTHING)
        (settings.runs / str(run.id) / "go").touch()
        await second.wait()
        assert second.last_run.state == "succeeded"
        assert _messages([*history, *news]) == ["waiting", "training", "made it", False]
    assert adapters.newest(settings.outputs, "li", "base") is not None


async def test_an_adopted_run_can_be_stopped(settings: Settings, database: Database) -> None:
    """A supervisor stops a run that another one started."""
    async with supervising(settings, database, PATIENT) as first:
        await first.start(config_of(), *NOTHING)
    async with supervising(settings, database) as second:
        await second.stop()
        assert second.last_run is not None and second.last_run.state == "stopped"


async def test_a_run_that_ended_unwatched_is_settled_at_the_next_start(settings: Settings, database: Database) -> None:
    """A run that ended while no server was there gets its end and its adapter from its files."""
    async with supervising(settings, database, PATIENT) as first:
        run = await first.start(config_of(), *NOTHING)
    folder = settings.runs / str(run.id)
    (folder / "go").touch()
    await until((folder / "exit.json").exists)
    async with supervising(settings, database) as second:
        await second.wait()
        assert second.last_run is not None and second.last_run.state == "succeeded"
    assert adapters.newest(settings.outputs, "li", "base") is not None


async def test_a_published_adapter_whose_run_was_not_settled_counts(settings: Settings, database: Database) -> None:
    """A server that died between naming the adapter and noting the end finds, later, that the run has succeeded."""
    async with supervising(settings, database, PATIENT) as first:
        run = await first.start(config_of(), *NOTHING)
    folder = settings.runs / str(run.id)
    (folder / "go").touch()
    await until((folder / "exit.json").exists)
    adapters.publish(run.id, folder, settings.outputs, config_of())
    async with supervising(settings, database) as second:
        await second.wait()
        assert second.last_run is not None
        assert (second.last_run.state, second.last_run.reason) == ("succeeded", None)


async def test_an_end_that_cannot_be_stored_is_settled_later(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the database cannot be written at a run's end, the run is over all the same, and the next start notes it."""

    async def fails(_work: object) -> None:
        raise StorageFull

    async with supervising(settings, database, PATIENT) as first:
        run = await first.start(config_of(), *NOTHING)
        with monkeypatch.context() as patched:
            patched.setattr(database, "write", fails)
            (settings.runs / str(run.id) / "go").touch()
            await first.wait()
        assert not first.running
        assert first.last_run is not None and first.last_run.state == "succeeded"
    assert (await _stored(database)).state == "running"
    async with supervising(settings, database) as second:
        await second.wait()
    assert (await _stored(database)).state == "succeeded"


async def test_a_run_that_cannot_be_stored_does_not_start(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without its row in the database a run is not begun, and the next one can start."""

    async def fails(_work: object) -> None:
        raise StorageFull

    async with supervising(settings, database, GOOD) as training:
        with monkeypatch.context() as patched:
            patched.setattr(database, "write", fails)
            with pytest.raises(StorageFull):
                await training.start(config_of(), *NOTHING)
        assert not training.running and list(settings.runs.iterdir()) == []
        assert (await run_to_end(training)).state == "succeeded"


async def test_a_run_whose_keeper_was_killed_has_failed(settings: Settings, database: Database) -> None:
    """Without exit.json nothing is known of the end, and the reason says so."""
    async with supervising(settings, database, PATIENT) as training:
        run = await training.start(config_of(), *NOTHING)
        folder = settings.runs / str(run.id)
        await until(lambda: training.news.log.lines)
        os.kill(json.loads((folder / "run.json").read_text())["pid"], signal.SIGKILL)
        await training.wait()
        (folder / "go").touch()  # so that the script, which nobody keeps now, ends
        assert training.last_run is not None
        assert (training.last_run.state, training.last_run.exit_code) == ("failed", None)
        assert (training.last_run.reason or "").startswith("the run's keeper was killed or could not start")


@pytest.mark.parametrize("pid", ["stranger", 0, 1, -1, "text", None, float("inf")])
async def test_a_forged_run_json_signals_nobody(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch, pid: object
) -> None:
    """Whoever run.json names when a run is taken up, only processes that the run itself started get a signal."""
    sent: set[int] = set()
    async with supervising(settings, database, "sleep 1000; true") as training:
        run = await training.start(config_of(), *NOTHING)
        file = settings.runs / str(run.id) / "run.json"
        await until(file.exists)
        await until(lambda: len(process.living(file.parent)) == 3)  # keeper, script and sleep
    real = json.loads(file.read_text())
    stranger = await asyncio.create_subprocess_exec("sleep", "1000")
    file.write_text(json.dumps(process.identity(stranger.pid) if pid == "stranger" else {**real, "pid": pid}))
    own, kill = {one.pid for one in process.living(file.parent)}, os.kill

    def noted(to: int, number: int) -> None:
        sent.add(to)
        kill(to, number)

    monkeypatch.setattr(os, "kill", noted)
    async with supervising(settings, database) as training:
        with contextlib.suppress(NoTraining):
            await training.stop()
        await training.wait()
        assert not training.running
    assert real["pid"] in sent and sent <= own and stranger.returncode is None
    assert process.living(file.parent) == []
    stranger.kill()
    await stranger.wait()


async def test_a_run_json_that_cannot_be_read_for_a_moment_is_read_again(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too many open files at the moment a run is taken up do not end it: its keeper is asked for again."""
    monkeypatch.setattr(supervisor, "AGAIN_S", 0.05)
    async with supervising(settings, database, PATIENT) as training:
        run = await training.start(config_of(), *NOTHING)
        file = settings.runs / str(run.id) / "run.json"
        await until(file.exists)
    read, faults = Path.read_text, iter([OSError(errno.EMFILE, "Too many open files")] * 3)

    def failing(path: Path, *arguments: Any, **named: Any) -> str:
        if path == file and (fault := next(faults, None)) is not None:
            raise fault
        return read(path, *arguments, **named)

    monkeypatch.setattr(Path, "read_text", failing)
    async with supervising(settings, database) as training:
        await asyncio.sleep(0.3)
        assert training.running and next(faults, None) is None
        (file.parent / "go").touch()
        await training.wait()
        assert training.last_run is not None and training.last_run.state == "succeeded"


async def test_a_log_that_is_no_file_does_not_keep_the_server_from_starting(
    settings: Settings, database: Database
) -> None:
    """Whatever became of the last run's log, the next server has the run."""
    async with supervising(settings, database, GOOD) as training:
        run = await run_to_end(training)
    log = settings.runs / str(run.id) / "train.log"
    log.unlink()
    log.mkdir()
    async with supervising(settings, database) as training:
        assert training.last_run is not None and training.last_run.id == run.id
        assert not training.news.log.lines


async def test_a_run_json_that_is_forged_later_changes_nothing(settings: Settings, database: Database) -> None:
    """Who keeps a run is read once: a stop ends the run also when run.json has come to name somebody else."""
    async with supervising(settings, database, "sleep 1000") as training:
        run = await training.start(config_of(), *NOTHING)
        file = settings.runs / str(run.id) / "run.json"
        await until(file.exists)
        await asyncio.sleep(0.3)
        real = json.loads(file.read_text())
        file.write_text(json.dumps(process.identity(os.getpid())))
        await training.stop()
        assert not process.alive(real, file.parent)
        assert training.last_run is not None and training.last_run.state == "stopped"


async def test_a_keeper_that_cannot_start_says_why(
    settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """When the keeper dies before it has begun, its last words are the reason."""
    monkeypatch.setattr(keepers, "START_S", 0.5)

    async def begun(session: AsyncSession) -> Run:
        run = Run(base_model="base", adapter="li-simpo-1")
        session.add(run)
        await session.flush()
        return run

    run = await database.write(begun)
    folder = settings.runs / str(run.id)
    folder.mkdir()
    (folder / run_folder.STARTED).write_text(run.started_at.isoformat())
    (folder / "keeper.log").write_text("ModuleNotFoundError: No module named 'psutil'\n")
    async with supervising(settings, database) as training:
        await training.wait()
        assert training.last_run is not None and training.last_run.state == "failed"
        assert "No module named 'psutil'" in (training.last_run.reason or "")


async def test_the_last_run_and_its_log_are_there_after_a_restart(settings: Settings, database: Database) -> None:
    """A new supervisor knows how the last run ended and what it printed, and does not run."""
    async with supervising(settings, database, "echo sorry; exit 5") as first:
        await run_to_end(first)
        lines = list(first.news.log.lines)
    async with supervising(settings, database) as second:
        history, running = second.follow(lambda _news: None)
        assert not running and history == lines and [line.message for line in history] == ["sorry"]
        assert second.last_run is not None and second.last_run.exit_code == 5


async def test_a_fresh_home_has_no_run(settings: Settings, database: Database) -> None:
    """Before the first run there is no last run, nothing to follow and nothing to wait for."""
    async with supervising(settings, database) as training:
        assert training.last_run is None
        assert training.follow(lambda _news: None) == ([], False)
        await training.wait()


def test_the_script_is_the_operators_else_ours(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """PREFANNO_TRAIN_SCRIPT names the script, `~` included; without it the one that comes with prefanno runs."""
    monkeypatch.setenv("HOME", str(tmp_path))
    assert keepers.train_script(replace(settings, train_script="~/mine.sh")) == tmp_path / "mine.sh"
    ours = keepers.train_script(settings)
    assert ours.name == "train.sh" and "prefanno.training.recipe" in ours.read_text()
