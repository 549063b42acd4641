"""Snapshots: the same state gives the same bytes, and whatever is no longer what was exported is found."""

import asyncio
import hashlib
import json
import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import func, select

from prefanno import snapshot
from prefanno.annotation import dataset, history
from prefanno.annotation.export import export
from prefanno.db import backup, characters
from prefanno.db.engine import Database
from prefanno.db.file import HEAD
from prefanno.db.models import Event
from prefanno.errors import NotFound, SnapshotDamaged
from prefanno.rows import formats
from prefanno.settings import Settings
from prefanno.snapshot import ENDING, Manifest
from tests.annotation.test_conversations import choose, turn
from tests.annotation.test_dataset import MULTI, SINGLE, add

FORMS = [form for form, can in formats().items() if can["export"]]
OTHER_SECOND = 1.1  # seconds: a time in a file would differ then
ROWS = [
    SINGLE,
    replace(SINGLE, chosen="说\n“好”, \x85ok", chosen_thinking="hm", rejected_thinking="一\n二"),
    replace(SINGLE, human_input="=1+1", weight=1 / 3),
    replace(SINGLE, rejected=None),
    replace(SINGLE, chosen=None),
    MULTI,
    replace(MULTI, rejected="nein", system_prompt="Sei kurz. 🦊"),
]


@pytest.fixture
async def filled(database: Database) -> Database:
    """Rows of every kind, a ranking, an edit, and something undone."""
    for row in ROWS:
        await add(database, row)
    generation = await turn(database, "?", "a", "b", "c")
    await choose(database, generation, "ranking", ranking=[[2], [1, 3]])
    await database.write(lambda session: dataset.edit(session, 1, {"note": "edited"}))
    await add(database, replace(SINGLE, human_input="undone"))
    await database.write(lambda session: history.undo(session, "li"))
    return database


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


def _tree(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*"))


async def _exported(database: Database, folder: Path, forms: list[str]) -> dict[str, dict[str, bytes]]:
    """All files of an export in each of these formats, by format."""
    return {form: await _files(database, folder / form, form) for form in forms}


async def _files(database: Database, folder: Path, form: str) -> dict[str, bytes]:
    await export(database, form, folder, "li")
    return _contents(folder)


async def test_the_same_state_gives_the_same_bytes(filled: Database, tmp_path: Path) -> None:
    """Every file of every format is the same, byte by byte, at another time, in another order and beside others."""
    first = await _exported(filled, tmp_path / "first", FORMS)
    await asyncio.sleep(OTHER_SECOND)
    assert await _exported(filled, tmp_path / "second", FORMS[::-1]) == first
    together = await asyncio.gather(*(_files(filled, tmp_path / "beside" / form, form) for form in FORMS))
    assert dict(zip(FORMS, together, strict=True)) == first
    await add(filled, SINGLE)
    changed = await _exported(filled, tmp_path / "changed", FORMS)
    assert all(changed[form] != first[form] for form in FORMS)  # control


async def test_the_same_state_has_the_same_bytes_in_one_folder(filled: Database, tmp_path: Path) -> None:
    """All formats share a folder without touching each other's files, and exporting again changes none."""
    for form in FORMS:
        await export(filled, form, tmp_path / "shared", "li")
    first = _contents(tmp_path / "shared")
    assert sum(name.endswith(ENDING) for name in first) == len(FORMS)
    for form in FORMS[::-1]:
        await export(filled, form, tmp_path / "shared", "li")
    assert _contents(tmp_path / "shared") == first


@pytest.mark.sqlite_only
async def test_a_restored_backup_gives_the_same_bytes(filled: Database, settings: Settings, tmp_path: Path) -> None:
    """A snapshot can be made again from a backup, whatever happened since."""
    first = await _exported(filled, tmp_path / "first", FORMS)
    backup.back_up(settings.database_file, tmp_path / "backup.db")
    await add(filled, SINGLE)
    backup.restore(tmp_path / "backup.db", tmp_path / "restored.db")
    async with Database.open(tmp_path / "restored.db") as restored:
        assert await _exported(restored, tmp_path / "second", FORMS) == first


async def test_what_others_do_is_no_other_state(filled: Database, tmp_path: Path) -> None:
    """The snapshot of a character does not change with another character's annotations."""
    first = await _exported(filled, tmp_path / "first", FORMS)
    await filled.write(lambda session: characters.create(session, "mei", "Mei", None))
    await add(filled, SINGLE, "mei")
    assert await _exported(filled, tmp_path / "second", FORMS) == first


@pytest.mark.parametrize("form", FORMS)
async def test_the_manifest_says_what_the_files_are(filled: Database, tmp_path: Path, form: str) -> None:
    """It names format, character, schema, the newest change, and each file with its size and SHA-256, nothing else."""
    folder = tmp_path / "exported"
    manifest = await export(filled, form, folder, "li")
    said = json.loads((folder / f"li.{form}.manifest.json").read_bytes())
    async with filled.read() as session:
        newest = (await session.execute(select(func.max(Event.id)))).scalar_one()
    assert list(said) == ["format", "character", "schema", "last_event", "files", "losses"]
    assert (said["format"], said["character"], said["schema"]) == (form, "li", HEAD)
    assert said["last_event"] == newest
    for name, file in said["files"].items():
        content = (folder / name).read_bytes()
        assert (file["bytes"], file["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
    assert {path.name for path in folder.iterdir()} - {"dataset_info.json"} == {*said["files"], manifest.name}
    assert snapshot.verified(folder) == manifest


async def test_rows_and_losses_are_counted(filled: Database, tmp_path: Path) -> None:
    """Every pair, conversation and reply of the annotations is counted once, or counted as lost."""
    sharegpt, csv, openai = [
        await export(filled, form, tmp_path / form, "li") for form in ("sharegpt", "csv", "openai")
    ]
    pairs = 4 + 2  # two are the ranking's, of which the first ends a conversation
    assert [file.rows for file in sharegpt.files.values()] == [pairs, 3, 2]
    assert [file.rows for file in csv.files.values()] == [pairs + 3]
    assert [file.rows for file in openai.files.values()] == [pairs]
    assert (sharegpt.losses, csv.losses) == ({}, {})
    assert openai.losses == {"created_at": pairs, "weight": 3, "unpaired": 2, "conversation": 1, "mode": 2}


async def test_the_newest_change_is_the_characters_own(database: Database, tmp_path: Path) -> None:
    """Without a change there is none; each change, an undo included, is a newer one."""
    seen: list[int | None] = [(await export(database, "sharegpt", tmp_path, "li")).last_event]
    for change in (add(database, SINGLE), database.write(lambda session: history.undo(session, "li"))):
        await change
        seen.append((await export(database, "sharegpt", tmp_path, "li")).last_event)
    first, second, third = seen
    assert first is None and second is not None and third is not None and second < third


@pytest.fixture
async def folder(filled: Database, tmp_path: Path) -> Path:
    """A snapshot."""
    await export(filled, "sharegpt", tmp_path / "snapshot", "li")
    return tmp_path / "snapshot"


def _in_place(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def _instead_a_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


def _instead_a_pipe(file: Path) -> None:
    file.unlink()
    os.mkfifo(file)


def _instead_itself(file: Path) -> None:
    file.unlink()
    file.symlink_to(file)


DAMAGE: dict[str, tuple[Callable[[Path], object], str, str]] = {
    "one bit": (_in_place, "was changed", "已被修改"),
    "one byte more": (lambda file: file.write_bytes(file.read_bytes() + b"\n"), "was changed", "已被修改"),
    "one byte less": (lambda file: file.write_bytes(file.read_bytes()[:-1]), "was changed", "已被修改"),
    "empty": (lambda file: file.write_bytes(b""), "was changed", "已被修改"),
    "missing": (Path.unlink, "is missing", "缺失"),
    "a folder": (_instead_a_folder, "is missing", "缺失"),
    "a pipe": (_instead_a_pipe, "cannot be read: it is no regular file", "无法读取"),
    "a link to itself": (_instead_itself, "cannot be read: Too many levels", "无法读取"),
}


@pytest.mark.parametrize("name", ["li_preference.json", "li_roleplay.json", "li_unpaired.json"])
@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
@pytest.mark.sqlite_only
async def test_what_was_changed_is_found(
    folder: Path, tmp_path: Path, name: str, damage: tuple[Callable[[Path], object], str, str]
) -> None:
    """A file of which any byte is another, or that is gone, is named; and nothing is given back."""
    change, english, chinese = damage
    manifest = snapshot.verified(folder)  # control
    change(folder / name)
    with pytest.raises(SnapshotDamaged, match=f"{name} {english}") as found:
        snapshot.verified(folder)
    assert name in found.value.detail and chinese in found.value.detail
    if "cannot be read" in english:
        (tmp_path / "copy").mkdir()
        with pytest.raises(SnapshotDamaged, match=english):  # where the fault came after the first look
            snapshot.copy(folder, tmp_path / "copy", manifest)
    with pytest.raises(SnapshotDamaged):
        snapshot.give_back(folder, tmp_path / "given")
    assert not (tmp_path / "given").exists()


def _changed(**values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda said: said.update(values)


def _renamed(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda said: said["files"].update({name: said["files"].pop("li_preference.json")})


BAD_MANIFESTS: dict[str, Callable[[dict[str, Any]], object]] = {
    **{
        f"file {name!r}": _renamed(name)
        for name in ("../li_preference.json", "/etc/passwd", "a/b", "", ".", "..", "\x1b[2J")
    },
    **{f"character {name!r}": _changed(character=name) for name in ("mei", "../li", "/etc/li", "", None)},
    "another format": _changed(format="trl"),
    "no files": lambda said: said.pop("files"),
    "no schema": lambda said: said.pop("schema"),
    "something unknown": _changed(path="/"),
    "files in a list": _changed(files=[]),
    "a file without a sum": lambda said: said["files"]["li_preference.json"].pop("sha256"),
    "another sum": lambda said: said["files"]["li_preference.json"].update(sha256="0"),
    "another size": lambda said: said["files"]["li_preference.json"].update(bytes=0),
}


@pytest.mark.parametrize("change", BAD_MANIFESTS.values(), ids=BAD_MANIFESTS)
@pytest.mark.sqlite_only
async def test_a_manifest_that_is_none_is_refused(
    folder: Path, tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    """What is no manifest, names files elsewhere or calls itself otherwise is refused, and nothing is written."""
    file = folder / "li.sharegpt.manifest.json"
    said = json.loads(file.read_bytes())
    change(said)
    file.write_text(json.dumps(said))
    before = _tree(tmp_path)
    with pytest.raises(SnapshotDamaged) as refused:
        snapshot.give_back(folder, tmp_path / "deep" / "given")
    assert "快照已损坏" in refused.value.detail
    assert _tree(tmp_path) == before


@pytest.mark.parametrize("name", ["Li", "li:", "l" * 41, "\x1b[2J", "\udcff"])
@pytest.mark.sqlite_only
async def test_the_manifest_of_no_character_is_refused(folder: Path, name: str) -> None:
    """A name that no character can have is refused where the file is called the same, and is not repeated as it is."""
    file = folder / "li.sharegpt.manifest.json"
    said = json.loads(file.read_bytes()) | {"character": name}
    file.rename(folder / f"{name}.sharegpt{ENDING}").write_text(json.dumps(said))
    with pytest.raises(SnapshotDamaged) as refused:
        snapshot.verified(folder)
    assert refused.value.detail.isprintable()


def test_a_manifest_that_is_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    """Nobody may ever write to it."""
    os.mkfifo(tmp_path / f"li.sharegpt{ENDING}")
    with pytest.raises(SnapshotDamaged, match="cannot be read: it is no regular file"):
        snapshot.verified(tmp_path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"5", b'"{}"', b"{}", b"\xff\xfe"])
def test_a_file_that_is_no_manifest_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever else stands in its place is named, in one line."""
    (tmp_path / f"li.sharegpt{ENDING}").write_bytes(content)
    with pytest.raises(SnapshotDamaged, match=r"li\.sharegpt\.manifest\.json is no manifest") as refused:
        snapshot.verified(tmp_path)
    assert "\n" not in str(refused.value)


def test_without_a_manifest_there_is_no_snapshot(tmp_path: Path) -> None:
    """An empty folder, and one that is not there, hold none."""
    for folder in (tmp_path, tmp_path / "nowhere"):
        with pytest.raises(NotFound, match=str(folder)) as missing:
            snapshot.verified(folder)
        assert missing.value.detail == "未找到快照"


@pytest.mark.sqlite_only
async def test_a_snapshot_is_given_back_as_it_is(folder: Path, tmp_path: Path) -> None:
    """Its files and its manifest are copied, byte by byte, over what stands there; what else is there stays."""
    target = tmp_path / "new" / "given"
    target.mkdir(parents=True)
    for name in ("li_preference.json", "mine.txt"):
        (target / name).write_text("before")
    manifest = snapshot.give_back(folder, target)
    expected: Mapping[str, bytes] = _contents(folder) | {"mine.txt": b"before"}
    assert _contents(target) == {name: content for name, content in expected.items() if name != "dataset_info.json"}
    assert snapshot.verified(target) == manifest


@pytest.mark.sqlite_only
async def test_a_copy_of_other_files_than_the_manifests_is_refused(folder: Path, tmp_path: Path) -> None:
    """Where another export came between the manifest and the copy, the copy is not what was meant, and that is said."""
    manifest: Manifest = snapshot.verified(folder)
    _in_place(folder / "li_roleplay.json")
    (tmp_path / "copy").mkdir()
    with pytest.raises(SnapshotDamaged, match=r"li_roleplay\.json was changed"):
        snapshot.copy(folder, tmp_path / "copy", manifest)
