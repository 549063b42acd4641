"""The row that exporters write and read, and what an exporter is.

An exporter is a module with the two functions of `Exporter`, registered under the entry point group
`prefanno.exporters`; so a stranger can add a format without touching prefanno.
"""

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import entry_points
from pathlib import Path
from typing import Literal, Protocol, cast

from prefanno.errors import InvalidInput
from prefanno.prompting import Message

GROUP = "prefanno.exporters"
Mode = Literal["single", "multi"]


@dataclass(frozen=True)
class Row:
    """What training gets from a choice; `context` holds the earlier turns, roles alternating, the last the assistant's.

    single: a preference pair; with one side only, an unpaired reply, chosen is good, rejected is bad. multi: a whole
    conversation that ends in `chosen`; with a `rejected`, also a pair. `weight` is the share of a pair in its choice.
    """

    mode: Mode
    system_prompt: str
    context: Sequence[Message]
    human_input: str
    chosen: str | None
    chosen_thinking: str | None
    rejected: str | None
    rejected_thinking: str | None
    created_at: datetime
    weight: float = 1.0


class RowWriter(Protocol):
    """Takes batches of rows."""

    @property
    def counts(self) -> dict[Path, int]:
        """How many entries each file got, by the file's path."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""


class Exporter(Protocol):
    """A file format."""

    def writing(self, folder: Path, character: str) -> AbstractContextManager[RowWriter]:
        """Files in `folder`, complete under their names when the block ends, untouched when it fails."""

    def reading(self, file: Path) -> Iterator[Row]:
        """The rows of one file. Raises ValueError, naming the row and what is wrong with it."""


def exporter(name: str) -> Exporter:
    """The installed exporter of this name. Raises InvalidInput, naming those there are."""
    installed = {entry.name: entry for entry in entry_points(group=GROUP)}
    if name not in installed:
        raise InvalidInput({"format": [f"没有 {name} 格式，可用：{'、'.join(sorted(installed))}"]})
    return cast(Exporter, installed[name].load())
