r"""ShareGPT as LLaMA-Factory reads it: `<character>_preference.json`, `<character>_roleplay.json`, `dataset_info.json`.

preference: every annotation that has a rejected reply, also those made in a conversation. roleplay: every
conversation, with its chosen reply as the last turn. LLaMA-Factory wants human and gpt to alternate, the human first;
a conversation that opens with the assistant is written with an empty human turn before it, which no annotation can
hold, so reading takes it away again.

A thought is written into the reply as `<think>\nT\n</think>\n\nA`, the spelling that LLaMA-Factory's and
Axolotl's readers know. The keys `mode`, `chosen_thinking`, `rejected_thinking` and `created_at`, which those ignore,
let prefanno read back exactly what it wrote; in a file without them a leading thought of that spelling is taken for
one.
"""

import contextlib
import json
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from prefanno.prompting import Message
from prefanno.rows import Row

ROLES = {"user": "human", "assistant": "gpt"}
LEADING_THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n(.+)", re.DOTALL)


class Writer:
    """Writes both datasets; `counts` holds the number of entries by path."""

    def __init__(self, preference: "_JsonArray", roleplay: "_JsonArray") -> None:
        self._preference, self._roleplay = preference, roleplay

    @property
    def counts(self) -> dict[Path, int]:
        """Entries written to each dataset."""
        return {array.path: array.count for array in (self._preference, self._roleplay)}

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            if row.rejected is not None:
                self._preference.add(_preference(row))
            if row.mode == "multi":
                self._roleplay.add(_roleplay(row))


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[Writer]:
    """The three files, complete under their names when the block ends, untouched when it fails."""
    preference, roleplay = (folder / f"{character}_{dataset}.json" for dataset in ("preference", "roleplay"))
    with contextlib.ExitStack() as files:
        opened = [
            files.enter_context(_replacing(path)) for path in (preference, roleplay, folder / "dataset_info.json")
        ]
        arrays = [_JsonArray(path, file) for path, file in zip((preference, roleplay), opened, strict=False)]
        yield Writer(*arrays)
        for array in arrays:
            array.close()
        json.dump(_dataset_info(character), opened[-1], ensure_ascii=False, indent=2)


def reading(file: Path) -> Iterator[Row]:
    """The rows of a preference or a roleplay file. Raises ValueError, naming the row and what is wrong with it."""
    try:
        entries = json.loads(file.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is no JSON: {error}") from error
    if not isinstance(entries, list):
        raise ValueError(f"{file} must hold a JSON list of rows")
    for number, entry in enumerate(entries, 1):
        try:
            yield _row(entry)
        except (LookupError, TypeError, ValueError, AttributeError) as error:
            reason = f"{error} is missing" if isinstance(error, KeyError) else error
            raise ValueError(f"{file}, row {number}: {reason}") from error


class _JsonArray:
    """A JSON list, written entry by entry, one a line."""

    def __init__(self, path: Path, file: IO[str]) -> None:
        self.path, self._file, self.count = path, file, 0
        file.write("[")

    def add(self, entry: dict[str, Any]) -> None:
        self._file.write(",\n" if self.count else "\n")
        self._file.write(json.dumps(entry, ensure_ascii=False))
        self.count += 1

    def close(self) -> None:
        self._file.write("\n]\n")


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[IO[str]]:
    """A file that takes its name only when the block has ended well and its bytes are on the disk."""
    temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
    try:
        with temporary.open("x", encoding="utf-8") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _dataset_info(character: str) -> dict[str, Any]:
    common = {"formatting": "sharegpt", "columns": {"messages": "conversations", "system": "system"}}
    ranking = {"chosen": "chosen", "rejected": "rejected"}
    return {
        f"{character}_preference": {
            "file_name": f"{character}_preference.json",
            "ranking": True,
            **common,
            "columns": common["columns"] | ranking,  # type: ignore[operator]
        },
        f"{character}_roleplay": {"file_name": f"{character}_roleplay.json", **common},
    }


def _preference(row: Row) -> dict[str, Any]:
    assert row.rejected is not None  # noqa: S101 - the caller has looked
    return {
        "conversations": _turns(row),
        "chosen": _gpt(row.chosen, row.chosen_thinking),
        "rejected": _gpt(row.rejected, row.rejected_thinking),
        **_exactly(row),
    }


def _roleplay(row: Row) -> dict[str, Any]:
    entry = {"conversations": [*_turns(row), _gpt(row.chosen, row.chosen_thinking)], **_exactly(row)}
    if row.rejected is not None:
        entry["rejected"] = _gpt(row.rejected, row.rejected_thinking)
    return entry


def _turns(row: Row) -> list[dict[str, str]]:
    turns = [{"from": ROLES[turn["role"]], "value": turn["content"]} for turn in row.context]
    opening = [{"from": "human", "value": ""}] if turns and turns[0]["from"] == "gpt" else []
    return [*opening, *turns, {"from": "human", "value": row.human_input}]


def _gpt(content: str, thinking: str | None) -> dict[str, str]:
    return {"from": "gpt", "value": f"<think>\n{thinking}\n</think>\n\n{content}" if thinking else content}


def _exactly(row: Row) -> dict[str, Any]:
    return {
        "system": row.system_prompt,
        "mode": row.mode,
        "chosen_thinking": row.chosen_thinking,
        "rejected_thinking": row.rejected_thinking,
        "created_at": row.created_at.isoformat(),
    }


def _row(entry: Any) -> Row:
    turns = list(entry["conversations"])
    system = turns.pop(0)["value"] if turns and turns[0]["from"] == "system" else entry.get("system") or ""
    chosen = entry["chosen"] if "chosen" in entry else turns.pop()
    if chosen["from"] != "gpt":
        raise ValueError("the chosen reply must come from gpt")
    messages = _messages(turns)
    rejected = entry.get("rejected")
    chosen_text, chosen_thinking = _reply(entry, "chosen", chosen["value"])
    rejected_text, rejected_thinking = _reply(entry, "rejected", rejected["value"]) if rejected else (None, None)
    return Row(
        mode=entry.get("mode") or ("single" if "chosen" in entry else "multi"),
        system_prompt=system,
        context=messages[:-1],
        human_input=messages[-1]["content"],
        chosen=chosen_text,
        chosen_thinking=chosen_thinking,
        rejected=rejected_text,
        rejected_thinking=rejected_thinking,
        created_at=_time(entry.get("created_at")),
    )


def _messages(turns: Sequence[dict[str, str]]) -> list[Message]:
    """The turns before the reply: human and gpt alternate, a human turn is the last."""
    if len(turns) > 1 and turns[0] == {"from": "human", "value": ""}:
        turns = turns[1:]
    senders = [turn["from"] for turn in turns]
    if not senders or senders != (["gpt", "human"] * len(senders))[-len(senders) :]:
        raise ValueError(f"human and gpt must alternate and a human must speak last before the reply, not {senders}")
    return [{"role": "user" if turn["from"] == "human" else "assistant", "content": turn["value"]} for turn in turns]


def _reply(entry: dict[str, Any], side: str, value: str) -> tuple[str, str | None]:
    """The content and the thinking of a reply: by prefanno's own key where it is there, else by its spelling."""
    if f"{side}_thinking" in entry:
        thinking = entry[f"{side}_thinking"]
        return (value.removeprefix(_gpt("", thinking)["value"]), thinking) if thinking else (value, None)
    found = LEADING_THOUGHT.fullmatch(value)
    return (found[2], found[1]) if found else (value, None)


def _time(text: str | None) -> datetime:
    """UTC without a zone, as the tables hold it; a time without a zone is taken for UTC."""
    moment = datetime.fromisoformat(text) if text else datetime.now(UTC)
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
