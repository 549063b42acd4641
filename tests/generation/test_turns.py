"""Whose turn it is among those who wait."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.generation.config import Request
from prefanno.generation.job import Job
from prefanno.generation.turns import LIMIT, Turns
from tests.generation.watching import CONFIG
from tests.properties import unhurried

CLIENTS = "abcde"
ACTIONS = st.one_of(
    st.tuples(st.just("add"), st.sampled_from(CLIENTS)),
    st.tuples(st.just("cancel"), st.integers(0, 30)),
    st.tuples(st.just("take"), st.just(None)),
)


def _job(client: str | None = "a") -> Job:
    return Job(Request("?", [], 7, CONFIG, client))


def _added(turns: Turns, *clients: str) -> list[Job]:
    jobs = [_job(client) for client in clients]
    for job in jobs:
        turns.add(job)
    return jobs


def test_clients_take_turns() -> None:
    """Of a client that asks for much and one that asks for little, each has every second turn; positions say so."""
    turns = Turns()
    *much, little = _added(turns, "much", "much", "much", "little")
    assert [turns.position(job) for job in (*much, little)] == [0, 2, 3, 1]
    assert [turns.take() for _ in range(5)] == [much[0], little, much[1], much[2], None]


def test_a_cancelled_job_has_no_turn() -> None:
    """It is passed over, and takes no place; its client keeps its turn."""
    turns = Turns()
    jobs = _added(turns, *("a" * (LIMIT - 1)), "b")
    full = [turns.has_room("a")]
    jobs[0].cancel()
    assert [*full, turns.has_room("a")] == [False, True]
    assert [turns.position(jobs[1]), turns.position(jobs[-1])] == [0, 1]
    assert [turns.take(), turns.take()] == [jobs[1], jobs[-1]]


def test_nobody_takes_all_places() -> None:
    """Where one client fills the queue, another still finds a place, but not a second one, and not without end."""
    turns = Turns()
    _added(turns, *("a" * LIMIT))
    assert [turns.has_room(client) for client in "ab"] == [False, True]
    _added(turns, "b")
    assert [turns.has_room(client) for client in "abc"] == [False, False, True]
    _added(turns, *(str(number) for number in range(LIMIT - 1)))
    assert not turns.has_room("c")


def test_who_asks_and_leaves_again_and_again_fills_nothing() -> None:
    """What a client gave up is let go of when it asks again, also while nothing is taken."""
    turns = Turns()
    for _ in range(10 * LIMIT):
        (job,) = _added(turns, "a")
        job.cancel()
    assert sum(len(jobs) for jobs in turns._clients.values()) == 1
    assert turns.take() is None


def test_what_goes_on_comes_first() -> None:
    """A job that had its turn and is not complete goes before all others."""
    turns = Turns()
    first, second = _added(turns, "a", "b")
    begun = _job("c")
    turns.add_again(begun)
    assert [turns.position(first), turns.position(second)] == [1, 2]
    assert [turns.take() for _ in range(3)] == [begun, first, second]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_a_job_can_be_taken_out(place: int) -> None:
    """Wherever it waits; once."""
    turns = Turns()
    jobs = _added(turns, "a", "a", "b")
    assert [turns.remove(jobs[place]), turns.remove(jobs[place])] == [True, False]
    assert [turns.take() for _ in range(3)] == [job for job in jobs if job is not jobs[place]] + [None]


@unhurried
@given(st.lists(ACTIONS, max_size=60))
def test_nobody_waits_for_more_turns_than_there_are_clients(actions: list[tuple[str, str | int | None]]) -> None:
    """Whatever comes and goes: who waits has a turn before any other client has its second."""
    turns, waiting = Turns(), list[Job]()
    others: dict[str | None, list[str | None]] = {}  # who had a turn since this client had its own, or came
    for action, what in actions:
        if action == "add" and isinstance(what, str):
            waiting += _added(turns, what)
            others.setdefault(what, [])
        elif action == "cancel" and isinstance(what, int) and what < len(waiting):
            waiting.pop(what).cancel()
        elif action == "take":
            due = {turns.position(job): job for job in waiting}
            job = turns.take()
            assert job is due.get(0) and sorted(due) == list(range(len(waiting)))
            if job is not None:
                waiting.remove(job)
                for had in others.values():
                    had.append(job.client)
                others[job.client] = []
        others = {client: had for client, had in others.items() if any(job.client == client for job in waiting)}
        assert all(len(had) == len(set(had)) for had in others.values())
    while (job := turns.take()) is not None:
        waiting.remove(job)
    assert waiting == []
