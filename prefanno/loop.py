"""What needs two stations: a generation that is stored, a load with the newest adapter, a run fed by an export.

Model and trainer share one machine's memory, so either a model is loaded or a run is under way, never both.
"""

import contextlib
import secrets
from collections.abc import AsyncGenerator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import persona
from prefanno.annotation import conversations
from prefanno.annotation.export import export
from prefanno.db import characters
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Character, Generation, Run
from prefanno.db.runs import adapters as adapters_of_runs
from prefanno.errors import (
    GenerationCancelled,
    InvalidInput,
    ModelLoaded,
    ModelNotLoaded,
    NothingToTrain,
    TrainingElsewhere,
    TrainingRunning,
)
from prefanno.generation.config import Event, Finished, GenerationConfig, Reply, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.prompting import Message
from prefanno.settings import Settings
from prefanno.snapshot import Manifest
from prefanno.training import adapters
from prefanno.training.config import FORMAT, LORA, RunConfig, stages
from prefanno.training.supervisor import Supervisor

SEEDS = 2**31  # seeds are 0 to 2^31 - 1


@dataclass(frozen=True)
class Answered:
    """A generation as it was stored, its candidates by their ordinals, and what they were made with."""

    generation: Generation
    replies: dict[int, Reply]
    loaded: Loaded


@dataclass
class Loop:
    """The stations, and what is done across them."""

    settings: Settings
    database: Database
    engine: Engine
    training: Supervisor
    starting: bool = False  # a run is being prepared; it counts as under way

    def persona(self, character: Character) -> str:
        """The character's persona in force: the loaded model's, else its own."""
        loaded = self.engine.loaded
        if loaded is not None and loaded.character == character.slug:
            return loaded.config.system_prompt
        return persona.of(character, self.settings)

    async def load(self, options: dict[str, Any], slug: str | None = None) -> Loaded:
        """Load the base model and the character's newest adapter; an option left out has its default.

        Raises InvalidInput, TrainingRunning, ModelLoading or EngineFailed.
        """
        async with self.database.read() as session:
            character = await characters.get(session, slug)
        if self.training.running or self.starting:
            raise TrainingRunning
        config = GenerationConfig(**({"system_prompt": persona.of(character, self.settings)} | options))
        adapter = adapters.newest(self.settings.outputs, character.slug, self.settings.model)
        return await self.engine.load(config, str(adapter.folder) if adapter else None, character.slug)

    async def generate(  # noqa: PLR0913 - the fields of the request, and how it is read
        self,
        message: str,
        context: list[Message],
        seed: int | None = None,
        parent: int | None = None,
        character: str | None = None,
        *,
        client: str = "",
        streams: bool = False,
    ) -> AsyncGenerator[Event | Answered]:
        """What happens while candidates for the message are written, at last these as they were stored.

        With `parent` the message goes on from that turn's best reply; InvalidInput where there is none, or the mode is
        single. Raises as `Engine.submit` before anything happens, later GenerationCancelled, InvalidInput or
        EngineFailed. Who stops reading cancels it.
        """
        loaded = self._speaking(character)
        turn = None
        if parent is not None:
            if loaded.config.mode != "multi":
                raise InvalidInput({"parent": ["仅 multi 模式可继续对话，请用 mode=multi 调用 POST /api/model/load"]})
            async with self.database.read() as session:
                turn, context = await conversations.going_on(session, parent, loaded.character)
            if self.engine.loaded is not loaded:  # meanwhile another character may have been loaded
                raise GenerationCancelled
        seed = secrets.randbelow(SEEDS) if seed is None else seed
        request = Request(message, context, seed, loaded.config, client, streams)
        replies: dict[int, Reply] = {}
        async with contextlib.aclosing(self.engine.submit(request).events()) as events:
            async for event in events:
                if isinstance(event, Finished):
                    replies[event.ordinal] = event.reply
                yield event
        yield await self._store(request, loaded, turn, replies)

    async def _store(
        self, request: Request, loaded: Loaded, turn: Generation | None, replies: dict[int, Reply]
    ) -> Answered:
        row = Generation(
            character=loaded.character,
            message=request.message,
            context=[dict(turn) for turn in request.context],
            settings=asdict(loaded.config),
            base_model=self.settings.model,
            adapter=Path(loaded.adapter).name if loaded.adapter else None,
            seed=request.seed,
        )

        async def store(session: AsyncSession) -> None:
            await conversations.place(session, row, turn)
            for ordinal, reply in sorted(replies.items()):
                session.add(Candidate(generation_id=row.id, ordinal=ordinal, **asdict(reply)))

        await self.database.write(store)
        return Answered(row, replies, loaded)

    async def start_training(self, slug: str | None = None) -> Run:
        """Export all of the character's choices, start a run.

        Raises InvalidInput, TrainingRunning, ModelLoaded, TrainingElsewhere, NothingToTrain or StorageFull.
        """
        if self.training.running or self.starting:
            raise TrainingRunning
        if self.engine.state != "unloaded":
            raise ModelLoaded
        self.starting = True
        try:
            if not await self.database.take_training():
                raise TrainingElsewhere
            async with self.database.read() as session:
                character = (await characters.get(session, slug)).slug
            manifest = await export(self.database, FORMAT, self.settings.data, character)
            if not stages(manifest):
                raise NothingToTrain
            return await self.training.start(await self._run_config(manifest), self.settings.data, manifest)
        finally:
            self.starting = False

    async def _run_config(self, manifest: Manifest) -> RunConfig:
        character, planned = manifest.character, stages(manifest)
        async with self.database.read() as session:
            known = await adapters_of_runs(session, character)
        return RunConfig(
            character=character,
            base_model=self.settings.model,
            base_model_path=await self.engine.base_model(),
            adapter=adapters.next_name(self.settings.outputs, character, planned[-1]["method"], known),
            stages=planned,
            lora=LORA,
        )

    def _speaking(self, character: str | None) -> Loaded:
        """What is loaded. Raises ModelNotLoaded; InvalidInput where it is not this character."""
        loaded = self.engine.loaded
        if loaded is None:
            raise ModelNotLoaded
        if character not in (None, loaded.character):
            raise InvalidInput(
                {"character": [f"当前加载的角色是 {loaded.character}，请先用 POST /api/model/load 加载"]}
            )
        return loaded
