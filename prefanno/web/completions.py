"""What is loaded, in the shape of OpenAI's chat completions, so that other chat programs can talk to the character.

https://platform.openai.com/docs/api-reference/chat; thoughts are `reasoning_content`, as other servers name them.
Nothing that is said here is stored.
"""

import contextlib
import time
from collections.abc import AsyncGenerator
from pathlib import Path
from typing import Any

from aiohttp import web

from prefanno.chat import Stops
from prefanno.errors import PrefannoError
from prefanno.generation.config import Delta, Finished, Reply
from prefanno.generation.engine import Loaded
from prefanno.generation.job import Job
from prefanno.keys import LOOP
from prefanno.web import completion_schemas as schemas
from prefanno.web.endpoint import dumps, endpoint, reply
from prefanno.web.streaming import sent, unless_gone


@endpoint("Models that can be talked to", answer=schemas.Models)
async def models(request: web.Request) -> web.Response:
    """The loaded adapter, or the base model where none is on top; empty where nothing is loaded."""
    loop = request.app[LOOP]
    loaded = loop.engine.loaded
    model = {"object": "model", "created": 0, "owned_by": "prefanno"}
    data = [{"id": _name(loaded, loop.settings.model), **model}] if loaded else []
    return reply({"object": "list", "data": data})


@endpoint("Chat", body=schemas.CompletionSchema, answer=schemas.Completed, failures=(429, 503), keyed=False)
async def create(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Replies to a conversation, in one JSON or, with `stream`, word by word."""
    loop = request.app[LOOP]
    job, loaded = loop.chat(body["messages"], body, client=request.remote or "")
    shape = _Shape(job, loaded, _name(loaded, loop.settings.model), body["stop"])
    if body["stream"]:
        return await sent(request, shape.chunks(body["stream_options"]["include_usage"]), _failed)
    return reply(await unless_gone(request, shape.whole()))


class _Shape:
    """A job's events as OpenAI's clients know them."""

    def __init__(self, job: Job, loaded: Loaded, model: str, stops: list[str]) -> None:
        self._job, self._stops = job, stops
        self._about = {"id": f"chatcmpl-{job.id}", "created": int(time.time()), "model": model}
        self._thinks = loaded.config.enable_thinking and loaded.config.show_thinking
        self._written: dict[int, Reply] = {}

    async def whole(self) -> dict[str, Any]:
        """All of it at once."""
        self._written = dict(enumerate(await self._job.replies(), 1))
        choices = [self._choice(*each) for each in sorted(self._written.items())]
        return {**self._about, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def chunks(self, include_usage: bool) -> AsyncGenerator[bytes]:
        """What is new, as it comes. What was shown stays: of a candidate that is drawn again the first is."""
        stops = {ordinal: Stops(self._stops) for ordinal in range(1, self._job.request.config.num_responses + 1)}
        spoke, ended = set[int](), set[int]()
        async with contextlib.aclosing(self._job.events()) as events:
            for ordinal in stops:
                yield self._chunk(ordinal, {"role": "assistant", "content": ""})
            async for event in events:
                if isinstance(event, Finished):
                    self._written[event.ordinal] = event.reply
                    ended |= spoke & {event.ordinal}
                elif isinstance(event, Delta) and event.ordinal not in ended:
                    delta = self._delta(event, stops[event.ordinal])
                    spoke |= {event.ordinal} if "content" in delta else set()
                    if delta:
                        yield self._chunk(event.ordinal, delta)
        for ordinal, one in sorted(self._written.items()):
            if rest := stops[ordinal].take("" if ordinal in spoke else one.content, last=True):
                yield self._chunk(ordinal, {"content": rest})
            yield self._chunk(ordinal, {}, "stop" if stops[ordinal].hit else one.finish_reason)
        if include_usage:
            yield self._frame({"choices": [], "usage": self._usage()})
        yield b"data: [DONE]\n\n"

    def _choice(self, ordinal: int, one: Reply) -> dict[str, Any]:
        stops = Stops(self._stops)
        message: dict[str, Any] = {"role": "assistant", "content": stops.take(one.content, last=True)}
        if self._thinks and one.thinking:
            message["reasoning_content"] = one.thinking
        return {"index": ordinal - 1, "message": message, "finish_reason": "stop" if stops.hit else one.finish_reason}

    def _delta(self, delta: Delta, stops: Stops) -> dict[str, str]:
        said = {"content": stops.take(delta.content), "reasoning_content": delta.thinking if self._thinks else ""}
        return {name: text for name, text in said.items() if text}

    def _chunk(self, ordinal: int, delta: dict[str, str], reason: str | None = None) -> bytes:
        return self._frame({"choices": [{"index": ordinal - 1, "delta": delta, "finish_reason": reason}]})

    def _frame(self, content: dict[str, Any]) -> bytes:
        return f"data: {dumps({**self._about, 'object': 'chat.completion.chunk', **content})}\n\n".encode()

    def _usage(self) -> dict[str, int]:
        read, written = self._job.prompt_tokens, sum(one.tokens for one in self._written.values())
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _name(loaded: Loaded, base_model: str) -> str:
    return Path(loaded.adapter).name if loaded.adapter else base_model


def _failed(error: PrefannoError) -> bytes:
    return f"data: {dumps({'error': {'message': error.detail, 'type': 'server_error'}})}\n\n".encode()
