"""The search index in SQLite: FTS5 over pairs of characters.

FTS5's own trigram index finds no word of two characters, which most Chinese words are. So each two neighbouring
characters become a token here, and a query becomes the phrase of its tokens: exact, without a second look at the text.
The index holds no text, only tokens (`content=''`); to take a row out, its text is given again.
"""

from collections.abc import Mapping
from itertools import pairwise

from sqlalchemy import ColumnElement, literal_column, text
from sqlalchemy.ext.asyncio import AsyncSession

# `tokens()` is the connection's own function, run in its thread: a megabyte of text takes half a second.
PUT = text("INSERT INTO annotation_search (rowid, tokens) VALUES (:id, tokens(:text))")
TAKE = text("INSERT INTO annotation_search (annotation_search, rowid, tokens) VALUES ('delete', :id, tokens(:text))")
MERGE = text("INSERT INTO annotation_search (annotation_search) VALUES ('optimize')")


def tokens(words: str) -> str:
    """Each two neighbouring characters, case folded, as what FTS5 takes for a word: "离a。" → "79bbx61 61x3002"."""
    codes = [format(ord(character), "x") for character in words.casefold()]
    return " ".join(f"{first}x{second}" for first, second in pairwise(codes))


def matches(query: str) -> ColumnElement[bool]:
    """The condition that a row of the index holds the query."""
    return literal_column("annotation_search").op("MATCH")(f'"{tokens(query)}"')


async def put(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Index these texts by annotation id."""
    await session.execute(PUT, [{"id": number, "text": words} for number, words in texts.items()])


async def take(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Take rows out of the index; the texts must be those that were put."""
    await session.execute(TAKE, [{"id": number, "text": words} for number, words in texts.items()])


async def merge(session: AsyncSession) -> None:
    """Until its parts are merged, the index holds tokens of what was taken out."""
    await session.execute(MERGE)
