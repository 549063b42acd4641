"""Prompts that neither side of a comparison was trained on: what a run held out, then the queue."""

import asyncio
from collections.abc import Iterator, Sequence
from typing import cast

from prefanno.db import prompts
from prefanno.db.engine import Database
from prefanno.errors import Conflict, NotFound
from prefanno.prompting import Message
from prefanno.settings import Settings
from prefanno.training import adapters, held_out, registry
from prefanno.training.adapters import Adapter
from prefanno.training.held_out import Asked, Split
from prefanno.training.run_folder import folder_of

QUEUED = 2000  # prompts of the queue that are looked through


async def prompts_for(
    settings: Settings, database: Database, sides: Sequence[str], queue: Sequence[Asked], count: int
) -> list[Asked]:
    """At most `count` prompts for these adapters, the one on trial first. Raises Conflict where there is none.

    First what the run of the first held out, each with its own persona, then those of the queue.
    """
    every = {one.name: one for one in await asyncio.to_thread(adapters.every, settings.outputs)}
    own = next((name for name in sides if name != registry.BASE), None)
    splits = {one.name: await _split(settings, database, one) for name in sides for one in _lineage(every, name)}
    seen = {key for split in splits.values() for key in split.trained}
    held = splits[own].held_out if own in splits else []
    unseen: dict[str, Asked] = {}
    for one in (*held, *queue):
        if one.key not in seen:
            unseen.setdefault(one.key, one)
    chosen = list(unseen.values())[:count]
    if not chosen:
        raise Conflict(
            f"there is no prompt that neither {sides[0]} nor {sides[1]} was trained on; give `prompts`, or queue some",
            "没有双方都未训练过的提示：请在请求中提供 prompts，或先通过 POST /api/prompts 添加",
        )
    return chosen


async def queued(database: Database, character: str, persona: str) -> list[Asked]:
    """What waits in the character's queue, to be asked with this persona. Nothing is taken from it."""
    async with database.read() as session:
        waiting = [
            *await prompts.following(session, character, "waiting", "given", QUEUED),
            *await prompts.following(session, character, "ready", "given", QUEUED),
        ]
    return [Asked(persona, cast(list[Message], one.context), one.message) for one in waiting]


async def _split(settings: Settings, database: Database, adapter: Adapter) -> Split:
    try:
        folder = await folder_of(settings, database, adapter.run)
    except NotFound:  # its run was removed, or is another database's
        return Split([], frozenset())
    return await asyncio.to_thread(held_out.read, folder)


def _lineage(every: dict[str, Adapter], name: str | None) -> Iterator[Adapter]:
    """The adapter and those it goes back to, as far as they are still there."""
    passed: set[str] = set()
    while name is not None and name in every and name not in passed:
        passed.add(name)
        yield every[name]
        name = every[name].card.get("start")
