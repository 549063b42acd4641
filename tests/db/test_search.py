"""Search: exactly the annotations that hold the words; pages; every filter."""

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import cycle, islice
from typing import Any

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import dataset, history
from prefanno.db import annotations, characters, search
from prefanno.db.annotations import Filters
from prefanno.db.engine import Database
from prefanno.db.models import Annotation
from prefanno.errors import Conflict
from tests.properties import unhurried

Matches = Callable[[Annotation, str], bool]
Texts = list[str]

NEWCOMERS = settings(  # a character of its own for each example
    unhurried, max_examples=40, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
# Few characters, so that texts hold each other's parts; and what FTS5, LIKE, JSON or Unicode take for something else.
LETTERS = "aAbB离你。 \n\t🦊👩‍🚀é\u0301ßſİıǅΣσςﬃ\"'*()^-:+%_\\?,{}[]שלום\u202eمرحبا\ufeff"
WORDS = ["OR", "AND", "NOT", "NEAR(", '"', "a*", "离你", "rowid", "tokens:", "'; DROP TABLE annotations; --"]
SNIPPETS = st.text(st.sampled_from(LETTERS), min_size=1, max_size=6)
TEXTS = st.lists(st.one_of(SNIPPETS, st.sampled_from(WORDS)), min_size=1, max_size=6).map("".join)


def annotation(texts: Texts, of: str = "li", **fields: Any) -> Annotation:
    """An annotation whose texts these are: the message, a reply, its thinking, another, the context, the note."""
    said, one, thinking, other, before, note = islice(cycle(texts), 6)
    replies = [{"content": one, "thinking": thinking, "rank": 1}, {"content": other, "rank": 2}]
    context = [{"role": "user", "content": before}, {"role": "assistant", "content": said}]
    made = {"mode": "single", "system_prompt": "unsearched", "verdict": "best", "human_input": said, "note": note}
    return Annotation(**(made | {"character": of, "context": context, "replies": replies} | fields))


def texts_of(one: Annotation) -> Texts:
    """Every text in which words are looked for."""
    texts = [one.human_input, one.note, *(turn["content"] for turn in one.context)]
    return [text for text in [*texts, *(reply.get(name) for reply in one.replies for name in TOLD)] if text]


TOLD = ("content", "thinking")


def holds(one: Annotation, q: str) -> bool:
    """What search must find: the query is part of one of the texts, without regard to case."""
    return any(q.casefold() in text.casefold() for text in texts_of(one))


async def store(database: Database, *rows: Annotation) -> list[int]:
    """Store them as one step; their ids."""

    async def work(session: AsyncSession) -> list[int]:
        await history.add(session, rows)
        return [row.id for row in rows]

    return await database.write(work)


async def _newcomer(database: Database) -> str:
    async with database.read() as session:
        of = f"c{len(await characters.everyone(session))}"
    await database.write(lambda session: characters.create(session, of, of, None))
    return of


async def found(database: Database, filters: Filters) -> list[int]:
    """The ids, newest first; `ids` and `page` must agree."""
    async with database.read() as session:
        ids = await annotations.ids(session, filters)
        rows = await annotations.page(session, filters, None, 1000)
    assert sorted(ids) == sorted(row.id for row in rows)
    return [row.id for row in rows]


async def _all(database: Database, of: str) -> list[Annotation]:
    async with database.read() as session:
        pages = [await annotations.page(session, Filters(of, deleted=gone), None, 1000) for gone in (False, True)]
    return sorted((row for page in pages for row in page), key=lambda row: -row.id)


async def misses(database: Database, of: str, queries: Sequence[str], matches: Matches = holds) -> list[str]:
    """The queries that do not find exactly what they must, among the deleted ones, too."""
    rows, wrong = await _all(database, of), []
    for q in queries:
        for gone in (False, True):
            expected = [row.id for row in rows if matches(row, q) and (row.deleted_at is not None) == gone]
            wrong += [q] if await found(database, Filters(of, q=q, deleted=gone)) != expected else []
    return wrong


ACTS = ["edit", "delete", "restore", "undo", "redo"]


@st.composite
def searches(draw: st.DrawFn) -> tuple[list[Texts], list[str]]:
    """Texts of some annotations; queries of 2 to 100 characters: parts of these texts in any case, and others."""
    rows = draw(st.lists(st.lists(TEXTS, min_size=1, max_size=6), min_size=1, max_size=4))
    queries = [draw(TEXTS), *draw(st.lists(TEXTS, max_size=2))]
    for texts in rows:
        text = draw(st.sampled_from(texts))
        start = draw(st.integers(0, len(text)))
        part = text[start : start + draw(st.integers(2, 100))]
        queries.append(draw(st.sampled_from([part, part.upper(), part.casefold(), text])))
        queries.append(texts[0][-1:] + texts[-1][:1])  # across two texts, where it is in none
    return rows, [q for q in queries if search.SHORTEST <= len(q) <= search.LONGEST]


@NEWCOMERS
@given(searches())
async def test_search_finds_exactly_what_holds_the_words(
    database: Database, drawn: tuple[list[Texts], list[str]]
) -> None:
    """Of any texts in any script, each query finds the annotations one of whose texts holds it, and no other."""
    rows, queries = drawn
    of = await _newcomer(database)
    await store(database, *(annotation(texts, of) for texts in rows))
    assert await misses(database, of, queries) == []


async def test_a_wrong_search_is_found_out(database: Database) -> None:
    """Control: what is found across two texts, with regard to case, or in the persona, fails the check above."""
    await store(database, annotation(["Ab", "cd"]), annotation(["离你", "好"]))
    wrong: dict[str, Matches] = {
        "bc": lambda row, q: q in "".join(texts_of(row)),
        "aB": lambda row, q: any(q in text for text in texts_of(row)),
        "searched": lambda row, q: q in row.system_prompt,
    }
    for q, matches in wrong.items():
        assert await misses(database, "li", [q], matches) and await misses(database, "li", [q]) == []


@pytest.mark.parametrize(
    ("text", "q", "finds"),
    [
        ("离开", "离开", True),
        ("离开", "开离", False),
        ("aXb", "ab", False),
        ("aaa", "aaaa", False),
        ("STRASSE", "straße", True),
        ("x" * 50_000 + "needle", "xneedle", True),
        ("ΐ" * 100, "ΐ" * 100, True),  # one character that is three when its case is folded
        ("ΐ" * 99, "ΐ" * 100, False),
        ("👩‍🚀", "\u200d🚀", True),
        ("10% off", "% o", True),
        ("100 off", "1%o", False),
        ('say "NEAR"', '"NEAR"', True),
        ("nearby", "NEAR*", False),
    ],
)
async def test_a_query_is_a_plain_substring(database: Database, text: str, q: str, finds: bool) -> None:
    """No character of a query means anything but itself, and any number of them in a row is found, up to 100."""
    await store(database, annotation(["something else", text]))
    assert bool(await found(database, Filters("li", q=q))) == finds


@NEWCOMERS
@given(st.lists(st.tuples(st.sampled_from(ACTS), st.integers(0, 3), TEXTS), min_size=1, max_size=6))
async def test_the_index_follows(database: Database, acts: list[tuple[str, int, str]]) -> None:
    """After every edit, deletion, restoration, undo and redo the words found are those that there are now."""
    of = await _newcomer(database)
    numbers = await store(database, *(annotation([text], of) for text in ("离你 ab", "NEAR a*", "aß🦊")))
    words = ["离你", "near", "ss", *(text for _, _, text in acts)]
    for act, place, text in acts:

        async def work(session: AsyncSession, act: str = act, place: int = place, text: str = text) -> None:
            number = numbers[place % len(numbers)]
            if act in ("undo", "redo"):
                await (history.undo if act == "undo" else history.redo)(session, of)
            elif act == "edit":
                field = ("note", "human_input")[place % 2]
                await dataset.edit(session, number, {field: text})
            else:
                await dataset.set_deleted(session, [number], act == "delete")

        with contextlib.suppress(Conflict):  # nothing to undo, or a deleted one is not edited
            await database.write(work)
        assert await misses(database, of, [q for q in words if len(q) in range(2, 101)]) == []


NOON = datetime.fromisoformat("2026-01-27T12:00:00.000001")
ADAPTERS = [None, "li-simpo-1", "li-simpo-2"]
ROWS = [  # every field changes in a rhythm of its own
    {
        "mode": ("single", "multi")[number % 2],
        "verdict": ("best", "bad", "skip")[number % 3],
        "adapter": ADAPTERS[number // 2 % 3],
        "annotator": (None, "Ann", "ann", "离")[number // 3 % 4],
        "reasons": ([], ["warm"], ["warm", "离"], ["war", "short"])[number // 5 % 4],
        "created_at": NOON + timedelta(seconds=number // 4 - 5),
        "human_input": ("Hello there", "你是谁？")[number // 7 % 2],
    }
    for number in range(60)
]
WANTED: dict[str, list[Any]] = {
    "mode": ["single", "multi"],
    "verdict": ["best", "bad", "good"],
    "adapter": ["li-simpo-1", "li-simpo"],
    "annotator": ["Ann", "离", "an"],
    "reason": ["warm", "离", "war", "Warm", '"'],
    "since": [NOON, NOON + timedelta(microseconds=1), NOON - timedelta(days=1)],
    "until": [NOON, NOON + timedelta(microseconds=1), NOON + timedelta(days=1)],
    "q": ["hello", "是谁", "nobody"],
    "deleted": [True],
}


def fits(row: Annotation, filters: Filters) -> bool:
    """What the filters say, in plain Python."""
    same = ("mode", "verdict", "adapter", "annotator")
    return (
        all(getattr(filters, name) in (None, getattr(row, name)) for name in same)
        and (filters.reason is None or filters.reason in row.reasons)
        and (filters.since is None or row.created_at >= filters.since)
        and (filters.until is None or row.created_at < filters.until)
        and (filters.q is None or holds(row, filters.q))
        and (row.deleted_at is not None) == filters.deleted
    )


@pytest.fixture
async def filled(database: Database) -> Database:
    """All of `ROWS`, each fourth one deleted, and as many of another character's."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    for of in ("mia", "li"):
        numbers = await store(database, *(annotation(["text"], of, **row) for row in ROWS))
        await database.write(partial(dataset.set_deleted, numbers=numbers[::4], deleted=True))
    return database


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WANTED.items() for value in values])
async def test_each_filter_is_exact(filled: Database, name: str, value: Any) -> None:
    """A filter alone finds just the character's rows that it describes, newest first."""
    filters = Filters("li", **{name: value})
    assert await found(filled, filters) == [row.id for row in await _all(filled, "li") if fits(row, filters)]


@settings(unhurried, suppress_health_check=[HealthCheck.function_scoped_fixture])  # each example only reads
@given(st.fixed_dictionaries({name: st.none() | st.sampled_from(values) for name, values in WANTED.items()}))
async def test_filters_narrow_each_other(filled: Database, wanted: dict[str, Any]) -> None:
    """Any filters together find just the rows that each of them describes."""
    filters = Filters("li", **(wanted | {"deleted": bool(wanted["deleted"])}))
    assert await found(filled, filters) == [row.id for row in await _all(filled, "li") if fits(row, filters)]


REASONS = st.lists(st.text('a"\\, 离[]', min_size=1, max_size=4), min_size=1, max_size=3)


@NEWCOMERS
@example(tags=[["warm", "short"]], reason=", ")  # what stands between two tags in JSON
@example(tags=[['say "a']], reason="a")
@given(tags=st.lists(REASONS, min_size=1, max_size=4), reason=st.text('a"\\, 离[]', min_size=1, max_size=4))
async def test_a_reason_is_a_whole_tag(database: Database, tags: list[list[str]], reason: str) -> None:
    """A reason finds the annotations that have just this tag, whatever characters tags are made of."""
    of = await _newcomer(database)
    await store(database, *(annotation(["text"], of, reasons=reasons) for reasons in tags))
    for wanted in (reason, *tags[0]):
        filters = Filters(of, reason=wanted)
        assert await found(database, filters) == [row.id for row in await _all(database, of) if fits(row, filters)]


@pytest.mark.parametrize("limit", [1, 2, 7, 100])
@pytest.mark.parametrize("wanted", [{}, {"q": "hello"}, {"mode": "multi", "reason": "warm"}, {"deleted": True}])
async def test_pages_give_each_row_once(filled: Database, limit: int, wanted: dict[str, Any]) -> None:
    """Page after page below the last id, all rows come, newest first, none twice; each page but the last is full."""
    filters, before = Filters("li", **wanted), None
    pages: list[list[int]] = []
    while not pages or len(pages[-1]) == limit:
        async with filled.read() as session:
            pages.append([row.id for row in await annotations.page(session, filters, before, limit)])
        before = pages[-1][-1] if pages[-1] else None
    ids = [number for page in pages for number in page]
    assert ids == [row.id for row in await _all(filled, "li") if fits(row, filters)] and len(ids) >= 7
    assert all(len(page) == limit for page in pages[:-1])


async def test_a_row_that_comes_between_two_pages_moves_nothing(filled: Database) -> None:
    """The next page goes on where the last one ended, whatever was added or deleted meanwhile."""
    filters = Filters("li")
    expected = await found(filled, filters)
    await store(filled, annotation(["new"]))
    await filled.write(lambda session: dataset.set_deleted(session, expected[:5], True))
    async with filled.read() as session:
        following = await annotations.page(session, replace(filters), expected[9], 10)
    assert [row.id for row in following] == expected[10:20]
