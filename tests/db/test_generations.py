"""Queries on generations and their candidates."""

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import characters, generations
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Generation


async def _generated(database: Database, *candidates: tuple[str, str | None], character: str = "li") -> None:
    """A generation with these candidates, each a content and its thinking."""

    async def store(session: AsyncSession) -> None:
        generation = Generation(
            character=character, message="?", context=[], settings={}, base_model="base", adapter=None, seed=1
        )
        session.add(generation)
        await session.flush()
        for ordinal, (content, thinking) in enumerate(candidates, 1):
            session.add(
                Candidate(
                    generation_id=generation.id,
                    ordinal=ordinal,
                    content=content,
                    thinking=thinking,
                    finish_reason="stop",
                    tokens=1,
                )
            )

    await database.write(store)


async def _thinking_of(database: Database, content: str, character: str = "li") -> str | None:
    async with database.read() as session:
        return (await generations.thinking_of(session, character, {content})).get(content)


async def test_a_candidate_is_found_by_its_exact_text(database: Database) -> None:
    """The thinking is that of the candidate with this text, character by character, and of no similar one."""
    await _generated(database, ("Hello.", "a guest"), ("Hello!", "a friend"), ("Bye.", None))
    assert await _thinking_of(database, "Hello.") == "a guest"
    assert await _thinking_of(database, "Hello!") == "a friend"
    for content in ("Bye.", "hello.", "Hello", "Hello. ", ""):
        assert await _thinking_of(database, content) is None


async def test_of_several_candidates_the_most_recent_counts(database: Database) -> None:
    """Where a text was written more than once, the thinking that a person has just read is the one."""
    await _generated(database, ("Hello.", "first"), ("Hello.", "second"))
    assert await _thinking_of(database, "Hello.") == "second"
    await _generated(database, ("Hello.", None))
    assert await _thinking_of(database, "Hello.") is None


async def test_only_recent_candidates_count(database: Database) -> None:
    """After RECENT further generations a candidate is too old for a choice to mean it; one fewer, and it is not."""
    await _generated(database, ("Hello.", "a guest"))
    for _ in range(generations.RECENT - 1):
        await _generated(database, ("Other.", None))
    assert await _thinking_of(database, "Hello.") == "a guest"
    await _generated(database, ("Other.", None))
    assert await _thinking_of(database, "Hello.") is None


async def test_another_characters_candidates_do_not_count(database: Database) -> None:
    """What Mia thought is not what Li thought."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    await _generated(database, ("Hello.", "mia's"), character="mia")
    assert await _thinking_of(database, "Hello.") is None
    assert await _thinking_of(database, "Hello.", character="mia") == "mia's"


async def test_without_generations_there_is_none(database: Database) -> None:
    """In a fresh database nothing is found."""
    assert await _thinking_of(database, "Hello.") is None
