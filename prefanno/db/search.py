"""The search index: any substring of two or more characters, Chinese or English, without regard to case.

SQLite and PostgreSQL each have an index of their own kind, in a table of the same name; both find the same.
"""

from collections.abc import Mapping
from types import ModuleType

from sqlalchemy import ColumnElement, FromClause, column, table
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import bigrams, fts5
from prefanno.db.models import Annotation

SHORTEST, LONGEST = 2, 100  # characters of a query
BETWEEN = bigrams.BETWEEN

index: FromClause = table("annotation_search", column("rowid"))
rowid: ColumnElement[int] = index.c.rowid


def words(annotation: Annotation) -> str:
    """All texts of an annotation; nothing is found across two of them, since no stored text has what is between."""
    texts = [annotation.human_input, annotation.note, *(turn["content"] for turn in annotation.context)]
    texts += [reply.get(name) for reply in annotation.replies for name in ("content", "thinking")]
    return BETWEEN.join(text for text in texts if text)


def matches(session: AsyncSession, query: str) -> ColumnElement[bool]:
    """The condition on `index` that a row holds the query."""
    condition: ColumnElement[bool] = _kind(session).matches(query)
    return condition


async def put(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Index these texts by annotation id."""
    if texts:
        await _kind(session).put(session, texts)


async def take(session: AsyncSession, texts: Mapping[int, str]) -> None:
    """Take rows out of the index; the texts must be those that were put."""
    if texts:
        await _kind(session).take(session, texts)


async def merge(session: AsyncSession) -> None:
    """Called after rows were taken out for good."""
    await _kind(session).merge(session)


def is_postgresql(session: AsyncSession) -> bool:
    """Whether the session is one of PostgreSQL."""
    return session.get_bind().dialect.name == "postgresql"


def _kind(session: AsyncSession) -> ModuleType:
    return bigrams if is_postgresql(session) else fts5
