"""Adding, counting and listing annotations."""

import asyncio
from dataclasses import replace
from datetime import datetime

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset
from prefanno.db import annotations
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Generation
from prefanno.rows import Mode, Row

SINGLE = Row(
    mode="single",
    system_prompt="你是离。",
    context=[{"role": "assistant", "content": "欢迎~"}],
    human_input="你是谁？",
    chosen="我叫离~",
    chosen_thinking=None,
    rejected="我是 AI。",
    rejected_thinking=None,
    created_at=datetime.fromisoformat("2026-01-27T12:00:00.123456"),
)
MULTI = replace(SINGLE, mode="multi", rejected=None)


async def _generated(database: Database, **thoughts: str | None) -> None:
    """A generation, of which each candidate has this text and this thinking."""

    async def store(session: AsyncSession) -> None:
        generation = Generation(message="?", context=[], settings={}, base_model="base", seed=1)
        session.add(generation)
        await session.flush()
        for ordinal, (content, thinking) in enumerate(thoughts.items(), 1):
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


async def add(database: Database, row: Row, character: str = "li") -> int:
    """Store the row; return how many of its mode there are now."""

    async def work(session: AsyncSession) -> int:
        await dataset.add(session, character, row)
        return (await annotations.counts(session, character))[row.mode]

    return await database.write(work)


async def counts(database: Database) -> dict[str, int]:
    """How many annotations of each mode Li has."""
    async with database.read() as session:
        return await annotations.counts(session, "li")


async def rows(database: Database, character: str = "li") -> list[Row]:
    """What training gets from all annotations, each as the end of its conversation."""
    async with database.read() as session:
        found = [one async for batch in annotations.oldest_first(session, character) for one in batch]
    return [row for one in found for row in dataset.to_rows(one, whole=True)]


async def _newest(database: Database, mode: Mode = "single") -> Row:
    async with database.read() as session:
        (annotation,) = await annotations.newest(session, "li", mode, 1)
    (row,) = dataset.to_rows(annotation, whole=True)
    return row


async def test_an_annotation_is_stored_word_for_word(database: Database) -> None:
    """Every field comes back as it was given."""
    for row in (SINGLE, MULTI, replace(MULTI, rejected="nein", chosen_thinking="a", rejected_thinking="b")):
        await add(database, row)
        assert await _newest(database, row.mode) == row


async def test_adding_returns_the_count_of_its_mode(database: Database) -> None:
    """Each mode counts by itself, this annotation included; a multi annotation with a rejected one counts as multi."""
    assert [await add(database, row) for row in (SINGLE, MULTI, SINGLE)] == [1, 1, 2]
    assert await add(database, replace(SINGLE, mode="multi")) == 2
    assert await counts(database) == {"single": 2, "multi": 2}


async def test_concurrent_adds_count_one_by_one(database: Database) -> None:
    """Each of many adds at once gets a total of its own."""
    totals = await asyncio.gather(*(add(database, SINGLE) for _ in range(20)))
    assert sorted(totals) == list(range(1, 21))


async def test_the_newest_come_first(database: Database) -> None:
    """A list is of one mode, newest first, no longer than asked for."""
    for text in ("1", "2", "3"):
        await add(database, replace(SINGLE, chosen=text))
    await add(database, replace(MULTI, chosen="other"))
    async with database.read() as session:
        newest = await annotations.newest(session, "li", "single", 2)
    assert [dataset.to_rows(one, whole=True)[0].chosen for one in newest] == ["3", "2"]
    assert await counts(database) == {"single": 3, "multi": 1}


async def test_a_refused_annotation_is_not_counted(database: Database) -> None:
    """What the tables refuse leaves the counts as they were."""
    with pytest.raises(IntegrityError):
        await database.write(lambda session: dataset.add(session, "nobody", SINGLE))
    assert await counts(database) == {"single": 0, "multi": 0}


async def test_a_missing_thinking_is_looked_up(database: Database) -> None:
    """Where a client sends only texts, their thinking is that of the recent candidates with those texts."""
    await _generated(database, **{"我叫离~": "a guest", "我是 AI。": "a user"})
    await add(database, SINGLE)
    stored = await _newest(database)
    assert (stored.chosen_thinking, stored.rejected_thinking) == ("a guest", "a user")


async def test_each_side_is_looked_up_for_itself(database: Database) -> None:
    """A side without a candidate of its text stays without thinking, and so does a side that is not there."""
    await _generated(database, **{"我叫离~": None, "我是 AI。": "a user"})
    await add(database, SINGLE)
    stored = await _newest(database)
    assert (stored.chosen_thinking, stored.rejected_thinking) == (None, "a user")
    await _generated(database, **{"我叫离~": "a guest"})
    await add(database, MULTI)
    stored = await _newest(database, "multi")
    assert (stored.chosen_thinking, stored.rejected_thinking) == ("a guest", None)


async def test_a_given_thinking_wins(database: Database) -> None:
    """What the client sends is stored, whatever the candidates say."""
    await _generated(database, **{"我叫离~": "a guest", "我是 AI。": "a user"})
    await add(database, replace(SINGLE, chosen_thinking="mine"))
    stored = await _newest(database)
    assert (stored.chosen_thinking, stored.rejected_thinking) == ("mine", "a user")


def test_a_stored_context_does_not_change_with_its_row() -> None:
    """The table holds turns of its own."""
    row = replace(SINGLE, context=[{"role": "assistant", "content": "欢迎~"}])
    annotation = dataset.to_annotation("li", row)
    row.context[0]["content"] = "changed"
    assert annotation.context == [{"role": "assistant", "content": "欢迎~"}]
