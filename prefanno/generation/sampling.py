"""Drawing the next token of every row of a batch, each by its own settings and its own luck.

As transformers' `generate` samples: repetition penalty over prompt and text, then temperature, top-k, top-p. Since
top-k leaves a hundred tokens at most, all that follows it works on these, and not on the whole vocabulary.
"""

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from prefanno.generation.config import GenerationConfig

if TYPE_CHECKING:
    from torch import Tensor

NEVER = float("-inf")


class Sampler:
    """The settings of each row, and which tokens it has read and written, for the repetition penalty."""

    def __init__(
        self, configs: Sequence[GenerationConfig], prompts: Sequence["Tensor"], ends: Sequence[int], scores: "Tensor"
    ) -> None:
        """`prompts` are the tokens of each row's prompt; `scores`, rows x vocabulary, says size and device."""
        import torch

        self._ends = torch.tensor(ends, device=scores.device)
        self._penalty, self._temperature, self._top_p, self._top_k = (
            torch.tensor([[getattr(config, name)] for config in configs], device=scores.device)
            for name in ("repetition_penalty", "temperature", "top_p", "top_k")
        )
        self._seen = torch.zeros(scores.shape, dtype=torch.bool, device=scores.device)
        for row, prompt in enumerate(prompts):
            self._seen[row, prompt] = True

    def keep(self, rows: "Tensor") -> None:
        """Go on with these rows only."""
        self._seen = self._seen[rows]
        self._penalty, self._temperature, self._top_p, self._top_k = (
            each[rows] for each in (self._penalty, self._temperature, self._top_p, self._top_k)
        )

    def see(self, column: "Tensor") -> None:
        """Note the token that each row took, rows x 1."""
        self._seen.scatter_(1, column, value=True)

    def draw(self, scores: "Tensor", may_end: Sequence[bool], luck: Sequence[float]) -> tuple[list[int], list[float]]:
        """The next token of each row, and its log-probability in `scores`, which are the model's, rows x vocabulary."""
        import torch

        scores = scores.float()
        norm = scores.logsumexp(dim=-1, keepdim=True)
        values, tokens = self._adjusted(scores, may_end).topk(min(int(self._top_k.max()), scores.shape[1]), dim=-1)
        ranks = torch.arange(values.shape[1], device=values.device)
        probabilities = (values / self._temperature).masked_fill(ranks >= self._top_k, NEVER).softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities
        probabilities = probabilities.masked_fill((before >= self._top_p) & (ranks > 0), 0.0)
        reached = probabilities.cumsum(dim=-1)
        target = torch.tensor(luck, device=reached.device, dtype=reached.dtype).unsqueeze(1) * reached[:, -1:]
        chosen = torch.searchsorted(reached, target, right=True)
        # Rounding must not choose a token beyond the last that is left.
        chosen = torch.minimum(chosen, (probabilities > 0).sum(dim=-1, keepdim=True) - 1)
        drawn = tokens.gather(1, chosen)
        logprobs = scores.gather(1, drawn) - norm
        return drawn.squeeze(1).tolist(), logprobs.squeeze(1).tolist()

    def _adjusted(self, scores: "Tensor", may_end: Sequence[bool]) -> "Tensor":
        import torch

        penalised = torch.where(scores > 0, scores / self._penalty, scores * self._penalty)
        adjusted = torch.where(self._seen, penalised, scores)
        for row, may in enumerate(may_end):
            if not may:
                adjusted[row, self._ends] = NEVER
        return adjusted


def seed_of(seed: int, ordinal: int, attempt: int) -> int:
    """The seed of one candidate: distinct for each, and the same on every machine."""
    digest = hashlib.sha256(f"{seed}/{ordinal}/{attempt}".encode()).digest()
    return int.from_bytes(digest[:8]) >> 1
