"""What happens while candidates are written, as a client gets it: at last all in one JSON, or as server-sent events."""

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Callable, Coroutine, Mapping
from dataclasses import asdict
from typing import Any, TypeVar

from aiohttp import web

from prefanno.db.models import Prompt
from prefanno.errors import ClientGone, PrefannoError
from prefanno.generation.config import Delta, Event, Finished, Reply
from prefanno.keys import LOOP
from prefanno.loop import Asking
from prefanno.recording import Answered
from prefanno.web.endpoint import dumps

T = TypeVar("T")
Events = AsyncGenerator[Event | Asking | Answered]

GONE_S = 0.05  # how soon it is noticed that a client has left; a step on a CPU takes about as long
SSE = {"Content-Type": "text/event-stream; charset=utf-8", "Cache-Control": "no-cache", "X-Accel-Buffering": "no"}


async def collected(request: web.Request, events: Events) -> list[Event | Asking | Answered]:
    """All that happens. Raises ClientGone when the client leaves."""

    async def collect() -> list[Event | Asking | Answered]:
        found = []
        async with contextlib.aclosing(events):
            async for event in events:
                if _is_gone(request):  # what was to be given at once is not theirs
                    raise ClientGone
                found.append(event)
        return found

    return await unless_gone(request, collect())


async def streamed(request: web.Request, events: Events) -> web.StreamResponse:
    """A stream of all that happens; what is refused at once is refused as everywhere. Raises ClientGone."""

    async def frames() -> AsyncGenerator[bytes]:
        async with contextlib.aclosing(events):
            first = await anext(events)
            thinking = _shows_thinking(_settings(request, first))
            yield _frame(first, thinking=thinking)
            async for event in events:
                yield _frame(event, thinking=thinking)

    return await sent(request, frames(), lambda error: _event("error", {"detail": error.detail}))


async def sent(
    request: web.Request, frames: AsyncGenerator[bytes], failed: Callable[[PrefannoError], bytes]
) -> web.StreamResponse:
    """A stream of these frames; what ends them after the first one is a frame, too. Raises as the first frame does."""
    response = web.StreamResponse(headers=SSE)
    async with contextlib.aclosing(frames):
        first = await anext(frames)

        async def send() -> None:
            await response.prepare(request)
            try:
                await response.write(first)
                async for frame in frames:
                    await response.write(frame)
            except PrefannoError as error:
                await response.write(failed(error))
            await response.write_eof()

        try:
            await unless_gone(request, send())
        except ConnectionResetError:  # it left while something was written to it
            raise ClientGone from None
    return response


async def unless_gone(request: web.Request, work: Coroutine[Any, Any, T]) -> T:
    """Do it, but cancel it when the client leaves. Raises ClientGone then.

    aiohttp would tell all handlers or none (`handler_cancellation`), and a load or a write shall end in any case.
    """
    task = asyncio.ensure_future(work)
    try:
        while not (await asyncio.wait({task}, timeout=GONE_S))[0]:
            if _is_gone(request):
                raise ClientGone
        return task.result()
    finally:
        task.cancel()
        await asyncio.wait({task})


def _is_gone(request: web.Request) -> bool:
    return request.transport is None or request.transport.is_closing()


def generated(answered: Answered) -> dict[str, Any]:
    """The candidates as clients see them."""
    generation, conversation = answered.generation, answered.generation.conversation_id
    thinking = _shows_thinking(generation.settings)
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


def _settings(request: web.Request, first: Event | Asking | Answered) -> Mapping[str, Any]:
    """What the candidates are made with."""
    loaded = request.app[LOOP].engine.loaded
    return first.settings if isinstance(first, Asking) else asdict(loaded.config) if loaded else {}


def _shows_thinking(settings: Mapping[str, Any]) -> bool:
    """Whether clients see the thoughts of what was generated with these settings."""
    return bool(settings.get("enable_thinking") and settings.get("show_thinking"))


def prompt_view(prompt: Prompt) -> dict[str, Any]:
    """A prompt as the person sees it."""
    return {"id": prompt.id, "message": prompt.message, "context": prompt.context}


def _frame(event: Event | Asking | Answered, *, thinking: bool) -> bytes:
    match event:
        case Asking():
            return _event("prompt", prompt_view(event.prompt))
        case Answered():
            return _event("done", generated(event))
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
