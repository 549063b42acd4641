"""What a generation is asked for, and what comes back: settings, requests, replies, and the events on the way."""

from collections.abc import Sequence
from dataclasses import dataclass

from prefanno.prompting import Message

SEEDS = 2**31  # seeds are 0 to 2^31 - 1


@dataclass(frozen=True)
class GenerationConfig:
    """The ten fields of `POST /api/model/load`, with the defaults of all but the persona.

    The ranges are in `web/schemas.py`, which refuses anything outside them. `max_new_tokens` counts all tokens of one
    candidate; its thought may use at most half of them.
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
class Request:
    """A message to be answered by `config.num_responses` candidates.

    `client` is who waits for it: clients take turns. Without one nobody waits yet: it is written ahead of time, while
    the engine has nothing else to do. `streams` says whether anybody reads the words as they come. `id` is the client's
    name for it, by which it can be cancelled.
    """

    message: str
    context: Sequence[Message]
    seed: int
    config: GenerationConfig
    client: str | None = ""
    streams: bool = False
    id: str | None = None


@dataclass(frozen=True)
class Reply:
    """One candidate as the model wrote it: no think tag in either text, `content` never empty.

    `finish_reason` is "stop" (the model ended its turn) or "length"; `tokens` counts all that were generated for it.
    `seed` is its own, made from the request's. `mean_logprob` is the mean natural logarithm of the probability that the
    model itself gave each token it was free to choose, before penalty, temperature, top-k and top-p; None without one.
    """

    thinking: str | None
    content: str
    finish_reason: str
    tokens: int
    seed: int
    mean_logprob: float | None


@dataclass(frozen=True)
class Queued:
    """A request waits: how many are before it, for about how many seconds, where that is known, and its name."""

    position: int
    wait_s: float | None
    request_id: str


@dataclass(frozen=True)
class Delta:
    """What is new in a candidate; with `replaces` it stands for all that was said of this candidate before."""

    ordinal: int
    thinking: str
    content: str
    replaces: bool = False


@dataclass(frozen=True)
class Finished:
    """A candidate is written."""

    ordinal: int
    reply: Reply


Event = Queued | Delta | Finished
