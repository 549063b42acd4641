"""Chat completions in OpenAI's shape, with its official client and without."""

import json
from typing import Any

import pytest
import pytest_asyncio
from openai import AsyncOpenAI, BadRequestError

from prefanno.generation.config import Delta, GenerationConfig, Reply, Request
from prefanno.generation.job import Job
from prefanno.web import completion_schemas as schemas
from prefanno.web.completions import _Said, _Shape
from tests.conftest import Client
from tests.web.conftest import accepted, faults, refused, shared

pytestmark = pytest.mark.sqlite_only  # no database is asked

CHAT, MODELS, LOAD = "/v1/chat/completions", "/v1/models", "/api/model/load"
HELLO: list[Any] = [{"role": "user", "content": "你好"}]
CONFIG = GenerationConfig("You are Li.")
SHORT = {"max_new_tokens": 64, "num_responses": 2}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def loaded(standing: Client) -> Client:
    """The standing server with the tiny model loaded."""
    assert (await standing.post(LOAD, json=SHORT)).status == 200
    return standing


def _official(client: Client) -> AsyncOpenAI:
    return AsyncOpenAI(base_url=str(client.make_url("/v1")), api_key="none", max_retries=0)


async def _chat(client: Client, **fields: Any) -> dict[str, Any]:
    body: dict[str, Any] = await accepted(
        await client.post(CHAT, json={"messages": HELLO, "seed": 7} | fields), schemas.Completed
    )
    return body


@shared
async def test_the_official_client_gets_a_reply(loaded: Client) -> None:
    """OpenAI's own client lists the model and gets a reply of its own types, with the tokens counted."""
    async with _official(loaded) as client:
        (model,) = (await client.models.list()).data
        answer = await client.chat.completions.create(model=model.id, messages=HELLO, max_tokens=20, seed=3, n=2)
    assert answer.model == model.id
    assert [choice.index for choice in answer.choices] == [0, 1]
    for choice in answer.choices:
        assert choice.message.content and choice.finish_reason in ("stop", "length")
    assert answer.usage is not None
    assert 2 <= answer.usage.completion_tokens <= 40 and answer.usage.prompt_tokens > 2
    assert answer.usage.total_tokens == answer.usage.prompt_tokens + answer.usage.completion_tokens


@shared
async def test_the_official_client_streams(loaded: Client) -> None:
    """What OpenAI's client reads piece by piece is what it gets at once, and ends with the usage."""
    asked: dict[str, Any] = {"model": "any", "messages": HELLO, "max_tokens": 30, "seed": 5}
    async with _official(loaded) as client:
        whole = await client.chat.completions.create(**asked)
        stream = await client.chat.completions.create(**asked, stream=True, stream_options={"include_usage": True})
        chunks = [chunk async for chunk in stream]
    said = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert said == whole.choices[0].message.content
    assert [chunk.choices[0].finish_reason for chunk in chunks if chunk.choices][-1] == whole.choices[0].finish_reason
    assert chunks[-1].usage == whole.usage
    assert {chunk.id for chunk in chunks} == {chunks[0].id}


@shared
async def test_the_official_client_is_told_what_is_wrong(loaded: Client) -> None:
    """A refusal reaches OpenAI's client as its own error, with the field named."""
    async with _official(loaded) as client:
        with pytest.raises(BadRequestError, match="temperature"):
            await client.chat.completions.create(model="any", messages=HELLO, temperature=9.0)


@shared
async def test_instructions_and_earlier_turns_count(loaded: Client) -> None:
    """Another persona, or another turn before, changes the reply; the same seed and messages do not."""
    plain = await _chat(loaded)
    assert (await _chat(loaded))["choices"] == plain["choices"]
    persona = {"role": "system", "content": "You are Mia."}
    turn = {"role": "assistant", "content": "Welcome!"}
    for messages in ([persona, *HELLO], [turn, *HELLO]):
        assert (await _chat(loaded, messages=messages))["choices"] != plain["choices"]
    parts = [{"role": "user", "content": [{"type": "text", "text": "你"}, {"type": "text", "text": "好"}]}]
    assert (await _chat(loaded, messages=parts))["choices"] == plain["choices"]


@shared
async def test_a_stop_ends_the_text(loaded: Client) -> None:
    """The text ends before the stop, at once and word by word, and says that it stopped."""
    content = (await _chat(loaded))["choices"][0]["message"]["content"]
    stop = content[4:6]
    expected = content[: content.index(stop)]
    choice = (await _chat(loaded, stop=stop))["choices"][0]
    assert (choice["message"]["content"], choice["finish_reason"]) == (expected, "stop")
    answer = await loaded.post(CHAT, json={"messages": HELLO, "seed": 7, "stop": [stop], "stream": True})
    assert answer.content_type == "text/event-stream"
    *frames, done = [line[6:] for line in (await answer.text()).splitlines() if line]
    deltas = [json.loads(frame)["choices"][0] for frame in frames]
    assert "".join(delta["delta"].get("content", "") for delta in deltas) == expected
    assert (deltas[-1]["finish_reason"], done) == ("stop", "[DONE]")


@shared
@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"messages": []}, "messages"),
        ({"messages": None}, "messages"),
        ({"messages": [{"role": "assistant", "content": "Hm."}]}, "messages"),
        ({"messages": [{"role": "tool", "content": "Hm."}]}, "messages.0.role"),
        ({"messages": [{"role": "user", "content": ""}]}, "messages"),
        ({"messages": [{"role": "user", "content": "\0"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages.0.content"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"temperature": 2.1}, "temperature"),
        ({"top_p": -0.1}, "top_p"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"n": 11}, "n"),
        ({"seed": -1}, "seed"),
        ({"stop": 5}, "stop"),
        ({"stop": ["a"] * 5}, "stop"),
        ({"stream": "yes"}, "stream"),
    ],
)
async def test_what_cannot_be_served_is_refused(loaded: Client, fields: dict[str, Any], named: str) -> None:
    """Each field out of its bounds is refused by its name."""
    assert await faults(await loaded.post(CHAT, json={"messages": HELLO} | fields)) == {named}


@shared
async def test_fields_of_other_servers_and_null_are_no_harm(loaded: Client) -> None:
    """What programs send to other servers is ignored, and null is as good as absent."""
    plain = await _chat(loaded)
    others = {"frequency_penalty": 0.5, "logit_bias": {}, "min_p": 0.1, "user": "me", "temperature": None, "stop": None}
    named = [{"role": "user", "content": "你好", "name": "guest"}]
    assert (await _chat(loaded, **others, messages=named))["choices"] == plain["choices"]


async def test_a_client_that_leaves_at_once_ends_its_job() -> None:
    """Nobody's text is written on: a client that goes before its first word takes its job with it."""
    job = Job(Request("Hi.", [], 1, CONFIG))
    chunks = _Shape(job, "li", []).chunks(include_usage=False)
    await anext(chunks)
    assert not job.cancelled
    await chunks.aclose()
    assert job.cancelled


def _reply(content: str, thinking: str | None = None, reason: str = "stop") -> Reply:
    return Reply(thinking, content, reason, 3, 1, None)


def _told(said: _Said, *events: Delta | Reply, last: Reply) -> tuple[str, str]:
    """The thought and the text that the client has in the end."""
    pieces: list[dict[str, str]] = []
    for event in events:
        if isinstance(event, Delta):
            pieces.append(said.take(event))
        else:
            said.finish(event)
    pieces.append(said.rest(last))
    thought, content = ("".join(piece.get(name, "") for piece in pieces) for name in ("reasoning_content", "content"))
    return thought, content


@pytest.mark.parametrize(
    ("events", "last", "expected"),
    [
        ([Delta(1, "hm", "Hel"), Delta(1, "", "lo")], _reply("Hello", "hm"), ("hm", "Hello")),
        ([], _reply("Hello", "hm"), ("hm", "Hello")),
        ([Delta(1, "hm", "Hello w")], _reply("Hello w", "hm"), ("hm", "Hello w")),  # what may become the stop
        ([Delta(1, "", "Hello world, dear")], _reply("Hello world, dear"), ("", "")),  # the stop itself
        ([Delta(1, "hm", "One"), _reply("One"), Delta(1, "so", "Two", replaces=True)], _reply("Two"), ("hm", "One")),
        ([Delta(1, "hm", ""), _reply("……"), Delta(1, "so", "Two", replaces=True)], _reply("Two", "so"), ("hm", "Two")),
        ([Delta(1, "", "One"), Delta(1, "", "One two", replaces=True)], _reply("One two"), ("", "One two")),
        ([Delta(1, "", "A thought?"), Delta(1, "A thought?", "Yes.", replaces=True)], _reply("Yes."), None),
    ],
)
def test_what_was_shown_is_not_said_twice(
    events: list[Delta | Reply], last: Reply, expected: tuple[str, str] | None
) -> None:
    """However a candidate comes, drawn again or not, its client has one thought and one text, up to the stop."""
    told = _told(_Said(["Hello world"], thinks=True), *events, last=last)
    assert told == (expected or ("A thought?", "A thought?"))


def test_of_a_candidate_that_is_drawn_again_the_first_end_counts() -> None:
    """Where the shown text ran into the limit, that is its end, whatever became of the next draw."""
    said = _Said([], thinks=False)
    _told(said, Delta(1, "", "One"), _reply("One", reason="length"), last=_reply("Two", reason="stop"))
    assert said.finish_reason == "length"


@shared
async def test_what_programs_send_is_taken(loaded: Client) -> None:
    """A newline as a stop, turns that say nothing, an empty name of a model: none of it is refused."""
    turns = [{"role": "assistant", "content": None}, {"role": "assistant", "content": ""}, *HELLO]
    answer = await _chat(loaded, messages=turns, stop=["\n", ""], model="", stream_options={"include_usage": None})
    assert "\n" not in answer["choices"][0]["message"]["content"]
    assert (await _chat(loaded, stop=[]))["choices"] == (await _chat(loaded))["choices"]


@shared
async def test_what_is_not_there_is_refused_in_both_shapes(loaded: Client) -> None:
    """Also what no handler refuses has OpenAI's error beside ours."""
    body = await refused(await loaded.get("/v1/nothing"), 404)
    assert body["error"] == {"message": body["detail"], "type": "invalid_request_error"}


async def test_without_a_model_it_says_so(client: Client) -> None:
    """Nothing loaded: an empty list of models, and a refusal as everywhere."""
    assert (await accepted(await client.get(MODELS), schemas.Models))["data"] == []
    await refused(await client.post(CHAT, json={"messages": HELLO}), 400, "模型未加载")
    await refused(await client.post(CHAT, json={"messages": HELLO, "stream": True}), 400, "模型未加载")


@shared
async def test_nothing_of_it_is_stored(loaded: Client) -> None:
    """A chat is no choice and no generation to choose from."""
    first = (await (await loaded.post("/api/generate", json={"message": "你好"})).json())["generation_id"]
    await _chat(loaded)
    second = (await (await loaded.post("/api/generate", json={"message": "你好"})).json())["generation_id"]
    assert int(second) == int(first) + 1
