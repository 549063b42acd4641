"""Choices over HTTP, from real candidates of the tiny model to the exported rows."""

import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import pytest_asyncio

from prefanno.web import annotation_answers, answers
from tests.conftest import Client
from tests.properties import spelled
from tests.web.choosing import CHOICES, DELETE, changed, chosen, exported, found, generated, happened, one, stored
from tests.web.conftest import accepted, counts, faults, refused, shared


class Case(NamedTuple):
    """A choice among three candidates and what follows: ranks, pairs and unpaired replies, and exported rows.

    Rows are those of preference, roleplay and unpaired, first of single mode, then of multi mode.
    """

    choice: dict[str, Any]
    ranks: list[int | None]
    follow: tuple[int, int]
    rows: dict[str, tuple[int, int, int]]


def _case(choice: dict[str, Any], ranks: list[int | None], follow: tuple[int, int], single: str, multi: str) -> Case:
    rows = {mode: (int(text[0]), int(text[1]), int(text[2])) for mode, text in (("single", single), ("multi", multi))}
    return Case(choice, ranks, follow, rows)


VERDICTS = [
    _case({"verdict": "best", "chosen": 2}, [2, 1, 2], (2, 0), "200", "210"),
    _case({"verdict": "ranking", "ranking": [[3], [1], [2]]}, [2, 3, 1], (3, 0), "300", "310"),
    _case({"verdict": "ranking", "ranking": [[2], [1, 3]]}, [2, 1, 2], (2, 0), "200", "210"),
    _case({"verdict": "ranking", "ranking": [[3], [2]]}, [None, 2, 1], (1, 0), "100", "110"),
    _case({"verdict": "ranking", "ranking": [[1, 2, 3]]}, [1, 1, 1], (0, 0), "000", "010"),
    _case({"verdict": "good", "chosen": 3}, [None, None, 1], (0, 1), "001", "010"),
    _case({"verdict": "bad"}, [None, None, None], (0, 3), "003", "003"),
    _case({"verdict": "skip"}, [None, None, None], (0, 0), "000", "000"),
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


@shared
@pytest.mark.parametrize("mode", ["single", "multi"])
@pytest.mark.parametrize("case", VERDICTS, ids=lambda case: json.dumps(case.choice))
async def test_each_verdict_from_candidates_to_export(standing: Client, tmp_path: Path, mode: str, case: Case) -> None:
    """A choice that names candidates by id is stored with their words and ranks, counted, listed and exported."""
    slug = f"{mode}_{VERDICTS.index(case)}"
    await standing.post("/api/characters", json={"slug": slug, "name": "Mia"})
    choice, turn = case.choice, await generated(standing, mode=mode, character=slug)
    data = await chosen(standing, turn["generation_id"], **choice)
    listed = case.rows[mode][1 if mode == "multi" else 0] > 0
    assert (data["pairs"], data["unpaired"], data["total"]) == (*case.follow, int(listed))
    annotation = await one(standing, data["id"])
    about = {"verdict": choice["verdict"], "mode": mode, "human_input": "你是谁？", "system_prompt": "你是离。"}
    about |= {"character": slug, "generation_id": turn["generation_id"]}
    assert {name: annotation[name] for name in about} == about and annotation["deleted"] is False
    replies = [
        {"content": reply["content"], "thinking": reply.get("thinking"), "rank": rank, "candidate": reply["id"]}
        for reply, rank in zip(turn["responses"], case.ranks, strict=True)
    ]
    assert annotation["replies"] == replies
    best = next((reply["content"] for reply in replies if reply["rank"] == 1), None)
    assert annotation["chosen"] == best
    query = {"dataset": "preference" if mode == "single" else "roleplay", "character": slug}
    items = await accepted(await standing.get("/api/dataset/list", params=query), answers.Items)
    assert items["data"]["total"] == int(listed)
    assert [item["chosen"] for item in items["data"]["items"]] == ([best] if listed else [])
    assert await exported(standing, tmp_path, slug) == case.rows[mode]


@shared
@pytest.mark.parametrize("thinking", [{}, {"thinking": None}, {"thinking": "熟客。"}], ids=str)
async def test_an_edit_is_better_than_its_original(standing: Client, turn: Any, thinking: dict[str, Any]) -> None:
    """The edited text is chosen, by default with the original's thought, the original rejected; no other takes part."""
    original = turn["responses"][1]
    own = original.get("thinking")
    data = await chosen(standing, turn["generation_id"], verdict="edit", chosen=2, content="我叫离~", **thinking)
    assert (data["pairs"], data["unpaired"]) == (1, 0)
    annotation = await one(standing, data["id"])
    assert annotation["replies"] == [
        {"content": "我叫离~", "thinking": thinking.get("thinking") or own, "rank": 1, "candidate": None},
        {"content": original["content"], "thinking": own, "rank": 2, "candidate": 2},
    ]
    sides = ("我叫离~", thinking.get("thinking") or own, original["content"], own)
    assert tuple(annotation[name] for name in ("chosen", "chosen_thinking", "rejected", "rejected_thinking")) == sides


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def turn(standing: Client) -> AsyncIterator[Any]:
    """A generation of the standing server."""
    yield await generated(standing)


@shared
@pytest.mark.parametrize(("choice", "fields"), WRONG, ids=spelled)
async def test_a_choice_that_does_not_fit_its_verdict(
    standing: Client, turn: Any, choice: dict[str, Any], fields: set[str]
) -> None:
    """What the verdict needs and lacks, what is of no use to it, and what names no candidate is named."""
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
    assert again == {"id": 1, "pairs": 1, "unpaired": 0, "total": 1, "changed": 1}
    same = {"generation_id": number, "verdict": "ranking", "ranking": [[3], [2]]}
    body = await accepted(await client.post(CHOICES, json=same), annotation_answers.Chosen)
    assert (body["data"]["changed"], body["message"]) == (0, "与现有选择相同，未作更改")
    annotation = await one(client, 1)
    assert (annotation["chosen"], annotation["rejected"]) == ("丙", "乙")
    assert (annotation["note"], annotation["reasons"], annotation["annotator"]) == (None, [], None)
    assert await found(client) == [1] and await exported(client, tmp_path) == (1, 0, 0)
    events = await happened(client, 1)
    assert [(event["kind"], event["annotator"]) for event in events] == [
        ("choose", None),
        ("choose", "Ann"),
        ("choose", None),
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
