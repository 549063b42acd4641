"""Prompts and replies, on small templates of the shapes that models come with."""

from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno import prompting
from prefanno.prompting import THINK_TAG, ChatTemplate, Message, conversation, split_thinking, without_tags
from tests.properties import unhurried
from tests.tiny import CHATML

# The thought is rendered, in the last answer only; `enable_thinking=False` closes an empty one.
QWEN = (
    "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}"
    "{% if m.role == 'assistant' and loop.last %}"
    "{{ '<think>\n' + (m.reasoning_content or '').strip('\n') + '\n</think>\n\n' }}{% endif %}"
    "{{ m.content + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}"
    "{% if enable_thinking is defined and enable_thinking is false %}{{ '<think>\n\n</think>\n\n' }}{% endif %}"
    "{% endif %}"
)
# Likewise, but it always thinks, and opens the thought itself.
QWEN_THINKING = QWEN.partition("{% if enable_thinking")[0] + "{{ '<think>\n' }}{% endif %}"
# Channels in place of tags, and another key.
GPT_OSS = (
    "{% for m in messages %}{% if m.role != 'assistant' %}"
    "{{ '<|start|>' + m.role + '<|message|>' + m.content + '<|end|>' }}{% elif loop.last %}"
    "{% if m.thinking %}{{ '<|start|>assistant<|channel|>analysis<|message|>' + m.thinking + '<|end|>' }}{% endif %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|return|>' }}{% else %}"
    "{{ '<|start|>assistant<|channel|>final<|message|>' + m.content + '<|end|>' }}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant' }}{% endif %}"
)
# Takes thoughts out of what it renders, and opens one in the generation prompt.
R1 = (
    "{% for m in messages %}{% if m.role == 'system' %}{{ m.content }}{% elif m.role == 'user' %}"
    "{{ '<|User|>' + m.content }}{% else %}{{ '<|Assistant|>' + m.content.split('</think>')[-1] + '<|end|>' }}"
    "{% endif %}{% endfor %}{% if add_generation_prompt %}{{ '<|Assistant|><think>\n' }}{% endif %}"
)
ALTERNATING = (
    "{% if (m.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('roles must alternate, user first') }}"
    "{% endif %}"
)
GEMMA = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}" + ALTERNATING + "{{ '<start_of_turn>' + ('model' if m.role == 'assistant' else m.role) + "
    "'\n' + m.content | trim + '<end_of_turn>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<start_of_turn>model\n' }}{% endif %}"
)
MISTRAL = (
    "{% if messages[0].role == 'system' %}{% set system = messages[0].content + '\n\n' %}{% set rest = messages[1:] %}"
    "{% else %}{% set system = '' %}{% set rest = messages %}{% endif %}"
    "{% for m in rest %}" + ALTERNATING + "{% if m.role == 'user' %}"
    "{{ '[INST]' + (system if loop.first else '') + m.content + '[/INST]' }}{% else %}{{ m.content + '</s>' }}"
    "{% endif %}{% endfor %}"
)


@dataclass(frozen=True)
class Shape:
    """A template, and what is true of it."""

    name: str
    jinja: str
    key: str | None  # of the thought, where it renders one
    open: str = "<think>\n"
    close: str = "\n</think>\n\n"
    marker: str = "</think>"
    end: str = "<|im_end|>\n"
    prompted: str = "<|im_start|>assistant\n"  # the end of a prompt for a reply without a thought


SHAPES = [
    Shape("chatml", CHATML, None),
    Shape("qwen", QWEN, "reasoning_content", prompted="<|im_start|>assistant\n<think>\n\n</think>\n\n"),
    Shape("qwen thinking", QWEN_THINKING, "reasoning_content", prompted="assistant\n<think>\n\n</think>\n\n"),
    Shape(
        "gpt-oss",
        GPT_OSS,
        "thinking",
        open="<|channel|>analysis<|message|>",
        close="<|end|><|start|>assistant<|channel|>final<|message|>",
        marker="<|end|>",
        end="<|return|>",
        prompted="<|start|>assistant<|channel|>final<|message|>",
    ),
    Shape("r1", R1, None, end="<|end|>", prompted="<|Assistant|><think>\n\n</think>\n\n"),
    Shape("gemma", GEMMA, None, end="<end_of_turn>\n", prompted="<start_of_turn>model\n"),
    Shape("mistral", MISTRAL, None, end="</s>", prompted="[/INST]"),
]
every_shape = pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: shape.name)

PERSONA = "You are Li."
CONTEXT: list[Message] = [{"role": "user", "content": "Hi?"}, {"role": "assistant", "content": "Ho!"}]
ASKED = conversation(PERSONA, CONTEXT, "Who are you?")
THOUGHTS = ["A guest.", "First.\nThen:\n\n- a list", "我在想 <b>", "."]
REPLIES = ["I am Li.", "Two\n\nparagraphs", "a < b > c", "{{ 7 * 7 }}"]


def _template(jinja: str) -> ChatTemplate:
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE()))  # type: ignore[no-untyped-call]
    tokenizer.chat_template = jinja
    return ChatTemplate.of(tokenizer)


def _rendered(template: ChatTemplate, messages: list[Message], **answer: str) -> str:
    """What the template itself makes of the conversation and this answer."""
    text: Any = template.tokenizer.apply_chat_template([*messages, {"role": "assistant", **answer}], tokenize=False)
    return str(text)


@every_shape
def test_the_probe_finds_what_stands_around_a_thought(shape: Shape) -> None:
    """The probe reads opening, closing and end off the template, and whether it renders thoughts at all."""
    template = _template(shape.jinja)
    assert (template.open, template.close, template.end) == (shape.open, shape.close, shape.end)
    assert template.knows_thinking == (shape.key is not None)
    assert template.close_marker == shape.marker


@every_shape
@pytest.mark.parametrize("thought", THOUGHTS)
@pytest.mark.parametrize("reply", REPLIES)
def test_a_thought_and_its_reply_are_parsed_back(shape: Shape, thought: str, reply: str) -> None:
    """After a prompt that opens a thought, the completion falls into the same thought and the same reply."""
    template = _template(shape.jinja)
    prompt, completion = template.prompt(ASKED, thinking=True), template.completion(thought, reply)
    assert prompt.endswith(shape.open) and prompt.count(shape.open) == 1
    before, close, after = completion.partition(template.close)
    assert (before, close, after) == (thought, shape.close, f"{reply}{shape.end.rstrip()}")
    assert before.partition(template.close_marker)[0] == thought
    if shape.marker == "</think>":
        assert split_thinking(completion.removesuffix(shape.end.rstrip())) == (thought, reply)


@pytest.mark.parametrize("shape", [shape for shape in SHAPES if shape.key], ids=lambda shape: shape.name)
@pytest.mark.parametrize("thought", THOUGHTS)
def test_a_template_that_knows_thoughts_renders_the_same(shape: Shape, thought: str) -> None:
    """Prompt and completion are together, character by character, what the model's own template makes of the turn."""
    template = _template(shape.jinja)
    written = template.prompt(ASKED, thinking=True) + template.completion(thought, "I am Li.")
    assert shape.key is not None
    own = _rendered(template, prompting._with_instruction(ASKED), content="I am Li.", **{shape.key: thought})
    assert written == own.rstrip()


@every_shape
@pytest.mark.parametrize("reply", REPLIES)
def test_without_a_thought_the_prompt_goes_on_to_the_reply(shape: Shape, reply: str) -> None:
    """Asked not to think, the model stands right before its reply: no thought is left open, none has to be begun."""
    template = _template(shape.jinja)
    prompt = template.prompt(ASKED, thinking=False)
    assert prompt.endswith(shape.prompted)
    assert template.completion(None, reply) == f"{reply}{shape.end.rstrip()}"
    assert "silently" not in prompt and "Before you reply" not in prompt
    if shape.name not in ("r1", "gemma", "mistral"):  # R1 renders no empty thought; the others take no system role
        assert prompt + template.completion(None, reply) == _rendered(template, ASKED, content=reply).rstrip()


@every_shape
@pytest.mark.parametrize("thinking", [True, False])
@pytest.mark.parametrize("opening", ["user", "assistant"])
def test_nothing_of_a_conversation_is_lost(shape: Shape, thinking: bool, opening: str) -> None:
    """Persona, every earlier turn and the message are in the prompt, in order, also when the assistant began."""
    welcome: list[Message] = [{"role": "assistant", "content": "Welcome!"}]
    context = CONTEXT if opening == "user" else [*welcome, *CONTEXT]
    prompt = _template(shape.jinja).prompt(conversation(PERSONA, context, "Who are you?"), thinking)
    texts = [PERSONA, *(turn["content"] for turn in context), "Who are you?"]
    positions = [prompt.find(text) for text in texts]
    assert -1 not in positions and positions == sorted(positions)
    assert all(prompt.count(text) == 1 for text in texts)


@every_shape
def test_thoughts_of_earlier_turns_are_not_opened(shape: Shape) -> None:
    """Only the answer to come has a thought; what was said earlier is shown without one."""
    prompt = _template(shape.jinja).prompt(ASKED, thinking=True)
    assert shape.close not in prompt.replace("<|end|><|start|>assistant<|channel|>final<|message|>Ho!", "")


@pytest.mark.parametrize(
    ("persona", "said"),
    [("你是离。", "写在 <think> 和 </think> 之间"), ("You are Li.", "between <think> and </think>")],
)
def test_the_model_is_asked_to_think_in_the_personas_language(persona: str, said: str) -> None:
    """A Chinese persona is asked to think in Chinese, any other in English, and only when it shall think."""
    template = _template(CHATML)
    messages = conversation(persona, [], "?")
    assert said in template.prompt(messages, thinking=True)
    assert said not in template.prompt(messages, thinking=False)


def test_a_model_without_a_chat_template_is_refused() -> None:
    """A tokenizer without a chat template belongs to no chat model, and the error says which to choose."""
    with pytest.raises(ValueError, match="choose an instruct model"):
        _template("")


def test_a_template_that_refuses_everything_is_an_error_with_its_reason() -> None:
    """Where no variant of the conversation can be rendered, the template's own reason is named."""
    with pytest.raises(ValueError, match="cannot render the conversation: never"):
        _template("{{ raise_exception('never') }}")


def test_the_message_may_look_like_a_template() -> None:
    """What a user writes is text, not a template, and may hold any of the words that the probe uses."""
    text = "{{ messages }} <think> prefanno-reply prefanno-thought <|im_end|>"
    assert text in _template(QWEN).prompt(conversation(PERSONA, [], text), thinking=False)


TAGS = ["<think>", "</think>", "<thinking>", "</thinking>", "<THINK >", "</Think\n>"]
PIECES = [*TAGS, "<", ">", "/", "think", "<th", "ink>", "</thi", "nk>", "\0", "\n", " ", "a", "你"]
TEXTS = st.lists(st.sampled_from(PIECES) | st.text(max_size=3), max_size=12).map("".join)


@unhurried
@given(TEXTS)
def test_no_think_tag_is_ever_left(text: str) -> None:
    """Whatever the text, and however tags are nested into each other, none is left, and cleaning twice is as once."""
    clean = without_tags(text)
    assert not THINK_TAG.search(clean)
    assert "\0" not in clean and clean == clean.strip()
    assert without_tags(clean) == clean


@unhurried
@given(TEXTS)
def test_thought_and_reply_hold_no_think_tag(text: str) -> None:
    """Both parts are clean, a thought is never empty, and a reply is not split again."""
    thought, reply = split_thinking(text)
    assert thought != ""
    assert not THINK_TAG.search(f"{thought} | {reply}")
    assert split_thinking(reply) == (None, reply)


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("Hello", (None, "Hello")),
        ("<think>\nHm.\n</think>\n\nHello", ("Hm.", "Hello")),
        ("Hm.</think>Hello", ("Hm.", "Hello")),
        ("<THINKING>Hm.</Thinking >Hello", ("Hm.", "Hello")),
        ("<think>\n\n</think>\n\nHello", (None, "Hello")),
        ("<think>never closed", (None, "never closed")),
        ("Hm.</think>Hello</think>again", ("Hm.", "Helloagain")),
        ("<thi<think>nk>Hello", (None, "Hello")),
        ("I think > therefore < I am", (None, "I think > therefore < I am")),
    ],
)
def test_texts_are_split_at_the_first_closing_tag(text: str, parts: tuple[str | None, str]) -> None:
    """The thought is what comes before the first closing tag, in whatever spelling."""
    assert split_thinking(text) == parts
