"""The guard on the demo model: settings that are known to break it, in a run of a real server."""

import pytest

from benchmarks.taste import COLLAPSE, train_and_ask
from benchmarks.taste_measure import measure
from benchmarks.training_data import pairs, questions

pytestmark = [pytest.mark.needs("demo model"), pytest.mark.sqlite_only, pytest.mark.long]

GUARDED, UNGUARDED = COLLAPSE.values()
WHOLE = 0.03  # the share of words that none knows: 0.01 of the base model, under 0.02 of adapters that are whole


def test_the_guard_keeps_a_whole_model_of_a_run_that_collapses() -> None:
    """Pure SimPO on 32 pairs is stopped, the log says why in plain words, and the kept adapter speaks whole words."""
    trained = train_and_ask(pairs()[:32], questions(), 2, GUARDED)
    assert trained.reason is not None and "chosen replies" in trained.reason
    taste = measure(trained.replies)
    assert taste.unknown_words < WHOLE, taste
    assert taste.repeated_4grams < 0.05, taste


def test_without_the_guard_the_same_run_breaks_the_model() -> None:
    """The control: trained to its end, the same plan leaves broken words, which the guard's test would see."""
    trained = train_and_ask(pairs()[:32], questions(), 2, UNGUARDED)
    assert trained.reason is None
    taste = measure(trained.replies)
    assert taste.unknown_words > WHOLE or taste.repeated_4grams > 0.05, taste
