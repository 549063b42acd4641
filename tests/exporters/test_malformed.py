"""Files with good and bad rows: each bad one is named by its line, with the reason, and the good ones are read."""

import csv
import io
import json
from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import pytest

from exporters.spreadsheet import COLUMNS
from prefanno.rows import GROUP, Fault, Row
from tests.exporters.written import FORMATS, found_in, row, write

Change = Callable[[dict[str, Any]], object]

WEIGHTS: list[tuple[Any, str]] = [
    (0, "weight must be a number above 0, at most 100, not 0"),
    (-1, "weight must be a number above 0, at most 100, not -1"),
    ("much", "weight must be a number above 0, at most 100, not 'much'"),
    (True, "weight must be a number above 0, at most 100, not True"),
    ([], "weight must be a number above 0, at most 100, not []"),
    (
        {"deep": {"deeper": ["…" * 99] * 9}},
        "weight must be a number above 0, at most 100, not {'deep': {'deeper': ['…………",
    ),
    (10**400, "number"),  # which some parsers refuse by themselves
]
OWN: list[tuple[Change, str]] = [
    (lambda entry: entry.update(mode="both"), "mode must be single or multi, not 'both'"),
    (lambda entry: entry.update(mode=["single"]), "mode must be single or multi, not ['single']"),
    (lambda entry: entry.update(created_at="yesterday"), "created_at must be a time in ISO 8601, not 'yesterday'"),
    (lambda entry: entry.update(created_at=1769515200), "created_at must be a string"),
    (lambda entry: entry.update(created_at="0001-01-01T00:00:00+23:00"), "created_at must be a time in ISO 8601"),
    (lambda entry: entry.update(chosen_thinking=[]), "chosen_thinking must be a string"),
    *(((lambda entry, weight=weight: entry.update(weight=weight)), reason) for weight, reason in WEIGHTS),
]
SHAREGPT: list[tuple[Change, str]] = [
    (lambda entry: entry.pop("conversations"), "conversations is missing"),
    (lambda entry: entry.update(conversations={}), "conversations must be a list"),
    (lambda entry: entry.update(conversations=[]), "user must speak last before the reply, not no turn"),
    (lambda entry: entry["conversations"].append("Hi"), "conversations.1 must be a JSON object"),
    (lambda entry: entry["conversations"][0].pop("from"), "conversations.0.from is missing"),
    (lambda entry: entry["conversations"][0].update(value=1), "conversations.0.value must be a string"),
    (lambda entry: entry["conversations"][0].update({"from": "tool"}), "must alternate"),
    (lambda entry: entry["conversations"].append(entry["conversations"][0]), "must alternate"),
    (lambda entry: entry["chosen"].update({"from": "human"}), "chosen.from must be gpt"),
    (lambda entry: entry["chosen"].pop("value"), "chosen.value is missing"),
    (lambda entry: entry.update(rejected="No."), "rejected must be a JSON object"),
    (lambda entry: entry.pop("chosen"), "must be gpt"),
    (lambda entry: entry.update(system=1), "system must be a string"),
    (lambda entry: entry.update(kto_tag="good"), "kto_tag must be true or false"),
]
TRL: list[tuple[Change, str]] = [
    (lambda entry: entry.pop("prompt"), "prompt is missing"),
    (lambda entry: entry.update(prompt="Hi"), "prompt must be a list"),
    (lambda entry: entry.update(prompt=[1]), "prompt.0 must be a JSON object"),
    (lambda entry: entry.update(prompt=entry["prompt"][:1]), "must alternate"),
    (lambda entry: entry["prompt"][1].pop("role"), "prompt.1.role is missing"),
    (lambda entry: entry["prompt"][1].update(content=[{"type": "text"}]), "prompt.1.content must be a string"),
    (lambda entry: entry.update(chosen=[]), "chosen must be one message of the assistant"),
    (lambda entry: entry.update(rejected="No."), "rejected must be a list"),
    (lambda entry: entry.update(rejected=entry["prompt"][1:]), "rejected must be one message of the assistant"),
    (lambda entry: entry.pop("rejected"), "rejected is missing"),
    (lambda entry: entry.update(completion=entry["chosen"]), "label is missing"),
    (lambda entry: entry.update(completion=entry["chosen"], label=1), "label must be true or false"),
    (lambda entry: entry.update(messages=[]), "messages must be one message of the assistant"),
    (lambda entry: entry.update(messages=entry["prompt"]), "messages must be one message of the assistant"),
]
OPENAI: list[tuple[Change, str]] = [
    (lambda entry: entry.pop("input"), "input is missing"),
    (lambda entry: entry.update(input=[]), "input must be a JSON object"),
    (lambda entry: entry["input"].pop("messages"), "input.messages is missing"),
    (lambda entry: entry["input"].update(messages=["Hi"]), "input.messages.0 must be a JSON object"),
    (lambda entry: entry["input"]["messages"][1].update(content=None), "input.messages.1.content is missing"),
    (lambda entry: entry["input"]["messages"].pop(), "must alternate"),
    (lambda entry: entry.pop("preferred_output"), "preferred_output is missing"),
    (
        lambda entry: entry.update(preferred_output=entry["preferred_output"] * 2),
        "must be one message of the assistant",
    ),
    (lambda entry: entry["non_preferred_output"][0].update(role="user"), "must be one message of the assistant"),
    (lambda entry: entry["non_preferred_output"][0].update(content=None), "non_preferred_output.0.content is missing"),
    (lambda entry: entry.update(created_at="yesterday"), "created_at must be a time in ISO 8601, not 'yesterday'"),
]
CSV: list[tuple[Change, str]] = [
    (lambda cells: cells.update(mode="both"), "mode must be single or multi, not 'both'"),
    (lambda cells: cells.update(human_input=""), "human_input is missing"),
    (lambda cells: cells.update(context="Hi"), "context must be a JSON list of turns"),
    (lambda cells: cells.update(context='{"role": "user"}'), "context must be a list"),
    (lambda cells: cells.update(context="[1]"), "context.0 must be a JSON object"),
    (lambda cells: cells.update(context='[{"role": "user"}]'), "context.0.content is missing"),
    (lambda cells: cells.update(context='[{"role": "user", "content": "Hi"}]'), "must alternate"),
    (lambda cells: cells.update(context="[" * 2000 + "]" * 2000), "context must be a JSON list of turns"),
    (lambda cells: cells.update(created_at="27.01.2026"), "created_at must be a time in ISO 8601"),
    (lambda cells: cells.update(weight="0"), "weight must be a number above 0"),
    (lambda cells: cells.update(weight="1,5"), "weight must be a number above 0, at most 100, not '1,5'"),
    (lambda cells: cells.update(weight="inf"), "weight must be a number above 0"),
    (lambda cells: cells.update(weight="nan"), "weight must be a number above 0"),
    (lambda cells: cells.update(more="1"), "has 11 cells where the first line names 10"),
    (lambda cells: cells.pop("weight"), "has 9 cells where the first line names 10"),
]


def _entry(form: str, folder: Path) -> dict[str, Any]:
    """A good entry, as the format writes it."""
    folder.mkdir()
    counts = write(form, folder, [row()]).counts
    (name,) = [name for name, count in counts.items() if count]
    loaded: Any = json.loads((folder / name).read_text())
    entry: dict[str, Any] = loaded[0] if isinstance(loaded, list) else loaded
    return entry


def _changed(entry: dict[str, Any], change: Change) -> dict[str, Any]:
    changed: dict[str, Any] = json.loads(json.dumps(entry))
    change(changed)
    return changed


def _check(form: str, file: Path, reasons: list[str], first: int = 1) -> None:
    """Every second row is good, and between them each bad one has its reason, in both languages and on its line."""
    found = list(found_in(form, file))
    assert [line for line, _ in found] == list(range(first, first + len(found)))
    assert [isinstance(one, Row) for _, one in found] == [True, *([False, True] * len(reasons))]
    faults = [one for _, one in found if isinstance(one, Fault)]
    for fault, reason in zip(faults, reasons, strict=True):
        assert reason in str(fault)
        assert any("\u4e00" <= character <= "\u9fff" for character in fault.detail)


@pytest.mark.parametrize(("form", "bad"), [("trl", TRL + OWN), ("openai", OPENAI)])
def test_a_bad_line_is_named(tmp_path: Path, form: str, bad: list[tuple[Change, str]]) -> None:
    """JSON lines go on after a line of which nothing can be read, too."""
    entry = _entry(form, tmp_path / "good")
    good = json.dumps(entry).encode()
    lines = [(json.dumps(_changed(entry, change)).encode(), reason) for change, reason in bad]
    lines += [
        (good[:-1], "is no JSON"),
        (good + b"]", "is no JSON"),
        (b"no JSON", "is no JSON"),
        (b'{"a": NaN}', "is no JSON"),
        (b"[1]", "the row must be a JSON object"),
        (b"null", "the row must be a JSON object"),
        (good.replace(b"Li", "Lí".encode("latin-1")), "is not UTF-8"),
        (good.replace(b"Li", rb"\ud800"), "is no JSON"),
        (b"[" * 2000 + b"]" * 2000, "is nested too deeply"),
    ]
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"\n".join([good, *(line for bad_one, _ in lines for line in (bad_one, good))]))
    _check(form, file, [reason for _, reason in lines])


def test_a_bad_entry_of_a_list_is_named(tmp_path: Path) -> None:
    """A list goes on after a bad entry, also one that is not UTF-8, as long as it is JSON."""
    entry = _entry("sharegpt", tmp_path / "good")
    good = json.dumps(entry).encode()
    entries = [(json.dumps(_changed(entry, change)).encode(), reason) for change, reason in SHAREGPT + OWN]
    entries += [
        (b"1", "the row must be a JSON object"),
        (b"null", "the row must be a JSON object"),
        (b"[[]]", "the row must be a JSON object"),
        (good[:-1] + b', "weight": NaN}', "weight must be a number above 0, at most 100, not nan"),
        (good.replace(b"Li", "Lí".encode("latin-1")), "is not UTF-8"),
    ]
    file = tmp_path / "rows.json"
    every = [good, *(one for bad, _ in entries for one in (bad, good))]
    file.write_bytes(b"[" + b",\n".join(every) + b"]")
    _check("sharegpt", file, [reason for _, reason in entries])


@pytest.mark.parametrize(
    ("rest", "line", "reason"),
    [
        (b"", 2, "the list does not end"),
        (b",", 2, "is no JSON"),
        (b",\n]", 3, "is no JSON"),
        (b",\n{", 3, "is no JSON"),
        (b',\n{"a": "b', 3, "is no JSON"),
        (b",\n{'a': 1}]", 3, "is no JSON"),
        (b"\n{}]", 3, "',' or ']' is expected, not '{'"),
        (b"]\n[", 3, "'[' stands after the end of the list"),
        (b",\n" + b"[" * 2000, 3, "is nested too deeply"),
        (b",\n" + b"9" * 5000 + b"]", 3, "is no JSON"),
        (b",\n\x00]", 3, "is no JSON"),
        (b",\n\xff]", 3, "is no JSON"),
    ],
)
def test_a_list_is_read_up_to_where_it_breaks(tmp_path: Path, rest: bytes, line: int, reason: str) -> None:
    """What stands before is read, and the fault has the line on which it breaks."""
    file = tmp_path / "rows.json"
    file.write_bytes(b"[\n" + json.dumps(_entry("sharegpt", tmp_path / "good")).encode() + rest)
    (_, good), (found, fault) = found_in("sharegpt", file)
    assert isinstance(good, Row) and isinstance(fault, Fault)
    assert (found, reason in str(fault)) == (line, True)


@pytest.mark.parametrize("form", ["sharegpt", "labelstudio", "argilla"])
def test_an_entry_that_begins_no_line_has_its_number(tmp_path: Path, form: str) -> None:
    """Of a list's entries, those that share a line are told apart; one that begins a line is found by that."""
    file = tmp_path / "rows.json"
    file.write_text('[1, 2,\n 3, {\n}, 4\n, 5, "')
    reading = next(entry for entry in entry_points(group=GROUP) if entry.name == form).load().reading
    places = [(line, getattr(line, "row", None)) for line, _ in reading(file)]
    assert places == [(1, 1), (1, 2), (2, None), (2, 4), (3, 5), (4, None), (4, 7)]


def test_a_bad_row_of_parquet_is_named(tmp_path: Path) -> None:
    """Rows have their numbers; a text that is not UTF-8 spoils its own row only."""
    import pyarrow as pa
    from pyarrow import parquet

    entry = _entry("trl", tmp_path / "good")
    bad: list[tuple[Change, str]] = [
        (lambda entry: entry.update(prompt=None), "prompt is missing"),
        (lambda entry: entry["prompt"][1].update(content=None), "prompt.1.content is missing"),
        (lambda entry: entry.update(chosen=[]), "chosen must be one message of the assistant"),
        (lambda entry: entry.update(mode="both"), "mode must be single or multi"),
        (lambda entry: entry.update(weight=0.0), "weight must be a number above 0"),
        (lambda entry: entry.update(created_at="yesterday"), "created_at must be a time"),
        (lambda entry: entry.update(created_at="not UTF-8"), "utf-8"),
    ]
    changed = (_changed(entry, change) for change, _ in bad)
    table = pa.Table.from_pylist([entry, *(one for bad_one in changed for one in (bad_one, entry))])
    times = [b"\xff" if time == "not UTF-8" else time for time in table["created_at"].to_pylist()]
    column = pa.array(times, pa.binary()).view(pa.string())
    file = tmp_path / "rows.parquet"
    parquet.write_table(table.set_column(table.column_names.index("created_at"), "created_at", column), file)
    _check("trl-parquet", file, [reason for _, reason in bad])


@pytest.mark.parametrize("value", [1, b"a", 1.5, {"a": 1}, [("a", 1)], True, None])
def test_a_column_of_another_type_is_named(tmp_path: Path, value: object) -> None:
    """Parquet's types are many; where a list of messages must be, each other is refused."""
    import pyarrow as pa
    from pyarrow import parquet

    said = [[{"role": "user", "content": "Hi"}]]
    file = tmp_path / "rows.parquet"
    kind = pa.map_(pa.string(), pa.int64()) if isinstance(value, list) else None
    parquet.write_table(pa.table({"prompt": said, "chosen": pa.array([value], kind), "rejected": said}), file)
    ((line, fault),) = found_in("trl-parquet", file)
    assert (line, isinstance(fault, Fault), "chosen" in str(fault)) == (1, True, True)


def test_a_bad_record_is_named(tmp_path: Path) -> None:
    """CSV goes on after a record with a bad cell, too many cells, or a quote in the wrong place."""
    entry = dict.fromkeys(COLUMNS, "") | {"human_input": "Hi", "chosen": "Ho"}
    good = _record(entry)
    records = [(_record(_changed(entry, change)), reason) for change, reason in CSV]
    records += [
        (b'"a"b,c', "is no CSV"),
        (b"a\rb,c", "has a line end of old Mac programs"),
        (b"a", "has 1 cells"),
        (good.replace(b"Ho", b"\xff"), "is not UTF-8"),
    ]
    file = tmp_path / "rows.csv"
    every = [",".join(COLUMNS).encode(), good, *(one for bad, _ in records for one in (bad, good))]
    file.write_bytes(b"\r\n".join(every))
    _check("csv", file, [reason for _, reason in records], first=2)


@pytest.mark.parametrize(
    ("header", "reason"),
    [
        ("", "the first line must name the columns"),
        ("human_input", "the first line must name the columns"),
        ("chosen,rejected", "the first line must name the columns"),
        ("human_input,chosen,Chosen", "there is no column 'Chosen'"),
        ("human_input;chosen;rejected", "must be separated by commas"),
        ("human_input\tchosen\trejected", "must be separated by commas"),
        ("human_input,chosen,,rejected;", "there is no column 'rejected;'"),
        ("human_input,chosen,chosen", "a column is named twice"),
        ('human_input,"chosen', "is no CSV"),
    ],
)
def test_a_bad_first_line_is_named(tmp_path: Path, header: str, reason: str) -> None:
    """Without the names of the columns no row can be read, so there is one fault."""
    file = tmp_path / "rows.csv"
    file.write_text(f"{header}\nHi,Ho,No")
    ((line, fault),) = found_in("csv", file)
    assert isinstance(fault, Fault) and reason in str(fault)
    assert line == 1


@pytest.mark.parametrize("form", ["sharegpt", "trl", "openai", "csv"])
def test_a_parquet_file_is_one_fault(tmp_path: Path, form: str) -> None:
    """It is said what the file looks like, not what is wrong with each of its lines."""
    file = tmp_path / "rows"
    file.write_bytes(b"PAR1\n\x15\n\xff\nPAR1")
    ((line, fault),) = found_in(form, file)
    assert (line, isinstance(fault, Fault), "looks like parquet" in str(fault)) == (1, True, True)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf\n "])
@pytest.mark.parametrize("form", ["trl", "openai"])
def test_a_list_in_place_of_lines_is_one_fault(tmp_path: Path, form: str, start: bytes) -> None:
    """A JSON list with an entry over many lines is not a bad row for each of these."""
    file = tmp_path / "rows"
    file.write_bytes(start + json.dumps([_entry(form, tmp_path / "good")] * 2, indent=2).encode())
    ((line, fault),) = found_in(form, file)
    assert (line, isinstance(fault, Fault), "looks like a JSON list" in str(fault)) == (1, True, True)


def test_every_readable_format_is_here() -> None:
    """Control: a format that is added gets its bad rows, too."""
    assert set(FORMATS) == {"sharegpt", "trl", "trl-parquet", "openai", "csv"}


def _record(cells: dict[str, Any]) -> bytes:
    text = io.StringIO()
    csv.writer(text).writerow(cells.values())
    return text.getvalue().rstrip("\r\n").encode()
