"""Loading and unloading over HTTP."""

import asyncio
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefanno import persona
from prefanno.generation.batch import Batch
from prefanno.generation.config import Request
from prefanno.keys import LOOP
from prefanno.settings import Settings
from prefanno.web import answers
from tests import tiny
from tests.conftest import Client, MakeClient
from tests.web.conftest import LASTING, MakeTrainer, accepted, busy, faults, refused, shared, until

pytestmark = pytest.mark.sqlite_only  # a load reads the character's persona, and nothing else, from the database

LOAD = "/api/model/load"
DEFAULTS = {
    "enable_thinking": True,
    "show_thinking": True,
    "mode": "single",
    "num_responses": 4,
    "temperature": 0.85,
    "top_p": 0.9,
    "top_k": 50,
    "repetition_penalty": 1.15,
    "max_new_tokens": 512,
    "system_prompt": persona.CHINESE,
}
WITHIN: dict[str, Sequence[Any]] = {
    "enable_thinking": (True, False),
    "show_thinking": (True, False),
    "mode": ("single", "multi"),
    "num_responses": (2, 10),
    "temperature": (0.1, 2.0, 1),
    "top_p": (0.1, 1.0, 1),
    "top_k": (1, 100),
    "repetition_penalty": (1.0, 2.0, 2),
    "max_new_tokens": (64, 2048),
    "system_prompt": ("你", "人" * 100_000, "😀\n\t\r\u200b"),
}
OUTSIDE: dict[str, Sequence[Any]] = {
    "enable_thinking": (1, 0, "true", 1.0, None, []),
    "show_thinking": (1, 0, "false", 0.0, None, {}),
    "mode": ("Single", "both", "", " single", None, 1, True, ["single"]),
    "num_responses": (1, 11, "4", 4.0, True, None, [4]),
    "temperature": (0.0999, 2.0001, -1, "0.85", True, None, [0.85]),
    "top_p": (0.0999, 1.0001, 2, "0.9", True, None, {}),
    "top_k": (0, 101, "50", 50.0, True, None, []),
    "repetition_penalty": (0.9999, 2.0001, 0, "1.15", True, None, []),
    "max_new_tokens": (63, 2049, "512", 512.0, True, None, []),
    "system_prompt": ("", " \n\u3000", 1, True, None, ["x"]),
}


def _cases(table: dict[str, Sequence[Any]]) -> list[Any]:
    return [
        pytest.param(name, value, id=f"{name}={json.dumps(value)[:20]}")
        for name, values in table.items()
        for value in values
    ]


async def test_a_load_without_a_body_has_every_default(client: Client) -> None:
    """A load without body and Content-Type has every default, and says that there is no adapter."""
    body = await accepted(await client.post(LOAD), answers.Loaded)
    assert body["status"] == "success"
    assert body["message"] == "模型加载成功，未使用adapter"
    assert body["data"] == {"adapter_path": None, "config": DEFAULTS, "character": "li"}


@shared
@pytest.mark.parametrize(("name", "value"), _cases(WITHIN))
async def test_a_field_may_have_each_value_of_its_range(standing: Client, name: str, value: Any) -> None:
    """A field at an end of its range is taken as it is; every other has its default, also on a second load."""
    body = await accepted(await standing.post(LOAD, json={name: value}), answers.Loaded)
    assert body["data"]["config"] == DEFAULTS | {name: value}


@shared
@pytest.mark.parametrize(("name", "value"), _cases(OUTSIDE))
async def test_a_field_outside_its_range_is_refused(standing: Client, name: str, value: Any) -> None:
    """A field just outside its range or of another type is named, and the settings in force stay."""
    before = await (await standing.get("/api/model/status")).json()
    assert await faults(await standing.post(LOAD, json={name: value})) == {name}
    assert await (await standing.get("/api/model/status")).json() == before


async def test_every_field_at_fault_is_named(client: Client) -> None:
    """A load with three faults names all three, and loads nothing."""
    wrong = {"num_responses": 1, "top_p": "0.9", "unknown": 1, "top_k": 50}
    assert await faults(await client.post(LOAD, json=wrong)) == {"num_responses", "top_p", "unknown"}
    assert client.app[LOOP].engine.state == "unloaded"


@pytest.mark.parametrize("form", [{}, {"json": {}}], ids=["no body", "empty object"])
async def test_an_operators_persona_is_the_default(
    make_client: MakeClient, settings: Settings, form: dict[str, Any]
) -> None:
    """Where a client names no persona, the operator's holds."""
    client = await make_client(replace(settings, system_prompt="你是店猫。"))
    body = await accepted(await client.post(LOAD, **form), answers.Loaded)
    assert body["data"]["config"]["system_prompt"] == "你是店猫。"


async def test_unload_succeeds_loaded_or_not(client: Client) -> None:
    """Unloading says that the memory is free, once more with nothing loaded, and has no data."""
    await client.post(LOAD)
    for _ in range(2):
        body = await accepted(await client.post("/api/model/unload"), answers.Done)
        assert body == {"status": "success", "message": "模型已卸载，显存已释放"}
        assert client.app[LOOP].engine._model is None


async def test_status_follows_the_engine(client: Client) -> None:
    """Status says unloaded, loading, loaded and unloaded again, with the settings only where there are any."""

    async def status() -> dict[str, Any]:
        body: dict[str, Any] = await accepted(await client.get("/api/model/status"), answers.ModelStatus)
        assert body["data"]["model_loaded"] is (body["message"] == "loaded")
        assert body["data"]["model_loading"] is (body["message"] == "loading")
        return body

    first = await status()
    assert first["message"] == "unloaded" and first["data"]["config"] is None
    assert first["data"]["base_model"] == client.app[LOOP].settings.model
    with busy(client):
        load = asyncio.create_task(client.post(LOAD, json={"top_k": 7}))
        await until(lambda: client.app[LOOP].engine.state == "loading")
        assert (await status())["message"] == "loading"
    await accepted(await load, answers.Loaded)
    loaded = await status()
    assert loaded["message"] == "loaded" and loaded["data"]["config"] == DEFAULTS | {"top_k": 7}
    assert loaded["data"]["context_length"] == 512
    await client.post("/api/model/unload")
    assert await status() == first


async def test_status_shows_how_far_a_load_is(client: Client) -> None:
    """Its phase and its seconds while it is under way, with a fraction where there is one; else null."""
    assert (await _status(client))["progress"] is None
    with busy(client):
        load = asyncio.create_task(client.post(LOAD))
        await until(lambda: client.app[LOOP].engine.progress)
        progress = (await _status(client))["progress"]
        assert (progress["phase"], progress["fraction"]) == ("waiting", None) and progress["elapsed_s"] >= 0
    await accepted(await load, answers.Loaded)
    assert (await _status(client))["progress"] is None


async def test_status_shows_who_waits(client: Client) -> None:
    """Those who wait and those who are served, what is written ahead of time, and how long a new request would take."""
    await client.post(LOAD, json={"max_new_tokens": 64, "enable_thinking": False})
    engine = client.app[LOOP].engine
    assert (await _status(client))["queue"] == {"waiting": 0, "writing": 0, "ahead": 0, "wait_s": None}
    with busy(client):
        asking = [asyncio.create_task(client.post("/api/generate", json={"message": "?"})) for _ in range(3)]
        await until(lambda: engine.queue.writing and engine.queue.waiting == 2)
        assert engine.loaded is not None
        engine.submit(Request("?", [], 7, engine.loaded.config, client=None))
        assert (await _status(client))["queue"] == {"waiting": 2, "writing": 1, "ahead": 1, "wait_s": None}
    for answer in asyncio.as_completed(asking):
        await accepted(await answer, answers.Generated)
    await until(lambda: engine.is_idle)
    queue = (await _status(client))["queue"]
    assert queue["wait_s"] >= 0 and (queue["waiting"], queue["writing"], queue["ahead"]) == (0, 0, 0)


async def test_status_and_health_say_why_the_engine_failed(client: Client) -> None:
    """A GPU that broke is a state with its reason; the rest goes on, and unloading is still a success."""
    await client.post(LOAD, json={"max_new_tokens": 64})
    engine = client.app[LOOP].engine
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Batch, "step", _break)
        await refused(await client.post("/api/generate", json={"message": "?"}), 503, "GPU 发生故障")
    body = await accepted(await client.get("/api/model/status"), answers.ModelStatus)
    assert body["message"] == "failed" and not body["data"]["model_loaded"]
    assert body["data"]["failure"].endswith("原因：RuntimeError: CUDA error: device-side assert triggered")
    health = await accepted(await client.get("/health"), answers.Health)
    assert (health["status"], health["database"], health["engine"]) == ("degraded", "ok", "failed")
    assert health["reason"] == body["data"]["failure"]
    for path in (LOAD, "/api/generate"):
        await refused(await client.post(path, json={"message": "?"} if path != LOAD else {}), 503, "GPU 发生故障")
    await accepted(await client.post("/api/model/unload"), answers.Done)
    assert engine.state == "failed" and engine._model is None


def _break(_batch: Batch) -> None:
    raise RuntimeError("CUDA error: device-side assert triggered\nCUDA kernel errors might be reported later")


async def _status(client: Client) -> dict[str, Any]:
    body: dict[str, Any] = await accepted(await client.get("/api/model/status"), answers.ModelStatus)
    return body["data"]  # type: ignore[no-any-return]


async def test_a_load_during_a_load_is_refused(client: Client) -> None:
    """While a load is under way a second one and a run are refused, and the first one succeeds."""
    with busy(client):
        load = asyncio.create_task(client.post(LOAD))
        await until(lambda: client.app[LOOP].engine.state == "loading")
        await refused(await client.post(LOAD), 400, "模型正在加载")
        body = await refused(await client.post("/api/train/start"), 400, "请先卸载模型")
        assert "POST /api/model/unload" in body["detail"]
    await accepted(await load, answers.Loaded)


async def test_a_load_during_a_run_is_refused(make_trainer: MakeTrainer) -> None:
    """During a run no model can be loaded; unloading stays a success."""
    client = await make_trainer(LASTING)
    await accepted(await client.post("/api/train/start"), answers.Done)
    await refused(await client.post(LOAD), 400, "训练已在进行中")
    await accepted(await client.post("/api/model/unload"), answers.Done)


async def test_a_model_that_cannot_be_loaded_is_the_engines_failure(
    make_client: MakeClient, settings: Settings, tmp_path: Path
) -> None:
    """A base model that is not there ends in 503 with its reason, and in the state unloaded."""
    client = await make_client(replace(settings, model=str(tmp_path / "nothing")))
    await refused(await client.post(LOAD), 503, "推理引擎出错")
    assert (await (await client.get("/api/model/status")).json())["message"] == "unloaded"


# peft asks transformers by a name that it has given up; neither is ours
@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
async def test_a_load_names_the_newest_adapter(client: Client, tiny_model: Path) -> None:
    """With a complete adapter of this base model, a load uses it and says so, with its absolute path."""
    folder = client.app[LOOP].settings.outputs / "li-simpo-3"
    tiny.adapt(folder, tiny_model)
    (folder / "prefanno.json").write_text(json.dumps({"base_model": str(tiny_model), "run": 3}))
    body = await accepted(await client.post(LOAD), answers.Loaded)
    assert folder.is_absolute()
    assert body["message"] == f"模型加载成功，使用adapter: {folder}"
    assert body["data"]["adapter_path"] == str(folder)
