"""Candidates over HTTP, from the tiny random model: what is tested is the contract, not what a model says."""

import asyncio
import json
import re
from typing import Any

import pytest
from aiohttp import ClientTimeout

from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web import answers
from tests.conftest import Client
from tests.looking import fetch
from tests.web.conftest import accepted, busy, faults, refused, shared, until, waiting

LOAD, GENERATE = "/api/model/load", "/api/generate"
SHORT = {"system_prompt": "你是离。", "max_new_tokens": 64, "num_responses": 2}
LONG = SHORT | {"enable_thinking": False, "max_new_tokens": 400, "num_responses": 10}
THINK_TAG = re.compile("</?think", re.IGNORECASE)
MAX_SEED = 2**31 - 1


def _turns(*roles: str) -> list[dict[str, str]]:
    return [{"role": role, "content": "嗯。"} for role in roles]


async def _generate(client: Client, body: dict[str, Any], **settings: Any) -> Any:
    await accepted(await client.post(LOAD, json=SHORT | settings), answers.Loaded)
    return await accepted(await client.post(GENERATE, json={"message": "你是谁？"} | body), answers.Generated)


@shared
@pytest.mark.parametrize("number", [2, 10])
async def test_generate_answers_with_as_many_candidates_as_asked_for(standing: Client, number: int) -> None:
    """There are exactly num_responses candidates, numbered from 1, none empty, none with a think tag."""
    body = await _generate(standing, {"seed": 7}, num_responses=number)
    assert [candidate["id"] for candidate in body["responses"]] == list(range(1, number + 1))
    assert all(candidate["content"].strip() for candidate in body["responses"])
    assert not THINK_TAG.search(str(body["responses"]))
    assert body["seed"] == 7 and body["generation_id"]


@shared
@pytest.mark.parametrize("setting", ["enable_thinking", "show_thinking"])
async def test_thinking_is_absent_where_it_is_off_or_hidden(standing: Client, setting: str) -> None:
    """With thinking disabled or hidden no candidate has the key; with both on, some have it."""
    body = await _generate(standing, {"seed": 7})
    assert any("thinking" in candidate for candidate in body["responses"])
    body = await _generate(standing, {"seed": 7}, **{setting: False})
    assert not any("thinking" in candidate for candidate in body["responses"])


@shared
@pytest.mark.parametrize("seed", [0, MAX_SEED])
async def test_the_same_seed_gives_the_same_candidates(standing: Client, seed: int) -> None:
    """A seed at either end of its range is taken, answered, and repeats the candidates; each answer has its own id."""
    first, second = await _generate(standing, {"seed": seed}), await _generate(standing, {"seed": seed})
    assert first["seed"] == second["seed"] == seed
    assert first["responses"] == second["responses"]
    assert first["generation_id"] != second["generation_id"]


@shared
async def test_without_a_seed_a_random_one_is_used_and_answered(standing: Client) -> None:
    """The seed that prefanno draws differs from call to call, and repeats the candidates when given."""
    first, second = await _generate(standing, {}), await _generate(standing, {})
    assert first["seed"] != second["seed"]
    assert 0 <= first["seed"] <= MAX_SEED
    again = await _generate(standing, {"seed": first["seed"]})
    assert again["responses"] == first["responses"]


@shared
@pytest.mark.parametrize("seed", [-1, MAX_SEED + 1, 2**63, "7", 7.0, True, None, [7]])
async def test_a_seed_outside_its_range_is_refused(standing: Client, seed: Any) -> None:
    """A seed that is no int of 0 to 2^31-1, null included, is refused by its name."""
    assert await faults(await standing.post(GENERATE, json={"message": "你好", "seed": seed})) == {"seed"}


@shared
@pytest.mark.parametrize("message", ["", " \n\u3000", None, 1, True, ["你好"]])
async def test_a_message_must_be_a_text(standing: Client, message: Any) -> None:
    """An empty, blank or mistyped message is refused by its name, as is none."""
    assert await faults(await standing.post(GENERATE, json={"message": message})) == {"message"}
    assert await faults(await standing.post(GENERATE, json={})) == {"message"}


@shared
@pytest.mark.parametrize(
    "context", [_turns("assistant"), _turns("user", "assistant"), _turns("assistant", "user", "assistant")]
)
async def test_context_is_honoured(standing: Client, context: list[dict[str, str]]) -> None:
    """Earlier turns that alternate and end with the assistant change what is generated, also in single mode."""
    with_context = await _generate(standing, {"seed": 7, "context": context})
    without = await _generate(standing, {"seed": 7})
    assert with_context["responses"] != without["responses"]


@shared
async def test_no_context_null_and_an_empty_one_are_the_same(standing: Client) -> None:
    """Context that is absent, null or [] means none."""
    given: list[dict[str, Any]] = [{}, {"context": None}, {"context": []}]
    bodies = [await _generate(standing, {"seed": 7} | context) for context in given]
    assert bodies[0]["responses"] == bodies[1]["responses"] == bodies[2]["responses"]


@shared
@pytest.mark.parametrize(
    ("context", "field"),
    [
        (_turns("user"), "context"),
        (_turns("assistant", "user"), "context"),
        (_turns("assistant", "assistant"), "context"),
        (_turns("user", "user", "assistant"), "context"),
        ("", "context"),
        ({}, "context"),
        (False, "context"),
        (_turns("system", "assistant"), "context.0.role"),
        ([{"role": "assistant"}], "context.0.content"),
        ([{"content": "嗯。"}], "context.0.role"),
        ([{"role": "assistant", "content": ""}], "context.0.content"),
        ([{"role": "assistant", "content": None}], "context.0.content"),
        ([{"role": "assistant", "content": "嗯。", "name": "离"}], "context.0.name"),
        ([*_turns("user"), "嗯。"], "context.1"),
        ([*_turns("user"), None], "context.1"),
    ],
)
async def test_a_context_that_is_no_conversation_is_refused(standing: Client, context: Any, field: str) -> None:
    """Turns that do not alternate, do not end with the assistant, or are malformed are refused where they are."""
    assert await faults(await standing.post(GENERATE, json={"message": "你好", "context": context})) == {field}


async def test_generate_needs_a_model(client: Client) -> None:
    """Without a model, generating is refused, and the cure named."""
    body = await refused(await client.post(GENERATE, json={"message": "你好"}), 400, "模型未加载")
    assert "POST /api/model/load" in body["detail"]


@shared
async def test_what_does_not_fit_the_model_is_refused_with_the_counts(standing: Client) -> None:
    """Nothing is cut: too long a message and context are refused, with their tokens, the reply's and the limit."""
    await accepted(await standing.post(LOAD, json=SHORT), answers.Loaded)
    context = [{"role": "assistant", "content": "a" * 300}]
    answer = await standing.post(GENERATE, json={"message": "b" * 300, "context": context})
    body = await refused(answer, 400, "请求参数错误")
    assert set(body["errors"]) == {"message"}
    numbers = [int(number) for number in re.findall(r"\d+", body["detail"])]
    assert {64, 512} < set(numbers) and 600 < max(numbers) < 1000


@pytest.mark.parametrize("path", [LOAD, "/api/model/unload"])
async def test_a_load_or_an_unload_cancels_a_generation(client: Client, path: str) -> None:
    """The client of a generation that a load or an unload ended gets 503, and nothing of it is stored."""
    await accepted(await client.post(LOAD, json=SHORT), answers.Loaded)
    with busy(client):
        generation = asyncio.create_task(client.post(GENERATE, json={"message": "你好"}))
        await until(lambda: waiting(client) >= 1)
        change = asyncio.create_task(client.post(path))
        await refused(await generation, 503, "生成已取消")
    await accepted(await change, answers.Done)
    assert client.app[LOOP].engine.state == ("loaded" if path == LOAD else "unloaded")


def _events(text: str) -> list[tuple[str, Any]]:
    """The names and the data of server-sent events."""
    frames = [frame.split("\n") for frame in text.split("\n\n") if frame]
    assert all(len(frame) == 2 for frame in frames)
    return [(name.removeprefix("event: "), json.loads(data.removeprefix("data: "))) for name, data in frames]


def _followed(events: list[tuple[str, Any]], side: str) -> dict[int, str]:
    """What somebody has of each candidate who follows the words."""
    texts: dict[int, str] = {}
    for name, data in events:
        if name == "delta":
            before = "" if data.get("replaces") else texts.get(data["id"], "")
            texts[data["id"]] = before + data.get(side, "")
    return texts


@shared
@pytest.mark.parametrize("thinking", [True, False])
async def test_a_stream_says_word_by_word_what_is_stored(standing: Client, thinking: bool) -> None:
    """The words of each candidate add up to its reply; at the end comes the answer that the JSON call gives."""
    whole = await _generate(standing, {"seed": 7}, enable_thinking=thinking)
    answer = await standing.post(f"{GENERATE}/stream", json={"message": "你是谁？", "seed": 7})
    assert answer.status == 200 and answer.content_type == "text/event-stream"
    events = _events(await answer.text())
    names = [name for name, _ in events]
    assert names[0] == "queued" and names[-1] == "done" and names.count("done") == 1
    done = events[-1][1]
    assert done | {"generation_id": whole["generation_id"]} == whole
    for side in ("content", "thinking") if thinking else ("content",):
        followed = _followed(events, side)
        assert followed == {reply["id"]: reply.get(side, "") for reply in done["responses"]}
    finished = [data for name, data in events if name == "finished"]
    assert {reply["id"]: reply for reply in finished} == {reply["id"]: reply for reply in done["responses"]}
    assert names.count("delta") > len(finished)


@shared
async def test_a_stream_hides_the_thoughts_that_are_not_to_be_shown(standing: Client) -> None:
    """With show_thinking off no event has a thought."""
    await accepted(await standing.post(LOAD, json=SHORT | {"show_thinking": False}), answers.Loaded)
    answer = await standing.post(f"{GENERATE}/stream", json={"message": "你是谁？", "seed": 7})
    assert "thinking" not in await answer.text()


async def test_a_stream_that_is_refused_is_no_stream(client: Client) -> None:
    """What can be refused before the first word is refused as everywhere."""
    await refused(await client.post(f"{GENERATE}/stream", json={"message": "?"}), 400, "模型未加载")
    await refused(await client.post(f"{GENERATE}/stream", json={}), 400, "请求参数错误")


async def test_a_stream_that_is_cancelled_ends_with_an_error(client: Client) -> None:
    """An unload in the middle ends the stream with an event that says so, and nothing is stored."""
    await accepted(await client.post(LOAD, json=LONG), answers.Loaded)
    answer = await client.post(f"{GENERATE}/stream", json={"message": "?"})
    await answer.content.readuntil(b"event: delta")
    await accepted(await client.post("/api/model/unload"), answers.Done)
    *_, (name, data) = _events("event: delta" + (await answer.content.read()).decode())
    assert name == "error" and data["detail"].startswith("生成已取消")


@pytest.mark.parametrize("path", [GENERATE, f"{GENERATE}/stream"])
async def test_a_client_that_leaves_ends_its_generation(client: Client, settings: Settings, path: str) -> None:
    """The engine is idle long before the text would have ended, nothing is stored, and the next client is served."""
    await accepted(await client.post(LOAD, json=LONG), answers.Loaded)
    engine = client.app[LOOP].engine
    with pytest.raises(TimeoutError):
        async with client.post(path, json={"message": "?"}, timeout=ClientTimeout(total=0.2)) as answer:
            await answer.read()
    await until(lambda: engine.is_idle)
    assert fetch(settings.database, "SELECT id FROM generations") == []
    await _generate(client, {})
