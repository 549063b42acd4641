"""The row that exporters write and read, and what an exporter is.

An exporter is a module with `writing`, `reading` or both (`Writes`, `Reads`), registered under the entry point group
`prefanno.exporters`; so a stranger can add a format without touching prefanno.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, Literal, Protocol, Self, cast

from prefanno.errors import InvalidInput, printable
from prefanno.prompting import Message

GROUP = "prefanno.exporters"
Mode = Literal["single", "multi"]
REASON = 300  # characters of a fault: it may quote a file, and a report keeps a thousand


@dataclass(slots=True)  # not frozen: that takes three times as long to make, and an export makes millions
class Row:
    """What training gets from a choice; `context` holds the earlier turns, roles alternating, the last the assistant's.

    single: a preference pair; with one side only, an unpaired reply, chosen is good, rejected is bad. multi: a whole
    conversation that ends in `chosen`; with a `rejected`, also a pair. `weight` is the share of a pair in its choice.
    `system_prompt` is empty where a file names none: an import then takes the character's own.
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


class Fault(ValueError):
    """Why a row of a file cannot be read: `str` in English for the command line, `detail` in Chinese for the API.

    Whatever it quotes, it is short, and printable on any terminal.
    """

    def __init__(self, english: str, detail: str | None = None) -> None:
        super().__init__(_fit(english))
        self.detail = _fit(detail or english)


class Line(int):
    """A line on which other rows begin, too, so `row`, the number of the row in its file, tells which it is."""

    row: int

    def __new__(cls, line: int, row: int) -> Self:
        """The line, with the row's number."""
        made = super().__new__(cls, line)
        made.row = row
        return made


Found = tuple[int, Row | Fault]  # the line where it stands, from 1; in a format without lines, the row's number


def _fit(message: str) -> str:
    cut = message if len(message) <= REASON else message[: REASON - 1] + "…"
    return printable(cut)


class RowWriter(Protocol):
    """Takes batches of rows."""

    @property
    def counts(self) -> Mapping[str, int]:
        """How many entries each file got, by the file's name."""

    @property
    def losses(self) -> Mapping[str, int]:
        """What the format could not hold, by the names in docs/exporters.md: for how many rows."""

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""


class Writes(Protocol):
    """A format that can be written."""

    def writing(self, folder: Path, character: str) -> AbstractContextManager[RowWriter]:
        """New files in `folder`, which is empty and nobody else's; they are moved to their place afterwards."""


class Reads(Protocol):
    """A format that can be read."""

    def reading(self, file: Path) -> Iterator[Found]:
        """The rows of one file, one after the other, each with its line; a bad one as a Fault, without an end to it."""


def formats() -> dict[str, dict[str, bool]]:
    """Each installed format, and whether it can be written and read."""
    loaded = {name: entry.load() for name, entry in sorted(_installed().items())}
    return {
        name: {"export": hasattr(module, "writing"), "import": hasattr(module, "reading")}
        for name, module in loaded.items()
    }


def writer(name: str) -> Writes:
    """The installed format of this name. Raises InvalidInput, naming those there are."""
    return cast(Writes, _load(name, "export", "writing"))


def reader(name: str) -> Reads:
    """The installed format of this name. Raises InvalidInput, naming those there are."""
    return cast(Reads, _load(name, "import", "reading"))


def _installed() -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=GROUP)}


def _load(name: str, direction: str, function: str) -> Any:
    installed = _installed()
    if name in installed and hasattr(module := installed[name].load(), function):
        return module
    able = [form for form, can in formats().items() if can[direction]]
    verb = "导出" if direction == "export" else "导入"
    raise InvalidInput(
        {"format": [f"没有可{verb}的 {name} 格式，可用：{'、'.join(able)}"]},
        english=f"there is no format {name} to {direction}; there are: {', '.join(able)}",
    )
