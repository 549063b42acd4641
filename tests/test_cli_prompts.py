"""`prefanno prompts import`, as a real process."""

from pathlib import Path

from prefanno.settings import Settings
from tests.looking import fetch
from tests.test_cli import _run

QUEUED = "SELECT message, state FROM prompts ORDER BY id"


def _file(folder: Path, name: str, content: str) -> str:
    (folder / name).write_text(content, encoding="utf-8")
    return str(folder / name)


def test_prompts_of_several_files_are_queued_in_their_order(settings: Settings, tmp_path: Path) -> None:
    """Text and JSON lines, each by its name; what is there already is left out."""
    files = _file(tmp_path, "a.txt", "一\n二\n"), _file(tmp_path, "b.jsonl", '"三"\n{"message": "一"}\n')
    done = _run(settings, "prompts", "import", *files)
    assert (done.stdout, done.stderr) == ("3 prompts queued, 1 were there already, or twice in the files\n", "")
    assert fetch(settings.database, QUEUED) == [("一", "waiting"), ("二", "waiting"), ("三", "waiting")]
    done = _run(settings, "prompts", "import", files[0])
    assert done.stdout == "0 prompts queued, 2 were there already, or twice in the files\n"


def test_with_a_bad_line_nothing_is_queued(settings: Settings, tmp_path: Path) -> None:
    """Each bad line is named with its file and its reason, and the exit code says that nothing was done."""
    file = _file(tmp_path, "a.jsonl", '"一"\n{}\n[\n')
    done = _run(settings, "prompts", "import", file)
    assert done.returncode == 1
    assert done.stdout == ""
    assert [line.partition(": ")[0] for line in done.stderr.splitlines()[:2]] == [f"{file}, line 2", f"{file}, line 3"]
    assert done.stderr.endswith("nothing is queued because of these\n")
    assert fetch(settings.database, QUEUED) == []


def test_an_unknown_character_is_refused_with_those_there_are(settings: Settings, tmp_path: Path) -> None:
    """The names that can be used are in the error."""
    done = _run(settings, "prompts", "import", "--character", "mia", _file(tmp_path, "a.txt", "一\n"))
    assert done.returncode == 1
    assert "there is no character mia; there are: li" in done.stderr
