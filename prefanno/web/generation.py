"""Candidates for a message: in one JSON, or word by word as server-sent events."""

from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from prefanno.generation.config import Event
from prefanno.keys import LOOP
from prefanno.recording import Answered
from prefanno.web import answers
from prefanno.web.endpoint import done, endpoint, reply
from prefanno.web.schemas import CancelSchema, GenerateSchema
from prefanno.web.streaming import collected, generated, streamed


@endpoint(
    "Candidates for a message",
    body=GenerateSchema,
    answer=answers.Generated,
    failures=(409, 429, 503, 507),
    keyed=False,
)
async def generate(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Exactly `num_responses` candidates; a thought only where it is enabled and shown."""
    *_, answered = await collected(request, _events(request, body, streams=False))
    assert isinstance(answered, Answered)  # noqa: S101 - the last event is
    return reply(generated(answered))


@endpoint(
    "Candidates for a message, word by word",
    body=GenerateSchema,
    download="text/event-stream",
    failures=(409, 429, 503, 507),
    keyed=False,
)
async def stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Server-sent events: queued, delta, finished, at last done or error; docs/api.md describes them."""
    return await streamed(request, _events(request, body, streams=True))


@endpoint("Cancel a generation", body=CancelSchema, answer=answers.Done, failures=(404,))
async def cancel(request: web.Request, body: dict[str, Any]) -> web.Response:
    """By the id that its client chose, or that came with its first event; its client gets 503 or the event error."""
    request.app[LOOP].engine.cancel(body["request_id"])
    return done("生成已取消")


def _events(request: web.Request, body: dict[str, Any], *, streams: bool) -> AsyncGenerator[Event | Answered]:
    return request.app[LOOP].generate(**body, client=request.remote or "", streams=streams)
