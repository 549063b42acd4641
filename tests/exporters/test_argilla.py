"""Argilla's flat records: what each person submitted becomes pairs, and what cannot be read is named."""

import json
from collections.abc import Iterable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters import argilla
from prefanno.rows import Fault, Row
from tests.properties import unhurried

ANA, BEN = "d3bfe95b-40e8-47a3-b733-5d2cb3b846bd", "9a0c1bdb-3a54-4a41-92f6-2a4b8e9ab3c1"

# What argilla 2.8.0 writes: argilla-io/argilla argilla/src/argilla/records/_io/_generic.py, `_record_to_dict` with
# flatten=True. The fields are those of its templates: argilla/src/argilla/settings/_templates.py, `for_ranking`, and
# `for_preference_modeling` of 1.x.
FIELDS = {"prompt": "Got a riddle?", "response1": "No.", "response2": "A book has a spine but no bones."}


def _answers(question: str, *answers: Any, users: Any = (ANA, BEN), status: Any = "submitted") -> dict[str, Any]:
    return {
        f"{question}.responses": list(answers),
        f"{question}.responses.users": list(users[: len(answers)]),
        f"{question}.responses.status": [status] * len(answers) if isinstance(status, str) else status,
    }


def _record(*answers: dict[str, Any], fields: dict[str, Any] = FIELDS, **changed: Any) -> dict[str, Any]:
    record = {"id": "r1", "status": "completed", "_server_id": "a9177bea-cfc8-46a6-b282-ba7532005eff", **fields}
    for one in answers:
        record |= one
    return record | changed


def _ranks(**ranks: Any) -> list[dict[str, Any]]:
    return [{"value": option, "rank": rank} for option, rank in ranks.items()]


def _read(folder: Path, *records: Any) -> list[tuple[int, Row | Fault]]:
    file = folder / "records.json"
    file.write_text(json.dumps(records), encoding="utf-8")
    return list(argilla.reading(file))


def _pairs(found: Iterable[tuple[int, Row | Fault]]) -> list[tuple[str | None, str | None, float]]:
    rows = [row for _, row in found]
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.chosen, row.rejected, row.weight) for row in rows if isinstance(row, Row)]


def _fault(folder: Path, record: Any) -> Fault:
    ((line, fault),) = _read(folder, record)
    assert line == 1
    assert isinstance(fault, Fault)
    assert str(fault) != fault.detail
    return fault


def test_a_label_that_names_a_reply_chooses_it(tmp_path: Path) -> None:
    """A flat record says no time, so the row's is now."""
    before = datetime.now(UTC).replace(tzinfo=None)
    ((line, row),) = _read(tmp_path, _record(_answers("best", "response2")))
    after = datetime.now(UTC).replace(tzinfo=None)
    assert line == 1 and isinstance(row, Row)
    assert before <= row.created_at <= after
    assert row == Row(
        mode="single",
        system_prompt="",
        context=[],
        human_input="Got a riddle?",
        chosen="A book has a spine but no bones.",
        chosen_thinking=None,
        rejected="No.",
        rejected_thinking=None,
        created_at=row.created_at,
        weight=1.0,
    )


def test_a_label_is_better_than_every_other_reply(tmp_path: Path) -> None:
    """The pairs share the weight of the choice; a label may be spelled as people read it."""
    fields = {"instruction": "Hm?", "response_1": "One.", "response_2": "Two.", "response_3": "Three."}
    found = _pairs(_read(tmp_path, _record(_answers("best", "Response 2"), fields=fields)))
    assert found == [("Two.", "One.", 0.5), ("Two.", "Three.", 0.5)]


@pytest.mark.parametrize("options", [("response1", "response2", "response3"), ("1", "2", "3")])
def test_a_ranking_is_all_its_pairs(tmp_path: Path, options: tuple[str, str, str]) -> None:
    """Each reply over each of a larger rank, whatever the order of the list; equal ranks make no pair."""
    fields = FIELDS | {"response3": "A riddle? Gladly."}
    ranking = _ranks(**dict(zip(options, (2, 1, 2), strict=True)))
    found = _pairs(_read(tmp_path, _record(_answers("preference", ranking), fields=fields)))
    assert found == [(FIELDS["response2"], "No.", 0.5), (FIELDS["response2"], "A riddle? Gladly.", 0.5)]


def test_an_option_whose_reply_is_empty_is_passed_over(tmp_path: Path) -> None:
    """The question ranks all options; the templates need only the first reply to be there."""
    record = _record(_answers("preference", _ranks(response1=3, response2=2, response3=1)), response3=None)
    assert _pairs(_read(tmp_path, record)) == [(FIELDS["response2"], "No.", 1.0)]


# The first: argilla-io/distilabel src/distilabel/steps/argilla/preference.py; the second: the data set
# argilla/mistral-vs-llama-rating.
@pytest.mark.parametrize(
    ("first", "second", "rates_first", "rates_second"),
    [
        ("generations-0", "generations-1", "generations-0-rating", "generations-1-rating"),
        ("response_1", "response_2", "rating_1", "rating_2"),
        ("chosen", "rejected", "score_chosen", "score_rejected"),
    ],
)
def test_ratings_of_the_replies_compare_them(
    tmp_path: Path, first: str, second: str, rates_first: str, rates_second: str
) -> None:
    """More is better; a rationale beside it does not disturb."""
    record = _record(
        _answers(rates_first, 2),
        _answers(rates_second, 4),
        _answers(f"{first}-rationale", "Too short."),
        fields={"instruction": "Got a riddle?", first: "No.", second: "A book."},
    )
    assert _pairs(_read(tmp_path, record)) == [("A book.", "No.", 1.0)]


def test_a_ranking_goes_before_a_label_and_a_label_before_ratings(tmp_path: Path) -> None:
    """One choice is made of a person's answers, so no pair is taken twice or against itself."""
    ratings = _answers("rating_1", 5) | _answers("rating_2", 1)
    label = _answers("best", "response2")
    ranking = _answers("preference", _ranks(response1=1, response2=2))
    assert _pairs(_read(tmp_path, _record(ratings, label))) == [(FIELDS["response2"], "No.", 1.0)]
    assert _pairs(_read(tmp_path, _record(ratings, label, ranking))) == [("No.", FIELDS["response2"], 1.0)]


def test_each_person_makes_a_row_of_what_they_submitted(tmp_path: Path) -> None:
    """Drafts and discarded answers of others do not count, and neither does a suggestion."""
    users = (ANA, BEN, "c", "d")
    answers = _answers(
        "best",
        *("response1", "response2", "response1", "response1"),
        users=users,
        status=["submitted", "submitted", "draft", "discarded"],
    )
    suggestion = {"best.suggestion": "response1", "best.suggestion.score": 0.9, "best.suggestion.agent": "a-model"}
    found = _pairs(_read(tmp_path, _record(answers, suggestion)))
    assert found == [("No.", FIELDS["response2"], 1.0), (FIELDS["response2"], "No.", 1.0)]


@pytest.mark.parametrize(("name", "fields"), [("conversation", FIELDS), ("reply_fields", FIELDS), ("reply_fields", {})])
def test_a_record_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, fields: dict[str, str]
) -> None:
    """However many people answered, also where what they need is not there."""
    counted = Mock(wraps=getattr(argilla, name))
    monkeypatch.setattr(argilla, name, counted)
    people = [f"user {number}" for number in range(50)]
    answers = _answers("best", *["response1"] * 50, users=people)
    assert len(_read(tmp_path, _record(answers, fields=fields))) == 50
    assert counted.call_count == 1


def test_a_persons_answers_are_found_by_the_person(tmp_path: Path) -> None:
    """Where not everybody answered every question, the lists differ in length and order."""
    record = _record(_answers("rating_1", 1, 5), _answers("rating_2", 3, users=(BEN,)))
    found = _read(tmp_path, record)
    assert [type(one) for _, one in found] == [Fault, Row]
    assert _pairs(found[1:]) == [("No.", FIELDS["response2"], 1.0)]


def test_a_record_that_was_discarded_is_no_row(tmp_path: Path) -> None:
    """A person looked at it and made no choice: neither a row nor a fault."""
    assert _read(tmp_path, _record(_answers("best", "response1", status="discarded"))) == []


def test_replies_may_be_whole_conversations(tmp_path: Path) -> None:
    """Chat fields hold messages: the last is the reply, those before it are what was asked."""
    opening = [
        {"role": "system", "content": "You are Li."},
        {"role": "user", "content": "Good evening."},
        {"role": "assistant", "content": "Good evening!"},
        {"role": "user", "content": "Got a riddle?"},
    ]
    fields = {
        "chosen": [*opening, {"role": "assistant", "content": "<think>\nAn easy one.\n</think>\n\nA book."}],
        "rejected": [*opening, {"role": "assistant", "content": "No."}],
    }
    ((_, row),) = _read(tmp_path, _record(_answers("better", "chosen"), fields=fields))
    assert isinstance(row, Row)
    assert (row.system_prompt, row.context, row.human_input) == ("You are Li.", opening[1:3], "Got a riddle?")
    assert (row.chosen, row.chosen_thinking, row.rejected) == ("A book.", "An easy one.", "No.")


def test_a_chat_prompt_goes_with_replies_in_messages_or_text(tmp_path: Path) -> None:
    """A reply of one message answers the prompt's field, as a text does."""
    fields = {
        "chat": [{"role": "user", "content": "Got a riddle?"}],
        "response1": [{"role": "assistant", "content": "A book."}],
        "response2": "No.",
    }
    ((_, row),) = _read(tmp_path, _record(_answers("best", "response1"), fields=fields))
    assert isinstance(row, Row)
    assert (row.human_input, row.chosen, row.rejected) == ("Got a riddle?", "A book.", "No.")


def test_json_lines_are_read_alike(tmp_path: Path) -> None:
    """`to_datasets().to_json(…)` writes one record a line."""
    file = tmp_path / "records.jsonl"
    good = json.dumps(_record(_answers("best", "response1")))
    file.write_text(f"{good}\n5\n{good}\n")
    assert [(line, type(row)) for line, row in argilla.reading(file)] == [(1, Row), (2, Fault), (3, Row)]


# argilla 2.8.0 drops the ranks: argilla/src/argilla/responses.py, `__ranking_from_model_value`.
@pytest.mark.parametrize("ranking", [["response1", "response2"], ["1", "2"], [{"value": "response1"}]])
def test_a_ranking_without_ranks_is_refused(tmp_path: Path, ranking: Any) -> None:
    """What the SDK leaves is the order of the options, whatever was answered."""
    fault = _fault(tmp_path, _record(_answers("preference", ranking)))
    assert str(fault) == (
        f"record r1, user {ANA}: preference lists replies without their ranks, so the order says nothing; "
        "see docs/exporters.md"
    )
    assert fault.detail == (
        f"记录 r1，用户 {ANA}：preference 列出了回复但没有名次（rank），其顺序没有意义，见 docs/exporters.md"
    )


# `to_json` and `to_list(flatten=False)`: argilla/src/argilla/records/_resource.py, `Record.to_dict`.
NESTED = {
    "id": "r1",
    "fields": FIELDS,
    "metadata": {},
    "suggestions": {},
    "responses": {"best": [{"value": "response2", "user_id": ANA}]},
    "vectors": {},
    "status": "completed",
    "_server_id": "a9177bea-cfc8-46a6-b282-ba7532005eff",
}
CHAT = [{"role": "user", "content": "Hm?"}]


@pytest.mark.parametrize(
    ("record", "english"),
    [
        (NESTED, "record r1: a nested record does not say which responses were submitted; export with to_list(flatten"),
        (_record(), "record r1: no response was submitted; export submitted records only"),
        (_record({"best.responses": None}), "record r1: no response was submitted"),
        (_record(_answers("best", "response1", status="draft")), "record r1: no response was submitted"),
        (_record(_answers("best", "response1", status=[None])), "record r1: no response was submitted"),
        (_record(_answers("best", "response1", status=["submitted"] * 2)), "best.responses.status must be a list of a"),
        (
            _record(_answers("best", "response1", users=(5,))),
            "best.responses.users must be a list of a string for each",
        ),
        (_record({"best.responses": ["response1"]}), "best.responses.users is missing"),
        (_record({"best.responses": "response1"}), "best.responses must be a list"),
        (_record(_answers("best", "tie")), f"record r1, user {ANA}: no answer says which of response1, response2 is"),
        (_record(_answers("best", "tie"), _answers("tone", 3)), "the answers are best=tie, tone=3"),
        (_record(_answers("quality", "1")), "the answers are quality=1"),
        (_record(_answers("rating_1", 3), _answers("rating_2", 3)), "no reply is better than another"),
        (_record(_answers("rank", _ranks(response1=1, response2=1))), "no reply is better than another"),
        (_record(_answers("best", "response1"), response2=None), "no reply is better than another"),
        (
            _record(_answers("a", "response1"), _answers("b", "response2")),
            "several questions compare the replies: a, b",
        ),
        (
            _record(_answers("rating_1", 3), _answers("score-1", 4), _answers("rating_2", 1)),
            "several questions rate response1",
        ),
        (
            _record(_answers("rank", _ranks(response1=1, other=2))),
            "rank.1.value must be each of response1, response2 on",
        ),
        (
            _record(_answers("rank", _ranks(**{"response1": 1, "1": 2}))),
            "rank.1.value must be each of response1, respo",
        ),
        (_record(_answers("rank", [{"value": 1, "rank": 1}])), "rank.0.value must be a string"),
        (_record(_answers("rank", _ranks(response1="1", response2="2"))), "rank.0.rank must be a whole number"),
        (_record(_answers("rank", _ranks(response1=False, response2=True))), "rank.0.rank must be a whole number"),
        (_record(_answers("best", "response1"), fields={"text": "Hm?"}), "there are no replies: looked for response1"),
        (_record(_answers("rating_1", True), _answers("rating_2", False)), "no answer says which of response1, respon"),
        (_record(_answers("best", "response1"), prompt=None), "there is no prompt: looked for prompt, instruction"),
        (_record(_answers("best", "response1"), response2=5), "response2 must be a text or a list of messages"),
        (_record(_answers("best", "response1"), response2=CHAT), "response2 must be messages that the assistant ends"),
        (_record(_answers("best", "response1"), response2=[]), "response2 must be messages that the assistant ends"),
        (_record(_answers("best", "response1"), prompt=[*CHAT, *CHAT]), "prompt: user and assistant must alternate"),
        (
            _record(
                _answers("better", "chosen"),
                fields={
                    "chosen": [*CHAT, {"role": "assistant", "content": "Yes."}],
                    "rejected": [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "No."}],
                },
            ),
            "rejected must be a reply to the same messages as the others",
        ),
        (
            _record(
                _answers("rank", _ranks(**{f"response{place}": place for place in range(51)})),
                fields={"prompt": "Hm?"} | {f"response{place}": "Yes." for place in range(51)},
            ),
            "more than 50 replies are ranked",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, record: Any, english: str) -> None:
    """The fault names the record and the person, the field or question, and what is wrong with it."""
    assert english in str(_fault(tmp_path, record))


def test_what_is_no_field_is_not_listed_as_one(tmp_path: Path) -> None:
    """The columns of answers would only hide which fields there are."""
    fault = _fault(tmp_path, _record(_answers("best", "response1"), fields={"text": "Hm?"}))
    assert str(fault).endswith("; the fields are id, status, _server_id, text")


def test_reading_goes_on_after_a_fault(tmp_path: Path) -> None:
    """Each bad record is named with its line, and so is each bad person; the good ones around them are read."""
    good = json.dumps(_record(_answers("best", "response1")))
    both = json.dumps(_record(_answers("best", "tie", "response1")))
    file = tmp_path / "records.json"
    file.write_text(f"[\n{good},\nnull,\n{both},\n{json.dumps(_record())},\n{good}\n]")
    found = [(line, type(row)) for line, row in argilla.reading(file)]
    assert found == [(2, Row), (3, Fault), (4, Fault), (4, Row), (5, Fault), (6, Row)]


NAMES = st.sampled_from(
    ["prompt", "response1", "response2", "chosen", "rejected", "chat", "value", "rank", "role", "id"]
)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | NAMES | st.sampled_from(["submitted", "assistant"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(NAMES, inner, max_size=4),
    max_leaves=12,
)
RECORDS = st.builds(
    lambda fields, question, answers: FIELDS | fields | _answers(question, *answers, users=(ANA, BEN, "c")),
    st.dictionaries(NAMES, JSON, max_size=3),
    st.sampled_from(["best", "rating_1", "rank"]),
    st.lists(JSON, max_size=3),
)


@unhurried
@given(st.lists(JSON | RECORDS, max_size=4))
def test_no_json_breaks_it(tmp_path_factory: pytest.TempPathFactory, records: list[Any]) -> None:
    """Whatever the records hold, each is rows or faults."""
    for line, found in _read(tmp_path_factory.mktemp("files"), *records):
        assert line == 1 and isinstance(found, Row | Fault)


@pytest.mark.parametrize(
    "fields",
    [
        {**FIELDS, "response_1": "Maybe."},
        {"prompt": "Hi", "chosen": "Ho", "Chosen": "Hm", "rejected": "No"},
    ],
)
def test_fields_that_differ_only_in_spelling_are_not_one(tmp_path: Path, fields: dict[str, str]) -> None:
    """Which of them was ranked cannot be told, and neither is left out silently."""
    answer = _answers("best", [{"value": "response1", "rank": 1}, {"value": "response2", "rank": 2}])
    fault = _fault(tmp_path, _record(answer, fields=fields))
    assert "differ only in spelling" in str(fault) and "仅写法不同" in fault.detail
