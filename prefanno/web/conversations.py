"""Conversations of multi mode, as trees of turns."""

from collections.abc import Sequence
from typing import Any

from aiohttp import web

from prefanno.annotation import conversations, dataset
from prefanno.db import characters, generations
from prefanno.db.models import Annotation, Candidate, Generation
from prefanno.keys import LOOP
from prefanno.web import annotation_answers as answers
from prefanno.web.endpoint import done, endpoint, number
from prefanno.web.schemas import PageSchema


@endpoint("Conversations", query=PageSchema, answer=answers.Conversations, failures=(503,))
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """The newest first, each with its first message and its number of turns."""
    limit = query["limit"]
    async with request.app[LOOP].database.read() as session:
        slug = (await characters.get(session, query["character"])).slug
        found = await generations.conversations(session, slug, query["before"], limit + 1)
    items = [
        {"id": str(first.id), "message": first.message, "turns": turns, "created_at": _time(first)}
        for first, turns in found[:limit]
    ]
    following = found[limit - 1][0].id if len(found) > limit else None
    return done("对话", {"items": items, "next": following})


@endpoint("One conversation", answer=answers.Conversation, failures=(404, 503))
async def read(request: web.Request) -> web.Response:
    """All turns, oldest first; `parent` makes a tree of them."""
    async with request.app[LOOP].database.read() as session:
        turns = await conversations.read(session, number(request))
    return done("对话", {"turns": [_turn(*turn) for turn in turns]})


def _turn(turn: Generation, candidates: Sequence[Candidate], choice: Annotation | None) -> dict[str, Any]:
    return {
        "generation_id": str(turn.id),
        "parent": None if turn.parent_id is None else str(turn.parent_id),
        "message": turn.message,
        "context": turn.context,
        "candidates": [{"id": one.ordinal, "thinking": one.thinking, "content": one.content} for one in candidates],
        "choice": None if choice is None else _choice(choice),
        "created_at": _time(turn),
    }


def _choice(annotation: Annotation) -> dict[str, Any]:
    best, _ = dataset.sides(annotation)
    return {"id": annotation.id, "verdict": annotation.verdict, "chosen": best.content if best else None}


def _time(turn: Generation) -> str:
    return turn.created_at.isoformat(timespec="seconds") + "Z"
