"""Queries on annotations."""

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Any, NamedTuple

from orjson import loads
from sqlalchemy import Select, Text, bindparam, cast, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import search
from prefanno.db.models import Annotation, Count, Event
from prefanno.errors import NotFound

PART = 500  # rows named in one statement

# What every add does is built once: building a statement costs more than running it.
_counts = Count.metadata.tables[Count.__tablename__].c
COUNTS = select(Count.mode, Count.count).where(Count.character == bindparam("owner"))
CHANGE_COUNT = (
    update(Count.metadata.tables[Count.__tablename__])
    .where(_counts.character == bindparam("owner"), _counts.mode == bindparam("of"))
    .values(count=_counts.count + bindparam("delta"))
)


@dataclass(frozen=True)
class Filters:
    """What is looked for; None is no limit. `q` is any substring of two or more characters."""

    character: str
    q: str | None = None
    mode: str | None = None
    verdict: str | None = None
    adapter: str | None = None
    annotator: str | None = None
    reason: str | None = None
    since: datetime | None = None
    until: datetime | None = None
    deleted: bool = False


class Choice(NamedTuple):
    """What an export reads of an annotation: a tuple, because the ORM's rows take most of the time of an export."""

    id: int
    mode: str
    system_prompt: str
    human_input: str
    verdict: str
    weight: float
    generation_id: int | None
    created_at: datetime
    context: list[dict[str, str]]
    replies: list[dict[str, Any]]


_of = Annotation.metadata.tables[Annotation.__tablename__].c
OLDEST_FIRST = (  # JSON is taken as text and parsed by column: the columns' own type takes four calls for each value
    select(*(cast(_of[name], Text) if name in ("context", "replies") else _of[name] for name in Choice._fields))
    .where(_of.character == bindparam("owner"), _of.deleted_at.is_(None), _of.id > bindparam("last"))
    .order_by(_of.id)
    .limit(bindparam("batch"))
)
CHANGED = OLDEST_FIRST.where(_of.id.in_(select(Event.annotation_id).where(Event.id > bindparam("since"))))


async def counts(session: AsyncSession, character: str) -> dict[str, int]:
    """How many listed annotations there are, by mode."""
    return dict((await session.execute(COUNTS, {"owner": character})).all())


async def change_count(session: AsyncSession, character: str, mode: str, delta: int) -> None:
    """Keep the count with what it counts, in the same transaction."""
    await session.execute(CHANGE_COUNT, {"owner": character, "of": mode, "delta": delta})


async def get(session: AsyncSession, number: int) -> Annotation:
    """The annotation of this id, deleted or not. Raises NotFound."""
    found = await session.get(Annotation, number)
    if found is None:
        raise NotFound(f"there is no annotation {number}", f"未找到标注 {number}")
    return found


async def some(session: AsyncSession, numbers: Sequence[int]) -> Sequence[Annotation]:
    """The annotations of these ids, in their order. Raises NotFound, naming the first that there is not."""
    found = {one.id: one for one in await session.scalars(select(Annotation).where(Annotation.id.in_(numbers)))}
    return [found[number] if number in found else await get(session, number) for number in numbers]


async def parts(session: AsyncSession, numbers: Iterable[int]) -> AsyncIterator[Sequence[Annotation]]:
    """The annotations of these ids, each once, as many at a time as a statement takes. Raises as `some`."""
    wanted = list(dict.fromkeys(numbers))
    for start in range(0, len(wanted), PART):
        yield await some(session, wanted[start : start + PART])


async def remove(session: AsyncSession, numbers: Sequence[int]) -> None:
    """Remove these annotations for good."""
    await session.execute(delete(Annotation).where(Annotation.id.in_(numbers)))


async def of_generation(session: AsyncSession, generation: int) -> Annotation | None:
    """The choice among this generation's candidates."""
    return (await session.scalars(select(Annotation).where(Annotation.generation_id == generation))).one_or_none()


async def newest(session: AsyncSession, character: str, mode: str, limit: int) -> Sequence[Annotation]:
    """The last `limit` listed annotations of this mode, newest first."""
    query = (
        select(Annotation)
        .where(Annotation.character == character, Annotation.mode == mode, Annotation.listed.is_(True))
        .order_by(Annotation.id.desc())
        .limit(limit)
    )
    return (await session.scalars(query)).all()


async def page(session: AsyncSession, filters: Filters, before: int | None, limit: int) -> Sequence[Annotation]:
    """Newest first, from the first id below `before`: the next page costs what the first does."""
    # The order is the index's own where words are searched, so that no row is sorted.
    key = search.rowid if filters.q else Annotation.id
    query = _filtered(session, filters).order_by(key.desc()).limit(limit)
    return (await session.scalars(query if before is None else query.where(key < before))).all()


async def ids(session: AsyncSession, filters: Filters) -> Sequence[int]:
    """The ids of all that the filters find."""
    return (await session.scalars(_filtered(session, filters).with_only_columns(Annotation.id))).all()


async def oldest_first(
    session: AsyncSession, character: str, batch: int = 2 * PART, since: int | None = None
) -> AsyncIterator[Sequence[Choice]]:
    """All annotations of the character that are not deleted, by their ids, in batches of one snapshot.

    With `since`, those of them that came or changed after this event.
    """
    query = OLDEST_FIRST if since is None else CHANGED
    values: dict[str, Any] = {"owner": character, "last": 0, "batch": batch, "since": since}
    while found := (await session.execute(query, values)).all():
        *columns, contexts, replies = zip(*found, strict=True)
        yield [Choice._make(row) for row in zip(*columns, map(loads, contexts), map(loads, replies), strict=True)]
        values["last"] = found[-1].id


async def undeleted(session: AsyncSession, character: str) -> int:
    """How many annotations of the character are not deleted."""
    query = select(func.count()).where(Annotation.character == character, Annotation.deleted_at.is_(None))
    return (await session.execute(query)).scalar_one()


def _filtered(session: AsyncSession, filters: Filters) -> Select[Annotation]:
    query = select(Annotation).where(Annotation.character == filters.character)
    query = query.where(Annotation.deleted_at.is_not(None) if filters.deleted else Annotation.deleted_at.is_(None))
    if filters.q:
        query = query.join(search.index, search.rowid == Annotation.id).where(search.matches(session, filters.q))
    for column in (Annotation.mode, Annotation.verdict, Annotation.adapter, Annotation.annotator):
        if (wanted := getattr(filters, column.key)) is not None:
            query = query.where(column == wanted)
    if filters.reason is not None:
        each = func.json_array_elements_text if search.is_postgresql(session) else func.json_each
        tag = each(Annotation.reasons).table_valued("value")
        query = query.where(select(tag).where(tag.c.value == filters.reason).exists())
    if filters.since is not None:
        query = query.where(Annotation.created_at >= filters.since)
    if filters.until is not None:
        query = query.where(Annotation.created_at < filters.until)
    return query
