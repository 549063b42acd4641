"""Queries on comparisons and their rounds."""

from functools import partial
from typing import Any

import pytest
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db import characters, comparisons
from prefanno.db.comparisons import Tally
from prefanno.db.engine import Database
from prefanno.db.models import Comparison, Round
from prefanno.errors import NotFound
from tests.looping import everything

VOTES = ("adapter", "adapter", "against", "tie", None, None)


async def _stored(database: Database, character: str = "li", rounds: int = 0, **fields: Any) -> int:
    """A comparison with as many rounds that nobody has answered."""
    names = {"base_model": "b", "adapter": "li-simpo-2", "against": "base", "settings": {}, "seed": 0}

    async def work(session: AsyncSession) -> int:
        comparison = Comparison(**{**names, "character": character, "promotes": False} | fields)
        session.add(comparison)
        await session.flush()
        session.add_all([_round(comparison.id, ordinal) for ordinal in range(1, rounds + 1)])
        return comparison.id

    return await database.write(work)


def _round(comparison: int, ordinal: int) -> Round:
    asked = {"message": f"m{ordinal}", "context": [], "system_prompt": "p", "digest": f"d{ordinal}"}
    return Round(comparison_id=comparison, ordinal=ordinal, swapped=False, **asked)


async def _reply(database: Database, number: int, side: comparisons.Side, content: str) -> None:
    await database.write(partial(comparisons.reply, number=number, side=side, content=content, thinking=None))


async def _vote(database: Database, number: int, choice: str) -> bool:
    return await database.write(partial(comparisons.vote, number=number, choice=choice, annotator="Ann"))


async def test_a_tally_counts_rounds_replies_and_votes(database: Database) -> None:
    """Of several comparisons at once, each its own; of one without rounds all is nought."""
    number, other = await _stored(database, rounds=7), await _stored(database)
    for place, vote in enumerate(VOTES, 1):
        await _reply(database, place, "adapter", "a")
        if place < 6:
            await _reply(database, place, "against", "b")
        if vote:
            assert await _vote(database, place, vote)
    async with database.read() as session:
        found = await comparisons.tallies(session, [number, other])
        assert found == {number: Tally(7, 5, 11, 2, 1, 1), other: Tally(0, 0, 0, 0, 0, 0)}
        assert (await comparisons.tally(session, number)).votes == (2, 1, 1)
        assert await comparisons.tallies(session, []) == {}
        following, remaining = await comparisons.next_round(session, number)
    assert following is not None and (following.ordinal, remaining) == (5, 1)


async def test_a_round_takes_one_vote_and_none_before_it_is_answered(database: Database) -> None:
    """The first one stays, with who gave it and when."""
    await _stored(database, rounds=1)
    assert not await _vote(database, 1, "tie")
    await _reply(database, 1, "adapter", "a")
    assert not await _vote(database, 1, "tie")
    await _reply(database, 1, "against", "b")
    assert await _vote(database, 1, "against") and not await _vote(database, 1, "adapter")
    (one,) = await everything(database, Round)
    assert (one.vote, one.annotator, one.voted_at is not None) == ("against", "Ann", True)


@pytest.mark.parametrize(("first", "second", "vote"), [("same", "same", "tie"), ("same", "Same", None)])
async def test_equal_replies_are_a_tie(database: Database, first: str, second: str, vote: str | None) -> None:
    """Word for word, when the second of them is stored."""
    await _stored(database, rounds=1)
    await _reply(database, 1, "adapter", first)
    assert (await everything(database, Round))[0].vote is None
    await _reply(database, 1, "against", second)
    (one,) = await everything(database, Round)
    assert (one.vote, one.voted_at is not None, one.annotator) == (vote, vote is not None, None)


async def test_what_is_left_out_is_counted_once(database: Database) -> None:
    """The round goes; one that is gone already, erased say, counts nothing."""
    number = await _stored(database, rounds=2)
    for _ in range(2):
        await database.write(partial(comparisons.leave_out, comparison=number, number=1))
    async with database.read() as session:
        assert (await comparisons.get(session, number)).left_out == 1
        assert [one.ordinal for one in await comparisons.rounds(session, number)] == [2]


async def test_an_end_is_final(database: Database) -> None:
    """Of two ends the first holds; a restart fails what was being answered, and nothing else."""
    ended, left = await _stored(database), await _stored(database)
    for state, reason in (("open", None), ("failed", "late")):
        await database.write(partial(comparisons.end, number=ended, state=state, reason=reason))
    await database.write(partial(comparisons.recover, reason="killed"))
    found = [(one.id, one.state, one.reason) for one in await everything(database, Comparison)]
    assert found == [(ended, "open", None), (left, "failed", "killed")]


async def test_comparisons_are_of_one_character_and_the_newest_first(database: Database) -> None:
    """As many as are asked for."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    numbers = [await _stored(database, slug) for slug in ("li", "mia", "li", "li")]
    async with database.read() as session:
        found = await comparisons.of_character(session, "li", 2)
        assert [one.id for one in found] == [numbers[3], numbers[2]]
        with pytest.raises(NotFound, match="comparison 99"):
            await comparisons.get(session, 99)
        with pytest.raises(NotFound, match="round 1"):
            await comparisons.round_of(session, numbers[0], 1)


async def test_what_is_asked_is_forgotten_of_one_character(database: Database) -> None:
    """A round that was voted on keeps its vote and says nothing, one without a vote goes; another character's stay."""
    await database.write(lambda session: characters.create(session, "mia", "Mia", None))
    for slug in ("li", "li", "mia"):
        await _stored(database, slug, rounds=2)
    for side in comparisons.SIDES:
        await _reply(database, 1, side, f"by {side}")
    await _vote(database, 1, "adapter")
    await database.write(lambda session: comparisons.forget_asked(session, [("li", "d1")]))
    left = await everything(database, Round)
    assert [(one.comparison_id, one.message) for one in left] == [(1, ""), (1, "m2"), (2, "m2"), (3, "m1"), (3, "m2")]
    first = left[0]
    assert (first.vote, first.adapter_reply, first.against_reply, first.system_prompt) == ("adapter", "", "", "")


@pytest.mark.parametrize("fields", [{"state": "odd"}, {"promotion": "odd"}])
async def test_only_known_states_are_stored(database: Database, fields: dict[str, Any]) -> None:
    """The database refuses others."""
    with pytest.raises(IntegrityError):
        await _stored(database, **fields)
