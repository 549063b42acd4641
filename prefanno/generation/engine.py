"""The engine: a small state machine around the one thread that owns the model.

    unloaded ──load──▶ loading ──▶ loaded ──unload──▶ unloaded
                          └─(error)─▶ unloaded

Coroutines send work to the thread and await it. A load or an unload cancels the generations under way or waiting; each
ends at its next token with GenerationCancelled. Loading again with the adapter in use changes the settings only.
"""

import asyncio
import logging
import threading
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Literal, TypeVar

from prefanno.db.models import DEFAULT_CHARACTER
from prefanno.errors import EngineFailed, GenerationCancelled, ModelLoading, ModelNotLoaded, PrefannoError
from prefanno.generation import base_model
from prefanno.generation.config import GenerationConfig, Reply
from prefanno.generation.model import LocalModel
from prefanno.prompting import Message
from prefanno.settings import Settings

T = TypeVar("T")
State = Literal["unloaded", "loading", "loaded"]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Loaded:
    """What is loaded: its settings, the adapter's folder, whose it is, and where it runs."""

    config: GenerationConfig
    adapter: str | None
    character: str
    device: str
    context_length: int


@dataclass(frozen=True)
class Generated:
    """The replies to one message, and what they were made with."""

    replies: list[Reply]
    loaded: Loaded


class Engine:
    """The local engine. `load` and `unload` are called by one coroutine at a time as far as `state` allows it."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._cancelled = threading.Event()
        self._changing = asyncio.Lock()
        self._model: LocalModel | None = None  # this and the next belong to the thread
        self._current: Loaded | None = None
        self.state: State = "unloaded"
        self.loaded: Loaded | None = None

    async def load(self, config: GenerationConfig, adapter: str | None, character: str = DEFAULT_CHARACTER) -> Loaded:
        """Load, or set what is loaded to this configuration. Raises ModelLoading during a load, EngineFailed."""
        if self.state == "loading":
            raise ModelLoading
        self.state = "loading"
        self._cancel_generations()
        try:
            async with self._changing:
                self.loaded = await self._run(lambda: self._load(config, adapter, character))
        except BaseException:
            async with self._changing:
                await self._release()
            self.state = "unloaded"
            raise
        self.state = "loaded"
        return self.loaded

    async def unload(self) -> None:
        """Free the model's memory; waits for the end of a load. With nothing loaded: nothing."""
        self._cancel_generations()
        async with self._changing:
            if self.loaded is not None:
                await self._release()
                if self.state == "loaded":  # else the next load waits already
                    self.state = "unloaded"

    async def generate(self, message: str, context: list[Message], seed: int) -> Generated:
        """Answer with `num_responses` candidates.

        Raises ModelNotLoaded, GenerationCancelled, InvalidInput or EngineFailed.
        """
        if self.loaded is None:
            raise ModelNotLoaded
        cancelled = self._cancelled

        def check() -> None:
            if cancelled.is_set():
                raise GenerationCancelled

        def work() -> Generated:
            check()
            if self._model is None or self._current is None:
                raise GenerationCancelled
            replies = self._model.generate(self._current.config, message, context, seed, check)
            return Generated(replies, self._current)

        return await self._run(work)

    async def base_model(self) -> str:
        """What another process can load the base model from; converts the demo model where that was not done yet."""
        return await self._run(lambda: base_model.resolve(self._settings))

    async def close(self) -> None:
        """End the thread, within one token of a generation."""
        await self.unload()
        self._thread.shutdown(wait=True)

    def _cancel_generations(self) -> None:
        self._cancelled.set()
        self._cancelled = threading.Event()

    def _load(self, config: GenerationConfig, adapter: str | None, character: str) -> Loaded:
        if self._model is None:
            self._model = LocalModel(base_model.resolve(self._settings))
        if self._current is None or self._current.adapter != adapter:
            self._model.use(adapter)
        self._current = Loaded(config, adapter, character, self._model.device, self._model.context_length)
        return self._current

    def _free(self) -> None:
        model, self._model, self._current = self._model, None, None
        if model is not None:
            model.free()

    async def _release(self) -> None:
        self.loaded = None
        await self._run(self._free)

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, _contained, work)


def _contained(work: Callable[[], T]) -> T:
    """Run in the thread; an exception leaves it as text, because its traceback would hold every frame's tensors."""
    try:
        return work()
    except PrefannoError as error:
        raise error.with_traceback(None) from None
    except Exception as error:  # noqa: BLE001 - whatever a model or its libraries raise
        log.error("the engine failed:\n%s", traceback.format_exc())  # noqa: TRY400 - as text, see above
        reason = f"{type(error).__name__}: {error}"
    raise EngineFailed(f"the engine failed: {reason}", f"推理引擎出错：{reason}")
