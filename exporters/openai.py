r"""OpenAI's preference format as JSON lines: `<character>_preference.openai.jsonl`.

An entry has `input.messages`, `preferred_output` and `non_preferred_output`, each output one message of the assistant,
and nothing else: OpenAI refuses keys that it does not know. So it holds pairs only, and of these neither the weight nor
the mode nor the time; what stays behind is counted in `losses`. A thought is written into the content as
`<think>\nT\n</think>\n\nA`.
"""

import contextlib
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefanno.prompting import conversation
from prefanno.rows import Found, Row

from .containers import JsonLines, json_lines
from .thinking import exact, spell, split
from .values import Entry, must_be, rows, turns


class Writer:
    """Writes the pairs."""

    def __init__(self, file: JsonLines) -> None:
        self._file = file
        self.losses: Counter[str] = Counter()

    @property
    def counts(self) -> dict[str, int]:
        """Pairs in the file."""
        return {self._file.name: self._file.count}

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            if row.chosen is None or row.rejected is None:
                self.losses["conversation" if row.mode == "multi" else "unpaired"] += 1
                continue
            self._file.add(_entry(row))
            self.losses["created_at"] += 1
            self.losses["mode"] += row.mode == "multi"
            self.losses["weight"] += row.weight != 1
            thoughts = exact(row.chosen, row.chosen_thinking) and exact(row.rejected, row.rejected_thinking)
            self.losses["thinking"] += not thoughts
        self.losses = +self.losses  # without what was lost by no row


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[Writer]:
    """One file."""
    file = JsonLines(folder / f"{character}_preference.openai.jsonl")
    with contextlib.closing(file):
        yield Writer(file)


def reading(file: Path) -> Iterator[Found]:
    """The pairs of the file."""
    return rows(json_lines(file), _row)


def _entry(row: Row) -> dict[str, Any]:
    return {
        "input": {"messages": conversation(row.system_prompt, row.context, row.human_input)},
        "preferred_output": [{"role": "assistant", "content": spell(row.chosen or "", row.chosen_thinking)}],
        "non_preferred_output": [{"role": "assistant", "content": spell(row.rejected or "", row.rejected_thinking)}],
    }


def _row(entry: Entry) -> Row:
    system, context, human_input = turns(entry.entry("input").entries("messages"))
    chosen, chosen_thinking = _output(entry, "preferred_output")
    rejected, rejected_thinking = _output(entry, "non_preferred_output")
    return Row(
        mode="single",
        system_prompt=system,
        context=context,
        human_input=human_input,
        chosen=chosen,
        chosen_thinking=chosen_thinking,
        rejected=rejected,
        rejected_thinking=rejected_thinking,
        created_at=entry.time("created_at"),
    )


def _output(entry: Entry, name: str) -> tuple[str, str | None]:
    output = entry.entries(name)
    if len(output) != 1 or output[0].text("role") != "assistant":
        raise must_be(name, "one message of the assistant", "一条 assistant 消息")
    return split(output[0].text("content"))
