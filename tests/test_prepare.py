"""scripts/prepare.py and scripts/python.sh, without pip, npm or a network."""

import base64
import hashlib
import os
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

from scripts import prepare

ROOT = Path(__file__).parent.parent


def step(folder: Path, name: str, ran: list[str], *, key: str = "1", disk_gb: float = 0.1) -> prepare.Step:
    """A step that only notes that it ran."""
    return prepare.Step(name, "nothing", disk_gb, lambda: ran.append(name), folder / name, key)


def test_what_is_done_is_not_repeated(tmp_path: Path) -> None:
    """A second run does nothing and says nothing; a step whose key has changed runs again, alone."""
    ran: list[str] = []
    first, second = step(tmp_path, "first", ran), step(tmp_path, "second", ran)
    prepare.prepare([first, second], free_gb=1)
    prepare.prepare([first, second], free_gb=0)
    assert ran == ["first", "second"]
    prepare.prepare([first, step(tmp_path, "second", ran, key="2")], free_gb=1)
    assert ran == ["first", "second", "second"]


def test_a_failed_run_goes_on_where_it_ended(tmp_path: Path) -> None:
    """What was got before the failure is kept; what failed leaves no stamp."""
    ran: list[str] = []

    def fail() -> None:
        raise prepare.PrepareError("no")

    first = step(tmp_path, "first", ran)
    with pytest.raises(prepare.PrepareError):
        prepare.prepare([first, prepare.Step("second", "", 0, fail, tmp_path / "second", "1")], free_gb=1)
    prepare.prepare([first, step(tmp_path, "second", ran)], free_gb=1)
    assert ran == ["first", "second"]


def test_sizes_are_said_before_anything_is_downloaded(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All names and sizes come before the first step runs."""
    said: list[str] = []

    def run() -> None:
        said.append(capsys.readouterr().out)

    prepare.prepare([prepare.Step("torch", "about 200 MB", 0, run, tmp_path / "torch", "1")], free_gb=1)
    assert "torch: about 200 MB" in said[0]


def test_too_little_room_is_said_before_anything_is_downloaded(tmp_path: Path) -> None:
    """One line names what is needed and what is free; nothing runs."""
    ran: list[str] = []
    with pytest.raises(prepare.PrepareError, match=r"^Not enough room: about 3\.0 GB .* 1\.2 GB are free\. .*$"):
        prepare.prepare([step(tmp_path, "big", ran, disk_gb=3)], free_gb=1.2)
    assert ran == []


@pytest.mark.parametrize("sign", prepare.CURES)
def test_a_known_failure_is_one_line_with_its_cure(sign: str) -> None:
    """The tool's own output is left out where the cure is known."""
    assert prepare.explain(f"ERROR: {sign}\nmore\n", ["pip"]) == prepare.CURES[sign]


def test_an_unknown_failure_shows_what_the_command_printed() -> None:
    """Output and command are in the error, whatever the command is."""
    with pytest.raises(prepare.PrepareError, match=r"(?s)no such luck.*This failed: sh -c"):
        prepare.run("sh", "-c", "echo no such luck; exit 3")


def test_only_the_published_swagger_archive_is_unpacked(tmp_path: Path) -> None:
    """Only what the page needs is written, with the licences; an archive with another hash is refused."""
    package = tmp_path / "package"
    package.mkdir()
    for name in ("swagger-ui.css", "LICENSE", "index.html"):
        (package / name).write_text(name)
    archive = tmp_path / "swagger.tgz"
    with tarfile.open(archive, "w:gz") as tar:
        tar.add(package, "package")
    with pytest.raises(prepare.PrepareError, match="sha512"):
        prepare.unpack(archive, tmp_path / "refused")
    sha512 = base64.b64encode(hashlib.sha512(archive.read_bytes()).digest()).decode()
    prepare.unpack(archive, tmp_path / "taken", sha512)
    assert not (tmp_path / "refused").exists()
    assert sorted(path.name for path in (tmp_path / "taken").iterdir()) == ["LICENSE", "swagger-ui.css"]


def test_an_index_that_does_not_answer_is_given_up_soon() -> None:
    """A closed port and a name that nobody knows are not reachable."""
    assert not prepare.reachable("http://127.0.0.1:9/", seconds=2)
    assert not prepare.reachable("http://prefanno.invalid/", seconds=2)


def run_python_sh(python: Path) -> subprocess.CompletedProcess[str]:
    """Run scripts/python.sh with PYTHON set, to print a word."""
    return subprocess.run(
        ["sh", str(ROOT / "scripts" / "python.sh"), "-c", "print('here')"],
        env={**os.environ, "PYTHON": str(python)},
        capture_output=True,
        text=True,
        check=False,
    )


def test_an_old_python_is_refused_with_one_line(tmp_path: Path) -> None:
    """The line names the version found, and where to get a newer one."""
    old = tmp_path / "old python"
    old.write_text('#!/bin/sh\n[ "$1" = --version ] && echo Python 3.9.18 || exit 1\n')
    old.chmod(0o755)
    refused = run_python_sh(old)
    assert refused.returncode == 1
    assert refused.stderr.count("\n") == 1
    assert "Python 3.11 or newer" in refused.stderr
    assert "Python 3.9.18" in refused.stderr


def test_a_new_python_is_used() -> None:
    """PYTHON goes first, and gets the arguments."""
    assert run_python_sh(Path(sys.executable)).stdout == "here\n"


@pytest.mark.parametrize(("url", "what"), [("", "libraries"), ("postgresql://db.example/p", "PostgreSQL's driver")])
def test_the_driver_comes_with_the_url(url: str, what: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`make serve` gets what PREFANNO_DATABASE_URL needs, and does not get it for those who do not need it."""
    monkeypatch.setattr(prepare, "STAMPS", tmp_path)
    monkeypatch.setenv("PREFANNO_DATABASE_URL", url)
    assert prepare.packages_step(for_tests=False).what.endswith(what)
