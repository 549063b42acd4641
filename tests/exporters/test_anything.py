"""Arbitrary bytes, JSON and cells: a reader gives rows and reasons, whatever it is given."""

import csv
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from hypothesis import find, given, settings
from hypothesis import strategies as st

from exporters import openai, sharegpt, trl
from exporters.spreadsheet import COLUMNS
from exporters.values import HEAVIEST, rows
from prefanno.rows import Fault, Row
from tests.exporters.hostile import GOOD, TEXT_FORMATS, placed, places, wrong_with
from tests.exporters.written import found_in
from tests.properties import unhurried

KEYS = {
    "sharegpt": ("conversations", "from", "value", "chosen", "rejected", "system", "kto_tag"),
    "trl": ("prompt", "chosen", "rejected", "messages", "completion", "label", "role", "content", "rejected_content"),
    "openai": ("input", "messages", "preferred_output", "non_preferred_output", "role", "content"),
}
OWN = ("mode", "chosen_thinking", "rejected_thinking", "created_at", "weight")
WORDS = (
    "human",
    "gpt",
    "system",
    "user",
    "assistant",
    "single",
    "multi",
    "2026-01-27",
    "<think>\na\n</think>\n\nb",
    "",
)
# Any character, half a surrogate pair too.
STRINGS = st.sampled_from(WORDS) | st.text(st.characters(codec=None, exclude_categories=()), max_size=50)
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(10**19), 1 << 64])


def _json(keys: tuple[str, ...]) -> st.SearchStrategy[Any]:
    names = st.sampled_from(keys + OWN) | STRINGS
    return st.recursive(
        st.none() | st.booleans() | NUMBERS | STRINGS,
        lambda inner: st.lists(inner, max_size=4) | st.dictionaries(names, inner, max_size=6),
        max_leaves=20,
    )


@st.composite
def _entries(draw: st.DrawFn, form: str) -> Any:
    """Anything, or a good entry with anything in up to two places."""
    anything = _json(KEYS[form])
    if draw(st.booleans()):
        return draw(anything)
    loaded = json.loads(GOOD[form])
    entry = (loaded[0] if form == "sharegpt" else loaded) | draw(st.sampled_from(({}, dict.fromkeys(OWN))))
    for _ in range(draw(st.integers(0, 2))):
        entry = placed(entry, draw(st.sampled_from(list(places(entry)))), draw(anything))
    return entry


@pytest.mark.parametrize("form", KEYS)
def test_both_are_made(form: str) -> None:
    """Control: what is drawn is a row at times, and at times it is not."""
    for wanted in (True, False):
        find(_entries(form), lambda entry, wanted=wanted: isinstance(_read(form, entry), Row) is wanted)  # type: ignore[misc]


def _read(form: str, entry: Any) -> Row | Fault:
    ((_, found),) = rows(iter([(1, entry)]), {"sharegpt": sharegpt._row, "trl": trl.row, "openai": openai._row}[form])
    return found


@unhurried
@given(st.data())
@pytest.mark.parametrize("form", KEYS)
def test_any_json_is_a_row_or_a_reason(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """Each entry gives one row or fault, on its line; JSON lines that begin as a list are one fault."""
    entries = data.draw(st.lists(_entries(form), max_size=4))
    file = tmp_path_factory.mktemp("files") / "rows"
    lines = [json.dumps(entry) for entry in entries]
    file.write_text("\n".join(lines) if form != "sharegpt" else f"[{','.join(lines)}]")
    found = [one for _, one in _sound(form, file)]
    assert len(found) == (1 if form != "sharegpt" and lines and lines[0].startswith("[") else len(entries))


@unhurried
@given(st.data())
@pytest.mark.parametrize("form", TEXT_FORMATS)
def test_any_bytes_are_rows_or_reasons(
    tmp_path_factory: pytest.TempPathFactory, form: str, data: st.DataObject
) -> None:
    """Pieces of the format and arbitrary bytes, in any order."""
    pieces = (b"[", b"]", b"{", b"}", b",", b"\n", b"\r", b'"', b"\\", b'"a":', b"1", b"\xef\xbb\xbf", b"\xff", b"\0")
    header = b"human_input,chosen\n" if form == "csv" else b""
    content = b"".join(data.draw(st.lists(st.sampled_from(pieces) | st.binary(max_size=20), max_size=30)))
    file = tmp_path_factory.mktemp("files") / "rows"
    file.write_bytes(data.draw(st.sampled_from((header, b""))) + content)
    list(_sound(form, file))


@unhurried
@given(
    st.lists(st.sampled_from(COLUMNS), min_size=1, max_size=10),
    st.lists(st.lists(st.sampled_from((*WORDS, "[]", "0", "=1")) | st.text(max_size=20), max_size=10), max_size=5),
)
def test_any_cells_are_rows_or_reasons(
    tmp_path_factory: pytest.TempPathFactory, header: list[str], records: list[list[str]]
) -> None:
    """Any columns, and records of any length with any text in them."""
    file = tmp_path_factory.mktemp("files") / "rows.csv"
    with file.open("w", encoding="utf-8", newline="", errors="surrogatepass") as target:
        csv.writer(target).writerows([header, *records])
    list(_sound("csv", file))


@settings(unhurried, max_examples=10)  # each file is read by a process of its own
@given(st.binary(max_size=300), st.sampled_from((b"", b"PAR1")))
def test_any_bytes_are_no_parquet(tmp_path_factory: pytest.TempPathFactory, content: bytes, magic: bytes) -> None:
    """There is no row in them."""
    file = tmp_path_factory.mktemp("files") / "rows.parquet"
    file.write_bytes(magic + content + magic)
    assert [isinstance(one, Fault) for _, one in _sound("trl-parquet", file)] == [True]


@pytest.mark.parametrize("form", [*TEXT_FORMATS, "trl-parquet"])
def test_a_file_that_is_none_is_an_error(tmp_path: Path, form: str) -> None:
    """What cannot be opened is not a bad row: the caller says so."""
    for path in (tmp_path, tmp_path / "missing"):
        with pytest.raises(OSError, match="directory"):
            list(found_in(form, path))


def _sound(form: str, file: Path) -> list[tuple[int, Row | Fault]]:
    """What the reader finds, each with a line in the file, each row of the right types, each reason fit to be shown."""
    found = list(found_in(form, file))
    last = max(1, file.read_bytes().count(b"\n") + 1)
    for line, one in found:
        assert 1 <= line <= last
        if isinstance(one, Fault):
            assert wrong_with(one) == ""
            continue
        texts = (one.system_prompt, one.human_input, *(turn["content"] for turn in one.context))
        sides = (one.chosen, one.chosen_thinking, one.rejected, one.rejected_thinking)
        assert all(isinstance(text, str) for text in texts)
        assert all(isinstance(text, str | None) for text in sides)
        roles = [turn["role"] for turn in one.context]
        assert set(roles) <= {"user", "assistant"} and roles[-1:] != ["user"]
        assert all(role != after for role, after in pairwise(roles))
        assert one.mode in ("single", "multi") and 0 < one.weight <= HEAVIEST and one.created_at.tzinfo is None
    return found
