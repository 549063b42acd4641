"""Files of prompts: text, a prompt on each line that is not blank, or JSON lines.

A line of JSON is a message as a string, or an object with a `message` and perhaps the earlier turns as `context`.
"""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

from prefanno import text
from prefanno.prompting import Message
from prefanno.prompts import NewPrompt
from prefanno.rows import Fault

LONGEST = 1 << 20  # bytes of a line: as much as the body of a request


def read(file: Path, form: str | None = None) -> Iterator[tuple[int, NewPrompt | Fault]]:
    """The prompts of a file, each with its line, a bad one as a Fault; *.jsonl is read as JSON lines, all else as text.

    Raises OSError where the file cannot be read.
    """
    as_json = form == "jsonl" or (form is None and file.suffix == ".jsonl")
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(LONGEST + 1):
            number += 1
            try:
                if len(line) > LONGEST:
                    yield number, Fault(f"is longer than {LONGEST} bytes, and ends the reading")
                    return
                if content := line.decode("utf-8-sig" if number == 1 else "utf-8").strip():
                    yield number, _prompt(_parsed(content)) if as_json else _checked(NewPrompt(content))
            except UnicodeDecodeError:
                yield number, Fault("is not UTF-8; save the file as UTF-8")
            except Fault as fault:
                yield number, fault


def _parsed(line: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError):
        raise Fault("is not JSON; for plain lines of text use --format text") from None


def _prompt(value: Any) -> NewPrompt:
    if isinstance(value, str):
        return _checked(NewPrompt(value))
    if not isinstance(value, dict):
        raise Fault("must be a string or an object")
    if unknown := sorted(value.keys() - {"message", "context"}):
        raise Fault(f"has an unknown field {unknown[0]}; a prompt has `message` and `context`")
    if not isinstance(value.get("message"), str):
        raise Fault("must have a string as `message`")
    context = value.get("context") or []
    if not isinstance(context, list) or not all(_is_turn(turn) for turn in context):
        raise Fault("`context` must be a list of turns, each with `role` (user or assistant) and `content`")
    roles = [turn["role"] for turn in context]
    if roles != (["assistant", "user"] * len(roles))[: len(roles)][::-1]:
        raise Fault("the roles in `context` must alternate, and the last must be assistant")
    return _checked(NewPrompt(value["message"], cast(list[Message], context)))


def _is_turn(turn: Any) -> bool:
    return (
        isinstance(turn, dict)
        and turn.keys() == {"role", "content"}
        and turn["role"] in ("user", "assistant")
        and isinstance(turn["content"], str)
    )


def _checked(prompt: NewPrompt) -> NewPrompt:
    for name, said in (("message", prompt.message), *(("content", turn["content"]) for turn in prompt.context)):
        if fault := text.fault(said):
            raise Fault(f"`{name}` {fault}")
    return prompt
