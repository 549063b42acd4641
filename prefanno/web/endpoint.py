"""An endpoint: a handler with what validates its input and what describes it, in one place.

    @endpoint("Load the model", body=LoadSchema, body_required=False, answer=answers.Loaded)
    async def load(request, body): ...

The handler gets the validated body or query; `openapi.py` reads the same declaration.
"""

import json
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from functools import partial, wraps

from aiohttp import web
from marshmallow import Schema

from prefanno.errors import NotFound
from prefanno.web import body as bodies
from prefanno.web.fields import MAX_DIGITS

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
SPEC = "__endpoint__"


@dataclass(frozen=True)
class Spec:
    """What the OpenAPI document says of an endpoint; `failures` are the statuses it can end in beside 200.

    `upload`: the body is a file, which the handler reads itself. `download` is the type of an answer that is a file.
    `keyed`: where it can end in a conflict, that may be one of the Idempotency-Key.
    """

    summary: str
    answer: type[Schema] | None
    body: type[Schema] | None
    body_required: bool
    query: type[Schema] | None
    failures: tuple[int, ...]
    upload: bool
    download: str | None
    keyed: bool


def endpoint(  # noqa: PLR0913 - a declaration; all but the first are named
    summary: str,
    *,
    answer: type[Schema] | None = None,
    body: type[Schema] | None = None,
    body_required: bool = True,
    query: type[Schema] | None = None,
    failures: tuple[int, ...] = (),
    upload: bool = False,
    download: str | None = None,
    keyed: bool = True,
) -> Callable[[Callable[..., Awaitable[web.StreamResponse]]], Handler]:
    """Declare a handler that takes the request and, where there is a schema, the validated body or query."""

    def declare(handler: Callable[..., Awaitable[web.StreamResponse]]) -> Handler:
        @wraps(handler)
        async def handle(request: web.Request) -> web.StreamResponse:
            if body is not None:
                return await handler(request, await bodies.read(request, body(), body_required))
            if query is not None:
                return await handler(request, bodies.parameters(query(), request.query))
            return await handler(request)

        setattr(handle, SPEC, Spec(summary, answer, body, body_required, query, failures, upload, download, keyed))
        return handle

    return declare


def number(request: web.Request) -> int:
    """The id in the path. Raises NotFound where no database could hold it."""
    digits = request.match_info["id"]
    if len(digits) > MAX_DIGITS:
        raise NotFound
    return int(digits)


dumps = partial(json.dumps, ensure_ascii=False)  # UTF-8, readable as it is


def reply(content: object, status: int = 200, headers: Mapping[str, str] | None = None) -> web.Response:
    """A JSON answer."""
    return web.Response(text=dumps(content), status=status, headers=headers, content_type="application/json")


def done(message: str, data: object = None) -> web.Response:
    """The envelope of a command that succeeded; `data` is absent where there is none."""
    content: dict[str, object] = {"status": "success", "message": message}
    return reply(content if data is None else content | {"data": data})


def as_openai(detail: str, *, client: bool) -> dict[str, str]:
    """An error as OpenAI's clients know it; `client`: by its fault."""
    return {"message": detail, "type": "invalid_request_error" if client else "server_error"}
