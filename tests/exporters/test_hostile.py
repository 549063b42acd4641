"""Hostile files: every one is refused with short reasons, and reading it takes no more memory than a little.

Each group is read in a process of its own, whose peak is compared with that of one that reads a good file. A parquet
reader's own process counts, too.
"""

import gc
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from exporters.containers import LONGEST
from tests.exporters import hostile, hostile_parquet
from tests.exporters.hostile import GOOD, TEXT_FORMATS
from tests.exporters.written import found_in, row, write

ROOT = Path(__file__).parent.parent.parent
MORE = 300  # megabytes of memory over a good file's
GROUPS = ("longest", "encodings", "kinds", "values")

# They hold nothing at all, which a file of JSON lines, or a CSV's rows, may.
NOTHING = {"trl": {"empty", "a byte order mark", "empty lines"}, "csv": {"empty lines", "empty cells"}}
NOTHING["openai"] = NOTHING["trl"]

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="memory is measured and bounded on Linux only")


@pytest.fixture(scope="module")
def usual(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """The peak of a process that reads a good file, by format."""
    peaks = {}
    for form in hostile.FORMATS:
        folder = tmp_path_factory.mktemp("good")
        content = hostile_parquet.good() if form == "trl-parquet" else GOOD[form].encode()
        (folder / "good").write_bytes(content)
        result = _run("tests.exporters.hostile", form, "", "0", str(folder))
        assert result["files"]["good"]["rows"] > 0 == result["files"]["good"]["faults"]
        peaks[form] = result["peak"]
    return peaks


@linux
@pytest.mark.parametrize(
    "form",
    [form if form in ("sharegpt", "csv") else pytest.param(form, marks=pytest.mark.long) for form in TEXT_FORMATS],
)
@pytest.mark.parametrize("megabytes", [8, pytest.param(100, marks=pytest.mark.long)])
def test_what_never_ends_is_refused(tmp_path: Path, usual: dict[str, int], form: str, megabytes: int) -> None:
    """A line, a string, a cell, a list, a number, a nesting or a row without end does not fill the memory."""
    _check(form, _run("tests.exporters.hostile", form, "bombs", str(megabytes), str(tmp_path)), usual)


@linux
@pytest.mark.parametrize("form", TEXT_FORMATS)
@pytest.mark.parametrize("group", GROUPS)
def test_what_is_no_row_is_refused(tmp_path: Path, usual: dict[str, int], form: str, group: str) -> None:
    """Full rows, other encodings, other kinds of file, and values of every type in every place are faults."""
    _check(form, _run("tests.exporters.hostile", form, group, "1", str(tmp_path)), usual)


@linux
@pytest.mark.parametrize("megabytes", [160, pytest.param(1024, marks=pytest.mark.long)])
def test_small_parquet_files_that_unpack_to_much_are_refused(
    tmp_path: Path, usual: dict[str, int], megabytes: int
) -> None:
    """Pages, dictionaries, prefixes and nulls may not ask for more memory than the reader's process has."""
    _check("trl-parquet", _parquet(tmp_path, "bombs", megabytes), usual)


@linux
@pytest.mark.parametrize("megabytes", [40, pytest.param(400, marks=pytest.mark.long)])
def test_parquet_with_a_lying_index_is_refused(tmp_path: Path, usual: dict[str, int], megabytes: int) -> None:
    """The index at the end is read with as little memory."""
    _check("trl-parquet", _parquet(tmp_path, "footers", megabytes), usual)


@linux
@pytest.mark.parametrize("megabytes", [1, pytest.param(50, marks=pytest.mark.long)])
def test_broken_parquet_breaks_nothing(tmp_path: Path, usual: dict[str, int], megabytes: int) -> None:
    """Cut files are faults; with random bytes in them they are faults, or rows that the bytes left whole."""
    result = _parquet(tmp_path, "broken", megabytes)
    cut = {name: found for name, found in result["files"].items() if name.startswith("cut")}
    _check("trl-parquet", {"peak": result["peak"], "files": cut}, usual)
    assert [name for name, found in result["files"].items() if found["wrong"]] == []
    assert [name for name, found in result["files"].items() if not found["rows"] + found["faults"]] == []


@linux
def test_other_files_are_no_parquet(tmp_path: Path, usual: dict[str, int]) -> None:
    """Whatever is no parquet file is one fault."""
    _check("trl-parquet", _run("tests.exporters.hostile", "trl-parquet", "kinds", "1", str(tmp_path)), usual)


def test_a_parquet_reader_ends_with_its_caller(tmp_path: Path) -> None:
    """Whoever stops in the middle of a file, as a cancelled import does, leaves no process behind."""
    write("trl-parquet", tmp_path, [row("a" * 100_000)] * 20)  # more than a pipe holds
    found = found_in("trl-parquet", tmp_path / "li_preference.trl.parquet")
    next(found)
    (reader,) = (child for child in psutil.Process().children() if "parquet_rows.py" in " ".join(child.cmdline()))
    del found
    gc.collect()
    assert not reader.is_running()


def test_there_are_hundreds() -> None:
    """Control: so many different files are read, and they are what they shall be: large, or full, or small."""
    every = [
        (form, group, name)
        for form in TEXT_FORMATS
        for group in (hostile.bombs, hostile.longest, hostile.encodings, hostile.kinds, hostile.values)
        for name, _ in group(form, 1 << 20)
    ]
    assert len(every) > 200 and len(set(every)) == len(every)
    assert all(
        len(b"".join(blocks)) > 1 << 20 for name, blocks in hostile.bombs("trl", 1 << 20) if name in hostile.ENDLESS
    )
    full = [max(map(len, b"".join(blocks).split(b"\n"))) for _, blocks in hostile.longest("trl", 0)]
    assert all(LONGEST - 50_000 < length <= LONGEST for length in full)


def test_the_check_sees_memory_and_bad_reasons(usual: dict[str, int]) -> None:
    """Control: a peak over the bound, a row, silence and a long reason each fail the check."""
    fine = {"rows": 0, "faults": 1, "wrong": ""}
    _check("trl", {"peak": usual["trl"] + MORE, "files": {"a": fine}}, usual)
    for peak, changed in ((MORE + 1, {}), (0, {"rows": 1}), (0, {"faults": 0}), (0, {"wrong": "long"})):
        with pytest.raises(AssertionError):
            _check("trl", {"peak": usual["trl"] + peak, "files": {"a": fine | changed}}, usual)


def _parquet(folder: Path, group: str, megabytes: int) -> dict[str, Any]:
    files = folder / "files"
    files.mkdir()
    _program("tests.exporters.hostile_parquet", group, str(megabytes), str(files))
    return _run("tests.exporters.hostile", "trl-parquet", "", "0", str(files))


def _run(*command: str) -> dict[str, Any]:
    result: dict[str, Any] = json.loads(_program(*command))
    return result


def _program(*command: str) -> str:
    done = subprocess.run([sys.executable, "-m", *command], cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


def _check(form: str, result: dict[str, Any], usual: dict[str, int]) -> None:
    files = result["files"]
    assert [(name, found["wrong"]) for name, found in files.items() if found["wrong"]] == []
    assert [name for name, found in files.items() if found["rows"]] == []
    assert {name for name, found in files.items() if not found["faults"]} <= NOTHING.get(form, set())
    assert files
    more = result["peak"] - usual[form]
    print(f"{form}: {len(files)} files, {more} MB more than a good file takes")  # noqa: T201 - `pytest -rP` shows it
    assert more <= MORE
