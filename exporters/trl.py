r"""TRL's conversational datasets as JSON lines: `<character>_<dataset>.trl.jsonl`.

preference has `prompt`, `chosen` and `rejected`, unpaired has `prompt`, `completion` and `label`, roleplay has
`messages`, as SFT wants them; each of these is a list of {"role", "content"}. A thought is written into the content as
`<think>\nT\n</think>\n\nA`: chat templates disagree on the key of a thought (Qwen3 drops `thinking`, gpt-oss drops
`reasoning_content`), but all render the content.

The other columns let prefanno read back exactly what it wrote; TRL's trainers pass over them. Each has one type in
every entry, and "" where there is none, because `datasets` takes a column's type from the first entries.
"""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefanno.prompting import Message, conversation
from prefanno.rows import Found, Row

from .containers import JsonLines, json_lines
from .datasets import DATASETS, DatasetWriter
from .thinking import spell, split
from .values import Entry, must_be, rows, turns

Columns = dict[str, Any]


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[DatasetWriter]:
    """Three files."""
    files = {dataset: JsonLines(folder / f"{character}_{dataset}.trl.jsonl") for dataset in DATASETS}
    with contextlib.ExitStack() as closing:
        for file in files.values():
            closing.callback(file.close)
        yield DatasetWriter(files, SPELL)


def reading(file: Path) -> Iterator[Found]:
    """The rows of a file of any of the three."""
    return rows(json_lines(file), row)


def _preference(row: Row) -> Columns:
    return {
        "prompt": _prompt(row),
        "chosen": _reply(row.chosen, row.chosen_thinking),
        "rejected": _reply(row.rejected, row.rejected_thinking),
        **_exactly(row),
    }


def _roleplay(row: Row) -> Columns:
    return {
        "messages": [*_prompt(row), *_reply(row.chosen, row.chosen_thinking)],
        "rejected_content": row.rejected or "",
        **_exactly(row),
    }


def _unpaired(row: Row) -> Columns:
    good = row.chosen is not None
    said = _reply(row.chosen, row.chosen_thinking) if good else _reply(row.rejected, row.rejected_thinking)
    return {"prompt": _prompt(row), "completion": said, "label": good, **_exactly(row)}


SPELL = {"preference": _preference, "roleplay": _roleplay, "unpaired": _unpaired}


def _prompt(row: Row) -> list[Message]:
    return conversation(row.system_prompt, row.context, row.human_input)


def _reply(content: str | None, thinking: str | None) -> list[Message]:
    return [{"role": "assistant", "content": spell(content or "", thinking)}]


def _exactly(row: Row) -> Columns:
    return {
        "mode": row.mode,
        "chosen_thinking": row.chosen_thinking or "",
        "rejected_thinking": row.rejected_thinking or "",
        "created_at": row.created_at.isoformat(),
        "weight": row.weight,
    }


def row(entry: Entry) -> Row:
    """A row of any of the three. Raises Fault."""
    said, chosen, rejected = _parts(entry)
    system, context, human_input = turns(said)
    chosen_text, chosen_thinking = _split(entry, "chosen", chosen)
    rejected_text, rejected_thinking = _split(entry, "rejected", rejected)
    if "messages" in entry:
        rejected_text = entry.optional("rejected_content")
        rejected_thinking = entry.optional("rejected_thinking")
    return Row(
        mode=entry.mode("mode") or ("multi" if "messages" in entry else "single"),
        system_prompt=system,
        context=context,
        human_input=human_input,
        chosen=chosen_text,
        chosen_thinking=chosen_thinking,
        rejected=rejected_text,
        rejected_thinking=rejected_thinking,
        created_at=entry.time("created_at"),
        weight=entry.weight("weight"),
    )


def _parts(entry: Entry) -> tuple[list[Entry], str | None, str | None]:
    """The messages before the reply, the chosen and the rejected text."""
    if "messages" in entry:
        said = entry.entries("messages")
        return said[:-1], _content(said[-1:], "messages"), None
    prompt = entry.entries("prompt")
    if "completion" in entry:
        text = _content(entry.entries("completion"), "completion")
        return (prompt, text, None) if entry.flag("label") else (prompt, None, text)
    chosen, rejected = (_content(entry.entries(side), side) for side in ("chosen", "rejected"))
    return prompt, chosen, rejected


def _content(reply: list[Entry], field: str) -> str:
    if len(reply) != 1 or reply[0].text("role") != "assistant":
        raise must_be(field, "one message of the assistant", "一条 assistant 消息")
    return reply[0].text("content")


def _split(entry: Entry, side: str, text: str | None) -> tuple[str | None, str | None]:
    """The content and the thinking: by prefanno's own column where it is there, else by the spelling."""
    if text is None:
        return None, None
    if f"{side}_thinking" not in entry.names():
        return split(text)
    thinking = entry.optional(f"{side}_thinking")
    return text.removeprefix(spell("", thinking)), thinking
