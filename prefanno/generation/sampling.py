"""The decode loop: one prefill for N candidates, one batch, each candidate's thought within its budget.

All rows of the batch have the same length at every step, because a row whose thought must end is not cut out of the
batch: the tokens that close the thought are forced on it, one a step, while its neighbours go on sampling. A finished
row leaves the batch. Each row draws from a generator of its own, so its text does not depend on when its neighbours
finish.

Sampling follows transformers' `generate`: repetition penalty over prompt and text, then temperature, top-k, top-p.
"""

import hashlib
import re
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

from prefanno.generation.config import GenerationConfig, Reply
from prefanno.prompting import ChatTemplate, split_thinking, without_tags

if TYPE_CHECKING:
    import torch

TAIL = 16  # tokens looked at for the end of a thought; the longest closing tag in use takes 5

HALF_TAG = re.compile(r"<[^>]*$")  # may still become a tag, and then vanish


@dataclass
class Row:
    """One candidate while it is being written."""

    generator: "torch.Generator"
    thinking: bool
    thought: list[int] = field(default_factory=list)
    text: list[int] = field(default_factory=list)
    forced: deque[int] = field(default_factory=deque)
    visible: bool = False
    tokens: int = 0
    finish_reason: str | None = None


@dataclass(frozen=True)
class Decoder:
    """A loaded model with its chat template; `run` decodes one batch of candidates for one prompt."""

    model: Any
    tokenizer: Any
    template: ChatTemplate
    check_cancelled: Callable[[], None]

    def run(self, prompt: str, config: GenerationConfig, seeds: list[int]) -> list[Reply]:
        """One reply for each seed. Raises what `check_cancelled` raises, within one step."""
        import torch

        rows = [Row(self._generator(seed), config.enable_thinking) for seed in seeds]
        ids = self.tokenizer(prompt, add_special_tokens=False, return_tensors="pt").input_ids.to(self.model.device)
        with torch.inference_mode():
            self._decode(ids, config, rows)
        return [self._reply(row) for row in rows]

    def _decode(self, prompt: "torch.Tensor", config: GenerationConfig, rows: list[Row]) -> None:
        import torch
        from transformers import DynamicCache

        cache = DynamicCache(config=self.model.config)
        logits = self._forward(prompt, cache).expand(len(rows), -1)
        cache.batch_repeat_interleave(len(rows))
        sequences = prompt.expand(len(rows), -1)
        process = _processors(config)
        while rows:
            self.check_cancelled()
            scores = process(sequences, self._without_early_end(logits.float(), rows))
            probabilities = torch.softmax(scores, dim=-1)
            tokens = [self._advance(row, probabilities[i], config) for i, row in enumerate(rows)]
            going = [i for i, row in enumerate(rows) if row.finish_reason is None]
            rows = [rows[i] for i in going]
            if rows:
                kept = torch.tensor(going, device=prompt.device)
                column = torch.tensor(tokens, device=prompt.device)[kept].unsqueeze(1)
                if len(going) < len(tokens):
                    cache.batch_select_indices(kept)
                sequences = torch.cat([sequences[kept], column], dim=1)
                logits = self._forward(column, cache)

    def _forward(self, ids: "torch.Tensor", cache: Any) -> "torch.Tensor":
        return self.model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1).logits[:, -1]  # type: ignore[no-any-return]

    def _without_early_end(self, scores: "torch.Tensor", rows: list[Row]) -> "torch.Tensor":
        """A reply may not end before it shows anything."""
        scores = scores.clone()
        for i, row in enumerate(rows):
            if not row.thinking and not row.forced and not row.visible:
                scores[i, self._ends] = float("-inf")
        return scores

    def _advance(self, row: Row, probabilities: "torch.Tensor", config: GenerationConfig) -> int:
        """Choose the row's next token and note what it means: thought, closing, reply or end."""
        import torch

        row.tokens += 1
        if row.forced:
            token = row.forced.popleft()
        else:
            token = int(torch.multinomial(probabilities, 1, generator=row.generator))
            if row.thinking:
                token = self._think(row, token, config.max_new_tokens // 2)
            elif token in self._ends:
                row.finish_reason = "stop"
            else:
                row.text.append(token)
                row.visible = row.visible or bool(HALF_TAG.sub("", self._split(row)[1]))
        if row.tokens >= config.max_new_tokens:
            row.finish_reason = row.finish_reason or "length"
        return token

    def _think(self, row: Row, token: int, budget: int) -> int:
        """Add the token to the thought, or end the thought: by its tag, its end of turn, its line or its budget."""
        if token not in self._ends:
            row.thought.append(token)
            if self.template.close_marker in self._decoded(row.thought[-TAIL:]):
                rest = self.template.close.partition(self.template.close_marker)[2]
                row.forced.extend(self.tokenizer.encode(rest, add_special_tokens=False))
                row.thinking = False
                return token
            one_line = not self.template.knows_thinking and self._ends_line(row)
            if not one_line and row.tokens + len(self._closing) < budget:
                return token
            row.forced.extend(self._closing)
        else:
            row.forced.extend(self._closing)
            token = row.forced.popleft()
        row.thinking = False
        return token

    def _ends_line(self, row: Row) -> bool:
        """Whether the thought's last token ends a line that says something."""
        return "\n" in self._decoded(row.thought[-1:]) and bool(self._decoded(row.thought).strip())

    @cached_property
    def _closing(self) -> list[int]:
        """The tokens that close a thought."""
        return list(self.tokenizer.encode(self.template.close, add_special_tokens=False))

    @cached_property
    def _ends(self) -> list[int]:
        """The tokens that end a turn."""
        configured = self.model.generation_config.eos_token_id
        ends = set(configured if isinstance(configured, list) else [configured, self.tokenizer.eos_token_id])
        return sorted(end for end in ends if end is not None)

    def _split(self, row: Row) -> tuple[str | None, str]:
        """What a person sees of the reply, and a thought that was not asked for."""
        return split_thinking(self.tokenizer.decode(row.text, skip_special_tokens=True))

    def _decoded(self, ids: list[int]) -> str:
        return str(self.tokenizer.decode(ids, skip_special_tokens=False))

    def _generator(self, seed: int) -> "torch.Generator":
        import torch

        return torch.Generator(device=self.model.device).manual_seed(seed)

    def _reply(self, row: Row) -> Reply:
        thought = self._decoded(row.thought).partition(self.template.close_marker)[0]
        for token in self.tokenizer.all_special_tokens:  # only now: the marker itself may be made of them
            thought = thought.replace(token, "")
        thought = without_tags(thought)
        stray, content = self._split(row)
        return Reply(thought or stray, content, row.finish_reason or "stop", row.tokens)


def seed_of(seed: int, ordinal: int, attempt: int) -> int:
    """The seed of one candidate's generator: distinct for each, and the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{ordinal}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1


def _processors(config: GenerationConfig) -> Any:
    from transformers import (
        LogitsProcessorList,
        RepetitionPenaltyLogitsProcessor,
        TemperatureLogitsWarper,
        TopKLogitsWarper,
        TopPLogitsWarper,
    )

    return LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(config.repetition_penalty),
            TemperatureLogitsWarper(config.temperature),
            TopKLogitsWarper(config.top_k),
            TopPLogitsWarper(config.top_p),
        ]
    )
