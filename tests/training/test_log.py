"""A run's log as lines, however its bytes come."""

import random
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.training import log
from prefanno.training.log import Line, RunLog
from tests.properties import unhurried


def _write(folder: Path, printed: bytes) -> None:
    with (folder / "train.log").open("ab") as file:
        file.write(printed)


def _messages(lines: list[Line]) -> list[str]:
    return [line.message for line in lines]


def _read(folder: Path) -> list[Line]:
    """What a new reader finds in a log that is over."""
    return _rest(RunLog(folder), final=True)


def _rest(reader: RunLog, *, final: bool = False) -> list[Line]:
    """What the reader has not read yet."""
    lines = reader.poll(final)
    while not reader.at_end:
        lines += reader.poll(final)
    return lines


def test_lines_come_as_they_are_completed(tmp_path: Path) -> None:
    """A poll returns what was completed since the last one; an unfinished line waits for its end."""
    reader = RunLog(tmp_path)
    _write(tmp_path, b"one\ntwo\nthr")
    assert _messages(reader.poll()) == ["one", "two"]
    assert reader.poll() == []
    _write(tmp_path, b"ee\n\nfour\n")
    assert _messages(reader.poll()) == ["three", "", "four"]


def test_the_last_line_needs_no_end(tmp_path: Path) -> None:
    """When the run is over, what stands after the last newline is a line, once."""
    _write(tmp_path, b"one\nlast words")
    reader = RunLog(tmp_path)
    assert _messages(reader.poll()) == ["one"]
    assert _messages(reader.poll(final=True)) == ["last words"]
    assert reader.poll(final=True) == []


def test_a_run_that_printed_nothing_has_no_lines(tmp_path: Path) -> None:
    """Without a log, and with an empty one, there is nothing to read."""
    assert _read(tmp_path) == []
    _write(tmp_path, b"")
    assert _read(tmp_path) == []


def test_of_a_progress_bar_the_last_state_counts(tmp_path: Path) -> None:
    """A line that was written over with carriage returns is what was written last; CRLF ends a line like LF."""
    _write(tmp_path, b"10%\r50%\r100%\nplain\r\n\r\nover\rwritten\r\n")
    assert _messages(_read(tmp_path)) == ["100%", "plain", "", "written"]


def test_a_progress_bar_is_one_line_however_long_it_lasts(tmp_path: Path) -> None:
    """A million states that were written over are one line, and a bar that is under way says its last state."""
    _write(tmp_path, b"".join(b"\r%d of 1000000" % number for number in range(1_000_000)))
    reader = RunLog(tmp_path)
    while not reader.at_end:
        assert reader.poll() == []
    assert reader.progress == "999999 of 1000000"
    _write(tmp_path, b"\rdone\n")
    assert _messages(reader.poll()) == ["done"]
    assert reader.progress == ""


@pytest.mark.parametrize(
    ("printed", "shown"),
    [
        (b"\x1b[1;31mred\x1b[0m and plain", "red and plain"),
        (b"\x1b[2K\x1b[1Astep 1\x1b[K", "step 1"),
        (b"\x1b]0;a title\x07text \x1b]8;;http://localhost\x1b\\link\x1b]8;;\x1b\\", "text link"),
        (b"\x1b]0;a title without end", "0;a title without end"),
        (b"\x1b(Bcharset\x1b7saved\x1b8", "charsetsaved"),
        (b"bell\x07 and\x08 nul\x00 \xc2\x9b tab\tstays", "bell and nul  tab\tstays"),
        (b"\x1b", ""),
    ],
)
def test_escape_sequences_and_control_characters_are_left_out(tmp_path: Path, printed: bytes, shown: str) -> None:
    """A line is text; what would colour it, move a cursor or ring a bell stays in the file."""
    _write(tmp_path, printed + b"\n")
    assert _messages(_read(tmp_path)) == [shown]


def test_no_escape_sequence_takes_long(tmp_path: Path) -> None:
    """Text made of nothing but starts of escape sequences is read like any other."""
    for start in (b"\x1b", b"\x1b[", b"\x1b]", b"\x1bP0", b"\x1b[1;"):
        _write(tmp_path, start * (1 << 20) + b"\n")
    reader = RunLog(tmp_path)
    while not reader.at_end:
        reader.poll()
    assert reader.poll(final=True) == []


def test_characters_may_be_cut_by_a_poll(tmp_path: Path) -> None:
    """A character whose bytes arrive in two parts is read as one."""
    printed = "谜语 🦊 é\n".encode()
    for cut in range(1, len(printed)):
        folder = tmp_path / str(cut)
        folder.mkdir()
        reader = RunLog(folder)
        _write(folder, printed[:cut])
        early = reader.poll()
        _write(folder, printed[cut:])
        assert _messages(early + reader.poll()) == ["谜语 🦊 é"]


def test_what_is_no_utf8_is_shown_as_such(tmp_path: Path) -> None:
    """Bytes that are no characters become replacement characters, and the lines after them are whole."""
    _write(tmp_path, b"\xff\xfe\nfine\n\xe8\xb0")
    assert _messages(_read(tmp_path)) == ["\ufffd\ufffd", "fine", "\ufffd"]


def test_a_line_cannot_fill_the_memory(tmp_path: Path) -> None:
    """Output without newlines is split into lines of at most LONGEST characters, and none of it is lost."""
    printed = "x" * (3 * log.LONGEST + 7)
    _write(tmp_path, printed.encode())
    lines = _messages(_read(tmp_path))
    assert "".join(lines) == printed
    assert max(map(len, lines)) <= log.LONGEST


@pytest.mark.parametrize("step", [1000, log.LONGEST - 1, log.LONGEST, log.LONGEST + 1, 300_000])
def test_reading_again_gives_the_same_lines(tmp_path: Path, step: int) -> None:
    """A reader that follows the log as it grows and one that reads it all afterwards find the same lines."""
    chance = random.Random(0)
    words = ["word ", "谜", "\n", "\r", "y" * 997, "z" * 80_001]
    printed = "".join(chance.choices(words, weights=[50, 50, 5, 2, 20, 2], k=400)).encode()
    follower, followed = RunLog(tmp_path), []
    for start in range(0, len(printed), step):
        _write(tmp_path, printed[start : start + step])
        followed += _rest(follower)
    followed += _rest(follower, final=True)
    assert _read(tmp_path) == followed


@unhurried
@given(
    st.lists(st.sampled_from([b"a", b"\n", b"\r", b"\xe8\xb0\x9c", b"\xe8", b"\xff", b"b\0"]), max_size=20), st.data()
)
def test_lines_do_not_depend_on_when_they_are_read(
    tmp_path_factory: pytest.TempPathFactory, pieces: list[bytes], data: st.DataObject
) -> None:
    """Wherever the log stood at each poll, the lines are those of the whole text."""
    folder, printed = tmp_path_factory.mktemp("run"), b"".join(pieces)
    follower, lines, position = RunLog(folder), [], 0
    while position < len(printed):
        size = data.draw(st.integers(1, len(printed) - position))
        _write(folder, printed[position : position + size])
        lines += follower.poll()
        position += size
    lines += follower.poll(final=True)
    *ended, rest = printed.decode(errors="replace").split("\n")
    expected = [text.rstrip("\r").rpartition("\r")[2] for text in [*ended, *filter(None, [rest])]]
    assert _messages(lines) == [text.replace("\0", "") for text in expected]
    for number, line in enumerate(lines, 1):
        assert RunLog(folder, line.next).poll(final=True) == lines[number:], "what a reader gets who had these"


def test_only_the_last_lines_are_kept(tmp_path: Path) -> None:
    """A reader keeps the last thousand lines for those who come later, and counts all."""
    _write(tmp_path, b"".join(b"%d\n" % number for number in range(2 * log.KEPT)))
    reader = RunLog(tmp_path)
    new = reader.poll()
    reader.keep(new)
    assert len(new) == reader.count == 2 * log.KEPT
    assert list(reader.lines) == new[-log.KEPT :]


@pytest.mark.parametrize("line", [b"line %d\n", b"%d " + b"wide " * 5000 + b"\n"])
def test_of_a_log_that_is_taken_up_the_last_lines_are_read(tmp_path: Path, line: bytes) -> None:
    """Who skips reads at least the last thousand lines, as who reads all, and has counted the ones before."""
    _write(tmp_path, b"".join(line % number for number in range(1500)))
    all_lines = []
    reader = RunLog(tmp_path)
    while not reader.at_end:
        all_lines += reader.poll()
    late, found = RunLog(tmp_path), []
    late.skip()
    skipped = late.count
    while not late.at_end:
        found += late.poll()
    assert skipped > 0
    assert found == all_lines[len(all_lines) - len(found) :]
    assert len(found) >= log.KEPT


@pytest.mark.parametrize("printed", [b"", b"no end", b"one\ntwo", b"x" * 20_000_000])
def test_a_log_without_many_lines_can_be_taken_up(tmp_path: Path, printed: bytes) -> None:
    """A log with few lines is read from its start, and so is one without any."""
    assert RunLog(tmp_path).skip() is None  # type: ignore[func-returns-value]
    _write(tmp_path, printed)
    reader = RunLog(tmp_path)
    reader.skip()
    found = _messages(_rest(reader, final=True))
    assert "\n".join(found) == printed.decode() or "".join(found) == printed.decode()


def test_a_log_that_is_taken_up_begins_with_a_line(tmp_path: Path) -> None:
    """Where the last line is longer than all that is kept of a log, it is read from where it began."""
    _write(tmp_path, b"one\ntwo\n" + b"".join(b"\r%d of 9999999" % number for number in range(1_200_000)))
    assert (tmp_path / "train.log").stat().st_size > log.KEPT * log.LONGEST
    reader = RunLog(tmp_path)
    reader.skip()
    assert (reader.kept_to, reader.count) == (8, 2)
    while not reader.at_end:
        assert reader.poll() == []
    assert reader.progress == "1199999 of 9999999"


def test_times_that_are_none_are_passed_over(tmp_path: Path) -> None:
    """What somebody else wrote among the times costs the lines nothing."""
    _write(tmp_path, b"one\ntwo\n")
    (tmp_path / "train.times").write_text("junk\n0 1700000000\n1 2 3\n4 999999999999999\n6 -5\n")
    lines = _read(tmp_path)
    assert _messages(lines) == ["one", "two"]
    assert datetime.fromisoformat(lines[0].time).timestamp() == 1_700_000_000


def test_an_offset_beyond_any_file_reads_nothing(tmp_path: Path) -> None:
    """Whatever offset a client made up, there is nothing behind the end."""
    _write(tmp_path, b"one\n")
    reader = RunLog(tmp_path, 10**18 - 1)
    assert reader.poll(final=True) == [] and reader.at_end


def test_a_part_of_a_log_is_read(tmp_path: Path) -> None:
    """Who had the lines up to an offset gets those from there up to another one."""
    _write(tmp_path, b"one\ntwo\nthree\nfour\n")
    one, _, three, _ = _read(tmp_path)
    reader = RunLog(tmp_path, one.next)
    assert _messages(reader.poll(final=True, until=three.next)) == ["two", "three"]
    assert reader.at_end


def test_a_line_has_the_time_at_which_it_began(tmp_path: Path) -> None:
    """train.times says from which offset on the log grew at which second; a line has the time of its first byte."""
    _write(tmp_path, b"one\ntwo starts here, and ends later\nthree\n")
    seconds = [1_700_000_000, 1_700_000_005, 1_700_000_009]
    (tmp_path / "train.times").write_text(f"0 {seconds[0]}\n10 {seconds[1]}\n36 {seconds[2]}\n")
    times = [datetime.fromisoformat(line.time).timestamp() for line in _read(tmp_path)]
    assert times == [seconds[0], seconds[0], seconds[2]]
    assert _read(tmp_path)[0].time == datetime.fromtimestamp(seconds[0]).astimezone().strftime("%Y-%m-%dT%H:%M:%S")


def test_times_are_read_as_they_are_written(tmp_path: Path) -> None:
    """Each poll knows the times written until then; half a note of a time is read when it is whole."""
    reader = RunLog(tmp_path)
    (tmp_path / "train.times").write_text("0 1700000000\n4 17")
    _write(tmp_path, b"one\n")
    first = reader.poll()
    with (tmp_path / "train.times").open("a") as file:
        file.write("00000005\n")
    _write(tmp_path, b"two\n")
    lines = first + reader.poll()
    assert [datetime.fromisoformat(line.time).timestamp() for line in lines] == [1_700_000_000, 1_700_000_005]
    assert _read(tmp_path) == lines
