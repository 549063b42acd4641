"""The votes of a comparison, and what they say. Each takes the session of one transaction."""

from dataclasses import dataclass
from typing import Literal, NamedTuple, get_args

from sqlalchemy.ext.asyncio import AsyncSession

from prefanno.arena.interval import Interval, interval, more_votes, verdict, win_rate
from prefanno.db import comparisons
from prefanno.db.comparisons import Side, Tally
from prefanno.db.models import Comparison, Round
from prefanno.errors import Conflict

Vote = Literal["left", "right", "tie"]
VOTES: tuple[str, ...] = get_args(Vote)
VERDICTS = ("better", "worse", "undecided")


class Reply(NamedTuple):
    """What one side replied."""

    content: str
    thinking: str | None


@dataclass(frozen=True)
class Standing:
    """What the votes say of the adapter: its win rate, a tie being half a win, with an interval, and the verdict.

    `more_votes` is about how many more would decide it: 0 where it is, None where nobody knows or out of reach.
    """

    win_rate: float | None
    interval: Interval
    verdict: str
    more_votes: int | None


def standing(tally: Tally) -> Standing:
    """What these votes say."""
    votes = tally.votes
    return Standing(win_rate(*votes), interval(*votes), verdict(*votes), more_votes(*votes))


def replies(one: Round) -> dict[Side, Reply]:
    """What each side replied. Both have."""
    return {
        "adapter": Reply(one.adapter_reply or "", one.adapter_thinking),
        "against": Reply(one.against_reply or "", one.against_thinking),
    }


def shown(one: Round) -> tuple[Side, Side]:
    """Which side is shown on the left, and which on the right."""
    return ("against", "adapter") if one.swapped else ("adapter", "against")


def sides(one: Round, vote: str) -> tuple[Side, Side] | None:
    """The side that this vote prefers, and the other; None of a tie."""
    left, right = shown(one)
    return {"left": (left, right), "right": (right, left)}.get(vote)


async def following(session: AsyncSession, number: int) -> tuple[Round, int]:
    """The next round to vote on, and how many there are with it. Raises NotFound, and Conflict where none is left."""
    comparison = await comparisons.get(session, number)
    found, remaining = await comparisons.next_round(session, number)
    if found is None:
        raise _nothing(comparison)
    return found, remaining


async def vote(session: AsyncSession, number: int, one: Round, vote: str, annotator: str | None) -> None:
    """Store it; where the adapter is better from now on, its promotion is due if that was asked for.

    Raises Conflict where this round has a vote.
    """
    preferred = sides(one, vote)
    if not await comparisons.vote(session, one.id, preferred[0] if preferred else "tie", annotator):
        raise _voted(one)
    comparison = await comparisons.get(session, number)
    asked = comparison.promotes and comparison.promotion is None
    if asked and standing(await comparisons.tally(session, number)).verdict == "better":
        comparison.promotion = "due"


def _nothing(comparison: Comparison) -> Conflict:
    if comparison.state == "answering":
        return Conflict(
            f"no round of comparison {comparison.id} is answered yet; try again in a moment",
            f"对比 {comparison.id} 暂无可投票的轮次：回复仍在生成，请稍后重试",
        )
    return Conflict(
        f"every round of comparison {comparison.id} has its vote; start another one for more",
        f"对比 {comparison.id} 没有可投票的轮次：已全部投票；如需更多请新建对比",
    )


def _voted(one: Round) -> Conflict:
    if one.adapter_reply is None or one.against_reply is None:
        return Conflict(f"round {one.id} is not answered yet", f"轮次 {one.id} 的回复尚未生成，请稍后重试")
    return Conflict(f"round {one.id} has its vote", f"轮次 {one.id} 已投票")
