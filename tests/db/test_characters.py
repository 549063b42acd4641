"""Queries on characters, and which is the current one."""

from datetime import UTC, datetime, timedelta
from functools import partial

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import annotations, characters
from prefanno.db.engine import Database
from prefanno.db.models import Character, now
from prefanno.errors import InvalidInput


async def _create(database: Database, *slugs: str) -> None:
    for slug in slugs:
        await database.write(partial(characters.create, slug=slug, name=slug.title(), system_prompt=None))


async def _select(database: Database, slug: str) -> None:
    """Make it the current one, as the API does."""

    async def work(session: AsyncSession) -> None:
        await characters.select_current(session, await session.get_one(Character, slug))

    await database.write(work)


async def _current(database: Database) -> str:
    async with database.read() as session:
        return (await characters.get(session, None)).slug


async def _everyone(database: Database) -> list[str]:
    async with database.read() as session:
        return [one.slug for one in await characters.everyone(session)]


async def test_li_is_there_from_the_beginning(database: Database) -> None:
    """A new database has one character, the current one, with the default persona and no annotations."""
    assert await _everyone(database) == ["li"] and await _current(database) == "li"
    async with database.read() as session:
        li = await characters.get(session, "li")
        assert (li.name, li.system_prompt) == ("离", None)
        assert await annotations.counts(session, "li") == {"single": 0, "multi": 0}


async def test_a_new_character_has_no_data(database: Database) -> None:
    """It is stored as given, counted from nought in each mode, and is not the current one."""
    await database.write(lambda session: characters.create(session, "mia", "Mia 🦊", "你是米娅。"))
    async with database.read() as session:
        mia = await characters.get(session, "mia")
        assert (mia.name, mia.system_prompt, mia.selected_at) == ("Mia 🦊", "你是米娅。", None)
        assert datetime.now(UTC).replace(tzinfo=None) - mia.created_at < timedelta(minutes=5)
        assert await annotations.counts(session, "mia") == {"single": 0, "multi": 0}
    assert await _current(database) == "li"


async def test_all_come_in_the_order_they_were_made(database: Database) -> None:
    """Neither the name nor what is selected changes the order."""
    await _create(database, "zoe", "anna", "mia")
    await _select(database, "mia")
    assert await _everyone(database) == ["li", "zoe", "anna", "mia"]


async def test_a_slug_comes_once(database: Database) -> None:
    """A second character of the same slug is refused, naming the field, and the first stays as it is."""
    await _create(database, "mia")
    for slug in ("mia", "li"):
        with pytest.raises(InvalidInput) as refused:
            await database.write(partial(characters.create, slug=slug, name="Other", system_prompt="x"))
        assert list(refused.value.fields) == ["slug"]
    async with database.read() as session:
        assert (await characters.get(session, "mia")).name == "Mia"
    assert await _everyone(database) == ["li", "mia"]


@pytest.mark.parametrize("slug", ["nobody", "Li", "li ", "", "%"])
async def test_an_unknown_character_is_refused(database: Database, slug: str) -> None:
    """The refusal names the field, the slug, and those that there are; slugs are exact."""
    await _create(database, "mia")
    async with database.read() as session:
        with pytest.raises(InvalidInput) as refused:
            await characters.get(session, slug)
    (said,) = refused.value.fields["character"]
    assert slug in said and said.endswith("li、mia")


async def test_the_one_selected_last_is_current(database: Database) -> None:
    """A selection counts until the next, also of one that was current before; one selected twice stays."""
    await _create(database, "mia", "zoe")
    assert await _current(database) == "li"
    for slug in ("zoe", "mia", "li", "zoe", "zoe"):
        await _select(database, slug)
        assert await _current(database) == slug
    await _create(database, "new")
    assert await _current(database) == "zoe"


async def test_without_a_selection_the_first_made_is_current(database: Database) -> None:
    """There is always a current one, also where none was ever selected."""
    await _create(database, "anna")

    async def forget(session: AsyncSession) -> None:
        (await session.get_one(Character, "li")).selected_at = None

    await database.write(forget)
    assert await _current(database) == "li"
    await _select(database, "anna")
    assert await _current(database) == "anna"


async def test_a_selection_counts_though_the_clock_was_set_back(database: Database) -> None:
    """The one selected last is current, also where an earlier selection bears a later time, and so is the next."""
    await _create(database, "mia", "zoe")

    async def selected_by_a_fast_clock(session: AsyncSession) -> None:
        (await session.get_one(Character, "mia")).selected_at = now() + timedelta(days=1)

    await database.write(selected_by_a_fast_clock)
    assert await _current(database) == "mia"  # control
    for slug in ("li", "zoe", "mia", "li"):
        await _select(database, slug)
        assert await _current(database) == slug


async def test_data_belongs_to_a_character(database: Database) -> None:
    """A character with data cannot be removed from under it."""
    await _create(database, "mia")

    async def remove(session: AsyncSession) -> None:
        await session.delete(await session.get_one(Character, "mia"))

    with pytest.raises(IntegrityError):
        await database.write(remove)
    assert await _everyone(database) == ["li", "mia"]
