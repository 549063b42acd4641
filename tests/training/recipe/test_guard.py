"""The guard's rules, on numbers and texts."""

import math
from dataclasses import replace

import pytest

from prefanno.training.recipe.guard import Evaluation, Probe, alarms, length, not_a_number, repeated_4grams

WELL = "I keep the second-hand books in order, and the riddles in my head, dear guest."
LOOP = "I am Li I am Li I am Li I am Li I am Li I am Li I am Li"
PROBE = Probe("Who are you?", WELL, 20, -1.0, ended=True)
USUAL = 20.0
START = Evaluation(0, "held_out", -1.7, -1.9, 0.2, 0.6, [PROBE])


def _found(now: Evaluation) -> list[tuple[str, bool]]:
    return [(alarm.code, alarm.stops) for alarm in alarms([START, now], USUAL)]


def test_a_model_that_learns_raises_no_alarm() -> None:
    """The control: likelier chosen replies, less likely rejected ones, other words of about the same length."""
    probe = replace(PROBE, reply="Li, at your service! Which riddle shall it be today?", tokens=14, base_logp=-2.0)
    assert _found(replace(START, step=9, chosen_logp=-1.5, rejected_logp=-3.0, margin=1.5, probes=[probe])) == []


@pytest.mark.parametrize(
    ("changes", "probe", "expected"),
    [
        ({"chosen_logp": -1.72}, {}, []),
        ({"chosen_logp": -1.74}, {}, [("overfits", False)]),
        ({"chosen_logp": -1.78}, {}, [("overfits", True)]),
        ({"chosen_logp": -1.85}, {}, [("chosen_falls", False), ("overfits", True)]),
        ({"chosen_logp": -1.79, "on": "train"}, {}, []),
        ({"chosen_logp": -1.85, "on": "train"}, {}, [("chosen_falls", False)]),
        ({"chosen_logp": -2.0, "on": "train"}, {}, [("chosen_falls", True)]),
        ({"chosen_logp": math.nan, "on": "train"}, {}, [("chosen_falls", True)]),
        ({}, {"base_logp": -3.5}, [("broken_words", False)]),
        ({}, {"base_logp": -4.5}, [("broken_words", True)]),
        ({}, {"reply": LOOP}, [("repetition", True)]),
        ({}, {"tokens": 20, "ended": False}, [("length_drift", False)]),
        ({}, {"tokens": 48, "ended": False}, [("length_drift", True)]),
        ({}, {"tokens": 1}, [("length_drift", False)]),
    ],
)
def test_each_rule_warns_and_then_stops(
    changes: dict[str, object], probe: dict[str, object], expected: list[tuple[str, bool]]
) -> None:
    """What has become worse is named; it stops the run where it is much worse, or no number."""
    assert _found(replace(START, step=9, probes=[replace(PROBE, **probe)], **changes)) == expected  # type: ignore[arg-type]


def test_the_chosen_replies_are_held_against_their_best() -> None:
    """What was gained and lost again is a fall, too: pure SimPO ends above where it began, in broken text."""
    start = replace(START, on="train")
    evaluations = [replace(start, step=step, chosen_logp=value) for step, value in ((0, -3.1), (11, -2.4), (22, -2.7))]
    assert [(alarm.code, alarm.stops) for alarm in alarms(evaluations, USUAL)] == [("chosen_falls", True)]
    assert list(alarms(evaluations[:2], USUAL)) == []


def test_two_falls_in_a_row_of_rows_that_are_held_out_stop_the_run() -> None:
    """A second warning in a row stops, unless the rows are those learnt from, or the replies came back in between."""

    def last(*likely: float, on: str = "held_out") -> list[tuple[str, bool]]:
        evaluations = [replace(START, step=step, chosen_logp=value, on=on) for step, value in enumerate(likely)]
        return [(alarm.code, alarm.stops) for alarm in alarms(evaluations, USUAL)]

    assert last(-1.6, -1.56, -1.6) == [("overfits", False)]
    assert last(-1.6, -1.56, -1.6, -1.595) == [("overfits", True)]
    assert last(-1.6, -1.56, -1.6, -1.57, -1.6) == [("overfits", False)]
    assert last(-1.6, -1.56, -1.7, -1.7, on="train") == [("chosen_falls", False)]


def test_coming_nearer_to_the_data_is_no_drift() -> None:
    """Where the chosen replies are short, short replies are what was asked for."""
    now = replace(START, step=9, probes=[replace(PROBE, tokens=5)])
    assert list(alarms([START, now], 6.0)) == []
    assert [alarm.code for alarm in alarms([START, now], USUAL)] == ["length_drift"]
    endless = [replace(PROBE, tokens=48, ended=False)]
    assert list(alarms([START, replace(START, step=9, probes=endless)], length(48, ended=False))) == []


def test_a_loss_that_is_no_number_stops_the_run() -> None:
    """NaN and infinity stop at once, any finite loss does not."""
    assert not_a_number(3, 2.5) is None
    for loss in (math.nan, math.inf):
        alarm = not_a_number(3, loss)
        assert alarm is not None and alarm.stops and "learning rate" in alarm.text


def test_repetition_is_told_in_any_script() -> None:
    """The share of 4-grams seen before: none in a sentence or a short text, most in a loop, also in Chinese."""
    assert repeated_4grams(WELL) == 0.0 and repeated_4grams("Li.") == 0.0
    assert repeated_4grams(LOOP) > 0.7 and repeated_4grams("我是离我是离我是离我是离我是离") > 0.5
    assert repeated_4grams("你是谁我叫离是这家旧书店的店员") == 0.0
