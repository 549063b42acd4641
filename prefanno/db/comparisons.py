"""Queries on comparisons and their rounds."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from sqlalchemy import ColumnElement, case, delete, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.db.models import Comparison, Round, now
from prefanno.errors import NotFound

Side = Literal["adapter", "against"]
SIDES: tuple[Side, ...] = get_args(Side)
ANSWERED = Round.adapter_reply.is_not(None) & Round.against_reply.is_not(None)
VOTABLE = ANSWERED & Round.vote.is_(None)
NOTHING_SAID: Mapping[str, Any] = {
    "message": "",
    "context": [],
    "system_prompt": "",
    "digest": "",
    "adapter_reply": "",
    "adapter_thinking": None,
    "against_reply": "",
    "against_thinking": None,
    "annotation_id": None,
}


@dataclass(frozen=True)
class Tally:
    """How far a comparison is: its rounds, those answered by both, single replies, and the votes for the adapter."""

    rounds: int
    answered: int
    replies: int
    won: int
    lost: int
    tied: int

    @property
    def votes(self) -> tuple[int, int, int]:
        """Won, lost, tied."""
        return self.won, self.lost, self.tied


async def get(session: AsyncSession, number: int) -> Comparison:
    """The comparison of this id. Raises NotFound."""
    found = await session.get(Comparison, number)
    if found is None:
        raise NotFound(f"there is no comparison {number}", f"未找到对比 {number}")
    return found


async def round_of(session: AsyncSession, comparison: int, number: int) -> Round:
    """The round of this id in the comparison. Raises NotFound."""
    found = await session.get(Round, number)
    if found is None or found.comparison_id != comparison:
        raise NotFound(f"comparison {comparison} has no round {number}", f"未找到：对比 {comparison} 没有轮次 {number}")
    return found


async def of_character(session: AsyncSession, character: str, limit: int) -> Sequence[Comparison]:
    """The character's comparisons, the newest first."""
    query = select(Comparison).where(Comparison.character == character).order_by(Comparison.id.desc())
    return (await session.scalars(query.limit(limit))).all()


async def tallies(session: AsyncSession, numbers: Collection[int]) -> dict[int, Tally]:
    """Of each of these comparisons, how far it is."""
    counted = (ANSWERED, *(Round.vote == vote for vote in ("adapter", "against", "tie")))
    answered, won, lost, tied = (func.coalesce(func.sum(case((that, 1), else_=0)), 0) for that in counted)
    replies = func.count(Round.adapter_reply) + func.count(Round.against_reply)
    query = select(Round.comparison_id, func.count(), answered, replies, won, lost, tied)
    found = await session.execute(query.where(Round.comparison_id.in_(numbers)).group_by(Round.comparison_id))
    return dict.fromkeys(numbers, Tally(0, 0, 0, 0, 0, 0)) | {number: Tally(*counts) for number, *counts in found}


async def tally(session: AsyncSession, number: int) -> Tally:
    """How far this comparison is."""
    return (await tallies(session, [number]))[number]


async def rounds(session: AsyncSession, number: int) -> Sequence[Round]:
    """All rounds of the comparison, in their order."""
    return (await session.scalars(select(Round).where(Round.comparison_id == number).order_by(Round.ordinal))).all()


async def next_round(session: AsyncSession, number: int) -> tuple[Round | None, int]:
    """The first round of the comparison that can be voted on, and how many can."""
    votable = (Round.comparison_id == number) & VOTABLE
    first = (await session.scalars(select(Round).where(votable).order_by(Round.ordinal).limit(1))).one_or_none()
    return first, await _count(session, votable)


async def reply(session: AsyncSession, number: int, side: Side, content: str, thinking: str | None) -> None:
    """Store what a side replied in this round; equal replies are a tie by themselves."""
    said = {f"{side}_reply": content, f"{side}_thinking": thinking}
    await session.execute(update(Round).where(Round.id == number).values(said))
    tied = update(Round).where(Round.id == number, VOTABLE, Round.adapter_reply == Round.against_reply)
    await session.execute(tied.values(vote="tie", voted_at=now()))


async def leave_out(session: AsyncSession, comparison: int, number: int) -> None:
    """This round cannot be answered. It may be gone: its prompt was erased meanwhile."""
    gone = await session.execute(delete(Round).where(Round.id == number).returning(Round.id))
    if gone.scalar_one_or_none() is not None:
        counted = update(Comparison).where(Comparison.id == comparison)
        await session.execute(counted.values(left_out=Comparison.left_out + 1))


async def vote(session: AsyncSession, number: int, choice: str, annotator: str | None) -> bool:
    """Store the vote; False where there is one already: of two servers' votes at once the database takes one."""
    free = update(Round).where(Round.id == number, VOTABLE)
    done = await session.execute(free.values(vote=choice, annotator=annotator, voted_at=now()).returning(Round.id))
    return done.scalar_one_or_none() is not None


async def end(session: AsyncSession, number: int, state: str, reason: str | None = None) -> None:
    """Its replies are written, or nothing more will be."""
    answering = update(Comparison).where(Comparison.id == number, Comparison.state == "answering")
    await session.execute(answering.values(state=state, reason=reason, ended_at=now()))


async def recover(session: AsyncSession, reason: str) -> None:
    """What was being answered when the server ended has failed."""
    left = update(Comparison).where(Comparison.state == "answering")
    await session.execute(left.values(state="failed", reason=reason, ended_at=now()))


async def due(session: AsyncSession) -> Sequence[Comparison]:
    """The comparisons whose adapters are to be promoted."""
    return (await session.scalars(select(Comparison).where(Comparison.promotion == "due"))).all()


async def forget(session: AsyncSession, annotations: Sequence[int]) -> None:
    """Remove what the rounds say that made these annotations; their votes stay, as numbers."""
    await session.execute(update(Round).where(Round.annotation_id.in_(annotations)).values(NOTHING_SAID))


async def forget_asked(session: AsyncSession, said: Collection[tuple[str, str]]) -> None:
    """Remove what all rounds say that have these characters and digests; those without a vote go."""
    for character, same in said:
        mine = select(Comparison.id).where(Comparison.character == character)
        asked = (Round.digest == same) & Round.comparison_id.in_(mine)
        await session.execute(delete(Round).where(asked, Round.vote.is_(None)))
        await session.execute(update(Round).where(asked).values(NOTHING_SAID))


async def _count(session: AsyncSession, those: ColumnElement[bool]) -> int:
    return (await session.execute(select(func.count()).select_from(Round).where(those))).scalar_one()
