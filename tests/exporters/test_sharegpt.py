"""ShareGPT files: LLaMA-Factory's rules hold for every row, and what was written is read back."""

import json
import os
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno import text
from prefanno.prompting import Message
from prefanno.rows import Row, exporter
from tests.properties import unhurried

SHAREGPT = exporter("sharegpt")
NOW = datetime.fromisoformat("2026-01-27T12:00:00.123456")

# Words that look like the format itself, in the mouths of users and characters.
WORDS = [
    *("<think>\n", "\n</think>\n\n", "<think>\nT\n</think>\n\nA", "\n", "\r\n", '"', "\\", "\\n", "\u2028", "\u202e"),
    *("🦊", "谜语", "שלום", "مرحبا", "e\u0301", "human", "gpt", "{}", "[", "a", " "),
]
TEXTS = (
    st.lists(st.sampled_from(WORDS) | st.text(max_size=5), min_size=1, max_size=5)
    .map("".join)
    .filter(lambda content: text.fault(content) is None)
)


@st.composite
def rows(draw: st.DrawFn) -> Row:
    """Any row that prefanno can hold."""
    turns = draw(st.lists(TEXTS, max_size=4))
    roles = ["assistant" if (len(turns) - place) % 2 else "user" for place in range(len(turns))]
    context: list[Any] = [{"role": role, "content": turn} for role, turn in zip(roles, turns, strict=True)]
    mode = draw(st.sampled_from(["single", "multi"]))
    rejected = draw(TEXTS if mode == "single" else st.none() | TEXTS)
    return Row(
        mode="single" if mode == "single" else "multi",
        system_prompt=draw(TEXTS),
        context=context,
        human_input=draw(TEXTS),
        chosen=draw(TEXTS),
        chosen_thinking=draw(st.none() | TEXTS),
        rejected=rejected,
        rejected_thinking=None if rejected is None else draw(st.none() | TEXTS),
        created_at=draw(st.datetimes()),
    )


def _row(context: Sequence[Message] = (), chosen: str = "I am Li.", thinking: str | None = None) -> Row:
    return Row("single", "You are Li.", list(context), "Who are you?", chosen, thinking, "An AI.", None, NOW)


def _write(folder: Path, written: Sequence[Row]) -> tuple[Path, Path]:
    with SHAREGPT.writing(folder, "li") as writer:
        writer.write(written)
    return folder / "li_preference.json", folder / "li_roleplay.json"


def _entries(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _file(folder: Path, *entries: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def breaks(entry: dict[str, Any], *, ranking: bool) -> list[str]:
    """Which of LLaMA-Factory's rules for ShareGPT the entry breaks."""
    senders = [turn["from"] for turn in entry["conversations"]]
    replies = [entry.get("chosen"), entry.get("rejected")] if ranking else []
    rules = {
        "the human speaks first, and turns alternate": senders == (["human", "gpt"] * len(senders))[: len(senders)],
        "the human speaks last before ranked replies, else the model": len(senders) % 2 == (1 if ranking else 0),
        "there is something": bool(senders),
        "values are strings": all(isinstance(turn["value"], str) for turn in entry["conversations"]),
        "the system prompt is a string": isinstance(entry.get("system", ""), str),
        "ranked replies come from gpt": all(
            isinstance(reply, dict) and reply.get("from") == "gpt" and isinstance(reply.get("value"), str)
            for reply in replies
        ),
    }
    return [rule for rule, holds in rules.items() if not holds]


@unhurried
@given(st.lists(rows(), max_size=4))
def test_every_row_survives_writing_and_reading(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """What is written is read back equal: pairs from one file, conversations from the other."""
    preference, roleplay = _write(tmp_path_factory.mktemp("files"), written)
    assert list(SHAREGPT.reading(preference)) == [row for row in written if row.rejected is not None]
    assert list(SHAREGPT.reading(roleplay)) == [row for row in written if row.mode == "multi"]


@unhurried
@given(st.lists(rows(), min_size=1, max_size=4))
def test_llama_factory_reads_every_row(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """No row breaks a rule for which LLaMA-Factory would leave it out with no more than a warning."""
    preference, roleplay = _write(tmp_path_factory.mktemp("files"), written)
    for file, ranking in ((preference, True), (roleplay, False)):
        for entry in _entries(file):
            assert breaks(entry, ranking=ranking) == []
            assert entry["system"]


@pytest.mark.parametrize(
    ("conversations", "ranking"),
    [
        ([], True),
        (["gpt", "human"], True),
        (["human", "gpt"], True),
        (["human"], False),
        (["human", "human", "gpt"], True),
        (["user"], True),
    ],
)
def test_the_rules_can_be_broken(conversations: list[str], ranking: bool) -> None:
    """Control: the check of the rules sees a row that breaks one."""
    reply = {"from": "gpt", "value": "a"}
    turns = [{"from": sender, "value": "a"} for sender in conversations]
    assert breaks({"conversations": turns, "chosen": reply, "rejected": reply}, ranking=ranking) != []
    assert breaks({"conversations": [{"from": "human", "value": "a"}], "chosen": reply}, ranking=True) != []


def test_a_conversation_that_the_assistant_opens_stays_valid(tmp_path: Path) -> None:
    """Such a row begins with an empty human turn, which reading takes away again."""
    row = _row([{"role": "assistant", "content": "Welcome!"}])
    preference, _ = _write(tmp_path, [row])
    (entry,) = _entries(preference)
    assert entry["conversations"][:2] == [{"from": "human", "value": ""}, {"from": "gpt", "value": "Welcome!"}]
    assert list(SHAREGPT.reading(preference)) == [row]


def test_a_thought_stands_in_the_reply(tmp_path: Path) -> None:
    """A thought is written in the one spelling that other readers know, and a reply without one as it is."""
    preference, _ = _write(tmp_path, [_row(thinking="A guest.")])
    (entry,) = _entries(preference)
    assert entry["chosen"] == {"from": "gpt", "value": "<think>\nA guest.\n</think>\n\nI am Li."}
    assert entry["rejected"] == {"from": "gpt", "value": "An AI."}


def test_files_are_readable_by_people(tmp_path: Path) -> None:
    """Each row is one line, in plain Unicode: files can be searched and compared."""
    preference, _ = _write(tmp_path, [_row(chosen="我叫离~"), _row()])
    lines = preference.read_text(encoding="utf-8").splitlines()
    assert lines[0] == "[" and lines[-1] == "]" and len(lines) == 4
    assert "我叫离~" in lines[1]


def test_a_file_without_our_own_keys_is_read(tmp_path: Path) -> None:
    """A ranking file of somebody else's is pairs, and a leading thought of the known spelling is one."""
    entry = {
        "conversations": [
            {"from": "human", "value": "Hi"},
            {"from": "gpt", "value": "Ho"},
            {"from": "human", "value": "?"},
        ],
        "chosen": {"from": "gpt", "value": "<think>\nA\nB\n</think>\n\nYes"},
        "rejected": {"from": "gpt", "value": "<think>no end"},
    }
    (row,) = SHAREGPT.reading(_file(tmp_path, entry))
    assert (row.mode, row.system_prompt, row.human_input) == ("single", "", "?")
    assert row.context == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert (row.chosen, row.chosen_thinking) == ("Yes", "A\nB")
    assert (row.rejected, row.rejected_thinking) == ("<think>no end", None)


def test_a_conversation_of_somebody_elses_is_read(tmp_path: Path) -> None:
    """Without ranked replies the last turn is the chosen one; a system turn is the persona."""
    turns = [
        {"from": "system", "value": "You are Li."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Ho"},
    ]
    (row,) = SHAREGPT.reading(_file(tmp_path, {"conversations": turns}))
    assert (row.mode, row.system_prompt, row.context) == ("multi", "You are Li.", [])
    assert (row.human_input, row.chosen, row.rejected) == ("Hi", "Ho", None)


def test_a_time_with_a_zone_is_read_as_utc(tmp_path: Path) -> None:
    """Times are UTC without a zone; one that names a zone is the same moment."""
    preference, _ = _write(tmp_path, [_row()])
    (entry,) = _entries(preference)
    (row,) = SHAREGPT.reading(_file(tmp_path, {**entry, "created_at": "2026-01-27T20:00:00.123456+08:00"}))
    assert row.created_at == NOW


@pytest.mark.needs("PAIRS_JSON")
def test_two_hundred_real_pairs_are_read_and_written_and_read_again(tmp_path: Path) -> None:
    """Every pair of a file that prefanno did not write survives, and the new file keeps LLaMA-Factory's rules."""
    source = Path(os.environ["PAIRS_JSON"])
    read = list(SHAREGPT.reading(source))
    assert len(read) == len(_entries(source)) == 200
    for row, entry in zip(read, _entries(source), strict=True):
        assert (row.chosen, row.rejected) == (entry["chosen"]["value"], entry["rejected"]["value"])
        assert row.human_input == entry["conversations"][-1]["value"]
    preference, _ = _write(tmp_path, read)
    assert list(SHAREGPT.reading(preference)) == read
    assert [breaks(entry, ranking=True) for entry in _entries(preference)] == [[]] * 200
