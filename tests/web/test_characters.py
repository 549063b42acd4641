"""Characters over HTTP: each owns its persona, data, files and adapters; every endpoint works on one of them."""

import json
from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from prefanno import persona
from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web import annotation_answers, answers
from tests import tiny
from tests.conftest import Client, MakeClient
from tests.properties import spelled
from tests.web.choosing import found, one
from tests.web.conftest import LASTING, PAIR, TALK, MakeTrainer, accepted, faults, refused, shared

CHARACTERS, LOAD, ADD = "/api/characters", "/api/model/load", "/api/dataset/add"
MIA = {"slug": "mia", "name": "Mia", "system_prompt": "You are Mia, an adult gardener."}
SHORT = {"max_new_tokens": 64, "num_responses": 2}


async def _everyone(client: Client) -> tuple[str, dict[str, dict[str, Any]]]:
    """The current slug, and all characters by theirs."""
    data = (await accepted(await client.get(CHARACTERS), annotation_answers.Characters))["data"]
    return data["current"], {item["slug"]: item for item in data["items"]}


async def _made(client: Client, **fields: Any) -> dict[str, Any]:
    body = await accepted(await client.post(CHARACTERS, json=MIA | fields), annotation_answers.OneCharacter)
    assert body["message"] == f"已创建角色 {(MIA | fields)['name']}"
    data: dict[str, Any] = body["data"]
    return data


async def _select(client: Client, slug: str) -> None:
    body = await accepted(await client.post(f"{CHARACTERS}/{slug}/select"), annotation_answers.OneCharacter)
    assert body["data"]["slug"] == slug and body["message"] == f"当前角色：{body['data']['name']}"


async def _stats(client: Client, **query: str) -> dict[str, tuple[str, int]]:
    """Name of the file and count, by dataset."""
    data = (await accepted(await client.get("/api/dataset/stats", params=query), answers.Stats))["data"]
    return {name: (Path(data[name]["file"]).name, data[name]["count"]) for name in ("preference", "roleplay")}


async def _persona(client: Client, number: int) -> str:
    prompt: str = (await one(client, number))["system_prompt"]
    return prompt


def _adapter(client: Client, name: str) -> str:
    """The folder of a complete, random adapter of the tiny model."""
    settings = client.app[LOOP].settings
    folder = tiny.adapt(settings.outputs / name, settings.model)
    (folder / "prefanno.json").write_text(json.dumps({"base_model": settings.model, "run": 1}))
    return str(folder)


async def test_li_is_there_from_the_beginning(client: Client) -> None:
    """A fresh home has Li alone, current, with the default persona and no data."""
    li = {"slug": "li", "name": "离", "system_prompt": persona.CHINESE, "preference": 0, "roleplay": 0}
    assert await _everyone(client) == ("li", {"li": li})


async def test_a_new_character_is_listed_and_not_current(client: Client) -> None:
    """It has its name and persona, or the default one; it is listed after the others; the current one stays."""
    mia = await _made(client)
    assert mia == MIA | {"preference": 0, "roleplay": 0}
    ann = await _made(client, slug="a_1", name="安" * 100, system_prompt=None)
    assert ann["system_prompt"] == persona.CHINESE
    current, everyone = await _everyone(client)
    assert current == "li" and list(everyone) == ["li", "mia", "a_1"]
    assert everyone["mia"] == mia and everyone["a_1"] == ann


@shared
@pytest.mark.parametrize(
    ("fields", "named"),
    [({"slug": slug}, {"slug"}) for slug in ("li", "Mia", "a-b", "a b", "../a", "离", "mia\n", "", None, "m" * 41)]
    + [({"name": name}, {"name"}) for name in ("", " ", None, "M" * 101)]
    + [({"system_prompt": prompt}, {"system_prompt"}) for prompt in ("", " \n", 1)]
    + [({"preference": 0, "slug": "li-1"}, {"preference", "slug"})],
    ids=spelled,
)
async def test_a_character_that_cannot_be(standing: Client, fields: dict[str, Any], named: set[str]) -> None:
    """A slug that is taken or could be no prefix of a file, and blank texts, are named; nobody is made."""
    before = await _everyone(standing)
    assert await faults(await standing.post(CHARACTERS, json=MIA | fields)) == named
    assert await _everyone(standing) == before


async def test_a_slug_may_have_forty_characters(client: Client) -> None:
    """Its files are named after it."""
    slug = "m" * 40
    await _made(client, slug=slug)
    assert (await _stats(client, character=slug))["preference"] == (f"{slug}_preference.json", 0)


async def test_a_character_is_edited(client: Client) -> None:
    """Name and persona change, each alone; a null persona is the default one; null is no name."""
    await _made(client)
    expected: dict[str, Any] = MIA | {"preference": 0, "roleplay": 0}
    for edit, shown in (
        ({"name": "Mia B."}, {}),
        ({"system_prompt": "You are Mia, an adult painter."}, {}),
        ({"system_prompt": None}, {"system_prompt": persona.CHINESE}),
    ):
        body = await accepted(await client.post(f"{CHARACTERS}/mia/edit", json=edit), annotation_answers.OneCharacter)
        expected |= edit | shown
        assert body["data"] == expected and body["message"] == "已修改角色"
    for wrong in ({"name": None}, {"name": ""}, {"slug": "li"}, {"system_prompt": " "}):
        assert await faults(await client.post(f"{CHARACTERS}/mia/edit", json=wrong)) == set(wrong)
    assert (await _everyone(client))[1]["mia"] == expected


@shared
@pytest.mark.parametrize("slug", ["nobody", "Li", "%00", "%FF", "%ED%A0%80", "%2e%2e", "a%2Fb", "离", "x" * 1000])
async def test_a_character_that_there_is_not(standing: Client, slug: str) -> None:
    """Editing or selecting one is 404, whatever its name."""
    await refused(await standing.post(f"{CHARACTERS}/{slug}/edit", json={"name": "M"}), 404, "未找到")
    await refused(await standing.post(f"{CHARACTERS}/{slug}/select"), 404, "未找到")
    assert (await _everyone(standing))[0] == "li"


async def test_the_last_selected_is_the_current_one(client: Client, make_client: MakeClient) -> None:
    """Selecting goes to and fro, and outlives a restart."""
    await _made(client)
    for slug in ("mia", "li", "li", "mia"):
        await _select(client, slug)
        assert (await _everyone(client))[0] == slug
    await client.close()
    again = await make_client(client.app[LOOP].settings)
    assert (await _everyone(again))[0] == "mia"


async def test_data_endpoints_work_on_the_current_character(client: Client) -> None:
    """Without a field, adds, counts, lists, searches and undo are of the current one; the other's stay as they were."""
    await _made(client)
    await client.post(ADD, json=PAIR)
    await _select(client, "mia")
    assert await _stats(client) == {"preference": ("mia_preference.json", 0), "roleplay": ("mia_roleplay.json", 0)}
    for body, name in ((PAIR, "preference"), (TALK, "roleplay")):
        added = (await accepted(await client.post(ADD, json=body), answers.Added))["data"]
        assert (added["total"], Path(added["file"]).name) == (1, f"mia_{name}.json")
        listed = await accepted(await client.get("/api/dataset/list", params={"dataset": name}), answers.Items)
        assert [item["id"] for item in listed["data"]["items"]] == [added["id"]] and listed["data"]["total"] == 1
    assert await found(client) == [3, 2]
    await accepted(await client.post("/api/annotations/delete", json={"where": {}}), annotation_answers.Changed)
    assert await found(client) == []
    for changed in (2, 1, 1):
        undone = await accepted(await client.post("/api/history/undo"), annotation_answers.Undone)
        assert undone["data"]["changed"] == changed
    await refused(await client.post("/api/history/undo"), 409, "没有可撤销的操作")
    await _select(client, "li")
    assert await found(client) == [1] and (await _stats(client))["preference"] == ("li_preference.json", 1)
    await refused(await client.post("/api/history/redo"), 409, "没有可重做的操作")


async def test_the_field_chooses_another_character(client: Client) -> None:
    """With `character` each endpoint is of that one, and the current one stays current and untouched."""
    await _made(client)
    mia = {"character": "mia"}
    for body in (PAIR, TALK):
        await accepted(await client.post(ADD, json=body | mia), answers.Added)
    assert await _stats(client, **mia) == {
        "preference": ("mia_preference.json", 1),
        "roleplay": ("mia_roleplay.json", 1),
    }
    assert await _stats(client) == {"preference": ("li_preference.json", 0), "roleplay": ("li_roleplay.json", 0)}
    listed = await accepted(await client.get("/api/dataset/list", params=mia), answers.Items)
    assert [item["id"] for item in listed["data"]["items"]] == [1]
    assert (await found(client, **mia), await found(client)) == ([2, 1], [])
    assert (await one(client, 1))["character"] == "mia"
    deleted = await accepted(
        await client.post("/api/annotations/delete", json={"where": mia}), annotation_answers.Changed
    )
    assert deleted["data"]["changed"] == 2
    await refused(await client.post("/api/history/undo"), 409, "没有可撤销的操作")
    for path in ("/api/history/undo", "/api/history/redo", "/api/history/undo"):
        assert (await accepted(await client.post(path, json=mia), annotation_answers.Undone))["data"]["changed"] == 2
    current, everyone = await _everyone(client)
    assert current == "li"
    assert {slug: (item["preference"], item["roleplay"]) for slug, item in everyone.items()} == {
        "li": (0, 0),
        "mia": (1, 1),
    }


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def two(standing: Client) -> AsyncIterator[Client]:
    """The standing server with Li and Mia."""
    await _made(standing)
    yield standing


@shared
@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", LOAD, {}),
        ("POST", ADD, PAIR),
        ("GET", "/api/dataset/stats", None),
        ("GET", "/api/dataset/list", None),
        ("POST", "/api/train/start", {}),
        ("GET", "/api/annotations", None),
        ("POST", "/api/history/undo", {}),
        ("POST", "/api/history/redo", {}),
        ("GET", "/api/conversations", None),
    ],
)
async def test_an_unknown_character_is_named(two: Client, method: str, path: str, body: dict[str, Any] | None) -> None:
    """A slug that there is not is refused by `character`, with those there are; nothing is done."""
    given: dict[str, Any] = (
        {"params": {"character": "nobody"}} if body is None else {"json": body | {"character": "nobody"}}
    )
    answer = await refused(await two.request(method, path, **given), 400, "请求参数错误")
    assert answer["errors"] == {"character": ["没有角色 nobody，可用：li、mia"]}
    assert two.app[LOOP].engine.state == "unloaded" and await found(two) == []


@shared
async def test_an_unknown_character_in_a_filter_is_named(two: Client) -> None:
    """In `where` it is refused as well, and nothing is deleted."""
    answer = await two.post("/api/annotations/delete", json={"where": {"character": "nobody"}})
    assert {field.rpartition(".")[2] for field in await faults(answer)} == {"character"}


async def test_a_load_is_of_one_character(client: Client) -> None:
    """A load speaks as the current character, or as the one named; candidates and choices are that one's."""
    await _made(client)
    body = await accepted(await client.post(LOAD, json=SHORT), answers.Loaded)
    assert (body["data"]["character"], body["data"]["config"]["system_prompt"]) == ("li", persona.CHINESE)
    body = await accepted(await client.post(LOAD, json=SHORT | {"character": "mia"}), answers.Loaded)
    assert (body["data"]["character"], body["data"]["config"]["system_prompt"]) == ("mia", MIA["system_prompt"])
    status = await accepted(await client.get("/api/model/status"), answers.ModelStatus)
    assert status["data"]["character"] == "mia"
    for named in ({}, {"character": "mia"}):
        turn = await accepted(await client.post("/api/generate", json={"message": "Hi"} | named), answers.Generated)
    for other in ("li", "nobody"):
        answer = await refused(await client.post("/api/generate", json={"message": "Hi", "character": other}), 400)
        assert set(answer["errors"]) == {"character"} and "mia" in answer["detail"]
    choice = {"generation_id": turn["generation_id"], "verdict": "best", "chosen": 1}
    await accepted(await client.post("/api/choices", json=choice), annotation_answers.Chosen)
    annotation = await one(client, 1)
    assert (annotation["character"], annotation["system_prompt"]) == ("mia", MIA["system_prompt"])
    assert (await found(client), await found(client, character="mia")) == ([], [1])


async def test_a_selected_character_is_loaded_next(client: Client) -> None:
    """Selecting changes nothing about what is loaded; the next load without a field is of the one selected."""
    await _made(client)
    await accepted(await client.post(LOAD, json=SHORT), answers.Loaded)
    await _select(client, "mia")
    assert (await (await client.get("/api/model/status")).json())["data"]["character"] == "li"
    assert (await accepted(await client.post(LOAD), answers.Loaded))["data"]["character"] == "mia"


async def test_an_annotation_records_the_persona_in_force(client: Client) -> None:
    """It is the loaded settings' for the character that is loaded, each other character's own; edits count at once."""
    await _made(client)
    await client.post(LOAD, json=SHORT | {"character": "mia", "system_prompt": "You are Mia, at night."})
    for slug in ("mia", "li"):
        await client.post(ADD, json=PAIR | {"character": slug})
    await client.post(f"{CHARACTERS}/mia/edit", json={"system_prompt": "You are Mia, by day."})
    await client.post(ADD, json=PAIR | {"character": "mia"})
    await client.post("/api/model/unload")
    await client.post(ADD, json=PAIR | {"character": "mia"})
    personas = [await _persona(client, number) for number in range(1, 5)]
    assert personas == ["You are Mia, at night.", persona.CHINESE, "You are Mia, at night.", "You are Mia, by day."]


async def test_an_operators_persona_is_the_default_one(make_client: MakeClient, settings: Settings) -> None:
    """A character without a persona has the operator's; one with its own keeps that."""
    client = await make_client(replace(settings, system_prompt="你是店猫。"))
    await _made(client)
    await _made(client, slug="ann", system_prompt=None)
    _, everyone = await _everyone(client)
    prompts = {slug: item["system_prompt"] for slug, item in everyone.items()}
    assert prompts == {"li": "你是店猫。", "mia": MIA["system_prompt"], "ann": "你是店猫。"}


async def test_a_load_uses_the_characters_own_adapters(client: Client) -> None:
    """Another character's adapter is left alone, also one whose slug begins alike; its own one is taken."""
    await _made(client)
    _adapter(client, "mia_b-simpo-9")
    own = _adapter(client, "li-simpo-1")
    for slug, adapter in (("mia", None), ("li", own), ("mia", None)):
        body = await accepted(await client.post(LOAD, json=SHORT | {"character": slug}), answers.Loaded)
        assert body["data"]["adapter_path"] == adapter
        said = f"模型加载成功，使用adapter: {adapter}" if adapter else "模型加载成功，未使用adapter"
        assert body["message"] == said


@pytest.mark.parametrize("named", [True, False], ids=["by the field", "the current one"])
async def test_a_run_is_of_one_character(make_trainer: MakeTrainer, named: bool) -> None:
    """A run exports and trains on that character's files alone, for an adapter of its name."""
    client = await make_trainer(LASTING)
    await _made(client)
    await client.post(ADD, json=PAIR | {"human_input": "Hi", "character": "mia"})
    if not named:
        await _select(client, "mia")
    started = await client.post("/api/train/start", json={"character": "mia"} if named else None)
    await accepted(started, answers.Done)
    settings = client.app[LOOP].settings
    rows = json.loads((settings.data / "mia_preference.json").read_text(encoding="utf-8"))
    assert [row["conversations"][-1]["value"] for row in rows] == ["Hi"]
    assert [row["system"] for row in rows] == [MIA["system_prompt"]]
    assert not (settings.data / "li_preference.json").exists()
    config = json.loads((settings.runs / "1" / "config.json").read_text(encoding="utf-8"))
    assert (config["character"], config["adapter"]) == ("mia", "mia-simpo-1")
    assert [stage["file"] for stage in config["stages"]] == ["data/mia_preference.json"]


async def test_a_character_without_data_has_nothing_to_train_on(make_trainer: MakeTrainer) -> None:
    """Another's annotations do not count."""
    client = await make_trainer(LASTING)
    await _made(client)
    await refused(await client.post("/api/train/start", json={"character": "mia"}), 400, "没有可训练的数据")
