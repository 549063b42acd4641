"""What these tests share: a line in the terminal for a figure, a small disk of its own."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

Say = Callable[[str], None]


@pytest.fixture
def say(request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str]) -> Say:
    """Writes a figure to the terminal, also where the test passes."""

    def write(line: str) -> None:
        with capsys.disabled():
            sys.stdout.write(f"\n{request.node.name}: {line}\n")

    return write


@dataclass(frozen=True)
class Disk:
    """A mounted file system in memory."""

    path: Path

    def fill(self) -> None:
        """Leave no byte free."""
        for size in (1 << 16, 1 << 12, 1):
            try:
                with (self.path / "ballast").open("ab", buffering=0) as ballast:
                    while True:
                        ballast.write(b"\0" * size)
            except OSError:
                continue

    def free(self) -> None:
        """Give the space back."""
        (self.path / "ballast").unlink()

    def remount(self, options: str) -> None:
        """Mount it anew, for example `ro`."""
        subprocess.run(["mount", "-o", f"remount,{options}", str(self.path)], check=True)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    """A disk of 16 MiB; needs the part "mount"."""
    path = tmp_path / "disk"
    path.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", str(path)], check=True)
    try:
        yield Disk(path)
    finally:
        subprocess.run(["umount", "--lazy", str(path)], check=True)
