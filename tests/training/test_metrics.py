"""Reading a run's metrics while they are written."""

import json
from pathlib import Path

from prefanno.training.metrics import read

ENTRIES = [{"kind": "step", "step": number, "loss": 1 / number} for number in range(1, 8)]


def _written(folder: Path) -> bytes:
    lines = b"".join(json.dumps(entry).encode() + b"\n" for entry in ENTRIES)
    (folder / "metrics.jsonl").write_bytes(lines)
    return lines


def test_all_entries_come_once_page_by_page(tmp_path: Path) -> None:
    """Pages that go on at `next` give every entry once, in order, and the last is empty."""
    whole = _written(tmp_path)
    found, after = [], 0
    while (page := read(tmp_path, after, 3))[0]:
        found += page[0]
        after = page[1]
    assert found == ENTRIES and after == len(whole)


def test_a_line_that_is_not_complete_waits(tmp_path: Path) -> None:
    """Half a line is left for the next call, which then gives it whole."""
    whole = _written(tmp_path)
    file = tmp_path / "metrics.jsonl"
    file.write_bytes(whole[:-5])
    found, after = read(tmp_path, 0, 100)
    assert found == ENTRIES[:-1]
    file.write_bytes(whole)
    assert read(tmp_path, after, 100) == ([ENTRIES[-1]], len(whole))


def test_any_offset_is_answered(tmp_path: Path) -> None:
    """An offset inside a line begins at the next line, one beyond the file gives nothing, and no file is no entry."""
    whole = _written(tmp_path)
    for offset in range(len(whole) + 10):
        found, after = read(tmp_path, offset, 100)
        assert found == [ENTRIES[place] for place in range(7) if _start(whole, place) >= offset]
        assert after >= offset
    assert read(tmp_path / "none", 0, 100) == ([], 0)


def _start(whole: bytes, place: int) -> int:
    return sum(len(line) for line in whole.splitlines(keepends=True)[:place])


def test_what_is_no_object_is_passed_over(tmp_path: Path) -> None:
    """train.sh is the user's: a line that is no JSON object is no entry, and hides none."""
    (tmp_path / "metrics.jsonl").write_text('{"step": 1}\nnot json\n[1]\n{"step": 2}\n')
    assert read(tmp_path, 0, 100)[0] == [{"step": 1}, {"step": 2}]
