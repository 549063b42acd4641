"""Files of prompts."""

import json
from pathlib import Path

import pytest

from prefanno import prompt_files
from prefanno.prompts import NewPrompt
from prefanno.rows import Fault

TURNS = [{"role": "user", "content": "A book."}, {"role": "assistant", "content": "Which one?"}]


def read(file: Path, content: str | bytes, form: str | None = None) -> list[tuple[int, NewPrompt | str]]:
    """What the file holds, faults as their texts."""
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    found = prompt_files.read(file, form)
    return [(line, str(one) if isinstance(one, Fault) else one) for line, one in found]


def test_each_line_of_text_is_a_prompt(tmp_path: Path) -> None:
    """Blank lines are passed over; a mark at the beginning, and Windows' line ends, are no part of it."""
    content = "\N{ZERO WIDTH NO-BREAK SPACE}你是谁？\r\n\r\n  Do you dream?  \n{not json}"
    assert read(tmp_path / "a.txt", content) == [
        (1, NewPrompt("你是谁？")),
        (3, NewPrompt("Do you dream?")),
        (4, NewPrompt("{not json}")),
    ]


def test_lines_of_json_may_have_earlier_turns(tmp_path: Path) -> None:
    """A string, or an object with a message and perhaps a context."""
    lines = ["one", {"message": "two"}, {"message": "three", "context": TURNS}, {"message": "four", "context": None}]
    content = "\n".join(json.dumps(line) for line in lines)
    assert [one for _, one in read(tmp_path / "a.jsonl", content)] == [
        NewPrompt("one"),
        NewPrompt("two", []),
        NewPrompt("three", TURNS),  # type: ignore[arg-type]
        NewPrompt("four", []),
    ]
    assert read(tmp_path / "a.txt", '"one"', "jsonl") == [(1, NewPrompt("one"))]
    assert read(tmp_path / "a.jsonl", '"one"', "text") == [(1, NewPrompt('"one"'))]


@pytest.mark.parametrize(
    ("line", "fault"),
    [
        ("{", "is not JSON"),
        ("[" * 100_000, "is not JSON"),
        ("[1]", "must be a string or an object"),
        ('{"message": 1}', "must have a string as `message`"),
        ('{"prompt": "one"}', "has an unknown field prompt"),
        ('{"message": "one", "id": 3}', "has an unknown field id"),
        ('{"message": "one", "context": "two"}', "`context` must be a list of turns"),
        ('{"message": "one", "context": [{"role": "system", "content": "two"}]}', "`context` must be a list of turns"),
        ('{"message": "one", "context": [{"role": [], "content": "two"}]}', "`context` must be a list of turns"),
        ('{"message": "one", "context": [{"role": "user", "content": "two"}]}', "must alternate"),
        ('{"message": " "}', "`message` is empty"),
        ('"\\u0000"', "`message` holds the NUL character"),
        ('"\\ud800"', "`message` holds half a UTF-16 surrogate pair"),
        ('{"message": "one", "context": [{"role": "assistant", "content": ""}]}', "`content` is empty"),
        (b'"\xff"', "is not UTF-8"),
    ],
    ids=str,
)
def test_a_bad_line_is_named_and_the_others_are_read(tmp_path: Path, line: str | bytes, fault: str) -> None:
    """Each bad line has its place and its reason; the good ones around it are not lost."""
    raw = line if isinstance(line, bytes) else line.encode()
    first, (number, found), last = read(tmp_path / "a.jsonl", b'"one"\n' + raw + b'\n"two"\n')
    assert (first, last) == ((1, NewPrompt("one")), (3, NewPrompt("two")))
    assert number == 2
    assert fault in str(found)


def test_a_line_without_an_end_is_not_read_into_memory(tmp_path: Path) -> None:
    """A line longer than a request may be ends the reading."""
    found = read(tmp_path / "a.txt", "one\n" + "x" * (prompt_files.LONGEST + 5) + "\ntwo\n")
    assert found[0] == (1, NewPrompt("one"))
    assert len(found) == 2
    assert "is longer than" in str(found[1][1])
