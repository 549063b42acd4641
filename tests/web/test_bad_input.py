"""Bad input on every route that takes JSON: refused with the field named, nothing stored, never a 500."""

import asyncio
import io
import json
import zlib
from collections.abc import AsyncIterator
from typing import Any

import pytest
from marshmallow import Schema

from prefanno.keys import LOOP
from prefanno.web import schemas
from prefanno.web.body import BODY, MAX_BYTES
from prefanno.web.endpoint import SPEC
from prefanno.web.fields import StrictSchema
from prefanno.web.routes import ROUTES
from tests.conftest import Client
from tests.web.conftest import CHINESE, PAIR, address, counts, faults, refused, shared

CHAT = "/v1/chat/completions"
JSON = {"Content-Type": "application/json"}
POSTS = {address(route.path): getattr(route.handler, SPEC) for route in ROUTES if route.method == "POST"}
SPECS = {path: spec for path, spec in POSTS.items() if not spec.upload}
VALID: dict[str, dict[str, Any]] = {
    "/api/generate": {"message": "你好"},
    "/api/generate/stream": {"message": "你好"},
    "/api/generate/cancel": {"request_id": "a"},
    "/api/prompts": {"prompts": [{"message": "你好"}]},
    "/api/prompts/delete": {"ids": [1]},
    "/api/prompts/return": {"ids": [1]},
    "/api/dataset/add": PAIR,
    "/api/choices": {"generation_id": "1", "verdict": "skip"},
    "/api/annotations/1/edit": {"note": "好"},
    "/api/annotations/delete": {"ids": [1]},
    "/api/annotations/restore": {"ids": [1]},
    "/api/characters": {"slug": "mia", "name": "Mia"},
    "/api/characters/li/edit": {"name": "离"},
    CHAT: {"messages": [{"role": "user", "content": "你好"}]},
    "/api/adapters/promote": {"adapter": "base"},
    "/api/adapters/note": {"adapter": "li-simpo-1", "note": "好"},
    "/api/adapters/delete": {"adapter": "li-simpo-1"},
    "/api/comparisons": {"adapter": "li-simpo-1"},
    "/api/comparisons/1/votes": {"round": 1, "vote": "tie"},
}
FIELDS = [(path, name) for path, spec in SPECS.items() for name in spec.body().fields]
# No bad input: nothing left out, 0, fields that are ignored, any name, nothing to stop at.
EVERYTHING = {(name, "object") for name in ("where", "lora", "stream_options")} | {("stream_options", "unknown object")}
EVERYTHING |= {(name, "tiny") for name in ("held_out", "temperature", "top_p")}
EVERYTHING |= {(name, blank) for name in ("model", "stop") for blank in ("empty", "blank")}
refused_early = pytest.mark.sqlite_only  # before any database is asked
routes = pytest.mark.parametrize("path", SPECS)
strict_routes = pytest.mark.parametrize(
    "path", [path for path in SPECS if path != CHAT]
)  # it ignores what it does not know

# JSON texts that no field of any route takes.
HOSTILE = {
    "NaN": "NaN",
    "Infinity": "Infinity",
    "-Infinity": "-Infinity",
    "1e999": "1e999",
    "2^63": str(2**63),
    "-2^63-1": str(-(2**63) - 1),
    "400 digits": "9" * 400,
    "tiny": "1e-999",
    "empty": '""',
    "blank": '" \\t\\n\\u3000\\u00a0"',
    "NUL": '"\\u0000"',
    "NUL inside": '"a\\u0000b"',
    "lone surrogate": '"\\ud800"',
    "lone surrogate inside": '"a\\udfffb"',
    "swapped surrogates": '"\\udc00\\ud800"',
    "object": "{}",
    "unknown object": '{"a": 1}',
    "list of lists": "[[]]",
    "nested": "[" * 400 + "]" * 400,
}
# Bodies that are at fault as a whole.
NO_OBJECT = {
    "list": b"[]",
    "number": b"1",
    "string": b'"a"',
    "null": b"null",
    "true": b"true",
    "NaN": b"NaN",
    "list of objects": b"[{}]",
    "blank": b" ",
    "open": b"{",
    "trailing comma": b'{"a": 1,}',
    "trailing text": b"{} {}",
    "comment": b"{} // none",
    "single quotes": b"{'a': 1}",
    "no quotes": b"{a: 1}",
    "raw control": b'{"a": "\n"}',
    "bad escape": b'{"a": "\\x"}',
    "10,000 digits": b'{"a": ' + b"9" * 10_000 + b"}",
    "deep lists": b"[" * 100_000,
    "deep closed lists": b"[" * 100_000 + b"]" * 100_000,
    "deep objects": b'{"a":' * 100_000 + b"1" + b"}" * 100_000,
    "deep in a field": b'{"context": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
    "bad UTF-8": b'{"message": "\xff"}',
    "cut UTF-8": b'{"message": "\xe4\xbd"}',
    "UTF-8 surrogate": b'{"message": "\xed\xa0\x80"}',
    "overlong UTF-8": b'{"message": "\xc0\x80"}',
    "UTF-16": '{"message": "a"}'.encode("utf-16"),
    "UTF-32": '{"message": "a"}'.encode("utf-32"),
    "BOM": b"\xef\xbb\xbf{}",
    "NUL": b"\x00",
    "NUL after": b"{}\x00",
    "form": b"message=a&mode=single",
}


def _is_request(thing: object) -> bool:
    return isinstance(thing, type) and issubclass(thing, StrictSchema)


async def _state(client: Client) -> tuple[tuple[int, int], str, bool]:
    loop = client.app[LOOP]
    return await counts(client), loop.engine.state, loop.training.running


async def _post(client: Client, path: str, body: bytes, headers: dict[str, str] = JSON) -> Any:
    return await client.post(path, data=io.BytesIO(body), headers=headers)


@refused_early
@shared
@pytest.mark.parametrize(("path", "field"), FIELDS, ids=str)
async def test_a_value_that_no_field_takes(standing: Client, path: str, field: str) -> None:
    """What JSON, a database or a float cannot hold is refused with its field, and only that."""
    before = await _state(standing)
    others = {key: value for key, value in VALID.get(path, {}).items() if key != field}
    for name, value in HOSTILE.items():
        if (field, name) in EVERYTHING and (path == CHAT or field not in ("temperature", "top_p")):
            continue
        body = json.dumps(others)[:-1] + (", " if others else "") + f'"{field}": {value}}}'
        named = await faults(await _post(standing, path, body.encode()))
        assert {fault.split(".")[0] for fault in named} == {field}, name
    assert await _state(standing) == before


@refused_early
@shared
@strict_routes
async def test_an_unknown_field(standing: Client, path: str) -> None:
    """A field that the route does not know is refused by its name, whatever it holds."""
    before = await _state(standing)
    for name in ("unknown", "", " ", "Message", "__class__", "a.b", "你", "\0", "\ud800", "x" * 100_000):
        for value in (1, None, {"a": [1]}):
            answer = await _post(standing, path, json.dumps({**VALID.get(path, {}), name: value}).encode())
            [named] = await faults(answer)
            assert named == (name[:100] if name != "\ud800" else "\\ud800")
    assert await _state(standing) == before


@refused_early
@shared
@routes
async def test_a_body_that_is_no_object(standing: Client, path: str) -> None:
    """A body that is not one JSON object in UTF-8 is refused as a whole."""
    before = await _state(standing)
    for name, body in NO_OBJECT.items():
        assert await faults(await _post(standing, path, body)) == {BODY}, name
    assert await _state(standing) == before


@shared
@strict_routes
async def test_a_body_that_is_too_large(standing: Client, path: str) -> None:
    """1 MiB is read; a byte more is refused, also where it comes in chunks or compressed."""
    before = await _state(standing)
    body = json.dumps({**VALID.get(path, {}), "unknown": ""}).encode()
    assert await faults(await _post(standing, path, body.ljust(MAX_BYTES))) == {"unknown"}
    await refused(await _post(standing, path, body.ljust(MAX_BYTES + 1)), 413, "请求体过大")
    compressed = zlib.compress(body.ljust(20 << 20))
    await refused(await _post(standing, path, compressed, JSON | {"Content-Encoding": "deflate"}), 413, "请求体过大")
    await refused(await standing.post(path, data=_chunks(body.ljust(2 << 20)), headers=JSON), 413, "请求体过大")
    assert await _state(standing) == before


async def _chunks(body: bytes) -> AsyncIterator[bytes]:
    for start in range(0, len(body), 1 << 16):
        yield body[start : start + (1 << 16)]


async def test_a_body_of_one_mebibyte_is_stored(client: Client) -> None:
    """An annotation that fills its body to the last byte is taken."""
    answer = await _post(client, "/api/dataset/add", json.dumps(PAIR).encode().ljust(MAX_BYTES))
    assert answer.status == 200 and await counts(client) == (1, 0)


@refused_early
@shared
@pytest.mark.parametrize(
    "kind", ["text/plain", "", "application/x-www-form-urlencoded", "application/jsonp", "json", "/"]
)
@routes
async def test_a_body_of_another_type(standing: Client, path: str, kind: str) -> None:
    """A body that is not declared as JSON is refused, whatever it holds."""
    before = await _state(standing)
    body = json.dumps(VALID.get(path, {})).encode()
    await refused(await _post(standing, path, body, {"Content-Type": kind}), 415, "请求体必须是 application/json")
    assert await _state(standing) == before


@shared
@pytest.mark.parametrize("kind", ["application/json;charset=utf-8", "APPLICATION/JSON", "application/json; x=y"])
async def test_json_may_be_declared_in_other_words(standing: Client, kind: str) -> None:
    """Case and parameters of the content type do not matter."""
    assert await faults(await _post(standing, "/api/generate", b"{}", {"Content-Type": kind})) == {"message"}


@shared
@pytest.mark.parametrize("path", [path for path, spec in SPECS.items() if spec.body_required])
async def test_no_body_where_one_is_needed(standing: Client, path: str) -> None:
    """Without a body the answer is 415, with a declared but empty one 400; nothing is stored."""
    before = await _state(standing)
    await refused(await standing.post(path), 415, "请求体必须是 application/json")
    assert await faults(await standing.post(path, headers=JSON)) == {BODY}
    assert await _state(standing) == before


@shared
@pytest.mark.parametrize("encoding", ["gzip", "deflate"])
@routes
async def test_a_body_that_is_not_encoded_as_it_says(standing: Client, path: str, encoding: str) -> None:
    """A body that cannot be decompressed is refused as a whole."""
    before = await _state(standing)
    headers = JSON | {"Content-Encoding": encoding, "Connection": "close"}
    answer = await _post(standing, path, b"\x1f\x8b\x08" + b"{}" * 50, headers)
    assert await faults(answer) == {BODY}
    assert await _state(standing) == before


@shared
@routes
async def test_a_body_that_is_broken_off(standing: Client, path: str, caplog: pytest.LogCaptureFixture) -> None:
    """A client that leaves in the middle of its body is no incident, and nothing is done."""
    before = await _state(standing)
    _, writer = await asyncio.open_connection("127.0.0.1", standing.port)
    head = f"POST {path} HTTP/1.1\r\nHost: localhost:1\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n"
    writer.write(head.encode() + b'{"message": ')
    await writer.drain()
    await asyncio.sleep(0.02)
    writer.transport.abort()
    await asyncio.sleep(0.02)
    assert await _state(standing) == before
    assert "incident" not in caplog.text


@pytest.mark.parametrize("schema", [schema for schema in vars(schemas).values() if _is_request(schema)])
def test_every_field_speaks_chinese(schema: type[Schema]) -> None:
    """No field, and no field within one, has one of marshmallow's English texts left for what can happen to it."""
    fields: list[Any] = list(schema().fields.values())
    while fields:
        field = fields.pop()
        fields += [inner for inner in (getattr(field, "inner", None),) if inner]
        fields += list(field.schema.fields.values()) if hasattr(field, "schema") else []
        happens = {"required": field.required, "null": not field.allow_none, "invalid": not hasattr(field, "schema")}
        for kind in (kind for kind, can in happens.items() if can):
            assert CHINESE.search(field.error_messages[kind]), (field, kind)


@shared
async def test_what_is_refused_leaves_the_server_whole(standing: Client) -> None:
    """After all of the above, the server still answers."""
    assert (await (await standing.get("/health")).json())["status"] == "ok"


@shared
@routes
async def test_a_parameter_in_the_address_is_refused(standing: Client, path: str) -> None:
    """A POST takes its fields in the body: one in the address would be ignored, and something else changed."""
    answer = await standing.post(f"{path}?character=li", json=VALID.get(path, {}))
    assert await faults(answer) == {"character"}
