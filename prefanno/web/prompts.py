"""The queue of prompts: adding to it, looking at it, and taking the next one with its candidates."""

from typing import Any

from aiohttp import web
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno import prompts
from prefanno.db import prompts as queue
from prefanno.db.models import Prompt
from prefanno.keys import LOOP
from prefanno.loop import Asking
from prefanno.prompts import NewPrompt
from prefanno.recording import Answered
from prefanno.web import prompt_answers as answers
from prefanno.web.endpoint import done, endpoint
from prefanno.web.prompt_schemas import NewPromptsSchema, NextSchema, PromptsSchema, ReturnSchema, SomePromptsSchema
from prefanno.web.streaming import Events, collected, generated, prompt_view, streamed
from prefanno.web.writing import written


@endpoint("Queue up prompts", body=NewPromptsSchema, answer=answers.QueuedUp, failures=(409, 503, 507))
async def add(request: web.Request, body: dict[str, Any]) -> web.Response:
    """In this order, behind those that are there; one that is in the queue already is left out."""
    loop = request.app[LOOP]

    async def work(session: AsyncSession) -> dict[str, Any]:
        slug = (await loop.meant(session, body["character"])).slug
        added = await prompts.add(session, slug, [NewPrompt(**one) for one in body["prompts"]])
        return {"ids": added.ids, "duplicates": added.duplicates, "counts": await queue.counts(session, slug)}

    data = await written(request, work)
    loop.ahead.wake()
    return done(f"已加入 {len(data['ids'])} 条提示", data)


@endpoint("The queue", query=PromptsSchema, answer=answers.PromptQueue, failures=(503,))
async def show(request: web.Request, query: dict[str, Any]) -> web.Response:
    """In the order given; the next page is beyond `next`."""
    limit = query["limit"]
    loop = request.app[LOOP]
    async with loop.database.read() as session:
        slug = (await loop.meant(session, query["character"])).slug
        found = await queue.page(session, slug, query["state"], query["after"], limit + 1)
        counts = await queue.counts(session, slug)
    following = found[limit - 1][0].id if len(found) > limit else None
    items = [_view(prompt, decided) for prompt, decided in found[:limit]]
    return done("提示队列", {"items": items, "next": following, "counts": counts})


@endpoint("Remove prompts", body=SomePromptsSchema, answer=answers.Changed, failures=(404, 409, 503, 507))
async def remove(request: web.Request, body: dict[str, Any]) -> web.Response:
    """With the candidates that nobody has seen; generations that people saw stay, and choices."""

    async def work(session: AsyncSession) -> dict[str, Any]:
        return {"changed": await prompts.remove(session, body["ids"])}

    data = await written(request, work)
    request.app[LOOP].ahead.wake()
    return done(f"已移除 {data['changed']} 条提示", data)


@endpoint("Put prompts back", body=ReturnSchema, answer=answers.Changed, failures=(404, 409, 503, 507))
async def put_back(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Prompts that were taken, or failed, by their ids, or all that were taken and not decided on."""
    loop = request.app[LOOP]

    async def work(session: AsyncSession) -> dict[str, Any]:
        numbers = body["ids"]
        if numbers is None:
            numbers = await queue.undecided(session, (await loop.meant(session, body["character"])).slug)
        return {"changed": await prompts.put_back(session, numbers, loop.being_answered)}

    data = await written(request, work)
    loop.ahead.wake()
    return done(f"已放回 {data['changed']} 条提示", data)


@endpoint(
    "The next prompt with its candidates",
    body=NextSchema,
    body_required=False,
    answer=answers.NextPrompt,
    failures=(409, 429, 503, 507),
    keyed=False,
)
async def take(request: web.Request, body: dict[str, Any]) -> web.Response:
    """At once where they were written ahead of time, else when they are written."""
    asking, *_, answered = await collected(request, _events(request, body, streams=False))
    assert isinstance(asking, Asking)  # noqa: S101 - the first event is
    assert isinstance(answered, Answered)  # noqa: S101 - the last is
    return done("下一条提示", {"prompt": prompt_view(asking.prompt)} | generated(answered))


@endpoint(
    "The next prompt with its candidates, word by word",
    body=NextSchema,
    body_required=False,
    download="text/event-stream",
    failures=(409, 429, 503, 507),
    keyed=False,
)
async def stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Server-sent events: prompt, then as of a generation; those that are ready are finished at once."""
    return await streamed(request, _events(request, body, streams=True))


def _events(request: web.Request, body: dict[str, Any], *, streams: bool) -> Events:
    loop, client = request.app[LOOP], request.remote or ""
    return loop.next(body["order"], body["character"], client=client, streams=streams)


def _view(prompt: Prompt, decided: bool) -> dict[str, Any]:
    return {
        "id": prompt.id,
        "message": prompt.message,
        "context": prompt.context,
        "state": prompt.state,
        "reason": prompt.reason,
        "disagreement": prompt.disagreement,
        "generation_id": None if prompt.generation_id is None else str(prompt.generation_id),
        "decided": decided,
        "created_at": prompt.created_at.isoformat(timespec="seconds") + "Z",
    }
