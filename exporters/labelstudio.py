"""Label Studio's exports of pairwise choices and rankings, JSON and JSON_MIN; import only.

JSON is a list of tasks: `data` holds the prompt and the replies, each of `annotations` what one person chose.

- `<Pairwise>` (`value.selected` is left or right): a pair. The export does not hold the labelling configuration, so
  which fields left and right are comes from `to_name` where it names two fields, else from their names: answer1 and
  answer2 as in Label Studio's own template, or the like (`comparisons.py`); the first of them is left.
- `<Ranker>` (`value.ranker` holds ids of a `<List>`, best first): each reply over each worse one. A reply is the
  `body` of the item with that id. Of several buckets each is a ranking of its own, since no order among them is known;
  the bucket `_` holds what nobody moved and is none.

JSON_MIN has one entry for each annotation: the fields of `data`, and what was chosen under the name of its tag.

Each annotation is a choice of its own, made at its `created_at`. A skipped one is no row. A task that nobody annotated
and an annotation without a choice, which is what a tie is here, are faults, so that nobody misses them. Predictions,
drafts and reviews are not read.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any

from prefanno.rows import Fault, Found, Row

from .comparisons import Pairs, about, asked, conversation, implied, listed, once, reply_fields, rows
from .containers import json_array
from .values import Entry, Turns, must_be

UNSORTED = "_"
TYPES = ("pairwise", "ranker")  # of the results that are read
KEYS = ("selected", "ranker")  # of their values
TWO = 2

Items = Mapping[str | None, Entry]  # those of a list, by their id


class Task:
    """The data of a task, which are looked through once, whatever the number of annotations."""

    def __init__(self, data: Entry) -> None:
        self.data = data
        self.prompt = once(lambda: asked(data))
        self.replies = once(lambda: tuple(reply_fields(data.names()).values()))
        self._compared: dict[tuple[str, ...], Callable[[], tuple[Turns, dict[str, str]]]] = {}

    def compared(self, sides: tuple[str, ...]) -> tuple[Turns, dict[str, str]]:
        """What was asked and the texts of these fields, as `conversation` finds them. Raises Fault."""
        return self._compared.setdefault(sides, once(lambda: conversation(self.data, sides)))()

    @cached_property
    def lists(self) -> Mapping[str, Items]:
        """The fields that may be of a `<List>`."""
        return {
            name: {
                _id(item, "id"): Entry(item, f"{self.data.path}{name}.{place}.")
                for place, item in enumerate(self.data.list(name))
            }
            for name in self.data.names()
            if _is_items(self.data.get(name))
        }


@dataclass(frozen=True)
class Choice:
    """What a person chose with the tag `name`; `tags` names what the choice is about, as far as the export says."""

    name: str
    value: Entry
    tags: str = ""


def reading(file: Path) -> Iterator[Found]:
    """The pairs of every annotation, by the line of their task."""
    for line, task in json_array(file):
        for found in _found(task):
            yield line, found


def _found(task: Any) -> Iterator[Row | Fault]:
    try:
        entry = Entry(task)
        whole = "annotations" in entry or "data" in entry
        of = Task(entry.entry("data") if whole else entry)
        annotations = entry.list("annotations") if whole else [task]
        if not annotations:
            raise _not_annotated()
    except Fault as fault:
        yield about(fault, task=_id(task, "id"))
        return
    for annotation in annotations:
        try:
            yield from _annotated(of, Entry(annotation, "annotation.")) if whole else _flat(of)
        except Fault as fault:
            yield about(fault, task=_id(task, "id"), annotation=_id(annotation, "id" if whole else "annotation_id"))


def _id(value: Any, key: str) -> str | None:
    found = value.get(key) if isinstance(value, dict) else None
    return str(found) if isinstance(found, int | str) else None


def _annotated(task: Task, annotation: Entry) -> list[Row]:
    """The rows of an annotation of JSON; none where it was skipped. Raises Fault."""
    if "was_cancelled" in annotation and annotation.flag("was_cancelled"):
        return []
    choices = [
        Choice(result.optional("from_name") or "", result.entry("value"), result.optional("to_name") or "")
        for result in annotation.entries("result")
        if result.get("type") in TYPES
    ]
    return _rows(task, choices, annotation.time("created_at"))


def _flat(task: Task) -> list[Row]:
    """The rows of an entry of JSON_MIN. Raises Fault."""
    entry = task.data
    if "annotation_id" not in entry:
        raise _not_annotated()
    choices = [
        Choice(name, Entry(value, f"{name}."))
        for name in entry.names()
        if isinstance(values := entry.get(name), list)
        for value in values
        if isinstance(value, dict) and len(value) == 1 and any(key in value for key in KEYS)
    ]
    return _rows(task, choices, entry.time("created_at"))


def _not_annotated() -> Fault:
    return Fault("nobody annotated it; export annotated tasks only", "尚无标注，请只导出已标注的任务")


def _rows(task: Task, choices: Sequence[Choice], created_at: datetime) -> list[Row]:
    """The pairs of the one choice that an annotation holds. Raises Fault."""
    if not choices:
        english = "nothing was chosen: there is no result of the type pairwise or ranker"
        raise Fault(english, "未作出选择：没有 pairwise 或 ranker 类型的结果")
    if len(choices) > 1:
        tags = listed(choice.name for choice in choices)
        english = f"there are several choices ({tags}), and the export does not say which replies each is about"
        raise Fault(f"{english}; leave one", f"有多个选择（{tags}），而导出文件未说明各自对应哪些回复，请只保留一个")
    (choice,), data = choices, task.data
    if "ranker" in choice.value:
        texts, pairs = _ranked(task, choice.value)
        return rows(task.prompt(), pairs, texts, created_at)
    selected, sides = choice.value.text("selected"), _sides(task, choice.tags)
    if selected not in ("left", "right"):
        raise must_be(f"{choice.value.path}selected", f"left or right, not {selected:.40}", " left 或 right")
    said, texts = task.compared(sides)
    if empty := [name for name in sides if name not in texts]:
        raise Fault(f"{data.path}{empty[0]} is empty", f"{data.path}{empty[0]} 为空")
    left, right = sides
    return rows(said, [(left, right) if selected == "left" else (right, left)], texts, created_at)


def _sides(task: Task, tags: str) -> tuple[str, ...]:
    """The fields of the left and the right reply. Raises Fault."""
    named = tuple(tags.split(","))
    if len(set(named)) == len(named) == TWO and all(name in task.data for name in named):
        return named
    fields = task.replies()
    if len(fields) > TWO:
        raise Fault(
            f"there are more than two replies ({listed(fields)}), and the export does not say which were compared",
            f"回复多于两条（{listed(fields)}），而导出文件未说明比较的是哪两条",
        )
    return fields


def _ranked(task: Task, value: Entry) -> tuple[dict[str, str], Pairs]:
    """The texts of the ranked items by their id, and the pairs. Raises Fault."""
    if isinstance(value.get("ranker"), dict):
        buckets = value.entry("ranker")
        rankings = [_ids(buckets, name) for name in buckets.names() if name != UNSORTED]
    else:
        rankings = [_ids(value, "ranker")]  # as Label Studio's documentation has it
    ids = [one for ranking in rankings for one in ranking]
    if len(set(ids)) < len(ids):
        raise must_be(f"{value.path}ranker", "a ranking that names each item once", "每项只出现一次的排序")
    pairs = implied(*([[one] for one in ranking] for ranking in rankings))
    return _bodies(task, ids), pairs


def _ids(value: Entry, name: str) -> list[str]:
    ids = value.list(name)
    if not all(isinstance(one, str) for one in ids):
        raise must_be(value.path + name, "a list of ids, which are strings", "由 id（字符串）组成的数组")
    return list(ids)


def _bodies(task: Task, ids: Sequence[str]) -> dict[str, str]:
    """The text of each item; the list of items is the field that has all the ids. Raises Fault."""
    for items in task.lists.values():
        if all(one in items for one in ids):
            return {one: items[one].text("body") for one in ids}
    raise Fault(
        f"there is no list of items with the ranked ids {listed(ids)}; the lists are {listed(task.lists)}",
        f"没有包含已排序 id {listed(ids)} 的列表；现有列表：{listed(task.lists)}",
    )


def _is_items(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and "id" in item for item in value)
