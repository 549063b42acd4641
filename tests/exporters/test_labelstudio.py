"""Label Studio's exports: what each person chose becomes pairs, and what cannot be read is named."""

import json
from collections.abc import Iterable
from datetime import datetime
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters import labelstudio
from exporters.comparisons import LONGEST_PAIRS, MOST
from prefanno.rows import Fault, Row
from tests.properties import unhurried

# The shape of a task: HumanSignal/label-studio docs/source/guide/export.md, "Label Studio JSON format of annotated
# tasks"; its data: label_studio/annotation_templates/generative-ai/human-feedback-collection/config.yml. A pairwise
# result: label-studio-sdk src/label_studio_sdk/label_interface/control_tags.py, PairwiseTag, whose from_name and
# to_name are both the name of the tag.
DATA = {"prompt": "Got a riddle?", "answer1": "What has a spine but no bones? A book.", "answer2": "No."}


def _pairwise(selected: str = "left", **changed: Any) -> dict[str, Any]:
    name = changed.get("from_name", "comparison")
    result = {"id": "Dx_aB91ISN", "from_name": name, "to_name": name, "type": "pairwise"}
    return result | {"value": {"selected": selected}} | changed


def _ranker(ranking: Any) -> dict[str, Any]:
    result = {"id": "t5sp3TyXPo", "from_name": "rank", "to_name": "answers", "type": "ranker"}
    return result | {"value": {"ranker": ranking}}


def _annotation(*results: dict[str, Any], **changed: Any) -> dict[str, Any]:
    return {
        "id": 1001,
        "completed_by": 10,
        "result": list(results),
        "was_cancelled": False,
        "ground_truth": False,
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:16:09.728378Z",
        "lead_time": 4.288,
    } | changed


def _task(*annotations: Any, data: Any = DATA, **changed: Any) -> dict[str, Any]:
    return {
        "id": 7,
        "annotations": list(annotations),
        "drafts": [],
        "predictions": [],
        "data": data,
        "created_at": "2026-03-08T10:00:00.000000Z",
        "project": 83,
    } | changed


# The LLM Ranker's template: label_studio/annotation_templates/generative-ai/llm-ranker/config.yml
ITEMS = {
    "prompt": "Got a riddle?",
    "items": [
        {"id": "llm_1", "title": "LLM 1", "body": "No."},
        {"id": "llm_2", "title": "LLM 2", "body": "A book has a spine but no bones."},
        {"id": "llm_3", "title": "LLM 3", "body": "What has a spine but no bones?"},
    ],
}


def _read(folder: Path, *tasks: Any) -> list[tuple[int, Row | Fault]]:
    file = folder / "project-83.json"
    file.write_text(json.dumps(tasks), encoding="utf-8")
    return list(labelstudio.reading(file))


def _pairs(found: Iterable[tuple[int, Row | Fault]]) -> list[tuple[str | None, str | None, float]]:
    rows = [row for _, row in found]
    assert all(isinstance(row, Row) for row in rows), rows
    return [(row.chosen, row.rejected, row.weight) for row in rows if isinstance(row, Row)]


def _fault(folder: Path, task: Any) -> Fault:
    ((line, fault),) = _read(folder, task)
    assert line == 1
    assert isinstance(fault, Fault)
    assert str(fault) != fault.detail
    return fault


def test_a_pairwise_choice_is_a_pair(tmp_path: Path) -> None:
    """The selected side is chosen, at the annotation's own time, in UTC."""
    ((line, row),) = _read(tmp_path, _task(_annotation(_pairwise("left"))))
    assert line == 1
    assert row == Row(
        mode="single",
        system_prompt="",
        context=[],
        human_input="Got a riddle?",
        chosen=DATA["answer1"],
        chosen_thinking=None,
        rejected="No.",
        rejected_thinking=None,
        created_at=datetime.fromisoformat("2026-03-09T22:16:08.728353"),
        weight=1.0,
    )
    assert _pairs(_read(tmp_path, _task(_annotation(_pairwise("right"))))) == [("No.", DATA["answer1"], 1.0)]


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("answer1", "answer2"),
        ("text1", "text2"),
        ("pairText1", "pairText2"),
        ("response_a", "response_b"),
        ("Response 1", "Response 2"),
        ("Chosen", "Rejected"),
    ],
)
def test_the_replies_are_found_by_their_fields_names(tmp_path: Path, left: str, right: str) -> None:
    """The names of the templates and their like do; the one that sorts first is left, wherever it stands."""
    data = {right: "No.", "model1": "a", "model2": "b", left: "Yes.", "question": "Got a riddle?"}
    assert _pairs(_read(tmp_path, _task(_annotation(_pairwise("left")), data=data))) == [("Yes.", "No.", 1.0)]


def test_a_result_that_names_two_fields_says_which_are_compared(tmp_path: Path) -> None:
    """`to_name` goes before the names of the fields."""
    data = DATA | {"first": "Yes.", "second": "Maybe."}
    result = _pairwise("right", to_name="first,second")
    assert _pairs(_read(tmp_path, _task(_annotation(result), data=data))) == [("Maybe.", "Yes.", 1.0)]


def test_a_result_that_names_no_two_fields_leaves_it_to_their_names(tmp_path: Path) -> None:
    """Names of tags that are no fields say nothing, and neither does one field twice."""
    for to_name in ("left,right", "answer2,answer2", "answer2"):
        task = _task(_annotation(_pairwise("left", to_name=to_name)))
        assert _pairs(_read(tmp_path, task)) == [(DATA["answer1"], "No.", 1.0)]


def test_each_annotator_makes_a_row(tmp_path: Path) -> None:
    """Two people on one task are two choices, also where they disagree; the one who skipped it made none."""
    task = _task(
        _annotation(_pairwise("left")),
        _annotation(_pairwise("right"), id=1002, completed_by={"id": 11, "email": "li@example.org"}),
        _annotation(id=1003, was_cancelled=True),
    )
    assert _pairs(_read(tmp_path, task)) == [(DATA["answer1"], "No.", 1.0), ("No.", DATA["answer1"], 1.0)]


@pytest.mark.parametrize(("name", "data"), [("conversation", DATA), ("reply_fields", DATA), ("reply_fields", {})])
def test_a_task_is_looked_through_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, data: dict[str, str]
) -> None:
    """However many people annotated it, also where what they need is not there."""
    counted = Mock(wraps=getattr(labelstudio, name))
    monkeypatch.setattr(labelstudio, name, counted)
    assert len(_read(tmp_path, _task(*[_annotation(_pairwise())] * 50, data=data))) == 50
    assert counted.call_count == 1


def test_a_task_that_everybody_skipped_is_no_row(tmp_path: Path) -> None:
    """A skip is no choice, and no fault either."""
    assert _read(tmp_path, _task(_annotation(_pairwise(), was_cancelled=True))) == []


def test_other_results_are_passed_over(tmp_path: Path) -> None:
    """A comment beside the choice does not disturb it."""
    comment = {"from_name": "why", "to_name": "prompt", "type": "textarea", "value": {"text": ["Warm."]}}
    assert len(_pairs(_read(tmp_path, _task(_annotation(comment, _pairwise()))))) == 1


def test_the_prompt_may_be_a_conversation(tmp_path: Path) -> None:
    """Messages become the persona, the earlier turns and what the user says last."""
    chat = [
        {"role": "system", "content": "You are Li."},
        {"role": "user", "content": "Good evening."},
        {"role": "assistant", "content": "Good evening!"},
        {"role": "user", "content": "Got a riddle?"},
    ]
    data = {"chat": chat, "answer1": "Yes.", "answer2": "No."}
    ((_, row),) = _read(tmp_path, _task(_annotation(_pairwise()), data=data))
    assert isinstance(row, Row)
    assert (row.system_prompt, row.context, row.human_input) == ("You are Li.", chat[1:3], "Got a riddle?")


def test_what_stands_beside_the_prompt_is_kept(tmp_path: Path) -> None:
    """A `system_prompt` is the persona, and a `context` stands before the prompt."""
    data = DATA | {"system_prompt": "You are Li.", "context": "It is late."}
    ((_, row),) = _read(tmp_path, _task(_annotation(_pairwise()), data=data))
    assert isinstance(row, Row)
    assert (row.system_prompt, row.human_input) == ("You are Li.", "It is late.\n\nGot a riddle?")


def test_a_leading_thought_is_the_replys_thought(tmp_path: Path) -> None:
    """The spelling that all formats share is split."""
    data = DATA | {"answer1": "<think>\nAn easy one.\n</think>\n\nA book."}
    ((_, row),) = _read(tmp_path, _task(_annotation(_pairwise()), data=data))
    assert isinstance(row, Row)
    assert (row.chosen, row.chosen_thinking, row.rejected_thinking) == ("A book.", "An easy one.", None)


# web/libs/editor/src/tags/control/Ranker.jsx writes the first; docs/source/tags/ranker.md shows the second.
@pytest.mark.parametrize("ranking", [{"rank": ["llm_3", "llm_2", "llm_1"]}, ["llm_3", "llm_2", "llm_1"]])
def test_a_ranking_is_all_its_pairs(tmp_path: Path, ranking: Any) -> None:
    """Each item over each later one; the pairs share the weight of the choice."""
    low, middle, best = (item["body"] for item in ITEMS["items"])  # type: ignore[index]
    found = _pairs(_read(tmp_path, _task(_annotation(_ranker(ranking)), data=ITEMS)))
    assert found == [(best, middle, 1 / 3), (best, low, 1 / 3), (middle, low, 1 / 3)]


def test_a_ranking_whose_pairs_are_endless_is_refused(tmp_path: Path) -> None:
    """Each of them holds the prompt: fifty replies would store it 1,225 times."""
    items = [{"id": f"{number}", "body": f"Reply {number}"} for number in range(MOST)]
    task, length = _annotation(_ranker([f"{number}" for number in range(MOST)])), LONGEST_PAIRS // 1225
    for prompt, longer in (("p" * length, True), ("p" * (length - 20), False)):
        found = _read(tmp_path, _task(task, data={"prompt": prompt, "items": items}))
        assert len(found) == (1 if longer else 1225)
    assert "the 1225 pairs of the choice, each with the prompt, hold more than 24M characters together" in str(
        _fault(tmp_path, _task(task, data={"prompt": "p" * length, "items": items}))
    )


def test_buckets_are_rankings_of_their_own(tmp_path: Path) -> None:
    """No order among buckets is known, and `_` holds what nobody moved."""
    items = [{"id": number, "body": f"Reply {number}"} for number in range(6)]
    buckets = {"_": ["0", "1"], "relevant_results": ["5", "2"], "biased_results": ["4", "3"]}
    task = _task(_annotation(_ranker(buckets)), data={"prompt": "Got a riddle?", "similar_docs": items})
    assert _pairs(_read(tmp_path, task)) == [("Reply 5", "Reply 2", 0.5), ("Reply 4", "Reply 3", 0.5)]


def test_the_list_of_items_is_the_one_with_the_ids(tmp_path: Path) -> None:
    """Another list beside it does not disturb."""
    data = {"prompt": "Hm?", "sources": [{"id": "a", "body": "x"}], "items": ITEMS["items"]}
    found = _pairs(_read(tmp_path, _task(_annotation(_ranker({"rank": ["llm_1", "llm_2"]})), data=data)))
    assert found == [("No.", "A book has a spine but no bones.", 1.0)]


# What label-studio-sdk 2.1.2 (src/label_studio_sdk/converter/converter.py, convert_to_json_min) writes.
def _flat(**changed: Any) -> dict[str, Any]:
    return {
        **DATA,
        "id": 7,
        "annotator": 10,
        "annotation_id": 1001,
        "created_at": "2026-03-09T22:16:08.728353Z",
        "updated_at": "2026-03-09T22:16:09.728378Z",
        "lead_time": 4.288,
    } | changed


def test_json_min_is_read_alike(tmp_path: Path) -> None:
    """Pairwise choices and rankings are read from the entries of JSON_MIN, too."""
    pairwise = _flat(comparison=[{"selected": "right"}])
    shown = [{"selected": True, "id": "an old mark of Label Studio's"}]
    ranking = _flat(shown=shown, items=ITEMS["items"], rank=[{"ranker": {"rank": ["llm_2", "llm_1"]}}])
    (_, first), (_, second) = _read(tmp_path, pairwise, ranking)
    (same,) = _read(tmp_path, _task(_annotation(_pairwise("right"))))
    assert (1, first) == same
    assert isinstance(second, Row)
    assert (second.chosen, second.rejected) == ("A book has a spine but no bones.", "No.")


def test_what_is_no_choice_in_json_min_is_named(tmp_path: Path) -> None:
    """Tasks that nobody annotated are in it, as are annotations without a choice."""
    unannotated = _fault(tmp_path, _flat(annotator=None, annotation_id=None, created_at=None))
    assert str(unannotated) == "task 7: nobody annotated it; export annotated tasks only"
    assert "nothing was chosen" in str(_fault(tmp_path, _flat()))


@pytest.mark.parametrize(
    ("task", "english"),
    [
        (_task(), "task 7: nobody annotated it; export annotated tasks only"),
        (_task(id=None), "nobody annotated it; export annotated tasks only"),
        (
            _task(_annotation()),
            "task 7, annotation 1001: nothing was chosen: there is no result of the type pairwise or ranker",
        ),
        (_task(_annotation(_pairwise("none"))), "annotation.result.0.value.selected must be left or right, not none"),
        (_task(_annotation(_pairwise("left", value={}))), "annotation.result.0.value.selected is missing"),
        (_task(_annotation(_pairwise(), _pairwise(from_name="tone"))), "there are several choices (comparison, tone)"),
        (_task(_annotation(_pairwise(), created_at="yesterday")), "annotation.created_at must be a time in ISO 8601"),
        (_task(_annotation(result={})), "annotation.result must be a list"),
        (_task(5), "annotation must be a JSON object"),
        (_task(annotations=None), "task 7: annotations is missing"),
        (_task(_annotation(_pairwise()), data=None), "task 7: data is missing"),
        (_task(_annotation(_pairwise()), data="Got a riddle?"), "task 7: data must be a JSON object"),
        (
            _task(_annotation(_pairwise()), data={"prompt": "Hm?", "left": "Yes."}),
            "there are no replies: looked for response1 and response2, answer_a and answer_b, chosen and rejected, or",
        ),
        (
            _task(_annotation(_pairwise()), data={"prompt": "Hm?", "left": "Yes."}),
            "or the like; the fields are prompt, left",
        ),
        (
            _task(_annotation(_pairwise()), data={"answer1": "Yes.", "answer2": "No."}),
            "there is no prompt: looked for prompt, instruction, question, query, input, messages, conversation, chat;",
        ),
        (_task(_annotation(_pairwise()), data=DATA | {"answer3": "Hm."}), "more than two replies (answer1, answer2, a"),
        (_task(_annotation(_pairwise()), data=DATA | {"answer2": ""}), "data.answer2 is empty"),
        (_task(_annotation(_pairwise()), data=DATA | {"answer2": 5}), "data.answer2 must be a text or a list of messa"),
        (_task(_annotation(_pairwise()), data=DATA | {"prompt": []}), "data.prompt: user and assistant must alternate"),
        (_task(_annotation(_pairwise()), data=DATA | {"context": 5}), "data.context must be a string"),
        (_task(_annotation(_ranker({"rank": ["llm_1"]})), data=ITEMS), "no reply is better than another"),
        (_task(_annotation(_ranker({"_": ["llm_1", "llm_2"]})), data=ITEMS), "no reply is better than another"),
        (_task(_annotation(_ranker({"rank": ["llm_1"] * 2})), data=ITEMS), "value.ranker must be a ranking that names"),
        (_task(_annotation(_ranker({"rank": [1, 2]})), data=ITEMS), "value.ranker.rank must be a list of ids"),
        (_task(_annotation(_ranker("llm_1")), data=ITEMS), "annotation.result.0.value.ranker must be a list"),
        (
            _task(_annotation(_ranker({"rank": ["llm_1", "llm_9"]})), data=ITEMS),
            "no list of items with the ranked ids llm_1, llm_9; the lists are items",
        ),
        (
            _task(_annotation(_ranker(["a", "b"])), data={"prompt": "Hm?", "items": [{"id": "a"}, {"id": "b"}]}),
            "data.items.0.body is missing",
        ),
        (
            _task(_annotation(_ranker([f"{place}" for place in range(51)])), data=ITEMS),
            "more than 50 replies are ranked",
        ),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, task: Any, english: str) -> None:
    """The fault names the task and annotation, the field, and what is wrong with it."""
    assert english in str(_fault(tmp_path, task))


def test_the_fault_is_told_in_chinese_too(tmp_path: Path) -> None:
    """The API's text names the same task, annotation and field."""
    fault = _fault(tmp_path, _task(_annotation(_pairwise("none"))))
    assert fault.detail == "任务 7，标注 1001：annotation.result.0.value.selected 必须是 left 或 right"


def test_reading_goes_on_after_a_fault(tmp_path: Path) -> None:
    """Each bad task and annotation is named with its line, and the good ones around them are read."""
    good = json.dumps(_task(_annotation(_pairwise())))
    both = json.dumps(_task(_annotation(result=5), _annotation(_pairwise())))
    file = tmp_path / "project.json"
    file.write_text(f"[\n{good},\n5,\n{both},\n{json.dumps(_task())},\n{good}\n]")
    found = [(line, type(row)) for line, row in labelstudio.reading(file)]
    assert found == [(2, Row), (3, Fault), (4, Fault), (4, Row), (5, Fault), (6, Row)]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["left", "a", "pairwise", "ranker", "1"]),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["data", "annotations", "result", "type", "value", "selected", "ranker", "id", "prompt", "body"]
            )
            | st.text(max_size=3),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)
TASKS = st.builds(
    lambda data, result, value, kind: {
        "data": data,
        "annotations": [{"result": [{"type": kind, "value": value}]}],
        **result,
    },
    st.dictionaries(st.sampled_from(["prompt", "answer1", "answer2", "items"]), JSON),
    st.dictionaries(st.sampled_from(["id", "data", "annotations"]), JSON),
    st.dictionaries(st.sampled_from(["selected", "ranker"]), JSON),
    st.sampled_from(["pairwise", "ranker"]) | JSON,
)


@unhurried
@given(st.lists(JSON | TASKS, max_size=4))
def test_no_json_breaks_it(tmp_path_factory: pytest.TempPathFactory, tasks: list[Any]) -> None:
    """Whatever the entries hold, each is rows or faults."""
    for line, found in _read(tmp_path_factory.mktemp("files"), *tasks):
        assert line == 1 and isinstance(found, Row | Fault)
