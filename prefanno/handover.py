"""The machine's memory goes from the model to a run, and back: model and trainer never hold it at the same time.

    check ─ export ─ recipe --check ─▶ report
    start ─ export ─ unload ─ run ─▶ … ─ load the result, or what was loaded before
    rebuild, resume ─ what a run was given ─ unload ─ run ─▶ …

Whatever fails on the way, a model can be loaded and a run be started afterwards.
"""

import asyncio
import json
import logging
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

from prefanno import files, snapshot
from prefanno.annotation.export import export
from prefanno.comparing import TRAINS, Comparing
from prefanno.db import characters
from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.db.runs import adapters as adapters_of_runs
from prefanno.errors import (
    CheckRunning,
    Conflict,
    InvalidInput,
    ModelLoaded,
    ModelLoading,
    NotFound,
    NothingToTrain,
    PrefannoError,
    SnapshotDamaged,
    TrainingElsewhere,
    TrainingRunning,
)
from prefanno.generation.engine import Engine, Loaded
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import adapters, registry, run_folder
from prefanno.training.check import report
from prefanno.training.config import FORMAT, LORA, Plan, RunConfig, stages
from prefanno.training.methods import METHODS
from prefanno.training.run_folder import folder_of
from prefanno.training.supervisor import Supervisor

BACK = "handover.json"  # in a run's folder: what is to be loaded when it has ended
USUAL = Plan()

log = logging.getLogger(__name__)
Load = Callable[[dict[str, Any], str | None, str | None], Awaitable[Loaded]]
Prepared = tuple[RunConfig, Callable[[], Awaitable[Run]]]  # and what begins it


class Handover:
    """Starts runs; `load` loads a character's adapter with these settings. `close` comes before the engine's."""

    def __init__(  # noqa: PLR0913, PLR0917 - the stations
        self,
        settings: Settings,
        database: Database,
        engine: Engine,
        training: Supervisor,
        comparing: Comparing,
        load: Load,
    ) -> None:
        self._settings, self._database = settings, database
        self._engine, self._training, self._comparing, self._load = engine, training, comparing, load
        self._starting = False  # a run is being prepared; it counts as under way
        self._returning: asyncio.Task[None] | None = None
        self._checking = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether the memory belongs to a run."""
        return self._training.running or self._starting

    def adopt(self) -> None:
        """Give the memory back after a run that an earlier server started: at its end, or now where it has ended."""
        run = self._training.last_run
        if run is None or not self._back(run.id).exists():
            return
        try:
            self._return_after(run.id, json.loads(self._back(run.id).read_text()))
        except (OSError, ValueError):
            log.exception("what is to be loaded after run %d cannot be read", run.id)

    async def check(self, plan: Plan = USUAL, slug: str | None = None) -> dict[str, Any]:
        """What a run of this plan would be trained on, row by row, without training.

        One at a time: each needs the memory of torch. Raises CheckRunning, InvalidInput, NothingToTrain, CheckFailed.
        """
        if self._checking.locked():
            raise CheckRunning
        async with self._checking, files.staged(self._settings.data) as folder:
            manifest = await export(self._database, FORMAT, folder / "data", await self._slug(slug))
            config = await self._config(plan, manifest)
            files.write(folder / "config.json", json.dumps(asdict(config)).encode())
            return await report(folder)

    async def start(
        self, plan: Plan = USUAL, slug: str | None = None, *, unload: bool = False, reload: bool = False
    ) -> Run:
        """Export all of the character's choices, start a run. `reload` loads its adapter when it has ended.

        Raises InvalidInput, TrainingRunning, ModelLoaded, TrainingElsewhere, NothingToTrain or StorageFull; what was
        unloaded for it is loaded again then.
        """

        async def prepared() -> Prepared:
            manifest = await export(self._database, FORMAT, self._settings.data, await self._slug(slug))
            config = await self._config(plan, manifest)
            return config, partial(self._training.start, config, self._settings.data, manifest)

        return await self._start(prepared, unload=unload, reload=reload)

    async def rebuild(self, number: int, *, unload: bool = False, reload: bool = False) -> Run:
        """Train again what this run trained: its snapshot, configuration and seed, to an adapter of a new name.

        Raises NotFound, SnapshotDamaged, and as `start`.
        """

        async def prepared() -> Prepared:
            config, manifest = await self._given(await folder_of(self._settings, self._database, number))
            return config, partial(self._training.start, config, self._settings.runs / str(number) / "data", manifest)

        return await self._start(prepared, unload=unload, reload=reload)

    async def resume(self, number: int, *, unload: bool = False, reload: bool = False) -> Run:
        """Let this run, which was stopped or failed, go on from its last checkpoint; its adapter's name may be new.

        Raises NotFound, SnapshotDamaged, Conflict where it has ended well or has no checkpoint, and as `start`.
        """

        async def prepared() -> Prepared:
            folder = await folder_of(self._settings, self._database, number)
            async with self._database.read() as session:
                run = await session.get_one(Run, number)
            if run.state == "succeeded":
                raise Conflict(f"run {number} has succeeded already", f"训练 {number} 已完成，无需继续")
            if not run_folder.has_checkpoint(folder):
                raise Conflict(
                    f"run {number} has no checkpoint to go on from; train it again with rebuild",
                    f"训练 {number} 没有可继续的检查点，请用 rebuild 重新训练",
                )
            config, _ = await self._given(folder)
            return config, partial(self._training.resume, number, config)

        return await self._start(prepared, unload=unload, reload=reload)

    async def close(self) -> None:
        """Load nothing any more."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)

    async def _given(self, folder: Path) -> tuple[RunConfig, Manifest]:
        """What this run was given, with a name for its adapter that is free, and the snapshot, verified."""
        manifest = await asyncio.to_thread(snapshot.verified, folder / "data")
        config = await asyncio.to_thread(_recorded, folder / run_folder.CONFIG, manifest.character)
        if config.base_model == self._settings.model:  # where it lay may be gone
            config = replace(config, base_model_path=await self._engine.base_model())
        return replace(config, adapter=await self._name(manifest.character, config.stages)), manifest

    async def _start(self, prepared: Callable[[], Awaitable[Prepared]], *, unload: bool, reload: bool) -> Run:
        if self.is_busy:
            raise TrainingRunning
        if self._engine.state == "loading" and unload:
            raise ModelLoading  # its settings are not known yet, so they could not be given back
        in_use = self._comparing.in_force is not None or self._comparing.answering is not None
        if (in_use or self._engine.state == "loading") and not unload:
            raise ModelLoaded
        self._starting = True
        before: Loaded | None = None
        try:
            await self._take_training()
            config, begin = await prepared()
            before = self._comparing.in_force  # all that can be found wrong was, so it goes only now
            await self._comparing.give_way(TRAINS)
            await self._engine.unload()
            run = await begin()
        except BaseException as error:
            self._starting = False
            if before is not None and isinstance(error, Exception):  # else the server ends
                await self._load_again(before)
            raise
        self._starting = False
        if reload:
            back: dict[str, Any] = {"trained": config.character, "before": None}
            if before is not None:
                adapter = Path(before.adapter).name if before.adapter else registry.BASE
                back["before"] = {"character": before.character, "options": asdict(before.config), "adapter": adapter}
            self._remember(run.id, back)
            self._return_after(run.id, back)
        return run

    def _return_after(self, number: int, back: dict[str, Any]) -> None:
        self._returning = asyncio.create_task(self._return(number, back), name="load what was trained")

    def _remember(self, number: int, back: dict[str, Any]) -> None:
        """Also for a server that takes up the run; where the disk is full only this one loads what was trained."""
        try:
            self._back(number).write_text(json.dumps(back))
        except OSError:
            log.exception("what is to be loaded after run %d could not be written down", number)

    async def _load_again(self, before: Loaded) -> None:
        try:
            await self._engine.load(before.config, before.adapter, before.character)
        except PrefannoError:  # why the run could not start matters more
            log.exception("what was loaded before could not be loaded again")

    async def _take_training(self) -> None:
        if not await self._database.take_training():
            raise TrainingElsewhere

    async def _return(self, number: int, back: dict[str, Any]) -> None:
        """When the run has ended load its adapter, with the settings of before; where it made none, what was there."""
        await self._training.wait()
        run = self._training.last_run
        try:
            if run is not None and run.id == number and self._engine.state == "unloaded" and not self.is_busy:
                await self._load_after(run, back)
        except (PrefannoError, TypeError, KeyError):  # GET /api/model/status says it, too
            log.exception("the adapter could not be loaded after its training")
        self._back(number).unlink(missing_ok=True)

    async def _load_after(self, run: Run, back: dict[str, Any]) -> None:
        trained = {"character": back["trained"], "options": {}}
        before = back["before"] or trained
        if run.state != "succeeded":
            options, character, adapter = before["options"], before["character"], before.get("adapter")
        else:
            options = before["options"] if before["character"] == back["trained"] else {}
            character, adapter = back["trained"], run.adapter
        try:
            await self._load(options, character, adapter)
        except InvalidInput:  # it is gone meanwhile, or of another base model than this server's
            await self._load(options, character, None)

    def _back(self, run: int) -> Path:
        return self._settings.runs / str(run) / BACK

    async def _slug(self, slug: str | None) -> str:
        async with self._database.read() as session:
            return (await characters.get(session, slug)).slug

    async def _config(self, plan: Plan, manifest: Manifest) -> RunConfig:
        planned = stages(manifest, plan.stages)
        if not planned:
            raise NothingToTrain
        where = (self._settings.outputs, manifest.character, self._settings.model)
        start = registry.meant(*where, plan.adapter or registry.BASE)
        return RunConfig(
            character=manifest.character,
            base_model=self._settings.model,
            base_model_path=await self._engine.base_model(),
            adapter=await self._name(manifest.character, planned),
            stages=planned,
            lora={**LORA, **plan.lora},
            max_length=plan.max_length,
            seed=plan.seed,
            start=str(start.folder) if start else None,
            held_out=plan.held_out,
            guard=plan.guard,
            activation_checkpointing=plan.activation_checkpointing,
        )

    async def _name(self, character: str, planned: list[dict[str, Any]]) -> str:
        async with self._database.read() as session:
            known = await adapters_of_runs(session, character)
        return adapters.next_name(self._settings.outputs, character, planned[-1]["method"], known)


def _recorded(file: Path, character: str) -> RunConfig:
    """A run's configuration. Raises SnapshotDamaged where it is none, NotFound where what it went on from is gone."""
    try:
        config = RunConfig(**json.loads(file.read_text()))
        stages = [
            {**METHODS[stage["method"]].defaults, **stage, "file": f"data/{Path(stage['file']).name}"}
            for stage in config.stages
        ]
    except (OSError, ValueError, TypeError, KeyError) as error:
        raise _changed(file, str(error)) from error
    if not stages or config.character != character:
        raise _changed(file, "it has other stages, or another character")
    if config.start is not None and not Path(config.start).is_dir():
        raise NotFound(
            f"the run went on from {config.start}, which is gone", f"未找到训练开始时的 adapter：{config.start}"
        )
    return replace(config, stages=stages)


def _changed(file: Path, how: str) -> SnapshotDamaged:
    return SnapshotDamaged(f"{file} is not what the run was given: {how}", "快照已损坏：config.json")
