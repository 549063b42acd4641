"""Queries on annotations."""

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import history
from prefanno.db import annotations, characters
from prefanno.db.annotations import Choice
from prefanno.db.engine import Database
from prefanno.db.models import Annotation


def _annotation(chosen: str, mode: str = "single", character: str = "li") -> Annotation:
    return Annotation(
        character=character,
        mode=mode,
        system_prompt="You are Li.",
        context=[{"role": "assistant", "content": "谜语"}],
        human_input="?",
        verdict="best",
        replies=[{"content": chosen, "rank": 1}, {"content": "no", "rank": 2}],
    )


def _chosen(row: Annotation | Choice) -> str:
    return str(row.replies[0]["content"])


async def _fill(session: AsyncSession) -> None:
    """Five of Li's, of which two are conversations, and one of another character's between them."""
    await characters.create(session, "mia", "Mia", None)
    for row in (
        _annotation("1"),
        _annotation("2", mode="multi"),
        _annotation("other", character="mia"),
        _annotation("3"),
        _annotation("4", mode="multi"),
        _annotation("5"),
    ):
        await history.add(session, [row])


async def test_counts_are_of_one_character_and_one_mode(database: Database) -> None:
    """Each mode is counted by itself, and nobody else's annotations with it."""
    await database.write(_fill)
    async with database.read() as session:
        counted = [await annotations.counts(session, character) for character in ("li", "mia", "nobody")]
    assert counted == [{"single": 3, "multi": 2}, {"single": 1, "multi": 0}, {}]


async def test_the_newest_come_first(database: Database) -> None:
    """At most as many as asked for, of this character and mode, the last one made first."""
    await database.write(_fill)
    async with database.read() as session:
        for limit, expected in ((1, ["5"]), (2, ["5", "3"]), (10, ["5", "3", "1"])):
            assert [_chosen(row) for row in await annotations.newest(session, "li", "single", limit)] == expected
        (newest,) = await annotations.newest(session, "mia", "single", 10)
        assert newest.context == [{"role": "assistant", "content": "谜语"}]


async def test_all_come_in_the_order_they_were_made(database: Database) -> None:
    """Every annotation of the character comes once, oldest first, in batches of at most the size asked for."""
    await database.write(_fill)
    async with database.read() as session:
        batches = [batch async for batch in annotations.oldest_first(session, "li", batch=2)]
        assert [[_chosen(row) for row in batch] for batch in batches] == [["1", "2"], ["3", "4"], ["5"]]
        assert [batch async for batch in annotations.oldest_first(session, "nobody")] == []


async def test_batches_are_of_one_snapshot(database: Database) -> None:
    """What is added while the batches are read is not among them."""
    await database.write(_fill)
    async with database.read() as session:
        chosen = []
        async for batch in annotations.oldest_first(session, "li", batch=1):
            await database.write(lambda writing: _add(writing, "later"))
            chosen += [_chosen(row) for row in batch]
    assert chosen == ["1", "2", "3", "4", "5"]


async def _add(session: AsyncSession, chosen: str) -> None:
    await history.add(session, [_annotation(chosen)])
