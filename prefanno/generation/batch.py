"""The decode loop: each prompt is read once for all of its rows, then every row gets a token at each step.

    add(prompt, rows) … add(prompt, rows) ─▶ step() ─▶ step() ─▶ … until no row is going

Rows that end, or that nobody waits for any more, leave the batch at the next step. A row's text does not depend on its
neighbours, but for rounding: in float32 it is the same alone and in company, in bfloat16 not always.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from prefanno.generation import cache as caches
from prefanno.generation.sampling import Sampler
from prefanno.generation.writing import Row

if TYPE_CHECKING:
    from torch import Tensor


@dataclass
class _Read:
    """A prompt that was read: its tokens, 1 x length, its keys and values, and the scores of the token after it."""

    ids: "Tensor"
    cache: Any
    scores: "Tensor"
    rows: list[Row]


class Batch:
    """Rows that are decoded together by one model; `ends` are the tokens that end a turn."""

    def __init__(self, model: Any, ends: Sequence[int]) -> None:
        self.rows: list[Row] = []
        self._model, self._ends = model, ends
        self._read: list[_Read] = []
        # These are made when the first step begins.
        self._sampler: Sampler
        self._scores: Tensor
        self._cache: Any

    @property
    def takes_more(self) -> bool:
        """Whether another prompt may be added: only before the first step, and to a model that can pad."""
        return not self.rows and all(caches.is_joinable(read.cache) for read in self._read)

    @property
    def is_going(self) -> bool:
        """Whether there is a row that wants another token."""
        return bool(self.rows or self._read)

    def add(self, prompt: Sequence[int], rows: list[Row]) -> None:
        """Read a prompt for these rows."""
        import torch
        from transformers import DynamicCache

        ids = torch.tensor([prompt], device=self._model.device)
        cache = DynamicCache(config=self._model.config)
        with torch.inference_mode():
            self._read.append(_Read(ids, cache, self._forward(cache, ids), rows))

    def step(self) -> None:
        """Give every row its next token, and read these."""
        import torch

        with torch.inference_mode():
            if self._read:
                self._begin()
            self._keep([index for index, row in enumerate(self.rows) if row.going])
            if not self.rows:
                return
            tokens, logprobs = self._sampler.draw(
                self._scores, [row.may_end for row in self.rows], [row.luck() for row in self.rows]
            )
            taken = [row.take(*drawn) for row, drawn in zip(self.rows, zip(tokens, logprobs, strict=True), strict=True)]
            going = [index for index, row in enumerate(self.rows) if row.going]
            self._keep(going)
            if going:
                column = torch.tensor([[taken[index]] for index in going], device=self._model.device)
                self._sampler.see(column)
                self._scores = self._forward(self._cache, column, **self._next_positions())

    def _begin(self) -> None:
        import torch

        read, self._read = self._read, []
        copies = [len(each.rows) for each in read]
        self.rows = [row for each in read for row in each.rows]
        self._scores = torch.cat([each.scores.expand(len(each.rows), -1) for each in read])
        prompts = [each.ids[0] for each in read for _ in each.rows]
        self._sampler = Sampler([row.config for row in self.rows], prompts, self._ends, self._scores)
        lengths = torch.tensor([len(prompt) for prompt in prompts], device=self._scores.device).unsqueeze(1)
        width = int(lengths.max())
        padded = bool((lengths < width).any())
        self._position = lengths if padded else None
        self._mask = (torch.arange(width, device=lengths.device) >= width - lengths).long() if padded else None
        if caches.is_joinable(read[0].cache):
            self._cache = caches.join([each.cache for each in read], copies)
        else:
            self._cache = read[0].cache
            self._cache.batch_repeat_interleave(copies[0])

    def _keep(self, going: list[int]) -> None:
        import torch

        if len(going) == len(self.rows):
            return
        self.rows = [self.rows[index] for index in going]
        kept = torch.tensor(going, dtype=torch.long, device=self._scores.device)
        self._sampler.keep(kept)
        self._scores = self._scores[kept]
        if going:
            self._cache.batch_select_indices(kept)
            if self._mask is not None and self._position is not None:
                self._mask, self._position = self._mask[kept], self._position[kept]
        else:
            self._cache = None

    def _next_positions(self) -> dict[str, "Tensor"]:
        """What a padded batch tells the model: which places hold a token, and where in its own text each row is."""
        import torch

        if self._mask is None or self._position is None:
            return {}
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)
        position, self._position = self._position, self._position + 1
        return {"attention_mask": self._mask, "position_ids": position}

    def _forward(self, cache: Any, ids: "Tensor", **positions: "Tensor") -> "Tensor":
        """The scores of the token after the last, rows x vocabulary."""
        output = self._model(input_ids=ids, past_key_values=cache, use_cache=True, logits_to_keep=1, **positions)
        scores: Tensor = output.logits[:, -1]
        return scores
