"""Candidates for a message: in one JSON, or word by word as server-sent events."""

from collections.abc import AsyncGenerator
from typing import Any

from aiohttp import web

from prefanno.generation.config import Event
from prefanno.keys import LOOP
from prefanno.recording import Answered
from prefanno.web import answers
from prefanno.web.endpoint import endpoint, reply
from prefanno.web.schemas import GenerateSchema
from prefanno.web.streaming import collected, generated, streamed


@endpoint("Candidates for a message", body=GenerateSchema, answer=answers.Generated, failures=(429, 503, 507))
async def generate(request: web.Request, body: dict[str, Any]) -> web.Response:
    """Exactly `num_responses` candidates; a thought only where it is enabled and shown."""
    *_, answered = await collected(request, _events(request, body, streams=False))
    assert isinstance(answered, Answered)  # noqa: S101 - the last event is
    return reply(generated(answered))


@endpoint(
    "Candidates for a message, word by word",
    body=GenerateSchema,
    download="text/event-stream",
    failures=(429, 503, 507),
)
async def stream(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Server-sent events: queued, delta, finished, at last done or error; docs/api.md describes them."""
    return await streamed(request, _events(request, body, streams=True))


def _events(request: web.Request, body: dict[str, Any], *, streams: bool) -> AsyncGenerator[Event | Answered]:
    return request.app[LOOP].generate(**body, client=request.remote or "", streams=streams)
