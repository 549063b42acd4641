r"""Messages, persona and thinking ↔ the text a model sees: one place for generation and for training.

Chat templates disagree on thinking. Some render `reasoning_content` (Qwen3), some `thinking` (gpt-oss), some drop
every key but `content`; some open the thought in the generation prompt themselves. `ChatTemplate` finds out by
rendering a probe: whatever text the template puts between the prompt, the thought and the reply becomes `open` and
`close`. A template that drops the thought gets `<think>\n` and `\n</think>\n\n`, the spelling that Qwen3,
DeepSeek-R1 and Axolotl share. Generating and training both write prompt + open + thought + close + reply, so a model
is asked in exactly the form it was taught.
"""

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal, TypedDict

OPEN, CLOSE = "<think>\n", "\n</think>\n\n"
THINK_TAG = re.compile(r"</?think(?:ing)?\s*>", re.IGNORECASE)
CLOSE_TAG = re.compile(r"</think(?:ing)?\s*>", re.IGNORECASE)
UNCERTAIN = re.compile(r"(?:\s|</?(?:think(?:ing)?\s*|thinkin|thinki|thin|thi|th|t)?)+\Z", re.IGNORECASE)


class Message(TypedDict):
    """One turn of a conversation."""

    role: Literal["system", "user", "assistant"]
    content: str


@dataclass(frozen=True)
class ChatTemplate:
    """How one model writes a conversation.

    `open` and `close` stand around a thought, `begin` opens a reply without one, `end` ends a reply; `knows_thinking`
    says that the template renders thoughts itself.
    """

    tokenizer: Any
    open: str
    close: str
    begin: str
    end: str
    knows_thinking: bool

    @classmethod
    def of(cls, tokenizer: Any) -> "ChatTemplate":
        """Probe the tokenizer's chat template. Raises ValueError where it has none."""
        if not getattr(tokenizer, "chat_template", None):
            raise ValueError("this base model has no chat template, so it is no chat model; choose an instruct model")
        prompt = _render(tokenizer, [_USER], thinking=True, generate=True).removesuffix(OPEN)
        begin = _begin(tokenizer)
        for key in ("reasoning_content", "thinking"):
            answer = {"role": "assistant", "content": _REPLY, key: _THOUGHT}
            text = _render(tokenizer, [_USER, answer], thinking=True)
            found = re.fullmatch(f"{re.escape(prompt)}(.*){_THOUGHT}(.*){_REPLY}(.*)", text, re.DOTALL)
            if found:
                return cls(tokenizer, found[1], found[2], begin, found[3], knows_thinking=True)
        text = _render(tokenizer, [_USER, {"role": "assistant", "content": _REPLY}], thinking=True)
        return cls(tokenizer, OPEN, CLOSE, begin, text.rpartition(_REPLY)[2], knows_thinking=False)

    @property
    def close_marker(self) -> str:
        """What ends a thought when the model writes it: the first tag of `close`."""
        tag = re.match(r"\s*(<[^>]*>)", self.close)
        return tag[1] if tag else self.close.strip()

    def prompt(self, messages: Sequence[Message], thinking: bool) -> str:
        """The text that the model continues: with a thought when `thinking`, else with the reply."""
        if thinking:
            messages = _with_instruction(messages)
        text = _render(self.tokenizer, messages, thinking=thinking, generate=True)
        opened = text.endswith(self.open)
        if thinking:
            return text if opened else text + self.open
        return text + (self.close if opened else self.begin)

    def completion(self, thinking: str | None, content: str) -> str:
        """What the model should write after `prompt(..., thinking=thinking is not None)`, with the end of the turn."""
        return (thinking + self.close if thinking else "") + content + self.end.rstrip()


def conversation(system_prompt: str, context: Sequence[Message], human_input: str) -> list[Message]:
    """The messages of one turn: persona, earlier turns, what the user says now."""
    return [{"role": "system", "content": system_prompt}, *context, {"role": "user", "content": human_input}]


def split_thinking(text: str) -> tuple[str | None, str]:
    """The thought and the reply in a text that a model wrote, whatever tags it used; neither holds a think tag."""
    close = CLOSE_TAG.search(text)
    if not close:
        return None, without_tags(text)
    return without_tags(text[: close.start()]) or None, without_tags(text[close.end() :])


def without_tags(text: str) -> str:
    """The text without any think tag, also one that appears where another was taken out, and without NUL."""
    return _untagged(text).strip()


def certain(text: str) -> str:
    """What `without_tags` will begin with, however the text goes on.

    The white space, the beginnings of tags and the half characters that it ends in may vanish yet.
    """
    return UNCERTAIN.sub("", _untagged(text.rstrip("\N{REPLACEMENT CHARACTER}"))).lstrip()


_USER: Message = {"role": "user", "content": "prefanno-question"}
_THOUGHT, _REPLY = "prefanno-thought", "prefanno-reply"

_INSTRUCTIONS = {
    "zh": "回答之前，先以角色的身份用一两句话默默思考，写在 <think> 和 </think> 之间，然后再回答。",
    "en": "Before you reply, think in character, in a sentence or two, between <think> and </think>; then reply.",
}
_CHINESE = re.compile(r"[\u4e00-\u9fff]")


def _untagged(text: str) -> str:
    text = text.replace("\0", "")
    while (cleaned := THINK_TAG.sub("", text)) != text:
        text = cleaned
    return text


def _begin(tokenizer: Any) -> str:
    """What the template puts between the prompt for a reply without a thought and that reply."""
    prompt = _render(tokenizer, [_USER], thinking=False, generate=True)
    text = _render(tokenizer, [_USER, {"role": "assistant", "content": _REPLY}], thinking=False)
    return text.removeprefix(prompt).partition(_REPLY)[0] if text.startswith(prompt) else ""


def _with_instruction(messages: Sequence[Message]) -> list[Message]:
    """The persona, asked to think in character, in the language it is written in."""
    system, *rest = messages
    language = "zh" if _CHINESE.search(system["content"]) else "en"
    return [{"role": "system", "content": f"{system['content']}\n\n{_INSTRUCTIONS[language]}"}, *rest]


def _render(tokenizer: Any, messages: Sequence[Any], *, thinking: bool, generate: bool = False) -> str:
    """Render; a template that refuses the roles gets the nearest conversation that it accepts."""
    refusal: Exception | None = None
    for variant in _variants(messages):
        try:
            return str(
                tokenizer.apply_chat_template(
                    variant, tokenize=False, add_generation_prompt=generate, enable_thinking=thinking
                )
            )
        except Exception as error:  # noqa: BLE001 - jinja2's TemplateError, and whatever else a template's own checks end in
            refusal = refusal or error
    raise ValueError(f"this base model's chat template cannot render the conversation: {refusal}")


def _variants(messages: Sequence[Any]) -> Iterator[list[Any]]:
    """The conversation as it is; opened by an empty user turn; with the persona inside the first user turn."""
    yield list(messages)
    head = [message for message in messages[:1] if message["role"] == "system"]
    rest = list(messages[len(head) :])
    if rest and rest[0]["role"] == "assistant":
        rest.insert(0, {"role": "user", "content": ""})
        yield [*head, *rest]
    if head and rest:
        first = "\n\n".join(filter(None, (head[0]["content"], rest[0]["content"])))
        yield [{"role": "user", "content": first}, *rest[1:]]
