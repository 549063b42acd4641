"""Candidates for a message: in one JSON, or word by word as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Coroutine
from dataclasses import asdict
from typing import Any, TypeVar

from aiohttp import web

from prefanno.errors import GenerationCancelled, PrefannoError
from prefanno.generation.config import Delta, Event, Finished, Reply
from prefanno.generation.engine import Loaded
from prefanno.keys import LOOP
from prefanno.loop import Answered
from prefanno.web import answers
from prefanno.web.endpoint import dumps, endpoint, reply
from prefanno.web.schemas import GenerateSchema

T = TypeVar("T")

GONE_S = 0.05  # how soon it is noticed that a client has left; a step on a CPU takes about as long
SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


@endpoint("Candidates for a message", body=GenerateSchema, answer=answers.Generated, failures=(429, 503, 507))
async def generate(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Exactly `num_responses` candidates; a thought only where it is enabled and shown."""

    async def last() -> Answered | Event:
        return [event async for event in _events(request, body, streams=False)][-1]

    answered = await _unless_gone(request, last())
    assert isinstance(answered, Answered)  # noqa: S101 - the last event is
    return reply(_generated(answered))


@endpoint(
    "Candidates for a message, word by word",
    body=GenerateSchema,
    download="text/event-stream",
    failures=(429, 503, 507),
)
async def stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Server-sent events: queued, delta, finished, at last done or error; docs/api.md describes them."""
    events = _events(request, body, streams=True)
    first = await anext(events)  # what is refused is refused as everywhere
    thinking = _shows_thinking(request.app[LOOP].engine.loaded)
    response = web.StreamResponse(headers=SSE)
    await response.prepare(request)

    async def send() -> None:
        try:
            await response.write(_frame(first, thinking=thinking))
            async for event in events:
                await response.write(_frame(event, thinking=thinking))
        except PrefannoError as error:
            await response.write(_event("error", {"detail": error.detail}))
        await response.write_eof()

    async with contextlib.aclosing(events):
        await _unless_gone(request, send())
    return response


def _events(request: web.Request, body: dict[str, Any], *, streams: bool) -> AsyncGenerator[Event | Answered]:
    return request.app[LOOP].generate(**body, client=request.remote or "", streams=streams)


async def _unless_gone(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Do it, but cancel it when the client leaves: aiohttp does not tell a handler. Raises GenerationCancelled then."""
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=GONE_S))[0]:
            if request.transport is None or request.transport.is_closing():
                raise GenerationCancelled
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


def _generated(answered: Answered) -> dict[str, Any]:
    generation, conversation = answered.generation, answered.generation.conversation_id
    thinking = _shows_thinking(answered.loaded)
    return {
        "responses": [
            {"id": ordinal, **_shown(reply, thinking=thinking)} for ordinal, reply in sorted(answered.replies.items())
        ],
        "generation_id": str(generation.id),
        "seed": generation.seed,
        "conversation_id": None if conversation is None else str(conversation),
    }


def _shown(reply: Reply, *, thinking: bool) -> dict[str, Any]:
    return ({"thinking": reply.thinking} if thinking and reply.thinking else {}) | {
        "content": reply.content,
        "finish_reason": reply.finish_reason,
        "tokens": reply.tokens,
        "mean_logprob": reply.mean_logprob,
    }


def _shows_thinking(loaded: Loaded | None) -> bool:
    return loaded is not None and loaded.config.enable_thinking and loaded.config.show_thinking


def _frame(event: Event | Answered, *, thinking: bool) -> bytes:
    match event:
        case Answered():
            return _event("done", _generated(event))
        case Finished(ordinal, reply):
            return _event("finished", {"id": ordinal, **_shown(reply, thinking=thinking)})
        case Delta():
            return _delta(event, thinking=thinking)
        case _:
            return _event("queued", asdict(event))


def _delta(delta: Delta, *, thinking: bool) -> bytes:
    said = {"thinking": delta.thinking} if thinking else {}
    said = {name: text for name, text in (said | {"content": delta.content}).items() if text or delta.replaces}
    replaces = {"replaces": True} if delta.replaces else {}
    return _event("delta", {"id": delta.ordinal, **said, **replaces}) if said else b""


def _event(name: str, data: dict[str, Any]) -> bytes:
    return f"event: {name}\ndata: {dumps(data)}\n\n".encode()
