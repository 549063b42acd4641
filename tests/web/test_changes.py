"""Changes of annotations over HTTP: edit, delete, restore, undo, redo."""

from typing import Any

import pytest

from prefanno.web import annotation_answers as answers
from tests.conftest import Client
from tests.properties import spelled
from tests.web.choosing import (
    ANNOTATIONS,
    DELETE,
    REDO,
    RESTORE,
    UNDO,
    add,
    added,
    changed,
    chosen,
    found,
    happened,
    one,
    stored,
)
from tests.web.conftest import PAIR, accepted, counts, faults, refused, shared

EDITS: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"note": "好"}, {}),
    ({"note": None}, {}),
    ({"annotator": "Ann", "reasons": ["暖", "短"]}, {}),
    ({"annotator": None, "reasons": []}, {}),
    ({"human_input": "你叫什么？"}, {}),
    ({"context": [{"role": "user", "content": "在吗"}, {"role": "assistant", "content": "在。"}]}, {}),
    ({"context": []}, {}),
    ({"context": None}, {"context": []}),
    ({"verdict": "ranking"}, {}),
    (
        {
            "replies": [
                {"content": "我叫离~", "rank": 1, "thinking": "嗯"},
                {"content": "不", "rank": 2},
            ]
        },
        {
            "chosen_thinking": "嗯",
            "rejected": "不",
            "replies": [
                {"content": "我叫离~", "thinking": "嗯", "rank": 1, "candidate": None},
                {"content": "不", "thinking": None, "rank": 2, "candidate": None},
            ],
        },
    ),
    (
        {"verdict": "bad", "replies": [{"content": "不"}]},
        {
            "chosen": None,
            "rejected": None,
            "replies": [{"content": "不", "thinking": None, "rank": None, "candidate": None}],
        },
    ),
]


@shared
@pytest.mark.parametrize(("edit", "shown"), EDITS, ids=str)
async def test_an_edit_changes_what_it_names_and_nothing_else(
    standing: Client, edit: dict[str, Any], shown: dict[str, Any]
) -> None:
    """The fields given are changed, null ones emptied; every other field stays as it was."""
    number = await added(standing, context=[{"role": "assistant", "content": "欢迎~"}])
    path = f"{ANNOTATIONS}/{number}/edit"
    about = {
        "note": "先前",
        "annotator": "Bob",
        "reasons": ["长"],
        "context": [{"role": "assistant", "content": "请进。"}],
    }
    await accepted(await standing.post(path, json=about), answers.One)
    answered = await accepted(await standing.post(path, json=edit), answers.One)
    after = await one(standing, number)
    assert answered["message"] == "已修改" and answered["data"] == after
    expected = PAIR | about | edit | shown
    assert {name: after[name] for name in expected} == expected


@shared
@pytest.mark.parametrize(
    ("edit", "fields"),
    [
        ({}, {"body"}),
        *[({name: None}, {name}) for name in ("human_input", "verdict", "replies", "reasons")],
        ({"replies": []}, {"replies"}),
        ({"replies": [{"rank": 1}]}, {"replies.0.content"}),
        (
            {"replies": [{"content": "好", "rank": 0}, {"content": "不", "rank": 101}]},
            {"replies.0.rank"} | {"replies.1.rank"},
        ),
        ({"replies": [{"content": "好", "rank": 1, "weight": 1}]}, {"replies.0.weight"}),
        ({"replies": [{"content": "好", "rank": 1, "candidate": 3}, {"content": "不", "rank": 2}]}, {"replies"}),
        ({"context": [{"role": "user", "content": "在吗"}]}, {"context"}),
        ({"mode": "multi", "character": "li", "id": 2}, {"mode", "character", "id"}),
        *[({"verdict": verdict}, {"replies"}) for verdict in ("good", "bad", "skip")],
        *[
            ({"verdict": verdict, "replies": [{"content": str(rank), "rank": rank} for rank in ranks]}, {"replies"})
            for verdict, ranks in (
                ("best", [1]),
                ("best", [1, 1]),
                ("best", [1, None]),
                ("best", [1, 3]),
                ("best", [2, 2]),
                ("ranking", [1]),
                ("ranking", [1, 3]),
                ("ranking", [2, 3]),
                ("ranking", [None, None]),
                ("edit", [1, 2, None]),
                ("edit", [1, 2, 2]),
                ("edit", [1, 1]),
                ("good", [None]),
                ("good", [1, 2]),
                ("bad", [1]),
                ("bad", [None, 2]),
                ("skip", [1, None]),
            )
        ],
    ],
    ids=spelled,
)
async def test_an_edit_that_does_not_fit_is_refused(standing: Client, edit: dict[str, Any], fields: set[str]) -> None:
    """Nothing to change, malformed fields, and ranks that are not those of the verdict are named; nothing changes."""
    number = await added(standing)
    before = await one(standing, number)
    assert await faults(await standing.post(f"{ANNOTATIONS}/{number}/edit", json=edit)) == fields
    assert await one(standing, number) == before and len(await happened(standing, number)) == 1


async def test_an_edit_needs_an_annotation_that_is_not_deleted(client: Client) -> None:
    """An unknown one is 404; a deleted one 409, with the cure, until it is restored."""
    await add(client)
    await refused(await client.post(f"{ANNOTATIONS}/2/edit", json={"note": "好"}), 404, "未找到标注 2")
    await changed(client, DELETE, {"ids": [1]})
    body = await refused(await client.post(f"{ANNOTATIONS}/1/edit", json={"note": "好"}), 409, "标注 1 已删除")
    assert "恢复" in body["detail"]
    await changed(client, RESTORE, {"ids": [1]})
    await accepted(await client.post(f"{ANNOTATIONS}/1/edit", json={"note": "好"}), answers.One)


async def test_search_follows_an_edit_and_its_undo(client: Client) -> None:
    """New words are found, old ones no more; undone, it is the other way round; a verdict changes the count."""
    await add(client)
    edit = {"human_input": "Who are you?", "verdict": "bad", "replies": [{"content": "Go away."}]}
    await client.post(f"{ANNOTATIONS}/1/edit", json=edit)
    assert (await found(client, q="go AWAY"), await found(client, q="我叫离")) == ([1], [])
    assert await counts(client) == (0, 0)
    await accepted(await client.post(UNDO), answers.Undone)
    assert (await found(client, q="go AWAY"), await found(client, q="我叫离")) == ([], [1])
    assert await counts(client) == (1, 0)


async def test_many_are_deleted_and_restored_by_their_ids(client: Client) -> None:
    """One step for all; the answer counts those that were not so before, each once."""
    await add(client, 4)
    assert await changed(client, DELETE, {"ids": [2, 4, 2]}) == 2
    assert (await found(client), await found(client, deleted="true")) == ([3, 1], [4, 2])
    assert await counts(client) == (2, 0)
    assert await changed(client, DELETE, {"ids": [1, 2]}) == 1
    assert await changed(client, DELETE, {"ids": [1, 2]}) == 0
    assert await changed(client, RESTORE, {"ids": [4, 3, 1]}) == 2
    assert await found(client) == [4, 3, 1] and await counts(client) == (3, 0)


@pytest.mark.parametrize("path", [DELETE, RESTORE])
async def test_a_bulk_change_is_of_all_or_none(client: Client, path: str) -> None:
    """Neither or both of ids and where, a bad filter, an unknown id or two characters: refused, nothing changes."""
    await add(client, 2)
    await client.post("/api/characters", json={"slug": "mia", "name": "Mia"})
    await add(client, character="mia")
    if path == RESTORE:
        await changed(client, DELETE, {"ids": [1, 2]})
        await changed(client, DELETE, {"ids": [3]})
    before = [await one(client, number) for number in (1, 2, 3)]
    wrong: list[tuple[dict[str, Any], set[str]]] = [
        ({}, {"ids"}),
        ({"ids": [1], "where": {}}, {"ids"}),
        ({"ids": [0]}, {"ids.0"}),
        ({"ids": [1] * 10_001}, {"ids"}),
        ({"ids": [1, 3]}, {"ids"}),
        ({"where": {"q": "离"}}, {"where.q"}),
        ({"where": {"deleted": True}}, {"where.deleted"}),
        ({"where": {"limit": 1}}, {"where.limit"}),
        ({"where": {"since": "yesterday"}}, {"where.since"}),
    ]
    for body, fields in wrong:
        assert await faults(await client.post(path, json=body)) == fields, body
    await refused(await client.post(path, json={"ids": [1, 2, 9]}), 404, "未找到标注 9")
    assert [await one(client, number) for number in (1, 2, 3)] == before


async def test_undo_and_redo_go_step_by_step_to_both_ends(client: Client) -> None:
    """Each names its step and how many it touched; at either end it is 409; the counts follow."""
    number = await stored(client, "甲", "乙")
    await chosen(client, number, verdict="best", chosen=1)
    await add(client, 2)
    await client.post(f"{ANNOTATIONS}/2/edit", json={"note": "好"})
    await changed(client, DELETE, {"ids": [1, 2, 3]})
    await changed(client, RESTORE, {"ids": [2, 3]})
    steps = [("choose", 1, "选择"), ("add", 1, "添加"), ("add", 1, "添加"), ("edit", 1, "修改")]
    steps += [("delete", 3, "删除"), ("restore", 2, "恢复")]
    sizes = [1, 2, 3, 3, 0, 2]
    for (kind, touched, word), size in zip(steps[::-1], [*sizes[-2::-1], 0], strict=True):
        body = await accepted(await client.post(UNDO), answers.Undone)
        data = {name: body["data"][name] for name in ("character", "kind", "changed")}
        assert data == {"character": "li", "kind": kind, "changed": touched} and await counts(client) == (size, 0)
        assert body["message"] == f"已撤销：{word} {touched} 条"
    await refused(await client.post(UNDO), 409, "没有可撤销的操作")
    for (kind, touched, word), size in zip(steps, sizes, strict=True):
        body = await accepted(await client.post(REDO, json={"character": "li"}), answers.Undone)
        data = {name: body["data"][name] for name in ("character", "kind", "changed")}
        assert data == {"character": "li", "kind": kind, "changed": touched} and await counts(client) == (size, 0)
        assert body["message"] == f"已重做：{word} {touched} 条"
    await refused(await client.post(REDO), 409, "没有可重做的操作")


async def test_something_new_leaves_nothing_to_redo(client: Client) -> None:
    """After an undo and then an add, the undone step is gone from redo, and undo takes the add."""
    await add(client, 2)
    await accepted(await client.post(UNDO), answers.Undone)
    await add(client)
    await refused(await client.post(REDO), 409, "没有可重做的操作")
    await accepted(await client.post(UNDO), answers.Undone)
    assert await found(client) == [1]
