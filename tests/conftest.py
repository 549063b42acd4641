"""What tests share: a home in a temporary folder, the application on it, a tiny random model.

A test that uses `settings`, by itself or through another fixture, runs twice: on an SQLite file and on a PostgreSQL.
"""

import os
import shutil
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from aiohttp.test_utils import TestClient, TestServer
from aiohttp.web import Application, Request

from prefanno import home
from prefanno.ahead import Ahead
from prefanno.app import create_app
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.generation.engine import Engine
from prefanno.loop import Loop
from prefanno.settings import Postgres, Settings
from prefanno.training.supervisor import Supervisor
from tests import postgres, tiny
from tests.looping import SCRIPT, Voice

pytest_plugins = ["tests.parts"]

os.environ["HF_HUB_OFFLINE"] = "1"

Client = TestClient[Request, Application]
MakeClient = Callable[[Settings], Awaitable[Client]]
MakeDatabase = Callable[[Settings], None]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a random chat model that knows no think tags."""
    return tiny.save(tmp_path_factory.mktemp("models") / "tiny")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Both databases for a test that may use one, unless it is marked `sqlite_only` or `postgresql_only`."""
    if "database_kind" in metafunc.fixturenames:
        both = ["sqlite", pytest.param("postgresql", marks=pytest.mark.needs("PostgreSQL"))]
        marked = metafunc.definition.get_closest_marker
        kinds = both[:1] if marked("sqlite_only") else both[1:] if marked("postgresql_only") else both
        metafunc.parametrize("database_kind", kinds, indirect=True, scope="module")


@pytest.fixture(scope="module")
def database_kind(request: pytest.FixtureRequest) -> str:
    """Which database the test is on: sqlite or postgresql."""
    return str(request.param)


@pytest.fixture(scope="session")
def postgresql() -> Iterator[postgres.Postgres]:
    """A PostgreSQL for this run of the tests."""
    server = postgres.Postgres()
    try:
        server.start()
        yield server
    finally:
        server.remove()


@pytest.fixture(scope="session")
def refilled(postgresql: postgres.Postgres) -> Iterator[postgres.Refilled]:
    """One database at the newest schema, for each test in turn."""
    url = postgresql.make()
    upgrade.upgrade(Postgres(url))
    with postgres.asking(url) as asker:
        yield postgres.Refilled(url, asker)


@pytest.fixture
def database_url(database_kind: str, request: pytest.FixtureRequest) -> str:
    """What PREFANNO_DATABASE_URL says; the database has what a new one has, and nobody uses it."""
    if database_kind == "sqlite":
        return ""
    found: postgres.Refilled = request.getfixturevalue("refilled")
    found.refill()
    return found.url


@pytest.fixture(scope="module")
def own_database(database_kind: str, request: pytest.FixtureRequest) -> Iterator[str]:
    """What PREFANNO_DATABASE_URL says, for what lives longer than a test: a new database, without a table."""
    if database_kind == "sqlite":
        yield ""
        return
    server: postgres.Postgres = request.getfixturevalue("postgresql")
    url = server.make()
    yield url
    server.drop(url)


@pytest.fixture
def settings(tmp_path: Path, tiny_model: Path, database_url: str) -> Settings:
    """A fresh home with the tiny model as its base, and a fresh database."""
    home = tmp_path / "home"
    return Settings(home=home, model=str(tiny_model), cache=tmp_path / "cache", database_url=database_url)


@pytest.fixture
def unmade(settings: Settings, request: pytest.FixtureRequest) -> Iterator[Settings]:
    """A fresh home whose database is not made yet: no file, or one without a table."""
    if not settings.database_url:
        yield settings
        return
    server: postgres.Postgres = request.getfixturevalue("postgresql")
    url = server.make()
    yield replace(settings, database_url=url)
    server.drop(url)


@pytest.fixture(scope="session")
def make_database(tmp_path_factory: pytest.TempPathFactory) -> MakeDatabase:
    """Brings a database to the newest schema; a new file is a copy of one that was made once, by the migrations."""
    template = tmp_path_factory.mktemp("template") / "prefanno.db"
    upgrade.upgrade(template)

    def make(settings: Settings) -> None:
        if isinstance(settings.database, Path) and not settings.database.exists():
            shutil.copyfile(template, settings.database)
        else:
            upgrade.upgrade(settings.database)

    return make


@pytest.fixture
async def database(settings: Settings, make_database: MakeDatabase) -> AsyncIterator[Database]:
    """A real database at the newest schema."""
    with home.owned(settings):
        make_database(settings)
        async with Database.open(settings.database) as opened:
            yield opened


@pytest.fixture
async def make_client(make_database: MakeDatabase) -> AsyncIterator[MakeClient]:
    """Makes clients of real servers; each is closed at the end."""
    clients: list[Client] = []

    async def make(settings: Settings) -> Client:
        for folder in (settings.data, settings.outputs, settings.runs):
            folder.mkdir(parents=True, exist_ok=True)
        make_database(settings)
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


@pytest.fixture
def voice() -> Voice:
    """An engine without a model."""
    return Voice()


@pytest.fixture
async def loop(settings: Settings, database: Database, voice: Voice) -> AsyncIterator[Loop]:
    """The loop; its runs wait for a file named `go` in their folder."""
    script = settings.home / "stub.sh"
    script.write_text(SCRIPT)
    settings = replace(settings, model="base", train_script=str(script))
    training = Supervisor(settings, database)
    ahead = Ahead(settings, database, cast(Engine, voice))
    made = Loop(settings, database, cast(Engine, voice), ahead, training)
    yield made
    await made.handover.close()
    if training.running:
        await training.stop()
    await training.close()
