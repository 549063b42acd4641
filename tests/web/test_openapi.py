"""The OpenAPI document: what it promises is what the server does."""

import io
import re
from typing import Any

import pytest

from prefanno.keys import LOOP
from prefanno.web.endpoint import SPEC
from prefanno.web.routes import ROUTES
from tests.conftest import Client
from tests.web.conftest import LASTING, PAIR, TALK, MakeTrainer, address, shared
from tests.web.json_schema import misfits, resolved
from tests.web.test_model import DEFAULTS, OUTSIDE, WITHIN

DECLARED = {
    (re.sub(r":[^}]+", "", route.path), route.method.lower()): getattr(route.handler, SPEC, None) for route in ROUTES
}
FILES = ("/api/export", "/api/train/log", "/api/generate/stream", "/api/prompts/next/stream")  # and events
NO_BODY = ("/api/model/unload",)

TEXT: dict[str, Any] = {"type": "string"}
TRUTH: dict[str, Any] = {"type": "boolean", "default": True}
MAYBE: dict[str, Any] = {"type": ["string", "null"]}
MODE: dict[str, Any] = {"type": "string", "enum": ["single", "multi"]}
CONTEXT: dict[str, Any] = {"type": ["array", "null"]}
FALSE: dict[str, Any] = {"type": "boolean", "default": False}
RUN = {"type": "integer", "minimum": 1}
PLAN: dict[str, dict[str, Any]] = {
    "character": TEXT,
    "stages": {"type": "array", "minItems": 1, "maxItems": 8},
    "adapter": TEXT,
    "lora": {},
    "max_length": {"type": "integer", "default": 2048, "minimum": 16, "maximum": 131_072},
    "seed": {"type": "integer", "default": 0, "minimum": 0, "maximum": 2**31 - 1},
    "held_out": {"type": "number", "default": 0.1, "minimum": 0.0, "maximum": 0.5},
    "guard": TRUTH,
    "activation_checkpointing": FALSE,
}
REQUESTS: dict[str, tuple[dict[str, dict[str, Any]], set[str]]] = {
    "/api/model/load": (
        {
            "enable_thinking": TRUTH,
            "show_thinking": TRUTH,
            "mode": MODE | {"default": "single"},
            "num_responses": {"type": "integer", "default": 4, "minimum": 2, "maximum": 10},
            "temperature": {"type": "number", "default": 0.85, "minimum": 0.1, "maximum": 2.0},
            "top_p": {"type": "number", "default": 0.9, "minimum": 0.1, "maximum": 1.0},
            "top_k": {"type": "integer", "default": 50, "minimum": 1, "maximum": 100},
            "repetition_penalty": {"type": "number", "default": 1.15, "minimum": 1.0, "maximum": 2.0},
            "max_new_tokens": {"type": "integer", "default": 512, "minimum": 64, "maximum": 2048},
            "system_prompt": TEXT,
            "character": TEXT,
            "adapter": TEXT,
        },
        set(),
    ),
    "/api/generate": (
        {"message": TEXT, "context": CONTEXT, "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
        | {"parent": TEXT, "character": TEXT, "request_id": TEXT},
        {"message"},
    ),
    "/api/generate/stream": (
        {"message": TEXT, "context": CONTEXT, "seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}}
        | {"parent": TEXT, "character": TEXT, "request_id": TEXT},
        {"message"},
    ),
    "/api/dataset/add": (
        {"mode": MODE, "human_input": TEXT, "chosen": TEXT, "rejected": MAYBE, "context": CONTEXT}
        | {"chosen_thinking": MAYBE, "rejected_thinking": MAYBE, "character": TEXT},
        {"mode", "human_input", "chosen"},
    ),
    "/api/comparisons": (
        {
            "adapter": TEXT,
            "against": TEXT,
            "character": TEXT,
            "prompts": {"type": "array", "minItems": 1, "maxItems": 200},
        }
        | {"count": {"type": "integer", "default": 40, "minimum": 1, "maximum": 200}}
        | {"seed": {"type": "integer", "minimum": 0, "maximum": 2**31 - 1}, "promote": FALSE},
        {"adapter"},
    ),
    "/api/comparisons/{id}/votes": (
        {"round": RUN, "vote": {"type": "string", "enum": ["left", "right", "tie"]}, "annotator": MAYBE},
        {"round", "vote"},
    ),
    "/api/train/check": (PLAN, set()),
    "/api/train/start": (
        PLAN
        | {
            "rebuild": {"type": "integer", "minimum": 1},
            "resume": {"type": "integer", "minimum": 1},
            "unload_model": FALSE,
            "reload_model": FALSE,
        },
        set(),
    ),
    "/api/train/stop": ({"save": FALSE}, set()),
    **{path: ({}, set()) for path in NO_BODY},
}


async def _document(client: Client) -> dict[str, Any]:
    answer = await client.get("/openapi.json")
    assert answer.status == 200 and answer.content_type == "application/json"
    document: dict[str, Any] = await answer.json()
    return document


def _request_schema(document: dict[str, Any], path: str) -> dict[str, Any]:
    return resolved(document, document["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"])


@shared
async def test_it_lists_every_endpoint_and_no_other(standing: Client) -> None:
    """The document is of OpenAPI 3.1 and holds each declared route with its summary, each under a name of its own."""
    document = await _document(standing)
    assert re.fullmatch(r"3\.1\.\d+", document["openapi"])
    assert document["info"]["title"] and document["info"]["version"]
    listed = {(path, method): spec for path, item in document["paths"].items() for method, spec in item.items()}
    declared = {key: spec for key, spec in DECLARED.items() if spec is not None}
    assert {key: spec["summary"] for key, spec in listed.items()} == {
        key: spec.summary for key, spec in declared.items()
    }
    assert len({spec["operationId"] for spec in listed.values()}) == len(listed)
    assert {path for path, method in DECLARED if path.startswith(("/api", "/v1", "/health"))} == set(document["paths"])


@shared
async def test_it_names_every_failure(standing: Client) -> None:
    """Each endpoint names the walls and the bug, those with input the refusals of input, all of the one shape."""
    document = await _document(standing)
    for path, item in document["paths"].items():
        for operation in item.values():
            expected = {"200", "403", "421", "500"}
            queried = any(parameter["in"] == "query" for parameter in operation.get("parameters", ()))
            expected |= {"400"} if "requestBody" in operation or queried else set()
            expected |= {"413"} if "requestBody" in operation else set()
            expected |= {"415"} if "application/json" in operation.get("requestBody", {}).get("content", ()) else set()
            assert expected <= set(operation["responses"]), path
            for status, answer in operation["responses"].items():
                if status == "200" and "application/json" not in answer["content"]:
                    assert path in FILES
                    continue
                schema = answer["content"]["application/json"]["schema"]
                assert resolved(document, schema)["type"] == "object"
                assert (schema["$ref"] == "#/components/schemas/Failure") == (status != "200")


@shared
@pytest.mark.parametrize("path", REQUESTS)
async def test_a_request_is_described_as_the_contract_has_it(standing: Client, path: str) -> None:
    """Types, ranges, defaults and required fields are the contract's, and no other field is allowed."""
    document = await _document(standing)
    properties, required = REQUESTS[path]
    schema = _request_schema(document, path)
    assert schema["additionalProperties"] is False
    assert set(schema.get("required", [])) == required
    assert set(schema["properties"]) == set(properties)
    for name, expected in properties.items():
        described = schema["properties"][name]
        assert {key: described.get(key) for key in expected} == expected, name
        assert described.get("default") == expected.get("default"), name
    assert document["paths"][path]["post"]["requestBody"].get("required", False) == bool(required)


@shared
async def test_turns_and_parameters_are_described(standing: Client) -> None:
    """A turn has a role and a content and nothing else; the list's parameters have their ranges and defaults."""
    document = await _document(standing)
    for path in ("/api/generate", "/api/dataset/add"):
        turn = resolved(document, _request_schema(document, path)["properties"]["context"]["items"])
        assert turn["additionalProperties"] is False and set(turn["required"]) == {"role", "content"}
        assert turn["properties"]["role"]["enum"] == ["user", "assistant"]
    parameters = document["paths"]["/api/dataset/list"]["get"]["parameters"]
    described = {parameter["name"]: parameter for parameter in parameters}
    assert set(described) == {"dataset", "limit", "character"}
    assert all(parameter["in"] == "query" and not parameter.get("required") for parameter in parameters)
    assert described["limit"]["schema"] == {"type": "integer", "default": 10, "minimum": 1, "maximum": 1000}
    assert described["dataset"]["schema"]["enum"] == ["preference", "roleplay"]
    assert described["dataset"]["schema"]["default"] == "preference"


def _queried(operation: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Type and default of each parameter; all stand in the query."""
    assert {parameter["in"] for parameter in operation["parameters"]} == {"query"}
    schemas = {parameter["name"]: parameter["schema"] for parameter in operation["parameters"]}
    said = {name: {key: schema.get(key) for key in ("type", "default")} for name, schema in schemas.items()}
    return {name: {key: value for key, value in one.items() if value is not None} for name, one in said.items()}


@shared
async def test_files_in_and_out_are_described(standing: Client) -> None:
    """An export answers with an archive, an import takes a file of any kind; neither takes an Idempotency-Key."""
    paths = (await _document(standing))["paths"]
    file = {"schema": {"type": "string", "format": "binary"}}
    export, load = paths["/api/export"]["get"], paths["/api/import"]["post"]
    assert export["responses"]["200"]["content"] == {"application/zip": file}
    assert load["requestBody"] == {"required": True, "content": {"application/octet-stream": file}}
    form, truth = {"type": "string", "default": "sharegpt"}, {"type": "boolean", "default": False}
    asked = {"format": form, "character": TEXT}
    assert _queried(export) == asked | {"run": {"type": "integer"}}
    assert _queried(load) == asked | dict.fromkeys(("dry_run", "skip_bad", "skip_near"), truth)
    assert set(export["responses"]) == {"200", "400", "403", "404", "409", "421", "500", "503", "507"}
    assert set(load["responses"]) == {"200", "400", "403", "413", "415", "421", "500", "503", "507"}


@shared
async def test_the_described_ranges_are_the_enforced_ones(standing: Client) -> None:
    """What the server takes fits the description of a load; what it refuses does not, blank texts apart."""
    document = await _document(standing)
    schema = _request_schema(document, "/api/model/load")
    for name, values in WITHIN.items():
        assert not [value for value in values if misfits(document, schema, {name: value})], name
    for name, values in OUTSIDE.items():
        refused = [value for value in values if not (name == "system_prompt" and isinstance(value, str))]
        assert all(misfits(document, schema, {name: value}) for value in refused), name
    assert misfits(document, schema, DEFAULTS | {"unknown": 1})


async def test_real_answers_fit(make_trainer: MakeTrainer) -> None:  # noqa: PLR0915 - one walk, a line a call
    """The answers of a walk through the whole loop, successes and refusals, are as the document says."""
    client = await make_trainer(LASTING)
    document = await _document(client)
    visited: set[str] = set()

    async def call(method: str, path: str, status: int = 200, **arguments: Any) -> None:
        answer = await client.request(method, address(path), **arguments)
        body = await answer.json()
        assert answer.status == status, body
        visited.add(path)
        described = document["paths"][path][method.lower()]["responses"][str(status)]
        assert misfits(document, described["content"]["application/json"]["schema"], body) == []

    await call("GET", "/health")
    await call("GET", "/api/model/status")
    await call("POST", "/api/generate", 400, json={"message": "你好"})
    await call("POST", "/api/generate/stream", 400, json={"message": "你好"})
    await call("POST", "/api/model/load", 400, json={"top_k": 0, "x": 1})
    await call("POST", "/api/model/load", json={"system_prompt": "你是离。", "max_new_tokens": 64})
    await call("GET", "/api/model/status")
    await call("POST", "/api/generate", json={"message": "你好"})
    await call(
        "POST", "/api/generate", 413, data=io.BytesIO(b" " * (1 << 21)), headers={"Content-Type": "application/json"}
    )
    await call("POST", "/api/generate/cancel", 404, json={"request_id": "gone"})
    await call("POST", "/api/prompts", json={"prompts": [{"message": "你是谁？"}]})
    await call("GET", "/api/prompts")
    await call("POST", "/api/prompts/next")
    await call("POST", "/api/prompts/next", 409)
    await call("POST", "/api/prompts/next/stream", 409)
    await call("POST", "/api/prompts/return", json={"undecided": True})
    await call("POST", "/api/prompts/delete", json={"ids": [1]})
    await call("POST", "/api/dataset/add", json=PAIR)
    await call("POST", "/api/dataset/add", json=TALK | {"context": [{"role": "assistant", "content": "嗯"}]})
    await call("POST", "/api/dataset/add", 415, data=b"{}")
    await call("GET", "/api/dataset/stats")
    await call("GET", "/api/dataset/list")
    await call("GET", "/api/dataset/list", params={"dataset": "roleplay"})
    await call("GET", "/api/dataset/list", 400, params={"limit": "0"})
    await call("POST", "/api/characters", json={"slug": "mia", "name": "Mia", "system_prompt": "You are Mia."})
    await call("POST", "/api/characters", 400, json={"slug": "mia", "name": "Mia"})
    await call("POST", "/api/characters/{slug}/edit", json={"name": "离"})
    await call("POST", "/api/characters/{slug}/select")
    await call("GET", "/api/characters")
    await call("POST", "/api/model/load", json={"mode": "multi", "system_prompt": "你是离。", "max_new_tokens": 64})
    await call("POST", "/api/generate", json={"message": "在吗", "seed": 7})
    await call("POST", "/api/choices", json={"generation_id": "3", "verdict": "best", "chosen": 1, "note": "好"})
    await call("POST", "/api/choices", 400, json={"generation_id": "3", "verdict": "best", "chosen": 9})
    await call("POST", "/api/choices", 404, json={"generation_id": "99", "verdict": "skip"})
    await call("POST", "/api/generate", json={"message": "出个谜语", "parent": "3"})
    await call("GET", "/api/conversations")
    await call("GET", "/api/conversations/{id}", 404)
    await call("GET", "/api/annotations", params={"q": "你是"})
    await call("GET", "/api/annotations", 400, params={"q": "你"})
    await call("GET", "/api/annotations/{id}")
    await call("POST", "/api/annotations/{id}/edit", json={"note": "好", "reasons": ["暖"]})
    await call("GET", "/api/annotations/{id}/history")
    await call("POST", "/api/annotations/delete", json={"ids": [1]})
    await call("POST", "/api/annotations/{id}/edit", 409, json={"note": "更好"})
    await call("POST", "/api/history/undo")
    await call("POST", "/api/history/redo")
    await call("POST", "/api/history/redo", 409)
    await call("POST", "/api/annotations/restore", json={"where": {"q": "你是"}})
    await call("GET", "/api/formats")
    await call("GET", "/api/export", 400, params={"format": "nonsense"})
    await call("GET", "/api/export", 404, params={"run": "99"})
    await call("POST", "/api/import", params={"format": "csv", "dry_run": "true", "skip_bad": "true"}, data=b"\xff")
    await call("POST", "/api/import", 400, data=b"[5]")
    await call("POST", "/api/train/start", 400)
    await call("GET", "/v1/models")
    await call("POST", "/v1/chat/completions", json={"messages": [{"role": "user", "content": "你好"}]})
    await call("POST", "/v1/chat/completions", 400, json={"messages": []})
    await call("POST", "/api/model/unload")
    await call("GET", "/api/train/status")
    await call("GET", "/api/train/metrics", 404)
    await call("GET", "/api/train/log", 404)
    await call("POST", "/api/train/check")
    await call("POST", "/api/train/start")
    await call("GET", "/api/train/metrics")
    await call("GET", "/api/train/status")
    await call("POST", "/api/train/stop")
    await call("GET", "/api/train/status")
    await call("POST", "/api/train/stop", 400)
    await call("GET", "/api/train/runs")
    await call("GET", "/api/adapters")
    await call("POST", "/api/adapters/promote", json={"adapter": "base"})
    await call("POST", "/api/adapters/promote", 400, json={"adapter": "li-simpo-9"})
    await call("POST", "/api/adapters/rollback")
    await call("POST", "/api/adapters/rollback", 409)
    await call("POST", "/api/adapters/note", 404, json={"adapter": "li-simpo-9", "note": "好"})
    await call("POST", "/api/adapters/delete", 404, json={"adapter": "li-simpo-9"})
    await call("POST", "/api/comparisons", 400, json={"adapter": "li-simpo-9"})
    await call("GET", "/api/comparisons")
    await call("GET", "/api/comparisons/{id}", 404)
    await call("GET", "/api/comparisons/{id}/next", 404)
    await call("POST", "/api/comparisons/{id}/votes", 404, json={"round": 1, "vote": "tie"})
    await call("POST", "/api/comparisons/{id}/stop", 404)
    await client.app[LOOP].database.close()
    await call("GET", "/health")
    await call("GET", "/api/dataset/stats", 503)
    assert visited == set(document["paths"])
