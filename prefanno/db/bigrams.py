"""The search index in PostgreSQL: the pairs of characters of each annotation, and its texts.

The pairs, which a GIN index finds, say which annotations may hold the query; its texts, which ones do. pg_trgm would
need an extension, finds no word of two characters, and folds case by the database's locale.
"""

from collections.abc import Mapping
from itertools import pairwise

from sqlalchemy import TextClause, text
from sqlalchemy.ext.asyncio import AsyncSession

BETWEEN = "\0"
PUT = text(
    "INSERT INTO annotation_search (rowid, texts, bigrams) "
    "VALUES (:id, CAST(:texts AS text[]), CAST(:bigrams AS bigint[]))"
)
TAKE = text("DELETE FROM annotation_search WHERE rowid = ANY(CAST(:ids AS bigint[]))")
HOLDS = (
    "bigrams @> CAST(:bigrams AS bigint[])"
    " AND EXISTS (SELECT FROM unnest(texts) AS words WHERE strpos(words, :folded) > 0)"
)


def bigrams(folded: str) -> set[int]:
    """Each two neighbouring characters as one number."""
    return {ord(first) << 32 | ord(second) for first, second in pairwise(folded)}


def matches(query: str) -> TextClause:
    """The condition that a row of the index holds the query."""
    folded = query.casefold()
    return text(HOLDS).bindparams(bigrams=sorted(bigrams(folded)), folded=folded)


async def put(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Index these texts by annotation id."""
    await session.execute(PUT, [_row(number, words.casefold().split(BETWEEN)) for number, words in texts.items()])


def _row(number: int, texts: list[str]) -> dict[str, object]:
    return {"id": number, "texts": texts, "bigrams": sorted(set().union(*map(bigrams, texts)))}


async def take(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Take rows out of the index."""
    await session.execute(TAKE, {"ids": list(texts)})


async def merge(_session: AsyncSession) -> None:
    """What was taken out leaves the table when it is written anew (`db/postgresql.py: rewrite`)."""
