"""What follows from a choice: which reply is better than which. Pure rules; no database, no web.

| verdict | ranks of the replies                            | pairs                              | unpaired   |
| ------- | ----------------------------------------------- | ---------------------------------- | ---------- |
| best    | one has 1, the others 2                         | the best over each other           |            |
| ranking | 1 is best, equal is a tie, none is "not judged" | each over each of a larger rank    |            |
| edit    | the edited text 1, the original 2               | the edited text over the original  |            |
| good    | 1, or none for "not judged"                     |                                    | each 1     |
| bad     | none                                            |                                    | each       |
| skip    | none                                            |                                    |            |

The pairs of one choice share its weight, so that to a trainer which weights its rows a ranking of ten (45 pairs) counts
as much as a best of two; InstructGPT does the same in its loss: 1/(K choose 2), Ouyang et al. 2022, equation 1.

What is made by the million in an export is a NamedTuple: a frozen dataclass takes three times as long to make.
"""

import json
from collections.abc import Collection, Mapping, Sequence
from operator import attrgetter
from typing import Any, Literal, NamedTuple, get_args

from prefanno.errors import InvalidInput

Verdict = Literal["best", "ranking", "good", "bad", "edit", "skip"]
VERDICTS: tuple[str, ...] = get_args(Verdict)


class Reply(NamedTuple):
    """One of the replies that a choice was among; `candidate` is its ordinal in the generation, if it came from one."""

    content: str
    thinking: str | None = None
    rank: int | None = None
    candidate: int | None = None


class Pair(NamedTuple):
    """`chosen` is better than `rejected`."""

    chosen: Reply
    rejected: Reply
    weight: float


class Unpaired(NamedTuple):
    """A reply that is good or bad by itself."""

    reply: Reply
    good: bool
    weight: float


def pairs(verdict: str, replies: Sequence[Reply], weight: float = 1.0) -> list[Pair]:
    """All implied pairs, those of the best reply first; together they weigh `weight`."""
    if verdict not in ("best", "ranking", "edit"):
        return []
    judged = sorted([reply for reply in replies if reply.rank is not None], key=attrgetter("rank"))
    found = [(a, b) for at, a in enumerate(judged, 1) for b in judged[at:] if a.rank != b.rank]
    return [Pair(chosen, rejected, weight / len(found)) for chosen, rejected in found]


def unpaired(verdict: str, replies: Sequence[Reply], weight: float = 1.0) -> list[Unpaired]:
    """The replies that are good or bad by themselves; together they weigh `weight`."""
    if verdict not in ("good", "bad"):
        return []
    judged = [reply for reply in replies if verdict == "bad" or reply.rank == 1]
    return [Unpaired(reply, verdict == "good", weight / len(judged)) for reply in judged]


def best(verdict: str, replies: Sequence[Reply]) -> Reply | None:
    """The reply that continues the conversation: the first of the best rank; none of a bad or skipped set."""
    if verdict in ("bad", "skip"):
        return None
    return min([reply for reply in replies if reply.rank is not None], key=attrgetter("rank"), default=None)


def counts(mode: str, verdict: str, replies: Sequence[Reply]) -> bool:
    """Whether the choice counts in its dataset: a preference needs a pair, a conversation a reply to go on from."""
    return best(verdict, replies) is not None and (mode == "multi" or bool(pairs(verdict, replies)))


def decide(verdict: str, candidates: Sequence[Reply], **said: Any) -> list[Reply]:
    """The candidates with the ranks that a person gave them.

    best, edit, good: `chosen` is a candidate's ordinal. edit: `content` is the edited reply, `thinking` its thought;
    left out, the candidate's own stays. ranking: `ranking` lists groups of ordinals from best to worst, the members of
    a group being tied. Raises InvalidInput where an ordinal is unknown or used twice, or something needed is missing or
    of no use to this verdict.
    """
    _check_needs(verdict, said)
    known = {reply.candidate for reply in candidates}
    if verdict == "ranking":
        groups: Sequence[Sequence[int]] = said["ranking"]
        ordinals = [ordinal for group in groups for ordinal in group]
        _check_known("ranking", ordinals, known)
        if len(ordinals) < 2:  # noqa: PLR2004 - an order is between two
            raise InvalidInput({"ranking": ["至少排列两个候选；只评价一个时请用 verdict=best 或 good"]})
        ranks = {ordinal: rank for rank, group in enumerate(groups, 1) for ordinal in group}
        return [reply._replace(rank=ranks.get(reply.candidate or 0)) for reply in candidates]
    if verdict in ("bad", "skip"):
        return list(candidates)
    _check_known("chosen", [said["chosen"]], known)
    chosen = next(reply for reply in candidates if reply.candidate == said["chosen"])
    if verdict == "edit":
        edited = Reply(said["content"], said.get("thinking") or chosen.thinking, rank=1)
        if (edited.content, edited.thinking) == (chosen.content, chosen.thinking):
            raise InvalidInput({"content": ["与原回复相同；未修改时请用 verdict=best"]})
        return [edited, chosen._replace(rank=2)]
    other = 2 if verdict == "best" else None
    return [reply._replace(rank=1 if reply is chosen else other) for reply in candidates]


def check(verdict: str, replies: Sequence[Reply]) -> None:
    """Raise InvalidInput where the ranks are not those of the verdict, as the table above has them."""
    ranks = [reply.rank for reply in replies]
    judged = [rank for rank in ranks if rank is not None]
    fitting = {
        "best": ranks.count(1) == 1 and ranks.count(2) == len(ranks) - 1 >= 1,
        "ranking": len(judged) > 1 and set(judged) == set(range(1, max(judged, default=0) + 1)),
        "edit": sorted(judged) == [1, 2] and len(ranks) == len(judged),
        "good": set(judged) == {1},
        "bad": bool(ranks) and not judged,
        "skip": not judged,
    }
    if not fitting[verdict]:
        shown = json.dumps(ranks)
        raise InvalidInput({"replies": [f"名次 {shown} 与 verdict={verdict} 不符，规则见文档 docs/choices.md"]})


NEEDS: Mapping[str, tuple[set[str], set[str]]] = {  # verdict: what it needs, what it may have
    "best": ({"chosen"}, set()),
    "ranking": ({"ranking"}, set()),
    "good": ({"chosen"}, set()),
    "bad": (set(), set()),
    "edit": ({"chosen", "content"}, {"thinking"}),
    "skip": (set(), set()),
}


def _check_needs(verdict: str, said: Mapping[str, object]) -> None:
    given = {name for name, value in said.items() if value is not None}
    needed, optional = NEEDS[verdict]
    faults = {name: [f"verdict={verdict} 时必须提供"] for name in needed - given}
    faults |= {name: [f"verdict={verdict} 时不能提供"] for name in given - needed - optional}
    if faults:
        raise InvalidInput(dict(sorted(faults.items())))


def _check_known(field: str, ordinals: Sequence[int], known: Collection[int | None]) -> None:
    if unknown := [ordinal for ordinal in ordinals if ordinal not in known]:
        there = "、".join(str(ordinal) for ordinal in sorted(filter(None, known)))
        raise InvalidInput({field: [f"没有候选 {unknown[0]}，可用：{there}"]})
    if len(set(ordinals)) < len(ordinals):
        raise InvalidInput({field: ["每个候选只能出现一次"]})
