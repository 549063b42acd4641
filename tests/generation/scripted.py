"""A model that writes what a test tells it to, so that rare texts come up for certain."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any


class Scripted:
    """Stands in for a causal language model in a batch of one.

    `write` gets all text so far, the prompt included, and returns what should come next, of which the first token
    counts. Where that token is not allowed, "x" comes.
    """

    def __init__(self, tokenizer: Any, write: Callable[[str], str]) -> None:
        import torch
        from transformers import LlamaConfig

        self.tokenizer, self.write = tokenizer, write
        self.device = torch.device("cpu")
        self.config = LlamaConfig(num_hidden_layers=1)
        self.generation_config = SimpleNamespace(eos_token_id=tokenizer.eos_token_id)
        self.ids: list[int] = []
        self.calls = 0

    @property
    def text(self) -> str:
        """All that the model has read so far: the prompt, and what was written after it."""
        return str(self.tokenizer.decode(self.ids, skip_special_tokens=False))

    def __call__(self, input_ids: Any, past_key_values: Any, **_options: Any) -> SimpleNamespace:
        """The scores of the next token."""
        import torch

        self.calls += 1
        nothing = torch.zeros(1, 1, input_ids.shape[1], 1)
        past_key_values.update(nothing, nothing, 0)
        self.ids += input_ids[0].tolist()
        scores = torch.full((1, 1, len(self.tokenizer)), -30.0)
        scores[0, 0, self._first("x")] = 10.0
        scores[0, 0, self._first(self.write(self.text))] = 30.0
        return SimpleNamespace(logits=scores)

    def _first(self, text: str) -> int:
        return int(self.tokenizer.encode(text, add_special_tokens=False)[0])


def plan(marker: str, text: str, then: str = "<|im_end|>") -> Callable[[str], str]:
    """Write `text` after the last `marker`; where something else came in between, write on with `then`."""

    def write(so_far: str) -> str:
        written = so_far.rpartition(marker)[2]
        return text[len(written) :] if text.startswith(written) and written != text else then

    return write
