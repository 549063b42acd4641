"""Which rows count as the same, exactly or nearly."""

import re
import sys
import unicodedata
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.annotation.duplicates import exact, near, normalised
from prefanno.rows import Row
from tests.annotation.test_dataset import SINGLE
from tests.properties import unhurried

TALK = replace(
    SINGLE,
    context=[{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Welcome"}],
    chosen_thinking="a guest",
    rejected_thinking="a user",
)

SAME = [
    ("Who are you?", "who are you"),
    ("Who are you?", "  WHO\tare\r\nyou ?!…  "),
    ("你是谁？", "你是谁"),
    ("你是谁？", "你，是 谁?"),
    ("你是谁？", "「你是谁」——\u3000"),
    ("ＡＢＣ１２３", "abc123"),
    ("ｶﾞ", "ガ"),
    ("①", "1"),
    ("ﬁne", "fine"),
    ("Straße", "STRASSE"),
    ("é", "e\u0301"),
    ("snake_case", "snake case"),
    ("谜语🦊", "谜语"),
    ("a\u200bb", "ab"),
    ("☀\ufe0f ok", "ok"),
    ("नमस्ते!", "नमस्ते"),
    ("สวัสดี ครับ", "สวัสดีครับ"),
]
OTHER = [
    ("你是谁", "你是谁呢"),
    ("1", "2"),
    ("离", "離"),
    ("e", "é"),
    ("🦊", "🐻"),
    ("🦊", "?"),
    ("……", "！"),
    ("?", "??"),
    ("a b", "b a"),
    ("नमस्ते", "नमस्ता"),
    ("ก็", "กี"),
    ("مَرحبا", "مِرحبا"),
]


@pytest.mark.parametrize(("one", "other"), SAME)
def test_what_a_reader_passes_over_is_passed_over(one: str, other: str) -> None:
    """Case, width, punctuation, white space and emoji beside words make no difference."""
    assert normalised(one) == normalised(other)
    rows = [replace(TALK, human_input=text) for text in (one, other)]
    assert near(rows[0]) == near(rows[1]) and exact(rows[0]) != exact(rows[1])


@pytest.mark.parametrize(("one", "other"), OTHER)
def test_what_a_reader_sees_is_a_difference(one: str, other: str) -> None:
    """Other words are another text; of texts without a word, any other sign is."""
    assert normalised(one) != normalised(other)
    assert near(replace(TALK, chosen=one)) != near(replace(TALK, chosen=other))


@pytest.mark.parametrize("place", ["human_input", "chosen", "rejected", "context"])
def test_every_turn_counts_and_may_differ_a_little(place: str) -> None:
    """A small difference in any turn or reply leaves rows near each other, a large one does not."""

    def said(text: str) -> Row:
        turns = [TALK.context[0], {"role": "assistant", "content": text}]
        changed: Any = {place: turns if place == "context" else text}
        return replace(TALK, **changed)

    assert near(said("Well, hello")) == near(said("well hello!"))
    assert exact(said("Well, hello")) != exact(said("well hello!"))
    assert near(said("Well, hello")) != near(said("Good day"))


CHANGES: list[dict[str, Any]] = [
    {"mode": "multi"},
    {"system_prompt": "Be brief."},
    {"context": []},
    {"context": TALK.context[1:]},
    {"human_input": "hm"},
    {"chosen": None},
    {"chosen": "hm"},
    {"chosen_thinking": None},
    {"chosen_thinking": "hm"},
    {"rejected": None},
    {"rejected": "hm"},
    {"rejected_thinking": None},
    {"chosen": TALK.rejected, "rejected": TALK.chosen},
]


def test_every_word_makes_an_exact_difference() -> None:
    """Rows that differ in mode, persona, a turn, a reply or a thought are all told apart."""
    rows = [TALK, *(replace(TALK, **change) for change in CHANGES)]
    assert len({exact(row) for row in rows}) == len(rows)


def test_when_a_row_was_made_and_what_it_weighs_is_no_difference() -> None:
    """The same words at another time, with another weight, are an exact duplicate."""
    again = replace(TALK, created_at=TALK.created_at + timedelta(days=1), weight=0.5)
    assert exact(again) == exact(TALK)


def test_persona_mode_and_thought_are_not_asked_for_nearness() -> None:
    """Rows with the same turns and replies are near each other, whoever speaks and whatever was thought."""
    again = replace(TALK, mode="multi", system_prompt="Be brief.", chosen_thinking=None, rejected_thinking="hm")
    assert near(again) == near(TALK)


def test_a_word_that_moves_to_another_turn_is_no_duplicate() -> None:
    """The border between turns counts, also where one of them holds it in its text."""
    turns = [replace(TALK, human_input=human, chosen=chosen) for human, chosen in (("ab", "c"), ("a", "bc"))]
    assert len({near(row) for row in turns} | {exact(row) for row in turns}) == 4
    opened: Any = [{"role": "assistant", "content": "ab"}]
    assert near(replace(TALK, context=opened, human_input="c")) != near(replace(TALK, context=[], human_input="abc"))


WORDS = st.text(st.characters(categories=["Lu", "Ll", "Lo", "Nd"], max_codepoint=0xFFFF), min_size=1, max_size=4)
BETWEEN = st.text(st.characters(categories=["P", "S", "Z", "Cf"]), max_size=3).filter(lambda text: not _words(text))


def _words(text: str) -> bool:
    """Whether a sign stands for letters or digits: ™ for TM."""
    return any(sign.isalnum() or unicodedata.combining(sign) for sign in unicodedata.normalize("NFKC", text))


@unhurried
@given(st.lists(WORDS, min_size=1), st.data())
def test_whatever_stands_between_words_is_passed_over(words: list[str], data: st.DataObject) -> None:
    """Punctuation, symbols, white space and invisible signs between words, before and after them, change nothing."""
    said = "".join(word + data.draw(BETWEEN) for word in ["", *words])
    assert normalised(said) == normalised(" ".join(words))
    assert normalised(f"{said}离") != normalised(said)


MARKS = "".join(sign for sign in map(chr, range(sys.maxunicode + 1)) if unicodedata.combining(sign))


@pytest.mark.parametrize("run", ["\u0301\u0316", "\u0f73", "\uff9e", "\U0001e8d0\u0301"])
def test_marks_without_end_are_normalised_piecewise(monkeypatch: pytest.MonkeyPatch, run: str) -> None:
    """Sorting a run of marks takes quadratic time, so none that is long reaches it; each mark still counts."""
    whole, normalize = "a" + run * 1000, unicodedata.normalize
    given: list[str] = []

    def recorded(form: Any, text: str) -> str:
        given.append(text)
        return normalize(form, text)

    monkeypatch.setattr(unicodedata, "normalize", recorded)
    assert normalised(whole) == normalised(whole.upper() + "!") != normalised(whole + "\u0301")
    assert max(len(found) for text in given for found in re.findall(f"[{MARKS}]+", normalize("NFKD", text))) <= 60
