"""A chat in the shape that other programs speak: messages of any roles → one request to the engine."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

from prefanno.errors import InvalidInput
from prefanno.generation.config import GenerationConfig
from prefanno.prompting import Message

Said = Mapping[str, Any]  # a role and what it said, which may be None
INSTRUCTIONS = ("system", "developer")
COOLEST, LEAST_TOP_P = 0.1, 0.1  # what the engine takes
TO_THINK = 64  # tokens: with fewer, the least that a load takes, a thought would leave none for the reply


def split(messages: Sequence[Said]) -> tuple[str, list[Message], str | None]:
    """What the user says now, the turns before it, and the instructions; None without any.

    Messages of one role in a row are one turn, and one that says nothing is none. Raises InvalidInput where the last
    turn is not the user's.
    """
    messages = [one for one in messages if (one["content"] or "").strip()]
    instructions = [str(one["content"]) for one in messages if one["role"] in INSTRUCTIONS]
    said = [one for one in messages if one["role"] not in INSTRUCTIONS]
    turns: list[Message] = [
        {"role": role, "content": "\n\n".join(str(one["content"]) for one in together)}
        for role, together in groupby(said, key=lambda one: one["role"])
    ]
    if not turns or turns[-1]["role"] != "user":
        raise InvalidInput(
            {"messages": ["最后一条必须是 role 为 user 的消息"]}, english="the last message must be the user's"
        )
    *context, last = turns
    return last["content"], context, "\n\n".join(instructions) or None


def settings(loaded: GenerationConfig, asked: Mapping[str, Any], instructions: str | None) -> GenerationConfig:
    """The loaded settings with what is asked for; a temperature of 0 takes the likeliest token each time."""
    values: dict[str, Any] = {"mode": "single", "num_responses": asked["n"]}
    if instructions is not None:
        values["system_prompt"] = instructions
    if asked["temperature"] is not None:
        values["temperature"] = max(asked["temperature"], COOLEST)
        values |= {"top_k": 1} if asked["temperature"] == 0 else {}
    if asked["top_p"] is not None:
        values["top_p"] = max(asked["top_p"], LEAST_TOP_P)
    if (most := asked["max_completion_tokens"] or asked["max_tokens"]) is not None:
        values["max_new_tokens"] = most
        values |= {"enable_thinking": False} if most < TO_THINK else {}
    return replace(loaded, **values)


class Stops:
    """Text up to the first of the `stops` that is whole, given piece by piece: what may become one is held back."""

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = stops
        self._held = ""
        self.hit = False

    def take(self, text: str, *, last: bool = False) -> str:
        """What can be shown now that this text has come, too."""
        if self.hit:
            return ""
        held = self._held + text
        found = [(place + len(stop), place) for stop in self._stops if (place := held.find(stop)) >= 0]
        if found:
            self.hit, self._held = True, ""
            return held[: min(found)[1]]
        keep = 0 if last else max((_overlap(held, stop) for stop in self._stops), default=0)
        self._held = held[len(held) - keep :]
        return held[: len(held) - keep]


def _overlap(text: str, stop: str) -> int:
    """How much of the text's end is a beginning of the stop."""
    return next((size for size in range(min(len(stop) - 1, len(text)), 0, -1) if text.endswith(stop[:size])), 0)
