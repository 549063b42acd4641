"""What a reader sees while a candidate is written, whatever it is written in."""

from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prefanno.generation.config import GenerationConfig
from prefanno.generation.writing import Row, Text, Vocabulary
from prefanno.prompting import ChatTemplate, split_thinking, without_tags
from tests.properties import unhurried

CONFIG = GenerationConfig("You are Li.", enable_thinking=False, max_new_tokens=2048)
THINKING = GenerationConfig("You are Li.", max_new_tokens=2048)
PIECES = (
    "<think>",
    "</think>",
    "<thi",
    "nk>",
    "</",
    "think",
    "ing >",
    "<",
    ">",
    " ",
    "\n",
    "\0",
    "離",
    "👩‍🚀",
    "é",
    "ש",
    "x<y",
)
texts = st.lists(st.sampled_from(PIECES) | st.text(max_size=5), max_size=12).map("".join)


class Split:
    """A tokenizer whose tokens are any pieces of UTF-8 of a text, also parts of characters and of tags."""

    eos_token_id = -1

    def __init__(self, pieces: list[bytes]) -> None:
        self.pieces = pieces

    def decode(self, ids: list[int], *, skip_special_tokens: bool) -> str:
        """As byte-level tokenizers do."""
        del skip_special_tokens
        return b"".join(self.pieces[token] for token in ids).decode(errors="replace")

    def encode(self, _text: str, *, add_special_tokens: bool) -> list[int]:
        """Nothing is forced here."""
        del add_special_tokens
        return []


@st.composite
def splits(draw: st.DrawFn) -> tuple[str, list[bytes]]:
    """A text, and its UTF-8 cut anywhere."""
    text = draw(texts)
    content = text.encode()
    cuts = sorted(draw(st.sets(st.integers(0, len(content)), max_size=len(content))) | {0, len(content)})
    return text, [content[start:end] for start, end in pairwise(cuts)]


def _known(pieces: list[bytes]) -> Vocabulary:
    template = ChatTemplate(None, "<think>\n", "\n</think>\n\n", "", "<|im_end|>", knows_thinking=True)
    return Vocabulary(Split(pieces), template, (-1,))


def _read(row: Row, pieces: list[bytes]) -> tuple[str, str]:
    """What somebody has in the end who follows every piece of news."""
    thinking = content = ""
    for token in [*range(len(pieces)), -1]:
        row.take(token, 0.0)
        if delta := row.news():
            thinking = delta.thinking if delta.replaces else thinking + delta.thinking
            content = delta.content if delta.replaces else content + delta.content
    return thinking, content


@unhurried
@given(splits())
def test_any_split_reads_as_the_whole_text(split: tuple[str, list[bytes]]) -> None:
    """Thought and reply come out of any text in any pieces as they come out of the whole text."""
    text, pieces = split
    row = Row(_known(pieces), CONFIG, 1, 1)
    thinking, content = split_thinking(text)
    assert _read(row, pieces) == (thinking or "", content)
    assert (row.reply().thinking, row.reply().content) == (thinking, content)


@unhurried
@given(splits(), splits())
def test_any_split_of_a_thought_reads_as_the_whole(
    thought: tuple[str, list[bytes]], reply: tuple[str, list[bytes]]
) -> None:
    """A thought that the model closes by its tag, and a reply, in any pieces, come out as from the whole text."""
    text = f"{thought[0]}</think>{reply[0]}"
    pieces = [*thought[1], b"</th", b"ink>", *reply[1]]
    before, _, after = text.partition("</think>")
    if before != thought[0]:  # the thought held the tag itself; the rest of that token was part of the thought
        return
    row = Row(_known(pieces), THINKING, 1, 1)
    stray, content = split_thinking(after)
    assert _read(row, pieces) == (without_tags(before) or stray or "", content)


@unhurried
@given(splits())
def test_what_was_shown_stays(split: tuple[str, list[bytes]]) -> None:
    """Without a closing tag in the reply, no word is ever taken back."""
    text, pieces = split
    row, replaced = Row(_known(pieces), CONFIG, 1, 1), 0
    for token in [*range(len(pieces)), -1]:
        row.take(token, 0.0)
        delta = row.news()
        replaced += delta is not None and delta.replaces
    assert replaced == 0 or split_thinking(text)[0] is not None


@unhurried
@given(splits())
def test_characters_come_whole(split: tuple[str, list[bytes]]) -> None:
    """A character that is split across tokens never shows as a half one."""
    text, pieces = split
    shown = Text(_known(pieces))
    for token in range(len(pieces)):
        shown.add(token)
        assert text.startswith(shown.sure)
    assert shown.sure == shown.whole() == text or "\N{REPLACEMENT CHARACTER}" in text


def test_words_come_at_once() -> None:
    """What is certain is shown with the token that makes it certain; control: a half tag is held back."""
    pieces = [b"Good", b" day <", b"thin", b" air", b" <thi", b"nk>", b"!"]
    row = Row(_known(pieces), CONFIG, 1, 1)
    seen = []
    for token in range(len(pieces)):
        row.take(token, 0.0)
        delta = row.news()
        seen.append(delta.content if delta else "")
    assert seen == ["Good", " day", "", " <thin air", "", "", "  !".replace("  ", " ")]


@pytest.mark.parametrize("text", ["我是离，书店的店员~ 👩‍🚀é", "Ünïcödé 🦊🦊 שלום"])
def test_a_real_byte_tokenizer_reads_the_same(tiny_model: Path, text: str) -> None:
    """With the tiny model's tokenizer, where every byte is a token."""
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    known = Vocabulary.of(tokenizer, ChatTemplate.of(tokenizer), None)
    row, seen = Row(known, CONFIG, 1, 1), ""
    for token in [*known.encode(text), known.ends[0]]:
        row.take(token, 0.0)
        delta = row.news()
        seen += delta.content if delta else ""
    assert seen == row.reply().content == text
