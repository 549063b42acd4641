"""Adapters over HTTP: what there is, which one a load takes, promotion, roll-back, notes, the end of one."""

import asyncio
import shutil
from pathlib import Path
from typing import Any

import pytest

from prefanno.keys import LOOP
from prefanno.training import adapters
from prefanno.training.config import LORA, RunConfig
from prefanno.web import answers, training_answers
from tests import tiny
from tests.conftest import Client
from tests.web.conftest import LASTING, MakeTrainer, accepted, faults, refused

ADAPTERS, LOAD, UNLOAD = "/api/adapters", "/api/model/load", "/api/model/unload"
SHORT = {"max_new_tokens": 64, "num_responses": 2}

pytestmark = [
    pytest.mark.sqlite_only,  # adapters, promotions and notes are files
    # peft asks transformers by a name that it has given up; neither is ours
    pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning"),
]


@pytest.fixture(scope="module")
def tiny_adapter(tiny_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random adapter of the tiny model."""
    return tiny.adapt(tmp_path_factory.mktemp("adapters") / "adapter", tiny_model)


def _made(client: Client, number: int, tiny_adapter: Path) -> str:
    """An adapter of the tiny model, as if run `number` had made it."""
    settings, name = client.app[LOOP].settings, f"li-simpo-{number}"
    run = settings.runs / str(number)
    shutil.copytree(tiny_adapter, run / "adapter")
    (run / "data").mkdir()
    (run / "data" / "li.sharegpt.manifest.json").write_text("{}")
    (run / "summary.json").write_text('{"stages": [{"after": {"step": 9, "chosen_logp": -1.5, "probes": []}}]}')
    config = RunConfig("li", settings.model, settings.model, name, stages=[{"method": "simpo"}], lora=LORA, seed=4)
    adapters.publish(number, run, settings.outputs, config)
    return name


async def _listed(client: Client) -> dict[str, Any]:
    data: dict[str, Any] = (await accepted(await client.get(ADAPTERS), training_answers.Adapters))["data"]
    return data


async def _load(client: Client, **fields: Any) -> str | None:
    """Load; the name of the adapter on top."""
    body = await accepted(await client.post(LOAD, json=SHORT | fields), answers.Loaded)
    path = body["data"]["adapter_path"]
    assert body["message"] == (f"模型加载成功，使用adapter: {path}" if path else "模型加载成功，未使用adapter")
    return Path(path).name if path else None


async def _promote(client: Client, name: str) -> None:
    body = await accepted(await client.post(f"{ADAPTERS}/promote", json={"adapter": name}), training_answers.InForce)
    assert body["message"] == f"已启用 adapter {name}"


async def test_each_adapter_says_where_it_comes_from(client: Client, tiny_adapter: Path) -> None:
    """The list has the newest first, with run, seed, snapshot, measures, size and note; the newest is chosen."""
    assert await _listed(client) == {"character": "li", "adapter": None, "items": []}
    for number in (1, 2):
        _made(client, number, tiny_adapter)
    await accepted(await client.post(f"{ADAPTERS}/note", json={"adapter": "li-simpo-1", "note": "风趣"}), answers.Done)
    data = await _listed(client)
    assert (data["adapter"], [one["name"] for one in data["items"]]) == ("li-simpo-2", ["li-simpo-2", "li-simpo-1"])
    one = data["items"][1]
    assert (one["run"], one["seed"], one["method"], one["parent"], one["note"]) == (1, 4, "simpo", None, "风趣")
    assert one["metrics"] == {"step": 9, "chosen_logp": -1.5} and len(one["snapshot"]) == 64
    assert one["bytes"] > (tiny_adapter / "adapter_model.safetensors").stat().st_size
    assert [one["chosen"] for one in data["items"]] == [True, False]


async def test_a_load_takes_the_named_else_the_promoted_else_the_newest(client: Client, tiny_adapter: Path) -> None:
    """A name holds for one load; a promotion for all from then on, until it is rolled back."""
    for number in (1, 2, 3):
        _made(client, number, tiny_adapter)
    assert await _load(client) == "li-simpo-3"
    assert await _load(client, adapter="li-simpo-1") == "li-simpo-1"
    assert await _load(client, adapter="base") is None
    assert await _load(client) == "li-simpo-3"
    await _promote(client, "li-simpo-2")
    assert await _load(client) == "li-simpo-2"
    await _promote(client, "base")
    assert await _load(client) is None
    for expected in ("li-simpo-2", "li-simpo-3"):
        body = await accepted(await client.post(f"{ADAPTERS}/rollback"), training_answers.InForce)
        assert body["data"] == {"character": "li", "adapter": expected}
        assert await _load(client) == expected
    await refused(await client.post(f"{ADAPTERS}/rollback"), 409)


@pytest.mark.parametrize("name", ["li-simpo-9", "mia-simpo-1", "../li-simpo-1", "li"])
async def test_what_is_not_there_is_refused_with_the_field(client: Client, tiny_adapter: Path, name: str) -> None:
    """An unknown name is refused by load and promote; what was loaded stays."""
    _made(client, 1, tiny_adapter)
    await _load(client)
    assert await faults(await client.post(LOAD, json={"adapter": name})) == {"adapter"}
    assert await faults(await client.post(f"{ADAPTERS}/promote", json={"adapter": name})) == {"adapter"}
    await refused(await client.post(f"{ADAPTERS}/delete", json={"adapter": name}), 404)
    status = await (await client.get("/api/model/status")).json()
    assert Path(status["data"]["adapter"]).name == "li-simpo-1"


async def test_what_is_in_use_is_not_deleted(client: Client, tiny_adapter: Path) -> None:
    """An adapter that is loaded or promoted is refused, any other goes; the next number is not its own."""
    for number in (1, 2):
        _made(client, number, tiny_adapter)
    await _load(client)
    await _promote(client, "li-simpo-1")
    for name in ("li-simpo-1", "li-simpo-2"):
        body = await refused(await client.post(f"{ADAPTERS}/delete", json={"adapter": name}), 409)
        assert name in body["detail"]
    await client.post(UNLOAD)
    await accepted(await client.post(f"{ADAPTERS}/delete", json={"adapter": "li-simpo-2"}), answers.Done)
    assert [one["name"] for one in (await _listed(client))["items"]] == ["li-simpo-1"]


async def test_nothing_is_deleted_while_a_run_may_read_it(make_trainer: MakeTrainer, tiny_adapter: Path) -> None:
    """During a run a delete is refused as a start is."""
    client = await make_trainer(LASTING)
    _made(client, 7, tiny_adapter)
    await client.post("/api/train/start")
    await refused(await client.post(f"{ADAPTERS}/delete", json={"adapter": "li-simpo-7"}), 400, "训练已在进行中")
    assert (client.app[LOOP].settings.outputs / "li-simpo-7").is_dir()


async def test_two_deletes_at_once_are_one(client: Client, tiny_adapter: Path) -> None:
    """Of a delete that is sent twice one does it, and the other finds nothing; no other adapter is touched."""
    for number in (1, 2):
        _made(client, number, tiny_adapter)
    twice = [client.post(f"{ADAPTERS}/delete", json={"adapter": "li-simpo-1"}) for _ in range(4)]
    assert sorted([answer.status for answer in await asyncio.gather(*twice)]) == [200, 404, 404, 404]
    assert [one.name for one in client.app[LOOP].settings.outputs.iterdir() if one.is_dir()] == ["li-simpo-2"]


@pytest.mark.parametrize("card", ['{"base_model": "x", "run": 1e999}', "[" * 100_000, '{"run": 1}', "[]"])
async def test_a_folder_with_an_odd_card_is_passed_over(client: Client, tiny_adapter: Path, card: str) -> None:
    """A folder that somebody copied here, with a card of their own, keeps nothing from being listed and loaded."""
    _made(client, 1, tiny_adapter)
    odd = shutil.copytree(tiny_adapter, client.app[LOOP].settings.outputs / "li-simpo-9")
    (odd / adapters.CARD).write_text(card)
    assert [one["name"] for one in (await _listed(client))["items"]] == ["li-simpo-1"]
    assert await _load(client) == "li-simpo-1"


async def test_a_broken_file_is_said_and_is_no_bug(client: Client, tiny_adapter: Path) -> None:
    """Where adapters.json cannot be read, load, list and promote say so and how to mend it; a named load works."""
    name = _made(client, 1, tiny_adapter)
    (client.app[LOOP].settings.outputs / "adapters.json").write_text("{")
    for answer in (await client.get(ADAPTERS), await client.post(LOAD, json={})):
        assert "adapters.json" in (await refused(answer, 503))["detail"]
    assert await _load(client, adapter=name) == name
