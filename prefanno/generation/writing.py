"""Candidates while they are written: tokens come in, one at a time; thought and reply come out as they become certain.

A candidate is a row of a batch in which every row has the same length, so a thought that must end is not cut out of the
batch: the tokens that close it are forced on the row, one a step, while its neighbours go on sampling.

Nothing here knows torch.
"""

import random
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from prefanno.generation.config import Delta, GenerationConfig, Reply
from prefanno.prompting import CLOSE_TAG, ChatTemplate, certain, split_thinking, without_tags

TAIL = 16  # tokens looked at for the end of a thought; the longest closing tag in use takes 5
HALF_CHARACTER = "\N{REPLACEMENT CHARACTER}"


@dataclass(frozen=True)
class Vocabulary:
    """What the tokens of a loaded model mean; `ends` are those that end a turn."""

    tokenizer: Any
    template: ChatTemplate
    ends: tuple[int, ...]

    @classmethod
    def of(cls, tokenizer: Any, template: ChatTemplate, configured: int | list[int] | None) -> "Vocabulary":
        """With the ends that the model's generation config names, else the tokenizer's."""
        ends = set(configured if isinstance(configured, list) else [configured, tokenizer.eos_token_id])
        return cls(tokenizer, template, tuple(sorted(end for end in ends if end is not None)))

    @cached_property
    def closing(self) -> list[int]:
        """The tokens that close a thought."""
        return self.encode(self.template.close)

    @cached_property
    def after_marker(self) -> list[int]:
        """The tokens between the tag that ends a thought and the reply."""
        return self.encode(self.template.close.partition(self.template.close_marker)[2])

    def encode(self, text: str) -> list[int]:
        """The tokens of a text, none added."""
        return list(self.tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int], *, special: bool = False) -> str:
        """The text of tokens, special ones left out or spelled."""
        return str(self.tokenizer.decode(ids, skip_special_tokens=not special))


class Text:
    """The text of tokens that come one at a time; a character in several tokens appears with the last of them."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self.ids: list[int] = []
        self.sure = ""
        self._vocabulary = vocabulary
        # What a token adds depends on the one before it, so the text of ids[start:read] is compared with ids[start:].
        self._start = self._read = 0
        self._known = ""

    def add(self, token: int) -> None:
        """Take the next token."""
        self.ids.append(token)
        text = self._vocabulary.decode(self.ids[self._start :])
        if len(text) > len(self._known) and not text.endswith(HALF_CHARACTER):
            self.sure += text[len(self._known) :]
            self._start, self._read = self._read, len(self.ids)
            self._known = self._vocabulary.decode(self.ids[self._start : self._read])

    def whole(self) -> str:
        """All of it, once no token comes any more."""
        return self._vocabulary.decode(self.ids)


class Row:
    """One candidate while it is written. `wanted` is set to False where nobody waits for it any more.

    `told` is the thought and the reply that the client has so far.
    """

    def __init__(self, vocabulary: Vocabulary, config: GenerationConfig, ordinal: int, seed: int) -> None:
        self.config, self.ordinal, self.seed = config, ordinal, seed
        self.told = ("", "")
        self.wanted = True
        self.finish_reason: str | None = None
        self._vocabulary = vocabulary
        self._random = random.Random(seed)  # noqa: S311 - a seed shall give the same text again
        self._thinking, self._visible = config.enable_thinking, False
        self._thought, self._text = Text(vocabulary), Text(vocabulary)
        self._forced: deque[int] = deque()
        self._tokens, self._logprobs = 0, list[float]()

    @property
    def going(self) -> bool:
        """Whether it takes part in the next step."""
        return self.wanted and self.finish_reason is None

    @property
    def tokens(self) -> int:
        """How many it has so far."""
        return self._tokens

    @property
    def may_end(self) -> bool:
        """A reply may not end before it shows anything."""
        return self._thinking or bool(self._forced) or self._visible

    def luck(self) -> float:
        """The number from 0 to 1 that decides its next token; none is used up where that is forced."""
        return 0.0 if self._forced else self._random.random()

    def take(self, sampled: int, logprob: float) -> int:
        """Take its next token and note what that means: thought, closing, reply or end; return which it was."""
        self._tokens += 1
        token = self._forced.popleft() if self._forced else self._chosen(sampled, logprob)
        if self._tokens >= self.config.max_new_tokens:
            self.finish_reason = self.finish_reason or "length"
        return token

    def _chosen(self, token: int, logprob: float) -> int:
        self._logprobs.append(logprob)
        if self._thinking:
            return self._think(token)
        if token in self._vocabulary.ends:
            self.finish_reason = "stop"
        else:
            self._text.add(token)
            self._visible = self._visible or bool(self._certain()[1])
        return token

    def _think(self, token: int) -> int:
        """Add the token to the thought, or end the thought: by its tag, its end of turn, its line or its budget."""
        known = self._vocabulary
        if token in known.ends:
            self._forced.extend(known.closing)
            self._thinking = False
            return self._forced.popleft()
        self._thought.add(token)
        if known.template.close_marker in known.decode(self._thought.ids[-TAIL:], special=True):
            self._forced.extend(known.after_marker)
            self._thinking = False
        elif self._is_one_line() or self._tokens + len(known.closing) >= self.config.max_new_tokens // 2:
            self._forced.extend(known.closing)
            self._thinking = False
        return token

    def _is_one_line(self) -> bool:
        """Whether a model that was never taught to think has ended a line that says something."""
        if self._vocabulary.template.knows_thinking or "\n" not in self._vocabulary.decode(self._thought.ids[-1:]):
            return False
        return bool(self._thought.whole().strip())

    def _certain(self) -> tuple[str, str]:
        """Thought and reply as far as they will stand, but for a reply that turns out to have been a thought."""
        thought = self._before_marker(self._thought.sure)
        thought = certain(thought) if self._thinking else without_tags(thought)
        close = CLOSE_TAG.search(self._text.sure)
        if close is None:
            return thought, certain(self._text.sure)
        return thought or without_tags(self._text.sure[: close.start()]), certain(self._text.sure[close.end() :])

    def _before_marker(self, thought: str) -> str:
        """The thought without the tag that ends it, or the beginning of that."""
        marker = self._vocabulary.template.close_marker
        before, found, _ = thought.partition(marker)
        if found or not self._thinking:
            return before
        part = next((size for size in range(len(marker) - 1, 0, -1) if thought.endswith(marker[:size])), 0)
        return thought[: len(thought) - part]

    def news(self) -> Delta | None:
        """What is certain now and was not told yet."""
        if self.finish_reason is None:
            return self._news(*self._certain())
        reply = self.reply()
        return self._news(reply.thinking or "", reply.content)

    def _news(self, thinking: str, content: str) -> Delta | None:
        before = self.told
        if before == (thinking, content) or (self.finish_reason is None and self._is_behind(thinking, content)):
            return None
        self.told = (thinking, content)
        if thinking.startswith(before[0]) and content.startswith(before[1]):
            return Delta(self.ordinal, thinking[len(before[0]) :], content[len(before[1]) :])
        return Delta(self.ordinal, thinking, content, replaces=True)

    def _is_behind(self, thinking: str, content: str) -> bool:
        """Whether all of it was told already: a row that is written anew catches up with the one before."""
        return self.told[0].startswith(thinking) and self.told[1].startswith(content)

    def reply(self) -> Reply:
        """What it came to; `content` may be empty."""
        thought = without_tags(self._thought.whole().partition(self._vocabulary.template.close_marker)[0])
        stray, content = split_thinking(self._text.whole())
        mean = sum(self._logprobs) / len(self._logprobs) if self._logprobs else None
        return Reply(thought or stray, content, self.finish_reason or "stop", self._tokens, self.seed, mean)
