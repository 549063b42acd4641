"""Conversations: in multi mode each generation is a turn of a tree.

    turn 1 ── choice ──▶ turn 2 ── choice ──▶ turn 4
                  └────▶ turn 3               (a branch: turn 1 was gone on from twice)

A turn keeps the words it was generated after, so choosing anew at an earlier turn changes no later one; going on from
that turn afterwards is a new branch.
"""

from collections.abc import Sequence
from typing import cast

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation.dataset import sides
from prefanno.db import annotations, generations
from prefanno.db.models import Annotation, Candidate, Generation
from prefanno.errors import InvalidInput, NotFound
from prefanno.prompting import Message


async def going_on(session: AsyncSession, parent: int, character: str) -> tuple[Generation, list[Message]]:
    """The turn, and the words before a next one. Raises InvalidInput where it has no best reply to go on from."""
    turn = await session.get(Generation, parent)
    if turn is None or turn.character != character or turn.conversation_id is None:
        raise InvalidInput({"parent": [f"没有可继续的对话轮次 {parent}"]})
    annotation = await annotations.of_generation(session, parent)
    best = sides(annotation)[0] if annotation is not None and annotation.deleted_at is None else None
    if best is None:
        raise InvalidInput({"parent": [f"轮次 {parent} 还没有选定的回复，请先选择"]})
    assert annotation is not None  # noqa: S101 - it has the best reply
    question: Message = {"role": "user", "content": annotation.human_input}
    return turn, [*cast(list[Message], annotation.context), question, {"role": "assistant", "content": best.content}]


async def place(session: AsyncSession, turn: Generation, parent: Generation | None) -> None:
    """Store a generation; in multi mode as a turn after its parent, or as the first of a conversation."""
    turn.parent_id = parent.id if parent else None
    session.add(turn)
    await session.flush()
    if turn.settings["mode"] == "multi":
        turn.conversation_id = parent.conversation_id if parent else turn.id


async def read(
    session: AsyncSession, conversation: int
) -> list[tuple[Generation, Sequence[Candidate], Annotation | None]]:
    """All turns of a conversation, oldest first, with their candidates and choices not deleted. Raises NotFound."""
    turns = await generations.turns(session, conversation)
    if not turns:
        raise NotFound(f"there is no conversation {conversation}", f"未找到对话 {conversation}")
    by_turn: dict[int, list[Candidate]] = {turn.id: [] for turn, _ in turns}
    for candidate in await generations.candidates(session, list(by_turn)):
        by_turn[candidate.generation_id].append(candidate)
    return [(turn, by_turn[turn.id], choice if choice and not choice.deleted_at else None) for turn, choice in turns]
