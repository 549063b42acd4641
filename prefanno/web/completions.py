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
from prefanno.errors import InvalidInput, PrefannoError
from prefanno.generation.config import Delta, Finished, Reply
from prefanno.generation.engine import Loaded
from prefanno.generation.job import Job
from prefanno.keys import LOOP
from prefanno.web import completion_schemas as schemas
from prefanno.web.endpoint import as_openai, dumps, endpoint, reply
from prefanno.web.streaming import sent, unless_gone


@endpoint("Models that can be talked to", answer=schemas.Models)
async def models(request: web.Request) -> web.Response:
    """The loaded adapter, or the base model where none is on top; empty where nothing is loaded."""
    loop = request.app[LOOP]
    loaded = loop.comparing.in_force
    model = {"object": "model", "created": 0, "owned_by": "prefanno"}
    data = [{"id": _name(loaded, loop.settings.model), **model}] if loaded else []
    return reply({"object": "list", "data": data})


@endpoint("Chat", body=schemas.CompletionSchema, answer=schemas.Completed, failures=(429, 503), keyed=False)
async def create(request: web.Request, body: dict[str, Any]) -> web.StreamResponse:
    """Replies to a conversation, in one JSON or, with `stream`, word by word."""
    loop = request.app[LOOP]
    job, loaded = loop.chat(body["messages"], body, client=request.remote or "")
    shape = _Shape(job, _name(loaded, loop.settings.model), body["stop"])
    if body["stream"]:
        return await sent(request, shape.chunks(body["stream_options"]["include_usage"]), _failed)
    return reply(await unless_gone(request, shape.whole()))


class _Said:
    """One candidate as its client has it. What was shown stays: of one that is drawn again that is the first text."""

    def __init__(self, stops: list[str], *, thinks: bool) -> None:
        self._stops, self._thinks = Stops(stops), thinks
        self._content = self._thought = ""  # as written, not cut
        self._reason: str | None = None

    @property
    def has_stopped(self) -> bool:
        """Whether nothing more of it will be shown."""
        return self._stops.hit

    @property
    def finish_reason(self) -> str | None:
        """Why it ended; None where it has not."""
        return "stop" if self.has_stopped else self._reason

    def take(self, delta: Delta) -> dict[str, str]:
        """What is new to the client in this."""
        if self._reason is not None:
            return {}
        thought, content = delta.thinking, delta.content
        if delta.replaces:  # it stands for all before: what goes on from that is new, anything else comes too late
            thought = thought[len(self._thought) :] if thought.startswith(self._thought) else ""
            content = content[len(self._content) :] if content.startswith(self._content) else ""
        self._thought, self._content = self._thought + thought, self._content + content
        return self._shown(thought, self._stops.take(content))

    def finish(self, one: Reply) -> None:
        """It is written; where nothing of its text came before, it may be drawn again."""
        if self._content:
            self._reason = self._reason or one.finish_reason

    def rest(self, one: Reply) -> dict[str, str]:
        """What is left to be shown when all is written: all of it, where it did not come word by word."""
        self._reason = self._reason or one.finish_reason
        thought = "" if self._thought else one.thinking or ""
        return self._shown(thought, self._stops.take("" if self._content else one.content, last=True))

    def _shown(self, thought: str, content: str) -> dict[str, str]:
        said = {"reasoning_content": thought if self._thinks else "", "content": content}
        return {name: text for name, text in said.items() if text}


class _Shape:
    """A job's events as OpenAI's clients know them."""

    def __init__(self, job: Job, model: str, stops: list[str]) -> None:
        config = job.request.config
        thinks = config.enable_thinking and config.show_thinking
        self._job = job
        self._about = {"id": f"chatcmpl-{job.id}", "created": int(time.time()), "model": model}
        self._said = {number: _Said(stops, thinks=thinks) for number in range(1, config.num_responses + 1)}

    async def whole(self) -> dict[str, Any]:
        """All of it at once."""
        messages = {number: {"role": "assistant", "content": ""} for number in self._said}
        async with contextlib.aclosing(self._news()) as news:
            async for number, delta in news:
                for name, text in delta.items():
                    messages[number][name] = messages[number].get(name, "") + text
        choices = [
            {"index": number - 1, "message": message, "finish_reason": self._said[number].finish_reason}
            for number, message in messages.items()
        ]
        return {**self._about, "object": "chat.completion", "choices": choices, "usage": self._usage()}

    async def chunks(self, include_usage: bool) -> AsyncGenerator[bytes]:
        """What is new, as it comes."""
        try:
            for number in self._said:
                yield self._chunk(number, {"role": "assistant", "content": ""})
            async with contextlib.aclosing(self._news()) as news:
                async for number, delta in news:
                    yield self._chunk(number, delta)
            for number, said in self._said.items():
                yield self._chunk(number, {}, said.finish_reason)
            if include_usage:
                yield self._frame({"choices": [], "usage": self._usage()})
            yield b"data: [DONE]\n\n"
        finally:
            self._job.cancel()  # also where its client left before it was asked for anything

    async def _news(self) -> AsyncGenerator[tuple[int, dict[str, str]]]:
        """What is new of which candidate, until all are written, or none has anything more to show."""
        written: dict[int, Reply] = {}
        async with contextlib.aclosing(self._job.events()) as events:
            async for event in events:
                if isinstance(event, Finished):
                    written[event.ordinal] = event.reply
                    self._said[event.ordinal].finish(event.reply)
                elif isinstance(event, Delta) and (delta := self._said[event.ordinal].take(event)):
                    yield event.ordinal, delta
                if all(said.has_stopped for said in self._said.values()):
                    return
        for number, one in sorted(written.items()):
            if delta := self._said[number].rest(one):
                yield number, delta

    def _chunk(self, number: int, delta: dict[str, str], reason: str | None = None) -> bytes:
        return self._frame({"choices": [{"index": number - 1, "delta": delta, "finish_reason": reason}]})

    def _frame(self, content: dict[str, Any]) -> bytes:
        return f"data: {dumps({**self._about, 'object': 'chat.completion.chunk', **content})}\n\n".encode()

    def _usage(self) -> dict[str, int]:
        read, written = self._job.prompt_tokens, self._job.tokens
        return {"prompt_tokens": read, "completion_tokens": written, "total_tokens": read + written}


def _name(loaded: Loaded, base_model: str) -> str:
    return Path(loaded.adapter).name if loaded.adapter else base_model


def _failed(error: PrefannoError) -> bytes:
    return f"data: {dumps({'error': as_openai(error.detail, client=isinstance(error, InvalidInput))})}\n\n".encode()
