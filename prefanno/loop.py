"""What needs two stations: a generation that is stored, a load with the newest adapter, a run fed by an export.

Model and trainer share one machine's memory, so either a model is loaded or a run is under way, never both.
"""

import secrets
from dataclasses import asdict, dataclass
from pathlib import Path

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import persona
from prefanno.annotation import dataset
from prefanno.annotation.export import export
from prefanno.db.engine import Database
from prefanno.db.models import DEFAULT_CHARACTER, Candidate, Generation, Run
from prefanno.db.runs import adapters as adapters_of_runs
from prefanno.errors import ModelLoaded, NothingToTrain, TrainingRunning
from prefanno.generation.config import GenerationConfig
from prefanno.generation.engine import Engine, Generated, Loaded
from prefanno.prompting import Message
from prefanno.rows import exporter
from prefanno.settings import Settings
from prefanno.training import adapters
from prefanno.training.config import LORA, RunConfig, stages
from prefanno.training.supervisor import Supervisor

SEEDS = 2**31  # seeds are 0 to 2^31 - 1


@dataclass
class Loop:
    """The stations, and what is done across them."""

    settings: Settings
    database: Database
    engine: Engine
    training: Supervisor
    starting: bool = False  # a run is being prepared; it counts as under way

    @property
    def system_prompt(self) -> str:
        """The persona in force: the loaded model's, else the default."""
        loaded = self.engine.loaded
        return loaded.config.system_prompt if loaded else persona.default(self.settings)

    async def load(self, config: GenerationConfig) -> Loaded:
        """Load the base model and its newest adapter. Raises TrainingRunning, ModelLoading or EngineFailed."""
        if self.training.running or self.starting:
            raise TrainingRunning
        adapter = adapters.newest(self.settings.outputs, DEFAULT_CHARACTER, self.settings.model)
        return await self.engine.load(config, str(adapter.folder) if adapter else None)

    async def generate(self, message: str, context: list[Message], seed: int | None) -> tuple[Generated, int, int]:
        """Candidates for the message, stored, with the generation's id and seed; raises as `Engine.generate`."""
        seed = secrets.randbelow(SEEDS) if seed is None else seed
        generated = await self.engine.generate(message, context, seed)
        row = self._generation(message, context, seed, generated)

        async def store(session: AsyncSession) -> int:
            session.add(row)
            await session.flush()
            for ordinal, reply in enumerate(generated.replies, 1):
                session.add(Candidate(generation_id=row.id, ordinal=ordinal, **asdict(reply)))
            return row.id

        return generated, await self.database.write(store), seed

    async def start_training(self) -> Run:
        """Export all choices, start a run. Raises TrainingRunning, ModelLoaded, NothingToTrain or StorageFull."""
        if self.training.running or self.starting:
            raise TrainingRunning
        if self.engine.state != "unloaded":
            raise ModelLoaded
        self.starting = True
        try:
            if not any((await dataset.counts(self.database)).values()):
                raise NothingToTrain
            exported = await export(self.database, exporter("sharegpt"), self.settings.data)
            return await self.training.start(await self._run_config(exported), list(exported))
        finally:
            self.starting = False

    async def _run_config(self, exported: dict[Path, int]) -> RunConfig:
        planned = stages(exported)
        async with self.database.read() as session:
            known = await adapters_of_runs(session, DEFAULT_CHARACTER)
        return RunConfig(
            character=DEFAULT_CHARACTER,
            base_model=self.settings.model,
            base_model_path=await self.engine.base_model(),
            adapter=adapters.next_name(self.settings.outputs, DEFAULT_CHARACTER, planned[-1]["method"], known),
            stages=planned,
            lora=LORA,
        )

    def _generation(self, message: str, context: list[Message], seed: int, generated: Generated) -> Generation:
        loaded = generated.loaded
        return Generation(
            character=DEFAULT_CHARACTER,
            message=message,
            context=[dict(turn) for turn in context],
            settings=asdict(loaded.config),
            base_model=self.settings.model,
            adapter=Path(loaded.adapter).name if loaded.adapter else None,
            seed=seed,
        )
