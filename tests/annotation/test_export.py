"""Annotations written to files, complete and from one snapshot."""

import asyncio
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefanno.annotation.export import export
from prefanno.db import annotations
from prefanno.db.engine import Database
from prefanno.errors import Conflict, InvalidInput
from prefanno.rows import Row, RowWriter, writer
from prefanno.snapshot import Manifest
from tests.annotation.test_dataset import MULTI, SINGLE, add

SHAREGPT = writer("sharegpt")
NAMES = [f"li_{name}.json" for name in ("preference", "roleplay", "unpaired")]
MANIFEST = "li.sharegpt.manifest.json"


def _counts(manifest: Manifest) -> list[int]:
    assert list(manifest.files) == NAMES
    return [file.rows for file in manifest.files.values()]


def _entries(file: Path) -> list[dict[str, Any]]:
    content: list[dict[str, Any]] = json.loads(file.read_text(encoding="utf-8"))
    return content


def _contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture
async def filled(database: Database) -> Database:
    """Two pairs, a conversation, and a conversation with a rejected reply."""
    rows = (SINGLE, replace(SINGLE, chosen="2"), MULTI, replace(MULTI, chosen="4", rejected="no"))
    for row in rows:
        await add(database, row)
    return database


async def test_both_files_and_their_description_are_written(filled: Database, tmp_path: Path) -> None:
    """Every file has its rows, oldest first; a conversation with a rejected reply is in both; the counts say so."""
    folder = tmp_path / "new" / "folder"
    assert _counts(await export(filled, "sharegpt", folder, "li")) == [3, 2, 0]
    preference, roleplay, _ = (folder / name for name in NAMES)
    assert [entry["chosen"]["value"] for entry in _entries(preference)] == ["我叫离~", "2", "4"]
    assert [entry["conversations"][-1]["value"] for entry in _entries(roleplay)] == ["我叫离~", "4"]
    assert {path.name for path in folder.iterdir()} == {*NAMES, "dataset_info.json", MANIFEST}


async def test_dataset_info_describes_both_files(filled: Database, tmp_path: Path) -> None:
    """dataset_info.json says to LLaMA-Factory which file is what, and in which columns."""
    await export(filled, "sharegpt", tmp_path, "li")
    info = json.loads((tmp_path / "dataset_info.json").read_text(encoding="utf-8"))
    assert info == {
        "li_preference": {
            "file_name": "li_preference.json",
            "ranking": True,
            "formatting": "sharegpt",
            "columns": {
                "messages": "conversations",
                "system": "system",
                "chosen": "chosen",
                "rejected": "rejected",
            },
        },
        "li_roleplay": {
            "file_name": "li_roleplay.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system"},
        },
        "li_unpaired": {
            "file_name": "li_unpaired.json",
            "formatting": "sharegpt",
            "columns": {"messages": "conversations", "system": "system", "kto_tag": "kto_tag"},
        },
    }
    for description in info.values():
        for entry in _entries(tmp_path / description["file_name"]):
            assert set(description["columns"].values()) <= set(entry)


async def test_an_empty_dataset_is_an_empty_list(database: Database, tmp_path: Path) -> None:
    """Without annotations the files are there, and hold no rows."""
    assert _counts(await export(database, "sharegpt", tmp_path, "li")) == [0, 0, 0]
    assert [_entries(tmp_path / name) for name in NAMES] == [[], [], []]


async def test_exporting_again_replaces_the_files(filled: Database, tmp_path: Path) -> None:
    """The files are always those of the whole dataset."""
    await export(filled, "sharegpt", tmp_path, "li")
    await add(filled, SINGLE)
    assert _counts(await export(filled, "sharegpt", tmp_path, "li")) == [4, 2, 0]
    assert len(_entries(tmp_path / "li_preference.json")) == 4


async def test_characters_share_a_folder(filled: Database, tmp_path: Path) -> None:
    """An export leaves the files of other characters, and what it says to LLaMA-Factory stands beside what they say."""
    folder = tmp_path / "exported"
    await export(filled, "sharegpt", folder, "li")
    before = _contents(folder)
    await export(filled, "sharegpt", folder, "mei")
    after = _contents(folder)
    assert {name for name in before if after[name] != before[name]} == {"dataset_info.json"}
    assert set(json.loads(after["dataset_info.json"])) == {
        f"{slug}_{name}" for slug in ("li", "mei") for name in ("preference", "roleplay", "unpaired")
    }


async def test_a_dataset_info_that_cannot_be_read_keeps_all_as_it_was(filled: Database, tmp_path: Path) -> None:
    """What a person wrote there, with a slip, is not replaced, and no other file is placed."""
    folder = tmp_path / "files"
    folder.mkdir()
    (folder / "dataset_info.json").write_text('{"mine": {},}')
    with pytest.raises(Conflict, match=r"dataset_info\.json"):
        await export(filled, "sharegpt", folder, "li")
    assert _contents(folder) == {"dataset_info.json": b'{"mine": {},}'}


async def test_how_far_it_is_can_be_told(filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each batch is told with its size, after it was written."""
    monkeypatch.setattr(annotations.oldest_first, "__defaults__", (3, None))  # batches of three
    told: list[int] = []
    await export(filled, "sharegpt", tmp_path, "li", tell=told.append)
    assert told == [3, 1]


async def test_an_unknown_format_makes_nothing(filled: Database, tmp_path: Path) -> None:
    """A format that is not there, or cannot be written, is refused with those that can, before a folder is made."""
    for form in ("nonsense", "labelstudio"):
        with pytest.raises(InvalidInput, match=f"{form}.*sharegpt") as refused:
            await export(filled, form, tmp_path / "new", "li")
        assert f"没有可导出的 {form} 格式" in refused.value.detail and set(refused.value.fields) == {"format"}
    assert not (tmp_path / "new").exists()


class _Writes:
    """ShareGPT, with a hook that runs after each batch is written."""

    def __init__(self, after: Callable[[Path], None]) -> None:
        self.after = after

    @contextmanager
    def writing(self, folder: Path, character: str) -> Iterator[RowWriter]:
        with SHAREGPT.writing(folder, character) as writing:
            inner = writing.write

            def write(rows: Sequence[Row]) -> None:
                inner(rows)
                self.after(folder)

            writing.write = write  # type: ignore[method-assign]
            yield writing


async def test_a_writer_that_fails_leaves_the_old_files(filled: Database, tmp_path: Path) -> None:
    """When writing breaks off, the files of the last export are untouched, and nothing else is left in the folder."""
    folder = tmp_path / "exported"
    await export(filled, "sharegpt", folder, "li")
    before = _contents(folder)
    await add(filled, SINGLE)

    def fail(stage: Path) -> None:
        assert stage.parent == folder and {path.name for path in stage.iterdir()} == set(NAMES)  # it had begun
        raise OSError("the disk is full")

    with pytest.raises(OSError, match="the disk is full"):
        await export(filled, "sharegpt", folder, "li", writes=_Writes(fail))
    assert _contents(folder) == before


async def test_an_export_is_of_one_snapshot(filled: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is added while the files are written is in none of them, and their manifest does not speak of it."""
    monkeypatch.setattr(annotations.oldest_first, "__defaults__", (1, None))  # batches of one
    alone = await export(filled, "sharegpt", tmp_path / "alone", "li")
    loop = asyncio.get_running_loop()

    def add_one(_stage: Path) -> None:
        asyncio.run_coroutine_threadsafe(add(filled, SINGLE), loop).result()

    interrupted = await export(filled, "sharegpt", tmp_path / "interrupted", "li", writes=_Writes(add_one))
    assert interrupted == alone and _counts(alone) == [3, 2, 0]
    assert _counts(await export(filled, "sharegpt", tmp_path, "li")) == [7, 2, 0]  # control: the next one has them
