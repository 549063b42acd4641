"""What a run wrote down of its prompts: read where it is as it should be, else nothing."""

import json
from pathlib import Path

import pytest

from prefanno.training.held_out import FILE, Asked, Split, key, read

TURN = {"role": "assistant", "content": "hm"}


def _row(message: str) -> dict[str, object]:
    return {"system_prompt": "p", "context": [TURN], "message": message}


def test_what_was_written_is_read(tmp_path: Path) -> None:
    """The rows with persona and context, and the keys."""
    (tmp_path / FILE).write_text(json.dumps({"held_out": [_row("离？")], "trained": ["k"], "more": 1}))
    assert read(tmp_path) == Split([Asked("p", [{"role": "assistant", "content": "hm"}], "离？")], frozenset({"k"}))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"[]",
        b"5",
        b"{}",
        b'{"held_out": 5, "trained": []}',
        b'{"held_out": [], "trained": 5}',
        b'{"held_out": [{"message": "a"}], "trained": []}',
        b'{"held_out": [{"system_prompt": "", "context": [5], "message": "a"}], "trained": []}',
        b"[" * 100_000,
    ],
)
def test_an_odd_file_says_nothing(tmp_path: Path, content: bytes) -> None:
    """The script is the user's to change: whatever it wrote, a comparison goes on without it."""
    assert read(tmp_path) == Split([], frozenset())
    (tmp_path / FILE).write_bytes(content)
    assert read(tmp_path) == Split([], frozenset())


def test_a_prompt_is_known_by_what_is_asked() -> None:
    """Message and context make the key, the persona does not, nor the order in which a turn names its fields."""
    assert Asked("p", [], "a").key == Asked("q", [], "a").key == key("a", [])
    assert key("a", [TURN]) == key("a", [{"content": "hm", "role": "assistant"}])
    keys = {key("a", []), key("b", []), key("a", [TURN]), key("a", [TURN, TURN]), key("hm", [])}
    assert len(keys) == 5
