"""Two hundred real pairs through every format, read by those who will read them: `datasets`, and prefanno."""

import csv
import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.rows import Row
from tests.exporters.test_sharegpt import breaks
from tests.exporters.written import FORMATS, NOW, found_in, good, read, row, rows, talk, write
from tests.properties import unhurried

BUILDERS = {".json": "json", ".jsonl": "json", ".parquet": "parquet", ".csv": "csv"}
ROLES = {"system", "user", "assistant"}

# One row of each kind that no two hundred pairs have, at the end, where readers have settled on their types.
RARE = [
    row(chosen_thinking="hm\n", rejected_thinking="ho", weight=1 / 3, created_at=NOW.replace(microsecond=0)),
    row("=1 🦊 \u2028\r\n,\"'", "\u202eשלום", context=talk("Welcome!\t")),
    row(None, "No."),
    row(rejected=None),
    row(mode="multi", rejected=None),
    row(mode="multi", chosen_thinking="hm"),
]

real_pairs = pytest.mark.needs("PAIRS_JSON")


@pytest.fixture
def pairs() -> list[Row]:
    """The pairs of a file that prefanno did not write, none left out."""
    source = Path(os.environ["PAIRS_JSON"])
    entries = json.loads(source.read_text(encoding="utf-8"))
    found = read("sharegpt", source)
    assert len(found) == len(entries) == 200
    for one, entry in zip(found, entries, strict=True):
        assert (one.chosen, one.rejected) == (entry["chosen"]["value"], entry["rejected"]["value"])
        said = [turn["value"] for turn in entry["conversations"]]
        persona = [one.system_prompt] if entry["conversations"][0]["from"] == "system" else []
        assert [*persona, *(turn["content"] for turn in one.context), one.human_input] == said
    return found


@real_pairs
@pytest.mark.parametrize("form", FORMATS)
def test_datasets_loses_nothing(tmp_path: Path, form: str, pairs: list[Row]) -> None:
    """What load_dataset makes of each file holds every row and character that was written."""
    import datasets

    datasets.disable_progress_bars()
    (tmp_path / "again").mkdir()
    writer = write(form, tmp_path, [*pairs, *RARE])
    for name, count in writer.counts.items():
        file, again = tmp_path / name, tmp_path / "again" / name
        loaded = datasets.load_dataset(
            BUILDERS[file.suffix], data_files=str(file), cache_dir=str(tmp_path / "cache"), split="train"
        )
        assert loaded.num_rows == count > 0
        _save(loaded, again)
        assert _rounded(form, _timeless(form, read(form, again))) == _rounded(form, _timeless(form, read(form, file)))


@real_pairs
@pytest.mark.parametrize("form", FORMATS)
def test_prefanno_loses_nothing(tmp_path: Path, form: str, pairs: list[Row]) -> None:
    """Its own readers give back all two hundred, equal; openai without their times."""
    writer = write(form, tmp_path, pairs)
    (name,) = [name for name, count in writer.counts.items() if count]
    assert _timeless(form, read(form, tmp_path / name)) == _timeless(form, pairs)
    assert writer.losses == ({"created_at": 200} if form == "openai" else {})


@real_pairs
def test_llama_factory_and_openai_take_the_real_pairs(tmp_path: Path, pairs: list[Row]) -> None:
    """No entry breaks a rule of theirs."""
    write("sharegpt", tmp_path, pairs)
    write("openai", tmp_path, pairs)
    preference = json.loads((tmp_path / "li_preference.json").read_text(encoding="utf-8"))
    lines = (tmp_path / "li_preference.openai.jsonl").read_text(encoding="utf-8").split("\n")[:-1]
    assert [breaks(entry, "preference") for entry in preference] == [[]] * 200
    assert [refused(json.loads(line)) for line in lines] == [[]] * 200


def refused(entry: dict[str, Any]) -> list[str]:
    """Which of OpenAI's rules for preference data the entry breaks.

    From its guide "Direct preference optimization" (developers.openai.com/api/docs/guides), and from Azure's "Direct
    preference optimization dataset format" for what the guide shows by example only.
    """
    said = entry.get("input", {}).get("messages", [])
    outputs = [entry.get(name, []) for name in ("preferred_output", "non_preferred_output")]
    every = [*said, *(message for output in outputs for message in output)]
    rules = {
        "three fields, and no other": set(entry) == {"input", "preferred_output", "non_preferred_output"},
        "input has messages": list(entry.get("input", {})) == ["messages"] and bool(said),
        "messages have a role and a text, and nothing else": all(
            set(message) == {"role", "content"} and message["role"] in ROLES and isinstance(message["content"], str)
            for message in every
        ),
        "a system message comes first": "system" not in [message.get("role") for message in said[1:]],
        "the user speaks last before the outputs": bool(said) and said[-1].get("role") == "user",
        "each output is one message of the assistant": all(
            [message.get("role") for message in output] == ["assistant"] for output in outputs
        ),
        "outputs say something": all(message.get("content") for output in outputs for message in output),
    }
    return [rule for rule, holds in rules.items() if not holds]


@unhurried
@given(st.lists(rows(), min_size=1, max_size=4))
def test_openai_takes_every_row(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """No pair breaks a rule, and each stands on a line of its own."""
    folder = tmp_path_factory.mktemp("files")
    count = write("openai", folder, written).counts["li_preference.openai.jsonl"]
    content = (folder / "li_preference.openai.jsonl").read_bytes()
    lines = content.split(b"\n")
    assert (len(lines), lines[-1]) == (count + 1, b"")
    assert [refused(json.loads(line)) for line in lines[:-1]] == [[]] * count


@pytest.mark.parametrize(
    "changed",
    [
        {"weight": 1},
        {"input": {"messages": []}},
        {"input": {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}},
        {"input": {"messages": [{"role": "user", "content": "a"}, {"role": "system", "content": "b"}]}},
        {"input": {"messages": [{"role": "user", "content": None}]}},
        {"preferred_output": []},
        {"preferred_output": [{"role": "assistant", "content": ""}]},
        {"non_preferred_output": [{"role": "user", "content": "b"}]},
        {"non_preferred_output": [{"role": "assistant", "content": "b", "thinking": "c"}]},
    ],
)
def test_openais_rules_can_be_broken(changed: dict[str, Any]) -> None:
    """Control: the check of the rules takes a good entry, and sees one that breaks a rule."""
    reply = [{"role": "assistant", "content": "b"}]
    entry: dict[str, Any] = {"input": {"messages": [{"role": "user", "content": "a"}]}}
    entry |= {"preferred_output": reply, "non_preferred_output": reply}
    assert refused(entry) == []
    assert refused(entry | changed) != []


def test_somebody_elses_trl_file_is_read(tmp_path: Path) -> None:
    """Without our own columns a leading thought is one, and messages are a conversation; a persona may be missing."""
    file = tmp_path / "rows.jsonl"
    said = [{"role": "user", "content": "Hi"}]
    reply = [{"role": "assistant", "content": "<think>\nhm\n</think>\n\nHo"}]
    entries: list[dict[str, Any]] = [
        {"prompt": said, "chosen": reply, "rejected": reply},
        {"messages": [*said, *reply]},
        {"prompt": said, "completion": reply, "label": False},
    ]
    file.write_text("\n\n".join(json.dumps(entry) for entry in entries))
    found = {line: good(one) for line, one in found_in("trl", file)}
    assert [(line, one.mode, one.chosen, one.rejected) for line, one in found.items()] == [
        (1, "single", "Ho", "Ho"),
        (3, "multi", "Ho", None),
        (5, "single", None, "Ho"),
    ]
    assert {(one.system_prompt, one.human_input) for one in found.values()} == {("", "Hi")}
    assert (found[1].chosen_thinking, found[5].rejected_thinking) == ("hm", "hm")


def _timeless(form: str, found: list[Row]) -> list[Row]:
    """The rows, without their times where the format has none."""
    return [replace(one, created_at=NOW) for one in found] if form == "openai" else found


def _rounded(form: str, found: list[Row]) -> list[Row]:
    """The rows, with weights as exact as datasets reads the numbers of a JSON list: to ten digits."""
    return [replace(one, weight=round(one.weight, 9)) for one in found] if form == "sharegpt" else found


def _save(loaded: Any, file: Path) -> None:
    """The rows of a dataset as a file of the same kind, so that they can be compared as rows."""
    entries = list(loaded)
    if file.suffix == ".parquet":
        loaded.to_parquet(file)
    elif file.suffix == ".csv":
        with file.open("w", encoding="utf-8", newline="") as target:
            table = csv.DictWriter(target, loaded.column_names)
            table.writeheader()
            table.writerows(entries)
    elif file.suffix == ".json":
        file.write_text(json.dumps(entries))
    else:
        file.write_text("".join(json.dumps(entry) + "\n" for entry in entries))
