"""How the server says that it is."""

import asyncio
import subprocess
import sys
from collections.abc import Iterator

import pytest

from prefanno import __version__
from prefanno.keys import LOOP
from prefanno.web import answers
from tests.conftest import Client
from tests.web.conftest import LASTING, MakeTrainer, accepted

HOLDER = """\
import pathlib, sys, time
from prefanno import files

with files.locked(pathlib.Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(10)
"""


@pytest.fixture
def holder(client: Client) -> Iterator[subprocess.Popen[str]]:
    """Another process, which has the lock of the data folder for some seconds."""
    command = [sys.executable, "-c", HOLDER, str(client.app[LOOP].settings.data)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None and process.stdout.readline() == "held\n"
        yield process
        process.kill()


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


@pytest.mark.sqlite_only
@pytest.mark.parametrize(("method", "path"), [("GET", "/api/export"), ("POST", "/api/import?format=csv")])
async def test_the_server_answers_while_a_transfer_waits(
    client: Client, holder: subprocess.Popen[str], method: str, path: str
) -> None:
    """A folder that another process has locked holds up who needs it, and nobody else."""
    body = b"human_input,chosen,rejected" if method == "POST" else None
    waiting = asyncio.ensure_future(client.request(method, path, data=body))
    for _ in range(20):
        assert (await client.get("/health")).status == 200
        await asyncio.sleep(0.01)
    assert holder.poll() is None and not waiting.done()
    holder.kill()
    assert (await waiting).status == 200
