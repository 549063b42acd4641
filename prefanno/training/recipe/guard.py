"""The guard: whether a run is breaking the model, from what was measured at its start and now. Rules only, no torch.

Loss and accuracy do not show it: pure SimPO on 32 pairs reached accuracy 1.0 with broken text (SimPO issues 12, 42 and
80; LLaMA-Factory issues 5181 and 6545). What shows it is how likely the chosen replies still are, and what the model
writes. The limits are measured, see docs/benchmarks.md.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import fmean

IDEOGRAPH = r"[\u3040-\u30ff\u3400-\u9fff]"  # a word by itself: Chinese and Japanese have no spaces
WORD = re.compile(rf"{IDEOGRAPH}|(?:(?!{IDEOGRAPH})\w)+(?:'\w+)*")
FALLEN = (0.1, 0.25)  # nats for each token that the chosen replies may lose from their best: to warn, to stop
# The same of rows that are held out: they fall when the others are learnt by heart, and do not rise again, so that two
# warnings in a row stop, too.
OVERFITTED = (0.03, 0.06)
UNLIKELY = (2.0, 3.0)  # nats for each token that the probes' replies may lose in the base model's eyes
REPEATED = (0.1, 0.25)  # more of the probes' 4-grams that repeat
LONGER = (3.0, 6.0)  # times the probes' replies may be longer, or shorter, than before and than the chosen ones
CUT_OFF = 4  # times as long as what is seen of it counts a reply that does not end where it is cut off
SHORTEST = 4  # tokens; below that a ratio says nothing


@dataclass(frozen=True)
class Probe:
    """The reply to a fixed prompt. `base_logp` is how likely the base model finds it, in nats for each token.

    `ended` says that it did by itself, before its longest.
    """

    prompt: str
    reply: str
    tokens: int
    base_logp: float
    ended: bool


@dataclass(frozen=True)
class Evaluation:
    """What was measured at a step. Log-probabilities and their difference, the margin, in nats for each token.

    `rejected_logp`, `margin` and `accuracy` are of pairs, None without any. `on` is "held_out" or "train".
    """

    step: int
    on: str
    chosen_logp: float | None
    rejected_logp: float | None
    margin: float | None
    accuracy: float | None
    probes: Sequence[Probe]


@dataclass(frozen=True)
class Alarm:
    """What is wrong; `stops` where it ends the run, "overfits" only where an earlier step is worth keeping."""

    code: str
    stops: bool
    text: str


def alarms(evaluations: Sequence[Evaluation], usual: float) -> Iterator[Alarm]:
    """What has become worse, in the last of a stage's evaluations, by more than it may.

    `usual` is the mean length of the chosen replies, as `length` gives it: to come nearer to it is no drift.
    """
    *_, now = evaluations
    likely = [one.chosen_logp for one in evaluations if one.chosen_logp is not None]
    if likely:
        text = f"the chosen replies have become less likely: {_best(likely):.2f} → {likely[-1]:.2f} nats a token"
        yield from _over("chosen_falls", _fall(likely), FALLEN, text)
        if now.on == "held_out":
            warn, stop = OVERFITTED
            again = _fall(likely[:-1]) > warn
            yield from _over("overfits", _fall(likely), (warn, warn if again else stop), f"held-out rows: {text}")
    if now.probes:
        yield from _of_replies(evaluations[0].probes, now.probes, usual)


def length(tokens: int, *, ended: bool) -> int:
    """In tokens; of a reply that was cut off nobody knows it, but that it is longer than the others."""
    return tokens if ended else CUT_OFF * tokens


def not_a_number(step: int, loss: float) -> Alarm | None:
    """A loss that is no number ends a run: every weight is lost with it."""
    if math.isfinite(loss):
        return None
    return Alarm("not_a_number", stops=True, text=f"the loss of step {step} is {loss}: lower the learning rate")


def repeated_4grams(text: str) -> float:
    """The share of a text's word 4-grams that occurred in it before, 0 to just under 1."""
    words = WORD.findall(text.lower())
    grams = list(zip(words, words[1:], words[2:], words[3:], strict=False))
    return (len(grams) - len(set(grams))) / len(grams) if grams else 0.0


def _fall(likely: Sequence[float]) -> float:
    """From the best to the last."""
    return _best(likely) - likely[-1] if likely else 0.0


def _best(likely: Sequence[float]) -> float:
    return max(likely, key=lambda value: -math.inf if math.isnan(value) else value)


def _of_replies(start: Sequence[Probe], now: Sequence[Probe], usual: float) -> Iterator[Alarm]:
    unlikely = fmean(probe.base_logp for probe in start) - fmean(probe.base_logp for probe in now)
    yield from _over(
        "broken_words",
        unlikely,
        UNLIKELY,
        f"the replies to the probes are {unlikely:.1f} nats a token less likely to the base model, as broken text is",
    )
    before, after = (fmean(repeated_4grams(probe.reply) for probe in probes) for probes in (start, now))
    yield from _over(
        "repetition",
        after - before,
        REPEATED,
        f"the replies to the probes repeat themselves: {before:.0%} → {after:.0%}",
    )
    lengths = (fmean(length(probe.tokens, ended=probe.ended) for probe in probes) for probes in (start, now))
    long, longer = (max(one, SHORTEST) for one in lengths)
    yield from _over(
        "length_drift",
        min(max(longer / one, one / longer) for one in (long, max(usual, SHORTEST))),
        LONGER,
        f"the replies to the probes have changed in length: {long:.0f} → {longer:.0f} tokens",
    )


def _over(code: str, value: float, limits: tuple[float, float], text: str) -> Iterator[Alarm]:
    warn, stop = limits
    if not value <= warn:  # also where it is no number
        yield Alarm(code, stops=not value <= stop, text=text)
