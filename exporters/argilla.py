"""Argilla's flat records, `dataset.records.to_list(flatten=True)` as JSON, or as JSON lines; import only.

A record holds its fields, and for each question the answers, who gave them and whether they submitted them:
`best.responses`, `best.responses.users`, `best.responses.status`. Which field is the prompt and which are replies comes
from their names (`comparisons.py`). Of a person's answers the first of these that there is says which reply is better:

- a ranking: each reply over each of a larger `rank`; equal ranks are a tie. It must say the ranks: the Python SDK
  (2.8.0, argilla/responses.py) leaves them out, and what remains is the order of the question's options, whatever was
  answered. Such a list is a fault; docs/exporters.md has the line that keeps the ranks.
- a label that names a reply: that reply over each other one.
- ratings, each of a question that names a reply, as `rating_1` or `generations-0-rating`: more is better.

An option of a ranking and a rating's question may name a reply by its number or letter alone. What is tied makes no
pair; a person for whom all are tied is a fault. Only submitted answers count: drafts are not read, discarded ones are
no rows, and a record with neither submitted nor discarded ones is a fault. Suggestions are not a person's choice, so
they never count. A flat record says no time, so `created_at` is that of the import.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

from prefanno.rows import Fault, Found, Row

from .comparisons import about, conversation, implied, listed, once, reply_fields, rows
from .containers import json_entries
from .values import Entry, must_be, time

RESPONSES = ".responses"
RATING = re.compile("rating|rate|score", re.IGNORECASE)

Answers = Mapping[str, Any]  # of one person, by question
Names = Mapping[str, str]  # the field of each reply, by what may be said for it
Ranking = Sequence[Sequence[str]]  # the fields of replies from best to worst, those in one place tied


def reading(file: Path) -> Iterator[Found]:
    """The pairs of every person's answers, by the line of their record."""
    for line, record in json_entries(file):
        for found in _found(record):
            yield line, found
        del record  # it may be large, and the next one is parsed now


def _found(value: Any) -> Iterator[Row | Fault]:
    name = value.get("id") if isinstance(value, dict) else None
    name = name if isinstance(name, str) else None
    try:
        record = Entry(value)
        people = _submitted(record)
        replies = once(lambda: _Replies(record))
    except Fault as fault:
        yield about(fault, record=name)
        return
    for user, answers in people.items():
        try:
            yield from _rows(replies(), answers)
        except Fault as fault:
            yield about(fault, record=name, user=user)


def _submitted(record: Entry) -> Mapping[str, Answers]:
    """The submitted answers of each person; none where all discarded the record. Raises Fault."""
    if "fields" in record:
        raise Fault(
            "a nested record does not say which responses were submitted; export with to_list(flatten=True)",
            "嵌套记录未说明哪些回答已提交，请用 to_list(flatten=True) 导出",
        )
    people: dict[str, dict[str, Any]] = {}
    statuses: set[str] = set()
    for column in record.names():
        if column.endswith(RESPONSES) and column in record:
            for answer, user, status in _columns(record, column):
                statuses.add(status)
                if status == "submitted":
                    people.setdefault(user, {})[column.removesuffix(RESPONSES)] = answer
    if not statuses & {"submitted", "discarded"}:
        raise Fault(
            "no response was submitted; export submitted records only", "尚无已提交的回答，请只导出已提交的记录"
        )
    return people


def _columns(record: Entry, column: str) -> Iterator[tuple[Any, str, str]]:
    """Each answer to a question, who gave it, and its status. Raises Fault."""
    answers, users, statuses = (record.list(f"{column}{part}") for part in ("", ".users", ".status"))
    for name, values in ((".users", users), (".status", statuses)):
        if len(values) != len(answers) or not all(isinstance(value, str | None) for value in values):
            raise must_be(f"{column}{name}", "a list of a string for each response", "与回答一一对应的字符串数组")
    for answer, user, status in zip(answers, users, statuses, strict=True):
        yield answer, user or "", status or ""


class _Replies:
    """What a record holds, which is looked through once, whatever the number of people. Raises Fault."""

    def __init__(self, record: Entry) -> None:
        marked = reply_fields(name for name in record.names() if "." not in name)
        self.named: Names = {_plain(name): name for name in marked.values()}
        self.either: Names = marked | self.named
        self.conversation = once(lambda: conversation(record, marked.values()))


def _rows(replies: _Replies, answers: Answers) -> list[Row]:
    """The pairs that one person's answers imply. Raises Fault."""
    named, either = replies.named, replies.either
    ranking = _ranking(answers, either) or _label(answers, named) or _ratings(answers, either)
    if not ranking:
        raise _no_choice(answers, either)
    said, texts = replies.conversation()
    pairs = implied([[name for name in tied if name in texts] for tied in ranking])
    return rows(said, pairs, texts, time("created_at", None))


def _ranking(answers: Answers, names: Names) -> Ranking | None:
    rankings = {question: answer for question, answer in answers.items() if _is_list(answer, dict, "rank")}
    question = _only_one(rankings)
    if question is None:
        return None
    ranks: dict[str, int] = {}
    for option in Entry({question: rankings[question]}).entries(question):
        rank, name = option.get("rank"), names.get(_plain(option.text("value")))
        if name is None or name in ranks:
            replies = listed(dict.fromkeys(names.values()))
            raise must_be(f"{option.path}value", f"each of {replies} once", f" {replies} 之一且不重复")
        if not isinstance(rank, int) or isinstance(rank, bool):
            raise must_be(f"{option.path}rank", "a whole number", "整数")
        ranks[name] = rank
    return _by(ranks)


def _label(answers: Answers, names: Names) -> Ranking | None:
    labels = {
        question: names[_plain(answer)]
        for question, answer in answers.items()
        if isinstance(answer, str) and _plain(answer) in names
    }
    question = _only_one(labels)
    if question is None:
        return None
    return [[labels[question]], [name for name in names.values() if name != labels[question]]]


def _ratings(answers: Answers, names: Names) -> Ranking | None:
    ratings: dict[str, int] = {}
    for question, answer in answers.items():
        name = names.get(_plain(RATING.sub("", question)))
        if name is None or not isinstance(answer, int) or isinstance(answer, bool):
            continue
        if name in ratings:
            raise Fault(f"several questions rate {name}; leave one", f"有多个问题对 {name} 评分，请只保留一个")
        ratings[name] = -answer
    return _by(ratings) if len(ratings) > 1 else None


def _by(ranks: Mapping[str, int]) -> Ranking:
    ranked = sorted(ranks, key=ranks.__getitem__)
    return [list(tied) for _, tied in groupby(ranked, key=ranks.__getitem__)]


def _only_one(found: Mapping[str, Any]) -> str | None:
    """The question that was answered so; None where there is none. Raises Fault where there are several."""
    if len(found) > 1:
        english = f"several questions compare the replies: {listed(found)}; leave one"
        raise Fault(english, f"有多个问题比较回复：{listed(found)}，请只保留一个")
    return next(iter(found), None)


def _no_choice(answers: Answers, names: Names) -> Fault:
    for question, answer in answers.items():
        named = _is_list(answer, str) and all(_plain(option) in names for option in answer)
        if named or _is_list(answer, dict, "value"):
            return Fault(
                f"{question} lists replies without their ranks, so the order says nothing; see docs/exporters.md",
                f"{question} 列出了回复但没有名次（rank），其顺序没有意义，见 docs/exporters.md",
            )
    replies = listed(dict.fromkeys(names.values()))
    shown = listed(f"{question}={answer}" for question, answer in answers.items() if isinstance(answer, str | int))
    return Fault(
        f"no answer says which of {replies} is better; the answers are {shown}",
        f"没有回答说明 {replies} 中哪一条更好；现有回答：{shown}",
    )


def _is_list(value: Any, kind: type[Any], key: str = "") -> bool:
    """Whether it is a list of this kind, with the key in each."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(one, kind) and (not key or key in one) for one in value)


def _plain(text: str) -> str:
    return re.sub(r"[\W_]", "", text.lower())
