"""What a run was trained on and what it held out, as its recipe wrote it down: the prompts, not the replies.

The recipe is the user's to change, so the file may be missing, or odd: then nothing is known.
"""

import contextlib
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefanno.prompting import Message

FILE = "held_out.json"
ODD = (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError)


@dataclass(frozen=True)
class Asked:
    """What was asked in one row, with the persona it was asked with."""

    system_prompt: str
    context: list[Message]
    message: str

    @property
    def key(self) -> str:
        """By which it is seen that another row asks the same."""
        return key(self.message, self.context)


@dataclass(frozen=True)
class Split:
    """The rows that a run held out, and the keys of those it was trained on."""

    held_out: list[Asked]
    trained: frozenset[str]


def key(message: str, context: Sequence[Mapping[str, Any]]) -> str:
    """The SHA-256 of what is asked, whatever the persona: what was answered by one is known to the model."""
    said = [[turn["role"], turn["content"]] for turn in context]
    return hashlib.sha256(json.dumps([said, message]).encode()).hexdigest()


def read(folder: Path) -> Split:
    """What the run of this folder wrote down."""
    with contextlib.suppress(*ODD):
        said = json.loads((folder / FILE).read_text(encoding="utf-8"))
        rows = [_asked(row) for row in said["held_out"]]
        return Split(rows, frozenset(str(one) for one in said["trained"]))
    return Split([], frozenset())


def _asked(row: Mapping[str, Any]) -> Asked:
    turns: list[Message] = [{"role": turn["role"], "content": str(turn["content"])} for turn in row["context"]]
    return Asked(str(row["system_prompt"]), turns, str(row["message"]))
