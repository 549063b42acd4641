"""Multi mode over HTTP: generate, choose, go on, go back and branch; reading the tree."""

import asyncio
import contextlib
from typing import Any

import pytest
from sqlalchemy import text

from prefanno.generation.config import GenerationConfig
from prefanno.keys import LOOP
from prefanno.web import annotation_answers, answers
from tests.conftest import Client
from tests.web.choosing import changed, chosen, generated
from tests.web.conftest import accepted, faults, refused, shared

GENERATE, CONVERSATIONS, DELETE = "/api/generate", "/api/conversations", "/api/annotations/delete"

READERS = 15  # all connections of the read pool


async def _first(client: Client, body: dict[str, Any] | None = None, **settings: Any) -> Any:
    """The first turn of a conversation, with two candidates."""
    return await generated(client, body, mode="multi", num_responses=2, **settings)


async def _go_on(client: Client, parent: str, message: str = "然后呢？") -> Any:
    body = {"message": message, "parent": parent, "seed": 7}
    return await accepted(await client.post(GENERATE, json=body), answers.Generated)


async def _turns(client: Client, conversation: str) -> list[dict[str, Any]]:
    body = await accepted(await client.get(f"{CONVERSATIONS}/{conversation}"), annotation_answers.Conversation)
    turns: list[dict[str, Any]] = body["data"]["turns"]
    return turns


async def _listed(client: Client, **query: Any) -> dict[str, Any]:
    data: dict[str, Any] = (
        await accepted(await client.get(CONVERSATIONS, params=query), annotation_answers.Conversations)
    )["data"]
    return data


def _said(turn: Any, candidate: int, message: str = "你是谁？") -> list[dict[str, str]]:
    reply = turn["responses"][candidate - 1]["content"]
    return [{"role": "user", "content": message}, {"role": "assistant", "content": reply}]


async def test_a_conversation_is_a_tree(client: Client) -> None:
    """Each turn goes on from the best reply of its parent; going on twice is a branch; all is read as one tree."""
    context = [{"role": "assistant", "content": "欢迎~"}]
    first = await _first(client, {"context": context})
    choice = await chosen(client, first["generation_id"], verdict="ranking", ranking=[[2], [1]])
    second = await _go_on(client, first["generation_id"])
    edit = {"verdict": "edit", "chosen": 1, "content": "谜底是书。", "thinking": "他猜不到。"}
    await chosen(client, second["generation_id"], **edit)
    third = await _go_on(client, second["generation_id"], "再来一个。")
    branch = await _go_on(client, first["generation_id"], "换个话题。")
    assert {turn["conversation_id"] for turn in (first, second, third, branch)} == {first["generation_id"]}

    turns = await _turns(client, first["conversation_id"])
    after_first = [*context, *_said(first, 2)]
    after_second = [
        *after_first,
        {"role": "user", "content": "然后呢？"},
        {"role": "assistant", "content": "谜底是书。"},
    ]
    assert [(turn["generation_id"], turn["parent"], turn["message"], turn["context"]) for turn in turns] == [
        (first["generation_id"], None, "你是谁？", context),
        (second["generation_id"], first["generation_id"], "然后呢？", after_first),
        (third["generation_id"], second["generation_id"], "再来一个。", after_second),
        (branch["generation_id"], first["generation_id"], "换个话题。", after_first),
    ]
    best = first["responses"][1]["content"]
    assert turns[0]["choice"] == {"id": choice["id"], "verdict": "ranking", "chosen": best}
    assert (turns[1]["choice"]["verdict"], turns[1]["choice"]["chosen"]) == ("edit", "谜底是书。")
    assert turns[2]["choice"] is turns[3]["choice"] is None
    shown = [
        {"id": one["id"], "thinking": one.get("thinking"), "content": one["content"]} for one in third["responses"]
    ]
    assert turns[2]["candidates"] == shown
    assert [(item["id"], item["message"], item["turns"]) for item in (await _listed(client))["items"]] == [
        (first["conversation_id"], "你是谁？", 4)
    ]


async def test_the_context_is_what_the_model_answers_to(client: Client) -> None:
    """Going on gives the candidates that the same words as a context give."""
    first = await _first(client)
    await chosen(client, first["generation_id"], verdict="good", chosen=2)
    second = await _go_on(client, first["generation_id"])
    body = {"message": "然后呢？", "seed": 7}
    same = await accepted(await client.post(GENERATE, json=body | {"context": _said(first, 2)}), answers.Generated)
    other = await accepted(await client.post(GENERATE, json=body | {"context": _said(first, 1)}), answers.Generated)
    assert second["responses"] == same["responses"] != other["responses"]
    assert same["conversation_id"] == same["generation_id"]  # its own words begin a conversation of its own


async def test_choosing_anew_changes_no_later_turn(client: Client) -> None:
    """A turn keeps the words it came after; going on after another choice is a branch with other words."""
    first = await _first(client)
    await chosen(client, first["generation_id"], verdict="best", chosen=1)
    second = await _go_on(client, first["generation_id"])
    await chosen(client, first["generation_id"], verdict="best", chosen=2)
    third = await _go_on(client, first["generation_id"])
    turns = await _turns(client, first["generation_id"])
    assert [turn["generation_id"] for turn in turns[1:]] == [second["generation_id"], third["generation_id"]]
    assert [turn["context"] for turn in turns[1:]] == [_said(first, 1), _said(first, 2)]


async def test_a_deleted_choice_is_none(client: Client) -> None:
    """A turn whose choice is deleted is undecided: it shows none, and nothing goes on from it until it is restored."""
    first = await _first(client)
    choice = await chosen(client, first["generation_id"], verdict="best", chosen=1)
    await changed(client, DELETE, {"ids": [choice["id"]]})
    [turn] = await _turns(client, first["generation_id"])
    assert turn["choice"] is None
    body = {"message": "然后呢？", "parent": first["generation_id"]}
    assert await faults(await client.post(GENERATE, json=body)) == {"parent"}
    await accepted(await client.post("/api/history/undo"), annotation_answers.Undone)
    await _go_on(client, first["generation_id"])


@shared
async def test_only_a_decided_turn_is_gone_on_from(standing: Client) -> None:
    """An undecided turn, and one without a good reply, is refused by `parent`, and nothing is stored."""
    turn = await _first(standing)
    body = {"message": "然后呢？", "parent": turn["generation_id"]}
    for choice in ({}, {"verdict": "bad"}, {"verdict": "skip"}):
        if choice:
            await chosen(standing, turn["generation_id"], **choice)
        assert await faults(await standing.post(GENERATE, json=body)) == {"parent"}
    assert len(await _turns(standing, turn["generation_id"])) == 1


@shared
async def test_a_parent_has_a_context_of_its_own(standing: Client) -> None:
    """`parent` and `context` together are refused, naming the context; an empty one is none."""
    turn = await _first(standing)
    await chosen(standing, turn["generation_id"], verdict="best", chosen=1)
    body = {"message": "然后呢？", "parent": turn["generation_id"]}
    context = [{"role": "assistant", "content": "欢迎~"}]
    assert await faults(await standing.post(GENERATE, json=body | {"context": context})) == {"context"}
    await accepted(await standing.post(GENERATE, json=body | {"context": []}), answers.Generated)


@shared
@pytest.mark.parametrize("parent", ["0", "999999", "9" * 18, "x", "", "1.0", "-1", 1, None])
async def test_a_parent_is_a_turn(standing: Client, parent: Any) -> None:
    """What names no turn is refused by `parent`."""
    await accepted(await standing.post("/api/model/load", json={"mode": "multi"}), answers.Loaded)
    assert await faults(await standing.post(GENERATE, json={"message": "你好", "parent": parent})) == {"parent"}


@shared
async def test_single_mode_has_no_conversations(standing: Client) -> None:
    """In single mode a generation is no turn: it begins no conversation, goes on from none, and none from it."""
    turn = await _first(standing)
    await chosen(standing, turn["generation_id"], verdict="best", chosen=1)
    before = await _listed(standing)
    single = await generated(standing, mode="single")
    assert single["conversation_id"] is None and await _listed(standing) == before
    await refused(await standing.get(f"{CONVERSATIONS}/{single['generation_id']}"), 404, "未找到对话")
    await chosen(standing, single["generation_id"], verdict="best", chosen=1)
    body = {"message": "然后呢？", "parent": turn["generation_id"]}
    answer = await refused(await standing.post(GENERATE, json=body), 400, "请求参数错误")
    assert set(answer["errors"]) == {"parent"} and "mode=multi" in answer["detail"]
    await accepted(await standing.post("/api/model/load", json={"mode": "multi"}), answers.Loaded)
    body = {"message": "然后呢？", "parent": single["generation_id"]}
    assert await faults(await standing.post(GENERATE, json=body)) == {"parent"}


async def test_a_conversation_is_its_characters_own(client: Client) -> None:
    """Another character's turn is no parent; each character lists its own conversations."""
    turn = await _first(client)
    await chosen(client, turn["generation_id"], verdict="best", chosen=1)
    await client.post("/api/characters", json={"slug": "mia", "name": "Mia"})
    other = await _first(client, character="mia")
    body = {"message": "然后呢？", "parent": turn["generation_id"]}
    assert await faults(await client.post(GENERATE, json=body)) == {"parent"}
    assert [item["id"] for item in (await _listed(client))["items"]] == [turn["generation_id"]]
    assert [item["id"] for item in (await _listed(client, character="mia"))["items"]] == [other["generation_id"]]


async def test_a_load_while_the_parent_is_read_cancels_the_turn(client: Client) -> None:
    """A turn that was asked of one character is never answered by another one that is loaded meanwhile."""
    turn = await _first(client)
    await chosen(client, turn["generation_id"], verdict="best", chosen=1)
    await client.post("/api/characters", json={"slug": "mia", "name": "Mia"})
    loop = client.app[LOOP]
    async with contextlib.AsyncExitStack() as held:
        for _ in range(READERS):
            session = await held.enter_async_context(loop.database.read())
            await session.execute(text("SELECT 1"))
        body = {"message": "然后呢？", "parent": turn["generation_id"]}
        going = asyncio.create_task(client.post(GENERATE, json=body))
        await asyncio.sleep(0.2)  # it waits for a reader; where it is slower than that, it is refused all the same
        await loop.engine.load(GenerationConfig("You are Mia.", mode="multi", max_new_tokens=64), None, "mia")
    answer = await going
    assert answer.status in (400, 503), await answer.text()
    assert len(await _turns(client, turn["conversation_id"])) == 1


async def test_conversations_are_read_page_by_page(client: Client) -> None:
    """The newest first, each once, while a new one begins; the last page has no next, also where it is full."""
    for _ in range(4):
        last = await _first(client)
    numbers = [str(int(last["generation_id"]) - back) for back in range(4)]
    assert [item["id"] for item in (await _listed(client))["items"]] == numbers
    first = await _listed(client, limit=2)
    await _first(client)
    second = await _listed(client, limit=2, before=first["next"])
    assert [item["id"] for page in (first, second) for item in page["items"]] == numbers
    assert [item["turns"] for item in first["items"]] == [1, 1]
    assert second["next"] is None


@shared
@pytest.mark.parametrize("query", ["limit=0", "limit=1001", "before=x", "before=", "character=nobody", "q=ab"])
async def test_the_list_refuses_other_parameters(standing: Client, query: str) -> None:
    """A parameter outside its range or unknown is named."""
    assert await faults(await standing.get(f"{CONVERSATIONS}?{query}")) == {query.partition("=")[0]}


@shared
async def test_a_conversation_is_named_by_its_first_turn(standing: Client) -> None:
    """A later turn, and what there is not, is 404."""
    turn = await _first(standing)
    await chosen(standing, turn["generation_id"], verdict="best", chosen=1)
    later = await _go_on(standing, turn["generation_id"])
    for number in (later["generation_id"], "0", "999999", "9" * 400, "x"):
        await refused(await standing.get(f"{CONVERSATIONS}/{number}"), 404, "未找到")
