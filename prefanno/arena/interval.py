"""What votes prove of a win rate, however often one looks: a confidence sequence. docs/comparisons.md has the method.

A mixture of likelihood ratios is a martingale (Robbins 1970, Ann. Math. Stat. 41), which at the true rate ever exceeds
1/α with probability α at most (Ville 1939). The interval holds every rate at which it does not exceed it.
"""

from dataclasses import dataclass
from math import inf, lgamma, log

LEVEL = 0.95
PRIOR = 2.0  # of Beta(PRIOR, PRIOR), the mixture: docs/comparisons.md compares it with others
FARTHEST = 1_000  # votes: beyond it, a person should not be promised a verdict

_LIMIT = -log(1 - LEVEL)
_HALVINGS = 60  # of an interval of at most 1: finer than a float can tell


@dataclass(frozen=True)
class Interval:
    """Win rates, from `low` to `high`."""

    low: float
    high: float


def win_rate(won: int, lost: int, tied: int) -> float | None:
    """The share of votes won, a tie counting a half; None without votes."""
    votes = won + lost + tied
    return (won + tied / 2) / votes if votes else None


def interval(won: int, lost: int, tied: int) -> Interval:
    """The win rates that the votes do not contradict; (0, 1) without votes.

    With a probability of LEVEL the true rate lies in the interval after every vote, all at once.
    """
    votes = won + lost + tied
    score = won + tied / 2
    return Interval(_low(score, votes), 1 - _low(votes - score, votes))


def verdict(won: int, lost: int, tied: int) -> str:
    """On which side of 1/2 the whole interval lies: "better", "worse", or "undecided"."""
    found = interval(won, lost, tied)
    if found.low > 1 / 2:
        return "better"
    return "worse" if found.high < 1 / 2 else "undecided"


def more_votes(won: int, lost: int, tied: int) -> int | None:
    """About how many more votes decide, if the rate stays as it is; 0 where it is decided.

    None without votes, and where more than FARTHEST would be needed. The rate is taken to be a little nearer to 1/2
    than it looks (Laplace's rule of succession): the first votes promise too much.
    """
    votes = won + lost + tied
    if not votes:
        return None
    if verdict(won, lost, tied) != "undecided":
        return 0
    score = won + tied / 2
    rate = (score + 1) / (votes + 2)
    further = range(1, FARTHEST + 1)
    return next((more for more in further if _evidence(1 / 2, score + more * rate, votes + more) >= _LIMIT), None)


def _low(score: float, votes: int) -> float:
    """The lower end, by bisection: the evidence falls from 0 to the mean of the votes, where it is below the limit."""
    if not score:
        return 0.0
    outside, inside = 0.0, score / votes
    for _ in range(_HALVINGS):
        middle = (outside + inside) / 2
        if _evidence(middle, score, votes) < _LIMIT:
            inside = middle
        else:
            outside = middle
    return outside


def _evidence(rate: float, score: float, votes: int) -> float:
    """How much the votes speak against the rate: the logarithm of the martingale."""
    mixture = _log_beta(PRIOR + score, PRIOR + votes - score) - _log_beta(PRIOR, PRIOR)
    return mixture - _times_log(score, rate) - _times_log(votes - score, 1 - rate)


def _times_log(factor: float, value: float) -> float:
    if not factor:
        return 0.0
    return factor * (log(value) if value else -inf)


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
