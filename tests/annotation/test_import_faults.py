"""Files with bad rows, and bad files: each fault is named with its place, in two languages, and nothing is stored."""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from prefanno.annotation import imports
from prefanno.annotation.imports import Options, Place, Source
from prefanno.db.engine import Database
from prefanno.rows import REASON, Fault, Found, Reads
from tests.annotation.importing import GOOD, READS, entry, lined, load
from tests.annotation.test_dataset import SINGLE, rows

CHINESE = re.compile("[\u4e00-\u9fff]")
BAD: list[tuple[Any, str]] = [
    ({**GOOD, "chosen": {"from": "gpt", "value": " "}}, "chosen is empty"),
    ({**GOOD, "chosen": {"from": "gpt", "value": "a\0"}}, "chosen holds the NUL character"),
    ({**GOOD, "conversations": [{"from": "human", "value": "\ud83d"}]}, "human_input holds half a UTF-16 surrogate"),
    ({**GOOD, "system": "\0"}, "system_prompt holds the NUL"),
    ({**GOOD, "chosen_thinking": "\0"}, "chosen_thinking holds the NUL"),
    ({**GOOD, "chosen": {"from": "human", "value": "Ho"}}, "chosen.from must be gpt"),
    ({**GOOD, "conversations": []}, "no turn"),
    ({"conversations": []}, "conversations is empty"),
    ({**GOOD, "conversations": [{"from": "gpt", "value": "Hi"}]}, "must alternate"),
    ({"chosen": GOOD["chosen"]}, "conversations is missing"),
    ({**GOOD, "chosen": {"from": "gpt"}}, "chosen.value is missing"),
    ({**GOOD, "rejected": "No"}, "rejected must be a JSON object"),
    ({**GOOD, "rejected": {"from": "human", "value": "No"}}, "rejected.from must be gpt"),
    ({**GOOD, "weight": float("nan")}, "weight must be a number above 0"),
    ({**GOOD, "weight": float("inf")}, "weight must be a number above 0"),
    ({**GOOD, "weight": "2"}, "weight must be a number above 0"),
    ({**GOOD, "weight": True}, "weight must be a number above 0"),
    ({"conversations": [*GOOD["conversations"], GOOD["chosen"]], "kto_tag": "false"}, "kto_tag must be true or false"),
    ({**GOOD, "created_at": 5}, "created_at must be a string"),
    ({**GOOD, "weight": 0}, "weight must be a number above 0"),
    ({**GOOD, "weight": -3}, "weight must be a number above 0"),
    ({**GOOD, "weight": 1e9}, "weight must be a number above 0, at most 100"),
    ({**GOOD, "created_at": "0001-01-01T00:00:00+10:00"}, "created_at must be a time in ISO 8601"),
    ({**GOOD, "created_at": "yesterday"}, "yesterday"),
    ({**GOOD, "conversations": [{"from": "human", "value": 5}]}, "conversations.0.value must be a string"),
    ({**GOOD, "chosen": {"from": "gpt", "value": ["Ho"]}}, "chosen.value must be a string"),
    ({**GOOD, "system": 5}, "system must be a string"),
    ({**GOOD, "chosen_thinking": 5}, "chosen_thinking must be a string"),
    ({**GOOD, "mode": "other"}, "mode must be single or multi"),
    ({**GOOD, "mode": ["single"]}, "mode must be single or multi"),
    ({"conversations": [*GOOD["conversations"], GOOD["chosen"]], "kto_tag": False, "mode": "multi"}, "no reply"),
    ("a text", "the row must be a JSON object"),
    (None, "the row must be a JSON object"),
]


@pytest.mark.parametrize(("bad", "reason"), BAD, ids=[f"{number}" for number in range(len(BAD))])
async def test_a_bad_row_is_named_and_nothing_is_stored(
    database: Database, tmp_path: Path, bad: object, reason: str
) -> None:
    """One bad row, and none of the file is stored; the report names file, line and fault, in English and Chinese."""
    file = lined(tmp_path, GOOD, entry("2"), bad)
    report = await load(database, file)
    assert (report.added, report.bad) == (0, 1)
    ((place, fault),) = report.bad_rows
    assert place == Place(file, 4)
    assert reason in str(fault) and not CHINESE.search(str(fault))
    assert CHINESE.search(fault.detail)
    assert await rows(database) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "must hold a JSON list"),
        (b"[{]", "is no JSON"),
        (b"\xff\xfe", "is not UTF-8"),
        (b"[" * 200_000, "nested too deeply"),
        (b"{}", "must hold a JSON list"),
        (json.dumps([GOOD]).encode()[:-1], "is no JSON: the list does not end"),
    ],
    ids=["empty", "broken", "no text", "deep", "an object", "cut off"],
)
async def test_a_bad_file_is_named_and_nothing_is_stored(
    database: Database, tmp_path: Path, content: bytes, fault: str
) -> None:
    """One bad file, and none of any file is stored."""
    good, bad = lined(tmp_path, GOOD), tmp_path / "bad.json"
    bad.write_bytes(content)
    report = await load(database, good, bad)
    assert (report.added, report.bad) == (0, 1)
    ((place, found),) = report.bad_rows
    assert place.file == bad and fault in str(found) and CHINESE.search(found.detail)
    assert await rows(database) == []
    assert (await load(database, good)).added == 1  # control


async def test_a_file_that_cannot_be_opened_stores_nothing(database: Database, tmp_path: Path) -> None:
    """A file that is not there ends the import; the good one before it is not stored."""
    with pytest.raises(FileNotFoundError, match="nowhere"):
        await load(database, lined(tmp_path, GOOD), tmp_path / "nowhere.json")
    assert await rows(database) == []


@dataclass(frozen=True)
class _Reads:
    """A format of somebody else's, which ends in this error after two good rows."""

    error: ValueError

    def reading(self, _file: Path) -> Iterator[Found]:
        yield 1, SINGLE
        yield 5, Fault("is no row")
        raise self.error


@pytest.mark.parametrize(
    ("error", "english", "chinese"),
    [
        (ValueError("it broke"), "it broke", "it broke"),
        (Fault("it broke", "它坏了"), "it broke", "它坏了"),
        (UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"), "invalid start byte", "invalid start byte"),
        (ValueError("\x1b[2J" + "long" * 10_000_000), "\N{REPLACEMENT CHARACTER}[2Jlong", "long"),
    ],
    ids=["ValueError", "Fault", "UnicodeDecodeError", "anything"],
)
async def test_a_reader_that_breaks_off_is_a_bad_row(
    database: Database, tmp_path: Path, error: ValueError, english: str, chinese: str
) -> None:
    """A reader that raises, though it should not, is a bad row after the last one; the next file is read, too.

    The report holds what it says as far as that is short and printable, and nothing that it held.
    """
    broken: Reads = _Reads(error)
    files = [tmp_path / "one", tmp_path / "two"]
    report = await imports.load(database, Source(broken, files, "li", "unused"), Options(skip_bad=True))
    assert (report.added, report.duplicates, report.bad) == (1, 1, 4)
    assert [place for place, _ in report.bad_rows] == [Place(file, line) for file in files for line in (5, 6)]
    fault = report.bad_rows[1][1]
    assert english in str(fault) and chinese in fault.detail
    for message in (str(fault), fault.detail):
        assert len(message) <= REASON and message.isprintable()
    assert fault.__traceback__ is None and fault.__context__ is None


async def test_an_entry_may_have_any_line(database: Database, tmp_path: Path) -> None:
    """The line is where the entry begins, also where entries share lines or go over several."""
    file = tmp_path / "rows.json"
    file.write_text('[{}, "x",\n\n{\n"conversations": [\n]},\n' + json.dumps(GOOD) + ",\r\n5\n]", encoding="utf-8")
    report = await load(database, file, options=Options(skip_bad=True))
    assert [place.line for place, _ in report.bad_rows] == [1, 1, 3, 7]
    assert report.added == len(list(READS.reading(file))) - 4 == 1
