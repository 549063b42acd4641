"""A snapshot: the files of one export, with a manifest that says what they are and tells whether they still are it.

The manifest holds nothing that differs between two exports of the same state: no time, no path.
"""

import errno
import hashlib
import os
import re
import shutil
import stat
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import orjson

from prefanno import files
from prefanno.errors import NotFound, SnapshotDamaged, printable

ENDING = ".manifest.json"
NAME = re.compile(r"[a-z0-9_]{1,40}\.[A-Za-z0-9_.-]+\.manifest\.json")  # of a character's slug and a format


@dataclass(frozen=True)
class File:
    """One file of a snapshot."""

    rows: int
    bytes: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """What a snapshot is: `last_event` is the newest change of the character's annotations that it has.

    `schema` is that of the database. `losses` says for how many rows the format could not hold something, by the names
    in docs/exporters.md.
    """

    format: str
    character: str
    schema: str
    last_event: int | None
    files: Mapping[str, File]
    losses: Mapping[str, int]

    @property
    def name(self) -> str:
        """The name of the manifest's own file."""
        return f"{self.character}.{self.format}{ENDING}"

    def encode(self) -> bytes:
        """The manifest's own file."""
        return orjson.dumps(asdict(self), option=orjson.OPT_INDENT_2 | orjson.OPT_APPEND_NEWLINE)


def described(folder: Path, counts: Mapping[str, int]) -> dict[str, File]:
    """The files of these names, with these rows, as they lie in the folder. Blocks."""
    return {name: _file(folder / name, rows) for name, rows in counts.items()}


def verified(folder: Path) -> Manifest:
    """The manifest of the folder's one snapshot, after every file was compared with it. Blocks.

    Raises NotFound where there is none, SnapshotDamaged where a file is missing, unreadable or another than it was.
    """
    manifest = _read(folder)
    for name, file in manifest.files.items():
        try:
            same = _file(folder / name, file.rows) == file
        except OSError as error:
            raise _unreadable(folder / name, error) from error
        if not same:
            raise SnapshotDamaged(
                f"{folder / name} was changed; it is not what was exported", f"快照已损坏：{name} 已被修改"
            )
    return manifest


def copy(folder: Path, target: Path, manifest: Manifest) -> None:
    """Copy the snapshot to another folder. Blocks. Raises SnapshotDamaged where it is no longer what was exported."""
    for name in manifest.files:
        try:
            source = _opened(folder / name)
        except OSError as error:
            raise _unreadable(folder / name, error) from error
        with source, (target / name).open("xb") as copied:
            shutil.copyfileobj(source, copied)
    files.write(target / manifest.name, manifest.encode())
    verified(target)


def give_back(folder: Path, target: Path) -> Manifest:
    """Copy the snapshot in `folder` to another folder, which is created where it is missing. Raises as `verified`."""
    manifest = verified(folder)
    with files.staging(target) as stage:
        copy(folder, stage, manifest)
        files.place(stage, target, last=manifest.name)
    return manifest


def _read(folder: Path) -> Manifest:
    found = sorted(folder.glob(f"*{ENDING}"))
    if not found:
        raise NotFound(f"there is no snapshot in {folder}", "未找到快照")
    name = printable(found[0].name)
    try:
        with _opened(found[0]) as content:
            values: dict[str, Any] = orjson.loads(content.read())
        described = {name: File(**file) for name, file in values.pop("files").items()}
        manifest = Manifest(**values, files=described)
    except OSError as error:
        raise _unreadable(found[0], error) from error
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotDamaged(f"{found[0]} is no manifest: {error}", f"快照已损坏：{name}") from error
    if manifest.name != found[0].name or not NAME.fullmatch(manifest.name):
        raise SnapshotDamaged(f"{found[0]} is the manifest of something else", f"快照已损坏：{name}")
    if any(Path(name).name != name or not name.isprintable() for name in described):
        raise SnapshotDamaged(f"{found[0]} names files elsewhere", f"快照已损坏：{name}")
    return manifest


def _unreadable(path: Path, error: OSError) -> SnapshotDamaged:
    missing = isinstance(error, FileNotFoundError | IsADirectoryError)
    english, chinese = ("is missing", "缺失") if missing else (f"cannot be read: {error.strerror}", "无法读取")
    return SnapshotDamaged(
        f"{path} {english}; it is not what was exported", f"快照已损坏：{printable(path.name)} {chinese}"
    )


def _opened(path: Path) -> BufferedReader:
    """A regular file. Raises OSError for anything else, such as a pipe that nobody may ever write to."""
    content = open(path, "rb", opener=lambda name, flags: os.open(name, flags | os.O_NONBLOCK))  # noqa: SIM115 - the caller's
    if not stat.S_ISREG(os.fstat(content.fileno()).st_mode):
        content.close()
        raise OSError(errno.EINVAL, "it is no regular file")
    return content


def _file(path: Path, rows: int) -> File:
    with _opened(path) as content:
        digest = hashlib.file_digest(content, "sha256")
        return File(rows, content.tell(), digest.hexdigest())
