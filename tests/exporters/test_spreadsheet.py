"""CSV: no cell is a formula, and files that spreadsheet programs save are read."""

import csv
import re
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from exporters.spreadsheet import COLUMNS
from prefanno.rows import Fault, Row
from tests.exporters.written import found_in, good, read, row, rows, write
from tests.properties import unhurried

# What spreadsheet programs, or editions of them, may take for the beginning of a formula (OWASP, CSV injection).
STARTS = ("=", "+", "-", "@", "\t", "\r", "\n", "＝", "＋", "－", "＠")


@unhurried
@given(st.lists(rows(), max_size=4))
@example([row(f"{start}1+1", f"{start}{start}", system_prompt=f"{start}cmd|' /C calc'!A0") for start in STARTS])
@example([row(human_input=f"{start}1", chosen_thinking=f"{start}1", rejected_thinking=f"{start}1") for start in STARTS])
def test_no_cell_is_a_formula(tmp_path_factory: pytest.TempPathFactory, written: list[Row]) -> None:
    """Every cell, as any program unquotes it, begins with something that no program takes for a formula."""
    folder = tmp_path_factory.mktemp("files")
    write("csv", folder, written)
    with (folder / "li.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [cell for record in csv.reader(file) for cell in record]
    assert len(cells) == len(COLUMNS) * (len(written) + 1)
    assert [cell for cell in cells if cell.startswith(STARTS)] == []


def test_a_formula_is_prefixed_and_read_back(tmp_path: Path) -> None:
    """A ' stands before it in the file, also before a ' of the text's own, and reading takes one away."""
    written = [row("=1", "'=1"), row("'quoted'", "a=1")]
    write("csv", tmp_path, written)
    with (tmp_path / "li.csv").open(encoding="utf-8-sig", newline="") as file:
        cells = [(record["chosen"], record["rejected"]) for record in csv.DictReader(file)]
    assert cells == [("'=1", "''=1"), ("''quoted'", "a=1")]
    assert read("csv", tmp_path / "li.csv") == written


def test_every_cell_is_quoted(tmp_path: Path) -> None:
    """Whatever a program takes for the separator, each cell is one; the quotes of its own are doubled."""
    write("csv", tmp_path, [row("a;=1", '"', rejected_thinking=None)])
    line = (tmp_path / "li.csv").read_text(encoding="utf-8-sig").splitlines()[1]
    assert re.fullmatch(r'"([^"]|"")*"(,"([^"]|"")*"){9}', line) and ',"a;=1",' in line and ',"""",' in line


def test_excel_knows_the_encoding(tmp_path: Path) -> None:
    """The file begins with a byte order mark, and its lines end as RFC 4180 says."""
    write("csv", tmp_path, [row("我叫离~")])
    content = (tmp_path / "li.csv").read_bytes()
    assert content.startswith(b'\xef\xbb\xbf"mode",') and content.count(b"\r\n") == 2


def test_a_cell_that_excel_would_cut_is_counted(tmp_path: Path) -> None:
    """Excel holds 32,767 UTF-16 units in a cell; a row with a longer one is written whole, and counted."""
    fitting = [row("a" * 32_767), row("谜" * 32_767), row("🦊" * 16_383)]
    rows_ = [*fitting, row("a" * 32_768), row("=" * 32_767), row("🦊" * 16_384)]
    assert write("csv", tmp_path, rows_).losses == {"long_cell": 3}
    assert read("csv", tmp_path / "li.csv") == rows_


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_a_file_of_somebody_elses_is_read(tmp_path: Path, encoding: str, newline: str) -> None:
    """Columns may be few and in any order, with either line end, with or without a byte order mark."""
    file = tmp_path / "rows.csv"
    lines = ["chosen,human_input", "Ho,Hi", "", '"a ""b"", c","d', 'e"']
    file.write_text(newline.join(lines), encoding=encoding, newline="")
    found = [good(one) for _, one in found_in("csv", file)]
    assert [(one.human_input, one.chosen, one.rejected) for one in found] == [
        ("Hi", "Ho", None),
        (f"d{newline}e", 'a "b", c', None),
    ]
    assert {(one.mode, one.system_prompt, tuple(one.context), one.weight) for one in found} == {("single", "", (), 1.0)}


def test_what_spreadsheet_programs_leave_empty_is_passed_over(tmp_path: Path) -> None:
    """Records and columns that are empty, and white space around a column's name, are nothing."""
    file = tmp_path / "rows.csv"
    file.write_text(" human_input ,chosen,,\tmode,\nHi,Ho,,,\n,,,,\nHi,Ho,?,,\n,,,,,,,\nHi,Ho,,multi,\n")
    (first, one), (bad, fault), (last, two) = found_in("csv", file)
    assert (first, bad, last) == (2, 4, 6)
    assert (good(one).mode, good(two).mode) == ("single", "multi")
    assert isinstance(fault, Fault) and "'?' stands in a column without a name" in str(fault)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("human_input,chosen\r\nHi,Ho".encode("utf-16"), "is UTF-16"),
        (b"\xfe\xff" + "human_input,chosen\r\nHi,Ho".encode("utf-16-be"), "is UTF-16"),
        (b"human_input,chosen\rHi,Ho\rHi,Ho", "line end of old Mac programs"),
        (b"human_input;chosen\nHi;Ho\nHi;Ho", "must be separated by commas"),
    ],
)
def test_other_kinds_of_text_are_told_how_to_be_saved(tmp_path: Path, content: bytes, reason: str) -> None:
    """What else spreadsheet programs save as text is one fault, with the name of the right kind."""
    file = tmp_path / "rows.csv"
    file.write_bytes(content)
    ((line, fault),) = found_in("csv", file)
    assert isinstance(fault, Fault) and line == 1
    assert reason in str(fault) and '"CSV UTF-8 (comma delimited)"' in str(fault)


def test_rows_have_the_lines_on_which_they_begin(tmp_path: Path) -> None:
    """A cell may go over several lines; the next row's line counts them."""
    write("csv", tmp_path, [row("a\nb\r\nc"), row(), row("\r")])
    assert [line for line, _ in found_in("csv", tmp_path / "li.csv")] == [2, 5, 6]
