"""Annotations written to files, complete and from one snapshot."""

import json
from collections.abc import Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefanno.annotation.export import export
from prefanno.db.engine import Database
from prefanno.rows import Exporter, Row, exporter
from prefanno.settings import Settings
from tests.annotation.test_dataset import MULTI, SINGLE, add

SHAREGPT = exporter("sharegpt")


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
    counts = await export(filled, SHAREGPT, folder, "li")
    preference, roleplay, unpaired = (folder / f"li_{name}.json" for name in ("preference", "roleplay", "unpaired"))
    assert counts == {preference: 3, roleplay: 2, unpaired: 0}
    assert [entry["chosen"]["value"] for entry in _entries(preference)] == ["我叫离~", "2", "4"]
    assert [entry["conversations"][-1]["value"] for entry in _entries(roleplay)] == ["我叫离~", "4"]
    names = {preference.name, roleplay.name, unpaired.name, "dataset_info.json"}
    assert {path.name for path in folder.iterdir()} == names


async def test_dataset_info_describes_both_files(filled: Database, tmp_path: Path) -> None:
    """dataset_info.json says to LLaMA-Factory which file is what, and in which columns."""
    await export(filled, SHAREGPT, tmp_path, "li")
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
    counts = await export(database, SHAREGPT, tmp_path, "li")
    assert list(counts.values()) == [0, 0, 0]
    assert all(_entries(path) == [] for path in counts)


async def test_exporting_again_replaces_the_files(filled: Database, tmp_path: Path) -> None:
    """The files are always those of the whole dataset."""
    await export(filled, SHAREGPT, tmp_path, "li")
    await add(filled, SINGLE)
    assert list((await export(filled, SHAREGPT, tmp_path, "li")).values()) == [4, 2, 0]
    assert len(_entries(tmp_path / "li_preference.json")) == 4


class _Exporter:
    """ShareGPT, with a hook that runs before each batch is written."""

    def __init__(self, before: Any) -> None:
        self.before = before

    def writing(self, folder: Path, character: str) -> AbstractContextManager[Any]:
        return self._writing(folder, character)

    @contextmanager
    def _writing(self, folder: Path, character: str) -> Any:
        with SHAREGPT.writing(folder, character) as writer:
            inner = writer.write

            def write(rows: Sequence[Row]) -> None:
                inner(rows)
                self.before()

            writer.write = write  # type: ignore[method-assign]
            yield writer

    def reading(self, file: Path) -> Any:
        return SHAREGPT.reading(file)


async def test_a_writer_that_fails_leaves_the_old_files(filled: Database, tmp_path: Path) -> None:
    """When writing breaks off, the files of the last export are untouched, and nothing else is left in the folder."""
    folder = tmp_path / "exported"
    await export(filled, SHAREGPT, folder, "li")
    before = _contents(folder)
    await add(filled, SINGLE)

    def fail() -> None:
        assert len(_contents(folder)) > len(before)  # control: it had begun to write
        raise OSError("the disk is full")

    failing: Exporter = _Exporter(fail)
    with pytest.raises(OSError, match="the disk is full"):
        await export(filled, failing, folder, "li")
    assert _contents(folder) == before


async def test_an_export_is_of_one_snapshot(
    filled: Database, settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What another connection adds while the files are written is in neither of them."""
    import sqlite3

    from prefanno.db import annotations

    monkeypatch.setattr(annotations.oldest_first, "__defaults__", (1,))  # batches of one

    def add() -> None:
        with sqlite3.connect(settings.database) as connection:
            columns = "character, mode, system_prompt, context, human_input, verdict, replies, weight, reasons, listed"
            columns += ", created_at"
            connection.execute(f"INSERT INTO annotations ({columns}) SELECT {columns} FROM annotations WHERE id = 1")
        connection.close()

    interrupting: Exporter = _Exporter(add)
    assert list((await export(filled, interrupting, tmp_path, "li")).values()) == [3, 2, 0]
    assert list((await export(filled, SHAREGPT, tmp_path, "li")).values()) == [
        7,
        2,
        0,
    ]  # control: the next one has them
