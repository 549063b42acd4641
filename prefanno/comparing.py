"""Both sides of a comparison answer its prompts: the one adapter, then the other, on the loaded base model.

    start ─▶ answering ─▶ load the adapter ─▶ its replies ─▶ load the other ─▶ its replies ─▶ open
                 └─(stopped, a load, an unload, a run, the engine fails, the server ends)─▶ failed

Each reply is stored as it is written, and a round that has both can be voted on at once, also of one that failed.
Afterwards what was loaded before is loaded again. Meanwhile nobody may talk to what is loaded.
"""

import asyncio
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.ahead import Ahead
from prefanno.db import comparisons
from prefanno.db.comparisons import SIDES, Side
from prefanno.db.engine import Database
from prefanno.db.models import Comparison, Round
from prefanno.errors import Conflict, EngineFailed, InvalidInput, ModelLoading, PrefannoError
from prefanno.generation.config import SEEDS, GenerationConfig, Request
from prefanno.generation.engine import Engine, Loaded
from prefanno.matchup import Asking, Folders, matchup
from prefanno.prompting import Message
from prefanno.settings import Settings

AT_ONCE = 16  # prompts in the engine's queue
STOPPED, LOADED, UNLOADED, TRAINS = "已按请求停止", "已加载其他模型", "模型已卸载", "已开始训练"
ENDED = "服务器已停止"

log = logging.getLogger(__name__)


@dataclass
class _Answering:
    """The comparison that is answered now; `before` is what people talk to, and gets back afterwards."""

    comparison: Comparison
    before: Loaded | None
    work: asyncio.Task[None]
    task: asyncio.Task[None]  # sees `work` through
    reason: str | None = None  # why it is to end early
    gives_back: bool = True


class Comparing:
    """One comparison is answered at a time. `refuse` raises where the memory is a run's."""

    def __init__(
        self, settings: Settings, database: Database, engine: Engine, ahead: Ahead, refuse: Callable[[], None]
    ) -> None:
        self._settings, self._database, self._engine, self._ahead = settings, database, engine, ahead
        self._refuse_training = refuse
        self._preparing = asyncio.Lock()
        self._now: _Answering | None = None

    @property
    def answering(self) -> int | None:
        """The comparison that is answered now."""
        return self._now.comparison.id if self._now else None

    @property
    def in_force(self) -> Loaded | None:
        """What people talk to: what is loaded, or was before the comparison."""
        return self._now.before if self._now else self._engine.loaded

    def names(self, adapter: str) -> bool:
        """Whether the comparison that is answered now needs this adapter."""
        now = self._now
        return now is not None and adapter in (now.comparison.adapter, now.comparison.against)

    async def start(self, asking: Asking) -> Comparison:
        """Begin to answer. Raises InvalidInput, RegistryDamaged, ModelLoading, TrainingRunning or Conflict.

        Conflict where another is being answered, or no prompt is found that both sides have not seen.
        """
        if self._preparing.locked() or self._now is not None:
            raise Conflict("another comparison is being answered", "另一个对比正在生成回复，请等待结束或先停止")
        self._refuse()
        async with self._preparing:
            comparison, rounds, folders = await matchup(self._settings, self._database, self._engine.loaded, asking)
            comparison = await self._database.write(partial(_add, comparison, rounds))
            try:
                self._refuse()  # much may have happened
            except PrefannoError as error:
                await self._end(comparison.id, "failed", error.detail)
                raise
            self._begin(comparison, folders)
        return comparison

    def _begin(self, comparison: Comparison, folders: Folders) -> None:
        work = asyncio.create_task(self._answer(comparison, folders))
        task = asyncio.create_task(self._see_through(), name="answer a comparison")
        self._now = _Answering(comparison, self._engine.loaded, work, task)
        self._ahead.is_paused = True

    async def stop(self, number: int) -> None:
        """Write no more. Raises NotFound, and Conflict where it is not being answered."""
        async with self._database.read() as session:
            comparison = await comparisons.get(session, number)
        if comparison.state != "answering":
            raise Conflict(f"comparison {number} is not being answered", f"对比 {number} 没有在生成回复")
        if self.answering == number:
            await self.give_way(STOPPED, gives_back=True)
        else:  # left by a server that ended, or another server's, which goes on until it has written a reply
            await self._database.write(partial(comparisons.end, number=number, state="failed", reason=STOPPED))

    async def give_way(self, reason: str, *, gives_back: bool = False) -> None:
        """End what is being answered, if anything is, for somebody who needs the engine."""
        now = self._now
        if now is None:
            return
        now.gives_back, now.reason = gives_back, now.reason or reason
        now.work.cancel()
        await asyncio.wait([now.task])

    async def recover(self) -> None:
        """What was being answered when the server was killed has failed; of several servers nobody knows that."""
        if not self._database.shared:
            await self._database.write(partial(comparisons.recover, reason=ENDED))

    def _refuse(self) -> None:
        if self._engine.state == "loading":
            raise ModelLoading
        self._refuse_training()

    async def _see_through(self) -> None:
        """Whatever happens, it has an end, and what was loaded before is loaded again if that is wanted."""
        now = cast(_Answering, self._now)
        try:
            await asyncio.wait([now.work])
            await self._end(now.comparison.id, *_outcome(now))
            if now.gives_back:
                await self._give_back(now.before)
        except Exception:
            log.exception("the end of comparison %d could not be stored", now.comparison.id)
        finally:
            self._now, self._ahead.is_paused = None, False
            self._ahead.wake()

    async def _answer(self, comparison: Comparison, folders: Folders) -> None:
        config = GenerationConfig(**comparison.settings)
        for side in SIDES:
            await self._engine.load(config, folders[side], comparison.character)
            async with self._database.read() as session:
                rounds = await comparisons.rounds(session, comparison.id)
            room = asyncio.Semaphore(AT_ONCE)
            async with asyncio.TaskGroup() as group:
                for one in rounds:
                    group.create_task(self._reply(comparison, config, side, one, room))

    async def _reply(
        self, comparison: Comparison, config: GenerationConfig, side: Side, one: Round, room: asyncio.Semaphore
    ) -> None:
        """Both sides get the same seed. A prompt that the model cannot read is left out."""
        config = replace(config, system_prompt=one.system_prompt)
        seed, context = (comparison.seed + one.ordinal) % SEEDS, cast(list[Message], one.context)
        async with room:
            try:
                (reply,) = await self._engine.submit(Request(one.message, context, seed, config)).replies()
            except InvalidInput:
                await self._database.write(partial(comparisons.leave_out, comparison=comparison.id, number=one.id))
                return
        await self._database.write(
            partial(comparisons.reply, number=one.id, side=side, content=reply.content, thinking=reply.thinking)
        )

    async def _end(self, number: int, state: str, reason: str | None) -> None:
        await self._database.write(partial(comparisons.end, number=number, state=state, reason=reason))

    async def _give_back(self, before: Loaded | None) -> None:
        try:
            if before is None:
                await self._engine.unload()
            else:
                await self._engine.load(before.config, before.adapter, before.character)
        except PrefannoError:  # GET /api/model/status says it, too
            log.exception("what was loaded before the comparison could not be loaded again")


def _outcome(now: _Answering) -> tuple[str, str | None]:
    """State and reason of a comparison whose work has ended."""
    if now.work.cancelled():
        return "failed", now.reason or ENDED
    error = now.work.exception()
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if error is None:
        return "open", None
    log.warning("comparison %d ended early", now.comparison.id, exc_info=error)
    return "failed", error.detail if isinstance(error, PrefannoError) else EngineFailed.detail


async def _add(comparison: Comparison, rounds: Sequence[Round], session: AsyncSession) -> Comparison:
    session.add(comparison)
    await session.flush()
    for one in rounds:
        one.comparison_id = comparison.id
    session.add_all(rounds)
    return comparison
