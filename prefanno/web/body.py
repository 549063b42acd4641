"""The one strict JSON reader for all routes.

It lets values through that JSON does not have (NaN) or databases cannot hold (lone surrogates, NUL), so that the
schemas can refuse them with the name of their field; what has no field (bad UTF-8, bad JSON, deep nesting) is refused
here.
"""

import json
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from marshmallow import Schema, ValidationError
from multidict import MultiMapping

from prefanno.errors import InvalidInput

MAX_BYTES = 1 << 20
BODY = "body"  # the "field" of a fault that belongs to the body as a whole


async def read(request: web.Request, schema: Schema, required: bool) -> Any:
    """The validated body; of an optional one that is absent, the schema's defaults.

    Raises InvalidInput, HTTPUnsupportedMediaType, HTTPRequestEntityTooLarge.
    """
    if request.query:  # silently ignored, it would change something else than was meant
        raise InvalidInput({_printable(name): ["请放在请求体中，不要放在 URL 里"] for name in request.query})
    try:
        raw = await request.read()
    except (HttpProcessingError, web.RequestPayloadError, ConnectionError):
        raise InvalidInput({BODY: ["无法读取：内容与 Content-Encoding 或长度不符"]}) from None
    if not raw and not required:
        return validated(schema, {})
    if request.content_type != "application/json":
        raise web.HTTPUnsupportedMediaType
    return validated(schema, parse(raw))


def parse(raw: bytes) -> Any:
    """Parse UTF-8 JSON. Raises InvalidInput."""
    try:
        return json.loads(raw.decode("utf-8"))
    except UnicodeDecodeError as error:
        raise InvalidInput({BODY: [f"不是有效的 UTF-8（第 {error.start} 字节）"]}) from None
    except RecursionError:
        raise InvalidInput({BODY: ["JSON 嵌套过深"]}) from None
    except json.JSONDecodeError as error:
        raise InvalidInput({BODY: [f"不是有效的 JSON（第 {error.lineno} 行第 {error.colno} 列）"]}) from None
    except ValueError:
        raise InvalidInput({BODY: ["JSON 中的整数过大"]}) from None


def validated(schema: Schema, data: Any) -> Any:
    """What the schema loads from the data. Raises InvalidInput with every field at fault."""
    try:
        return schema.load(data)
    except ValidationError as error:
        raise InvalidInput(_flat(error.messages_dict)) from None


def parameters(schema: Schema, query: MultiMapping[str]) -> Any:
    """The validated query, each parameter given once. Raises InvalidInput."""
    if repeated := {_printable(name): ["只能出现一次"] for name in query if len(query.getall(name)) > 1}:
        raise InvalidInput(repeated)
    return validated(schema, dict(query))


def _flat(messages: dict[Any, Any], prefix: str = "") -> dict[str, list[str]]:
    """Nested messages by dotted field: {"context": {0: {"role": [...]}}} → {"context.0.role": [...]}."""
    found: dict[str, list[str]] = {}
    for name, value in messages.items():
        field = prefix.rstrip(".") or BODY if name == "_schema" else f"{prefix}{_printable(name)}"
        if isinstance(value, dict):
            found |= _flat(value, f"{field}.")
        else:
            found[field] = [str(text) for text in value]
    return found


def _printable(name: object) -> str:
    """A field's name that can be sent back, also where a client made it of surrogates or of a megabyte."""
    return str(name).encode("utf-8", "backslashreplace").decode()[:100]
