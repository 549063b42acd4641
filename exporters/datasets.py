"""The three datasets that rows are sorted into, for formats that can hold all of them.

preference: every pair, also those made in a conversation. roleplay: every conversation, with its chosen reply as the
last turn. unpaired: replies that are good or bad by themselves.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from prefanno.rows import Row

from .containers import Sink

DATASETS = ("preference", "roleplay", "unpaired")
Spell = Callable[[Row], dict[str, Any]]


class DatasetWriter:
    """Writes each row to the files of the datasets that it belongs to, spelled as each dataset's function says."""

    def __init__(self, files: Mapping[str, Sink], spell: Mapping[str, Spell]) -> None:
        self._files = files
        self._preference, self._roleplay, self._unpaired = (_adding(files[name], spell[name]) for name in DATASETS)
        self.losses: Mapping[str, int] = {}

    @property
    def counts(self) -> dict[str, int]:
        """Entries by file name."""
        return {file.name: file.count for file in self._files.values()}

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            paired = row.chosen is not None and row.rejected is not None
            if paired:
                self._preference(row)
            if row.mode == "multi":
                self._roleplay(row)
            elif not paired:
                self._unpaired(row)


def _adding(file: Sink, spell: Spell) -> Callable[[Row], None]:
    add = file.add
    return lambda row: add(spell(row))
