"""A snapshot: the files of one export, with a manifest that says what they are and tells whether they still are it.

The manifest holds nothing that differs between two exports of the same state: no time, no path.
"""

import hashlib
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import orjson

from prefanno import files
from prefanno.errors import NotFound, SnapshotDamaged

ENDING = ".manifest.json"


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

    Raises NotFound where there is none, SnapshotDamaged where a file is missing or another than it was.
    """
    manifest = _read(folder)
    for name, file in manifest.files.items():
        path = folder / name
        if not path.is_file() or _file(path, file.rows) != file:
            fault = "was changed" if path.is_file() else "is missing"
            raise SnapshotDamaged(
                f"{path} {fault}; it is not what was exported",
                f"快照已损坏：{name} {'已被修改' if path.is_file() else '缺失'}",
            )
    return manifest


def copy(folder: Path, target: Path, manifest: Manifest) -> None:
    """Copy the snapshot to another folder. Blocks. Raises SnapshotDamaged where it is no longer what was exported."""
    for name in manifest.files:
        shutil.copyfile(folder / name, target / name)
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
    try:
        values: dict[str, Any] = orjson.loads(found[0].read_bytes())
        described = {name: File(**file) for name, file in values.pop("files").items()}
        manifest = Manifest(**values, files=described)
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise SnapshotDamaged(f"{found[0]} is no manifest: {error}", f"快照已损坏：{found[0].name}") from error
    if manifest.name != found[0].name or any(Path(name).name != name for name in described):
        raise SnapshotDamaged(f"{found[0]} names files elsewhere", f"快照已损坏：{found[0].name}")
    return manifest


def _file(path: Path, rows: int) -> File:
    with path.open("rb") as content:
        digest = hashlib.file_digest(content, "sha256")
        return File(rows, content.tell(), digest.hexdigest())
