"""ShareGPT files: LLaMA-Factory's rules hold for every row, and what was written is read back."""

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters import sharegpt
from exporters.containers import LONGEST
from prefanno.rows import Fault, Row
from tests.exporters.written import NOW, read, row, rows, talk, write
from tests.properties import unhurried

DATASETS = ("preference", "roleplay", "unpaired")


def _preference(folder: Path, *written: Row) -> Path:
    write("sharegpt", folder, written)
    return folder / "li_preference.json"


def _entries(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _file(folder: Path, *entries: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


def breaks(entry: dict[str, Any], dataset: str) -> list[str]:
    """Which of LLaMA-Factory's rules for ShareGPT the entry breaks.

    They are those of `SharegptDatasetConverter` in its src/llamafactory/data/converter.py and of the processors beside
    it, which leave out a bad entry with no more than a warning.
    """
    senders = [turn["from"] for turn in entry["conversations"]]
    ranking = dataset == "preference"
    replies = [entry.get("chosen"), entry.get("rejected")] if ranking else []
    rules = {
        "the human speaks first, and turns alternate": senders == (["human", "gpt"] * len(senders))[: len(senders)],
        "the human speaks last before ranked replies, else the model": len(senders) % 2 == (1 if ranking else 0),
        "there is something": bool(senders),
        "values are strings": all(isinstance(turn["value"], str) for turn in entry["conversations"]),
        "a column that dataset_info names is in every entry": isinstance(entry.get("system"), str),
        "ranked replies come from gpt": all(
            isinstance(reply, dict) and reply.get("from") == "gpt" and isinstance(reply.get("value"), str)
            for reply in replies
        ),
        # An empty good reply would be taken for a bad one: `if response[0]["content"]` in processor/feedback.py.
        "KTO's tag is a truth value, and its reply is not empty": dataset != "unpaired"
        or (isinstance(entry.get("kto_tag"), bool) and bool(entry["conversations"][-1]["value"])),
    }
    return [rule for rule, holds in rules.items() if not holds]


@unhurried
@given(st.lists(rows(), min_size=1, max_size=4))
def test_llama_factory_reads_every_row(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """No row breaks a rule for which LLaMA-Factory would leave it out."""
    folder = tmp_path_factory.mktemp("files")
    write("sharegpt", folder, written)
    for dataset in DATASETS:
        assert [
            breaks(entry, dataset) for entry in _entries(folder / f"li_{dataset}.json") if breaks(entry, dataset)
        ] == []


@pytest.mark.parametrize(
    ("senders", "dataset"),
    [
        ([], "preference"),
        (["gpt", "human"], "preference"),
        (["human", "gpt"], "preference"),
        (["human"], "roleplay"),
        (["human", "human", "gpt"], "preference"),
        (["user"], "preference"),
        (["human", "gpt"], "unpaired"),
    ],
)
def test_the_rules_can_be_broken(senders: list[str], dataset: str) -> None:
    """Control: the check of the rules sees an entry that breaks one."""
    reply = {"from": "gpt", "value": "a"}
    turns = [{"from": sender, "value": "a"} for sender in senders]
    assert breaks({"conversations": turns, "chosen": reply, "rejected": reply, "system": ""}, dataset) != []


def test_dataset_info_names_what_is_there(tmp_path: Path) -> None:
    """It tells LLaMA-Factory's parser each file, its kind, and columns that every entry of the file has."""
    write("sharegpt", tmp_path, [row(), row(None), row(rejected=None, mode="multi")])
    info = json.loads(sharegpt.beside(tmp_path, "li")["dataset_info.json"])
    assert sorted(info) == [f"li_{dataset}" for dataset in DATASETS]
    for dataset in DATASETS:
        about = info[f"li_{dataset}"]
        (entry,) = _entries(tmp_path / about["file_name"])
        assert set(about["columns"].values()) <= set(entry)
        assert (about["formatting"], about.get("ranking", False)) == ("sharegpt", dataset == "preference")


OTHER = b'{"other": {"file_name": "other.json"}}'


@pytest.mark.parametrize("known", [None, OTHER, b"\xef\xbb\xbf" + OTHER], ids=["none", "one", "with a mark"])
def test_dataset_info_keeps_what_others_put_there(tmp_path: Path, known: bytes | None) -> None:
    """Entries of other characters stay, also in a file with a byte order mark."""
    if known is not None:
        (tmp_path / "dataset_info.json").write_bytes(known)
    info = json.loads(sharegpt.beside(tmp_path, "li")["dataset_info.json"])
    assert ("other" in info, "li_preference" in info) == (known is not None, True)


@pytest.mark.parametrize("known", [b"", OTHER[:-1] + b",}", b"[]", b"\xff", b"[" * 100_000])
def test_a_dataset_info_that_cannot_be_read_is_refused(tmp_path: Path, known: bytes) -> None:
    """What a person wrote is not replaced; the file is named."""
    (tmp_path / "dataset_info.json").write_bytes(known)
    with pytest.raises(Fault, match=r"dataset_info\.json"):
        sharegpt.beside(tmp_path, "li")


def test_a_conversation_that_the_assistant_opens_stays_valid(tmp_path: Path) -> None:
    """Such a row begins with an empty human turn, which reading takes away again."""
    opened = row(context=talk("Welcome!"))
    preference = _preference(tmp_path, opened)
    (entry,) = _entries(preference)
    assert entry["conversations"][:2] == [{"from": "human", "value": ""}, {"from": "gpt", "value": "Welcome!"}]
    assert read("sharegpt", preference) == [opened]


def test_a_thought_stands_in_the_reply(tmp_path: Path) -> None:
    """A thought is written in the one spelling that other readers know, and a reply without one as it is."""
    (entry,) = _entries(_preference(tmp_path, row(chosen_thinking="A guest.")))
    assert entry["chosen"] == {"from": "gpt", "value": "<think>\nA guest.\n</think>\n\nI am Li."}
    assert entry["rejected"] == {"from": "gpt", "value": "An AI."}


def test_files_are_readable_by_people(tmp_path: Path) -> None:
    """Each row is one line, in plain Unicode: files can be searched and compared."""
    lines = _preference(tmp_path, row("我叫离~"), row()).read_text(encoding="utf-8").splitlines()
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
    (found,) = read("sharegpt", _file(tmp_path, entry))
    assert (found.mode, found.system_prompt, found.human_input) == ("single", "", "?")
    assert found.context == [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]
    assert (found.chosen, found.chosen_thinking) == ("Yes", "A\nB")
    assert (found.rejected, found.rejected_thinking) == ("<think>no end", None)


def test_a_conversation_of_somebody_elses_is_read(tmp_path: Path) -> None:
    """Without ranked replies the last turn is the chosen one; a system turn is the persona."""
    turns = [
        {"from": "system", "value": "You are Li."},
        {"from": "human", "value": "Hi"},
        {"from": "gpt", "value": "Ho"},
    ]
    (found,) = read("sharegpt", _file(tmp_path, {"conversations": turns}))
    assert (found.mode, found.system_prompt, found.context) == ("multi", "You are Li.", [])
    assert (found.human_input, found.chosen, found.rejected) == ("Hi", "Ho", None)


def test_a_time_with_a_zone_is_read_as_utc(tmp_path: Path) -> None:
    """Times are UTC without a zone; one that names a zone is the same moment."""
    (entry,) = _entries(_preference(tmp_path, row()))
    (found,) = read("sharegpt", _file(tmp_path, {**entry, "created_at": "2026-01-27T20:00:00.123456+08:00"}))
    assert found.created_at == NOW


def test_a_row_is_measured_in_bytes(tmp_path: Path) -> None:
    """A list is no roomier than lines: of Chinese, a third as many characters fit as of English."""
    for said, fits in (("a" * (LONGEST - 1000), True), ("谜" * (LONGEST // 3), False)):
        (tmp_path / str(fits)).mkdir()
        write("sharegpt", tmp_path / str(fits), [row(human_input=said)])
        (found,) = sharegpt.reading(tmp_path / str(fits) / "li_preference.json")
        assert isinstance(found[1], Row) is fits and (fits or "longer than 6 MiB" in str(found[1]))
