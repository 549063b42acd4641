"""Choices over HTTP, from real candidates of the tiny model, and what can be done with annotations afterwards."""

import json
from collections.abc import AsyncIterator
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from sqlalchemy import update

from prefanno.annotation.export import export
from prefanno.db.models import Annotation, Candidate, Generation
from prefanno.keys import LOOP
from prefanno.rows import exporter
from prefanno.web import answers
from tests.conftest import Client
from tests.web.conftest import PAIR, TALK, accepted, counts, faults, refused, shared

CHOICES, ANNOTATIONS = "/api/choices", "/api/annotations"
DELETE, RESTORE, UNDO, REDO = (
    "/api/annotations/delete",
    "/api/annotations/restore",
    "/api/history/undo",
    "/api/history/redo",
)
SHORT = {"system_prompt": "你是离。", "max_new_tokens": 64, "num_responses": 3}
ADDED = {"verdict": "best", "reasons": [], "note": None, "annotator": None, "adapter": None, "generation_id": None}

# A choice among three candidates; its ranks; its pairs and unpaired replies; the rows of preference, roleplay and
# unpaired that it is exported to in single mode, and in multi mode.
VERDICTS: list[tuple[dict[str, Any], list[int | None], tuple[int, int], tuple[int, int, int], tuple[int, int, int]]] = [
    ({"verdict": "best", "chosen": 2}, [2, 1, 2], (2, 0), (2, 0, 0), (2, 1, 0)),
    ({"verdict": "ranking", "ranking": [[3], [1], [2]]}, [2, 3, 1], (3, 0), (3, 0, 0), (3, 1, 0)),
    ({"verdict": "ranking", "ranking": [[2], [1, 3]]}, [2, 1, 2], (2, 0), (2, 0, 0), (2, 1, 0)),
    ({"verdict": "ranking", "ranking": [[3], [2]]}, [None, 2, 1], (1, 0), (1, 0, 0), (1, 1, 0)),
    ({"verdict": "ranking", "ranking": [[1, 2, 3]]}, [1, 1, 1], (0, 0), (0, 0, 0), (0, 1, 0)),
    ({"verdict": "good", "chosen": 3}, [None, None, 1], (0, 1), (0, 0, 1), (0, 1, 0)),
    ({"verdict": "bad"}, [None, None, None], (0, 3), (0, 0, 3), (0, 0, 3)),
    ({"verdict": "skip"}, [None, None, None], (0, 0), (0, 0, 0), (0, 0, 0)),
]
WRONG: list[tuple[dict[str, Any], set[str]]] = [
    ({"verdict": "best"}, {"chosen"}),
    ({"verdict": "best", "chosen": 1, "ranking": [[1], [2]]}, {"ranking"}),
    ({"verdict": "best", "chosen": 1, "content": "改", "thinking": "嗯"}, {"content", "thinking"}),
    ({"verdict": "best", "chosen": 0}, {"chosen"}),
    ({"verdict": "best", "chosen": 4}, {"chosen"}),
    ({"verdict": "best", "chosen": 11}, {"chosen"}),
    ({"verdict": "ranking"}, {"ranking"}),
    ({"verdict": "ranking", "ranking": [[1], [2]], "chosen": 1}, {"chosen"}),
    ({"verdict": "ranking", "ranking": []}, {"ranking"}),
    ({"verdict": "ranking", "ranking": [[1], []]}, {"ranking.1"}),
    ({"verdict": "ranking", "ranking": [[1], [11]]}, {"ranking.1.0"}),
    ({"verdict": "ranking", "ranking": [[1], [4]]}, {"ranking"}),
    ({"verdict": "ranking", "ranking": [[1], [2, 1]]}, {"ranking"}),
    ({"verdict": "ranking", "ranking": [[1, 1]]}, {"ranking"}),
    ({"verdict": "ranking", "ranking": [[1]]}, {"ranking"}),
    ({"verdict": "ranking", "ranking": [1, 2]}, {"ranking.0", "ranking.1"}),
    ({"verdict": "edit"}, {"chosen", "content"}),
    ({"verdict": "edit", "chosen": 1}, {"content"}),
    ({"verdict": "edit", "content": "改"}, {"chosen"}),
    ({"verdict": "edit", "chosen": 4, "content": "改"}, {"chosen"}),
    ({"verdict": "edit", "chosen": 1, "content": "改", "ranking": [[1], [2]]}, {"ranking"}),
    ({"verdict": "good"}, {"chosen"}),
    ({"verdict": "good", "chosen": 4}, {"chosen"}),
    ({"verdict": "good", "chosen": 1, "content": "改"}, {"content"}),
    ({"verdict": "bad", "chosen": 1}, {"chosen"}),
    ({"verdict": "skip", "chosen": 1, "ranking": [[1], [2]], "content": "改"}, {"chosen", "ranking", "content"}),
    ({"verdict": "tie"}, {"verdict"}),
    ({"verdict": "skip", "reasons": ["暖"] * 21}, {"reasons"}),
    ({"verdict": "skip", "reasons": ["暖", "暖" * 101]}, {"reasons.1"}),
    ({"verdict": "skip", "annotator": "A" * 101}, {"annotator"}),
]


async def generated(client: Client, body: dict[str, Any] | None = None, **settings: Any) -> Any:
    """Load with these settings, and generate."""
    await accepted(await client.post("/api/model/load", json=SHORT | settings), answers.Loaded)
    answer = await client.post("/api/generate", json={"message": "你是谁？", "seed": 7} | (body or {}))
    return await accepted(answer, answers.Generated)


async def chosen(client: Client, generation: str, **choice: Any) -> dict[str, Any]:
    """Choose among the candidates of a generation; the answer's data."""
    answer = await client.post(CHOICES, json={"generation_id": generation} | choice)
    data: dict[str, Any] = (await accepted(answer, answers.Chosen))["data"]
    return data


async def one(client: Client, number: int) -> dict[str, Any]:
    """All of an annotation."""
    data: dict[str, Any] = (await accepted(await client.get(f"{ANNOTATIONS}/{number}"), answers.One))["data"]
    return data


async def found(client: Client, **query: Any) -> list[int]:
    """The ids that a search finds, in its order."""
    body = await accepted(await client.get(ANNOTATIONS, params=query), answers.Found)
    return [item["id"] for item in body["data"]["items"]]


async def changed(client: Client, path: str, body: dict[str, Any]) -> int:
    """How many annotations a deletion or restoration changed."""
    answered = await accepted(await client.post(path, json=body), answers.Changed)
    number: int = answered["data"]["changed"]
    said = f"已删除 {number} 条，可撤销" if path == DELETE else f"已恢复 {number} 条"
    assert answered["message"] == said
    return number


async def happened(client: Client, number: int) -> list[dict[str, Any]]:
    """The events of an annotation."""
    body = await accepted(await client.get(f"{ANNOTATIONS}/{number}/history"), answers.History)
    events: list[dict[str, Any]] = body["data"]["events"]
    return events


async def exported(client: Client, folder: Path) -> tuple[int, ...]:
    """How many rows an export writes to preference, roleplay and unpaired."""
    return tuple((await export(client.app[LOOP].database, exporter("sharegpt"), folder, "li")).values())


async def stored(client: Client, *contents: str, adapter: str | None = None) -> str:
    """A generation with these candidates, as an adapter made it."""

    async def work(session: Any) -> int:
        settings = {"mode": "single", "system_prompt": "你是离。"}
        turn = Generation(message="?", context=[], settings=settings, base_model="m", adapter=adapter, seed=1)
        session.add(turn)
        await session.flush()
        for ordinal, content in enumerate(contents, 1):
            made = {"content": content, "finish_reason": "stop", "tokens": 1}
            session.add(Candidate(generation_id=turn.id, ordinal=ordinal, **made))
        return turn.id

    return str(await client.app[LOOP].database.write(work))


async def _add(client: Client, number: int = 1, **fields: Any) -> None:
    for _ in range(number):
        await accepted(await client.post("/api/dataset/add", json=PAIR | fields), answers.Added)


@pytest.mark.parametrize("mode", ["single", "multi"])
@pytest.mark.parametrize(("choice", "ranks", "rows", "single", "multi"), VERDICTS, ids=lambda case: str(case)[:50])
async def test_each_verdict_from_candidates_to_export(  # noqa: PLR0913 - a row of the table
    client: Client,
    tmp_path: Path,
    mode: str,
    choice: dict[str, Any],
    ranks: list[int | None],
    rows: tuple[int, int],
    single: tuple[int, int, int],
    multi: tuple[int, int, int],
) -> None:
    """A choice that names candidates by id is stored with their words and ranks, counted, listed and exported."""
    turn = await generated(client, mode=mode)
    data = await chosen(client, turn["generation_id"], **choice)
    listed = choice["verdict"] not in ("bad", "skip")
    assert data == {"id": 1, "pairs": rows[0], "unpaired": rows[1], "total": int(listed)}
    assert await counts(client) == ((int(listed), 0) if mode == "single" else (0, int(listed)))
    annotation = await one(client, 1)
    about = {"verdict": choice["verdict"], "mode": mode, "human_input": "你是谁？", "system_prompt": "你是离。"}
    assert {name: annotation[name] for name in about} == about
    assert annotation["generation_id"] == turn["generation_id"] and annotation["deleted"] is False
    replies = [
        {"content": reply["content"], "thinking": reply.get("thinking"), "rank": rank, "candidate": reply["id"]}
        for reply, rank in zip(turn["responses"], ranks, strict=True)
    ]
    assert annotation["replies"] == replies
    best = next((reply["content"] for reply in replies if reply["rank"] == 1), None)
    assert annotation["chosen"] == best
    dataset = "preference" if mode == "single" else "roleplay"
    items = await accepted(await client.get("/api/dataset/list", params={"dataset": dataset}), answers.Items)
    assert [item["chosen"] for item in items["data"]["items"]] == ([best] if listed else [])
    assert await exported(client, tmp_path / "to") == (single if mode == "single" else multi)


@pytest.mark.parametrize("thinking", [{}, {"thinking": None}, {"thinking": "熟客。"}], ids=str)
async def test_an_edit_is_better_than_its_original(client: Client, tmp_path: Path, thinking: dict[str, Any]) -> None:
    """The edited text is chosen, the original rejected; the other candidates are no part of it."""
    turn = await generated(client)
    original = turn["responses"][1]
    data = await chosen(client, turn["generation_id"], verdict="edit", chosen=2, content="我叫离~", **thinking)
    assert data == {"id": 1, "pairs": 1, "unpaired": 0, "total": 1}
    annotation = await one(client, 1)
    assert annotation["replies"] == [
        {"content": "我叫离~", "thinking": thinking.get("thinking"), "rank": 1, "candidate": None},
        {"content": original["content"], "thinking": original.get("thinking"), "rank": 2, "candidate": 2},
    ]
    assert await exported(client, tmp_path) == (1, 0, 0)
    row = json.loads((tmp_path / "li_preference.json").read_text(encoding="utf-8"))[0]
    assert row["chosen"]["value"].endswith("我叫离~") and row["rejected"]["value"].endswith(original["content"])


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turn(standing: Client) -> AsyncIterator[Any]:
    """A generation of the standing server."""
    yield await generated(standing)


@shared
@pytest.mark.parametrize(("choice", "fields"), WRONG, ids=str)
async def test_a_choice_that_does_not_fit_its_verdict(
    standing: Client, turn: Any, choice: dict[str, Any], fields: set[str]
) -> None:
    """What the verdict needs and lacks, what is of no use to it, and what names no candidate is named; nothing stored."""
    before = await found(standing)
    assert await faults(await standing.post(CHOICES, json={"generation_id": turn["generation_id"]} | choice)) == fields
    assert await found(standing) == before


@shared
async def test_an_edit_that_changes_nothing_is_refused(standing: Client, turn: Any) -> None:
    """The original's own words are no edit; `content` is named."""
    same = {name: value for name, value in turn["responses"][0].items() if name in ("content", "thinking")}
    choice = {"generation_id": turn["generation_id"], "verdict": "edit", "chosen": 1} | same
    assert await faults(await standing.post(CHOICES, json=choice)) == {"content"}


@shared
async def test_a_choice_names_a_generation(standing: Client) -> None:
    """A generation that there is not is 404; what is no id of one is 400."""
    for number in ("0", "99", "9" * 18):
        answer = await standing.post(CHOICES, json={"generation_id": number, "verdict": "skip"})
        await refused(answer, 404, f"未找到生成记录 {int(number)}")
    for wrong in (1, "-1", "1.0", "x", "一", "²", "9" * 19):
        answer = await standing.post(CHOICES, json={"generation_id": wrong, "verdict": "skip"})
        assert await faults(answer) == {"generation_id"}


async def test_choosing_again_replaces_the_first_choice(client: Client, tmp_path: Path) -> None:
    """A generation has one choice: the last one counts and is exported, the history keeps both."""
    number = await stored(client, "甲", "乙", "丙")
    await chosen(client, number, verdict="best", chosen=1, note="好", reasons=["暖"])
    assert (await chosen(client, number, verdict="bad", annotator="Ann"))["total"] == 0
    again = await chosen(client, number, verdict="ranking", ranking=[[3], [2]])
    assert again == {"id": 1, "pairs": 1, "unpaired": 0, "total": 1}
    annotation = await one(client, 1)
    assert (annotation["chosen"], annotation["rejected"]) == ("丙", "乙")
    assert (annotation["note"], annotation["reasons"], annotation["annotator"]) == (None, [], None)
    assert await found(client) == [1] and await exported(client, tmp_path) == (1, 0, 0)
    events = await happened(client, 1)
    assert [(event["kind"], event["annotator"]) for event in events] == [("choose", None), ("choose", "Ann")] + [
        ("choose", None)
    ]
    assert (events[1]["before"]["verdict"], events[1]["after"]["verdict"]) == ("best", "bad")


async def test_choosing_again_after_a_deletion_brings_the_choice_back(client: Client) -> None:
    """A deleted choice is one to make anew; the same choice twice is one step."""
    number = await stored(client, "甲", "乙")
    await chosen(client, number, verdict="best", chosen=1)
    await chosen(client, number, verdict="best", chosen=1)
    assert len(await happened(client, 1)) == 1
    await changed(client, DELETE, {"ids": [1]})
    assert (await chosen(client, number, verdict="best", chosen=1))["total"] == 1
    assert (await one(client, 1))["deleted"] is False and await counts(client) == (1, 0)


@pytest.fixture
async def shelf(client: Client) -> Client:
    """Six annotations, 1 to 6; the last one is deleted. Their times are the first six days of 2026."""
    await _add(client, human_input="雨天读什么？", chosen="读诗~", rejected="随便。")
    await client.post("/api/dataset/add", json=TALK | {"context": [{"role": "assistant", "content": "Good EVENING."}]})
    await chosen(client, await stored(client, "诗集", "小说", adapter="li-simpo-1"), verdict="best", chosen=1)
    number = await stored(client, "50% off", "a_b", adapter="li-simpo-2")
    await chosen(client, number, verdict="bad", reasons=["太冷", "长"], annotator="Ann", note="像说明书")
    await chosen(client, await stored(client, "诗", "歌"), verdict="skip", reasons=["冷"], annotator="Bob")
    await _add(client, human_input="雨天读什么？")
    await changed(client, DELETE, {"ids": [6]})

    async def work(session: Any) -> None:
        for number in range(1, 7):
            time = datetime(2026, 1, number, 12, 0, 0, 500_000)  # noqa: DTZ001 - as the tables hold it
            await session.execute(update(Annotation).where(Annotation.id == number).values(created_at=time))

    await client.app[LOOP].database.write(work)
    return client


FILTERS: list[tuple[dict[str, str], list[int]]] = [
    ({}, [5, 4, 3, 2, 1]),
    ({"q": "读什"}, [1]),
    ({"q": "good evening"}, [2]),
    ({"q": "VENIN"}, [2]),
    ({"q": "说明"}, [4]),
    ({"q": "0% o"}, [4]),
    ({"q": "诗集小说"}, []),
    ({"q": "a%b"}, []),
    ({"q": '" OR "'}, []),
    ({"q": "离" * 100}, []),
    ({"dataset": "preference"}, [5, 4, 3, 1]),
    ({"dataset": "roleplay"}, [2]),
    ({"verdict": "best"}, [3, 1]),
    ({"verdict": "good"}, [2]),
    ({"verdict": "bad"}, [4]),
    ({"adapter": "li-simpo-1"}, [3]),
    ({"adapter": "li-simpo"}, []),
    ({"annotator": "Ann"}, [4]),
    ({"annotator": "ann"}, []),
    ({"reason": "冷"}, [5]),
    ({"reason": "太冷"}, [4]),
    ({"reason": "长"}, [4]),
    ({"since": "2026-01-04"}, [5, 4]),
    ({"since": "2026-01-04T12:00:00Z"}, [5, 4]),
    ({"since": "2026-01-04T20:00:01+08:00"}, [5]),
    ({"until": "2026-01-03T12:00:00Z"}, [2, 1]),
    ({"since": "2026-01-02", "until": "2026-01-04"}, [3, 2]),
    ({"deleted": "true"}, [6]),
    ({"deleted": "false"}, [5, 4, 3, 2, 1]),
    ({"deleted": "true", "q": "雨天", "verdict": "best"}, [6]),
    ({"character": "li", "dataset": "preference", "verdict": "best", "adapter": "li-simpo-1", "q": "诗集"}, [3]),
    ({"before": "4", "limit": "2"}, [3, 2]),
    ({"before": "1"}, []),
]


async def test_every_filter_narrows_the_search(shelf: Client) -> None:
    """Each filter finds what it says and no more, alone and with others; the newest come first."""
    for query, expected in FILTERS:
        assert await found(shelf, **query) == expected, query


async def test_a_reason_is_a_whole_tag(client: Client) -> None:
    """A tag is found by itself, not as the end or the beginning of another one, whatever signs that has."""
    await _add(client, 5)
    for number, tag in enumerate(("冷", '太"冷', '冷"太', "冷\\", '["冷"]'), 1):
        answer = await client.post(f"{ANNOTATIONS}/{number}/edit", json={"reasons": [tag]})
        await accepted(answer, answers.One)
    assert [await found(client, reason=tag) for tag in ('太"冷', '冷"太', "冷\\", '["冷"]')] == [[2], [3], [4], [5]]
    assert await found(client, reason="冷") == [1]


@shared
@pytest.mark.parametrize(
    ("query", "field"),
    [(f"q={value}", "q") for value in ("", "x", "离", "离" * 101, "%20%20", "a%00b")]
    + [(f"dataset={value}", "dataset") for value in ("", "single", "unpaired")]
    + [(f"verdict={value}", "verdict") for value in ("", "Best", "tie")]
    + [(f"{name}={value}", name) for name in ("since", "until") for value in ("", "now", "2026-13-01", "1700000000.0")]
    + [(f"deleted={value}", "deleted") for value in ("", "1", "True", "yes")]
    + [(f"before={value}", "before") for value in ("", "-1", "1.0", "x", "9" * 400)]
    + [(f"limit={value}", "limit") for value in ("", "0", "1001", "-1", "ten")]
    + [(f"character={value}", "character") for value in ("", "Li", "nobody", "a-b")]
    + [("q=ab&q=cd", "q"), ("mode=single", "mode")],
)
async def test_search_refuses_other_parameters(standing: Client, query: str, field: str) -> None:
    """A parameter just outside its range, of another type, twice or unknown is refused by its name."""
    assert await faults(await standing.get(f"{ANNOTATIONS}?{query}")) == {field}


@pytest.mark.parametrize("query", [{}, {"q": "你是"}], ids=str)
async def test_pages_hold_each_annotation_once(client: Client, query: dict[str, str]) -> None:
    """Going from page to page meets each annotation once, newest first, also while others come and go."""
    await _add(client, 11)
    pages: list[list[int]] = []
    before: dict[str, int] = {}
    while True:
        params: dict[str, str | int] = {**query, **before, "limit": 4}
        data = (await accepted(await client.get(ANNOTATIONS, params=params), answers.Found))["data"]
        pages.append([item["id"] for item in data["items"]])
        if data["next"] is None:
            break
        before = {"before": data["next"]}
        await _add(client)
        await changed(client, DELETE, {"ids": [pages[-1][-1]]})
    assert pages == [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1]]


async def test_the_last_page_has_no_next(client: Client) -> None:
    """Where nothing older is left `next` is null, also where the page is full."""
    await _add(client, 4)
    for params in ({"limit": 5}, {"limit": 4}, {"limit": 2, "before": 3}):
        data = (await accepted(await client.get(ANNOTATIONS, params=params), answers.Found))["data"]
        assert data["items"][-1]["id"] == 1 and data["next"] is None, params


@pytest.mark.parametrize("path", ["", "/history"])
async def test_one_annotation_is_read_by_its_id(client: Client, path: str) -> None:
    """One that there is not is 404, with its id however long; a deleted one is there."""
    await _add(client)
    await changed(client, DELETE, {"ids": [1]})
    assert (await client.get(f"{ANNOTATIONS}/1{path}")).status == 200
    for number in ("0", "2", "9" * 18, "9" * 19, "9" * 400, "-1", "x", "1.0"):
        await refused(await client.get(f"{ANNOTATIONS}/{number}{path}"), 404, "未找到")
    annotation = await one(client, 1)
    assert annotation["deleted"] is True
    assert {name: annotation[name] for name in ADDED} == ADDED
    assert {name: annotation[name] for name in PAIR} == PAIR


async def test_history_tells_what_happened(client: Client) -> None:
    """Every step is an event with the changed fields before and after, oldest first; nothing goes away."""
    await _add(client)
    await client.post(f"{ANNOTATIONS}/1/edit", json={"note": "好", "human_input": PAIR["human_input"]})
    await changed(client, DELETE, {"ids": [1]})
    for path in (UNDO, UNDO, REDO):
        await accepted(await client.post(path), answers.Undone)
    events = await happened(client, 1)
    note = ({"note": None}, {"note": "好"})
    assert [event["kind"] for event in events] == ["add", "edit", "delete", "undo", "undo", "redo"]
    changes = [(event["before"], event["after"]) for event in events]
    assert changes[0] == ({"deleted": True}, {"deleted": False})
    assert changes[2] == changes[3][::-1] == ({"deleted": False}, {"deleted": True})
    assert all(
        name in changes[1][side] and changes[1][side][name] == note[side][name] for side in (0, 1) for name in ("note",)
    )
    assert changes[4] == changes[5][::-1] == changes[1][::-1]
    assert len({event["step"] for event in events}) == 6
    assert all(datetime.fromisoformat(event["created_at"]).tzinfo is not None for event in events)
