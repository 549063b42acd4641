"""What tests share: a home in a temporary folder, the application on it, a tiny random model."""

import os
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from prefanno import home
from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.settings import Settings
from tests import tiny

pytest_plugins = ["tests.parts"]

os.environ["HF_HUB_OFFLINE"] = "1"

Client = TestClient[Request, Application]
MakeClient = Callable[[Settings], Awaitable[Client]]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random chat model that knows no think tags."""
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny")


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path) -> Settings:
    """A fresh home with the tiny model as its base."""
    return Settings(home=tmp_path / "home", model=str(tiny_model), cache=tmp_path / "cache")


@pytest.fixture
async def database(settings: Settings) -> AsyncIterator[Database]:
    """A real SQLite file at the newest schema."""
    with home.owned(settings):
        upgrade.upgrade(settings.database)
        async with Database.open(settings.database) as opened:
            yield opened


@pytest.fixture
async def make_client() -> AsyncIterator[MakeClient]:
    """Makes clients of real servers; each is closed at the end."""
    clients: list[Client] = []

    async def make(settings: Settings) -> Client:
        for folder in (settings.data, settings.outputs, settings.runs):
            folder.mkdir(parents=True, exist_ok=True)
        upgrade.upgrade(settings.database)
        client = TestClient(TestServer(create_app(settings)))
        await client.start_server()
        clients.append(client)
        return client

    yield make
    for client in clients:
        await client.close()


@pytest.fixture
async def client(make_client: MakeClient, settings: Settings) -> Client:
    """A client of a server with a fresh home and the tiny model."""
    return await make_client(settings)
