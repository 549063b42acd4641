"""A chat in other programs' shape: roles to turns, settings asked for, text up to a stop."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.chat import Stops, settings, split
from prefanno.errors import InvalidInput
from prefanno.generation.config import GenerationConfig
from prefanno.prompting import Message
from tests.properties import unhurried

LOADED = GenerationConfig("You are Li.", num_responses=4, mode="multi")
NOTHING: dict[str, Any] = dict.fromkeys(("temperature", "top_p", "max_tokens", "max_completion_tokens", "seed"))


def _messages(*turns: tuple[str, str]) -> list[Message]:
    return [{"role": role, "content": content} for role, content in turns]  # type: ignore[typeddict-item]


def test_the_last_message_is_asked_and_the_others_are_context() -> None:
    """Instructions are taken out, wherever they stand; what one role says in a row is one turn."""
    said = [
        ("system", "Be Li."),
        ("user", "Hi."),
        ("user", "You there?"),
        ("assistant", "Yes."),
    ]
    message, context, instructions = split(_messages(*said, ("developer", "Brief."), ("user", "A riddle!")))
    assert message == "A riddle!"
    assert context == _messages(("user", "Hi.\n\nYou there?"), ("assistant", "Yes."))
    assert instructions == "Be Li.\n\nBrief."
    assert split(_messages(("user", "Hi."))) == ("Hi.", [], None)


@pytest.mark.parametrize("said", [[("system", "Be Li.")], [("user", "Hi."), ("assistant", "Yes.")]])
def test_somebody_must_ask(said: list[tuple[str, str]]) -> None:
    """Messages that do not end with the user's are refused, with the field."""
    with pytest.raises(InvalidInput) as refused:
        split(_messages(*said))
    assert set(refused.value.fields) == {"messages"}


def test_what_is_not_asked_for_is_as_loaded() -> None:
    """Only the number of replies is not that of the load: it is 1 unless asked for."""
    found = settings(LOADED, NOTHING | {"n": 1}, None)
    assert found == GenerationConfig("You are Li.", num_responses=1)


def test_a_turn_that_says_nothing_is_none() -> None:
    """Blank turns, as other programs keep them of replies that were cut to nothing, are left out."""
    said = [("system", " "), ("user", "Hi."), ("assistant", ""), ("user", "You there?")]
    assert split(_messages(*said)) == ("Hi.\n\nYou there?", [], None)
    with pytest.raises(InvalidInput):
        split(_messages(("user", " ")))


def test_a_few_tokens_are_for_the_reply() -> None:
    """A reply of fewer tokens than a load may have is given without a thought, which would use them up."""
    assert LOADED.enable_thinking
    assert not settings(LOADED, NOTHING | {"n": 1, "max_tokens": 9}, None).enable_thinking
    assert settings(LOADED, NOTHING | {"n": 1, "max_tokens": 64}, None).enable_thinking


def test_what_is_asked_for_holds() -> None:
    """A persona, sampling and length of the request's own; a temperature of 0 leaves one token to choose from."""
    asked = NOTHING | {"n": 3, "temperature": 0.0, "top_p": 0.0, "max_tokens": 9, "max_completion_tokens": 7}
    found = settings(LOADED, asked, "You are Mia.")
    assert (found.system_prompt, found.num_responses, found.max_new_tokens) == ("You are Mia.", 3, 7)
    assert (found.temperature, found.top_k, found.top_p) == (0.1, 1, 0.1)
    assert settings(LOADED, NOTHING | {"n": 1, "temperature": 1.5}, None).temperature == 1.5


@unhurried
@given(st.text("abc", max_size=30), st.lists(st.text("abc", min_size=1, max_size=4), max_size=3), st.data())
def test_text_ends_before_the_first_stop_however_it_comes(text: str, stops: list[str], data: st.DataObject) -> None:
    """Given in any pieces, what is shown is the text up to the first place where a stop begins."""
    given_stops, shown, rest = Stops(stops), "", text
    while rest:
        size = data.draw(st.integers(1, len(rest)))
        shown, rest = shown + given_stops.take(rest[:size]), rest[size:]
    shown += given_stops.take("", last=True)
    found = Stops(stops)
    assert found.take(text, last=True) == shown
    assert found.hit == given_stops.hit == any(stop in text for stop in stops)
    if not found.hit:
        assert shown == text
    else:
        assert text.startswith(shown) and any(text[len(shown) :].startswith(stop) for stop in stops)
