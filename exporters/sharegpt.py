r"""ShareGPT as LLaMA-Factory reads it: `<character>_<dataset>.json` for three datasets, and `dataset_info.json`.

preference: every pair, also those made in a conversation. roleplay: every conversation, with its chosen reply as the
last turn. unpaired: replies that are good or bad by themselves, told by `kto_tag`. LLaMA-Factory wants human and gpt
to alternate, the human first; a conversation that opens with the assistant is written with an empty human turn before
it, which no annotation can hold, so reading takes it away again.

A thought is written into the reply as `<think>\nT\n</think>\n\nA`, the spelling that LLaMA-Factory's and
Axolotl's readers know. The keys `mode`, `chosen_thinking`, `rejected_thinking`, `weight` and `created_at`, which those
ignore, let prefanno read back exactly what it wrote; in a file without them a leading thought of that spelling is
taken for one.
"""

import contextlib
import fcntl
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

DATASETS = ("preference", "roleplay", "unpaired")
ROLES = {"user": "human", "assistant": "gpt"}
LEADING_THOUGHT = re.compile(r"<think>\n(.*?)\n</think>\n\n(.+)", re.DOTALL)


class Writer:
    """Writes the datasets; `counts` holds the number of entries by path."""

    def __init__(self, preference: "_JsonArray", roleplay: "_JsonArray", unpaired: "_JsonArray") -> None:
        self._preference, self._roleplay, self._unpaired = preference, roleplay, unpaired

    @property
    def counts(self) -> dict[Path, int]:
        """Entries written to each dataset."""
        return {array.path: array.count for array in (self._preference, self._roleplay, self._unpaired)}

    def write(self, rows: Sequence[Row]) -> None:
        """Add rows."""
        for row in rows:
            if row.chosen is not None and row.rejected is not None:
                self._preference.add(_preference(row, row.chosen, row.rejected))
            if row.mode == "multi":
                self._roleplay.add(_roleplay(row))
            elif row.chosen is None or row.rejected is None:
                self._unpaired.add(_unpaired(row))


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[Writer]:
    """The files, complete under their names when the block ends, untouched when it fails."""
    paths = [folder / f"{character}_{dataset}.json" for dataset in DATASETS]
    with contextlib.ExitStack() as files:
        arrays = [_JsonArray(path, files.enter_context(_replacing(path))) for path in paths]
        yield Writer(*arrays)
        for array in arrays:
            array.close()
        info = folder / "dataset_info.json"
        with _locked(folder):  # another character's export may be at this file, too
            known = _known(info) | _dataset_info(character)
            with _replacing(info, lock=False) as file:
                json.dump(known, file, ensure_ascii=False, indent=2)


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
        except (LookupError, TypeError, ValueError, OverflowError, AttributeError) as error:
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
def _replacing(path: Path, *, lock: bool = True) -> Iterator[IO[str]]:
    """A file that takes its name only when the block has ended well and its bytes are on the disk."""
    with _locked(path.parent) if lock else contextlib.nullcontext():
        _clear(path)
        temporary = path.with_name(f".{path.name}-{secrets.token_hex(4)}")
        file = temporary.open("x", encoding="utf-8")
        fcntl.flock(file, fcntl.LOCK_EX)  # until it is closed: that says that somebody still writes it
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _clear(path: Path) -> None:
    """Remove what killed exports left of this file."""
    for left in path.parent.glob(f".{path.name}-????????"):
        with contextlib.suppress(BlockingIOError, FileNotFoundError), left.open() as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            left.unlink()


@contextlib.contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """For a moment, one export at a time in this folder."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _known(file: Path) -> dict[str, Any]:
    """What the file says of other characters, and whatever a person added to it."""
    try:
        known = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return known if isinstance(known, dict) else {}


def _dataset_info(character: str) -> dict[str, Any]:
    columns: dict[str, dict[str, str]] = {
        "preference": {"chosen": "chosen", "rejected": "rejected"},
        "roleplay": {},
        "unpaired": {"kto_tag": "kto_tag"},
    }
    return {
        f"{character}_{dataset}": {
            "file_name": f"{character}_{dataset}.json",
            "formatting": "sharegpt",
            **({"ranking": True} if dataset == "preference" else {}),
            "columns": {"messages": "conversations", "system": "system", **columns[dataset]},
        }
        for dataset in DATASETS
    }


def _preference(row: Row, chosen: str, rejected: str) -> dict[str, Any]:
    return {
        "conversations": _turns(row),
        "chosen": _gpt(chosen, row.chosen_thinking),
        "rejected": _gpt(rejected, row.rejected_thinking),
        **_exactly(row),
    }


def _roleplay(row: Row) -> dict[str, Any]:
    entry = {"conversations": [*_turns(row), _gpt(row.chosen or "", row.chosen_thinking)], **_exactly(row)}
    if row.rejected is not None:
        entry["rejected"] = _gpt(row.rejected, row.rejected_thinking)
    return entry


def _unpaired(row: Row) -> dict[str, Any]:
    good = row.chosen is not None
    reply = _gpt(row.chosen or "", row.chosen_thinking) if good else _gpt(row.rejected or "", row.rejected_thinking)
    return {"conversations": [*_turns(row), reply], "kto_tag": good, **_exactly(row)}


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
        **({"weight": row.weight} if row.weight != 1 else {}),
    }


def _row(entry: Any) -> Row:
    turns = list(entry["conversations"])
    system = turns.pop(0)["value"] if turns and turns[0]["from"] == "system" else entry.get("system") or ""
    chosen, rejected = _sides(entry, turns)
    messages = _messages(turns)
    chosen_text, chosen_thinking = _reply(entry, "chosen", chosen["value"]) if chosen else (None, None)
    rejected_text, rejected_thinking = _reply(entry, "rejected", rejected["value"]) if rejected else (None, None)
    return Row(
        mode=entry.get("mode") or ("single" if "chosen" in entry or "kto_tag" in entry else "multi"),
        system_prompt=system,
        context=messages[:-1],
        human_input=messages[-1]["content"],
        chosen=chosen_text,
        chosen_thinking=chosen_thinking,
        rejected=rejected_text,
        rejected_thinking=rejected_thinking,
        created_at=_time(entry.get("created_at")),
        weight=_weight(entry.get("weight", 1)),
    )


def _sides(entry: Any, turns: list[dict[str, str]]) -> tuple[Any, Any]:
    """The chosen and the rejected reply, as they are in the entry or the last of its turns, which is taken away."""
    reply = entry["chosen"] if "chosen" in entry else turns.pop()
    if reply["from"] != "gpt":
        raise ValueError("the chosen reply must come from gpt")
    if type(entry.get("kto_tag", True)) is not bool:
        raise ValueError("kto_tag must be true or false")
    rejected = entry.get("rejected")
    if rejected is not None and rejected["from"] != "gpt":
        raise ValueError("the rejected reply must come from gpt")
    return (None, reply) if entry.get("kto_tag") is False else (reply, rejected)


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


def _weight(value: object) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise TypeError(f"weight must be a number above 0, not {value!r}")
    return float(value)


def _time(text: str | None) -> datetime:
    """UTC without a zone, as the tables hold it; a time without a zone is taken for UTC."""
    try:
        moment = datetime.fromisoformat(text) if text else datetime.now(UTC)
    except (TypeError, ValueError):
        raise ValueError(f"created_at must be a time in ISO 8601, not {text!r}") from None
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
