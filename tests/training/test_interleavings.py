"""Starts, stops, resumes and restarts in any order, by several people at once: one trainer, and never a wrong state."""

import asyncio
import contextlib
import itertools
import json
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import cast

import pytest
from sqlalchemy import select

from prefanno.ahead import Ahead
from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.errors import Conflict, NotFound, NoTraining, TrainingRunning
from prefanno.generation.engine import Engine
from prefanno.loop import Loop
from prefanno.settings import Settings
from prefanno.training import adapters, process, run_folder, supervisor
from prefanno.training.config import SAVE, SAVED
from prefanno.training.keepers import Keepers
from prefanno.training.supervisor import Supervisor
from tests.annotation.test_dataset import SINGLE, add
from tests.looping import Voice

pytestmark = pytest.mark.sqlite_only

REFUSALS = (TrainingRunning, NoTraining, Conflict, NotFound)
PEOPLE, DEEDS = 3, 4
LONGEST_S = 0.03  # of a run, and of a pause of a person


class _Keepers(Keepers):
    """Runs in this process, which end with one of these codes, None: when they are told to; `most` lived at once."""

    def __init__(self, dice: random.Random, codes: Sequence[int | None] = (0, 0, 1, None)) -> None:
        super().__init__(Path())
        self._dice, self._codes = dice, codes
        self._stops: dict[Path, asyncio.Event] = {}
        self.tasks: dict[Path, asyncio.Task[None]] = {}
        self.most = 0
        self._pids = itertools.count(1)

    @property
    def living(self) -> list[Path]:
        """The folders of the runs that are alive."""
        return [folder for folder, task in self.tasks.items() if not task.done()]

    async def start(self, folder: Path) -> None:
        """One more run."""
        await asyncio.sleep(self._dice.uniform(0, LONGEST_S / 3))
        assert folder not in self.living
        self._stops[folder] = asyncio.Event()
        self.tasks[folder] = asyncio.create_task(self._train(folder))
        self.most = max(self.most, len(self.living))

    def alive(self, keeper: process.Identity, folder: Path) -> bool:
        """Whether the run is."""
        return folder in self.living

    def terminate(self, keeper: process.Identity, folder: Path) -> None:
        """End the run soon."""
        self._stops[folder].set()

    async def end_rest(self, folder: Path) -> None:
        """Nothing is left."""
        assert folder not in self.living

    async def _train(self, folder: Path) -> None:
        await asyncio.sleep(self._dice.uniform(0, LONGEST_S / 3))
        (folder / run_folder.KEEPER).write_text(json.dumps({"pid": next(self._pids), "start_time": 0, "boot_id": ""}))
        code = self._dice.choice(self._codes)
        ends = asyncio.get_running_loop().time() + self._dice.uniform(0, LONGEST_S)
        while not self._stops[folder].is_set() and (code is None or asyncio.get_running_loop().time() < ends):
            if (folder / SAVE).exists():
                code = SAVED
                break
            await asyncio.sleep(0.001)
        stopped = self._stops[folder].is_set() and code is None
        self._write(folder, 143 if stopped or code is None else code, stopped=stopped)

    def _write(self, folder: Path, code: int, *, stopped: bool) -> None:
        if code != 0:
            saved = folder / run_folder.CHECKPOINTS / "1" / "checkpoint-1"
            saved.mkdir(parents=True, exist_ok=True)
            (saved / "complete").touch()
        else:
            (folder / "adapter").mkdir(exist_ok=True)
            for name in adapters.WEIGHTS:
                (folder / "adapter" / name).write_text("{}")
        ended = {"exit_code": code, "stopped": stopped, "error": None, "ended": 0.0}
        (folder / run_folder.EXIT).write_text(json.dumps(ended))


def _loop(settings: Settings, database: Database, keepers: Keepers) -> Loop:
    engine = cast(Engine, Voice())
    training = Supervisor(settings, database, keepers)
    return Loop(settings, database, engine, Ahead(settings, database, engine), training)


async def _person(loop: Loop, dice: random.Random) -> None:
    """Does things one after the other, whatever others do meanwhile."""
    for _ in range(DEEDS):
        await asyncio.sleep(dice.uniform(0, LONGEST_S))
        deeds: list[Callable[[], Awaitable[object]]] = [
            loop.handover.start,
            lambda: asyncio.gather(loop.handover.start(), loop.handover.start(), return_exceptions=True),
            partial(loop.handover.resume, dice.randint(1, 5)),
            loop.training.stop,
            partial(loop.training.stop, save=True),
        ]
        with contextlib.suppress(*REFUSALS):
            await dice.choice(deeds)()


async def _settled(loop: Loop, keepers: _Keepers) -> None:
    """When nobody does anything any more, nothing runs, and every run is what its files say."""
    with contextlib.suppress(NoTraining):
        await loop.training.stop()
    assert not loop.training.running and not loop.handover.is_busy
    assert keepers.living == [] and keepers.most <= 1
    async with loop.database.read() as session:
        runs = (await session.scalars(select(Run))).all()
    for run in runs:
        folder = loop.settings.runs / str(run.id)
        if folder.exists():  # else it was old
            ended = json.loads((folder / run_folder.EXIT).read_text())
            asked = ended["stopped"] or ended["exit_code"] == SAVED
            expected = "stopped" if asked else "succeeded" if ended["exit_code"] == 0 else "failed"
            assert (run.state, run.exit_code) == (expected, ended["exit_code"])
    made = {run.id: run.adapter for run in runs if run.state == "succeeded"}
    assert {one.run: one.name for one in adapters.every(loop.settings.outputs)} == made


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in range(1, 25))])
async def test_whatever_people_do_at_once_one_trainer_runs(
    seed: int, settings: Settings, database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """40 times three people start, stop, resume and start twice at once, with a restart in between."""
    for name in ("TICK_S", "LOOK_S"):
        monkeypatch.setattr(supervisor, name, 0.002)
    await add(database, SINGLE)
    dice = random.Random(seed)
    keepers = _Keepers(dice)
    for _ in range(40):
        loop = _loop(replace(settings, model="base"), database, keepers)
        await loop.training.adopt()
        async with asyncio.TaskGroup() as people:
            for _ in range(PEOPLE):
                people.create_task(_person(loop, dice))
        if dice.random() < 0.5:
            await loop.training.close()  # a restart, perhaps during a run
            loop = _loop(replace(settings, model="base"), database, keepers)
            await loop.training.adopt()
        await _settled(loop, keepers)
        await loop.training.close()


async def test_two_trainers_would_be_seen(settings: Settings, database: Database) -> None:
    """The control: of two supervisors that know nothing of each other, each starts a run, and the count says so."""
    await add(database, SINGLE)
    keepers = _Keepers(random.Random(1), [None])
    loops = [_loop(replace(settings, model="base"), database, keepers) for _ in range(2)]
    for loop in loops:
        await loop.handover.start()
    assert keepers.most == 2
    for loop in loops:
        with contextlib.suppress(NoTraining):
            await loop.training.stop()
        await loop.training.close()
