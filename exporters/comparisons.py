"""Replies to one prompt that people compared on another platform: where its records hold them, and what follows."""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import datetime
from functools import cache
from itertools import combinations, islice, product
from typing import TypeVar

from prefanno.rows import Fault, Row

from .thinking import split
from .values import Entry, Turns, must_be, turns, without_trace

# Neither platform's export says which field is what, so the names that its templates and tools use decide.
PROMPTS = ("prompt", "instruction", "question", "query", "input", "messages", "conversation", "chat")
STEMS = ("response", "answer", "reply", "completion", "generation", "generations", "output", "pairtext", "text")
MARKED = re.compile(rf"({'|'.join(STEMS)})[-_ ]?(\d{{1,2}}|[a-h])", re.IGNORECASE)
SIDES = ("chosen", "rejected")
SHORT = 40  # characters of a name that a message quotes
MOST = 50  # replies in a ranking, which makes 1,225 pairs; Argilla asks for no more either

LONGEST_PAIRS = 24 << 20  # characters of the pairs of one choice together, each of which holds the prompt

KINDS = {"task": "任务", "annotation": "标注", "record": "记录", "user": "用户"}

Pairs = Sequence[tuple[str, str]]  # the better and the worse reply of each
T = TypeVar("T")


def once(find: Callable[[], T]) -> Callable[[], T]:
    """What is found at the first call, a fault included, at every call: a task may have thousands of annotations."""

    @cache
    def found() -> T | Fault:
        try:
            return find()
        except Fault as fault:
            return without_trace(fault)

    def again() -> T:
        result = found()
        if isinstance(result, Fault):
            raise without_trace(result)
        return result

    return again


def reply_fields(names: Iterable[str]) -> dict[str, str]:
    """The fields of the replies, by what tells them apart: `response_1` by "1", `chosen` by its name. Raises Fault."""
    found: dict[str, dict[str, list[str]]] = {}
    names = list(names)
    for name in sorted(names, key=lambda name: (len(name), name)):
        if parts := MARKED.fullmatch(name):
            found.setdefault(parts[1].lower(), {}).setdefault(parts[2].lower(), []).append(name)
        elif name.lower() in SIDES:
            found.setdefault("", {}).setdefault(name.lower(), []).append(name)
    for stem in (*STEMS, ""):
        if len(fields := found.get(stem, {})) > 1:
            return {key: _only(spelled) for key, spelled in fields.items()}
    looked_for = "response1 and response2, answer_a and answer_b, chosen and rejected, or the like"
    chinese = "response1 与 response2、answer_a 与 answer_b、chosen 与 rejected 等"
    raise Fault(
        f"there are no replies: looked for {looked_for}; the fields are {listed(names)}",
        f"没有回复：需要 {chinese}；现有字段：{listed(names)}",
    )


def asked(fields: Entry) -> Turns:
    """What the replies answer: a text, or messages of which the user's is the last. Raises Fault.

    A text in the field `context`, which Argilla's templates have, stands before the prompt; `system_prompt` is what it
    says.
    """
    name = next((name for name in PROMPTS if name in fields), None)
    if name is None:
        raise Fault(
            f"there is no prompt: looked for {', '.join(PROMPTS)}; the fields are {listed(fields.names())}",
            f"没有提示词：需要以下字段之一：{', '.join(PROMPTS)}；现有字段：{listed(fields.names())}",
        )
    if _is_messages(fields, name):
        return _turns(fields, name, fields.entries(name))
    context = fields.optional("context")
    prompt = fields.text(name)
    return fields.optional("system_prompt") or "", [], f"{context}\n\n{prompt}" if context else prompt


def conversation(fields: Entry, names: Iterable[str]) -> tuple[Turns, dict[str, str]]:
    """What was asked, and the text of each reply by the name of its field, without the fields that are empty.

    A reply may also be messages, of which the assistant's last one is the reply; those before it are what was asked.
    Raises Fault.
    """
    texts: dict[str, str] = {}
    opening: Turns | None = None
    for name in names:
        if fields.get(name) in (None, ""):
            continue
        if not _is_messages(fields, name):
            texts[name] = fields.text(name)
            continue
        *before, reply = fields.entries(name) or [Entry({})]
        if reply.get("role") != "assistant":
            raise must_be(fields.path + name, "messages that the assistant ends", "以 assistant 消息结尾的消息列表")
        texts[name] = reply.text("content")
        if before:
            said = _turns(fields, name, before)
            if opening not in (None, said):
                raise must_be(fields.path + name, "a reply to the same messages as the others", "对相同消息的回复")
            opening = said
    return opening or asked(fields), texts


def implied(*rankings: Sequence[Sequence[str]]) -> Pairs:
    """Each reply over each of a worse rank, in every ranking. Raises Fault.

    A ranking goes from best to worst; replies of one rank are tied.
    """
    if sum(len(tied) for ranking in rankings for tied in ranking) > MOST:
        raise Fault(f"more than {MOST} replies are ranked", f"排序的回复超过 {MOST} 条")
    return [
        pair for ranking in rankings for better, worse in combinations(ranking, 2) for pair in product(better, worse)
    ]


def rows(said: Turns, pairs: Pairs, texts: Mapping[str, str], created_at: datetime) -> list[Row]:
    """A row for each pair of replies, named as in `texts`; together they weigh 1. Raises Fault where there is none."""
    if not pairs:
        raise Fault("no reply is better than another", "没有一条回复优于另一条")
    system, context, human_input = said
    asked_length = len(system) + len(human_input) + sum(len(turn["content"]) for turn in context)
    if sum(asked_length + len(texts[better]) + len(texts[worse]) for better, worse in pairs) > LONGEST_PAIRS:
        most = LONGEST_PAIRS >> 20
        english = f"the {len(pairs)} pairs of the choice, each with the prompt, hold more than {most}M characters"
        raise Fault(f"{english} together", f"一次选择产生的 {len(pairs)} 个回复对（各含提示词）合计超过 {most}M 个字符")
    replies = {name: split(text) for name, text in texts.items()}
    return [
        Row("single", system, context, human_input, *replies[better], *replies[worse], created_at, 1 / len(pairs))
        for better, worse in pairs
    ]


def about(fault: Fault, **ids: str | None) -> Fault:
    """The fault with what it is about: such exports are often a single line, whose number finds nothing."""
    known = {kind: f"{found:.{SHORT}}" for kind, found in ids.items() if found}
    if not known:
        return without_trace(fault)
    english = ", ".join(f"{kind} {found}" for kind, found in known.items())
    chinese = "，".join(f"{KINDS[kind]} {found}" for kind, found in known.items())
    return Fault(f"{english}: {fault}", f"{chinese}：{fault.detail}")


def listed(names: Iterable[str]) -> str:
    """Names for a message, without end neither in number nor in length."""
    shown = [str(name)[:SHORT] for name in islice(names, 21)]
    return ", ".join(shown[:20]) + (", …" if len(shown) > 20 else "") or "none"  # noqa: PLR2004


def _only(names: Sequence[str]) -> str:
    if len(names) > 1:
        raise Fault(
            f"the fields {listed(names)} differ only in spelling; rename one, so that both are replies, or remove it",
            f"字段 {listed(names)} 仅写法不同，无法区分；请重命名或删除其一",
        )
    return names[0]


def _is_messages(fields: Entry, name: str) -> bool:
    value = fields.get(name)
    if not isinstance(value, str | list):
        raise must_be(fields.path + name, "a text or a list of messages", "文本或消息列表")
    return isinstance(value, list)


def _turns(fields: Entry, name: str, messages: Sequence[Entry]) -> Turns:
    try:
        return turns(messages)
    except Fault as fault:
        raise Fault(f"{fields.path}{name}: {fault}", f"{fields.path}{name}：{fault.detail}") from None
