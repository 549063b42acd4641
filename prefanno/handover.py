"""The machine's memory goes from the model to a run, and back: model and trainer never hold it at the same time.

    check ─ export ─ recipe --check ─▶ report
    start ─ export ─ unload ─ run ─▶ … ─ load the result, or what was loaded before

Whatever fails on the way, a model can be loaded and a run be started afterwards.
"""

import asyncio
import contextlib
import json
import logging
import sys
import tempfile
from collections.abc import Awaitable, Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from prefanno import files, snapshot
from prefanno.annotation.export import export
from prefanno.db import characters
from prefanno.db.engine import Database
from prefanno.db.models import Run
from prefanno.db.runs import adapters as adapters_of_runs
from prefanno.errors import (
    CheckFailed,
    InvalidInput,
    ModelLoaded,
    NothingToTrain,
    PrefannoError,
    TrainingElsewhere,
    TrainingRunning,
)
from prefanno.generation.engine import Engine, Loaded
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import adapters
from prefanno.training.config import FORMAT, LORA, Plan, RunConfig, stages
from prefanno.training.supervisor import Supervisor, folder_of

BACK = "handover.json"  # in a run's folder: what is to be loaded when it has ended
CHECK = ("-P", "-m", "prefanno.training.recipe", "--check", "config.json")

USUAL = Plan()

log = logging.getLogger(__name__)
Load = Callable[[dict[str, Any], str | None], Awaitable[Loaded]]


class Handover:
    """Starts runs; `load` loads a character's newest adapter with these settings. `close` comes before the engine's."""

    def __init__(
        self, settings: Settings, database: Database, engine: Engine, training: Supervisor, load: Load
    ) -> None:
        self._settings, self._database = settings, database
        self._engine, self._training, self._load = engine, training, load
        self._starting = False  # a run is being prepared; it counts as under way
        self._returning: asyncio.Task[None] | None = None
        self._checking = asyncio.Lock()

    @property
    def is_busy(self) -> bool:
        """Whether the memory belongs to a run."""
        return self._training.running or self._starting

    def adopt(self) -> None:
        """Give the memory back at the end of a run that an earlier server started."""
        run = self._training.last_run
        if self._training.running and run is not None:
            with contextlib.suppress(FileNotFoundError):
                self._return_after(json.loads(self._back(run.id).read_text()))

    async def check(self, plan: Plan = USUAL, slug: str | None = None) -> dict[str, Any]:
        """What a run of this plan would be trained on, row by row, without training.

        Raises InvalidInput, NothingToTrain, CheckFailed.
        """
        async with self._checking:
            with tempfile.TemporaryDirectory(prefix="prefanno-check-") as folder:
                data = Path(folder) / "data"
                manifest = await export(self._database, FORMAT, data, await self._slug(slug))
                config = await self._config(plan, manifest)
                files.write(Path(folder) / "config.json", json.dumps(asdict(config)).encode())
                return await _report(Path(folder))

    async def start(
        self, plan: Plan = USUAL, slug: str | None = None, *, unload: bool = False, reload: bool = False
    ) -> Run:
        """Export all of the character's choices, start a run. `reload` loads its adapter when it has ended.

        Raises InvalidInput, TrainingRunning, ModelLoaded, TrainingElsewhere, NothingToTrain or StorageFull; what was
        unloaded for it is loaded again then.
        """

        async def prepared() -> tuple[RunConfig, Path, Manifest]:
            manifest = await export(self._database, FORMAT, self._settings.data, await self._slug(slug))
            return await self._config(plan, manifest), self._settings.data, manifest

        return await self._start(prepared, unload=unload, reload=reload)

    async def rebuild(self, number: int, *, unload: bool = False, reload: bool = False) -> Run:
        """Train again what this run trained: its snapshot, configuration and seed, to an adapter of a new name.

        Raises NotFound, SnapshotDamaged, and as `start`.
        """

        async def prepared() -> tuple[RunConfig, Path, Manifest]:
            folder = await folder_of(self._settings, self._database, number)
            manifest = await asyncio.to_thread(snapshot.verified, folder / "data")
            config = RunConfig(**json.loads((folder / "config.json").read_text()))
            renamed = replace(config, adapter=await self._name(manifest.character, config.stages))
            return renamed, folder / "data", manifest

        return await self._start(prepared, unload=unload, reload=reload)

    async def close(self) -> None:
        """Load nothing any more."""
        if self._returning is not None:
            self._returning.cancel()
            await asyncio.gather(self._returning, return_exceptions=True)

    async def _start(
        self, prepared: Callable[[], Awaitable[tuple[RunConfig, Path, Manifest]]], *, unload: bool, reload: bool
    ) -> Run:
        if self.is_busy:
            raise TrainingRunning
        if self._engine.state != "unloaded" and not unload:
            raise ModelLoaded
        self._starting = True
        before: Loaded | None = None
        try:
            await self._take_training()
            config, data, manifest = await prepared()
            before = self._engine.loaded  # all that can be found wrong was, so it goes only now
            await self._engine.unload()
            run = await self._training.start(config, data, manifest)
        except BaseException:
            self._starting = False
            if before is not None:
                await self._load_again(before)
            raise
        self._starting = False
        if reload:
            options = asdict(before.config) if before is not None and before.character == config.character else {}
            back = {"options": options, "character": config.character}
            files.write(self._back(run.id), json.dumps(back).encode())
            self._return_after(back)
        return run

    async def _load_again(self, before: Loaded) -> None:
        try:
            await self._engine.load(before.config, before.adapter, before.character)
        except PrefannoError:  # why the run could not start matters more
            log.exception("what was loaded before could not be loaded again")

    async def _take_training(self) -> None:
        if not await self._database.take_training():
            raise TrainingElsewhere

    def _return_after(self, back: dict[str, Any]) -> None:
        self._returning = asyncio.create_task(self._return(**back), name="load what was trained")

    async def _return(self, options: dict[str, Any], character: str) -> None:
        """Load the newest adapter when the run has ended: its own, or where it failed the one before."""
        await self._training.wait()
        if self._engine.state != "unloaded" or self.is_busy:  # somebody was faster
            return
        try:
            await self._load(options, character)
        except PrefannoError:  # GET /api/model/status says it, too
            log.exception("the adapter could not be loaded after its training")

    def _back(self, run: int) -> Path:
        return self._settings.runs / str(run) / BACK

    async def _slug(self, slug: str | None) -> str:
        async with self._database.read() as session:
            return (await characters.get(session, slug)).slug

    async def _config(self, plan: Plan, manifest: Manifest) -> RunConfig:
        planned = stages(manifest, plan.stages)
        if not planned:
            raise NothingToTrain
        start = plan.adapter and adapters.named(
            self._settings.outputs, manifest.character, self._settings.model, plan.adapter
        )
        if plan.adapter and start is None:
            raise InvalidInput(
                {"adapter": [f"角色 {manifest.character} 没有基于当前基础模型的 adapter {plan.adapter}"]},
                english=f"{manifest.character} has no adapter {plan.adapter} of this base model",
            )
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
        )

    async def _name(self, character: str, planned: list[dict[str, Any]]) -> str:
        async with self._database.read() as session:
            known = await adapters_of_runs(session, character)
        return adapters.next_name(self._settings.outputs, character, planned[-1]["method"], known)


async def _report(folder: Path) -> dict[str, Any]:
    """Run the recipe's own look at its rows, in a process that ends with its memory."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        *CHECK,
        cwd=folder,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        printed, complained = await process.communicate()
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()
        raise
    if process.returncode:
        lines = complained.decode(errors="replace").strip().splitlines() or [f"exit code {process.returncode}"]
        raise CheckFailed(f"the rows could not be looked at: {lines[-1]}", f"无法检查训练数据：{lines[-1]}")
    report: dict[str, Any] = json.loads(printed.splitlines()[-1])  # a library may have said something before
    return report
