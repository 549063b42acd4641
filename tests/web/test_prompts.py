"""The queue of prompts over HTTP, with the tiny random model."""

import asyncio
import json
import threading
from typing import Any

import pytest
from aiohttp import ClientTimeout

from prefanno.keys import LOOP
from prefanno.training import adapters
from prefanno.web import answers, prompt_answers
from prefanno.web.annotation_answers import Chosen
from tests.conftest import Client
from tests.looking import fetch
from tests.web.conftest import accepted, busy, faults, refused, until

LOAD, PROMPTS, NEXT = "/api/model/load", "/api/prompts", "/api/prompts/next"
SHORT = {"system_prompt": "你是离。", "max_new_tokens": 64, "num_responses": 2, "enable_thinking": False}
LONG = SHORT | {"max_new_tokens": 400, "num_responses": 10}


async def _add(client: Client, *messages: str, **more: Any) -> Any:
    body = {"prompts": [{"message": message} for message in messages]} | more
    return await accepted(await client.post(PROMPTS, json=body), prompt_answers.QueuedUp)


async def _load(client: Client, **settings: Any) -> None:
    await accepted(await client.post(LOAD, json=SHORT | settings), answers.Loaded)


async def _load_default(client: Client, **settings: Any) -> None:
    """With the character's own persona."""
    own = {name: value for name, value in SHORT.items() if name != "system_prompt"} | settings
    await accepted(await client.post(LOAD, json=own), answers.Loaded)


async def _counts(client: Client) -> Any:
    return (await accepted(await client.get(PROMPTS), prompt_answers.PromptQueue))["data"]["counts"]


async def _until(client: Client, **counts: int) -> None:
    async with asyncio.timeout(60):
        while not counts.items() <= (await _counts(client)).items():  # noqa: ASYNC110 - it knows no events
            await asyncio.sleep(0.05)


async def _next(client: Client, **body: Any) -> Any:
    return (await accepted(await client.post(NEXT, json=body), prompt_answers.NextPrompt))["data"]


async def test_the_next_prompt_has_its_candidates_at_once(client: Client) -> None:
    """What was written ahead of time is what is given, and the engine writes nothing for it."""
    await _add(client, "一", "二")
    await _load(client)
    await _until(client, ready=2)
    stored = dict(fetch(client.app[LOOP].settings.database, "SELECT message, id FROM generations"))
    first, second = await _next(client), await _next(client)
    assert [one["prompt"]["message"] for one in (first, second)] == ["一", "二"]
    assert [one["generation_id"] for one in (first, second)] == [str(stored["一"]), str(stored["二"])]
    assert all(
        len(one["responses"]) == 2 and all(each["content"] for each in one["responses"]) for one in (first, second)
    )
    await refused(await client.post(NEXT), 409, "队列中没有提示")


async def test_a_prompt_that_is_not_ready_is_answered_now(client: Client) -> None:
    """Who asks before the candidates are written waits for them, and gets those that were begun."""
    await _load(client)
    await _add(client, "一")
    given = await _next(client)
    assert given["prompt"]["message"] == "一"
    assert len(given["responses"]) == 2
    assert len(fetch(client.app[LOOP].settings.database, "SELECT id FROM generations")) == 1
    assert await _counts(client) == {"waiting": 0, "ready": 0, "taken": 1, "failed": 0}


async def test_a_choice_is_made_at_a_prompt_as_at_any_generation(client: Client) -> None:
    """The answer has what a choice needs; afterwards the prompt counts as decided."""
    await _add(client, "一")
    await _load(client)
    given = await _next(client)
    choice = {"generation_id": given["generation_id"], "verdict": "best", "chosen": 2}
    await accepted(await client.post("/api/choices", json=choice), Chosen)
    (item,) = (await accepted(await client.get(PROMPTS), prompt_answers.PromptQueue))["data"]["items"]
    assert (item["state"], item["decided"], item["generation_id"]) == ("taken", True, given["generation_id"])


async def test_without_a_model_ready_prompts_are_given_and_others_are_not(client: Client) -> None:
    """Candidates that are stored need no model; where some have to be written, the cure is named."""
    await _add(client, "一")
    await _load_default(client)
    await _until(client, ready=1)
    await client.post("/api/model/unload")
    await _add(client, "二")
    assert (await _next(client))["prompt"]["message"] == "一"
    await refused(await client.post(NEXT), 400, "模型未加载")
    assert (await _counts(client))["waiting"] == 1


async def test_what_is_written_has_its_disagreement(client: Client) -> None:
    """The difference of the largest and the smallest mean log-probability, whoever it was written for."""
    await _load(client)
    await _add(client, "一", "二")
    await _next(client)
    await _until(client, ready=1)
    rows = "SELECT generation_id, disagreement FROM prompts ORDER BY id"
    stored = fetch(client.app[LOOP].settings.database, rows)
    assert len(stored) == 2
    for generation, disagreement in stored:
        query = f"SELECT max(mean_logprob) - min(mean_logprob) FROM candidates WHERE generation_id = {generation}"
        ((difference,),) = fetch(client.app[LOOP].settings.database, query)
        assert difference > 0
        assert disagreement == pytest.approx(difference)


async def test_the_engine_works_in_the_order_that_was_asked_for(client: Client) -> None:
    """What comes next is written next, also where the last request asked for another order than before."""
    await _add(client, "一")
    await _load(client)
    await _next(client, order="random")
    assert client.app[LOOP].ahead.order == "random"


async def test_the_stream_of_what_is_ready_shows_thoughts_as_it_was_written(client: Client) -> None:
    """Whether a model is loaded or not, `finished` and `done` show the same."""
    await _add(client, "一", "二")
    await _load_default(client, enable_thinking=True)
    await _until(client, ready=2)
    await client.post("/api/model/unload")
    shown = 0
    for _ in range(2):
        async with client.post(f"{NEXT}/stream") as answer:
            events = [part.split("\n", 1) for part in (await answer.text()).strip().split("\n\n")]
        data = [json.loads(text.removeprefix("data: ")) for _, text in events]
        assert data[1:-1] == data[-1]["responses"]
        shown += sum("thinking" in candidate for candidate in data[1:-1])
    assert shown


@pytest.mark.parametrize("change", [{"temperature": 0.5}, {"system_prompt": "你是谁？"}, {"num_responses": 3}])
async def test_other_settings_drop_what_was_written_ahead(client: Client, change: dict[str, Any]) -> None:
    """After a load with another setting or persona the candidates are written anew; with the same, they stay."""
    await _add(client, "一", "二")
    await _load(client)
    await _until(client, ready=2)
    database = client.app[LOOP].settings.database
    before = fetch(database, "SELECT id FROM generations ORDER BY id")
    await _load(client)
    await _until(client, ready=2)
    assert fetch(database, "SELECT id FROM generations ORDER BY id") == before
    await _load(client, **change)
    given = await _next(client)
    assert len(given["responses"]) == change.get("num_responses", 2)
    (settings,) = fetch(database, f"SELECT settings FROM generations WHERE id = {given['generation_id']}")[0]
    settings = settings if isinstance(settings, dict) else json.loads(settings)
    assert change.items() <= settings.items()
    await _until(client, ready=1)
    assert not set(before) & set(fetch(database, "SELECT id FROM generations"))


async def test_another_persona_of_a_character_drops_what_was_written_ahead(client: Client) -> None:
    """With no model loaded, editing the persona does, and the next load writes anew; a new name does not."""
    await _add(client, "一", "二")
    await _load_default(client)
    await _until(client, ready=2)
    await client.post("/api/model/unload")
    await client.post("/api/characters/li/edit", json={"name": "小离"})
    assert (await _next(client))["prompt"]["message"] == "一"
    await client.post("/api/characters/li/edit", json={"system_prompt": "你是一位诗人。"})
    await refused(await client.post(NEXT), 400, "模型未加载")
    await _load_default(client)
    given = await _next(client)
    query = f"SELECT settings FROM generations WHERE id = {given['generation_id']}"
    ((settings,),) = fetch(client.app[LOOP].settings.database, query)
    settings = settings if isinstance(settings, dict) else json.loads(settings)
    assert settings["system_prompt"] == "你是一位诗人。"


async def test_a_persona_edited_while_it_is_loaded_counts_from_the_unload_on(client: Client) -> None:
    """What the loaded model wrote is given while it is loaded, and not afterwards."""
    await _add(client, "一", "二")
    await _load_default(client)
    await _until(client, ready=2)
    await client.post("/api/characters/li/edit", json={"system_prompt": "你是一位诗人。"})
    assert (await _next(client))["prompt"]["message"] == "一"
    await client.post("/api/model/unload")
    await refused(await client.post(NEXT), 400, "模型未加载")


async def test_a_newer_adapter_drops_what_was_written_ahead(client: Client) -> None:
    """With no model loaded candidates count until there is a newer adapter, which the next load would take."""
    await _add(client, "一", "二")
    await _load_default(client)
    await _until(client, ready=2)
    await client.post("/api/model/unload")
    assert (await _next(client))["prompt"]["message"] == "一"
    settings = client.app[LOOP].settings
    folder = settings.outputs / "li-sft-1"
    folder.mkdir()
    for name in adapters.WEIGHTS:
        (folder / name).write_text("{}")
    (folder / adapters.CARD).write_text(json.dumps({"run": 1, "base_model": settings.model}))
    await refused(await client.post(NEXT), 400, "模型未加载")


async def test_a_live_request_goes_before_the_queue(client: Client) -> None:
    """A person who asks something else is answered while the queue waits, which goes on afterwards."""
    await _load(client, max_new_tokens=256)
    await _add(client, "一", "二", "三")
    engine = client.app[LOOP].engine
    await until(lambda: not engine.is_idle)
    live = await accepted(await client.post("/api/generate", json={"message": "你好"}), answers.Generated)
    assert (await _counts(client))["ready"] == 0
    await _until(client, ready=3)
    rows = fetch(client.app[LOOP].settings.database, "SELECT id FROM generations ORDER BY id")
    assert rows[0] == (int(live["generation_id"]),)


async def test_a_prompt_that_cannot_be_answered_says_why(client: Client) -> None:
    """A prompt that is too long fails, by itself; another load lets it wait again."""
    await _load(client)
    await _add(client, "长" * 600, "一")
    await _until(client, ready=1, failed=1)
    page = await accepted(await client.get(PROMPTS, params={"state": "failed"}), prompt_answers.PromptQueue)
    (item,) = page["data"]["items"]
    assert "超过模型上限" in item["reason"]
    assert (await _next(client))["prompt"]["message"] == "一"
    await refused(await client.post(NEXT), 409)


async def test_the_stream_tells_the_prompt_first(client: Client) -> None:
    """Ready or not, the events are the prompt, the candidates, and done."""
    await _add(client, "一", "二")
    await _load(client)
    await _until(client, ready=2)
    await _load(client, temperature=0.5)  # drops both
    for message in ("一", "二"):
        async with client.post(f"{NEXT}/stream") as answer:
            assert answer.status == 200
            events = [part.split("\n", 1) for part in (await answer.text()).strip().split("\n\n")]
        names = [name.removeprefix("event: ") for name, _ in events]
        data = [json.loads(text.removeprefix("data: ")) for _, text in events]
        assert names[0] == "prompt" and data[0]["message"] == message
        assert names[-1] == "done" and len(data[-1]["responses"]) == 2
        assert names.count("finished") >= 2
    await refused(await client.post(f"{NEXT}/stream"), 409, "队列中没有提示")


async def test_who_leaves_puts_the_prompt_back(client: Client) -> None:
    """A client that goes away before its candidates are there loses no prompt for the others."""
    await _load(client)
    with busy(client):  # so that no candidate is there before they leave
        await _add(client, "一")
        for path in (NEXT, f"{NEXT}/stream"):
            with pytest.raises(asyncio.TimeoutError):
                async with client.post(path, timeout=ClientTimeout(0.3)) as answer:
                    await answer.read()
            await _until(client, taken=0)
        assert sum((await _counts(client)).values()) == 1
    await client.post("/api/model/unload")


async def test_a_load_puts_the_prompt_back(client: Client) -> None:
    """Cancelled by another load, a prompt that was to be answered waits again."""
    await _load(client, **LONG)
    await _add(client, "一")
    asking = asyncio.create_task(client.post(NEXT))
    await _until(client, taken=1)
    await _load(client)
    await refused(await asking, 503)
    assert (await _next(client))["prompt"]["message"] == "一"


async def test_what_is_given_in_this_moment_is_not_put_back(client: Client) -> None:
    """Also where one transaction gives a prompt to somebody and puts back all that nobody decided on."""
    await _load(client)
    released = threading.Event()

    async def hold(_session: object) -> None:
        released.wait(60)  # in the writer's thread: what is asked meanwhile makes one transaction

    holding = asyncio.create_task(client.app[LOOP].database.write(hold))
    adding = asyncio.create_task(_add(client, "一"))
    await asyncio.sleep(0.2)
    asking = asyncio.create_task(_next(client))
    await asyncio.sleep(0.2)
    putting = asyncio.create_task(client.post(f"{PROMPTS}/return", json={"undecided": True}))
    await asyncio.sleep(0.2)
    released.set()
    await asyncio.gather(holding, adding)
    assert (await accepted(await putting, prompt_answers.Changed))["data"]["changed"] == 0
    assert (await asking)["prompt"]["message"] == "一"


async def test_several_people_get_several_prompts(client: Client) -> None:
    """No prompt is given twice, however many ask at once, and whether it is ready or not."""
    messages = [f"第{number}题" for number in range(12)]
    await _add(client, *messages)
    await _load(client)
    async with asyncio.timeout(60):
        while not (await _counts(client))["ready"]:  # noqa: ASYNC110 - it knows no events
            await asyncio.sleep(0.05)
    given = await asyncio.gather(*(_next(client) for _ in messages))
    assert sorted(one["prompt"]["message"] for one in given) == sorted(messages)
    assert len({one["generation_id"] for one in given}) == len(messages)


async def test_prompts_can_be_put_back_and_removed(client: Client) -> None:
    """By their ids, or all that were not decided on; each with the number that was changed."""
    ids = (await _add(client, "一", "二"))["data"]["ids"]
    await _load(client)
    first = await _next(client)
    await _until(client, ready=1)
    answer = await accepted(await client.post(f"{PROMPTS}/return", json={"undecided": True}), prompt_answers.Changed)
    assert answer["data"]["changed"] == 1
    assert (await _next(client))["generation_id"] == first["generation_id"]
    answer = await accepted(await client.post(f"{PROMPTS}/return", json={"ids": ids}), prompt_answers.Changed)
    assert answer["data"]["changed"] == 1
    answer = await accepted(await client.post(f"{PROMPTS}/delete", json={"ids": ids}), prompt_answers.Changed)
    assert answer["data"]["changed"] == 2
    assert sum((await _counts(client)).values()) == 0
    await refused(await client.post(f"{PROMPTS}/delete", json={"ids": ids}), 404, "未找到提示")


async def test_an_add_that_is_sent_again_is_done_once(client: Client) -> None:
    """With an Idempotency-Key the first answer comes again."""
    body, headers = {"prompts": [{"message": "一"}]}, {"Idempotency-Key": "a"}
    first = await (await client.post(PROMPTS, json=body, headers=headers)).json()
    assert await (await client.post(PROMPTS, json=body, headers=headers)).json() == first
    await refused(await client.post(PROMPTS, json={"prompts": [{"message": "二"}]}, headers=headers), 409)
    assert sum((await _counts(client)).values()) == 1


@pytest.mark.parametrize(
    ("path", "body", "fields"),
    [
        ("", {}, {"prompts"}),
        ("", {"prompts": []}, {"prompts"}),
        ("", {"prompts": None}, {"prompts"}),
        ("", {"prompts": ["一"]}, {"prompts.0"}),
        ("", {"prompts": [{"message": " "}]}, {"prompts.0.message"}),
        ("", {"prompts": [{"message": "一", "context": [{"role": "user", "content": "二"}]}]}, {"prompts.0.context"}),
        ("", {"prompts": [{"message": "一"}], "character": "mia"}, {"character"}),
        ("/next", {"order": "best"}, {"order"}),
        ("/next", {"order": None}, {"order"}),
        ("/next", {"character": "mia"}, {"character"}),
        ("/next/stream", {"order": 1}, {"order"}),
        ("/return", {}, {"ids"}),
        ("/return", {"ids": [1], "undecided": True}, {"ids"}),
        ("/return", {"ids": ["1"]}, {"ids.0"}),
        ("/delete", {"ids": []}, {"ids"}),
        ("/delete", {"ids": [0]}, {"ids.0"}),
        ("/delete", {"ids": [2**63]}, {"ids.0"}),
    ],
)
async def test_bad_input_is_refused_by_its_name(client: Client, path: str, body: Any, fields: set[str]) -> None:
    """Each fault names its field."""
    assert await faults(await client.post(PROMPTS + path, json=body)) == fields


@pytest.mark.parametrize("query", [{"state": "gone"}, {"limit": "0"}, {"after": "-1"}, {"character": "mia"}])
async def test_a_bad_query_is_refused_by_its_name(client: Client, query: dict[str, str]) -> None:
    """Each fault names its parameter."""
    assert await faults(await client.get(PROMPTS, params=query)) == set(query)
