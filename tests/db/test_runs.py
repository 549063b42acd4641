"""Queries on runs."""

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import characters, runs
from prefanno.db.engine import Database
from prefanno.db.models import Run


async def _store(database: Database, *rows: Run) -> None:
    for row in rows:

        async def add(session: AsyncSession, row: Run = row) -> None:
            session.add(row)

        await database.write(add)


def _run(state: str, adapter: str | None = None, character: str = "li") -> Run:
    return Run(character=character, base_model="base", state=state, adapter=adapter)


async def test_a_fresh_database_has_no_runs(database: Database) -> None:
    """Before the first run there is no latest one and no adapter."""
    async with database.read() as session:
        assert await runs.latest(session) is None
        assert await runs.adapters(session, "li") == []


async def test_the_latest_run_is_the_one_that_started_last(database: Database) -> None:
    """However the runs ended, the last to start is the latest."""
    await _store(database, _run("succeeded"), _run("stopped"), _run("failed"))
    async with database.read() as session:
        latest = await runs.latest(session)
    assert latest is not None and (latest.id, latest.state) == (3, "failed")


async def test_adapters_are_those_that_a_run_has_made(database: Database) -> None:
    """The names of a character's adapters are known though their folders may be gone; a failed run made none."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    await _store(
        database,
        _run("succeeded", "li-sft-1"),
        _run("failed", "li-simpo-2"),
        _run("stopped", "li-simpo-2"),
        _run("succeeded", "li-simpo-2"),
        _run("succeeded"),
        _run("succeeded", "mia-simpo-9", character="mia"),
    )
    async with database.read() as session:
        assert sorted(await runs.adapters(session, "li")) == ["li-sft-1", "li-simpo-2"]
