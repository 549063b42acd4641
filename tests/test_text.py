"""Which texts can be stored."""

import sqlite3

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno import text
from tests.properties import unhurried


@pytest.mark.parametrize("good", ["a", " a ", "你好", "🦊", "a\nb", "\ufffd", "\ue000", "e\u0301", "\u202eabc", "{}"])
def test_what_can_be_seen_can_be_stored(good: str) -> None:
    """Any visible text of any script is taken as it is."""
    assert text.fault(good) is None


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ("", ("is empty", "不能为空")),
        (" \n\t\u3000", ("is empty", "不能为空")),
        ("a\0b", ("NUL", "NUL 字符")),
        ("\0", ("NUL", "NUL 字符")),
        ("a\ud83d", ("surrogate", "代理字符")),
        ("\udc00a", ("surrogate", "代理字符")),
    ],
)
def test_what_cannot_be_stored_is_named(bad: str, reason: tuple[str, str]) -> None:
    """A text without anything to see, with NUL or with half a character is refused, in two languages."""
    fault = text.fault(bad)
    assert fault is not None
    assert reason[0] in str(fault) and reason[1] in fault.detail
    assert str(fault).isascii()


@unhurried
@given(st.text(st.characters(), max_size=8))
def test_what_is_taken_survives_database_and_file(any_text: str) -> None:
    """Every text without a fault comes back from SQLite and from UTF-8 as it was."""
    if text.fault(any_text) is None:
        connection = sqlite3.connect(":memory:")
        assert connection.execute("SELECT ?", (any_text,)).fetchone() == (any_text,)
        connection.close()
        assert any_text.encode().decode() == any_text
