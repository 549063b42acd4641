"""Adding, counting and listing annotations over HTTP."""

import asyncio
import json
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from prefanno import persona
from prefanno.db.models import Annotation, Candidate, Generation
from prefanno.keys import LOOP
from prefanno.web import answers
from tests.conftest import Client
from tests.web.conftest import PAIR, TALK, accepted, counts, faults, shared

ADD, LIST, STATS = "/api/dataset/add", "/api/dataset/list", "/api/dataset/stats"
CONTEXT = [{"role": "assistant", "content": "欢迎光临。"}]
LONG = "离" * 100_000

GOOD = [
    PAIR,
    PAIR | {"chosen_thinking": None, "rejected_thinking": None, "context": None},
    PAIR | {"context": []},
    PAIR | {"context": CONTEXT, "chosen_thinking": "嗯", "rejected_thinking": "哦"},
    PAIR | {"context": [{"role": "user", "content": "在吗"}, *CONTEXT]},
    PAIR | {"chosen": "离", "rejected": "离", "human_input": "😀\n\t\u200d"},
    PAIR | {"chosen": LONG},
    TALK,
    TALK | {"rejected": None, "rejected_thinking": None, "chosen_thinking": None, "context": None},
    TALK | {"rejected": "我是 AI 助手。", "rejected_thinking": "唔", "context": CONTEXT},
]
WRONG_TEXTS: tuple[Any, ...] = ("", " \n\u3000", 1, 1.5, True, [], {}, ["离"])
BAD: list[tuple[dict[str, Any], set[str]]] = [
    ({}, {"mode", "human_input", "chosen"}),
    *[({name: value for name, value in PAIR.items() if name != missing}, {missing}) for missing in PAIR],
    *[(PAIR | {name: value}, {name}) for name in PAIR for value in (*WRONG_TEXTS, None)],
    *[
        (TALK | {name: value}, {name})
        for name in ("chosen_thinking", "rejected", "rejected_thinking")
        for value in WRONG_TEXTS
    ],
    *[(TALK | {"mode": mode}, {"mode"}) for mode in ("Multi", "preference", "roleplay")],
    *[(TALK | {"context": wrong}, {"context"}) for wrong in ("x", 0, *WRONG_TEXTS[:5], {"role": "user"})],
    (TALK | {"context": [{"role": "user", "content": "嗯"}]}, {"context"}),
    (TALK | {"context": [*CONTEXT, *CONTEXT]}, {"context"}),
    (TALK | {"context": [{"role": "assistant", "content": 1}]}, {"context.0.content"}),
    (PAIR | {"total": 1, "id": 1}, {"total", "id"}),
    (PAIR | {"chosen": "", "rejected": None, "x": 1}, {"chosen", "rejected", "x"}),
]


def _short(body: Any) -> str:
    return json.dumps(sorted(body) if isinstance(body, set) else body, ensure_ascii=False)[:70]


@shared
@pytest.mark.parametrize("body", GOOD, ids=_short)
async def test_a_choice_is_stored_as_it_was_sent(standing: Client, body: dict[str, Any]) -> None:
    """A choice is counted in its dataset, and listed with every field, null where there was none."""
    before = await counts(standing)
    added = await accepted(await standing.post(ADD, json=body), answers.Added)
    single = body["mode"] == "single"
    name, total = ("preference", before[0] + 1) if single else ("roleplay", before[1] + 1)
    said = f"已添加偏好数据，当前共 {total} 条" if single else f"已添加多轮对话数据，当前共 {total} 条"
    assert added["message"] == said
    assert added["data"]["total"] == total
    assert Path(added["data"]["file"]).is_absolute() and added["data"]["file"].endswith(f"/data/li_{name}.json")
    assert await counts(standing) == ((total, before[1]) if single else (before[0], total))

    listed = await accepted(await standing.get(LIST, params={"dataset": name, "limit": 1}), answers.Items)
    assert listed["message"] == "最近数据" and listed["data"]["total"] == total
    [item] = listed["data"]["items"]
    optional = {"chosen_thinking": None, "rejected": None, "rejected_thinking": None}
    sent = optional | body | {"context": body.get("context") or []}
    assert {key: value for key, value in item.items() if key not in ("id", "created_at")} == sent
    assert datetime.fromisoformat(item["created_at"]).tzinfo is not None


@shared
@pytest.mark.parametrize(("body", "fields"), BAD, ids=_short)
async def test_a_malformed_choice_is_not_stored(standing: Client, body: dict[str, Any], fields: set[str]) -> None:
    """What is missing, of another type, blank or unknown is named, and no dataset grows."""
    before = await counts(standing)
    assert await faults(await standing.post(ADD, json=body)) == fields
    assert await counts(standing) == before


async def test_stats_name_both_files(client: Client) -> None:
    """Both datasets are there from the beginning, with absolute paths."""
    body = await accepted(await client.get(STATS), answers.Stats)
    data = client.app[LOOP].settings.data
    assert body["message"] == "数据集统计"
    assert body["data"] == {
        "preference": {"file": str(data / "li_preference.json"), "count": 0},
        "roleplay": {"file": str(data / "li_roleplay.json"), "count": 0},
    }


async def test_list_is_of_the_newest_ten_preferences(client: Client) -> None:
    """Newest first; without parameters ten preferences, with them what they say, and the total of all."""
    for number in range(12):
        await client.post(ADD, json=PAIR | {"human_input": str(number)})
    await client.post(ADD, json=TALK)

    async def listed(**query: str | int) -> tuple[int, list[str]]:
        data = (await accepted(await client.get(LIST, params=query), answers.Items))["data"]
        return data["total"], [item["human_input"] for item in data["items"]]

    newest = [str(number) for number in reversed(range(12))]
    assert await listed() == (12, newest[:10])
    assert await listed(limit=1) == (12, newest[:1])
    assert await listed(limit=1000) == (12, newest)
    assert await listed(dataset="preference", limit=11) == (12, newest[:11])
    assert await listed(dataset="roleplay") == (1, [TALK["human_input"]])


@shared
@pytest.mark.parametrize(
    ("query", "field"),
    [(f"limit={value}", "limit") for value in ("0", "1001", "-1", "", "ten", "5.0", "1e1", "null", "true", "9" * 400)]
    + [(f"dataset={value}", "dataset") for value in ("", "all", "Preference", "single", "li_preference")]
    + [("offset=1", "offset"), ("limit=10&Dataset=roleplay", "Dataset")],
    ids=str,
)
async def test_list_refuses_other_parameters(standing: Client, query: str, field: str) -> None:
    """A parameter just outside its range, of another type or unknown is refused by its name."""
    assert await faults(await standing.get(f"{LIST}?{query}")) == {field}


async def test_totals_count_each_add_once(client: Client) -> None:
    """Choices that arrive at once are all stored, and each is told another total."""
    answered = await asyncio.gather(*[client.post(ADD, json=PAIR) for _ in range(20)])
    totals = [(await accepted(answer, answers.Added))["data"]["total"] for answer in answered]
    assert sorted(totals) == list(range(1, 21))
    assert await counts(client) == (20, 0)


async def test_a_choice_records_the_persona_in_force(client: Client) -> None:
    """An annotation holds the default persona while nothing is loaded, then the loaded settings'."""
    await client.post(ADD, json=PAIR)
    await client.post("/api/model/load", json={"system_prompt": "你是店猫。"})
    await client.post(ADD, json=PAIR)
    async with client.app[LOOP].database.read() as session:
        prompts = (await session.scalars(select(Annotation.system_prompt).order_by(Annotation.id))).all()
    assert prompts == [persona.CHINESE, "你是店猫。"]


async def test_a_missing_thinking_is_looked_up_among_candidates(client: Client) -> None:
    """A rejected text that was a candidate gets that candidate's thinking, unless the client sends its own."""
    loop = client.app[LOOP]

    async def store(session: Any) -> None:
        generation = Generation(message="?", context=[], settings={}, base_model="m", adapter=None, seed=1)
        session.add(generation)
        await session.flush()
        known = {"content": PAIR["rejected"], "thinking": "要礼貌", "finish_reason": "stop", "tokens": 3}
        session.add(Candidate(generation_id=generation.id, ordinal=1, **known))

    await loop.database.write(store)
    for given in ({}, {"rejected_thinking": None}, {"rejected_thinking": "自己的"}):
        await client.post(ADD, json=PAIR | given)
    items = (await (await client.get(LIST)).json())["data"]["items"]
    assert [item["rejected_thinking"] for item in items] == ["自己的", "要礼貌", "要礼貌"]
