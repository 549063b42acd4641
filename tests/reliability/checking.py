"""Holds a database against what clients were told; says each fault in words, and none where all is well."""

import json
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path

from prefanno.settings import Postgres
from tests.looking import Look, looking

INDEX = "annotation_search"
UNSOUND_FILE = {
    "integrity_check": "SELECT * FROM pragma_integrity_check WHERE integrity_check != 'ok'",
    "foreign_key_check": "SELECT * FROM pragma_foreign_key_check",
}
UNSOUND = {
    "a count that is no count": """
        SELECT character, mode, count FROM counts WHERE count != (
            SELECT count(*) FROM annotations
            WHERE listed AND annotations.character = counts.character AND annotations.mode = counts.mode)""",
    "an annotation without a count": """
        SELECT DISTINCT character, mode FROM annotations WHERE listed AND (character, mode) NOT IN (
            SELECT character, mode FROM counts)""",
    "not one event for an annotation": """
        SELECT annotations.id, count(events.id) FROM annotations LEFT JOIN events ON annotation_id = annotations.id
        GROUP BY annotations.id HAVING count(events.id) != 1""",
    "a step without an event": "SELECT id FROM steps WHERE id NOT IN (SELECT step_id FROM events)",
    "not in the search index": """
        SELECT id FROM annotations WHERE id NOT IN (SELECT {id} FROM {index})""",
    "in the search index only": """
        SELECT {id} FROM {index} WHERE {id} NOT IN (SELECT id FROM annotations)""",
}


def faults(database: Path | Postgres, told: Mapping[str, int], *, keys: bool = True) -> list[str]:
    """Each acknowledged add must be there once, under the id that was told, and nothing else; `told` is text → id.

    With `keys`, there must be one key for each text, and it must hold that id.
    """
    with looking(database) as look:
        found = list(_unsound(look, is_file=isinstance(database, Path))) + list(_not_as_told(look, told))
        if keys:
            rows = look.fetch("SELECT key, answer FROM idempotency_keys")
            answered = {key: json.loads(answer)["id"] for key, answer in rows}
            found += [f"key {key}: {answered.get(key)}, told {told.get(key)}" for key in answered.keys() ^ told.keys()]
            found += [
                f"key {key}: {answered[key]}" for key in answered.keys() & told.keys() if answered[key] != told[key]
            ]
    return found


def _unsound(look: Look, *, is_file: bool) -> Iterator[str]:
    index = {"id": "id", "index": "annotation_search_docsize"} if is_file else {"id": "rowid", "index": INDEX}
    for name, query in ((UNSOUND_FILE if is_file else {}) | UNSOUND).items():
        for row in look.fetch(query.format(**index)):
            yield f"{name}: {row}"


def _not_as_told(look: Look, told: Mapping[str, int]) -> Iterator[str]:
    rows = look.fetch("SELECT human_input, id FROM annotations")
    times, ids = Counter(text for text, _ in rows), dict(rows)
    for text, number in told.items():
        if times[text] == 0:
            yield f"missing: {text}"
        elif times[text] > 1:
            yield f"{times[text]} times: {text}"
        elif ids[text] != number:
            yield f"told id {number}, is {ids[text]}: {text}"
    for text in times.keys() - told.keys():
        yield f"nobody was told: {text}"
