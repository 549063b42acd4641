"""`prefanno export` and `prefanno import`, as real processes: what they write, what they print, how they end."""

import contextlib
import json
import os
import subprocess
from pathlib import Path
from typing import Any, BinaryIO, cast

import pytest

from prefanno import snapshot
from prefanno.rows import formats
from prefanno.settings import Settings
from tests.test_cli import PAIR, PROGRAM, Done, _add, _environment, _given, _here, _refusal, _run
from tests.test_cli_train import GOOD, _script

CAN = formats()
TALK = {"conversations": [*PAIR["conversations"], PAIR["chosen"]]}
GONE = "{} annotations added, {} were there already, or twice in the files\n"
REFUSED = "nothing is stored because of the bad rows; --skip-bad stores the others"
WOULD = "{} would be added, {} were there already, or twice in the files\n"


def _pair(said: str, **changes: Any) -> dict[str, Any]:
    return {**PAIR, "conversations": [{"from": "human", "value": said}], **changes}


def _file(folder: Path, name: str, *entries: object) -> str:
    """A file with an entry a line, the first in line 2."""
    (folder / name).write_text("[\n" + ",\n".join(map(json.dumps, entries)) + "\n]\n", encoding="utf-8")
    return str(folder / name)


def _exported(settings: Settings, folder: Path, *options: str) -> dict[str, bytes]:
    """The files of an export to this folder."""
    assert _here(settings, "export", "--to", str(folder), *options).stderr == ""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def _said(settings: Settings, folder: Path) -> list[str]:
    """What humans said in the pairs there are."""
    entries = json.loads(_exported(settings, folder)["li_preference.json"])
    return [entry["conversations"][-1]["value"] for entry in entries]


def test_import_and_export_count_their_rows(settings: Settings, tmp_path: Path) -> None:
    """What was imported is exported, with its manifest; a second import finds it there already."""
    done = _add(settings, PAIR, {**PAIR, "system": "Be Li."}, PAIR)
    near = "1 near duplicates (but for case, punctuation, white space) were not left out; --skip-near leaves them out\n"
    assert done.stdout == near + GONE.format(2, 1)
    assert done.stderr.endswith("rows.json, line 1: near duplicate\n")
    again = _add(settings, PAIR)
    assert (again.stdout, again.stderr) == (GONE.format(0, 1), "")
    done = _run(settings, "export")
    files = [settings.data / f"li_{name}.json" for name in ("preference", "roleplay", "unpaired")]
    counted = "".join(f"{count} rows in {file}\n" for count, file in zip((2, 0, 0), files, strict=True))
    assert done.stdout == f"{counted}manifest: {settings.data / 'li.sharegpt.manifest.json'}\n"
    assert len(json.loads(files[0].read_text(encoding="utf-8"))) == 2
    assert _exported(settings, tmp_path / "elsewhere")[files[0].name] == files[0].read_bytes()


def test_a_pipe_is_refused(settings: Settings, tmp_path: Path) -> None:
    """What can be read only once is named before anything waits for it, with the cure."""
    os.mkfifo(tmp_path / "pipe")
    line = _refusal(_run(settings, "import", str(tmp_path / "pipe")))
    assert line.endswith(f"{tmp_path}/pipe is no regular file, such as a pipe; save it to a file first")


def test_the_name_of_a_file_leaves_the_terminal_as_it_is(settings: Settings, tmp_path: Path) -> None:
    """Signs that a terminal would obey, or that cannot be encoded, are not repeated beside a bad row."""
    file = _file(tmp_path, "\x1b[31m\udcff.json", {})
    done = _run(settings, "import", file)
    assert done.returncode == 1 and f"{tmp_path}/\ufffd[31m\ufffd.json, line 2: " in done.stderr


@pytest.mark.parametrize("form", [form for form, can in CAN.items() if can["export"]])
def test_each_format_goes_out_and_comes_back(settings: Settings, tmp_path: Path, form: str) -> None:
    """The files of each format have a manifest that fits; read again, nothing in them is new."""
    _given(settings, _pair("1"), _pair("2", mode="multi"), _pair("3", chosen_thinking="hm"))
    _exported(settings, tmp_path / "out", "--format", form)
    manifest = snapshot.verified(tmp_path / "out")
    assert manifest.format == form
    files = [str(tmp_path / "out" / name) for name, file in manifest.files.items() if file.rows]
    lost = "mode" in manifest.losses  # then the conversation comes back as a single pair
    done = _run(settings, "import", "--format", form, "--dry-run", *files)
    rows = sum(manifest.files[Path(name).name].rows for name in files)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, WOULD.format(int(lost), rows - int(lost)).strip())


def test_what_a_format_cannot_hold_is_said(settings: Settings, tmp_path: Path) -> None:
    """Each loss is a line, with the number of rows."""
    _given(settings, PAIR, TALK)
    done = _run(settings, "export", "--format", "openai", "--to", str(tmp_path / "out"))
    assert done.stdout.splitlines() == [
        f"1 rows in {tmp_path / 'out' / 'li_preference.openai.jsonl'}",
        "the format openai cannot hold `created_at`: 1 rows (see docs/exporters.md)",
        "the format openai cannot hold `conversation`: 1 rows (see docs/exporters.md)",
        f"manifest: {tmp_path / 'out' / 'li.openai.manifest.json'}",
    ]


def test_export_needs_a_database(unmade: Settings) -> None:
    """Without a database, `export` says how to get one, and makes nothing."""
    line = _refusal(_run(unmade, "export"))
    assert line == f"prefanno: no up-to-date database at {unmade.database}; run `prefanno db upgrade` first"
    assert not unmade.home.exists()


def test_an_unknown_format_is_refused_by_name(settings: Settings, tmp_path: Path) -> None:
    """A format that nobody installed is named, together with those there are; so is one that cannot go this way."""
    _here(settings, "db", "upgrade")
    for form in ("parquet", "labelstudio"):
        line = _refusal(_run(settings, "export", "--format", form, "--to", str(tmp_path / "out")))
        assert line.startswith(f"prefanno: bad input: there is no format {form} to export; there are: ")
        assert line.endswith("csv, openai, sharegpt, trl, trl-parquet")
    line = _refusal(_run(settings, "import", "--format", "parquet", _file(tmp_path, "rows.json")))
    assert "there is no format parquet to import" in line and "labelstudio" in line
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["export", "import"])
def test_an_unknown_character_is_refused_by_name(settings: Settings, tmp_path: Path, command: str) -> None:
    """A character that is not there is named, together with those there are."""
    _here(settings, "db", "upgrade")
    files = [_file(tmp_path, "rows.json", PAIR)] if command == "import" else []
    line = _refusal(_run(settings, command, "--character", "mei", *files))
    assert line == "prefanno: bad input: there is no character mei; there are: li"


def test_an_export_that_cannot_be_written_is_one_line(settings: Settings, tmp_path: Path) -> None:
    """A folder that cannot be made or written to is named with its reason, and so is what lies in a file's place."""
    _here(settings, "db", "upgrade")
    (tmp_path / "file").write_text("in the way")
    (tmp_path / "out" / "li_unpaired.json").mkdir(parents=True)
    for folder, reason in (
        (tmp_path / "file" / "below", "Not a directory"),
        (tmp_path / "out", "li_unpaired.json is a folder"),
        (Path("/sys"), ""),  # not even root can write there
    ):
        line = _refusal(_run(settings, "export", "--to", str(folder)))
        assert line.startswith(f"prefanno: cannot write to {folder}: {reason}") and ".export-" not in line
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["li_unpaired.json"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        ({"conversations": []}, "conversations is empty"),
        ({**PAIR, "chosen": {"from": "gpt", "value": " "}}, "chosen is empty"),
        ({**PAIR, "conversations": [{"from": "human", "value": 5}]}, "conversations.0.value must be a string"),
        ({**PAIR, "mode": "other"}, "mode must be single or multi, not 'other'"),
        ({"conversations": PAIR["conversations"], "mode": "single"}, "gpt"),
        ("text", "the row must be a JSON object"),
    ],
    ids=["no turns", "blank", "a number", "mode", "no reply", "no object"],
)
def test_a_bad_row_is_named_in_one_line(settings: Settings, tmp_path: Path, bad: object, reason: str) -> None:
    """A file with a bad row is refused as a whole, naming file, line and reason."""
    file = _file(tmp_path, "rows.json", PAIR, bad)
    done = _run(settings, "import", file)
    assert (done.returncode, done.stdout) == (1, GONE.format(0, 0))
    line, last = done.stderr.splitlines()
    assert line.startswith(f"{file}, line 3: ") and reason in line
    assert last == REFUSED
    assert _add(settings, PAIR).stdout == GONE.format(1, 0)


def test_every_bad_row_of_every_file_is_named(settings: Settings, tmp_path: Path) -> None:
    """Of several files all bad rows are counted, twenty named; with --skip-bad the others are stored."""
    one = _file(tmp_path, "one.json", _pair("1"), 5, _pair("2"))
    two = _file(tmp_path, "two.json", *[{}] * 1001, _pair("3"))
    done = _run(settings, "import", one, two)
    lines = done.stderr.splitlines()
    assert (done.returncode, done.stdout) == (1, GONE.format(0, 0))
    assert lines[0].startswith(f"{one}, line 3: ") and lines[1].startswith(f"{two}, line 2: ")
    assert lines[19].startswith(f"{two}, line 20: ") and lines[20] == "and 982 bad rows more"
    assert "--format" not in done.stderr
    skipping = _run(settings, "import", "--skip-bad", one, two)
    assert (skipping.returncode, skipping.stdout) == (0, GONE.format(3, 0))
    assert skipping.stderr == done.stderr.removesuffix(f"{REFUSED}\n") != done.stderr
    assert _said(settings, tmp_path / "out") == ["1", "2", "3"]


def test_a_file_of_another_format_asks_about_it(settings: Settings, tmp_path: Path) -> None:
    """Where no row could be read, --format may be wrong; where one could, it is not asked about."""
    file = _file(tmp_path, "rows.json", {"prompt": "Hi"}, 5)
    asked = "read as sharegpt; is --format right?"
    assert _run(settings, "import", file).stderr.splitlines()[2] == asked
    one = _file(tmp_path, "one.json", {"prompt": "Hi"}, PAIR)
    assert asked not in _run(settings, "import", one).stderr


def test_a_dry_run_stores_nothing(settings: Settings, tmp_path: Path) -> None:
    """It says what would be added, exit code 1 and nothing where a row is bad, and the database stays as it was."""
    good, bad = _file(tmp_path, "good.json", _pair("1"), _pair("1")), _file(tmp_path, "bad.json", _pair("2"), 5)
    done = _run(settings, "import", "--dry-run", good)
    assert (done.returncode, done.stdout, done.stderr) == (0, WOULD.format(1, 1), "")
    done = _run(settings, "import", "--dry-run", good, bad)
    assert (done.returncode, done.stdout) == (1, WOULD.format(0, 1)) and f"{bad}, line 3: " in done.stderr
    done = _run(settings, "import", "--dry-run", "--skip-bad", good, bad)
    assert (done.returncode, done.stdout) == (0, WOULD.format(2, 1))
    assert _said(settings, tmp_path / "out") == []


def test_near_duplicates_are_named_and_can_be_left_out(settings: Settings, tmp_path: Path) -> None:
    """Each is named by file and line; with --skip-near the first of them is stored."""
    file = _file(tmp_path, "rows.json", _pair("Who are you?"), _pair("who are you"), _pair("WHO — are you!"))
    named = "".join(f"{file}, line {line}: near duplicate\n" for line in (3, 4))
    near = "2 near duplicates (but for case, punctuation, white space) were "
    done = _run(settings, "import", "--skip-near", file)
    assert (done.returncode, done.stdout, done.stderr) == (0, f"{near}left out\n{GONE.format(1, 0)}", named)
    assert _said(settings, tmp_path / "out") == ["Who are you?"]
    done = _run(settings, "import", file)
    kept = f"{near}not left out; --skip-near leaves them out\n"
    assert (done.returncode, done.stdout, done.stderr) == (0, kept + GONE.format(2, 1), named)


def _trained(settings: Settings) -> Path:
    """Import a pair, train a run, and import another; where the run's data lie."""
    _given(settings, _pair("first"))
    _here(settings, "export")
    assert _run(settings, "train", PREFANNO_TRAIN_SCRIPT=_script(settings, GOOD)).returncode == 0
    _given(settings, _pair("second"))
    return settings.runs / "1" / "data"


def test_the_data_of_a_run_are_given_back(settings: Settings, tmp_path: Path) -> None:
    """They are those it was trained on, byte by byte, whatever was added since, and it is said what they are."""
    data = _trained(settings)
    done = _run(settings, "export", "--run", "1", "--to", str(tmp_path / "given"))
    assert done.returncode == 0 and done.stdout.startswith(f"1 rows in {tmp_path / 'given' / 'li_preference.json'}\n")
    given = {path.name: path.read_bytes() for path in (tmp_path / "given").iterdir()}
    assert given == {path.name: path.read_bytes() for path in data.iterdir()}
    assert snapshot.verified(tmp_path / "given").files["li_preference.json"].rows == 1
    assert _said(settings, tmp_path / "now") == ["first", "second"]  # control


def test_data_of_a_run_that_were_changed_are_refused(settings: Settings, tmp_path: Path) -> None:
    """The file that is another, or is gone, is named; nothing is written."""
    data = _trained(settings)
    file = data / "li_preference.json"
    file.write_bytes(file.read_bytes().replace(b"first", b"later"))
    given = ("export", "--run", "1", "--to", str(tmp_path / "given"))
    assert _refusal(_run(settings, *given)) == f"prefanno: {file} was changed; it is not what was exported"
    file.unlink()
    assert _refusal(_run(settings, *given)) == f"prefanno: {file} is missing; it is not what was exported"
    assert not (tmp_path / "given").exists()


def test_a_run_is_asked_for_with_a_folder(settings: Settings, tmp_path: Path) -> None:
    """--run needs --to, and a run of this database."""
    _here(settings, "db", "upgrade")
    done = _run(settings, "export", "--run", "1")
    assert done.returncode == 2 and "--run needs --to" in done.stderr
    assert _run(settings, "export", "--run", "0", "--to", str(tmp_path / "x")).returncode == 2
    for option, value in (("--format", "sharegpt"), ("--character", "li")):
        done = _run(settings, "export", "--run", "1", "--to", str(tmp_path / "x"), option, value)
        assert done.returncode == 2 and "with neither --format nor --character" in done.stderr
    line = _refusal(_run(settings, "export", "--run", "7", "--to", str(tmp_path / "x")))
    assert line == f"prefanno: there is no run 7 in {settings.database}"
    assert not (tmp_path / "x").exists()


def test_the_data_of_another_databases_run_are_not_given(settings: Settings, tmp_path: Path) -> None:
    """A folder of the same number is not enough: it may be from before somebody changed the database."""
    folder = _trained(settings).parent
    mark = folder / "started"
    changes = (
        lambda: mark.write_text("2020-01-02T03:04:05.000006"),
        mark.unlink,
        lambda: folder.rename(folder.with_name("1-before-1800000000")),
    )
    for change in changes:
        change()
        line = _refusal(_run(settings, "export", "--run", "1", "--to", str(tmp_path / "x")))
        assert line == f"prefanno: {folder} is missing, or of another database's run 1"
    assert not (tmp_path / "x").exists()


def _read(terminal: BinaryIO) -> str:
    """All that was written to it: one read may give a part of it."""
    found = b""
    with contextlib.suppress(OSError):  # Linux says so where nobody writes any more
        while part := terminal.read(100_000):
            found += part
    return found.decode()


@pytest.mark.parametrize("command", ["export", "import"])
def test_a_terminal_shows_how_far_it_is(settings: Settings, tmp_path: Path, command: str) -> None:
    """On a terminal rows are counted while they pass; what is printed at the end is the same as elsewhere."""
    file = _file(tmp_path, "rows.json", *(_pair(str(number)) for number in range(600)))
    if command == "export":
        _here(settings, "import", file)
    ours, theirs = os.openpty()
    with os.fdopen(ours, "rb", buffering=0) as terminal:
        arguments = ["import", file] if command == "import" else ["export"]
        with subprocess.Popen(
            [*PROGRAM, *arguments], env=_environment(settings), stdout=subprocess.PIPE, stderr=theirs, text=True
        ) as process:
            os.close(theirs)
            printed = process.communicate()[0]
        shown = _read(cast(BinaryIO, terminal))
    assert process.returncode == 0
    assert ("1200" if command == "import" else "600/600") in shown
    assert printed.splitlines()[-1].startswith("manifest: " if command == "export" else "600 annotations added")


def test_files_are_needed(settings: Settings) -> None:
    """An import without a file, or of one that is not there, or of a folder, is wrong usage."""
    for arguments in ((), ("/nowhere.json",), (str(settings.home.parent),)):
        done: Done = _run(settings, "import", *arguments)
        assert done.returncode == 2 and "Error: " in done.stderr
