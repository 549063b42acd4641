"""What one load of the model is set to: the ten fields of `POST /api/model/load`."""

from dataclasses import dataclass


@dataclass(frozen=True)
class GenerationConfig:
    """Defaults of every field but the persona; the ranges are in `web/schemas.py`, which refuses anything outside them.

    `max_new_tokens` counts all tokens of one candidate; its thought may use at most half of them.
    """

    system_prompt: str
    enable_thinking: bool = True
    show_thinking: bool = True
    mode: str = "single"
    num_responses: int = 4
    temperature: float = 0.85
    top_p: float = 0.9
    top_k: int = 50
    repetition_penalty: float = 1.15
    max_new_tokens: int = 512


@dataclass(frozen=True)
class Reply:
    """One candidate as the model wrote it: no think tag in either text, `content` never empty.

    `finish_reason` is "stop" (the model ended its turn) or "length"; `tokens` counts all that were generated for it.
    """

    thinking: str | None
    content: str
    finish_reason: str
    tokens: int
