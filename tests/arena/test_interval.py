"""The interval and the verdict: properties, and what happens to people who look after every vote."""

from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import accumulate
from math import ceil, floor, sqrt
from pathlib import Path
from random import Random

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from prefanno.arena.interval import FARTHEST, LEVEL, Interval, interval, more_votes, verdict, win_rate
from tests.properties import unhurried

PAGE = Path(__file__).parents[2] / "docs" / "comparisons.md"

Counts = tuple[int, int, int]  # won, lost, tied
Method = Callable[[int, int, int], Interval]
Kept = list[tuple[int, int]]  # after each vote, the lowest and the highest score (twice the wins) that goes on

COUNTS = st.tuples(*[st.integers(0, 300)] * 3)
VOTED = COUNTS.filter(any)
# True rates of the new adapter, and how often it ties.
TRUTHS = [(0.5, 0.0), (0.5, 0.2), (0.6, 0.0), (0.6, 0.2), (0.75, 0.0), (0.75, 0.2)]
VOTES = 400
PATHS = 4_000


def counts(score: int, votes: int) -> Counts:
    """Votes that have the score, with one tie at most; the interval asks for no more (a property below)."""
    return score // 2, votes - score // 2 - score % 2, score % 2


def wilson(won: int, lost: int, tied: int) -> Interval:
    """The usual 95 % interval of a rate, for one look at a number of votes that was fixed before."""
    votes, rate, z = won + lost + tied, (won + tied / 2) / (won + lost + tied), 1.959964
    middle = (rate + z**2 / (2 * votes)) / (1 + z**2 / votes)
    reach = z / (1 + z**2 / votes) * sqrt(rate * (1 - rate) / votes + z**2 / (4 * votes**2))
    return Interval(middle - reach, middle + reach)


@cache
def kept(method: Method, rate: float, looks: int) -> Kept:
    """After each vote, the scores with which the interval holds the rate."""
    return [_kept(method, rate, votes) for votes in range(1, looks + 1)]


def _kept(method: Method, rate: float, votes: int) -> tuple[int, int]:
    scores = range(2 * votes + 1)
    lowest = bisect_left(scores, True, key=lambda score: method(*counts(score, votes)).high >= rate)
    return lowest, bisect_left(scores, True, key=lambda score: method(*counts(score, votes)).low > rate) - 1


def shares(truth: float, tied: float) -> tuple[float, float, float]:
    """How often the adapter wins, ties and loses."""
    return truth - tied / 2, tied, 1 - truth - tied / 2


@dataclass(frozen=True)
class Left:
    """The shares of all paths that have left upwards and downwards, after each vote."""

    above: list[float]
    below: list[float]

    def either(self) -> float:
        """The share that has left at all."""
        return self.above[-1] + self.below[-1]


def exact(truth: float, tied: float, bounds: Kept) -> Left:
    """Who leaves the bounds, looking after every vote: computed, not simulated."""
    above, below, inside = [0.0], [0.0], {0: 1.0}
    for lowest, highest in bounds:
        spread: dict[int, float] = {}
        for score, share in inside.items():
            for more, chance in zip((2, 1, 0), shares(truth, tied), strict=True):
                spread[score + more] = spread.get(score + more, 0) + share * chance
        above.append(above[-1] + sum(share for score, share in spread.items() if score > highest))
        below.append(below[-1] + sum(share for score, share in spread.items() if score < lowest))
        inside = {score: share for score, share in spread.items() if lowest <= score <= highest}
    return Left(above[1:], below[1:])


def simulated(truth: float, tied: float, both: tuple[Kept, Kept], paths: int) -> tuple[float, float]:
    """The shares of simulated people who leave the first bounds at all, and the second ones upwards.

    Each votes, looks after every vote, and stops as soon as that is so.
    """
    random = Random(f"{truth} {tied}")
    missed = promoted = 0
    for _ in range(paths):
        steps = random.choices((2, 1, 0), shares(truth, tied), k=len(both[0]))
        scores = list(accumulate(steps))
        missed += any(not low <= score <= high for score, (low, high) in zip(scores, both[0], strict=True))
        promoted += next(_ends(scores, both[1]), False)
    return missed / paths, promoted / paths


def _ends(scores: list[int], bounds: Kept) -> Iterator[bool]:
    """Where a path leaves the bounds, and whether upwards."""
    return (score > high for score, (low, high) in zip(scores, bounds, strict=True) if not low <= score <= high)


def voted_until(share: float, left: Left) -> int:
    """After how many votes this share has a verdict in favour."""
    return bisect_left(left.above, share) + 1


def test_without_votes_nothing_is_known() -> None:
    """No votes contradict no rate, and nobody can say how many more decide."""
    assert interval(0, 0, 0) == Interval(0, 1)
    assert (win_rate(0, 0, 0), verdict(0, 0, 0), more_votes(0, 0, 0)) == (None, "undecided", None)


@pytest.mark.parametrize(
    ("votes", "said", "more"),
    [
        ((8, 0, 0), "undecided", 2),
        ((9, 0, 0), "better", 0),
        ((0, 9, 0), "worse", 0),
        ((15, 5, 0), "undecided", 19),
        ((60, 40, 0), "undecided", 166),
        ((55, 35, 10), "undecided", 166),
        ((51, 49, 0), "undecided", None),
        ((0, 0, 200), "undecided", None),
        ((600_000, 400_000, 0), "better", 0),
    ],
)
def test_the_verdict(votes: Counts, said: str, more: int | None) -> None:
    """What a person reads after these votes."""
    assert (verdict(*votes), more_votes(*votes)) == (said, more)


@unhurried
@given(VOTED)
@example((1, 0, 0))
@example((0, 1_000_000, 0))
def test_the_interval_holds_the_rate_of_the_votes(votes: Counts) -> None:
    """The share of votes won lies in the interval, which lies in [0, 1] and has some width."""
    rate, found = win_rate(*votes), interval(*votes)
    assert rate is not None and 0 <= found.low <= rate <= found.high <= 1
    assert found.low < found.high


@unhurried
@given(COUNTS)
def test_the_sides_are_alike(votes: Counts) -> None:
    """With wins and losses exchanged the interval is mirrored, the verdict reversed, and as many votes are missing."""
    won, lost, tied = votes
    here, there = interval(won, lost, tied), interval(lost, won, tied)
    assert here.low == pytest.approx(1 - there.high)
    assert here.high == pytest.approx(1 - there.low)
    reversed_verdict = {"better": "worse", "worse": "better", "undecided": "undecided"}[verdict(won, lost, tied)]
    assert verdict(lost, won, tied) == reversed_verdict
    nearer, farther = more_votes(won, lost, tied), more_votes(lost, won, tied)
    assert nearer == farther or (nearer and farther and abs(nearer - farther) == 1)  # rounding at the very limit


@unhurried
@given(VOTED)
def test_the_interval_shrinks(votes: Counts) -> None:
    """Four times the votes at the same rate say more: the new interval lies inside the old one."""
    few, many = interval(*votes), interval(*(4 * count for count in votes))
    assert few.low <= many.low and many.high <= few.high and many != few


@unhurried
@given(COUNTS)
def test_two_ties_are_a_win_and_a_loss(votes: Counts) -> None:
    """A tie counts a half."""
    won, lost, tied = votes
    assert interval(won, lost, tied + 2) == interval(won + 1, lost + 1, tied)


@unhurried
@given(COUNTS, st.integers(0, 300))
def test_a_win_never_lowers_the_interval(votes: Counts, more: int) -> None:
    """Of as many votes, more wins move both ends up: what the bounds of the simulation rest on."""
    won, lost, tied = votes
    fewer, found = interval(won, lost + more, tied), interval(won + more, lost, tied)
    assert fewer.low <= found.low and fewer.high <= found.high


@unhurried
@given(VOTED)
@example((19, 11, 0))
def test_the_votes_that_are_named_decide(votes: Counts) -> None:
    """So many more at the rate so far bring the verdict; one fewer at a rate a little nearer to 1/2 does not."""
    won, lost, tied = max(votes[0], votes[1]), min(votes[0], votes[1]), votes[2]
    count, score, more = sum(votes), 2 * won + tied, more_votes(won, lost, tied)
    nearer = 2 * (score / 2 + 1) / (count + 2)
    if more is None:
        assert verdict(*counts(floor(score + FARTHEST * nearer), count + FARTHEST)) == "undecided"
    else:
        assert verdict(*counts(ceil(score + more * score / count), count + more)) == "better"
        before = verdict(*counts(floor(score + (more - 1) * nearer), count + more - 1)) if more else "undecided"
        assert before == "undecided"


@pytest.mark.parametrize(("truth", "tied"), TRUTHS)
@pytest.mark.parametrize(
    ("looks", "paths"),
    [pytest.param(VOTES, PATHS, id="short"), pytest.param(2_000, 10_000, id="long", marks=pytest.mark.long)],
)
def test_looking_after_every_vote(truth: float, tied: float, looks: int, paths: int) -> None:
    """Whoever stops at the first verdict misses the true rate, and promotes what is no better, as rarely as is said."""
    bounds = kept(interval, truth, looks), kept(interval, 0.5, looks)
    missed, promoted = simulated(truth, tied, bounds, paths)
    print(f"{truth} {tied}: missed {missed:.2%}, promoted {promoted:.2%}")  # noqa: T201 - `pytest -rP` shows it
    assert missed <= 1 - LEVEL
    assert promoted <= (1 - LEVEL) / 2 if truth == 1 / 2 else promoted > 1 - LEVEL
    computed = exact(truth, tied, bounds[0]).either(), exact(truth, tied, bounds[1]).above[-1]
    for found, wanted in zip((missed, promoted), computed, strict=True):
        assert found == pytest.approx(wanted, abs=4 * sqrt(wanted * (1 - wanted) / paths) + 1e-9)


@pytest.mark.parametrize("tied", [0.0, 0.2])
def test_the_usual_interval_does_not_bear_looking(tied: float) -> None:
    """The control: Wilson's 95 % interval, looked at after every vote, promotes far too much of what is no better."""
    bounds = kept(wilson, 0.5, VOTES)
    missed, promoted = simulated(0.5, tied, (bounds, bounds), PATHS)
    print(f"Wilson, 0.5 {tied}: missed {missed:.2%}, promoted {promoted:.2%}")  # noqa: T201 - likewise
    assert missed > 4 * (1 - LEVEL) and promoted > 2 * (1 - LEVEL)


def test_the_table_of_the_documentation() -> None:
    """docs/comparisons.md has the figures that are computed here."""
    page = PAGE.read_text(encoding="utf-8")
    assert [row for row in table() if row not in page] == []


def table() -> Iterator[str]:
    """The rows: misses of the true rate, those with "better" after 20, 100 and all votes, when half have it."""
    for truth, tied in TRUTHS:
        missed = exact(truth, tied, kept(interval, truth, VOTES)).either()
        left = exact(truth, tied, kept(interval, 0.5, VOTES))
        better = " | ".join(f"{left.above[votes - 1]:.1%}".replace("%", " %") for votes in (20, 100, VOTES))
        median = voted_until(0.5, left) if left.above[-1] >= 1 / 2 else "–"
        yield f"| {truth:.0%} | {tied:.0%} | {missed:.1%} | ".replace("%", " %") + f"{better} | {median} |"


@pytest.mark.parametrize("tied", [0.0, 0.2])
def test_the_control_is_in_the_documentation(tied: float) -> None:
    """docs/comparisons.md has the figures of the usual interval, computed."""
    left = exact(0.5, tied, kept(wilson, 0.5, VOTES))
    row = f"| Wilson | {tied:.0%} | {left.either():.1%} | {left.above[-1]:.1%} |".replace("%", " %")
    assert row in PAGE.read_text(encoding="utf-8"), row
