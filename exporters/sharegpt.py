r"""ShareGPT as LLaMA-Factory reads it: `<character>_<dataset>.json` for three datasets, and `dataset_info.json`.

unpaired is told by `kto_tag`. LLaMA-Factory wants human and gpt to alternate, the human first; a conversation that
opens with the assistant is written with an empty human turn before it, which no annotation can hold, so reading takes
it away again.

A thought is written into the reply as `<think>\nT\n</think>\n\nA`, the spelling that LLaMA-Factory's and
Axolotl's readers know. The keys `mode`, `chosen_thinking`, `rejected_thinking`, `weight` and `created_at`, which those
ignore, let prefanno read back exactly what it wrote; in a file without them a leading thought of that spelling is
taken for one.
"""

import contextlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from prefanno.rows import Fault, Found, Row

from .containers import JsonArray, json_array
from .datasets import DATASETS, DatasetWriter
from .thinking import spell, split
from .values import Entry, alternating, must_be, rows

SENDERS = {"user": "human", "assistant": "gpt"}
ROLES = {"human": "user", "gpt": "assistant"}
INFO = "dataset_info.json"


@contextlib.contextmanager
def writing(folder: Path, character: str) -> Iterator[DatasetWriter]:
    """Three files; `beside` the fourth."""
    files = {dataset: JsonArray(folder / f"{character}_{dataset}.json") for dataset in DATASETS}
    with contextlib.ExitStack() as closing:
        for file in files.values():
            closing.callback(file.close)
        yield DatasetWriter(files, {"preference": _preference, "roleplay": _roleplay, "unpaired": _unpaired})


def beside(folder: Path, character: str) -> dict[str, bytes]:
    """What goes beside the files: other characters' entries, and whatever a person added, stay in it.

    Raises Fault where what is there cannot be read: it would be lost.
    """
    info = _known(folder / INFO) | _dataset_info(character)
    return {INFO: json.dumps(info, ensure_ascii=False, indent=2).encode()}


def reading(file: Path) -> Iterator[Found]:
    """The rows of a preference, a roleplay or an unpaired file."""
    return rows(json_array(file), _row)


def _known(file: Path) -> dict[str, Any]:
    try:
        known = json.loads(file.read_text(encoding="utf-8-sig"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        raise _in_the_way(file, str(error)) from error
    if not isinstance(known, dict):
        raise _in_the_way(file, "it holds no JSON object")
    return known


def _in_the_way(file: Path, cause: str) -> Fault:
    return Fault(
        f"cannot add to {file}: {cause}; mend it or move it away. Nothing was exported",
        f"无法在 {file} 中添加数据集：{cause}；请修正或移走该文件。未导出任何内容",
    )


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


def _preference(row: Row) -> dict[str, Any]:
    return {
        "conversations": _turns(row),
        "chosen": _gpt(row.chosen or "", row.chosen_thinking),
        "rejected": _gpt(row.rejected or "", row.rejected_thinking),
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
    said = {"from": "human", "value": row.human_input}
    if not row.context:
        return [said]
    turns = [{"from": SENDERS[turn["role"]], "value": turn["content"]} for turn in row.context]
    opening = [{"from": "human", "value": ""}] if turns[0]["from"] == "gpt" else []
    return [*opening, *turns, said]


def _gpt(content: str, thinking: str | None) -> dict[str, str]:
    return {"from": "gpt", "value": spell(content, thinking)}


def _exactly(row: Row) -> dict[str, Any]:
    keys = {
        "system": row.system_prompt,
        "mode": row.mode,
        "chosen_thinking": row.chosen_thinking,
        "rejected_thinking": row.rejected_thinking,
        "created_at": row.created_at.isoformat(),
    }
    return keys if row.weight == 1 else keys | {"weight": row.weight}


def _row(entry: Entry) -> Row:
    turns = entry.entries("conversations")
    opened = bool(turns) and turns[0].get("from") == "system"
    system = turns.pop(0).text("value") if opened else entry.optional("system") or ""
    chosen, rejected = _sides(entry, turns)
    context, human_input = alternating(_messages(turns))
    chosen_text, chosen_thinking = _reply(entry, "chosen", chosen)
    rejected_text, rejected_thinking = _reply(entry, "rejected", rejected)
    return Row(
        mode=entry.mode("mode") or ("single" if "chosen" in entry or "kto_tag" in entry else "multi"),
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


def _sides(entry: Entry, turns: list[Entry]) -> tuple[Entry | None, Entry | None]:
    """The chosen and the rejected reply, as they are in the entry or the last of its turns, which is taken away."""
    if "chosen" in entry:
        reply = entry.entry("chosen")
    elif turns:
        reply = turns.pop()
    else:
        raise Fault("conversations is empty", "conversations 不能为空")
    rejected = entry.entry("rejected") if "rejected" in entry else None
    for side in filter(None, (reply, rejected)):
        if side.text("from") != "gpt":
            raise must_be(f"{side.path}from", "gpt", " gpt")
    good = entry.flag("kto_tag") if "kto_tag" in entry else True
    return (reply, rejected) if good else (None, reply)


def _messages(turns: Sequence[Entry]) -> list[tuple[str, str]]:
    said = [(turn.text("from"), turn.text("value")) for turn in turns]
    if len(said) > 1 and said[0] == ("human", ""):
        said = said[1:]
    return [(ROLES.get(sender, sender), value) for sender, value in said]


def _reply(entry: Entry, side: str, turn: Entry | None) -> tuple[str | None, str | None]:
    """The content and the thinking of a reply: by prefanno's own key where it is there, else by its spelling."""
    if turn is None:
        return None, None
    value = turn.text("value")
    if f"{side}_thinking" not in entry.names():
        return split(value)
    thinking = entry.optional(f"{side}_thinking")
    return value.removeprefix(spell("", thinking)), thinking
