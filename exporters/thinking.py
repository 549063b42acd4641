r"""A reply with its thought as one text: `<think>\nT\n</think>\n\nA`, as LLaMA-Factory, Axolotl and Qwen3 spell it."""

import re

from prefanno.prompting import CLOSE, OPEN

LEADING = re.compile(f"{re.escape(OPEN)}(.*?){re.escape(CLOSE)}(.+)", re.DOTALL)


def spell(content: str, thinking: str | None) -> str:
    """The reply as one text."""
    return f"{OPEN}{thinking}{CLOSE}{content}" if thinking else content


def split(text: str) -> tuple[str, str | None]:
    """The content and the thought of a text that was spelled so; an empty one, as Qwen3 writes it, is none."""
    found = LEADING.fullmatch(text)
    return (found[2], found[1] if found[1].strip() else None) if found else (text, None)


def exact(content: str, thinking: str | None) -> bool:
    """Whether the text is read back as it was; a person may have written the tags in words of their own."""
    return (OPEN not in content and not thinking) or split(spell(content, thinking)) == (content, thinking)
