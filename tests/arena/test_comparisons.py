"""Which side a vote means, and what many votes say."""

import pytest

from prefanno.arena.comparisons import VERDICTS, Reply, replies, shown, sides, standing
from prefanno.db.comparisons import Tally
from prefanno.db.models import Round


def _round(*, swapped: bool) -> Round:
    said = {"adapter_reply": "new", "adapter_thinking": "hm", "against_reply": "old"}
    return Round(swapped=swapped, **said)


@pytest.mark.parametrize("swapped", [False, True])
def test_a_vote_means_what_was_shown(*, swapped: bool) -> None:
    """Left is the adapter's reply, unless the sides are swapped; a tie means neither."""
    one = _round(swapped=swapped)
    assert shown(one) == (("against", "adapter") if swapped else ("adapter", "against"))
    assert sides(one, "left") == shown(one) and sides(one, "right") == shown(one)[::-1]
    assert sides(one, "tie") is None
    assert replies(one) == {"adapter": Reply("new", "hm"), "against": Reply("old", None)}


@pytest.mark.parametrize(
    ("votes", "win_rate", "verdict"),
    [
        ((0, 0, 0), None, "undecided"),
        ((3, 1, 0), 0.75, "undecided"),
        ((0, 0, 400), 0.5, "undecided"),
        ((90, 10, 0), 0.9, "better"),
        ((10, 90, 20), 20 / 120, "worse"),
    ],
)
def test_votes_are_summed_up(votes: tuple[int, int, int], win_rate: float | None, verdict: str) -> None:
    """The win rate with a tie as half a win, an interval around it, and the verdict that the interval gives."""
    found = standing(Tally(sum(votes), sum(votes), 2 * sum(votes), *votes))
    assert (found.win_rate, found.verdict) == (win_rate, verdict) and found.verdict in VERDICTS
    assert 0 <= found.interval.low <= (0.5 if win_rate is None else win_rate) <= found.interval.high <= 1
    assert (found.more_votes == 0) == (verdict != "undecided")
