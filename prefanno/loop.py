"""What needs two stations: a generation that is stored, the next prompt, a load with the adapter to load."""

import asyncio
import contextlib
import secrets
import shutil
from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, cast

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import chat, persona, prompts
from prefanno.ahead import Ahead
from prefanno.annotation import conversations
from prefanno.comparing import LOADED, UNLOADED, Comparing
from prefanno.db import characters
from prefanno.db.engine import Database
from prefanno.db.models import Character, Generation, Prompt
from prefanno.db.prompts import Order
from prefanno.errors import (
    ComparisonRunning,
    Conflict,
    GenerationCancelled,
    InvalidInput,
    ModelLoading,
    ModelNotLoaded,
    PrefannoError,
    TrainingRunning,
)
from prefanno.generation.config import SEEDS, Event, GenerationConfig, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.generation.job import Job
from prefanno.handover import Handover
from prefanno.prompting import Message
from prefanno.prompts import IsCurrent, Taken
from prefanno.recording import Answered, Origin, follow, stored
from prefanno.settings import Settings
from prefanno.training import registry
from prefanno.training.supervisor import Supervisor


@dataclass(frozen=True)
class Asking:
    """The prompt that candidates follow for, and the settings that these are made with."""

    prompt: Prompt
    settings: dict[str, Any]


@dataclass
class Loop:
    """The stations, and what is done across them."""

    settings: Settings
    database: Database
    engine: Engine
    ahead: Ahead
    training: Supervisor
    comparing: Comparing = field(init=False)
    handover: Handover = field(init=False)
    being_answered: set[int] = field(default_factory=set)  # prompts whose candidates a person waits for

    def __post_init__(self) -> None:
        """Runs are started by what gives the machine back to `load`."""
        parts = (self.settings, self.database, self.engine)
        self.comparing = Comparing(*parts, self.ahead, self._refuse_training)
        self.handover = Handover(*parts, self.training, self.comparing, self.load)

    def persona(self, character: Character) -> str:
        """The character's persona in force: the loaded model's, else its own."""
        loaded = self.comparing.in_force
        if loaded is not None and loaded.character == character.slug:
            return loaded.config.system_prompt
        return persona.of(character, self.settings)

    async def load(self, options: dict[str, Any], slug: str | None = None, adapter: str | None = None) -> Loaded:
        """Load the base model and this adapter, else the one to load; an option left out has its default.

        Raises InvalidInput, TrainingRunning, ModelLoading, RegistryDamaged or EngineFailed.
        """
        async with self.database.read() as session:
            character = await characters.get(session, slug)
        self._refuse_training()
        config = GenerationConfig(**({"system_prompt": persona.of(character, self.settings)} | options))
        meant = registry.meant(self.settings.outputs, character.slug, self.settings.model, adapter)
        if self.engine.state == "loading":
            raise ModelLoading
        await self.comparing.give_way(LOADED)
        self._refuse_training()  # a run may have begun meanwhile
        loaded = await self.engine.load(config, str(meant.folder) if meant else None, character.slug)
        self.ahead.wake()
        return loaded

    async def unload(self) -> None:
        """Free the model's memory, whoever uses it."""
        await self.comparing.give_way(UNLOADED)
        await self.engine.unload()

    async def delete(self, adapter: str) -> None:
        """Delete an adapter. Raises NotFound, TrainingRunning, ModelLoading, and Conflict where it is in use."""
        self._refuse_training()  # it may go on from this one
        if self.engine.state == "loading":
            raise ModelLoading
        if self.comparing.names(adapter):
            raise Conflict(f"{adapter} is being compared; stop that first", f"{adapter} 正在对比中，请先停止对比")
        loaded = self.comparing.in_force
        if loaded is not None and loaded.adapter is not None and Path(loaded.adapter).name == adapter:
            raise Conflict(f"{adapter} is loaded; unload it first", f"{adapter} 已加载，请先卸载模型或加载其他 adapter")
        gone = registry.take_away(self.settings.outputs, adapter)  # at once: no load or run can come in between
        await asyncio.to_thread(shutil.rmtree, gone)

    async def generate(  # noqa: PLR0913 - the fields of the request, and how it is read
        self,
        message: str,
        context: list[Message],
        seed: int | None = None,
        parent: int | None = None,
        character: str | None = None,
        *,
        request_id: str | None = None,
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
        job = self.engine.submit(Request(message, context, seed, loaded.config, client, streams, request_id))
        async with contextlib.aclosing(follow(self.database, self._origin(loaded, turn), job)) as events:
            async for event in events:
                yield event

    def chat(
        self, messages: Sequence[Mapping[str, str | None]], asked: Mapping[str, Any], *, client: str = ""
    ) -> tuple[Job, Loaded]:
        """Answer a chat with what is loaded; nothing is stored. Raises InvalidInput, and as `Engine.submit`."""
        loaded = self._speaking(None)
        message, context, instructions = chat.split(messages)
        config = chat.settings(loaded.config, asked, instructions)
        seed = secrets.randbelow(SEEDS) if asked["seed"] is None else asked["seed"]
        request = Request(message, context, seed, config, client, streams=asked["stream"] or bool(asked["stop"]))
        return self.engine.submit(request), loaded

    async def next(
        self, order: Order, slug: str | None = None, *, client: str = "", streams: bool = False
    ) -> AsyncGenerator[Event | Asking | Answered]:
        """The next prompt of the character, then its candidates: stored ones at once, else while they are written.

        Raises NoPrompts; where the prompt has to be answered now, as `generate`. Who stops reading before the end, and
        whatever else goes wrong, puts it back.
        """
        self.ahead.order = order
        async with self.database.read() as session:
            character = await self.meant(session, slug)
        is_current = self.is_current(character)

        async def take(session: AsyncSession) -> Taken:
            taken = await prompts.take(session, character.slug, order, is_current)
            if taken.generation is None:
                self._speaking(character.slug)
            self.being_answered.add(taken.prompt.id)  # before another work of this transaction may put it back
            return taken

        taking = asyncio.ensure_future(self.database.write(take))
        try:
            taken = await asyncio.shield(taking)
            self.ahead.wake()
            async with contextlib.aclosing(self._candidates(taken, client, streams)) as events:
                first = await anext(events)  # what is refused is refused before the prompt is shown
                yield Asking(taken.prompt, self._settings_of(taken))
                yield first
                async for event in events:
                    yield event
            self.being_answered.discard(taken.prompt.id)
        except BaseException as error:
            await asyncio.shield(self._put_back(taking, error))
            raise

    async def _put_back(self, taking: asyncio.Task[Taken], error: BaseException) -> None:
        """Who was to get the prompt does not; nor where it is taken only after they left."""
        try:
            number = (await taking).prompt.id
        except PrefannoError:  # it was not taken
            return
        try:
            await self.database.write(partial(prompts.give_up, number=number, error=error))
        finally:
            self.being_answered.discard(number)
            self.ahead.wake()

    def _candidates(self, taken: Taken, client: str, streams: bool) -> AsyncGenerator[Event | Answered]:
        prompt, generation, candidates = taken
        if generation is not None:
            return stored(generation, candidates)
        loaded = self._speaking(prompt.character)
        job = self.ahead.give(prompt.id, client, streams)
        if job is None:
            context, seed = cast(list[Message], prompt.context), secrets.randbelow(SEEDS)
            job = self.engine.submit(Request(prompt.message, context, seed, loaded.config, client, streams))
        return follow(self.database, self._origin(loaded, prompt=prompt.id), job)

    def _settings_of(self, taken: Taken) -> dict[str, Any]:
        if taken.generation is not None:
            return taken.generation.settings
        return asdict(self._speaking(taken.prompt.character).config)

    def is_current(self, character: Character) -> IsCurrent:
        """What tells whether candidates are those that the character would write, now or when it is loaded next."""
        loaded = self.comparing.in_force
        if loaded is not None and loaded.character == character.slug:
            return self._origin(loaded).made
        chosen = registry.chosen(self.settings.outputs, character.slug, self.settings.model)
        made = (self.settings.model, chosen.name if chosen else None, persona.of(character, self.settings))
        return lambda one: (one.base_model, one.adapter, one.settings["system_prompt"]) == made

    async def meant(self, session: AsyncSession, slug: str | None) -> Character:
        """The character of this slug; of None the loaded one, else the current one. Raises InvalidInput."""
        loaded = self.comparing.in_force
        return await characters.get(session, loaded.character if loaded is not None and slug is None else slug)

    def _origin(self, loaded: Loaded, turn: Generation | None = None, prompt: int | None = None) -> Origin:
        return Origin(self.settings.model, loaded, turn, prompt)

    def _refuse_training(self) -> None:
        if self.handover.is_busy:
            raise TrainingRunning

    def _speaking(self, character: str | None) -> Loaded:
        """What is loaded. Raises ModelNotLoaded, ModelLoading or ComparisonRunning.

        Raises InvalidInput where it is not this character.
        """
        if self.comparing.answering is not None:
            raise ComparisonRunning
        loaded = self.engine.loaded
        if self.engine.state == "loading":
            raise ModelLoading
        if loaded is None:
            raise ModelNotLoaded
        if character not in (None, loaded.character):
            raise InvalidInput(
                {"character": [f"当前加载的角色是 {loaded.character}，请先用 POST /api/model/load 加载"]}
            )
        return loaded
