"""Conversations: a tree of turns, the words that each turn came after, and what an export makes of it."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.annotation import conversations, dataset, export
from prefanno.db import annotations, characters
from prefanno.db.engine import Database
from prefanno.db.models import Candidate, Generation
from prefanno.errors import InvalidInput, NotFound
from prefanno.prompting import Message
from tests.properties import unhurried

Line = tuple[str, str, str, str | None, str | None]  # of an exported row: mode, words before, message, chosen, rejected


async def turn(
    database: Database, message: str, *contents: str, parent: int | None = None, mode: str = "multi", of: str = "li"
) -> int:
    """A generation with these candidates, "a" and "b" where none are named, stored as the loop stores it."""
    before: Generation | None = None
    words: list[Message] = []
    if parent is not None:
        async with database.read() as session:
            before, words = await conversations.going_on(session, parent, of)

    async def store(session: AsyncSession) -> int:
        row = Generation(
            character=of,
            message=message,
            context=[dict(one) for one in words],
            settings={"mode": mode, "system_prompt": "你是离。"},
            base_model="base",
            adapter=f"{of}-simpo-1",
            seed=1,
        )
        await conversations.place(session, row, before)
        for ordinal, content in enumerate(contents or ("a", "b"), 1):
            session.add(
                Candidate(generation_id=row.id, ordinal=ordinal, content=content, finish_reason="stop", tokens=1)
            )
        return row.id

    return await database.write(store)


async def choose(database: Database, generation: int, verdict: str, **said: Any) -> int:
    """Choose; return the annotation's id."""
    about: dict[str, Any] = {"reasons": [], "note": None, "annotator": None}

    async def work(session: AsyncSession) -> int:
        annotation, _ = await dataset.choose(session, generation, verdict, **(about | said))
        return annotation.id

    return await database.write(work)


async def decided(database: Database, message: str, parent: int | None = None) -> int:
    """A turn whose first candidate, "<message>!", is the best."""
    made = await turn(database, message, f"{message}!", f"{message}?", parent=parent)
    await choose(database, made, "best", chosen=1)
    return made


async def delete(database: Database, generation: int, deleted: bool = True) -> None:
    """Delete or restore the choice at this turn."""

    async def work(session: AsyncSession) -> None:
        annotation = await annotations.of_generation(session, generation)
        assert annotation is not None
        await dataset.set_deleted(session, [annotation.id], deleted)

    await database.write(work)


async def words(database: Database, generation: int) -> str:
    """The words that the turn was generated after: "u:" what the user said, "a:" what was answered."""
    async with database.read() as session:
        return _words((await session.get_one(Generation, generation)).context)


def _words(context: Any) -> str:
    return " ".join(f"{one['role'][0]}:{one['content']}" for one in context)


async def exported(database: Database, of: str = "li") -> list[Line]:
    """What training gets."""
    async with database.read() as session:
        batches = [batch async for batch in annotations.oldest_first(session, of, batch=2)]
        rows = [row for batch in batches for row in await export.rows(session, batch)]
    return [(row.mode, _words(row.context), row.human_input, row.chosen, row.rejected) for row in rows]


async def _refused(database: Database, parent: int, of: str = "li") -> None:
    with pytest.raises(InvalidInput) as refused:
        await turn(database, "next", parent=parent, of=of)
    assert list(refused.value.fields) == ["parent"]


@pytest.mark.parametrize(
    ("verdict", "said", "best"),
    [
        ("best", {"chosen": 2}, "two"),
        ("good", {"chosen": 3}, "three"),
        ("ranking", {"ranking": [[3], [1, 2]]}, "three"),
        ("ranking", {"ranking": [[3, 2], [1]]}, "two"),  # of tied replies the first
        ("edit", {"chosen": 1, "content": "mine", "thinking": "hm"}, "mine"),
    ],
)
async def test_a_turn_goes_on_from_the_best_reply(
    database: Database, verdict: str, said: dict[str, Any], best: str
) -> None:
    """The words before the next turn are those before this one, its message, and the text of its best reply."""
    first = await decided(database, "Hi")
    second = await turn(database, "Who?", "one", "two", "three", parent=first)
    await choose(database, second, verdict, **said)
    third = await turn(database, "And?", parent=second)
    assert await words(database, third) == f"u:Hi a:Hi! u:Who? a:{best}"
    async with database.read() as session:
        row = await session.get_one(Generation, third)
    assert (row.parent_id, row.conversation_id) == (second, first)


@pytest.mark.parametrize("verdict", ["bad", "skip"])
async def test_nothing_goes_on_without_a_best_reply(database: Database, verdict: str) -> None:
    """Before a choice, and after one that finds none good or has no opinion, going on is refused, naming `parent`."""
    first = await turn(database, "Hi")
    await _refused(database, first)
    await choose(database, first, verdict)
    await _refused(database, first)
    await choose(database, first, "good", chosen=1)
    await turn(database, "next", parent=first)


async def test_nothing_goes_on_from_a_deleted_choice(database: Database) -> None:
    """A deleted choice counts as none, until it is restored."""
    first = await decided(database, "Hi")
    await delete(database, first)
    await _refused(database, first)
    await delete(database, first, deleted=False)
    await turn(database, "next", parent=first)


async def test_only_ones_own_turns_go_on(database: Database) -> None:
    """An unknown turn, one of another character, and a generation of single mode are refused."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    lis = await decided(database, "Hi")
    single = await turn(database, "Hi", mode="single")
    await choose(database, single, "best", chosen=1)
    await _refused(database, 999)
    await _refused(database, lis, of="mia")
    await _refused(database, single)


async def test_a_conversation_is_read_as_a_whole(database: Database) -> None:
    """All turns of all branches come, oldest first, each with its candidates in order and its choice, if any."""
    first = await decided(database, "Hi")
    other = await decided(database, "Another conversation")
    left = await turn(database, "left", "x", "y", "z", parent=first)
    right = await decided(database, "right", parent=first)
    await delete(database, right)
    async with database.read() as session:
        read = await conversations.read(session, first)
        (alone,) = await conversations.read(session, other)
    assert [(row.id, row.parent_id) for row, _, _ in read] == [(first, None), (left, first), (right, first)]
    assert [[one.content for one in found] for _, found, _ in read][1:] == [["x", "y", "z"], ["right!", "right?"]]
    assert [choice is not None for _, _, choice in read] == [True, False, False]
    assert alone[0].id == other


@pytest.mark.parametrize("single", [False, True])
async def test_what_is_no_conversation_is_not_found(database: Database, single: bool) -> None:
    """A later turn is none, nor is a generation of single mode; an unknown id neither."""
    first = await decided(database, "Hi")
    no = await (turn(database, "alone", mode="single") if single else turn(database, "next", parent=first))
    for number in (no, 999):
        async with database.read() as session:
            with pytest.raises(NotFound):
                await conversations.read(session, number)


async def test_choosing_anew_changes_no_later_turn(database: Database) -> None:
    """A turn and its choice keep the words they came after; what goes on afterwards has the new ones: a branch."""
    first = await decided(database, "Hi")
    second = await decided(database, "Who?", parent=first)
    await choose(database, first, "edit", chosen=2, content="Ho")
    third = await decided(database, "Again?", parent=first)
    assert await words(database, second) == "u:Hi a:Hi!"
    assert await words(database, third) == "u:Hi a:Ho"
    assert await exported(database) == [
        ("single", "", "Hi", "Ho", "Hi?"),
        ("multi", "u:Hi a:Hi!", "Who?", "Who?!", "Who??"),
        ("multi", "u:Hi a:Ho", "Again?", "Again?!", "Again??"),
    ]


async def test_a_choice_made_anew_is_a_branch_of_its_own(database: Database) -> None:
    """Where nothing goes on from the new best reply, a whole conversation ends there, beside the one with the old."""
    first = await decided(database, "Hi")
    await decided(database, "Who?", parent=first)
    await choose(database, first, "best", chosen=2)
    assert [line for line in await exported(database) if line[0] == "multi"] == [
        ("multi", "", "Hi", "Hi?", "Hi!"),
        ("multi", "u:Hi a:Hi!", "Who?", "Who?!", "Who??"),
    ]


async def test_every_turn_gives_its_pairs_at_its_place(database: Database) -> None:
    """Each pair has the words before its turn; the reply that was continued is no whole conversation, the last is."""
    first = await turn(database, "Hi", "a", "b", "c")
    await choose(database, first, "ranking", ranking=[[2], [1], [3]])
    second = await turn(database, "Who?", "d", "e", parent=first)
    await choose(database, second, "edit", chosen=2, content="f")
    third = await turn(database, "And?", "g", "h", parent=second)
    await choose(database, third, "good", chosen=1)
    assert await exported(database) == [
        ("single", "", "Hi", "b", "a"),
        ("single", "", "Hi", "b", "c"),
        ("single", "", "Hi", "a", "c"),
        ("single", "u:Hi a:b", "Who?", "f", "e"),
        ("multi", "u:Hi a:b u:Who? a:f", "And?", "g", None),
    ]


async def test_a_good_or_bad_turn_inside_is_unpaired(database: Database) -> None:
    """A good reply that was continued is good by itself, and all replies of a bad turn are bad, at their place."""
    first = await turn(database, "Hi", "a", "b")
    await choose(database, first, "good", chosen=1)
    second = await decided(database, "Who?", parent=first)
    bad = await turn(database, "And?", "c", "d", parent=second)
    await choose(database, bad, "bad")
    skipped = await turn(database, "Or?", parent=second)
    await choose(database, skipped, "skip")
    assert await exported(database) == [
        ("single", "", "Hi", "a", None),
        ("multi", "u:Hi a:a", "Who?", "Who?!", "Who??"),
        ("single", "u:Hi a:a u:Who? a:Who?!", "And?", None, "c"),
        ("single", "u:Hi a:a u:Who? a:Who?!", "And?", None, "d"),
    ]


async def test_a_turn_is_inside_though_the_next_one_was_deleted(database: Database) -> None:
    """With the middle choice of three deleted, the last turn still holds the whole, and the first is no end."""
    first = await decided(database, "Hi")
    second = await decided(database, "Who?", parent=first)
    await decided(database, "And?", parent=second)
    await delete(database, second)
    assert await exported(database) == [
        ("single", "", "Hi", "Hi!", "Hi?"),
        ("multi", "u:Hi a:Hi! u:Who? a:Who?!", "And?", "And?!", "And??"),
    ]


@dataclass
class _Turn:
    """One turn of a generated tree; `path` is what was said up to its best reply."""

    before: str
    message: str
    best: str | None

    @property
    def path(self) -> str:
        return f"{self.before} u:{self.message} a:{self.best}".strip()


@settings(  # a character of its own for each example
    unhurried, max_examples=30, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(st.tuples(st.integers(0, 9), st.sampled_from([1, 2, None, "bad"])), min_size=1, max_size=8))
async def test_each_branch_is_whole_once(database: Database, steps: list[tuple[int, int | str | None]]) -> None:
    """In any tree, just the decided turns that no decided one goes on from end a whole conversation, each once."""
    async with database.read() as session:
        of = f"c{len(await characters.everyone(session))}"
    await database.write(lambda session: characters.create(session, of, of, None))
    tree: dict[int, _Turn] = {}
    for number, (place, verdict) in enumerate(steps):
        parents = [None, *(one for one, made in tree.items() if made.best)]
        parent = parents[place % len(parents)]
        message = f"m{number}"
        made = await turn(database, message, parent=parent, of=of)
        if isinstance(verdict, int):
            await choose(database, made, "best", chosen=verdict)
        elif verdict:
            await choose(database, made, verdict)
        best = "ab"[verdict - 1] if isinstance(verdict, int) else None
        tree[made] = _Turn(tree[parent].path if parent else "", message, best)
    listed = [one for one in tree.values() if one.best]
    ends = [one.path for one in listed if not any(other.before.startswith(one.path) for other in listed)]
    lines = await exported(database, of)
    whole = [
        f"{before} u:{message} a:{chosen}".strip() for mode, before, message, chosen, _ in lines if mode == "multi"
    ]
    assert whole == ends
    pairs = [(before, message, chosen) for _, before, message, chosen, rejected in lines if chosen and rejected]
    assert pairs == [(one.before, one.message, one.best) for one in listed]
