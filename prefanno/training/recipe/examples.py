"""Rows → examples: a prompt with what is to be learnt from it, as text and as the tokens that the model sees.

Prompt and replies are tokenized apart, because a model that generates sees the prompt's own tokens, too.
"""

import json
import math
import random
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from prefanno.prompting import ChatTemplate, Message, conversation
from prefanno.rows import Row
from prefanno.training.methods import METHODS

SAID = 60  # characters


@dataclass(frozen=True)
class Reply:
    """One side of an example. `content` is the text without thought and ending."""

    text: str
    ids: list[int]
    content: str
    thinking: str | None


@dataclass(frozen=True)
class Example:
    """A prompt and the replies to it; a method that learns from single replies gets one side only.

    `line` is the row's in its file; `key` is what was asked, whatever thoughts do to the prompt. `one_sided` says
    that a thought was taken away, since the other side had none.
    """

    line: int
    key: str
    prompt: str
    prompt_ids: list[int]
    chosen: Reply | None
    rejected: Reply | None
    weight: float
    created_at: datetime
    one_sided: bool = False

    @property
    def sides(self) -> dict[str, Reply]:
        """The replies that it has, by name."""
        return {name: reply for name, reply in (("chosen", self.chosen), ("rejected", self.rejected)) if reply}

    @property
    def said(self) -> str:
        """The beginning of the message, so that a person knows which row is meant."""
        message: str = json.loads(self.key)[-1]
        return message[:SAID]

    @property
    def tokens(self) -> int:
        """Of the prompt and the longer reply."""
        return len(self.prompt_ids) + max(len(reply.ids) for reply in self.sides.values())


def of_row(line: int, row: Row, method: str, template: ChatTemplate) -> Iterator[Example]:
    """What the row teaches by this method: a pair, or each of its sides by itself.

    SFT learns every reply of a conversation, not the last alone: the earlier ones were chosen, too, and no other row
    has them. It learns no rejected reply, but has to know of each: what lost elsewhere was not chosen.
    """
    if METHODS[method].pairs:
        yield _example(line, row, template)
        return
    if method == "sft" and row.mode == "multi":
        row = replace(row, weight=1.0)  # it is the whole conversation, not a pair's share of it
        yield from (_example(line, turn, template) for turn in _earlier(row))
    if row.chosen is not None:
        yield _example(line, replace(row, rejected=None, rejected_thinking=None), template)
    if row.rejected is not None:
        yield _example(line, replace(row, chosen=None, chosen_thinking=None), template)


def scheduled(examples: Sequence[Example], epochs: float, seed: int) -> list[Example]:
    """The examples in the order of training, over all epochs, each epoch shuffled.

    An example of weight w comes w times in an epoch on average: so a ranking of four, which makes six pairs, counts as
    much as a single pair. Every loss of TRL goes with that, and few take weights.
    """
    dice = random.Random(seed)  # noqa: S311 - an order, no secret
    counts = [dice.random() for _ in examples]
    order: list[Example] = []
    for epoch in range(math.ceil(epochs)):
        share = min(1.0, epochs - epoch)
        wanted = [count + example.weight * share for count, example in zip(counts, examples, strict=True)]
        due = [
            example
            for example, before, after in zip(examples, counts, wanted, strict=True)
            for _ in range(math.floor(after + 1e-9) - math.floor(before + 1e-9))
        ]
        dice.shuffle(due)
        order += due
        counts = wanted
    return order or [examples[max(range(len(examples)), key=counts.__getitem__)]]


def together(order: Sequence[Example], stage: Mapping[str, Any]) -> tuple[int, int]:
    """How many examples go into a batch, and how many steps the order makes.

    A batch holds an example once, if it can: one pair, four times, is four steps and not one. KTO's loss compares
    the replies of a batch, so it has two at least.
    """
    different = len({id(example) for example in order})
    size = max(min(int(stage["batch_size"]), different), 2 if stage.get("loss") == "kto" else 1)
    return size, math.ceil(math.ceil((len(order) - lone(len(order), size, stage)) / size) / stage["accumulation"])


def lone(examples: int, size: int, stage: Mapping[str, Any]) -> int:
    """1 where KTO's last reply would be alone in its batch, with no other one to be compared with; it is left out."""
    return int(stage.get("loss") == "kto" and examples > 1 and examples % size == 1)


def merged(examples: Sequence[Example], method: str) -> tuple[list[Example], list[Example]]:
    """One example for each reply of a choice, where a method learns from single replies; and those undecided.

    A reply comes in as many pairs as it won and lost. Its weight is what it won more than it lost: so the best of four
    counts as a whole choice, and of a ranking the upper half is good, the lower one bad, and the middle neither.
    """
    if METHODS[method].pairs:
        return list(examples), []
    won: dict[tuple[Any, ...], float] = {}
    first: dict[tuple[Any, ...], tuple[Example, Reply]] = {}
    for example in examples:
        ((side, reply),) = example.sides.items()
        place = (example.key, example.created_at, example.prompt, reply.text)
        won[place] = won.get(place, 0.0) + (example.weight if side == "chosen" else -example.weight)
        first.setdefault(place, (example, reply))
    decided = [
        replace(
            example,
            chosen=reply if won[place] > 0 else None,
            rejected=None if won[place] > 0 else reply,
            weight=min(1.0, abs(won[place])),
        )
        for place, (example, reply) in first.items()
        if abs(won[place]) > NOTHING
    ]
    return decided, [example for place, (example, _) in first.items() if abs(won[place]) <= NOTHING]


def held_out(stages: Sequence[Sequence[Example]], share: float, seed: int) -> frozenset[str]:
    """The keys of the examples to measure by, which no stage of a run trains on.

    Nothing is kept back of fewer than `ENOUGH`, and at most `MOST`: more would cost time and tell little more. Nor is
    what would leave a stage with nothing to train on.
    """
    examples = [example for stage in stages for example in stage]
    counts = Counter(example.key for example in examples)
    wanted = min(MOST, round(len(examples) * share))
    if len(examples) < ENOUGH:
        return frozenset()
    keys = list(counts)
    random.Random(seed).shuffle(keys)  # noqa: S311 - an order, no secret
    kept: set[str] = set()
    for key in keys[:-1]:
        if counts[key] <= wanted:
            kept.add(key)
            wanted -= counts[key]
    for stage in stages:
        if (own := {example.key for example in stage}) <= kept:
            kept -= own
    return frozenset(kept)


def split(examples: Sequence[Example], keys: frozenset[str]) -> tuple[list[Example], list[Example]]:
    """A stage's examples to train on, and those held out."""
    return [one for one in examples if one.key not in keys], [one for one in examples if one.key in keys]


NOTHING = 1e-9
ENOUGH, MOST = 30, 64


def _example(line: int, row: Row, template: ChatTemplate) -> Example:
    """A pair with a thought on one side only is trained without: else the thought itself would be what is preferred."""
    thoughts = [row.chosen_thinking] * (row.chosen is not None) + [row.rejected_thinking] * (row.rejected is not None)
    thinking = all(thought is not None for thought in thoughts)
    messages = conversation(row.system_prompt, row.context, row.human_input)
    prompt = template.prompt(messages, thinking=thinking)
    return Example(
        line,
        json.dumps([row.system_prompt, list(row.context), row.human_input]),
        prompt,
        _ids(template, prompt),
        _reply(row.chosen, row.chosen_thinking if thinking else None, template),
        _reply(row.rejected, row.rejected_thinking if thinking else None, template),
        row.weight,
        row.created_at,
        one_sided=not thinking and any(thought is not None for thought in thoughts),
    )


def _reply(content: str | None, thinking: str | None, template: ChatTemplate) -> Reply | None:
    if content is None:
        return None
    text = template.completion(thinking, content)
    return Reply(text, _ids(template, text), content, thinking)


def _ids(template: ChatTemplate, text: str) -> list[int]:
    ids: list[int] = template.tokenizer(text, add_special_tokens=False).input_ids
    return ids


def _earlier(row: Row) -> Iterator[Row]:
    """The conversation's rows that end in each of its earlier replies; each has all before it."""
    turns: list[Message] = list(row.context)
    for position in range(1, len(turns)):
        turn = turns[position]
        if turn["role"] == "assistant" and turns[position - 1]["role"] == "user":
            said = turns[position - 1]["content"]
            yield replace(
                row,
                context=turns[: position - 1],
                human_input=said,
                chosen=turn["content"],
                chosen_thinking=None,
                rejected=None,
                rejected_thinking=None,
            )
