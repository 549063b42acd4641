"""Queries on characters."""

from collections.abc import Sequence
from datetime import timedelta

from sqlalchemy import select
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Character, Count, now
from prefanno.errors import InvalidInput, NotFound

CURRENT = select(Character).order_by(Character.selected_at.desc().nulls_last(), Character.created_at).limit(1)


async def get(session: AsyncSession, slug: str | None) -> Character:
    """The character of this slug; of None, the current one. Raises InvalidInput."""
    if slug is None:
        return (await session.scalars(CURRENT)).one()
    found = await session.get(Character, slug)
    if found is None:
        slugs = [one.slug for one in await everyone(session)]
        raise InvalidInput(
            {"character": [f"没有角色 {slug}，可用：{'、'.join(slugs)}"]},
            english=f"there is no character {slug}; there are: {', '.join(slugs)}",
        )
    return found


async def named(session: AsyncSession, slug: str) -> Character:
    """The character that an address names. Raises NotFound."""
    character = None if "\0" in slug else await session.get(Character, slug)  # PostgreSQL has no such text
    if character is None:
        raise NotFound(f"there is no character {slug}", f"未找到角色 {slug}")
    return character


async def select_current(session: AsyncSession, character: Character) -> None:
    """Make it the current one, also where the clock was set back since the last time."""
    last = (await get(session, None)).selected_at
    character.selected_at = now() if last is None else max(now(), last + timedelta(microseconds=1))


async def everyone(session: AsyncSession) -> Sequence[Character]:
    """All characters, in the order they were made."""
    return (await session.scalars(select(Character).order_by(Character.created_at))).all()


async def create(session: AsyncSession, slug: str, name: str, system_prompt: str | None) -> Character:
    """A new character without data. Raises InvalidInput where there is one of this slug."""
    if await session.get(Character, slug) is not None:
        raise InvalidInput({"slug": [f"角色 {slug} 已存在"]})
    character = Character(slug=slug, name=name, system_prompt=system_prompt)
    session.add(character)
    await session.flush()
    session.add_all(Count(character=slug, mode=mode, count=0) for mode in ("single", "multi"))
    await session.flush()
    return character
