"""How the server says that it is."""

from prefanno import __version__
from prefanno.keys import LOOP
from prefanno.web import answers
from tests.conftest import Client
from tests.web.conftest import LASTING, MakeTrainer, accepted


async def test_health_is_ok_from_the_first_request(client: Client) -> None:
    """With no model loaded and no run, the server is ok, and says so for each part."""
    body = await accepted(await client.get("/health"), answers.Health)
    expected = {"status": "ok", "version": __version__, "database": "ok", "engine": "unloaded", "training": "idle"}
    assert body == expected | {"reason": None, "trains": True}


async def test_health_follows_engine_and_training(make_trainer: MakeTrainer) -> None:
    """A loaded model and a run under way show."""
    client = await make_trainer(LASTING)
    await client.post("/api/model/load")
    assert (await (await client.get("/health")).json())["engine"] == "loaded"
    await client.post("/api/model/unload")
    await client.post("/api/train/start")
    assert (await (await client.get("/health")).json())["training"] == "running"


async def test_health_is_degraded_without_the_database(client: Client) -> None:
    """With its database gone the server still answers 200, with the reason."""
    await client.app[LOOP].database.close()
    body = await accepted(await client.get("/health"), answers.Health)
    assert body["status"] == "degraded" and body["database"] == "unavailable"
    assert "数据库" in body["reason"]
