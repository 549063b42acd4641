"""The search index: any substring of two or more characters, Chinese or English.

FTS5's own trigram index finds no word of two characters, which most Chinese words are. So each two neighbouring
characters become a token here, and a query becomes the phrase of its tokens: exact, without a second look at the text.
The index holds no text, only tokens (`content=''`); to take a row out, its text is given again.
"""

from collections.abc import Mapping
from itertools import pairwise

from sqlalchemy import ColumnElement, FromClause, column, literal_column, table, text
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Annotation

CREATE = "CREATE VIRTUAL TABLE annotation_search USING fts5(tokens, content='', tokenize='ascii')"
SHORTEST, LONGEST = 2, 100  # characters of a query
BETWEEN = "\0"  # no stored text has it, so that nothing is found across two texts

# `tokens()` is the connection's own function, run in its thread: a megabyte of text takes half a second.
PUT = text("INSERT INTO annotation_search (rowid, tokens) VALUES (:id, tokens(:text))")
TAKE = text("INSERT INTO annotation_search (annotation_search, rowid, tokens) VALUES ('delete', :id, tokens(:text))")
MERGE = text("INSERT INTO annotation_search (annotation_search) VALUES ('optimize')")

index: FromClause = table("annotation_search", column("rowid"))
rowid: ColumnElement[int] = index.c.rowid


def tokens(words: str) -> str:
    """Each two neighbouring characters, case folded, as what FTS5 takes for a word: "离a。" → "79bbx61 61x3002"."""
    codes = [format(ord(character), "x") for character in words.casefold()]
    return " ".join(f"{first}x{second}" for first, second in pairwise(codes))


def words(annotation: Annotation) -> str:
    """All texts of an annotation."""
    texts = [annotation.human_input, annotation.note, *(turn["content"] for turn in annotation.context)]
    texts += [reply.get(name) for reply in annotation.replies for name in ("content", "thinking")]
    return BETWEEN.join(text for text in texts if text)


def matches(query: str) -> ColumnElement[bool]:
    """The condition on `index` that a row holds the query."""
    return literal_column("annotation_search").op("MATCH")(f'"{tokens(query)}"')


async def put(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Index these texts by annotation id."""
    if texts:
        await session.execute(PUT, [{"id": number, "text": words} for number, words in texts.items()])


async def take(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Take rows out of the index; the texts must be those that were put."""
    if texts:
        await session.execute(TAKE, [{"id": number, "text": words} for number, words in texts.items()])
