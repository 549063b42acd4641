"""A job's draws: which candidates are drawn again, how often, and what its client is told."""

import asyncio
import contextlib
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from prefanno.errors import GenerationCancelled
from prefanno.generation.config import Delta, Event, Finished, GenerationConfig, Reply, Request
from prefanno.generation.job import FALLBACK, Job
from prefanno.generation.model import LocalModel
from prefanno.generation.sampling import seed_of
from prefanno.generation.writing import Row, Vocabulary
from tests.generation.direct import answer

CONFIG = GenerationConfig("You are Li.", enable_thinking=False, max_new_tokens=64, num_responses=3)
FIRST = [seed_of(7, ordinal, 0) for ordinal in range(3)]


@pytest.fixture(scope="module")
def model(tiny_model: Path) -> LocalModel:
    """The tiny model."""
    return LocalModel(str(tiny_model))


def _write(row: Row, known: Vocabulary, content: str) -> None:
    for token in [*known.encode(content), known.ends[0]]:
        row.take(token, -1.0)


def _tell(job: Job) -> None:
    for event in job.tell():
        job.put(event)


def _drawn(model: LocalModel, *contents: str, streams: bool = False) -> tuple[list[Event], list[list[int]]]:
    """What a client is told when these are drawn, in order, and which seeds were drawn in each batch."""
    left, seeds = list(contents), list[list[int]]()

    async def draw() -> list[Event]:
        job = Job(Request("?", [], 7, CONFIG, streams=streams))
        while not job.is_over:
            rows = job.next_rows(model.vocabulary)
            seeds.append([row.seed for row in rows])
            for row in rows:
                _write(row, model.vocabulary, left.pop(0))
                _tell(job)
        return [event async for event in job.events()]

    events = asyncio.run(draw())
    assert left == []
    return events, seeds


def _contents(events: Sequence[Event]) -> list[str]:
    found = {event.ordinal: event.reply.content for event in events if isinstance(event, Finished)}
    return [found[ordinal] for ordinal in sorted(found)]


def test_replies_that_differ_are_drawn_once(model: LocalModel) -> None:
    """Where no reply resembles another, there is one batch, with a seed for each candidate."""
    events, seeds = _drawn(model, "one", "two", "three")
    assert (_contents(events), seeds) == (["one", "two", "three"], [FIRST])
    assert events[0] == Finished(1, Reply(None, "one", "stop", 4, FIRST[0], -1.0))


def test_near_duplicates_are_drawn_again(model: LocalModel) -> None:
    """A reply that a person would take for an earlier one is drawn again, alone, with another seed."""
    long = "The quick brown fox jumps over the lazy dog."
    events, seeds = _drawn(model, long, "two", f"  {long.upper()}!", "three")
    assert (_contents(events), seeds) == ([long, "two", "three"], [FIRST, [seed_of(7, 2, 1)]])


def test_near_duplicates_are_drawn_again_at_most_twice(model: LocalModel) -> None:
    """A model that has only one thing to say says it, after two more tries for each candidate that repeats it."""
    events, seeds = _drawn(model, *(["same"] * 7))
    assert _contents(events) == ["same"] * 3
    assert seeds == [FIRST, [seed_of(7, 1, 1), seed_of(7, 2, 1)], [seed_of(7, 1, 2), seed_of(7, 2, 2)]]


def test_an_empty_reply_is_drawn_again(model: LocalModel) -> None:
    """A candidate without a word is drawn again; if it stays empty, it says what silence looks like."""
    events, seeds = _drawn(model, "", "two", "three", "one")
    assert (_contents(events), len(seeds)) == (["one", "two", "three"], 2)
    events, seeds = _drawn(model, "", "two", "three", "", "")
    assert (_contents(events), len(seeds)) == ([FALLBACK, "two", "three"], 3)


def test_a_reader_sees_what_is_drawn_again(model: LocalModel) -> None:
    """The words of the second draw replace those of the first; whoever follows has the final text in the end."""
    events, _ = _drawn(model, "one", "one", "three", "two", streams=True)
    texts = {1: "", 2: "", 3: ""}
    for event in events:
        if isinstance(event, Delta):
            texts[event.ordinal] = event.content if event.replaces else texts[event.ordinal] + event.content
    assert texts == {1: "one", 2: "two", 3: "three"}
    assert any(isinstance(event, Delta) and event.replaces for event in events)


def test_a_cold_model_repeats_itself_and_is_redrawn(model: LocalModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """With top_k 1 all candidates are equal: there are three batches, and still all candidates."""
    sizes: list[int] = []
    next_rows = Job.next_rows

    def counted(self: Job, known: Vocabulary) -> list[Row]:
        rows = next_rows(self, known)
        sizes.append(len(rows))
        return rows

    monkeypatch.setattr(Job, "next_rows", counted)
    replies = answer(model, replace(CONFIG, top_k=1), "?")
    assert sizes == [3, 2, 2]
    assert len(replies) == 3 and len({reply.content for reply in replies}) == 1
    sizes.clear()
    answer(model, CONFIG, "?")
    assert sizes == [3]  # control: a warm one is drawn once


async def test_a_cancelled_job_writes_nothing_more(model: LocalModel) -> None:
    """Its rows are not going, and it has no others."""
    job = Job(Request("?", [], 7, CONFIG))
    rows = job.next_rows(model.vocabulary)
    assert all(row.going for row in rows)
    job.cancel()
    assert not any(row.going for row in rows) and job.next_rows(model.vocabulary) == []


async def test_an_error_ends_a_job(model: LocalModel) -> None:
    """Who waits gets the error after what was told before it."""
    job = Job(Request("?", [], 7, CONFIG, streams=True))
    _write(job.next_rows(model.vocabulary)[0], model.vocabulary, "one")
    _tell(job)
    job.fail(GenerationCancelled())
    events = job.events()
    assert [type(await anext(events)) for _ in range(2)] == [Delta, Finished]
    with pytest.raises(GenerationCancelled):
        await anext(events)


async def test_who_stops_reading_cancels(model: LocalModel) -> None:
    """A client that leaves in the middle wants nothing more."""
    job = Job(Request("?", [], 7, CONFIG))
    _write(job.next_rows(model.vocabulary)[0], model.vocabulary, "one")
    _tell(job)
    async with contextlib.aclosing(job.events()) as events:
        await anext(events)
    assert job.cancelled


async def test_a_job_is_content_with_less(model: LocalModel) -> None:
    """Where memory does not suffice, it is written alone, then with half of its rows at once, down to one."""
    job = Job(Request("?", [], 7, replace(CONFIG, num_responses=4)))
    assert [len(job.next_rows(model.vocabulary)), job.ask_less(), job.is_alone] == [4, True, True]
    sizes = [len(job.next_rows(model.vocabulary))]
    while job.ask_less():
        sizes.append(len(job.next_rows(model.vocabulary)))
    assert sizes == [4, 2, 1]
