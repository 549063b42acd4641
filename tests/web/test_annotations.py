"""Annotations over HTTP: search, filters, pages, one of them, its history."""

from datetime import datetime
from typing import Any

import pytest
from sqlalchemy import update

from prefanno.db.models import Annotation
from prefanno.keys import LOOP
from prefanno.web import annotation_answers as answers
from tests.conftest import Client
from tests.web.choosing import (
    ADDED,
    ANNOTATIONS,
    DELETE,
    REDO,
    RESTORE,
    UNDO,
    add,
    changed,
    chosen,
    found,
    happened,
    one,
    stored,
)
from tests.web.conftest import PAIR, TALK, accepted, faults, refused, shared


@pytest.fixture
async def shelf(client: Client) -> Client:
    """Six annotations, 1 to 6; the last one is deleted. Their times are the first six days of 2026."""
    await add(client, human_input="雨天读什么？", chosen="读诗~", rejected="随便。")
    await client.post("/api/dataset/add", json=TALK | {"context": [{"role": "assistant", "content": "Good EVENING."}]})
    await chosen(client, await stored(client, "诗集", "小说", adapter="li-simpo-1"), verdict="best", chosen=1)
    number = await stored(client, "50% off", "a_b", adapter="li-simpo-2")
    await chosen(client, number, verdict="bad", reasons=["太冷", "长"], annotator="Ann", note="像说明书")
    await chosen(client, await stored(client, "诗", "歌"), verdict="skip", reasons=["冷"], annotator="Bob")
    await add(client, human_input="雨天读什么？")
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
    await add(client, 5)
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
    await add(client, 11)
    pages: list[list[int]] = []
    before: dict[str, int] = {}
    while True:
        params: dict[str, str | int] = {**query, **before, "limit": 4}
        data = (await accepted(await client.get(ANNOTATIONS, params=params), answers.Found))["data"]
        pages.append([item["id"] for item in data["items"]])
        if data["next"] is None:
            break
        before = {"before": data["next"]}
        await add(client)
        await changed(client, DELETE, {"ids": [pages[-1][-1]]})
    assert pages == [[11, 10, 9, 8], [7, 6, 5, 4], [3, 2, 1]]


async def test_the_last_page_has_no_next(client: Client) -> None:
    """Where nothing older is left `next` is null, also where the page is full."""
    await add(client, 4)
    for params in ({"limit": 5}, {"limit": 4}, {"limit": 2, "before": 3}):
        data = (await accepted(await client.get(ANNOTATIONS, params=params), answers.Found))["data"]
        assert data["items"][-1]["id"] == 1 and data["next"] is None, params


@pytest.mark.parametrize("path", ["", "/history"])
async def test_one_annotation_is_read_by_its_id(client: Client, path: str) -> None:
    """One that there is not is 404, with its id however long; a deleted one is there."""
    await add(client)
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
    await add(client)
    await client.post(f"{ANNOTATIONS}/1/edit", json={"note": "好", "human_input": PAIR["human_input"]})
    await changed(client, DELETE, {"ids": [1]})
    for path in (UNDO, UNDO, REDO):
        await accepted(await client.post(path), answers.Undone)
    events = await happened(client, 1)
    assert [event["kind"] for event in events] == ["add", "edit", "delete", "undo", "undo", "redo"]
    changes = [(event["before"], event["after"]) for event in events]
    assert changes[0] == ({"deleted": True}, {"deleted": False})
    assert changes[1] == ({"note": None}, {"note": "好"})
    assert changes[2] == changes[3][::-1] == ({"deleted": False}, {"deleted": True})
    assert changes[4] == changes[1][::-1] and changes[5] == changes[1]
    assert len({event["step"] for event in events}) == len(events)
    assert all(datetime.fromisoformat(event["created_at"]).tzinfo is not None for event in events)


async def test_many_are_deleted_and_restored_by_what_finds_them(shelf: Client) -> None:
    """`where` deletes what the search finds, in one step, and restores it among the deleted; no other is touched."""
    everything = await found(shelf)
    for where, ids in FILTERS:
        if {"deleted", "before", "limit"} & set(where):
            continue
        assert await changed(shelf, DELETE, {"where": where}) == len(ids), where
        assert await found(shelf) == [number for number in everything if number not in ids]
        if ids:
            assert (await accepted(await shelf.post(UNDO), answers.Undone))["data"]["changed"] == len(ids)
        assert await found(shelf) == everything
        await changed(shelf, DELETE, {"ids": everything})
        again = set(await found(shelf, deleted="true", **where))
        assert again - {6} == set(ids)
        assert await changed(shelf, RESTORE, {"where": where}) == len(again)
        assert set(await found(shelf)) == again
        await changed(shelf, RESTORE, {"ids": everything})
        await changed(shelf, DELETE, {"ids": [6]})
