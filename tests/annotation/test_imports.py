"""Files read back: equal, once, all or none."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from prefanno.annotation import imports
from prefanno.annotation.export import export
from prefanno.annotation.imports import Imported
from prefanno.db import upgrade
from prefanno.db.engine import Database
from prefanno.rows import exporter
from tests.annotation.test_dataset import MULTI, SINGLE, add, rows

SHAREGPT = exporter("sharegpt")
ROWS = [
    SINGLE,
    replace(SINGLE, context=[], chosen_thinking="一\n二", rejected_thinking='</think> "quoted"'),
    replace(SINGLE, context=[], chosen="<think>\nnot mine\n</think>\n\nbut said", chosen_thinking=None),
    MULTI,
    replace(MULTI, rejected="nein", chosen_thinking="hm", system_prompt="Sei kurz. 🦊"),
]
GOOD = {
    "conversations": [{"from": "human", "value": "Hi"}],
    "chosen": {"from": "gpt", "value": "Ho"},
    "rejected": {"from": "gpt", "value": "No"},
}


def _file(folder: Path, *entries: object) -> Path:
    file = folder / "rows.json"
    file.write_text(json.dumps(entries), encoding="utf-8")
    return file


async def test_what_was_exported_comes_back_equal(database: Database, tmp_path: Path) -> None:
    """Both files, read into an empty database, give the same rows with the same times, each once."""
    for row in ROWS:
        await add(database, row)
    files = list(await export(database, SHAREGPT, tmp_path, "li"))
    upgrade.upgrade(tmp_path / "other.db")
    async with Database.open(tmp_path / "other.db") as other:
        # The conversation with a rejected reply is in both files.
        assert await imports.load(other, SHAREGPT, files, "li", "unused") == Imported(added=len(ROWS), duplicates=1)
        assert sorted(await rows(other), key=repr) == sorted(ROWS, key=repr)
        assert await rows(database) == ROWS


async def test_what_is_there_already_is_left_out(database: Database, tmp_path: Path) -> None:
    """Importing twice adds nothing; a row that differs in one word, or in its thinking, is another one."""
    await add(database, SINGLE)
    files = list(await export(database, SHAREGPT, tmp_path, "li"))
    assert await imports.load(database, SHAREGPT, files, "li", "unused") == Imported(0, 1)
    changed = [
        replace(SINGLE, chosen="我叫离！"),
        replace(SINGLE, chosen_thinking="hm"),
        replace(SINGLE, system_prompt="Be Li."),
        replace(SINGLE, context=[]),
    ]
    with SHAREGPT.writing(tmp_path, "li") as writer:
        writer.write([SINGLE, *changed])
    assert await imports.load(database, SHAREGPT, files[:1], "li", "unused") == Imported(4, 1)


async def test_rows_without_a_persona_get_the_default(database: Database, tmp_path: Path) -> None:
    """A file that names no system prompt is read under the persona in force; one that does keeps its own."""
    file = _file(tmp_path, GOOD, {**GOOD, "system": "Be brief."})
    await imports.load(database, SHAREGPT, [file], "li", "你是离。")
    assert [row.system_prompt for row in await rows(database)] == ["你是离。", "Be brief."]


BAD: list[tuple[Any, str]] = [
    ({**GOOD, "chosen": {"from": "gpt", "value": " "}}, "不能为空"),
    ({**GOOD, "chosen": {"from": "gpt", "value": "a\0"}}, "NUL"),
    ({**GOOD, "conversations": [{"from": "human", "value": "\ud83d"}]}, "代理字符"),
    ({**GOOD, "system": "\0"}, "NUL"),
    ({**GOOD, "chosen": {"from": "human", "value": "Ho"}}, "chosen reply must come from gpt"),
    ({**GOOD, "conversations": []}, "human"),
    ({"conversations": []}, ""),
    ({**GOOD, "conversations": [{"from": "gpt", "value": "Hi"}]}, "alternate"),
    ({"chosen": GOOD["chosen"]}, "'conversations' is missing"),
    ({**GOOD, "chosen": {"from": "gpt"}}, "'value' is missing"),
    ({**GOOD, "rejected": "No"}, ""),
    ({**GOOD, "rejected": {"from": "human", "value": "No"}}, "rejected reply must come from gpt"),
    ({**GOOD, "weight": float("nan")}, "weight must be a number above 0"),
    ({**GOOD, "weight": float("inf")}, "weight must be a number above 0"),
    ({**GOOD, "weight": "2"}, "weight must be a number above 0"),
    ({**GOOD, "weight": True}, "weight must be a number above 0"),
    ({"conversations": [*GOOD["conversations"], GOOD["chosen"]], "kto_tag": "false"}, "kto_tag must be true or false"),
    ({**GOOD, "created_at": 5}, "created_at must be a time in ISO 8601"),
    ({**GOOD, "weight": 0}, "weight must be a number above 0"),
    ({**GOOD, "weight": -3}, "weight must be a number above 0"),
    ({**GOOD, "created_at": "0001-01-01T00:00:00+10:00"}, ""),
    ({**GOOD, "created_at": "yesterday"}, "yesterday"),
    ({**GOOD, "conversations": [{"from": "human", "value": 5}]}, ""),
    ({**GOOD, "chosen": {"from": "gpt", "value": ["Ho"]}}, ""),
    ({**GOOD, "system": 5}, ""),
    ({**GOOD, "chosen_thinking": 5}, ""),
    ({**GOOD, "mode": "other"}, "other"),
    ({**GOOD, "mode": ["single"]}, ""),
    ({"conversations": [*GOOD["conversations"], GOOD["chosen"]], "kto_tag": False, "mode": "multi"}, "no reply"),
    ("a text", ""),
    (None, ""),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
async def test_a_bad_row_is_named_and_nothing_is_stored(
    database: Database, tmp_path: Path, bad: object, reason: str
) -> None:
    """One bad row, and none of the file is stored; the error names file, row and fault."""
    file = _file(tmp_path, GOOD, GOOD, bad)
    with pytest.raises(ValueError, match="row 3") as refused:
        await imports.load(database, SHAREGPT, [file], "li", "你是离。")
    assert str(file) in str(refused.value) and reason in str(refused.value)
    assert await rows(database) == []


@pytest.mark.parametrize(
    ("content", "fault"),
    [
        (b"", "is no JSON"),
        (b"[{]", "is no JSON"),
        (b"\xff\xfe", "is no JSON"),
        (b"[" * 200_000, "is no JSON"),
        (b"{}", "must hold a JSON list"),
    ],
)
async def test_a_bad_file_is_named_and_nothing_is_stored(
    database: Database, tmp_path: Path, content: bytes, fault: str
) -> None:
    """One bad file, and none of any file is stored."""
    good, bad = _file(tmp_path, GOOD), tmp_path / "bad.json"
    bad.write_bytes(content)
    with pytest.raises(ValueError, match=fault) as refused:
        await imports.load(database, SHAREGPT, [good, bad], "li", "你是离。")
    assert str(bad) in str(refused.value)
    assert await rows(database) == []
    assert await imports.load(database, SHAREGPT, [good], "li", "你是离。") == Imported(1, 0)  # control
